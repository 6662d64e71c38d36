"""What is mistaken for a nodule: where it lies, and how it changes the drawn chest."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from luna16_monai.phantom.anatomy import draw_chest
from luna16_monai.phantom.mimics import _add_ellipsoid, place_mimics
from luna16_monai.phantom.nodules import CLEARANCE_MM, Nodule, ScanSettings, clearance, in_view

SPACING = np.array([2.0, 1.5, 1.5])


@pytest.fixture(scope="module")
def chest():
    return draw_chest(np.random.default_rng(0), (48, 96, 96), SPACING)


def test_place_mimics_keeps_off_the_nodules_and_inside_the_volume(chest):
    chest = copy.deepcopy(chest)
    # so large that about half of the lung is too near to it
    nodules = [Nodule(chest.lung.middle_zyx, 60.0, "solid", "isolated", 0, 5.0, 3.0)]
    for seed in range(4):
        mimics, excluded = place_mimics(np.random.default_rng(seed), chest, nodules, ScanSettings())
        # 26 to 33 plugs, 4 to 8 scars and 3 to 6 plaques are tried, and not all find a place
        assert 3 < len(mimics) <= 33 + 8 + 6
        points = np.array([*mimics, *(point for point, _ in excluded)])
        assert clearance(points, nodules).min() > CLEARANCE_MM
        assert ((points > 0) & (points < chest.lung.size_mm)).all()


def test_place_mimics_excludes_micronodules_and_a_few_of_the_others(chest):
    measured, unmeasured, of_mimics, all_mimics = [], 0, 0, 0
    for seed in range(8):
        mimics, excluded = place_mimics(np.random.default_rng(seed), copy.deepcopy(chest), [], ScanSettings())
        known = {tuple(point) for point in mimics}
        all_mimics += len(known)
        of_mimics += sum(tuple(point) in known for point, _ in excluded)
        measured += [diameter for _, diameter in excluded if diameter > 0]
        unmeasured += sum(diameter == -1 for _, diameter in excluded)
    # micronodules have a radius of 0.8 to 1.3 mm, so they are below LUNA16's 3 mm
    assert all(1.6 <= diameter <= 2.6 for diameter in measured)
    # a tenth of the mimics, and 2 to 6 micronodules a scan, of which a fifth is measured
    assert 0 < of_mimics < 0.25 * all_mimics
    micronodules = len(measured) + unmeasured - of_mimics
    assert 8 * 2 <= micronodules <= 8 * 6
    assert 0 < len(measured) < micronodules / 2


def test_place_mimics_depends_on_the_source_of_chance_alone(chest):
    one, other = copy.deepcopy(chest), copy.deepcopy(chest)
    first, again = (place_mimics(np.random.default_rng(5), each, [], ScanSettings()) for each in (one, other))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(one.image_hu, other.image_hu)
    assert not np.array_equal(one.image_hu, chest.image_hu)


def test_place_mimics_puts_plugs_into_view(chest):
    mimics, _ = place_mimics(np.random.default_rng(3), copy.deepcopy(chest), [], ScanSettings())
    assert in_view(np.array(mimics), chest.lung.size_mm, 0).mean() > 0.9


def test_add_ellipsoid_fills_its_volume_up_to_its_brightness(chest):
    chest = copy.deepcopy(chest)
    chest.image_hu[:] = -800
    half_axes = np.array([6.0, 5.0, 4.0])
    middle = chest.lung.size_mm / 2
    _add_ellipsoid(chest, middle, half_axes, np.eye(3), -300.0, 1.0)
    rise = chest.image_hu.astype(float) + 800
    # from -800 to -300, over 4/3 pi * 6 * 5 * 4 = 502.7 mm3
    assert rise.min() == 0
    assert rise.max() == pytest.approx(500, abs=1)
    assert rise.sum() / 500 * SPACING.prod() == pytest.approx(502.7, rel=0.1)
    grid = np.stack(
        np.meshgrid(*[(np.arange(n) + 0.5) * s for n, s in zip(rise.shape, SPACING, strict=True)], indexing="ij")
    )
    centre = (grid * rise).sum((1, 2, 3)) / rise.sum()
    np.testing.assert_allclose(centre, middle, atol=0.2)


def test_add_ellipsoid_darkens_nothing(chest):
    chest = copy.deepcopy(chest)
    chest.image_hu[:] = -800
    _add_ellipsoid(chest, chest.lung.size_mm / 2, np.full(3, 5.0), np.eye(3), -900.0, 1.0)
    assert (chest.image_hu == -800).all()
