"""Which files a config builds on, and what becomes of both."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import yaml

from luna16_monai.bundle.bases import base_digests, base_files, foreign_files, laid_over, read_whole, read_yaml
from luna16_monai.bundle.folders import bundle_dir

NODULES, MALIGNANCY = (bundle_dir(name) / "configs" for name in ("nodule_classification", "malignancy_classification"))


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_base_files_of_the_bundles_are_in_the_order_in_which_they_win():
    found = {path.name: base_files(read_yaml(path), path.parent) for path in MALIGNANCY.glob("*.yaml")}
    first = NODULES / "train.yaml"
    assert found["train.yaml"] == [first]
    assert found["evaluate.yaml"] == [NODULES / "evaluate.yaml", MALIGNANCY / "train.yaml", first]
    assert found["inference.yaml"] == [NODULES / "inference.yaml"]
    assert base_files(read_yaml(NODULES / "evaluate.yaml"), NODULES) == [first]
    assert base_files(read_yaml(first), NODULES) == []


def test_base_files_puts_each_file_before_those_that_it_builds_on(tmp_path):
    """a names d before b, which builds on d; c stands on nothing."""
    write(tmp_path / "b.yaml", "builds_on: [d.yaml]")
    write(tmp_path / "c.yaml", "x: 1")
    write(tmp_path / "d.yaml", "x: 2")
    found = base_files({"builds_on": ["d.yaml", "b.yaml", "c.yaml"]}, tmp_path)
    assert [path.name for path in found] == ["b.yaml", "d.yaml", "c.yaml"]


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        ("train.yaml", ValueError, r"builds_on train\.yaml: a list of files was expected"),
        ([3], ValueError, r"builds_on \[3\]: a list of files was expected"),
        (
            ["../x.yaml"],
            ValueError,
            r"builds_on \.\./x\.yaml: name a file beside this one, or a config of ",
        ),
        (["other/train.yaml"], ValueError, r"builds_on other/train\.yaml: name a file beside this one"),
        (["x.yaml"], FileNotFoundError, r"builds_on x\.yaml: there is no .*x\.yaml"),
        (["nodule_classification/x.yaml"], FileNotFoundError, r"there is no .*nodule_classification/configs/x\.yaml"),
        (
            ["one.yaml"],
            ValueError,
            r"one\.yaml builds on itself, by way of .*two\.yaml: take it out of builds_on there",
        ),
        (["text.yaml"], ValueError, r"text\.yaml holds no settings"),
        (["open.yaml"], ValueError, r"open\.yaml cannot be read"),
    ],
)
def test_base_files_refuses(tmp_path, names, error, message):
    write(tmp_path / "one.yaml", "builds_on: [two.yaml]")
    write(tmp_path / "two.yaml", "builds_on: [one.yaml]")
    write(tmp_path / "text.yaml", "text")
    write(tmp_path / "open.yaml", "a: [1")
    with pytest.raises(error, match=message):
        base_files({"builds_on": names}, tmp_path)


def test_malignancys_inference_is_the_nodule_bundles_but_for_what_it_says():
    first, second = (read_whole(folder / "inference.yaml") for folder in (NODULES, MALIGNANCY))
    assert set(second) == set(first)
    assert {key for key in first if first[key] != second[key]} == {"imports", "output_file", "volumes"}
    assert {key for key in first["volumes"] if first["volumes"][key] != second["volumes"][key]} == {"recipe"}


def test_laid_over_changes_single_keys_lengthens_lists_and_makes_all_imports():
    below = {"imports": ["$import a", "$import b"], "x": 1, "part": {"_target_": "dict", "one": 1, "items": [1]}}
    above = {"imports": ["$import c", "$import a"], "part": {"two": 2, "+items": [2], "+more": [3]}}
    assert laid_over(below, above) == {
        "imports": ["$import a", "$import b", "$import c"],
        "x": 1,
        "part": {"_target_": "dict", "one": 1, "two": 2, "items": [1, 2], "more": [3]},
    }
    assert laid_over(below, {"part": {"_target_": "list"}})["part"] == {"_target_": "list"}
    assert below["part"] == {"_target_": "dict", "one": 1, "items": [1]}, "what lies below stays as it is"


def test_laid_over_follows_a_key_into_a_part():
    below = {"train": {"trainer": {"a": 1}, "handlers": [1], "steps": [{"p": 0.5}, {"p": 0.7}]}}
    above = {"train#trainer#a": 2, "train#trainer#b": {"c": 3}, "+train#handlers": [2], "train#steps#1#p": 0.1}
    assert laid_over(below, above) == {
        "train": {"trainer": {"a": 2, "b": {"c": 3}}, "handlers": [1, 2], "steps": [{"p": 0.5}, {"p": 0.1}]}
    }
    with pytest.raises(ValueError, match=r"loss#weight changes a part of loss, which is not there: say all of loss"):
        laid_over(below, {"loss#weight": 1})


def test_read_whole_lays_the_first_of_several_files_on_top(tmp_path):
    write(tmp_path / "a.yaml", "x: 1\nonly_a: 1")
    write(tmp_path / "b.yaml", "x: 2\ny: 2\nonly_b: 2")
    path = write(tmp_path / "own.yaml", "builds_on: [a.yaml, b.yaml]\ny: 3")
    assert read_whole(path) == {"x": 1, "y": 3, "only_a": 1, "only_b": 2}


def test_read_whole_of_a_file_that_builds_on_nothing_is_the_file(tmp_path):
    """An overlay changes parts of a config that is named before it."""
    path = write(tmp_path / "overlay.yaml", "a#b: 1\n+c: [2]")
    assert read_whole(path) == {"a#b": 1, "+c": [2]}


def test_foreign_files_are_those_of_no_packaged_bundle(tmp_path):
    below = write(tmp_path / "below.yaml", "builds_on: [nodule_classification/train.yaml]")
    path = write(tmp_path / "own.yaml", "builds_on: [below.yaml]")
    assert foreign_files(path) == [path, below]
    assert foreign_files(MALIGNANCY / "train.yaml") == []


def test_base_digests_are_those_of_other_bundles_files(tmp_path):
    write(tmp_path / "below.yaml", "builds_on: [nodule_classification/train.yaml]")
    path = write(tmp_path / "own.yaml", yaml.safe_dump({"builds_on": ["below.yaml"]}))
    digest = hashlib.sha256((NODULES / "train.yaml").read_bytes()).hexdigest()
    assert base_digests([path]) == {"nodule_classification/train.yaml": digest}
