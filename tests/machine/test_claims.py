"""A folder belongs to what was begun in it."""

from __future__ import annotations

import pytest

from luna16_monai.machine.claims import claim, differences, digests, require_empty, require_same


def test_claim_writes_the_record_once_and_accepts_the_same(tmp_path):
    file = tmp_path / "out" / "plan.json"
    claim(file, {"trials": 3, "channels": (8, 16)}, "search")
    written = file.read_bytes()
    (file.parent / "result").touch()
    claim(file, {"trials": 3, "channels": (8, 16)}, "search")
    assert file.read_bytes() == written


@pytest.mark.parametrize("other", [{"trials": 4, "seed": 0}, {"trials": 3, "seed": 0, "gpus": 1}, {"trials": 3}])
def test_claim_refuses_other_settings_with_what_differs(tmp_path, other):
    file = tmp_path / "plan.json"
    claim(file, {"trials": 3, "seed": 0}, "search")
    was = file.read_bytes()
    with pytest.raises(ValueError, match=rf"^{tmp_path} holds a search of other settings \(\w+ \w+ instead of \w+\): "):
        claim(file, other, "search")
    assert file.read_bytes() == was


def test_claim_of_a_folder_around_the_file_refuses_the_foreign_names_alone(tmp_path):
    file = tmp_path / ".unfinished" / "recipe.json"
    (tmp_path / "README").touch()
    (tmp_path / "a.csv").touch()
    with pytest.raises(FileExistsError, match=rf"^{tmp_path} is not empty \(it holds a.csv\): that is no phantom, "):
        claim(file, {}, "phantom", folder=tmp_path, foreign=("*.csv", "*.mhd"))
    assert not file.exists()
    claim(file, {}, "phantom", folder=tmp_path, foreign=("*.mhd",))
    # once it is claimed, what is written there is no more foreign
    claim(file, {}, "phantom", folder=tmp_path, foreign=("*.csv",))
    assert file.is_file()


def test_require_same_says_what_differs_and_the_cure(tmp_path):
    require_same(tmp_path, "store", {"spacing": [1]}, {"spacing": [1]}, "name another")
    with pytest.raises(
        ValueError, match=r" holds a store of .* settings \(spacing \[1\] instead of None\): name another$"
    ):
        require_same(tmp_path, "store", {"spacing": [1]}, {}, "name another")


def test_require_empty_refuses_a_folder_in_use_and_a_file(tmp_path):
    require_empty(tmp_path / "new", "name another")
    require_empty(tmp_path, "name another")
    for name in "gfedcba":
        (tmp_path / name).touch()
    with pytest.raises(FileExistsError, match=rf"^{tmp_path} is not empty \(it holds a, b, c, d, e\): name another$"):
        require_empty(tmp_path, "name another")
    with pytest.raises(FileExistsError, match=r"holds g\): name another$"):
        require_empty(tmp_path, "name another", ignored=("[a-e]", "f*"))
    with pytest.raises(FileExistsError, match=rf"^{tmp_path / 'a'} is a file: name another$"):
        require_empty(tmp_path / "a", "name another")


def test_differences_name_each_setting_with_both_values():
    assert differences({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 5, "d": 4}) == (
        "b 2 instead of 5, c 3 instead of None, d None instead of 4"
    )
    assert differences({"a": 1}, {"a": 1}) == ""
    assert differences({"a": {"x": 1, "y": 2}, "b": 0}, {"a": {"x": 1, "y": 3}, "b": 1}) == (
        "a: y 2 instead of 3, b 0 instead of 1"
    )


def test_digests_are_those_of_the_content(tmp_path):
    (tmp_path / "empty").touch()
    # SHA-256 of nothing
    known = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert digests([tmp_path / "empty"]) == {"empty": known}
