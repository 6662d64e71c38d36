"""Diseases around the nodules."""

import numpy as np
import pytest
from wide_scans import small_chest

from luna16_monai.variety.disease import add_consolidation, add_emphysema, add_fibrosis


def changed(draw, seed=0):
    chest = small_chest()
    before = chest.image_hu.copy()
    told = draw(np.random.default_rng(seed), chest)
    return chest, chest.image_hu - before, before, told


def test_add_emphysema_darkens_lung_and_leaves_vessels():
    chest, change, before, _ = changed(add_emphysema)
    inside = chest.wall_distance_mm < -1
    assert (change[inside] < -10).mean() > 0.03
    assert chest.image_hu[inside & (change < -1)].min() > -1000
    vessels = inside & (before > -600)
    # but for those that a bulla takes the place of
    assert (change[vessels] < -1).mean() < 0.1


def test_add_fibrosis_lies_beneath_the_pleura():
    chest, change, _, _ = changed(add_fibrosis)
    depth = -chest.wall_distance_mm
    assert np.abs(change[(depth > 0) & (depth < 8)]).mean() > 2 * np.abs(change[depth > 15]).mean()
    assert not change[depth < 0].any()


def test_add_consolidation_tells_where_it_lies():
    chest, change, _, (place,) = changed(add_consolidation)
    brighter = np.argwhere(change > 50)
    assert len(brighter) > 200
    away = np.linalg.norm((brighter + 0.5) * [2, 1, 1] - place.position_zyx, axis=1)
    assert np.median(away) < place.diameter_mm / 2
    assert change[chest.wall_distance_mm > 0].max() == pytest.approx(0)
