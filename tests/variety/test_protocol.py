"""How scans of recipe 3 are taken."""

from dataclasses import replace

import numpy as np
import pytest
from wide_scans import small_chest

from luna16_monai.phantom.anatomy import Frame
from luna16_monai.variety.protocol import Protocol, draw_protocol, take
from luna16_monai.variety.settings import Variety


@pytest.fixture(scope="module")
def protocols():
    return [draw_protocol(np.random.default_rng(seed), Variety()) for seed in range(200)]


def test_draw_protocol_covers_slices_pixels_and_kernels(protocols):
    between, pixel = (np.array([p.spacing_zyx[axis] for p in protocols]) for axis in (0, 1))
    assert 0.6 <= between.min() < 0.75
    assert 4.2 < between.max() <= 5.0
    assert 0.5 <= pixel.min() < 0.55
    assert 0.9 < pixel.max() <= 0.98
    # half of a range in logarithms: sqrt(0.6 * 5) = 1.7 mm
    assert np.median(between) == pytest.approx(1.73, rel=0.25)
    assert {round(p.kernel_mm) for p in protocols} == {1, 2}
    assert min(p.noise_hu for p in protocols) < 15 < 60 < max(p.noise_hu for p in protocols)


def test_draw_protocol_keeps_to_the_voxels_and_to_the_lung(protocols):
    for one in protocols:
        height = one.slices * one.spacing_zyx[0]
        drawn = np.prod(one.drawn_shape_zyx)
        assert drawn < 5.5e6 or height < 45
        # of the volume's height, 40 % show the lung at least
        low, high = one.frame.above_mm - height / 2, one.frame.above_mm + height / 2
        # from the dome of the diaphragm to the top
        seen = min(high, one.frame.half_height_mm) - max(low, -0.4 * one.frame.half_height_mm)
        assert seen > min(0.39 * height, 1.39 * one.frame.half_height_mm)


@pytest.fixture(scope="module")
def chest():
    return small_chest()


def taken(chest, **changes):
    plain = Protocol(40, 96, 1, np.array([2.0, 1.0, 1.0]), Frame(100, 0, 1), False, 2.0, 1.0, 0.0, 10.0, 0.5)
    return take(np.random.default_rng(0), chest, replace(plain, **changes))


def test_take_gives_the_noise_and_the_slices_that_are_asked_for(chest):
    clean, noisy = taken(chest, noise_hu=40.0)
    assert (noisy - clean).std() == pytest.approx(40, rel=0.05)
    thick, _ = taken(chest, slices=20, per_slice=2, spacing_zyx=np.array([4.0, 1.0, 1.0]))
    assert thick.shape == (20, 96, 96)


def test_take_blurs_by_the_kernel_and_sharpens_by_its_edge(chest):
    steepness = [
        np.abs(np.diff(taken(chest, **change)[0], axis=2)).mean() for change in ({"kernel_mm": 2.5}, {}, {"edge": 0.8})
    ]
    assert steepness[0] < 0.9 * steepness[1] < 0.9 * steepness[2]
