"""Blur and noise of a real CT, estimated from drawn ones of which they are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import ndtr

from luna16_monai.phantom.estimates import estimate_blur, estimate_noise_growth, split_noise


def slanted_walls(shape, spacing, axis, blur_mm, noise_hu, rng):
    """Three slabs of air in tissue across an axis, inclined by 0.1, each edge blurred by a Gaussian."""
    z, y, x = np.meshgrid(*[np.arange(n) * s for n, s in zip(shape, spacing, strict=True)], indexing="ij")
    along = [z, y, x][axis] + 0.1 * [y, x, y][axis]
    edges = np.array([0.12, 0.25, 0.45, 0.58, 0.75, 0.9]) * along.max()
    air = sum((-1) ** i * ndtr((along - edge) / blur_mm) for i, edge in enumerate(edges))
    return np.rint(40 - 890 * air + noise_hu * rng.standard_normal(shape)).astype(np.int16)


@pytest.mark.parametrize("noise_hu", [0, 50])
@pytest.mark.parametrize(
    ("axis", "spacing", "blur_mm"),
    [(0, (3, 0.6, 0.6), 1.3), (0, (1.25, 0.7, 0.7), 0.7), (1, (3, 0.6, 0.6), 0.3), (2, (3, 0.6, 0.6), 0.6)],
)
def test_estimate_blur_of_slanted_walls(axis, spacing, blur_mm, noise_hu):
    shape = (60, 120, 120) if axis == 0 else (40, 150, 150)
    hu = slanted_walls(shape, spacing, axis, blur_mm, noise_hu, np.random.default_rng(0))
    blur = estimate_blur(hu, hu < -400, np.array(spacing))
    assert blur[axis] == pytest.approx(blur_mm, rel=0.1)
    others = [i for i in range(3) if i != axis]
    assert blur[others].tolist() == pytest.approx(np.array([spacing[0] / 3, 0.6, 0.6])[others])  # no edges across them


def test_estimate_noise_growth_is_the_gain_over_the_rise():
    rng = np.random.default_rng(0)
    tissue = np.zeros((8, 90, 90), bool)
    tissue[:, 30:60, 30:60] = True
    hu = np.where(tissue, 50, -850) + np.where(tissue, 30, 20) * rng.standard_normal(tissue.shape)
    inside = np.ones(tissue.shape, bool)
    # from 20 to 30 is half more, over 900 HU
    growth = estimate_noise_growth(np.rint(hu).astype(np.int16), inside, np.array([2, 0.7, 0.7]))
    assert growth == pytest.approx(0.5 / 900, rel=0.1)
    assert estimate_noise_growth(np.rint(hu).astype(np.int16), ~tissue, np.array([2, 0.7, 0.7])) == 0
    still = np.where(tissue, 50, -850).astype(np.int16)
    assert estimate_noise_growth(still, inside, np.array([2, 0.7, 0.7])) == 0


def test_split_noise_leaves_noise_and_takes_vessels_out():
    rng = np.random.default_rng(0)
    noise = 30 * rng.standard_normal((6, 60, 60))
    hu = noise - 850
    hu[:, 30:32] += 500  # a vessel of two voxels
    structure, rest = split_noise(np.rint(hu).astype(np.int16), np.array([1, 0.7, 0.7]))
    assert np.allclose(structure + rest, np.rint(hu))
    assert structure[:, 30:32].mean() == pytest.approx(-350, abs=15)
    assert np.abs(rest[:, 30:32]).max() < 100
    away = np.r_[5:24, 38:55]
    assert rest[:, away].std() == pytest.approx(30, rel=0.05)
