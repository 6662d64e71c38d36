"""How a scan of recipe 3 is taken: which part of the chest, slices, pixels, kernel and dose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from luna16_monai.phantom.anatomy import Chest, Frame, smooth_field
from luna16_monai.phantom.scanner import beam_hardening, drawn_per_slice, move_near_heart, reconstruction_noise
from luna16_monai.variety.settings import Variety

Floats = NDArray[np.floating]

_HALF_HEIGHT_MM = (95.0, 135.0)
_IN_VIEW_MM = 30.0
"""Of the lung, at least, in every scan."""
_DOME = -0.4
"""Top of the diaphragm, in half heights of the lung above its middle."""
_SHRINK = (0.68, 0.82)
_FWHM = 2.355


@dataclass(frozen=True, eq=False)
class Protocol:
    """How one scan is taken.

    Attributes:
        slices, rows: how many, as kept.
        per_slice: slices that are drawn for each.
        spacing_zyx: mm, as kept.
        frame: what part of a chest is in view.
        wide: whether the field of view reaches beyond the skin.
        thickness_mm: of a slice; above the distance of slices they overlap.
        kernel_mm: width at half of its maximum.
        edge: share by which edges are enhanced.
        noise_hu: standard deviation.
        cutoff_per_mm: of the noise's spectrum.
    """

    slices: int
    rows: int
    per_slice: int
    spacing_zyx: Floats
    frame: Frame
    wide: bool
    thickness_mm: float
    kernel_mm: float
    edge: float
    noise_hu: float
    cutoff_per_mm: float

    @property
    def drawn_shape_zyx(self) -> tuple[int, int, int]:
        """Voxels of the chest as it is drawn."""
        return self.slices * self.per_slice, self.rows, self.rows

    @property
    def drawn_spacing_zyx(self) -> Floats:
        """Spacing of the chest as it is drawn, mm."""
        return self.spacing_zyx / [self.per_slice, 1, 1]


def draw_protocol(rng: np.random.Generator, settings: Variety) -> Protocol:
    """Draw how a scan is taken."""
    between = round(_even_in_log(rng, settings.slice_mm), 3)
    pixel = round(_even_in_log(rng, settings.pixel_mm), 6)
    wide = bool(rng.random() < settings.wide_field)
    field = rng.uniform(*settings.field_mm)
    # a wide field shows a little more than the largest narrow one
    field = min(1.15 * field, 1.1 * settings.field_mm[1]) if wide else field
    rows, per_slice = round(field / pixel), drawn_per_slice(between)
    most = max(int(settings.voxels / rows**2 / per_slice), 1) * between
    height = min(rng.uniform(*settings.height_mm), max(most, settings.height_mm[0] / 1.5))
    slices = max(round(height / between), 8)
    half = rng.uniform(*_HALF_HEIGHT_MM)
    seen = max(_IN_VIEW_MM, 0.4 * slices * between)
    # upwards the lung ends at its top, downwards at the dome of the diaphragm
    highest = max(half + slices * between / 2 - seen, 0.0)
    lowest = min(_DOME * half - slices * between / 2 + seen, 0.0)
    frame = Frame(half, rng.uniform(lowest, highest), rng.uniform(*_SHRINK) if wide else 1.0)
    sharpness = rng.random()
    soft, sharp = settings.kernel_mm[1], settings.kernel_mm[0]
    return Protocol(
        slices=slices,
        rows=rows,
        per_slice=per_slice,
        spacing_zyx=np.array([between, pixel, pixel]),
        frame=frame,
        wide=wide,
        thickness_mm=max(between, 0.6) * rng.choice([1.0, 1.25, 1.6], p=[0.6, 0.2, 0.2]),
        kernel_mm=soft + (sharp - soft) * sharpness,
        edge=settings.edge[0] + (settings.edge[1] - settings.edge[0]) * max(2 * sharpness - 1, 0),
        # a sharp kernel and thin slices are noisy, at any dose
        noise_hu=float(np.clip(_even_in_log(rng, settings.noise_hu) * 2 ** (sharpness - 0.5), *settings.noise_hu)),
        cutoff_per_mm=0.32 + 0.6 * sharpness * rng.uniform(0.8, 1.1),
    )


def take(rng: np.random.Generator, chest: Chest, protocol: Protocol) -> tuple[Floats, Floats]:
    """Scan a drawn chest; as `phantom.scanner.scan_chest`, by a protocol.

    Returns:
        The image without and with noise, float32 HU (z, y, x).
    """
    spacing, drawn = protocol.spacing_zyx, protocol.drawn_spacing_zyx
    moved = move_near_heart(rng, chest)
    clean = ndimage.gaussian_filter1d(moved, protocol.thickness_mm / 3 / drawn[0], axis=0, truncate=3)
    clean = clean.reshape(-1, protocol.per_slice, *clean.shape[1:]).mean(1)
    in_plane = protocol.kernel_mm / _FWHM / spacing[2]
    clean = ndimage.gaussian_filter(clean, (0, in_plane, in_plane), truncate=3)
    if protocol.edge > 0:
        width = 0.85 / spacing[2]
        clean += protocol.edge * (clean - ndimage.gaussian_filter(clean, (0, width, width), truncate=3))
    clean += beam_hardening(clean, float(spacing[2]), rng.uniform(0.03, 0.1))
    noise = reconstruction_noise(rng, clean.shape, float(spacing[2]), protocol.cutoff_per_mm)
    strength = 1 + 0.15 * smooth_field(rng, clean.shape, np.asarray(clean.shape, float), max(clean.shape) / 4)
    return clean, clean + noise * protocol.noise_hu * strength


def _even_in_log(rng: np.random.Generator, limits: tuple[float, float]) -> float:
    return float(np.exp(rng.uniform(*np.log(limits))))
