"""export and bundle: what is printed, and what is refused. What is exported is tested elsewhere."""

from __future__ import annotations

import json
import shutil

import torch
from verb_calls import refused

from luna16_monai.bundle.folders import bundle_dir


def test_bundle_writes_a_copy_and_refuses_a_folder_that_is_not_empty(call, tmp_path):
    mine = tmp_path / "mine"
    assert call("bundle", "--output", mine) == (0, f"bundle: nodule_classification in {mine}\n", "")
    assert (mine / "configs" / "train.yaml").read_bytes() == (bundle_dir() / "configs" / "train.yaml").read_bytes()
    refused(call("bundle", "--output", mine), f"{mine} is not empty")
    code, out, _ = call("bundle", "malignancy_classification", "--output", tmp_path / "other", "--json")
    assert (code, json.loads(out)) == (0, {"output": str(tmp_path / "other")})
    refused(call("bundle", "no_such", "--output", tmp_path / "third"), "no bundle no_such", "nodule_classification")
    assert not (tmp_path / "third").exists()


def test_export_writes_torchscript_and_says_how_large_it_is(call, tmp_path):
    path = tmp_path / "network.ts"
    code, out, _ = call("export", "--format", "torchscript", "--output", path, "--json")
    assert (code, json.loads(out)) == (
        0, {"format": "torchscript", "output": str(path), "bytes": path.stat().st_size},
    )  # fmt: skip
    network = torch.jit.load(str(path))
    assert network(torch.zeros(2, 1, 32, 48, 48)).shape == (2, 2)
    assert call("export", "--format", "torchscript", "--output", path)[1] == f"export: torchscript in {path}\n"


def test_export_refuses_a_bundle_from_elsewhere_and_other_weights(call, tmp_path):
    mine, path = tmp_path / "mine", tmp_path / "network.ts"
    shutil.copytree(bundle_dir(), mine)
    words = ["export", "--format", "torchscript", "--output", path]
    refused(call(*words, "--bundle", mine), f"{mine} does not come with luna16_monai", "add --trust-bundle")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    refused(call(*words, "--weights", tmp_path / "other.pt"), "other.pt")
    refused(call(*words, "--weights", tmp_path / "no.pt"), "no.pt")
    assert not path.exists()
