"""The drawn chest."""

from __future__ import annotations

import numpy as np

from luna16_monai.phantom.anatomy import upsample


def test_upsample_interpolates_between_cell_centres():
    # cells of two voxels each: their centres lie at 0.5 and 2.5, voxel 1 a quarter of the way between
    coarse = np.array([0.0, 4.0], np.float32).reshape(1, 1, 2)
    np.testing.assert_allclose(upsample(coarse, (1, 1, 4)).ravel(), [0, 1, 3, 4])
