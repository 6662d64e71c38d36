"""Where bundles lie, and what one from elsewhere would call."""

from __future__ import annotations

from pathlib import Path

import pytest

from luna16_monai.bundle.folders import bundle_dir, copy_bundle, is_packaged, require_trust

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
