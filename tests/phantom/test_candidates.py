from dataclasses import replace

import numpy as np
import pytest

from luna16_monai.phantom.anatomy import THIN_MM, draw_chest
from luna16_monai.phantom.candidates import _alike, _structures, jitter, propose_blobs
from luna16_monai.phantom.nodules import JITTER_MM

SPACING = np.array([2.0, 1.0, 1.0])


@pytest.fixture(scope="module")
def chest():
    return draw_chest(np.random.default_rng(0), (32, 96, 96), np.array([1.25, 0.7, 0.7]))


def test_alike_takes_in_turn_what_is_as_bright_as_each_wanted_point():
    # brightness grows along x alone: a point looks like those at its own x
    hu = np.broadcast_to(np.linspace(-900, 0, 64, dtype=np.float32), (32, 64, 64))
    wanted = np.array([[32.0, 32, 20], [32, 32, 40]])
    points = np.array([[10.0, 10, 30], [40, 20, 21], [20, 50, 41], [32, 10, 23], [50, 12, 38.5]])
    # the first wanted one takes x = 21, the second x = 41, then 23 and 38.5
    assert _alike(hu, SPACING, wanted, points, 4) == [1, 2, 3, 4]
    assert _alike(hu, SPACING, wanted, points, 9) == [1, 2, 3, 4, 0]
    assert _alike(hu, SPACING, wanted, points, 0) == []


def test_alike_tells_a_speck_from_a_lump_of_the_same_brightness():
    z, y, x = np.meshgrid(np.arange(32) * 2.0, np.arange(64.0), np.arange(64.0), indexing="ij")
    hu = np.full(z.shape, -850.0)
    for centre, sigma in (((20, 16, 16), 2), ((20, 16, 48), 6), ((44, 48, 16), 2), ((44, 48, 48), 6)):
        gap = (z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2
        hu += 800 * np.exp(-gap / (2 * sigma**2))
    specks, lumps = np.array([[21.0, 16.5, 16.5], [45, 48.5, 16.5]]), np.array([[21.0, 16.5, 48.5], [45, 48.5, 48.5]])
    for kind, wanted in ((0, specks), (1, lumps)):
        assert _alike(hu, SPACING, wanted[:1], np.stack([specks[1], lumps[1]]), 1) == [kind]


def test_structures_lists_thick_vessels_first_and_no_thin_ones(chest):
    radius = {tuple(point): r for point, r in zip(chest.vessels_zyx, chest.vessel_radius_mm, strict=True)}
    thick = sum(r > THIN_MM for r in radius.values())
    listed = [
        [radius[tuple(point)] for point in _structures(np.random.default_rng(seed), chest) if tuple(point) in radius]
        for seed in range(5)
    ]
    assert thick > 20
    assert {len(radii) for radii in listed} == {thick}
    halves = np.array([[np.mean(radii[: thick // 2]), np.mean(radii[thick // 2 :])] for radii in listed])
    assert (halves[:, 0] > halves[:, 1]).all()


def test_structures_of_a_chest_without_any_is_empty(chest):
    none = np.empty((0, 3))
    bare = replace(
        chest,
        vessel_radius_mm=np.zeros_like(chest.vessel_radius_mm),
        bifurcations_zyx=none,
        bifurcation_radius_mm=np.empty(0),
        crossings_zyx=none,
        bronchi_zyx=none,
    )
    assert _structures(np.random.default_rng(0), bare).shape == (0, 3)


def test_jitter_stays_in_its_ball_and_fills_it():
    points = np.tile([10.0, 20.0, 30.0], (4000, 1))
    moved = np.linalg.norm(jitter(np.random.default_rng(0), points) - points, axis=1)
    assert moved.max() <= JITTER_MM
    # evenly over a ball: the mean distance is three quarters of the radius
    assert moved.mean() == pytest.approx(0.75 * JITTER_MM, rel=0.02)


def test_propose_blobs_finds_a_blob_inside_only():
    spacing = np.array([1.25, 0.7, 0.7])
    grid = np.stack(
        np.meshgrid(*[(np.arange(n) + 0.5) * s for n, s in zip((40, 80, 80), spacing, strict=True)], indexing="ij")
    )
    image = np.full((40, 80, 80), -850.0)
    for centre in ([25, 20, 20], [25, 40, 40]):
        image += 800 * np.exp(-((grid - np.array(centre)[:, None, None, None]) ** 2).sum(0) / (2 * 2.5**2))
    inside = np.zeros(image.shape, bool)
    inside[:, :40, :40] = True
    found = propose_blobs(image, spacing, inside, 10)
    assert len(found) == 1
    np.testing.assert_allclose(found[0], [25, 20, 20], atol=1.3)
    assert len(propose_blobs(image, spacing, np.ones_like(inside), 10)) == 2
    assert len(propose_blobs(image, spacing, np.ones_like(inside), 1)) == 1
