"""Slices of a CT to look at: axial, coronal and sagittal through a point, in a lung window.

They lie as radiology shows them, however the volume lies: the patient's left on the right of the picture, front
up in the axial slice and left in the sagittal one, head up in the other two.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import map_coordinates

from luna16_monai.cutouts import AIR_HU, Volume

LUNG_WINDOW_HU = (-1000.0, 400.0)
# world LPS directions (x, y, z) in which a picture's columns and rows run
VIEWS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "axial": ((1, 0, 0), (0, 1, 0)),
    "coronal": ((1, 0, 0), (0, 0, -1)),
    "sagittal": ((0, 1, 0), (0, 0, -1)),
}


def slices_through(
    volume: Volume,
    point_xyz: ArrayLike,
    side_mm: float = 50.0,
    pixels: int = 161,
    window_hu: Sequence[float] = LUNG_WINDOW_HU,
) -> dict[str, NDArray[np.uint8]]:
    """Cut and window the three slices, with square pixels, interpolated linearly; outside the scan it is air.

    Args:
        volume: the CT; only the box around the point is read.
        point_xyz: (3,) world LPS mm; comes to lie on the middle pixel.
        side_mm: of the pictures.
        pixels: of the pictures' side; odd.
        window_hu: what becomes black, and what white.

    Returns:
        `VIEWS` name to (pixels, pixels) uint8, (row, column).

    Raises:
        ValueError: the point lies outside the scan, or a number of pixels that has no middle.
    """
    if pixels < 1 or pixels % 2 == 0:
        raise ValueError(f"pictures of {pixels} pixels have no middle one: choose an odd number")
    if not volume.scan.contains(point_xyz):
        raise ValueError(f"point {np.asarray(point_xyz).tolist()} mm lies outside the scan: choose one inside")
    steps = (np.arange(pixels) - pixels // 2) * (side_mm / pixels)
    columns, rows = (np.array(axes, float) for axes in zip(*VIEWS.values(), strict=True))
    # (view, row, column, xyz)
    world = (
        np.asarray(point_xyz, float)
        + steps[:, None, None] * rows[:, None, None, :]
        + steps[:, None] * columns[:, None, None, :]
    )
    indices = volume.geometry.voxel_from_world(world.reshape(-1, 3)).T
    start = np.clip(np.floor(indices.min(axis=1)).astype(int), 0, volume.geometry.shape_zyx)
    stop = np.clip(np.ceil(indices.max(axis=1)).astype(int) + 1, start, volume.geometry.shape_zyx)
    box = np.asarray(volume.voxels[tuple(map(slice, start.tolist(), stop.tolist()))], np.float32)
    hu = map_coordinates(box, indices - start[:, None], order=1, mode="constant", cval=AIR_HU)
    low, high = window_hu
    grey = np.clip((hu - low) / (high - low), 0, 1) * 255
    pictures = np.rint(grey).astype(np.uint8).reshape(len(VIEWS), pixels, pixels)
    return dict(zip(VIEWS, pictures, strict=True))
