"""What a CT scanner makes of a drawn chest: motion, slice profile, kernel, beam hardening, noise.

The chest is drawn with more slices than are kept where these are thick, so that thin structures between two slices
appear in both, fainter. Arrays are (z, y, x), lengths mm.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage, sparse

from luna16_monai.phantom.anatomy import Chest, shrink_slices, smooth_field, upsample

Floats = NDArray[np.floating]

_THICKEST_DRAWN_MM = 1.3
_FIRST_BONE_HU = 250
_VIEWS = 48
_HARDENING_CELLS = 64
"""Beam hardening is worked out on slices of at least that many cells a side, if they have them."""


def drawn_per_slice(slice_spacing_mm: float) -> int:
    """Return how many slices are drawn for each that is kept, so that they lie at most 1.3 mm apart."""
    return max(1, int(np.ceil(slice_spacing_mm / _THICKEST_DRAWN_MM)))


def scan_chest(rng: np.random.Generator, chest: Chest, per_slice: int) -> tuple[Floats, Floats]:
    """Scan a drawn chest.

    Args:
        rng: source of chance.
        chest: its image holds ``per_slice`` slices for each that is kept.
        per_slice: see `drawn_per_slice`.

    Returns:
        The image without and with noise, float32 HU (z / per_slice, y, x).
    """
    drawn = chest.lung.spacing_zyx
    spacing = drawn * [per_slice, 1, 1]
    moved = move_near_heart(rng, chest)
    sharp = rng.random() < 0.4
    in_plane = (rng.uniform(0.8, 1.15) if sharp else rng.uniform(1.1, 1.7)) / 2.355 / spacing[2]
    thickness = max(spacing[0], rng.uniform(1.0, 2.5))
    clean = ndimage.gaussian_filter1d(moved, thickness / 3 / drawn[0], axis=0, truncate=3)
    clean = clean.reshape(-1, per_slice, *clean.shape[1:]).mean(1)
    clean = ndimage.gaussian_filter(clean, (0, in_plane, in_plane), truncate=3)
    if sharp:
        clean += 0.5 * (clean - ndimage.gaussian_filter(clean, (0, 1.2, 1.2), truncate=3))
    clean += beam_hardening(clean, float(spacing[2]), rng.uniform(0.03, 0.1))

    deviation = rng.uniform(30, 70) if sharp else rng.uniform(10, 32)
    cutoff_per_mm = rng.uniform(0.6, 0.95) if sharp else rng.uniform(0.32, 0.5)
    noise = reconstruction_noise(rng, clean.shape, float(spacing[2]), cutoff_per_mm)
    strength = 1 + 0.15 * smooth_field(rng, clean.shape, np.asarray(clean.shape, float), max(clean.shape) / 4)
    noise *= deviation * strength
    noise += clean
    return clean, noise


def move_near_heart(rng: np.random.Generator, chest: Chest) -> Floats:
    """Heart and diaphragm seen in two places: near them the image is the mean of itself and of a moved copy."""
    lung, image = chest.lung, chest.image_hu
    beat = rng.uniform(0, 3.5) * (rng.random() < 0.6) * _unit(rng, [0.3, 1, 1])
    breath = np.array([rng.uniform(0, 4) * (rng.random() < 0.4), 0, 0])
    for distance, shift_mm in ((lung.heart_mm, beat), (lung.diaphragm_mm, breath)):
        steps = np.rint(shift_mm / lung.spacing_zyx).astype(int)
        if not steps.any():
            continue
        reach = lung.to_voxels(np.clip(1 - distance / 15, 0, 1))
        rows = np.ix_(*[np.clip(np.arange(n) - step, 0, n - 1) for n, step in zip(image.shape, steps, strict=True)])
        image = image + (0.5 * reach) * (image[rows] - image)
    return image


def _unit(rng: np.random.Generator, scale: list[float]) -> Floats:
    direction = rng.standard_normal(3) * scale
    return direction / np.linalg.norm(direction)


def beam_hardening(image_hu: Floats, spacing_mm: float, loss: float) -> Floats:
    """Return dark bands between bones and brighter ones beside them, HU, float32 (z, y, x), the mean of each slice 0.

    X-rays lose their soft part in bone, so that a path through two bones is attenuated less than twice. What is missing
    grows with the square of the bone on the path (Herman, Phys Med Biol 1979); its filtered back-projection from 48
    views is what a reconstruction shows. Worked out on coarser cells, 64 of them or more a side, since it is smooth.

    Args:
        image_hu: (z, y, x), slices as they are reconstructed.
        spacing_mm: between rows and columns.
        loss: cm of water that a path through p cm of bone of 1000 HU seems shorter, for each cm² of p².
    """
    fold = max(1, image_hu.shape[1] // _HARDENING_CELLS)
    bone = shrink_slices(np.clip(image_hu - _FIRST_BONE_HU, 0, 1200), fold)
    cell_mm = spacing_mm * fold
    project = _projection(*bone.shape[1:])
    # cm of bone of 1000 HU on each path
    path = (project @ bone.reshape(len(bone), -1).T).T.reshape(len(bone), _VIEWS, -1) * (cell_mm / 10 / 1000)
    missing = path**2
    ramp = np.abs(fft.rfftfreq(missing.shape[2] * 2))
    filtered = fft.irfft(fft.rfft(missing, missing.shape[2] * 2, axis=2) * ramp, axis=2)[:, :, : missing.shape[2]]
    back = (project.T @ filtered.reshape(len(bone), -1).T).T.reshape(bone.shape) * (np.pi / _VIEWS)
    shadow = upsample((-1000 * loss * 10 / cell_mm * back).astype(np.float32), image_hu.shape)
    return shadow - shadow.mean((1, 2), keepdims=True)


@lru_cache(2)
def _projection(rows: int, columns: int) -> sparse.csr_matrix:
    """Return the matrix that sums cells along parallel paths, (views * bins, rows * columns); two bins share a cell."""
    y, x = np.meshgrid(np.arange(rows) - (rows - 1) / 2, np.arange(columns) - (columns - 1) / 2, indexing="ij")
    bins = int(np.ceil(np.hypot(rows, columns))) + 2
    angles = np.arange(_VIEWS) * np.pi / _VIEWS
    place = np.cos(angles)[:, None] * x.ravel() + np.sin(angles)[:, None] * y.ravel() + (bins - 1) / 2
    low = np.floor(place).astype(int)
    first = np.arange(_VIEWS)[:, None] * bins + low
    cell = np.broadcast_to(np.arange(rows * columns), place.shape)
    share = np.stack([1 - (place - low), place - low])
    entries = (share.ravel(), (np.stack([first, first + 1]).ravel(), np.stack([cell, cell]).ravel()))
    return sparse.csr_matrix(entries, shape=(_VIEWS * bins, rows * columns), dtype=np.float32)


def reconstruction_noise(
    rng: np.random.Generator, shape_zyx: tuple[int, ...], spacing_mm: float, cutoff_per_mm: float
) -> Floats:
    """Return noise of deviation 1 with the spectrum of filtered back-projection: a ramp, rolled off, in each slice."""
    rows, columns = shape_zyx[1:]
    frequency = np.hypot(fft.fftfreq(rows)[:, None], fft.rfftfreq(columns)) / spacing_mm
    transfer = (np.sqrt(frequency) * np.exp(-((frequency / cutoff_per_mm) ** 2))).astype(np.float32)
    spectrum = fft.rfft2(rng.standard_normal(shape_zyx, dtype=np.float32))
    spectrum *= transfer
    noise = fft.irfft2(spectrum, s=(rows, columns), overwrite_x=True)
    return noise / noise.std()
