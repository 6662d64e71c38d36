"""Where bundles lie, and what one from elsewhere would call."""

from __future__ import annotations

import pydoc
import re
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from luna16_monai.bundle.bases import read_whole
from luna16_monai.bundle.folders import bundle_dir, called_names, copy_bundle, is_packaged, require_trust
from luna16_monai.bundle.moved import spelled_out

BUNDLES = Path(__file__).parents[2] / "bundles"


def test_bundle_dir_finds_the_bundle_and_names_it_when_there_is_none():
    assert bundle_dir() == BUNDLES / "nodule_classification"
    with pytest.raises(FileNotFoundError, match="no bundle malignancy: name nodule_classification or malignancy_class"):
        bundle_dir("malignancy")


def test_copy_bundle_writes_all_of_it_into_an_empty_folder_only(tmp_path):
    copy_bundle(bundle_dir(), tmp_path / "mine")
    names = {path.relative_to(bundle_dir()) for path in bundle_dir().rglob("*") if "__pycache__" not in path.parts}
    assert {path.relative_to(tmp_path / "mine") for path in (tmp_path / "mine").rglob("*")} == names
    assert Path("configs/train.yaml") in names
    with pytest.raises(FileExistsError, match="name a new folder, or empty it"):
        copy_bundle(bundle_dir(), tmp_path / "mine")


def test_require_trust_tells_what_a_config_from_elsewhere_calls(tmp_path, capsys):
    config = {"network_def": {"_target_": "mine.Network"}, "imports": ["$import os"], "batch_size": 4}
    with pytest.raises(
        ValueError, match=r"may run any code \(it calls mine\.Network, \$import os\): add --trust-bundle"
    ):
        require_trust(tmp_path, config, trusted=False)
    require_trust(tmp_path, config, trusted=True)
    assert capsys.readouterr().err == f"luna16: {tmp_path} calls mine.Network, $import os\n"
    assert not is_packaged(tmp_path)
    require_trust(bundle_dir(), config, trusted=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("path", sorted(BUNDLES.rglob("*.yaml")), ids=lambda path: f"{path.parts[-3]}/{path.name}")
def test_everything_that_the_configs_call_is_there(path):
    """Each ``_target_``, MONAI's short names among them, each dotted name, and what expressions take of the package."""
    config = spelled_out(read_whole(path))
    locator = ConfigParser().locator
    found = [name for name in called_names(config) if not name.startswith(("$", "%"))]
    for name in found:
        where = locator.get_component_module_name(name)
        full = name if where is None else f"{where if isinstance(where, str) else where[0]}.{name}"
        assert pydoc.locate(full) is not None, f"{name} in {path.name}"
    expressions = [name for name in called_names(config) if name.startswith("$")]
    for name in re.findall(r"luna16_monai(?:\.\w+)+", " ".join(expressions)):
        assert pydoc.locate(name) is not None, f"{name} in {path.name}"
    if path.name == "train.yaml":
        assert {"SupervisedTrainer", "torch.optim.AdamW", read_whole(path)["network_def"]["_target_"]} <= set(found)
        assert "$luna16_monai.training.start.training()" in expressions
