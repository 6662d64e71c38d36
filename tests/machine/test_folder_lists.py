"""One folder or several: as text, path and list."""

from __future__ import annotations

import os

import pytest

from luna16_monai.machine.folder_lists import as_text, folder_list, folder_names


def test_folder_list_reads_text_path_and_list(tmp_path):
    one, other = tmp_path / "a", tmp_path / "b"
    assert folder_list(f"{one}{os.pathsep}{other}") == (one, other)
    assert folder_list(str(one)) == folder_list(one) == (one,)
    assert folder_list([str(one), other]) == (one, other)
    assert folder_list(as_text([one, other])) == (one, other)


def test_folder_list_takes_a_folder_of_that_whole_name(tmp_path):
    odd = tmp_path / f"a{os.pathsep}b"
    odd.mkdir()
    assert folder_list(str(odd)) == (odd,)
    with pytest.raises(ValueError, match="cannot be one of several"):
        as_text([odd, tmp_path])


def test_folder_list_refuses_a_folder_twice_and_none(tmp_path):
    with pytest.raises(ValueError, match="is named twice"):
        folder_list([tmp_path, str(tmp_path)])
    with pytest.raises(ValueError, match="names none"):
        folder_list([])


def test_folder_names_tell_two_of_one_name_apart(tmp_path):
    assert folder_names([tmp_path / "a" / "ct", tmp_path / "b" / "ct", tmp_path / "own"]) == ("ct", "ct (2)", "own")
