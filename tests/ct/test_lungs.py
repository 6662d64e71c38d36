"""The lungs in a CT."""

from __future__ import annotations

import numpy as np

from luna16_monai.ct.lungs import find_lungs


def test_find_lungs_takes_enclosed_air_with_its_vessels():
    hu = np.full((20, 60, 60), -1000.0)
    hu[:, 5:55, 5:55] = 40  # a body in air
    hu[:, 10:50, 10:24] = hu[:, 10:50, 36:50] = -850  # two lungs
    hu[:, 20:23, 15:18] = 40  # a vessel through all slices
    hu[3:5, 12:14, 29:31] = -900  # a bubble between them, too small
    lungs = find_lungs(hu, np.ones(3))
    expected = np.zeros(hu.shape, bool)
    expected[:, 10:50, 10:24] = expected[:, 10:50, 36:50] = True
    assert lungs[2:-2][expected[2:-2]].all()
    assert not lungs[:, :9].any()
    assert (lungs & ~expected).sum() < 0.02 * expected.sum()


def test_find_lungs_is_empty_where_the_body_encloses_no_air():
    hu = np.full((4, 30, 30), 40.0)
    assert not find_lungs(hu, np.ones(3)).any()
    hu[:, :, :10] = -1000  # air that reaches the picture's edge
    assert not find_lungs(hu, np.ones(3)).any()
