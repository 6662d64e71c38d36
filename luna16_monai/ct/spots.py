"""Bright spots in the lungs of a CT: what a nodule is mistaken for, mostly vessels, hilum and pleura."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from luna16_monai.ct.lungs import LungMask
from luna16_monai.geometry.grid import Geometry

GRID_MM = 1.25
SIGMAS_MM = (1.6, 2.2, 3.0, 4.2)
APART_MM = 8.0
CLEAR_MM = 6.0
_RANGE_HU = (-1000, 300)


def brightest_spots(
    hu: NDArray[np.int16],
    geometry: Geometry,
    lungs: LungMask,
    number: int,
    keep_off_xyz: ArrayLike,
    keep_off_mm: ArrayLike,
) -> NDArray[np.float64]:
    """Return the brightest blobs in the lungs, the brightest first: maxima of the scale-normalised Laplacian.

    Args:
        hu: (z, y, x).
        geometry: of ``hu``.
        lungs: where they may lie.
        number: how many; fewer where there are not as many.
        keep_off_xyz: (k, 3) world LPS mm, the nodules.
        keep_off_mm: (k,) their radii; blobs stay 6 mm off.

    Returns:
        (n, 3) world LPS mm, 8 mm and more apart.
    """
    factors = np.array(geometry.spacing_zyx) / GRID_MM
    small = ndimage.zoom(np.clip(hu, *_RANGE_HU).astype(np.float32), factors, order=1, grid_mode=True, mode="nearest")
    response = np.full(small.shape, -np.inf, np.float32)
    for sigma in SIGMAS_MM:
        np.maximum(response, -(sigma**2) * ndimage.gaussian_laplace(small, sigma / GRID_MM), out=response)
    peaks = np.argwhere((response == ndimage.maximum_filter(response, 3)) & (response > 0))
    peaks = peaks[np.argsort(-response[tuple(peaks.T)], kind="stable")]
    scale = np.array(hu.shape) / np.array(small.shape)
    points = geometry.world_from_voxel((peaks + 0.5) * scale - 0.5) if len(peaks) else np.empty((0, 3))
    points = points[lungs.contains(points)] if len(points) else points
    for centre, radius in zip(np.reshape(keep_off_xyz, (-1, 3)), np.ravel(keep_off_mm), strict=True):
        points = points[np.linalg.norm(points - centre, axis=1) >= radius + CLEAR_MM]
    kept: list[NDArray[np.float64]] = []
    for point in points:
        if len(kept) == number:
            break
        if all(np.linalg.norm(point - one) >= APART_MM for one in kept):
            kept.append(point)
    return np.array(kept).reshape(-1, 3)
