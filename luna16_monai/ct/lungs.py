"""Find the lungs in a CT, or read a mask of them.

`lung_mask` needs no learned weights: air that is not the open air around the patient, pieces of some size that the body
surrounds, closed over the nodules at the wall, and grown a little. It works on a grid of about 2 mm, which is enough to
say where a nodule may lie. `find_lungs` is the simpler mask that the phantom's backgrounds are made with.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from luna16_monai.ct.opening import SUFFIXES, open_ct
from luna16_monai.geometry.grid import Geometry, extent

Floats = NDArray[np.floating]
Mask = NDArray[np.bool_]

_AIR_HU = -400
_GRID_MM = 2.0
_PADDING_HU = -1500  # scanners fill what lies outside the field of view with -2000 or -3024
_PADDED_HU = -1150
_OPEN_AIR_HU = -950.0  # smoothed; lung is brighter
_TISSUE_HU = -300
_SMALLEST_ML = 15.0
_SMALLEST_SHARE = 0.08  # of the largest piece
_NEAR_OPEN_AIR_MM = 6.0
_CLOSING_MM = 10.0
_GROWTH_MM = 3.0
_ENCLOSED_SIDES = 2.7  # of left, right, front and back, on average over the voxels of a piece of air
_LARGEST_HOLE_MM2 = 1500.0  # a mass of 4 cm; larger ones are the heart between two lungs that touch
_LUNA16_LABELS, _LUNA16_TRACHEA = {0, 3, 4, 5}, 5


@dataclass(frozen=True, eq=False)
class LungMask:
    """Where the lungs are.

    Attributes:
        voxels: (z, y, x) bool, on a grid of its own.
        geometry: where the voxels lie.
    """

    voxels: Mask
    geometry: Geometry

    def contains(self, points_xyz: ArrayLike) -> Mask:
        """Tell for each world point whether its nearest voxel is lung; (n,) for (n, 3) LPS mm.

        The mask's grid may end up to a voxel before the CT's, so up to there the outermost voxels count.
        """
        index = np.floor(self.geometry.voxel_from_world(points_xyz) + 0.5).astype(int)
        last = np.array(self.voxels.shape) - 1
        near = np.all((index >= -1) & (index <= last + 1), axis=-1)
        return np.asarray(near & self.voxels[tuple(np.clip(index, 0, last).T)])

    def box(self, grid: Geometry, margin_mm: float = 0.0) -> tuple[NDArray[np.intp], NDArray[np.intp]] | None:
        """Return the first voxel and the one behind the last of the lungs' box on a grid, (3,) each.

        Args:
            grid: of the CT, whose axes may have any direction.
            margin_mm: by which the box is wider on each side; it ends with the grid.

        Returns:
            None where no voxel of the mask lies on the grid.
        """
        if not self.voxels.any():
            return None
        inside = [np.flatnonzero(self.voxels.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
        sides = [(float(line[0]) - 0.5, float(line[-1]) + 0.5) for line in inside]
        corners = np.stack(np.meshgrid(*sides, indexing="ij"), -1).reshape(-1, 3)
        on_grid = grid.voxel_from_world(self.geometry.world_from_voxel(corners)) + 0.5
        margin = margin_mm / np.array(grid.spacing_zyx)
        low = np.maximum(np.floor(on_grid.min(0) - margin), 0).astype(int)
        high = np.minimum(np.ceil(on_grid.max(0) + margin), grid.shape_zyx).astype(int)
        return (low, high) if (high > low).all() else None


def lung_mask(hu: NDArray[np.int16], geometry: Geometry) -> LungMask:
    """Return the lungs of a CT, with the vessels and nodules in them; empty where there are none.

    The trachea may belong to it. Half chests, parts of a chest and a circular field of view are in order; a table, arms
    and the air between them are no lungs.

    Args:
        hu: (z, y, x) int16.
        geometry: of ``hu``.
    """
    small, factors = _shrink(hu, np.array(geometry.spacing_zyx))
    spacing: Floats = np.array(geometry.spacing_zyx) * factors
    affine = geometry.affine.copy()
    affine[:3, :3] *= factors
    affine[:3, 3] = geometry.world_from_voxel((factors - 1) / 2)
    z, y, x = small.shape
    return LungMask(_lungs(small, spacing), Geometry((z, y, x), affine))


def read_lung_mask(path: Path, ct: Geometry | None, series_uid: str) -> LungMask:
    """Return a lung mask read from a file: every voxel above 0 is lung.

    In the masks that come with LUNA16 (values 0, 3, 4, 5) the trachea, 5, is none.

    Args:
        path: .mhd, .mha, .nii or .nii.gz; or a folder that holds such a file named as the series. Its grid may differ
            from the CT's: points are looked up in the world.
        ct: where the CT's voxels lie; None where it is not known, and not checked.
        series_uid: of the CT.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the mask is empty or lies beside the CT; or as `open_ct`.
    """
    file = path
    if path.is_dir():
        named = [path / f"{series_uid}{suffix}" for suffix in SUFFIXES]
        file = next((one for one in named if one.is_file()), named[0])
    if not file.is_file():
        raise FileNotFoundError(f"no lung mask {file}: give the mask of series {series_uid}, or do without one")
    opened = open_ct(file, allow_symlinks=True)
    values = opened.load()  # a mask is not in HU
    lungs = values > 0
    if values.max() == _LUNA16_TRACHEA and set(np.unique(values).tolist()) <= _LUNA16_LABELS:
        lungs &= values != _LUNA16_TRACHEA
    if not lungs.any():
        raise ValueError(f"lung mask {file.name} is empty: give a mask whose lung voxels are above 0")
    mask = LungMask(lungs, opened.geometry)
    if ct is not None and mask.box(ct) is None:
        raise ValueError(
            f"lung mask {file.name} ({extent(opened.geometry)}) lies beside series {series_uid} ({extent(ct)}): "
            "does it belong to this CT?"
        )
    return mask


def whole_scan(geometry: Geometry) -> LungMask:
    """Return a mask that leaves nothing out."""
    return LungMask(np.ones(geometry.shape_zyx, bool), geometry)


def _lungs(small: Floats, spacing: Floats) -> Mask:
    """Return the lungs on the coarse grid."""
    padding = small < _PADDED_HU
    small = np.maximum(small, -1024)
    air = small < _AIR_HU
    smooth = ndimage.gaussian_filter(small, 2.0 / spacing, truncate=2)
    outside = _open_air(smooth < _OPEN_AIR_HU)
    seeds = air
    if outside.any():
        # the skin's edge and blankets are air beside open air
        seeds = air & ~grown(outside, spacing, _NEAR_OPEN_AIR_MM)
    parts, count = ndimage.label(ndimage.binary_opening(seeds))
    if not count:
        return np.zeros_like(air)
    sizes = np.bincount(parts.ravel(), minlength=count + 1) * spacing.prod() / 1000
    sizes[0] = 0
    numbers = np.arange(count + 1)
    keep = (sizes > _SMALLEST_ML) & (ndimage.mean(smooth, parts, numbers) > _OPEN_AIR_HU)
    if (outside & ~padding).sum() > 0.01 * (~padding).sum():
        # Open air is in view, so the body is seen whole: air between back and table, or in a mattress, has no tissue on
        # some side. Without open air the lungs may be cut by the border of the field of view.
        keep &= ndimage.mean(_enclosed_sides(small, spacing), parts, numbers) > _ENCLOSED_SIDES
    keep &= sizes > _SMALLEST_SHARE * np.max(sizes * keep)
    lungs = keep[parts]
    if not lungs.any():
        return lungs
    lungs = ndimage.binary_dilation(lungs, iterations=2) & air & ~outside
    lungs = _fill_holes(_close(_fill_holes(lungs, spacing), spacing, _CLOSING_MM), spacing)
    # a nodule's middle may lie in the wall
    return grown(lungs, spacing, _GROWTH_MM)


def _shrink(hu: NDArray[np.int16], spacing: Floats) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Return block means on a grid of about 2 mm, and the voxels that each takes along (z, y, x)."""
    factors = np.minimum(np.maximum(1, np.rint(_GRID_MM / spacing).astype(int)), hu.shape)
    fz, fy, fx = factors.tolist()
    z, y, x = (np.array(hu.shape) // factors * factors).tolist()
    small = np.zeros((z // fz, y // fy, x // fx), np.float32)
    # slab by slab, so that no copy of the whole volume is made; sums by strides are faster than a reshape
    for number in range(len(small)):
        slab = np.maximum(hu[number * fz : (number + 1) * fz, :y, :x], _PADDING_HU)
        rows: NDArray[np.int32] = slab[:, :, ::fx].astype(np.int32)
        for k in range(1, fx):
            rows += slab[:, :, k::fx]
        block = rows[:, ::fy].copy()
        for k in range(1, fy):
            block += rows[:, k::fy]
        small[number] = block.sum(0)
    small /= np.float32(factors.prod())
    return small, factors.astype(np.intp)


def _open_air(dark: Mask) -> Mask:
    """Return what is dark and connected to a side; not to the first or last slice, where lungs may end too."""
    parts, count = ndimage.label(dark)
    at_side = np.zeros(count + 1, bool)
    for side in (parts[:, 0], parts[:, -1], parts[:, :, 0], parts[:, :, -1]):
        at_side[side] = True
    at_side[0] = False
    return at_side[parts]


def _enclosed_sides(small: Floats, spacing: Floats) -> NDArray[np.int8]:
    """Return how many of its four in-plane directions meet the body, for each voxel."""
    plane = np.zeros((3, 3, 3), bool)
    plane[1] = True
    # tissue of less than 8 mm, such as a table's shell, is no body
    tissue = ndimage.binary_opening(small > _TISSUE_HU, plane, iterations=max(1, round(4.0 / spacing[1])))
    parts, count = ndimage.label(tissue)
    met = np.zeros(small.shape, np.int8)
    if not count:
        return met
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    body = parts == sizes.argmax()
    for axis in (1, 2):
        met += np.maximum.accumulate(body, axis)
        met += np.flip(np.maximum.accumulate(np.flip(body, axis), axis), axis)
    return met


def _fill_holes(mask: Mask, spacing: Floats) -> Mask:
    """Fill the holes of each slice, up to a size."""
    in_plane = np.zeros((3, 3, 3), bool)
    in_plane[1] = ndimage.generate_binary_structure(2, 1)
    holes, count = ndimage.label(~mask, in_plane)
    small = np.bincount(holes.ravel(), minlength=count + 1) * spacing[1] * spacing[2] < _LARGEST_HOLE_MM2
    small[0] = False
    for side in (holes[:, 0], holes[:, -1], holes[:, :, 0], holes[:, :, -1]):
        small[side] = False
    return mask | small[holes]


def _close(mask: Mask, spacing: Floats, mm: float) -> Mask:
    """Close a mask with a ball; the border is no background."""
    pad = np.ceil(mm / spacing).astype(int) + 1
    box: Any = ndimage.find_objects(mask.view(np.uint8))[0]
    near = grown(np.pad(mask[box], [(p, p) for p in pad]), spacing, mm)
    open_within = grown(~near, spacing, mm)
    closed = mask.copy()
    closed[box] |= ~open_within[tuple(slice(p, n - p) for p, n in zip(pad, near.shape, strict=True))]
    return closed


def grown(mask: Mask, spacing: Floats, mm: float) -> Mask:
    """Return the voxels that lie less than ``mm`` from a mask's.

    Squared distances, shifted along one axis after the other: over some millimetres a quarter of the time of
    scipy's distance transform, which finds them over the whole volume.
    """
    squared = np.where(mask, np.float32(0), np.float32(np.inf))
    for axis, side in enumerate(spacing.tolist()):
        nearest = squared.copy()
        to, source = nearest.swapaxes(0, axis), squared.swapaxes(0, axis)
        for step in range(1, min(int(np.ceil(mm / side)), len(to))):
            cost = np.float32((step * side) ** 2)
            np.minimum(to[step:], source[:-step] + cost, out=to[step:])
            np.minimum(to[:-step], source[step:] + cost, out=to[:-step])
        squared = nearest
    return squared < np.float32(mm**2)


def find_lungs(hu: Floats, spacing_zyx: Floats) -> NDArray[np.bool_]:
    """Mask the lungs of a CT: air that the body encloses, with the vessels in it.

    Args:
        hu: (z, y, x).
        spacing_zyx: mm.

    Returns:
        (z, y, x) mask; empty where the body encloses no air. The trachea belongs to it.
    """
    parts, count = ndimage.label(hu < _AIR_HU)
    outside = np.unique(np.concatenate([parts[:, [0, -1]].ravel(), parts[:, :, [0, -1]].ravel()]))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    sizes[outside] = sizes[0] = 0
    return _with_vessels(np.isin(parts, np.flatnonzero((sizes > 0) & (sizes >= 0.2 * sizes.max()))), spacing_zyx)


def find_cut_lungs(hu: Floats, spacing_zyx: Floats, mask: LungMask, grid: Geometry) -> NDArray[np.bool_]:
    """Mask the lungs of a CT that the border of its field of view cuts, where `find_lungs` finds none.

    Args:
        hu: (z, y, x).
        spacing_zyx: mm.
        mask: of the lungs, see `lung_mask`; coarse, and wider than they are.
        grid: of ``hu``.

    Returns:
        (z, y, x) mask.
    """
    lungs = np.empty(hu.shape, bool)
    rows = np.stack(np.meshgrid(*map(np.arange, hu.shape[1:]), indexing="ij"), -1).reshape(-1, 2)
    for z in range(len(hu)):
        points = grid.world_from_voxel(np.c_[np.full(len(rows), z), rows])
        lungs[z] = mask.contains(points).reshape(hu.shape[1:])
    return _with_vessels(lungs & (hu < _AIR_HU), spacing_zyx)


def _with_vessels(lungs: Mask, spacing_zyx: Floats) -> Mask:
    """Return air of the lungs with the vessels in it."""
    # close over vessels of up to 8 mm, which reach the mask's edge and are no holes
    beyond = ndimage.distance_transform_edt(~np.pad(lungs, 4), sampling=spacing_zyx)
    closed = ndimage.distance_transform_edt(beyond < 4, sampling=spacing_zyx) >= 4
    lungs |= closed[4:-4, 4:-4, 4:-4]
    return np.stack([ndimage.binary_fill_holes(section) for section in lungs])
