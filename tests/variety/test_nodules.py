"""Nodules of recipe 3: size, cavity, spicules, looks."""

import numpy as np
import pytest
from wide_scans import small_chest, small_variety

from luna16_monai.phantom.lesions import Look, nodule_share
from luna16_monai.variety.nodules import add_spicules, place_varied_nodules
from luna16_monai.variety.shapes import load_allowed_shapes

LOOK = Look("solid", 0.0, None, 2.95)
ALLOWED = load_allowed_shapes()


def placed(seed=0, count=4, **changes):
    chest = small_chest(seed + 1)
    before = chest.image_hu.copy()
    numbers = ALLOWED.numbers.tolist()
    settings = small_variety(**changes)
    nodules = place_varied_nodules(np.random.default_rng(seed), chest, ALLOWED.bank, numbers, count, settings, 1.0)
    return nodules, chest, before


def test_scaled_share_of_scale_one_is_the_shape_and_of_two_eight_times_its_volume():
    shape = int(ALLOWED.numbers[np.argmin(np.abs(ALLOWED.bank.diameter_mm[ALLOWED.numbers] - 10))])
    arguments = (LOOK, np.eye(3), np.array([30.0, 30, 30]), (60, 60, 60), np.ones(3))
    box, share = nodule_share(ALLOWED.bank, shape, *arguments, scale=1.0)
    same_box, same = nodule_share(ALLOWED.bank, shape, *arguments)
    assert box == same_box
    np.testing.assert_array_equal(share, same)
    _, twice = nodule_share(ALLOWED.bank, shape, *arguments, scale=2.0)
    assert twice.sum() == pytest.approx(8 * share.sum(), rel=0.1)


def test_place_varied_nodules_large_ones_have_22_to_30_mm():
    nodules = [n for seed in range(3) for n in placed(seed, 1, large=1.0)[0]]
    assert all(22 <= n.diameter_mm <= 30 for n in nodules)


def test_place_varied_nodules_hollow_ones_hold_air():
    # the chance of a cavity is drawn last: all else is the same
    (whole, full, _), (_, hollow, _) = placed(6, 1, large=1.0), placed(6, 1, large=1.0, hollow=1.0)
    assert whole[0].kind in ("solid", "part-solid")
    emptied = hollow.image_hu - full.image_hu < -250
    # 2 mm³ a voxel
    share = emptied.sum() * 2 / (np.pi / 6 * whole[0].diameter_mm ** 3)
    assert 0.01 < share < 0.5
    assert hollow.image_hu[emptied].min() == pytest.approx(-960, abs=5)


@pytest.mark.parametrize(("name", "kind"), [("ground_glass", "ground-glass"), ("calcified", "calcified")])
def test_place_varied_nodules_look_as_the_settings_say(name, kind):
    nodules, chest, before = placed(**{name: 1.0})
    assert {n.kind for n in nodules} == {kind}
    added = chest.image_hu[(chest.image_hu - before) > 100]
    assert added.max() < -300 if kind == "ground-glass" else added.max() > 150


def test_add_spicules_reach_beyond_the_nodule_on_all_sides():
    chest = small_chest()
    chest.image_hu[:] = -850
    before = chest.image_hu.copy()
    add_spicules(np.random.default_rng(0), chest, np.array([40.0, 48.0, 48.0]), 6.0, 0.0)
    places = (np.argwhere(chest.image_hu - before > 100) + 0.5) * [2, 1, 1] - [40.0, 48.0, 48.0]
    far = places[np.linalg.norm(places, axis=1) > 7.5]
    assert len(far) > 20
    assert ((far > 0).any(0) & (far < 0).any(0)).all()
