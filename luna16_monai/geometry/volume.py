"""A volume with its geometry, and cutouts of it around points in world coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from luna16_monai.geometry.grid import Geometry, extent, in_mm

AIR_HU = -1000


@dataclass(frozen=True)
class Volume:
    """A CT on the grid that cutouts are taken from.

    Attributes:
        voxels: (z, y, x) int16 HU: an array, or a blosc2 array that is read piece by piece.
        geometry: where the voxels lie.
        scan: where the CT's own voxels lie; a resampled grid may end half a voxel short of it.
    """

    voxels: Any
    geometry: Geometry
    scan: Geometry

    def in_memory(self) -> Volume:
        """Return the same volume with an array for its voxels, read once."""
        return replace(self, voxels=np.asarray(self.voxels[:, :, :]))

    def cutout(self, point_xyz: ArrayLike, shape_zyx: Sequence[int] = (32, 48, 48)) -> NDArray[np.int16]:
        """Return the box around the voxel nearest to a point, which comes to lie at index ``shape // 2``.

        Args:
            point_xyz: (3,) world LPS mm.
            shape_zyx: the box, always returned in full; outside the scan it is air, -1000 HU.

        Returns:
            (z, y, x) int16 HU.

        Raises:
            ValueError: the point lies outside the scan.
        """
        if not self.scan.contains(point_xyz):
            raise ValueError(f"point {in_mm(point_xyz)} lies outside the scan ({extent(self.scan)})")
        start = self._start(point_xyz, shape_zyx)
        low = np.maximum(start, 0)
        high = np.maximum(np.minimum(start + shape_zyx, self.geometry.shape_zyx), low)
        inside = self.voxels[tuple(map(slice, low.tolist(), high.tolist()))]
        if inside.shape == tuple(shape_zyx):
            return np.array(inside)  # a copy: in memory, it would be a view of the volume
        box = np.full(shape_zyx, AIR_HU, np.int16)
        box[tuple(map(slice, low - start, high - start))] = inside
        return box

    def cutout_geometry(self, point_xyz: ArrayLike, shape_zyx: Sequence[int] = (32, 48, 48)) -> Geometry:
        """Return where the voxels of `cutout` lie."""
        affine = self.geometry.affine.copy()
        affine[:3, 3] = self.geometry.world_from_voxel(self._start(point_xyz, shape_zyx))
        z, y, x = map(int, shape_zyx)
        return Geometry((z, y, x), affine)

    def shorter_than(self, shape_zyx: Sequence[int] = (32, 48, 48)) -> str | None:
        """Return along which axes the volume is shorter than a cutout, in words; None where it is along none."""
        spacing = self.geometry.spacing_zyx
        sides = zip("zyx", self.geometry.shape_zyx, shape_zyx, spacing, strict=True)
        short = [f"{have * mm:.4g} of {want * mm:.4g} mm along {axis}" for axis, have, want, mm in sides if have < want]
        if not short:
            return None
        return f"is shorter than a cutout ({', '.join(short)}), which is air beyond it: its probabilities may be wrong"

    def _start(self, point_xyz: ArrayLike, shape_zyx: Sequence[int]) -> NDArray[np.int_]:
        centre = np.floor(self.geometry.voxel_from_world(point_xyz) + 0.5).astype(int)
        return centre - np.array(shape_zyx) // 2
