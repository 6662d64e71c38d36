"""Nodules that a lung mask loses, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from point_tables import point_table

from luna16_monai.evaluation.lost import lost_to_lung_mask


@pytest.fixture
def masks(tmp_path):
    """Masks of 10 mm cubes of 1 mm, the lower half of x is lung."""
    values = np.zeros((10, 10, 10), np.uint8)
    values[:, :, :5] = 1
    for uid in "ab":
        sitk.WriteImage(sitk.GetImageFromArray(values), str(tmp_path / f"{uid}.mha"))
    return tmp_path


def test_lost_are_the_nodules_outside_the_mask_of_their_own_scan(masks):
    # the nearest voxel of 4.4 mm is lung, that of 4.6 mm is not
    nodules = point_table([("a", 4.4, 5.0, 5.0, 6.0), ("a", 4.6, 5.0, 5.0, 6.0), ("b", 1.0, 1.0, 1.0, 6.0)])
    assert lost_to_lung_mask(nodules, masks) == [1]
    assert lost_to_lung_mask(nodules.select(np.array([0, 1])), masks / "a.mha") == [1]


def test_lost_needs_a_mask_of_each_scan_with_nodules(masks):
    with pytest.raises(ValueError, match="is one mask, and 2 scans have nodules: give a folder"):
        lost_to_lung_mask(point_table([("a", 1, 1, 1, 6.0), ("b", 1, 1, 1, 6.0)]), masks / "a.mha")
    with pytest.raises(FileNotFoundError, match=r"no lung mask .*c\.mhd: give the mask of series c"):
        lost_to_lung_mask(point_table([("c", 1, 1, 1, 6.0)]), masks)
