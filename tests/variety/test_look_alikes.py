"""What leads the false positives of real CTs: each is drawn where its points say, and off the nodules."""

import numpy as np
import pytest
from wide_scans import small_chest, small_variety

from luna16_monai.phantom.nodules import CLEARANCE_MM, Nodule, clearance
from luna16_monai.variety import look_alikes

DRAWN = {
    "azygos": (look_alikes.add_azygos_arch, -20.0, 0),
    "hilar_nodes": (look_alikes.add_hilar_nodes, 0.0, 0),
    "calcified_nodes": (look_alikes.add_calcified_nodes, 0.0, 200),
    "dome": (look_alikes.add_dome, -40.0, 0),
    "rib_ends": (look_alikes.add_rib_ends, 0.0, 80),
    "apical_scars": (look_alikes.add_apical_scars, 70.0, -300),
}


def found(name, nodules=(), seeds=range(4)):
    draw, above_mm, _ = DRAWN[name]
    for seed in seeds:
        chest = small_chest(1, above_mm + (60.0 if name == "azygos" else 0.0))
        before = chest.image_hu.copy()
        yield chest, before, draw(np.random.default_rng(seed), chest, nodules)


@pytest.mark.parametrize("name", DRAWN)
def test_look_alikes_are_drawn_where_their_points_say(name):
    least, count = DRAWN[name][2], 0
    for chest, before, points in found(name):
        for point in points:
            z, y, x = np.clip((point / [2, 1, 1]).astype(int), 1, np.array(before.shape) - 2)
            around = slice(z - 1, z + 2), slice(y - 1, y + 2), slice(x - 1, x + 2)
            assert (chest.image_hu[around] - before[around]).max() >= 0
            assert chest.image_hu[around].max() > least
            count += 1
        assert np.isfinite(chest.image_hu).all()
    assert count >= 1


@pytest.mark.parametrize("name", DRAWN)
def test_look_alikes_keep_off_nodules(name):
    free = [point for _, _, points in found(name) for point in points]
    nodule = Nodule(free[0], 6.0, "solid", "isolated", 0, 5.0, 3.0)
    for _, _, points in found(name, [nodule]):
        for point in points:
            assert clearance(point[None], [nodule])[0] > CLEARANCE_MM


def test_add_look_alikes_draws_what_the_settings_ask_for():
    chest, rng = small_chest(), np.random.default_rng(0)
    assert look_alikes.add_look_alikes(rng, chest, [], small_variety()) == []
    assert look_alikes.add_look_alikes(rng, chest, [], small_variety(hilar_nodes=1.0))
