"""Nodules that a lung mask leaves out."""

from __future__ import annotations

import numpy as np
import pytest
from ct_files import write_ct
from point_tables import point_table

from luna16_monai.evaluation.lost import lost_to_lung_mask

# of write_ct: 6 x 5 x 4 voxels of 0.5 x 0.75 x 2 mm from (10, 20, 30) mm; lung are the two lower slices
LOWER = np.zeros((4, 5, 6), np.int16)
LOWER[:2] = 3


def test_lost_to_lung_mask_gives_the_rows_outside_the_mask_of_their_scan(tmp_path):
    write_ct(tmp_path / "a.mhd", LOWER)
    write_ct(tmp_path / "b.mhd", LOWER[::-1].copy())
    nodules = point_table([(uid, 11, 21, z, 5.0) for uid in "ab" for z in (30, 36)])
    assert lost_to_lung_mask(nodules, tmp_path) == [1, 2]
    assert lost_to_lung_mask(nodules.select([0, 1]), tmp_path / "b.mhd") == [0]


def test_lost_to_lung_mask_refuses_one_mask_for_several_scans_and_a_missing_one(tmp_path):
    write_ct(tmp_path / "a.mhd", LOWER)
    nodules = point_table([("a", 11, 21, 30, 5.0), ("b", 11, 21, 30, 5.0)])
    with pytest.raises(ValueError, match="is one mask, and 2 scans have nodules: give a folder of masks"):
        lost_to_lung_mask(nodules, tmp_path / "a.mhd")
    with pytest.raises(FileNotFoundError, match="give the mask of series b"):
        lost_to_lung_mask(nodules, tmp_path)
