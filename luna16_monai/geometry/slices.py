"""Slices of a CT to look at: axial, coronal and sagittal through a point, in a lung window.

They lie as radiology shows them, however the volume lies: the patient's left on the right of the picture, front
up in the axial slice and left in the sagittal one, head up in the other two. The report, the review page and the
explanations all cut, window and encode their pictures here.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import map_coordinates

from luna16_monai.geometry.grid import Geometry
from luna16_monai.geometry.volume import AIR_HU, Volume

LUNG_WINDOW_HU = (-1000.0, 400.0)
SIDE_MM, PIXELS, JPEG_QUALITY = 50.0, 201, 82
# world LPS directions (x, y, z) in which a picture's columns and rows run
VIEWS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "axial": ((1, 0, 0), (0, 1, 0)),
    "coronal": ((1, 0, 0), (0, 0, -1)),
    "sagittal": ((0, 1, 0), (0, 0, -1)),
}
# across each view, to the head, to the back, to the left
NORMALS = {"axial": (0, 0, 1), "coronal": (0, 1, 0), "sagittal": (1, 0, 0)}


def slices_through(
    volume: Volume,
    point_xyz: ArrayLike,
    side_mm: float = SIDE_MM,
    pixels: int = PIXELS,
    window_hu: Sequence[float] = LUNG_WINDOW_HU,
    views: Sequence[str] = tuple(VIEWS),
) -> dict[str, NDArray[np.uint8]]:
    """Cut and window the slices through a point; outside the scan it is air.

    Args:
        volume, point_xyz, side_mm, pixels, views: as `cut_slices`.
        window_hu: what becomes black, and what white.

    Returns:
        View to (pixels, pixels) uint8, (row, column).

    Raises:
        ValueError: as `cut_slices`.
    """
    low, high = window_hu
    cut = cut_slices(volume, point_xyz, side_mm, pixels, views)
    return {view: np.rint(np.clip((hu - low) / (high - low), 0, 1) * 255).astype(np.uint8) for view, hu in cut.items()}


def cut_slices(
    volume: Volume,
    point_xyz: ArrayLike,
    side_mm: float = SIDE_MM,
    pixels: int = PIXELS,
    views: Sequence[str] = tuple(VIEWS),
    outside: float = AIR_HU,
) -> dict[str, NDArray[np.float32]]:
    """Cut slices with square pixels, interpolated linearly.

    Args:
        volume: the CT, or anything else on a grid; only the box around the point is read.
        point_xyz: (3,) world LPS mm; comes to lie on the middle pixel.
        side_mm: of the pictures.
        pixels: of the pictures' side; odd.
        views: which of `VIEWS`.
        outside: the value beyond the volume.

    Returns:
        View to (pixels, pixels) float32, (row, column).

    Raises:
        ValueError: the point lies outside the scan, or a number of pixels that has no middle.
    """
    if pixels < 1 or pixels % 2 == 0:
        raise ValueError(f"pictures of {pixels} pixels have no middle one: choose an odd number")
    if not volume.scan.contains(point_xyz):
        raise ValueError(f"point {np.asarray(point_xyz).tolist()} mm lies outside the scan: choose one inside")
    steps = (np.arange(pixels) - pixels // 2) * (side_mm / pixels)
    columns, rows = (np.array(axes, float) for axes in zip(*(VIEWS[view] for view in views), strict=True))
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
    cut = map_coordinates(box, indices - start[:, None], order=1, mode="constant", cval=outside)
    return dict(zip(views, cut.reshape(len(views), pixels, pixels), strict=True))


def steps_across(scan: Geometry, point_xyz: ArrayLike, view: str) -> tuple[float, int, int]:
    """Return how far one can scroll through a view's slices from a point before the scan ends.

    Args:
        scan: where the CT's voxels lie.
        point_xyz: (3,) world LPS mm, in the scan.
        view: one of `VIEWS`; steps go along its `NORMALS`.

    Returns:
        A step in mm, which is the spacing of the axis that lies nearest to the view's normal; the lowest step (0 or
        below) and the highest.
    """
    normal = np.array(NORMALS[view], float)
    axes = scan.affine[:3, :3] / np.array(scan.spacing_zyx)
    step_mm = scan.spacing_zyx[int(np.abs(normal @ axes).argmax())]
    start = scan.voxel_from_world(point_xyz)
    rate = scan.voxel_from_world(np.asarray(point_xyz, float) + normal * step_mm) - start
    moving = np.abs(rate) > 1e-9
    # the steps at which each index reaches the outermost voxels' centres, or the point's own place beyond them
    ends = (np.array([np.minimum(start, 0), np.maximum(start, np.array(scan.shape_zyx) - 1)]) - start)[:, moving]
    ends = ends / rate[moving]
    low, high = ends.min(axis=0).max(), ends.max(axis=0).min()
    return step_mm, int(np.ceil(low - 1e-6)), int(np.floor(high + 1e-6))


def as_jpeg(picture: NDArray[np.uint8]) -> bytes:
    """Return a picture, (row, column) grey, as a JPEG file."""
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(picture).save(content, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return content.getvalue()
