from dataclasses import replace

import numpy as np
import pytest

from luna16_monai.phantom.anatomy import draw_chest
from luna16_monai.phantom.scanner import beam_hardening, drawn_per_slice, move_near_heart, scan_chest

SHAPE = (32, 64, 64)


@pytest.fixture(scope="module")
def chest():
    return draw_chest(np.random.default_rng(0), SHAPE, np.array([1.25, 0.7, 0.7]))


def at_distance(chest, heart_mm, diaphragm_mm):
    grid = chest.lung.distance_mm
    lung = replace(chest.lung, heart_mm=np.full_like(grid, heart_mm), diaphragm_mm=np.full_like(grid, diaphragm_mm))
    return replace(chest, lung=lung)


@pytest.mark.parametrize(("spacing", "expected"), [(1.0, 1), (1.25, 1), (1.8, 2), (2.5, 2), (5.0, 4)])
def test_drawn_per_slice_draws_every_1_3_mm(spacing, expected):
    assert drawn_per_slice(spacing) == expected


def test_scan_chest_averages_drawn_slices_and_keeps_the_sum(chest):
    # one bright voxel in lung, far from what moves: spread over its neighbours, half as bright in slices twice as thick
    drawn = np.full(SHAPE, -850, np.float32)
    drawn[15, 32, 32] = 0
    still = replace(at_distance(chest, 99, 99), image_hu=drawn)
    clean, noisy = scan_chest(np.random.default_rng(1), still, 2)
    assert clean.shape == noisy.shape == (16, 64, 64)
    assert (clean + 850).sum() == pytest.approx(850 / 2, rel=1e-3)
    assert np.unravel_index(clean.argmax(), clean.shape) == (7, 32, 32)
    assert 5 < (noisy - clean).std() < 90


def test_move_leaves_what_is_far_from_heart_and_diaphragm(chest):
    far = at_distance(chest, 15, 15)
    for seed in range(8):
        np.testing.assert_array_equal(move_near_heart(np.random.default_rng(seed), far), chest.image_hu)


def test_move_shows_the_heart_in_two_places(chest):
    image = np.zeros(SHAPE, np.float32)
    image[16, 32, 32] = 100
    moved = [
        move_near_heart(np.random.default_rng(seed), replace(at_distance(chest, -1, 99), image_hu=image))
        for seed in range(8)
    ]
    shifted = [m for m in moved if m.max() < 100]
    assert 2 <= len(shifted) < 8, "the seeds should give both"
    for one in shifted:
        assert sorted(one[one > 0].tolist()) == [50, 50]
        assert one[16, 32, 32] == 50


def test_beam_hardening_is_darkest_between_two_bones():
    y, x = np.mgrid[:128, :128] + 0.5
    image = np.zeros((2, 128, 128), np.float32)
    image[1] = 1200.0 * ((np.hypot(y - 64, x - 30) < 10) | (np.hypot(y - 64, x - 98) < 10))
    shadow = beam_hardening(image, 0.7, 0.05)
    assert not shadow[0].any()
    assert abs(shadow[1].mean()) < 1e-3
    between, beside = shadow[1, 60:68, 58:70].mean(), shadow[1, 20:28, 58:70].mean()
    assert between < -5
    assert beside > between + 5
    # left and right alike
    np.testing.assert_allclose(shadow[1], shadow[1, :, ::-1], atol=1.5)
    np.testing.assert_allclose(beam_hardening(image, 0.7, 0.1), 2 * shadow, rtol=1e-4, atol=1e-3)
