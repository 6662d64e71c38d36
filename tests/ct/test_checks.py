"""Voxels and compressed data that are checked before they are trusted."""

from __future__ import annotations

import io
import os
import zlib

import numpy as np
import pytest
from ct_files import VOXELS, refused, write_ct

from luna16_monai.ct import checks as metaimage_checks
from luna16_monai.ct.checks import inflate
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
