"""The bundles as they must lie on Hugging Face: MONAI's own code fetches them from a stand-in, and runs one."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from hub import Hub

from luna16_monai.bundle.folders import BUNDLES, bundle_dir, copy_bundle
from luna16_monai.tables.luna16 import read_candidates

huggingface_hub = pytest.importorskip("huggingface_hub", reason="the extra `publish` is not installed")
ROOT = Path(__file__).parents[1]

# what the page says, in one process, as starting takes seconds: each bundle is fetched, the first is run, and beside it
# the one that it was made from
FETCH_AND_RUN = """
import os, sys
from pathlib import Path
from monai.bundle import download, run
data, folder, own, *names = sys.argv[1:]
for name in names:
    download(name=name, source="huggingface_hub", repo=f"somebody/{name}", bundle_dir=folder, progress=False)
os.chdir(Path(folder, names[0]))
for configs, output in (("configs", "found.csv"), (own, "own.csv")):
    run(config_file=f"{configs}/inference.yaml", dataset_dir=data, output_file=output, backend="torch", views=1)
"""


def load() -> ModuleType:
    """tools/publish.py as a module."""
    spec = importlib.util.spec_from_file_location("tools_publish", ROOT / "tools" / "publish.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory) -> Path:
    """All bundles as repositories."""
    publish, folder = load(), tmp_path_factory.mktemp("hub")
    for name in BUNDLES:
        publish.lay_out(bundle_dir(name), folder / name, "somebody")
    return folder


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def front_matter(readme: Path) -> dict[str, Any]:
    first, block, _ = readme.read_text(encoding="utf-8").split("---\n", 2)
    assert first == ""
    return yaml.safe_load(block)


@pytest.mark.parametrize("name", BUNDLES)
def test_repository_is_the_bundle_with_a_card_and_safetensors(laid_out, name):
    assert files(laid_out / name) == files(bundle_dir(name)) | {"README.md", "models/model.safetensors"}
    for path in files(bundle_dir(name)):
        assert (laid_out / name / path).read_bytes() == (bundle_dir(name) / path).read_bytes()


@pytest.mark.parametrize("name", BUNDLES)
def test_safetensors_are_the_tensors_of_model_pt(laid_out, name):
    from safetensors.torch import load_file

    models = laid_out / name / "models"
    tensors, weights = load_file(models / "model.safetensors"), torch.load(models / "model.pt", weights_only=True)
    assert tensors.keys() == weights.keys()
    assert all(torch.equal(tensors[key], weights[key]) for key in weights)


@pytest.mark.parametrize(
    ("name", "scores"),
    [
        ("nodule_classification", ["roc_auc", "cpm"]),
        ("malignancy_classification", ["roc_auc"]),
        ("nodule_detection", ["cpm"]),
    ],
)
def test_front_matter_says_what_the_hub_asks_for(laid_out, name, scores):
    told = front_matter(laid_out / name / "README.md")
    assert (told["library_name"], told["license"], told["metrics"]) == ("monai", "apache-2.0", scores)
    assert {"monai", "medical"} <= set(told["tags"])
    (index,) = told["model-index"]
    metrics = [metric for result in index["results"] for metric in result["metrics"]]
    assert [metric["type"] for metric in metrics] == scores
    # nothing may look like a score on LUNA16
    assert {result["dataset"]["name"] for result in index["results"]} == {"synthetic CTs, held out"}


def test_front_matter_has_the_scores_of_the_weights(laid_out):
    folder = laid_out / "malignancy_classification"
    measured = json.loads((folder / "models" / "metrics.json").read_text(encoding="utf-8"))["malignancy"]
    (result,) = front_matter(folder / "README.md")["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == round(measured["compared"]["network"]["roc_auc"], 3)


def test_card_of_a_bundle_from_elsewhere_names_no_scores(laid_out, tmp_path):
    mine = tmp_path / "nodule_classification"
    copy_bundle(bundle_dir(), mine)
    told = front_matter(load().lay_out(mine, tmp_path / "hub", "me") / "README.md")
    assert told["library_name"] == "monai"
    assert not {"metrics", "model-index"} & set(told)
    assert "--repo me/nodule_classification" in (tmp_path / "hub" / "README.md").read_text(encoding="utf-8")


def test_lay_out_leaves_a_folder_alone_that_is_not_empty(tmp_path):
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(FileExistsError):
        load().lay_out(bundle_dir(), tmp_path, "somebody")
    assert os.listdir(tmp_path) == ["mine"]


def test_monai_downloads_the_bundles_and_runs_one(laid_out, phantom_dir, tmp_path):
    hub = Hub({f"somebody/{name}": laid_out / name for name in BUNDLES})
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment |= {"HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"}
    own = bundle_dir() / "configs"
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", FETCH_AND_RUN, phantom_dir, tmp_path, own, *BUNDLES],
            env=environment, capture_output=True, encoding="utf-8", check=False,
        )  # fmt: skip
    finally:
        hub.close()
    assert done.returncode == 0, done.stderr
    for name in BUNDLES:
        assert files(laid_out / name) <= files(tmp_path / name)
        for path in files(laid_out / name):
            assert (tmp_path / name / path).read_bytes() == (laid_out / name / path).read_bytes()
        assert f"/api/models/somebody/{name}/refs" in hub.asked
    found = (tmp_path / BUNDLES[0] / "found.csv").read_text(encoding="utf-8")
    assert len(found.splitlines()) == 1 + len(read_candidates(phantom_dir))
    assert found == (tmp_path / BUNDLES[0] / "own.csv").read_text(encoding="utf-8")
