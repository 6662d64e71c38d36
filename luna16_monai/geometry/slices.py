"""Slices of a CT to look at: axial, coronal and sagittal through a point, in a lung window.

They lie as radiology shows them, however the volume lies: the patient's left on the right of the picture, front
up in the axial slice and left in the sagittal one, head up in the other two. The report, the review page and the
explanations all cut, window and encode their pictures here.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import map_coordinates

from luna16_monai.geometry.grid import Geometry
from luna16_monai.geometry.volume import AIR_HU, Volume

FloatArray = NDArray[np.float64]

LUNG_WINDOW_HU = (-1000.0, 400.0)
SIDE_MM, PIXELS, JPEG_QUALITY = 50.0, 201, 82
MOST_PIXELS = 768
"""Of the longer side of a picture of a whole slice."""
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
    cut = cut_slices(volume, point_xyz, side_mm, pixels, views)
    return {view: _windowed(hu, window_hu) for view, hu in cut.items()}


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
    step_mm = side_mm / pixels
    columns, rows = (step_mm * np.array(axes, float) for axes in zip(*(VIEWS[view] for view in views), strict=True))
    corners = np.asarray(point_xyz, float) - (rows + columns) * (pixels // 2)
    cut = _sampled(volume, corners, rows, columns, (pixels, pixels), outside)
    return dict(zip(views, cut, strict=True))


@dataclass(frozen=True)
class Plane:
    """How the slices of one view lie that show a whole scan, from one end to the other.

    Attributes:
        view: one of `VIEWS`.
        corner_xyz: world LPS mm of the centre of the first pixel of slice 0.
        pixel_mm: the side of a pixel; pixels are square whatever the voxels are.
        rows: pixels of a picture's height.
        columns: of its width.
        step_mm: from one slice to the next, along the view's `NORMALS`: the spacing of the axis nearest to it.
        slices: how many there are.
    """

    view: str
    corner_xyz: tuple[float, float, float]
    pixel_mm: float
    rows: int
    columns: int
    step_mm: float
    slices: int


def planes_of(scan: Geometry) -> dict[str, Plane]:
    """Return how the slices of each view lie in a scan; those of a scan along the axes go through its voxels' centres.

    Args:
        scan: where the CT's voxels lie.
    """
    edges = np.array([(-0.5, size - 0.5) for size in scan.shape_zyx])
    corners = scan.world_from_voxel(np.stack(np.meshgrid(*edges, indexing="ij"), -1).reshape(-1, 3))
    low, high = corners.min(axis=0), corners.max(axis=0)
    axes = np.abs(scan.affine[:3, :3] / np.array(scan.spacing_zyx))
    # the spacing of the axis that lies nearest to world x, y and z
    spacing = np.array(scan.spacing_zyx)[axes.argmax(axis=1)]
    planes = {}
    for view, (column, row) in VIEWS.items():
        across, down, normal = (int(np.abs(axis).argmax()) for axis in (column, row, NORMALS[view]))
        width, height = (high - low)[[across, down]]
        pixel_mm = max(float(spacing[[across, down]].min()), float(max(width, height)) / MOST_PIXELS)
        corner = low.copy()
        for axis, sign in ((across, column[across]), (down, row[down])):
            corner[axis] = low[axis] + pixel_mm / 2 if sign > 0 else high[axis] - pixel_mm / 2
        step_mm = float(spacing[normal])
        corner[normal] = low[normal] + step_mm / 2
        rows, columns, slices = (max(1, round(size)) for size in (height / pixel_mm, width / pixel_mm,
                                                                  (high - low)[normal] / step_mm))  # fmt: skip
        x, y, z = corner.tolist()
        planes[view] = Plane(view, (x, y, z), pixel_mm, rows, columns, step_mm, slices)
    return planes


def whole_slice(
    volume: Volume, plane: Plane, number: int, window_hu: Sequence[float] = LUNG_WINDOW_HU
) -> NDArray[np.uint8]:
    """Cut and window a slice through the whole scan; what lies beyond a scan that is turned is air.

    Args:
        volume: the CT.
        plane: of `planes_of` the scan.
        number: of the slice, from 0.
        window_hu: as `slices_through`.

    Returns:
        (rows, columns) uint8.

    Raises:
        ValueError: there is no such slice.
    """
    if not 0 <= number < plane.slices:
        raise ValueError(f"slice {number}: choose one from 0 to {plane.slices - 1}")
    column, row = plane.pixel_mm * np.array(VIEWS[plane.view], float)
    corner = np.array(plane.corner_xyz) + number * plane.step_mm * np.array(NORMALS[plane.view])
    (hu,) = _sampled(volume, corner[None], row[None], column[None], (plane.rows, plane.columns), AIR_HU)
    return _windowed(hu, window_hu)


def _sampled(
    volume: Volume,
    corners: FloatArray,
    rows: FloatArray,
    columns: FloatArray,
    shape: tuple[int, int],
    outside: float,
) -> NDArray[np.float32]:
    """Return pictures, (n, row, column), interpolated linearly; only the box around all of them is read.

    Args:
        volume: as `cut_slices`.
        corners: (n, 3) world LPS mm of the first pixels.
        rows: (n, 3) mm from a row to the next.
        columns: (n, 3) mm from a column to the next.
        shape: numbers of rows and of columns.
        outside: as `cut_slices`.
    """
    # a pixel's indices are the sum of its row's, (zyx, n, row, 1), and its column's, (zyx, n, 1, column)
    number_of_rows, number_of_columns = (np.arange(size)[:, None] for size in shape)
    zero = volume.geometry.voxel_from_world(np.zeros(3))
    down = _indices(volume.geometry, corners[:, None] + number_of_rows * rows[:, None])[..., None]
    right = _indices(volume.geometry, number_of_columns * columns[:, None], zero)[:, :, None]
    low = (down.min(axis=2) + right.min(axis=3)).min(axis=(1, 2))
    high = (down.max(axis=2) + right.max(axis=3)).max(axis=(1, 2))
    start = np.clip(np.floor(low).astype(int), 0, volume.geometry.shape_zyx)
    stop = np.clip(np.ceil(high).astype(int) + 1, start, volume.geometry.shape_zyx)
    box = np.asarray(volume.voxels[tuple(map(slice, start.tolist(), stop.tolist()))], np.float32)
    indices = down - start[:, None, None, None] + right
    return map_coordinates(box, indices, order=1, mode="constant", cval=outside)


def _indices(geometry: Geometry, points_xyz: FloatArray, zero: FloatArray | float = 0.0) -> FloatArray:
    """Return the indices (zyx, ...) of points, (..., 3), less `zero`, rounded: those on an edge stay on it."""
    indices: FloatArray = np.round(geometry.voxel_from_world(points_xyz.reshape(-1, 3)) - zero, 9)
    return np.moveaxis(indices.reshape(points_xyz.shape), -1, 0)


def _windowed(hu: NDArray[np.float32], window_hu: Sequence[float]) -> NDArray[np.uint8]:
    low, high = window_hu
    return np.rint(np.clip((hu - low) / (high - low), 0, 1) * 255).astype(np.uint8)


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
