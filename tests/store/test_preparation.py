"""How a CT becomes a volume: the list of transforms, and what it may do."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from drawn_scans import random_hu, write_scan
from monai.transforms import LoadImaged

from luna16_monai.store.preparation import Preparation, prepare_volume
from luna16_monai.store.reader import CTReader

BEFORE = Path(__file__).parents[1] / "bundle" / "before"
PREPARE_YAML = Path(__file__).parents[2] / "bundles" / "nodule_classification" / "configs" / "prepare.yaml"


NATIVE = Preparation.read(PREPARE_YAML, None)


def test_recipe_reads_the_bundles_list_and_replaces_its_spacing():
    assert Preparation.read(PREPARE_YAML).spacing_zyx == [1.25, 0.7, 0.7]
    assert NATIVE.spacing_zyx is None
    assert Preparation.read(PREPARE_YAML, [2, 1, 1]).spacing_zyx == [2.0, 1.0, 1.0]


def test_recipe_hash_follows_the_list_not_how_it_is_written(tmp_path):
    text = PREPARE_YAML.read_text(encoding="utf-8")
    path = tmp_path / "prepare.yaml"
    path.write_text("# a comment\n" + text.replace("[1.25, 0.7, 0.7]", "[1.250, 0.70, 7.0e-1]"))
    assert (
        Preparation.read(path).hash
        == Preparation.read(PREPARE_YAML).hash
        == Preparation.read(PREPARE_YAML, (1.25, 0.7, 0.7)).hash
    )
    assert Preparation.read(path, [2, 1, 1]).hash == Preparation.read(path, [2.0, 1.0, 1.0]).hash
    path.write_text(text.replace("bilinear", "nearest"))
    assert Preparation.read(path).hash != Preparation.read(PREPARE_YAML).hash


def test_recipe_hash_is_that_of_stores_from_before_its_transforms_moved():
    before = json.loads((BEFORE / "store.json").read_text(encoding="utf-8"))
    assert before["config"] != Preparation.read(PREPARE_YAML).config
    assert Preparation.read(PREPARE_YAML).hash == before["recipe"]


def test_recipe_of_before_is_refused_with_the_new_name(tmp_path):
    before = json.loads((BEFORE / "store.json").read_text(encoding="utf-8"))["config"]
    path = tmp_path / "prepare.yaml"
    path.write_text(yaml.safe_dump(before), encoding="utf-8")
    with pytest.raises(ValueError, match=r"prepare\.yaml: .* has moved: write luna16_monai\.store\.reader\.CTReader"):
        Preparation.read(path)


@pytest.mark.parametrize("spacing", [[0, 1, 1], [1, 1], [1, 1, -1], [1, 1, float("nan")], "fine", 3, [1, 1, "x"]])
def test_recipe_refuses_what_is_no_spacing(spacing):
    with pytest.raises(ValueError, match=r"spacing_zyx .*: give three numbers of millimetres above 0, or null"):
        Preparation.read(PREPARE_YAML, spacing)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("transforms: []\n", "has no spacing_zyx: see the nodule bundle's configs/prepare.yaml"),
        ("spacing_zyx: null\n", "has no transforms"),
        ("", "has no spacing_zyx"),
        ("- a\n- b\n", "has no spacing_zyx"),
        ("a: [1\n", "cannot be read"),
    ],
)
def test_recipe_refuses_a_file_that_is_none(tmp_path, content, message):
    path = tmp_path / "prepare.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=re.escape(f"{path} {message}")):
        Preparation.read(path)


def test_recipe_refuses_a_file_that_is_absent(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no transform list .*x\.yaml: name a bundle's prepare\.yaml"):
        Preparation.read(tmp_path / "x.yaml")


PLAIN_HU, FLIPPED_HU = random_hu(1), random_hu(2)


def test_prepare_volume_refuses_transforms_that_lose_the_place(tmp_path):
    path = write_scan(tmp_path, "a", PLAIN_HU)
    load = LoadImaged("image", reader=CTReader, image_only=True)
    with pytest.raises(ValueError, match=r"MetaTensor of shape \(70, 60, 40\) for a\.mhd: a MetaTensor \(1, x, y, z\)"):
        prepare_volume(path, load)
    with pytest.raises(ValueError, match=r"the transforms give Tensor of shape \(1, 70, 60, 40\)"):
        prepare_volume(path, lambda item: {"image": load(item)["image"].as_tensor()[None]})


def test_prepare_volume_rounds_and_clips_to_int16(tmp_path):
    path = write_scan(tmp_path, "a", np.array([[[-1024, 1]], [[3, 3000]]], np.int16))
    load = LoadImaged("image", reader=CTReader, image_only=True, ensure_channel_first=True)
    volume = prepare_volume(path, lambda item: {"image": load(item)["image"] * 20.3})
    # -20787.2, 20.3, 60.9 and 60900, which is more than int16 holds
    assert volume.voxels.tolist() == [[[-20787, 20]], [[61, 32767]]]
    assert volume.voxels.dtype == np.int16
