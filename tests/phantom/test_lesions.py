"""Shapes and looks of nodules."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from luna16_monai.phantom.lesions import choose_look, ellipsoid_share, load_shape_bank, nodule_share, random_turn
from luna16_monai.phantom.nodules import JITTER_MM


def test_choose_look_softens_the_edge():
    bank = load_shape_bank()
    sharp, soft = (choose_look(np.random.default_rng(0), bank, 3, softness) for softness in (1.0, 2.0))
    assert soft == replace(sharp, steepness=sharp.steepness / 2)


def test_ellipsoid_share_fills_the_volume_of_an_ellipsoid():
    share = partial(ellipsoid_share, np.array([4.0, 3.0, 2.0]), random_turn(np.random.default_rng(0)), 0.5)
    box, values = share(np.full(3, 10.0), (40, 40, 40), np.full(3, 0.5))
    # 4/3 pi * 4 * 3 * 2 = 100.5 mm3
    assert values.sum() * 0.125 == pytest.approx(100.5, rel=0.05)
    assert values.shape == tuple(s.stop - s.start for s in box)
    outside, nothing = share(np.full(3, 90.0), (40, 40, 40), np.full(3, 0.5))
    assert nothing.size == 0
    assert np.zeros((40, 40, 40))[outside].size == 0


def test_nodule_share_keeps_size_and_centre():
    rng, bank = np.random.default_rng(0), load_shape_bank()
    shape = int(np.flatnonzero((bank.diameter_mm > 9) & (bank.margin > 4.5))[0])
    box, values = nodule_share(
        bank,
        shape,
        choose_look(rng, bank, shape),
        random_turn(rng),
        np.array([20.0, 21.0, 22.0]),
        (64,) * 3,
        np.full(3, 0.7),
    )
    diameter = np.cbrt(6 * values.sum() * 0.343 / np.pi)
    assert diameter == pytest.approx(bank.diameter_mm[shape], rel=0.1)
    grid = np.stack(np.meshgrid(*[(np.arange(s.start, s.stop) + 0.5) * 0.7 for s in box], indexing="ij"), -1)
    centre = (grid * values[..., None]).sum((0, 1, 2)) / values.sum()
    np.testing.assert_allclose(centre, [20, 21, 22], atol=0.4)


def test_load_shape_bank_holds_the_shapes_of_600_patients():
    bank = load_shape_bank()
    assert len(bank.masks) == len(bank.diameter_mm) == 1184
    assert len(np.unique(bank.patient)) == 600
    assert all(mask.max() <= 15 for mask in bank.masks)
    # the smallest nodule's radius bounds the jitter, else a mark of class 1 could miss its nodule
    assert bank.diameter_mm.min() / 2 > JITTER_MM
