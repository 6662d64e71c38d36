"""Voxels and compressed data that are checked before they are trusted."""

from __future__ import annotations

import io
import os
import zlib

import numpy as np
import pytest
from ct_files import VOXELS, refused, write_ct

from luna16_monai.ct import checks as metaimage_checks
from luna16_monai.ct.checks import MAX_INFLATION, MAX_VOXELS, check_file, check_voxels, inflate
from luna16_monai.ct.opening import open_ct


@pytest.mark.parametrize("name", ["scan.mhd", "scan.mha", "scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_read_refuses_voxels_that_are_not_finite(tmp_path, name, value):
    voxels = VOXELS.astype(np.float32)
    voxels[1, 2, 3] = voxels[3, 0, 0] = value
    path = write_ct(tmp_path / name, voxels)
    refused(path, f"{name}: 2 voxels are NaN or infinite, the first at (z, y, x) = (1, 2, 3): convert the scan anew")


@pytest.mark.parametrize(
    ("stored", "values", "expected"),
    [
        ("int16", [-32768, 32767], "int16"),
        ("uint8", [0, 255], "int16"),
        ("int8", [-128, 127], "int16"),
        ("uint16", [0, 32767], "int16"),
        ("uint16", [0, 32768], "float32"),
        ("int32", [-32768, 32767], "int16"),
        ("int32", [-32769, 0], "float32"),
        # 2^24 + 1 is the first whole number that float32 lacks.
        ("int32", [0, 2**24 + 1], "float64"),
        ("float32", [-1024, 3071], "int16"),
        ("float32", [-1024, 0.5], "float32"),
        ("float32", [-1024, 1e10], "float32"),
        ("float64", [-1024, 3071], "int16"),
        ("float64", [-1024, 0.5], "float32"),
        ("float64", [-1024, 0.1], "float64"),
        ("float64", [-1024, 1e300], "float64"),
    ],
)
def test_read_keeps_every_value_in_the_smallest_type(tmp_path, stored, values, expected):
    voxels = np.array(values, stored).reshape(1, 1, 2)
    hu = open_ct(write_ct(tmp_path / "scan.mhd", voxels)).read()
    assert hu.dtype == expected
    np.testing.assert_array_equal(hu, voxels)


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_inflate_streams_in_chunks_of_any_size(monkeypatch, chunk):
    monkeypatch.setattr(metaimage_checks, "_CHUNK", chunk)
    content = bytes(1000) + os.urandom(200)
    packed = zlib.compress(content)
    assert inflate(io.BytesIO(packed), 1200, "x.zraw").tobytes() == content
    with pytest.raises(ValueError, match=r"x\.zraw is too long: it inflates to more than the 1199 bytes"):
        inflate(io.BytesIO(packed), 1199, "x.zraw")
    with pytest.raises(ValueError, match=r"x\.zraw is too short: it inflates to 1200 bytes, its header says 1201"):
        inflate(io.BytesIO(packed), 1201, "x.zraw")
    with pytest.raises(ValueError, match=r"x\.zraw is too long: bytes follow the end"):
        inflate(io.BytesIO(packed + b"x"), 1200, "x.zraw")


def test_check_file_takes_a_file_and_a_link_that_stays_in_the_folder(tmp_path):
    (tmp_path / "scan.raw").write_bytes(b"x")
    (tmp_path / "link.raw").symlink_to(tmp_path / "scan.raw")
    for name in ("scan.raw", "link.raw"):
        check_file(tmp_path / name, tmp_path, allow_symlinks=False)


def test_check_file_refuses_a_link_out_unless_it_is_allowed(tmp_path):
    (tmp_path / "scan.raw").write_bytes(b"x")
    data = tmp_path / "data"
    data.mkdir()
    (data / "link.raw").symlink_to(tmp_path / "scan.raw")
    with pytest.raises(ValueError, match=r"^the data file is reached through a symbolic link that leaves .* 'data'"):
        check_file(data / "link.raw", data, allow_symlinks=False, what="the data file")
    check_file(data / "link.raw", data, allow_symlinks=True)


def test_check_file_refuses_a_folder_a_pipe_and_nothing(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ValueError, match="is no regular file: give the file of a CT"):
            check_file(path, tmp_path, allow_symlinks=False)
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    for name in ("gone", "dangling"):
        with pytest.raises(FileNotFoundError, match=f"{name} is missing .*: check the path, or fetch it again"):
            check_file(tmp_path / name, tmp_path, allow_symlinks=False)


def test_check_voxels_takes_as_many_as_the_limit_and_no_more():
    assert MAX_VOXELS == 1024 * 1024 * 2048
    check_voxels((2048, 1024, 1024), np.int16, None, "scan")
    with pytest.raises(ValueError, match=f"scan asks for {MAX_VOXELS + 2048 * 1024} voxels, the limit is {MAX_VOXELS}"):
        check_voxels((2048, 1024, 1025), np.int16, None, "scan")


def test_check_voxels_takes_what_a_compressed_file_of_this_size_can_hold():
    # 2 bytes a voxel: 516 voxels are 1032 bytes, what one byte may inflate to
    assert MAX_INFLATION == 1032
    check_voxels((1, 1, 516), np.int16, 1, "scan")
    with pytest.raises(ValueError, match="scan asks for 1034 bytes, more than 1 compressed bytes can hold"):
        check_voxels((1, 1, 517), np.int16, 1, "scan")
