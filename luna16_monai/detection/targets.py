"""Annotations as maps on the network's grid.

CenterNet's targets: heat 1 at the cell nearest to a nodule's middle, a Gaussian around it. Cells outside the lungs, the
outermost cells of a crop, which lack their surroundings, and those on excluded findings count neither way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from luna16_monai.ct.lungs import LungMask
from luna16_monai.geometry.grid import Geometry
from luna16_monai.tables.hits import UNKNOWN_DIAMETER_MM
from luna16_monai.tables.points import PointTable

Floats = NDArray[np.floating]

HEAT, COUNTS, OFFSETS, LOG_DIAMETER, REGRESSION, MIDDLE = 0, 1, slice(2, 5), 5, 6, 7
MAPS = 8
_SIGMA_SHARE, _SIGMA_MM = 0.2, (1.5, 4.0)
_RING_MM = 2.0
_CORE_SHARE, _CORE_MM = 0.25, 2.0
_REACH_MM = 20.0


@dataclass(frozen=True, eq=False)
class Labels:
    """What is known of a scan, in voxels of its volume.

    Attributes:
        geometry: of the volume.
        nodules: (n, 4), z, y, x in voxels and the diameter in mm.
        excluded: (m, 4), the same of findings that count neither way.
        lungs: where candidates may lie.
    """

    geometry: Geometry
    nodules: Floats
    excluded: Floats
    lungs: LungMask


def in_voxels(table: PointTable, series_uid: str, geometry: Geometry) -> Floats:
    """Return a series' rows of a table as (n, 4): z, y, x in voxels and the value; a value below 0 is 10 mm.

    Args:
        table: values are diameters in mm.
        series_uid: whose rows are returned.
        geometry: of the series' volume.
    """
    rows = table.select(table.series_codes([series_uid]) == 0)
    points = geometry.voxel_from_world(rows.points_xyz)
    return np.column_stack([points, np.where(rows.values < 0, UNKNOWN_DIAMETER_MM, rows.values)])


def draw_targets(
    labels: Labels, start_zyx: Sequence[int], shape_zyx: Sequence[int], stride_zyx: Sequence[int]
) -> NDArray[np.float32]:
    """Return what a network of this stride should give for a box of a volume.

    Args:
        labels: of the scan.
        start_zyx: first voxel of the box; it may lie outside the volume.
        shape_zyx: voxels of the box, multiples of the stride.
        stride_zyx: voxels of a cell.

    Returns:
        (8, z, y, x) of the cells: heat; 1 where the heat counts; offset along z, y, x in cells; log of the diameter;
        weight of the offset and the diameter, which sums to 1 a nodule; 1 at the middle of each nodule.
    """
    start, stride = np.array(start_zyx), np.array(stride_zyx)
    grid = np.array(shape_zyx) // stride
    spacing = np.array(labels.geometry.spacing_zyx)
    axes = [start[a] + np.arange(grid[a]) * stride[a] + (stride[a] - 1) / 2 for a in range(3)]
    maps = np.zeros((MAPS, *grid), np.float32)
    cells = np.stack(np.meshgrid(*axes, indexing="ij"), -1)[1:-1, 1:-1, 1:-1]
    in_lungs = labels.lungs.contains(labels.geometry.world_from_voxel(cells.reshape(-1, 3)))
    maps[COUNTS, 1:-1, 1:-1, 1:-1] = in_lungs.reshape(cells.shape[:3])
    low, high = np.array([a[0] for a in axes]), np.array([a[-1] for a in axes])

    def in_reach(findings: Floats) -> Floats:
        reach = (_REACH_MM + findings[:, 3:] / 2) / spacing
        return findings[((findings[:, :3] > low - reach) & (findings[:, :3] < high + reach)).all(1)]

    def distance(point: Floats) -> Floats:
        z, y, x = (((a - p) * s) ** 2 for a, p, s in zip(axes, point, spacing, strict=True))
        return np.sqrt(z[:, None, None] + y[:, None] + x)

    for finding in in_reach(labels.excluded):
        maps[COUNTS][distance(finding[:3]) < finding[3] / 2 + _RING_MM] = 0
    found = [(nodule, distance(nodule[:3])) for nodule in in_reach(labels.nodules)]
    for nodule, gap in found:
        sigma = np.clip(_SIGMA_SHARE * nodule[3], *_SIGMA_MM)
        np.maximum(maps[HEAT], np.exp(-(gap**2) / (2 * sigma**2)), out=maps[HEAT])
    for nodule, gap in found:
        _draw_nodule(maps, nodule, gap, (nodule[:3] - low) / stride, axes, stride)
    return maps


def _draw_nodule(
    maps: NDArray[np.float32], nodule: Floats, gap: Floats, place: Floats, axes: Sequence[Floats], stride: Floats
) -> None:
    """Mark a nodule's middle, and what the cells around it should give for it."""
    cell = np.floor(place + 0.5).astype(int)
    grid = np.array(gap.shape)
    if (cell < 1).any() or (cell >= grid - 1).any():
        maps[COUNTS][gap < nodule[3] / 2 + _RING_MM] = 0  # its middle is not in view
        return
    middle = tuple(cell)
    around = gap < max(_CORE_SHARE * nodule[3], _CORE_MM)
    around[middle] = True
    maps[(slice(HEAT, COUNTS + 1), *middle)] = 1
    maps[(MIDDLE, *middle)] = 1
    for axis in range(3):
        line = ((nodule[axis] - axes[axis]) / stride[axis]).reshape([-1 if a == axis else 1 for a in range(3)])
        maps[OFFSETS][axis][around] = np.broadcast_to(line, grid)[around]
    maps[LOG_DIAMETER][around] = np.log(nodule[3])
    maps[REGRESSION][around] = 1 / around.sum()
