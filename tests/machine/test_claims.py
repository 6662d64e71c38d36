"""A folder belongs to what was begun in it."""

from __future__ import annotations

import pytest

from luna16_monai.machine.claims import differences, require_empty


def test_require_empty_refuses_a_folder_in_use_and_a_file(tmp_path):
    require_empty(tmp_path / "new", "name another")
    require_empty(tmp_path, "name another")
    (tmp_path / "file").write_text("")
    for used in (tmp_path, tmp_path / "file"):
        with pytest.raises(FileExistsError, match=f"^{used} is not empty: name another$"):
            require_empty(used, "name another")


def test_differences_name_each_setting_with_both_values():
    assert differences({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 5, "d": 4}) == (
        "b 2 instead of 5, c 3 instead of None, d None instead of 4"
    )
    assert differences({"a": 1}, {"a": 1}) == ""
