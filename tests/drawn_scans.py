"""Small CTs with known voxels, written by SimpleITK in LUNA16's layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import ArrayLike, NDArray

from luna16_monai.geometry.volume import AIR_HU

SHAPE_ZYX = (40, 60, 70)
SPACING_XYZ = (0.5, 0.75, 2.0)
ORIGIN_XYZ = (-100.0, -50.0, -300.0)
FLIPPED = np.diag([-1.0, -1.0, 1.0])


def random_hu(seed: int, shape_zyx: Sequence[int] = SHAPE_ZYX) -> NDArray[np.int16]:
    """Voxels of which hardly two are alike, so that a voxel out of place shows."""
    return np.random.default_rng(seed).integers(-1024, 3000, tuple(shape_zyx)).astype(np.int16)


def write_scan(
    folder: Path,
    series_uid: str,
    voxels: NDArray[np.int16],
    direction: ArrayLike | None = None,
    origin_xyz: Sequence[float] = ORIGIN_XYZ,
    spacing_xyz: Sequence[float] = SPACING_XYZ,
    suffix: str = ".mhd",
) -> Path:
    """Write a CT; gives the path of its header."""
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(spacing_xyz)
    image.SetOrigin(origin_xyz)
    image.SetDirection(np.ravel(np.eye(3) if direction is None else direction).astype(float).tolist())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{series_uid}{suffix}"
    sitk.WriteImage(image, str(path))
    return path


CUTOUT_ZYX = (32, 48, 48)


def raw_cutout(voxels: np.ndarray, centre_zyx: tuple[int, ...]) -> np.ndarray:
    """The box by the plainest means: pad with air on all sides, then slice."""
    padded = np.pad(voxels, [(side, side) for side in CUTOUT_ZYX], constant_values=AIR_HU)
    start = [c + side - side // 2 for c, side in zip(centre_zyx, CUTOUT_ZYX, strict=True)]
    return padded[tuple(slice(s, s + side) for s, side in zip(start, CUTOUT_ZYX, strict=True))]
