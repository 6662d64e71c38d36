"""Labelled cutouts read back, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luna16_monai.tables.cutouts import read_cutouts

BOXES = [np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.full((3, 3, 3), -700, np.int16)]


def write(folder: Path, rows: str | None = None, **arrays: Any) -> Path:
    content = {
        "vox": np.concatenate([box.ravel() for box in BOXES]),
        "shape": np.array([box.shape for box in BOXES], np.int32),
        "spacing": np.array([[2.5, 0.7, 0.7], [1, 1, 1]], np.float32),
        "center": np.array([[0.5, 1, 2], [1, 1, 1]], np.float32),
    }
    np.savez(folder / "set.npz", **{**content, **arrays})
    table = rows or "id,patient,label,diameter_mm,use\n0,A,1,7.5,test\n1,B,0,,train\n"
    (folder / "set.csv").write_text(table, encoding="utf-8")
    return folder


def test_read_cutouts_gives_boxes_and_columns_back(tmp_path):
    found = read_cutouts(write(tmp_path))
    assert [box.tolist() for box in found.voxels] == [box.tolist() for box in BOXES]
    assert found.label.tolist() == [1, 0]
    assert found.diameter_mm[0] == 7.5
    assert np.isnan(found.diameter_mm[1])
    assert found.series == ["", ""]


def test_to_score_takes_labels_0_and_1_of_a_use(tmp_path):
    found = read_cutouts(write(tmp_path, "patient,label,use\nA,2,test\nB,0,test\n"))
    assert found.to_score().patient == ["B"]
    assert found.to_score("test").patient == ["B"]
    with pytest.raises(ValueError, match=r"no row has use 'tset' \(found: test\)"):
        found.to_score("tset")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"shape": np.array([[2, 3, 4], [3, 3, 4]])}, "hold 60 voxels, and vox has 51"),
        ({"shape": np.array([[2, 3, 4], [-3, 3, -3]])}, "the shapes, -3 to 4 a side"),
        ({"vox": np.zeros(51)}, "give whole numbers"),
        ({"spacing": np.array([[np.nan, 1, 1], [1, 1, 1]])}, "not finite"),
        ({"spacing": np.array([[0, 1, 1], [1, 1, 1]])}, "must be above 0"),
        ({"center": np.array([[0.5, 1, 4], [1, 1, 1]])}, "of cutout 0 lies outside it"),
    ],
)
def test_read_cutouts_refuses_arrays_that_do_not_fit(tmp_path, changed, message):
    with pytest.raises(ValueError, match=message):
        read_cutouts(write(tmp_path, **changed))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("patient,label\nA,1\n", "has 1 rows, and the archive 2 cutouts"),
        ("patient,label\nA,1\nB,x\n", "line 3: label is 'x'"),
        ("patient,label\nA,1\n,0\n", "line 3: patient is empty"),
        ("patient,label\nA,1\nB\n", "line 3: 1 values"),
        ("label\n1\n0\n", "column patient is missing"),
    ],
)
def test_read_cutouts_refuses_tables_that_do_not_fit(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        read_cutouts(write(tmp_path, rows))


def test_read_cutouts_refuses_what_is_no_archive_or_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds 0 \.npz files"):
        read_cutouts(tmp_path)
    write(tmp_path)
    (tmp_path / "set.npz").write_bytes(b"PK no archive")
    with pytest.raises(ValueError, match="no archive of numpy's, or damaged"):
        read_cutouts(tmp_path)
