"""Estimate a CT's blur and noise from its voxels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import ndtr

Floats = NDArray[np.floating]

_FEWEST = 200
"""Voxels that an estimate takes."""
_TILT = 0.2
"""Of an edge against its axis, at most; more would count the blur of the other axes too."""
_LEAST_NOISE_HU = 4


def estimate_blur(hu: NDArray[np.int16], lungs: NDArray[np.bool_], spacing_zyx: Floats) -> Floats:
    """Return the standard deviation of a scan's blur along z, y and x in mm, from the edges between lung and tissue.

    Args:
        hu: (z, y, x).
        lungs: where they are, (z, y, x) of the same shape, or less an odd last row or column.
        spacing_zyx: mm.

    Returns:
        (3,), each 0.2 to 1.5 voxels. Where there are too few edges, a third of the slices' distance, and 0.6 mm.
    """
    blur = np.array([spacing_zyx[0] / 3, 0.6, 0.6])
    near = ndimage.maximum_filter(lungs, (3, 7, 7))
    slab = slice(max(len(hu) // 2 - 20, 0), len(hu) // 2 + 20)
    for axis in range(3):
        used = slice(None) if axis == 0 else slab
        part = hu[used, : lungs.shape[1], : lungs.shape[2]].astype(np.float32)
        # takes noise away, and adds no blur to edges that are level across the axis
        smooth_mm = np.where(np.arange(3) == axis, 0, [0, 0.8, 0.8])
        part = ndimage.gaussian_filter(part, smooth_mm / spacing_zyx)
        order = [axis, *(i for i in range(3) if i != axis)]
        found = _blur_across(part.transpose(order), near[used].transpose(order), spacing_zyx[order])
        blur[axis] = blur[axis] if found is None else found
    return blur


def _blur_across(hu: Floats, near: NDArray[np.bool_], spacing: Floats) -> float | None:
    """Return the standard deviation of the blur along the first axis, mm; None for too few edges ``near`` the lung.

    Of the rise of an edge, the step between the two voxels beside its middle holds a share that depends on the blur:
    all of it without blur, less with more. Expected is the mean over all places of the middle between the voxels.
    """
    reach = max(1, round(2 / spacing[0]))
    count = len(hu) - 2 * reach - 1
    if count < 1:
        return None
    start, before, after, end = (hu[i : i + count] for i in (0, reach, reach + 1, 2 * reach + 1))
    middle = (start + end) / 2
    low, high = np.minimum(start, end), np.maximum(start, end)
    edges = near[reach : reach + count] & ((before - middle) * (after - middle) <= 0)
    edges &= (low > -980) & (low < -650) & (high > -150) & (high < 150)
    # how far the sum over all voxels moves gives how far the edge moves
    total = np.sum([hu[i : i + count] for i in range(2 * reach + 2)], axis=0)
    tilt = np.hypot(*np.gradient(total, *spacing[1:], axis=(1, 2))) * spacing[0]
    edges &= tilt < _TILT * (high - low)
    if edges.sum() < _FEWEST:
        return None
    share = np.abs(after - before)[edges].sum() / (high - low)[edges].sum()
    deviations = np.linspace(0.2, 1.5, 131)
    place = np.linspace(-0.5, 0.5, 51)[:, None]
    step, rise = (ndtr((h - place) / deviations) - ndtr((-h - place) / deviations) for h in (0.5, reach + 0.5))
    return float(spacing[0] * np.interp(-share, -step.mean(0) / rise.mean(0), deviations))


def estimate_noise_growth(hu: NDArray[np.int16], lungs: NDArray[np.bool_], spacing_zyx: Floats) -> float:
    """Return the share by which noise grows with each HU from the lung to its vessels; 0 where that is unknown.

    The noise is what is left of the differences of diagonals in squares of 2 x 2 voxels, the median of it, so that
    few edges count.

    Args:
        hu: (z, y, x).
        lungs: where they are, with the vessels in them, as in `estimate_blur`.
        spacing_zyx: mm.
    """
    thin = hu[::2, : lungs.shape[1], : lungs.shape[2]].astype(np.float32)
    smooth = ndimage.gaussian_filter(thin, [0, *(1 / spacing_zyx[1:])])
    noise = np.abs(thin[:, 1:, 1:] - thin[:, 1:, :-1] - thin[:, :-1, 1:] + thin[:, :-1, :-1])
    levels, deviations = [], []
    for low, high in ((-1000, -750), (-150, 250)):
        even = ndimage.binary_erosion((smooth > low) & (smooth < high) & lungs[::2], np.ones((1, 4, 4)))[:, 1:, 1:]
        if even.sum() < _FEWEST:
            return 0.0
        levels.append(smooth[:, 1:, 1:][even].mean())
        deviations.append(np.median(noise[even]))
    if deviations[0] < _LEAST_NOISE_HU:
        return 0.0
    return float((np.clip(deviations[1] / deviations[0], 1, 2) - 1) / (levels[1] - levels[0]))


def split_noise(hu: NDArray[np.int16], spacing_zyx: Floats) -> tuple[Floats, Floats]:
    """Split an image into structure and noise, (z, y, x) each; their sum is the image.

    Structure is the median over 5 mm in the plane, and what differs from it by more than three times the usual: thin
    vessels, which would otherwise shine through what is put over them.
    """
    median = ndimage.median_filter(hu.astype(np.float32), (1, *(2 * np.rint(2.5 / spacing_zyx[1:]).astype(int) + 1)))
    noise = hu - median
    lines = ndimage.gaussian_filter(noise, (0, 1, 1))
    noise -= np.where(np.abs(lines) > 3 * _usual(lines), lines, 0)
    noise[np.abs(noise) > 3 * _usual(noise)] = 0
    return hu - noise, noise


def _usual(values: Floats) -> float:
    """Return the standard deviation, were it not for outliers."""
    return float(1.4826 * np.median(np.abs(values)))
