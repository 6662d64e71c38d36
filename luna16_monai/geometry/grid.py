"""World to voxel and back: the only place that knows how a volume lies in the patient.

World coordinates are LPS in mm, ordered (x, y, z): x grows to the patient's left, y to the back, z to the head, as in
DICOM, ITK and LUNA16's tables. Indices, shapes and spacings are ordered (z, y, x). MONAI and nibabel speak RAS and
(x, y, z); they are met here and nowhere else.

Points always pass through the whole matrix. The shortcut `(world - origin) / spacing` ignores the direction and is
wrong on the scans of LUNA16 that are stored flipped, direction diag(-1, -1, 1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

# The smallest volume that three unit axes may span: below it they lie in one plane but for rounding.
_FLAT = 1e-6
_LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Columns of an affine: (x, y, z, origin) to (z, y, x, origin), and back.
_REVERSED = [2, 1, 0, 3]


def is_orthonormal(direction: ArrayLike, tolerance: float = 1e-4) -> bool:
    """Tell whether the columns of a 3 x 3 matrix are unit axes at right angles, be it a rotation or a flip.

    Args:
        direction: (3, 3), one axis in each column.
        tolerance: largest accepted entry of |DᵀD - 1|. Headers carry six digits or fewer; 1e-4 moves a point
            0.05 mm over the length of a scan.
    """
    d = np.asarray(direction, dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.all(np.abs(d.T @ d - np.eye(3)) <= tolerance))


@dataclass(frozen=True, eq=False)
class Geometry:
    """Where a volume's voxels lie in the world.

    Two geometries are equal when shape and affine are equal to the last bit.

    Args:
        shape_zyx: voxels along (z, y, x).
        affine: (4, 4), maps the index (z, y, x, 1) of a voxel's centre to world LPS mm (x, y, z, 1).

    Raises:
        ValueError: a shape that is not three positive whole numbers, an affine that is not finite, not affine, or
            singular.
    """

    shape_zyx: tuple[int, int, int]
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape_zyx", _checked_shape(self.shape_zyx))
        object.__setattr__(self, "affine", _checked_affine(self.affine))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Geometry):
            return NotImplemented
        return self.shape_zyx == other.shape_zyx and np.array_equal(self.affine, other.affine)

    def __hash__(self) -> int:
        # Adding 0.0 turns -0.0 into 0.0: the two are equal, so their hashes must be.
        return hash((self.shape_zyx, (self.affine + 0.0).tobytes()))

    @classmethod
    def from_axes(
        cls, shape_xyz: Sequence[int], spacing_xyz: ArrayLike, origin_xyz: ArrayLike, direction: ArrayLike
    ) -> Geometry:
        """Build from what ITK and DICOM store.

        Args:
            shape_xyz: voxels along (x, y, z).
            spacing_xyz: distance of voxel centres in mm.
            origin_xyz: world LPS mm of the first voxel's centre.
            direction: (3, 3), in its columns the world directions of the index axes x, y, z.

        Raises:
            ValueError: as the constructor.
        """
        affine = np.eye(4)
        affine[:3, :3] = np.asarray(direction, dtype=np.float64) * np.asarray(spacing_xyz, dtype=np.float64)
        affine[:3, 3] = np.asarray(origin_xyz, dtype=np.float64)
        return cls(_reversed_shape(shape_xyz), affine[:, _REVERSED])

    @classmethod
    def from_ras_affine(cls, affine_ras_xyz: ArrayLike, shape_xyz: Sequence[int]) -> Geometry:
        """Build from the affine of MONAI and nibabel: (4, 4), index (x, y, z, 1) to world RAS mm.

        Raises:
            ValueError: as the constructor.
        """
        affine = np.asarray(affine_ras_xyz, dtype=np.float64)
        if affine.shape != (4, 4):
            raise ValueError(f"affine of shape {affine.shape}: give a 4 x 4 matrix")
        return cls(_reversed_shape(shape_xyz), (_LPS_FROM_RAS @ affine)[:, _REVERSED])

    def ras_affine_xyz(self) -> NDArray[np.float64]:
        """Return the affine of MONAI and nibabel: (4, 4), index (x, y, z, 1) to world RAS mm."""
        return (_LPS_FROM_RAS @ self.affine)[:, _REVERSED] + 0.0

    @property
    def spacing_zyx(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxel centres along (z, y, x), mm."""
        z, y, x = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(z), float(y), float(x)

    def voxel_from_world(self, points_xyz: ArrayLike) -> NDArray[np.float64]:
        """Return the continuous indices (z, y, x) of world points; 0 is the centre of the first voxel.

        Args:
            points_xyz: (n, 3) or (3,), world LPS mm.

        Returns:
            Indices of the same shape; they may lie outside the volume.

        Raises:
            ValueError: the last axis is not 3 long.
        """
        points = _triples(points_xyz, "points_xyz")
        return (points - self.affine[:3, 3]) @ np.linalg.inv(self.affine[:3, :3]).T

    def world_from_voxel(self, indices_zyx: ArrayLike) -> NDArray[np.float64]:
        """Return the world points (x, y, z), LPS mm, of indices (z, y, x), which may be fractional.

        Args:
            indices_zyx: (n, 3) or (3,).

        Raises:
            ValueError: the last axis is not 3 long.
        """
        indices = _triples(indices_zyx, "indices_zyx")
        return indices @ self.affine[:3, :3].T + self.affine[:3, 3]

    def contains(self, points_xyz: ArrayLike) -> NDArray[np.bool_]:
        """Tell for each world point whether its nearest voxel lies in the volume.

        The nearest voxel of a continuous index i is floor(i + 0.5), so the volume reaches half a voxel beyond the
        outermost centres. A point that is not finite lies nowhere.

        Args:
            points_xyz: (n, 3) or (3,), world LPS mm.

        Returns:
            A mask of shape (n,) or ().

        Raises:
            ValueError: the last axis is not 3 long.
        """
        with np.errstate(invalid="ignore"):
            nearest = np.floor(self.voxel_from_world(points_xyz) + 0.5)
        return np.asarray(np.all((nearest >= 0) & (nearest < self.shape_zyx), axis=-1))

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists and numbers for JSON; `from_dict` gives the same geometry back, to the last bit."""
        return {"shape_zyx": list(self.shape_zyx), "affine": self.affine.tolist()}

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Geometry:
        """Build from what `to_dict` returned.

        Raises:
            ValueError: a key is missing, or as the constructor.
        """
        missing = [key for key in ("shape_zyx", "affine") if key not in d]
        if missing:
            raise ValueError(f"geometry without {' and '.join(missing)}: give what Geometry.to_dict wrote")
        return cls(d["shape_zyx"], d["affine"])


def lps_from_ras(points_xyz: ArrayLike) -> NDArray[np.float64]:
    """Return RAS points as LPS, or LPS points as RAS: x and y change their signs.

    Args:
        points_xyz: (n, 3) or (3,), mm.

    Raises:
        ValueError: the last axis is not 3 long.
    """
    return _triples(points_xyz, "points_xyz") * np.diag(_LPS_FROM_RAS)[:3]


def require_inside(
    points_xyz: ArrayLike,
    scan: Geometry,
    series_uid: str,
    where: Callable[[int], str] = str,
    question: str = "does this table belong to this CT?",
) -> None:
    """Check that points lie in their scan.

    Args:
        points_xyz: (n, 3), world LPS mm.
        scan: where the scan's own voxels lie.
        series_uid: of the scan, for the message.
        where: for the number of a point, where it comes from, for the message.
        question: with which the message ends.

    Raises:
        ValueError: names the first point outside, its series and how far that reaches.
    """
    outside = np.flatnonzero(~scan.contains(points_xyz))
    if len(outside):
        first = int(outside[0])
        raise ValueError(
            f"candidate {in_mm(np.asarray(points_xyz)[first])} ({where(first)}) lies outside series {series_uid} "
            f"({extent(scan)}): {question}"
        )


def in_mm(point_xyz: ArrayLike) -> str:
    """Return a point as text, with one decimal."""
    return "(" + ", ".join(f"{value:.1f}" for value in np.asarray(point_xyz, float)) + ") mm"


def extent(geometry: Geometry) -> str:
    """Return how far a volume reaches along x, y and z as text; from and to the centres of its outermost voxels."""
    corners = geometry.world_from_voxel([[0, 0, 0], [side - 1 for side in geometry.shape_zyx]])
    low, high = corners.min(axis=0), corners.max(axis=0)
    return ", ".join(f"{axis} from {a:.0f} to {b:.0f} mm" for axis, a, b in zip("xyz", low, high, strict=True))


def _triples(values: ArrayLike, name: str) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim not in (1, 2) or array.shape[-1] != 3:
        raise ValueError(f"{name} of shape {array.shape}: give (n, 3) or (3,)")
    return array


def _reversed_shape(shape_xyz: Sequence[int]) -> tuple[int, int, int]:
    x, y, z = _checked_shape(shape_xyz)
    return z, y, x


def _checked_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    sizes = np.asarray(shape)
    if sizes.shape != (3,) or sizes.dtype.kind not in "iu" or np.any(sizes < 1):
        raise ValueError(f"shape {_shown(shape)}: give three positive whole numbers")
    a, b, c = sizes.tolist()
    return a, b, c


def _checked_affine(values: ArrayLike) -> NDArray[np.float64]:
    affine = np.array(values, dtype=np.float64)
    if affine.shape != (4, 4):
        raise ValueError(f"affine of shape {affine.shape}: give a 4 x 4 matrix")
    if not np.all(np.isfinite(affine)):
        raise ValueError(f"affine {_shown(affine)} has entries that are not finite: the header is damaged")
    if not np.array_equal(affine[3], [0, 0, 0, 1]):
        raise ValueError(f"affine whose last row is {_shown(affine[3])}: it must be [0, 0, 0, 1]")
    with np.errstate(over="ignore"):
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.all((spacing > 0) & np.isfinite(spacing)):
        raise ValueError(f"spacing {_shown(spacing)} mm (z, y, x): it must be above 0 on every axis")
    if abs(np.linalg.det(affine[:3, :3] / spacing)) < _FLAT:
        raise ValueError(f"affine {_shown(affine)} is singular: its three axes must span space")
    affine.flags.writeable = False
    return affine


def _shown(values: object) -> str:
    """Return the value on one line, for an error."""
    return str(values.tolist() if isinstance(values, np.ndarray) else values)
