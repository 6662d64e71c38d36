"""What identifies the files of a CT: size and time first, the checksum where the time alone differs."""

from __future__ import annotations

import hashlib
import os

import numpy as np
import pytest
from ct_files import write_dicom
from drawn_scans import random_hu, write_scan

from luna16_monai.ct.opening import open_ct
from luna16_monai.store.source import KEY, State, changed_files, compare, identify


@pytest.fixture
def ct(tmp_path):
    write_scan(tmp_path, "a", random_hu(0, (4, 5, 6)), None, (0, 0, 0), (1, 1, 1))
    return open_ct(tmp_path / "a.mhd")


def test_identify_names_header_and_voxels(ct, tmp_path):
    found = identify(ct)
    assert sorted(found) == ["a.mhd", "a.raw"]
    raw = tmp_path / "a.raw"
    # 4 * 5 * 6 voxels of two bytes
    assert found["a.raw"]["bytes"] == 240
    assert found["a.raw"]["modified_ns"] == raw.stat().st_mtime_ns
    assert found["a.raw"]["sha256"] == hashlib.sha256(raw.read_bytes()).hexdigest()


def test_identify_names_each_slice_of_a_series(tmp_path):
    folder = write_dicom(tmp_path / "series")
    assert sorted(identify(open_ct(folder))) == sorted(path.name for path in folder.iterdir())


def test_compare_looks_at_size_and_time_alone(ct, tmp_path):
    entry = {KEY: identify(ct)}
    assert compare(ct, entry) is State.SAME
    # a store from before says nothing
    assert compare(ct, {}) is State.SAME
    os.utime(tmp_path / "a.raw", (1, 1))
    assert compare(ct, entry) is State.UNSURE
    with (tmp_path / "a.mhd").open("a") as stream:
        stream.write("\n")
    assert compare(ct, entry) is State.CHANGED
    assert compare(ct, {KEY: {"a.mhd": entry[KEY]["a.mhd"]}}) is State.CHANGED


def test_changed_files_goes_by_the_content(ct, tmp_path):
    entry = {KEY: identify(ct)}
    os.utime(tmp_path / "a.raw", (1, 1))
    assert changed_files(identify(ct), entry) == []
    assert changed_files(identify(ct), {}) == []
    np.zeros(120, np.int16).tofile(tmp_path / "a.raw")
    assert changed_files(identify(ct), entry) == ["a.raw"]
    # renamed: the one is gone, the other has come
    renamed = {"b.raw": entry[KEY]["a.raw"], "a.mhd": entry[KEY]["a.mhd"]}
    assert changed_files(renamed, entry) == ["a.raw", "b.raw"]
