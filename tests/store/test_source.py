"""A CT that was replaced is noticed, a copied one is not taken for another."""

from __future__ import annotations

import os

import pytest
from ct_files import VOXELS, write_ct

from luna16_monai.ct.opening import open_ct
from luna16_monai.store.source import KEY, State, changed_files, compare, identify


@pytest.fixture
def path(tmp_path):
    return write_ct(tmp_path / "a.mhd")


def test_identify_names_header_and_voxels(path):
    told = identify(open_ct(path))
    assert sorted(told) == ["a.mhd", "a.raw"]
    assert told["a.raw"]["bytes"] == 2 * VOXELS.size == (path.parent / "a.raw").stat().st_size


def test_compare_goes_by_size_and_time(path):
    entry = {KEY: identify(open_ct(path))}
    assert compare(open_ct(path), entry) is State.SAME
    # as after a copy: the checksum has to decide
    os.utime(path.parent / "a.raw", (1, 1))
    assert compare(open_ct(path), entry) is State.UNSURE
    assert changed_files(identify(open_ct(path)), entry) == []
    write_ct(path, VOXELS + 1)
    assert compare(open_ct(path), entry) is not State.SAME
    assert changed_files(identify(open_ct(path)), entry) == ["a.raw"]
    write_ct(path, VOXELS[:3])
    assert compare(open_ct(path), entry) is State.CHANGED
    assert changed_files(identify(open_ct(path)), entry) == ["a.mhd", "a.raw"]


def test_a_record_of_before_is_taken_as_it_is(path):
    assert compare(open_ct(path), {}) is State.SAME
    assert changed_files(identify(open_ct(path)), {}) == []
