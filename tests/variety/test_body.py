"""Liver, skin, table and arm around a lung."""

import numpy as np
import pytest
from wide_scans import small_chest, small_variety

from luna16_monai.phantom.anatomy import Frame, draw_chest
from luna16_monai.variety.body import add_surroundings, soften_below_diaphragm


def wide_chest():
    return draw_chest(np.random.default_rng(2), (20, 130, 130), np.array([3.0, 1.0, 1.0]), Frame(100.0, 0.0, 0.65))


@pytest.mark.parametrize("shown", [{}, {"table": 1.0}, {"arms": 1.0}])
def test_add_surroundings_ends_the_body_at_its_skin(shown):
    chest = wide_chest()
    before = chest.image_hu.copy()
    add_surroundings(np.random.default_rng(1), chest, small_variety(**shown))
    change = chest.image_hu - before
    # nothing near the lung changes
    assert not change[chest.wall_distance_mm < 3].any()
    air = (chest.image_hu < -990) & (change < -500)
    assert air.mean() > 0.01
    # towards the other lung the body goes on
    medial = chest.image_hu[:, 40:90, -1 if chest.lung.side > 0 else 0]
    assert (medial > -300).mean() > 0.9
    assert chest.wall_distance_mm[air].min() > 10


def test_soften_below_diaphragm_leaves_no_bone_there_and_nothing_else_changes():
    chest = small_chest(1, -60.0)
    before = chest.image_hu.copy()
    soften_below_diaphragm(chest)
    below = chest.lung.to_voxels(chest.lung.diaphragm_mm) < -1
    assert before[below].max() > 300
    assert chest.image_hu[below & (chest.wall_distance_mm > 2)].max() <= 110
    changed = chest.image_hu != before
    assert set(chest.image_hu[changed].tolist()) == {60.0}
    assert below[changed].all()
