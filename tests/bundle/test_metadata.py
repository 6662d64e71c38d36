"""The versions in each bundle's metadata are those that it was tested with."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from luna16_monai import __version__
from luna16_monai.bundle.folders import BUNDLES, bundle_dir

ROOT = Path(__file__).parents[2]
CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
# what is installed may be newer, as in make test-newest; the bundles were tested with these
TESTED = {name.lower(): version for name, _, version in (line.partition("==") for line in CONSTRAINTS) if version}


@pytest.mark.parametrize("name", BUNDLES)
def test_metadata_names_the_versions_that_were_tested(name):
    metadata = json.loads((bundle_dir(name) / "configs" / "metadata.json").read_text(encoding="utf-8"))
    for package, key in {"monai": "monai_version", "torch": "pytorch_version", "numpy": "numpy_version"}.items():
        assert metadata[key] == TESTED[package], package
    required = dict(metadata["required_packages_version"])
    # model-zoo: what a bundle needs beside MONAI; the configs call our own package
    assert required.pop("luna16_monai") == __version__
    assert required == {package: TESTED[package.lower()] for package in required}
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {text.split(">")[0].split("[")[0] for text in wanted["dependencies"]}
    names |= {text.split(">")[0] for text in wanted["optional-dependencies"]["baselines"]}
    assert set(required) <= names
    assert {"pytorch-ignite", "SimpleITK", "nibabel", "pydicom", "blosc2"} <= set(required)
