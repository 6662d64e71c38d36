"""From the network's output to candidates: all cells decoded, those outside the lungs or near a stronger one dropped.

Local maxima of the heat lose nodules beside stronger structures: .847 instead of .905 of the held-out nodules lay in
the 200 candidates of a scan (one prototype, 137 drawn nodules).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from luna16_monai.ct.lungs import LungMask
from luna16_monai.geometry.grid import Geometry

Floats = NDArray[np.floating]

CELLS = 4000
LEAST_MM = 4.0
DIAMETER_SHARE = 0.35
_DIAMETERS_MM = (2.0, 60.0)
_FARTHEST_CELLS = 2.0


@dataclass(frozen=True, eq=False)
class Found:
    """Candidates of one scan, the most probable first.

    Attributes:
        points_xyz: (n, 3) world LPS in mm.
        probability: (n,).
        diameter_mm: (n,).
    """

    points_xyz: Floats
    probability: Floats
    diameter_mm: Floats

    def __len__(self) -> int:
        return len(self.probability)

    def select(self, rows: NDArray[np.bool_] | NDArray[np.integer] | slice) -> Found:
        """Return these candidates alone."""
        return Found(self.points_xyz[rows], self.probability[rows], self.diameter_mm[rows])


def decode(
    output: Floats,
    start_zyx: Sequence[int],
    stride_zyx: Sequence[int],
    geometry: Geometry,
    cells: int = CELLS,
    inside: Callable[[Floats], NDArray[np.bool_]] | None = None,
) -> Found:
    """Return the hottest cells as candidates.

    Args:
        output: (5, z, y, x), see ``NoduleDetector.forward``.
        start_zyx: first voxel of the box that the output belongs to.
        stride_zyx: voxels of a cell.
        geometry: of the volume.
        cells: the most that are returned.
        inside: tells of points (n, 3) which ones count; others are left out, and take the place of none.
    """
    logit = output[0].reshape(-1).astype(np.float64)
    order = np.argsort(-logit, kind="stable")
    parts, count = [], 0
    for first in range(0, len(order), cells):
        found = _decoded(output, order[first : first + cells], start_zyx, stride_zyx, geometry)
        if inside is not None:
            found = found.select(inside(found.points_xyz))
        parts.append(found.select(slice(cells - count)))
        count += len(parts[-1])
        if count == cells:
            break
    return Found(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("points_xyz", "probability", "diameter_mm")
        )
    )


def _decoded(
    output: Floats, cells: NDArray[np.intp], start_zyx: Sequence[int], stride_zyx: Sequence[int], geometry: Geometry
) -> Found:
    """Return some cells, by their number, as candidates."""
    index = np.stack(np.unravel_index(cells, output.shape[1:]), 1)
    values = output.reshape(len(output), -1)[:, cells].astype(np.float64).T
    stride = np.array(stride_zyx)
    offset = np.clip(values[:, 1:4], -_FARTHEST_CELLS, _FARTHEST_CELLS)
    voxels = np.array(start_zyx) + (stride - 1) / 2 + (index + offset) * stride
    diameter = np.exp(np.clip(values[:, 4], *np.log(_DIAMETERS_MM)))
    return Found(geometry.world_from_voxel(voxels), 1 / (1 + np.exp(-values[:, 0])), diameter)


def suppress(found: Found, limit: int, least_mm: float = LEAST_MM, diameter_share: float = DIAMETER_SHARE) -> Found:
    """Drop what lies near a more probable candidate.

    Args:
        found: the most probable first.
        limit: the most that are kept.
        least_mm: nothing nearer is kept; a candidate at just that distance is.
        diameter_share: nor what lies within this share of the stronger one's diameter.
    """
    tree = cKDTree(found.points_xyz) if len(found) else None
    left = np.ones(len(found), bool)
    kept: list[int] = []
    for row in range(len(found)):
        if tree is None or len(kept) == limit:
            break
        if not left[row]:
            continue
        kept.append(row)
        radius = max(least_mm, diameter_share * float(found.diameter_mm[row]))
        near = np.array(tree.query_ball_point(found.points_xyz[row], radius), int)
        left[near[np.linalg.norm(found.points_xyz[near] - found.points_xyz[row], axis=1) < radius]] = False
    return found.select(np.array(kept, int))


def candidates_of(
    output: Floats,
    start_zyx: Sequence[int],
    stride_zyx: Sequence[int],
    geometry: Geometry,
    scan: Geometry,
    lungs: LungMask,
    limit: int,
) -> Found:
    """Return the candidates of a scan from the network's output; see `decode` and `suppress`.

    Args:
        output, start_zyx, stride_zyx, geometry: as `decode`.
        scan: where the CT's own voxels lie; candidates outside are dropped.
        lungs: those outside of it, too.
        limit: the most that are kept.
    """

    def inside(points_xyz: Floats) -> NDArray[np.bool_]:
        return lungs.contains(points_xyz) & scan.contains(points_xyz)

    return suppress(decode(output, start_zyx, stride_zyx, geometry, inside=inside), limit)
