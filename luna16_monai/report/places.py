"""Where points lie in the lungs, as a reader says it: the side, the third by height, and the distance from the top."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from luna16_monai.ct.lungs import LungMask

THIRDS = ("lower", "middle", "upper")
_BIN_MM = 4.0
_VALLEY = 0.6  # of the smaller lung's widest part: between two lungs there is less lung than that


@dataclass(frozen=True)
class Place:
    """Where one point lies.

    Attributes:
        side: "left" or "right" of the patient; None where the scan does not show both lungs.
        third: one of `THIRDS`, by the height of the lungs in the scan.
        below_top_mm: from the top of the lungs downwards.
        in_lungs: whether the mask of the lungs holds it.
    """

    side: str | None
    third: str
    below_top_mm: float
    in_lungs: bool

    def __str__(self) -> str:
        where = f"{self.side} lung, {self.third} third" if self.side else f"{self.third} third of the lungs"
        return where if self.in_lungs else f"outside the lungs that were found; at the height of: {where}"


class LungPlaces:
    """Tells where points lie in the lungs of one CT.

    Args:
        lungs: their mask; with at least one voxel.

    Attributes:
        millilitres: of the mask.
        middle_x: world x in mm between the two lungs; None where the scan does not show both.
    """

    def __init__(self, lungs: LungMask) -> None:
        if not lungs.voxels.any():
            raise ValueError("a mask without lungs: give one with at least one voxel")
        self.lungs = lungs
        world = lungs.geometry.world_from_voxel(np.argwhere(lungs.voxels))
        half = np.abs(lungs.geometry.affine[2, :3]).sum() / 2
        self.low_z, self.high_z = float(world[:, 2].min() - half), float(world[:, 2].max() + half)
        self.millilitres = len(world) * abs(float(np.linalg.det(lungs.geometry.affine[:3, :3]))) / 1000
        self.middle_x = _middle(world[:, 0])

    def of(self, points_xyz: ArrayLike) -> list[Place]:
        """Return the place of each point, (n, 3) world LPS mm."""
        points = np.asarray(points_xyz, float).reshape(-1, 3)
        inside = self.lungs.contains(points)
        return [self._place(point, bool(within)) for point, within in zip(points.tolist(), inside, strict=True)]

    def _place(self, point: Sequence[float], in_lungs: bool) -> Place:
        side = None if self.middle_x is None else "left" if point[0] > self.middle_x else "right"
        share = (point[2] - self.low_z) / (self.high_z - self.low_z)
        return Place(side, THIRDS[int(np.clip(share * 3, 0, 2))], self.high_z - point[2], in_lungs)


def _middle(x: NDArray[np.float64]) -> float | None:
    """Return where the least lung lies in the middle third of the lungs' width, if that is a gap between two lungs."""
    bins = int(np.ceil((x.max() - x.min()) / _BIN_MM))
    if bins < 9:
        return None
    counts, edges = np.histogram(x, bins)
    third = bins // 3
    lowest = third + np.flatnonzero(counts[third:-third] == counts[third:-third].min())
    middle = int(lowest[len(lowest) // 2])
    if counts[middle] > _VALLEY * min(counts[:middle].max(), counts[middle + 1 :].max()):
        return None
    return float(edges[middle] + edges[middle + 1]) / 2
