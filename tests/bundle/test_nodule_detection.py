"""The detection bundle under MONAI's own checks; its trainings are tested in tests/training/test_detection.py."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
import torch
import yaml
from monai.bundle import ConfigParser, ckpt_export, create_workflow, verify_metadata, verify_net_in_out

from luna16_monai.bundle.bases import base_files, on_bases
from luna16_monai.bundle.folders import bundle_dir
from luna16_monai.experiments.search import Search
from luna16_monai.networks.nodule_detector import NoduleDetector

BUNDLE = bundle_dir("nodule_detection")
CONFIGS = BUNDLE / "configs"
META = str(CONFIGS / "metadata.json")


def test_metadata_fits_monais_schema(shared, tmp_path):
    # MONAI fetches the schema unless it is there
    (tmp_path / "schema.json").write_bytes(shared("schema/meta_schema_20240725.json").read_bytes())
    verify_metadata(meta_file=META, filepath=str(tmp_path / "schema.json"))


def test_bundle_has_the_files_that_model_zoo_asks_for():
    for name in (
        "configs/metadata.json",
        "configs/inference.yaml",
        "LICENSE",
        "models/model.pt",
        "docs/README.md",
        "args.yaml",
    ):
        assert (BUNDLE / name).is_file(), name
    metadata = json.loads((CONFIGS / "metadata.json").read_text(encoding="utf-8"))
    assert metadata["version"] in metadata["changelog"]


def test_weights_of_the_bundle_are_those_that_their_card_names():
    card = (BUNDLE / "models" / "README.md").read_text(encoding="utf-8")
    assert "synthetic" in card.lower().splitlines()[0]
    assert hashlib.sha256((BUNDLE / "models" / "model.pt").read_bytes()).hexdigest() in card
    NoduleDetector(channels=(16, 48, 96)).load_state_dict(torch.load(BUNDLE / "models" / "model.pt", weights_only=True))


def test_inference_yaml_has_all_properties_that_monai_looks_for(state, phantom_dir, tmp_path):
    settings = {"dataset_dir": str(phantom_dir), "output_dir": str(tmp_path)}
    config = str(CONFIGS / "inference.yaml")
    flow = create_workflow(config_file=config, workflow_type="inference", logging_file=False, **settings)
    assert flow.check_properties() == []


@pytest.mark.parametrize("name", ["train.yaml", "inference.yaml"])
def test_bundle_passes_verify_net_in_out(state, name):
    verify_net_in_out(
        net_id="network_def", meta_file=META, config_file=str(CONFIGS / name), device="cpu", p=1, n=1, any=1
    )


def test_bundle_passes_ckpt_export(state, tmp_path):
    torch.manual_seed(0)
    network = NoduleDetector().eval()
    torch.nn.init.normal_(network.head.weight)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    ckpt_export(
        net_id="network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(tmp_path / "model.pt"),
        meta_file=META,
        config_file=str(CONFIGS / "inference.yaml"),
    )
    image = torch.rand(1, 1, 16, 32, 24) * 2000 - 1000
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(tmp_path / "model.ts")(image), network(image), atol=1e-4, rtol=0)


@pytest.fixture
def places(phantom_dir, store_dir) -> dict[str, Any]:
    return {"dataset_dir": str(phantom_dir), "store_dir": str(store_dir), "device": "cpu", "validation_stride": 4}


def test_train_and_evaluate_have_all_properties_that_monai_looks_for(state, places, tmp_path):
    torch.save(NoduleDetector().state_dict(), tmp_path / "model.pt")
    small = {"samples_per_epoch": 8, "batch_size": 2, "num_workers": 0}
    for name, kind, own in (
        ("train.yaml", "train", {"output_dir": str(tmp_path / "run"), **small}),
        ("evaluate.yaml", "inference", {"run_dir": str(tmp_path), "output_dir": str(tmp_path / "evaluation")}),
    ):
        flow = create_workflow(
            config_file=str(CONFIGS / name), workflow_type=kind, logging_file=False, **places, **own
        )  # fmt: skip
        assert flow.check_properties() == [], name


def test_evaluating_writes_what_a_training_does(state, places, tmp_path):
    torch.manual_seed(0)
    network = NoduleDetector()
    torch.nn.init.normal_(network.head.weight, std=0.5)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    own = {"run_dir": str(tmp_path), "output_dir": str(tmp_path / "evaluation"), "bootstrap_draws": 20}
    flow = create_workflow(
        config_file=str(CONFIGS / "evaluate.yaml"), workflow_type="inference", logging_file=False, **places, **own
    )
    flow.parser.get_parsed_content("evaluator").run()
    metrics = json.loads((tmp_path / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    assert {"cpm", "sensitivity_at_candidates", "diameter_error_mm", "lost_to_lung_mask"} <= set(metrics)
    assert metrics["series"] == 2  # every fourth of eight
    assert metrics["candidates"] > metrics["positives"]
    header = (tmp_path / "evaluation" / "submission.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header == "seriesuid,coordX,coordY,coordZ,probability,diameter_mm"


def test_tune_tries_settings_that_the_training_has():
    search = Search.read(CONFIGS / "tune.yaml")
    train = yaml.safe_load((CONFIGS / "train.yaml").read_text(encoding="utf-8"))
    below = yaml.safe_load((bundle_dir() / "configs" / "train.yaml").read_text(encoding="utf-8"))
    assert search.metric == "cpm"
    for key in yaml.safe_load((CONFIGS / "tune.yaml").read_text(encoding="utf-8"))["search"]:
        first, _, rest = key.partition("#")
        assert first in train or first in below, key
        assert not rest or rest in train[first], key


def test_multi_gpu_train_shares_network_scans_and_buffers():
    """train.yaml has a trainer, a loader and handlers of its own, which the nodule bundle's file does not reach."""
    files = [CONFIGS / "train.yaml", CONFIGS / "multi_gpu_train.yaml"]
    config = ConfigParser.load_config_files([str(file) for file in files])
    whole = on_bases(config, base_files(config, CONFIGS))
    assert whole["train"]["trainer"]["network"]["_target_"] == "torch.nn.parallel.DistributedDataParallel"
    assert whole["train"]["sampler"]["rank"] == "$idist.get_rank()"
    assert whole["train"]["sampler"]["classes"] == [1, 2, 0]
    assert whole["validate"]["dataloader"]["sampler"] == "@validate#sampler"
    assert whole["validate"]["dataloader"]["batch_size"] == 1
    shared = "luna16_monai.training.distributed.SharedBuffers"
    assert [one["_target_"] for one in whole["validate"]["handlers"]].count(shared) == 1
    assert whole["optimizer"]["lr"] == "@scaled_learning_rate"
