"""LIDC-IDRI's readers' outlines into LUNA16's nodules: which are one nodule, where it lies, how large it is.

LUNA16's rule (Setio et al. 2017): a nodule is what three readers of four, or all, outlined; what one or two outlined,
and what readers marked as a small nodule (below 3 mm) or as no nodule, counts neither way.

A reader's outlines are closed lines of pixels around the nodule, so what belongs to it lies strictly inside them; the
place is its centre of mass, the diameter that of the sphere with its volume. Readings are of one nodule where their
places are closer than the sum of their radii. They are merged one by one, from the last in the file to the first, each
time half way between what there was and what is added: so the first reader weighs half, and not a fourth. That is no
rule to be recommended, but the one that gives LUNA16's own rows, to the last digits (see ``tools/lidc_check.py``).

A pixel is (column, row), counted from 0, as in the readers' XML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from luna16_monai.tables.lidc import LUNA16_READERS

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.integer[Any]]


@dataclass(frozen=True, eq=False)
class Outline:
    """One closed line in one slice.

    Attributes:
        slice_index: of the slice, from the feet on.
        pixels: (n, 2) as (column, row).
        included: what it encloses belongs to the nodule; False: it is a hole.
    """

    slice_index: int
    pixels: IntArray
    included: bool = True


@dataclass(frozen=True, eq=False)
class Reading:
    """One nodule as one reader outlined it.

    Attributes:
        outlines: at least one that is included.
        ratings: by name, 1 to 5 or 6: ``malignancy``, ``subtlety``, ...
        reader: which.
    """

    outlines: Sequence[Outline]
    ratings: Mapping[str, int] = field(default_factory=dict)
    reader: int = 0

    def corners(self) -> tuple[IntArray, IntArray]:
        """Return the least and the greatest (z, y, x) of the included outlines."""
        points = np.concatenate(
            [np.c_[np.full(len(o.pixels), o.slice_index), o.pixels[:, ::-1]] for o in self.outlines if o.included]
        )
        return points.min(axis=0), points.max(axis=0)

    def mask(self) -> tuple[NDArray[np.bool_], IntArray]:
        """Return what lies strictly inside the outlines, (z, y, x) in their box, and the box's first voxel.

        An outline that encloses nothing counts as one voxel, its middle.
        """
        low, high = self.corners()
        inside = np.zeros(high - low + 1, bool)
        for outline in sorted(self.outlines, key=lambda one: not one.included):
            pixels = outline.pixels[:, ::-1] - low[1:]
            plane = outline.slice_index - low[0]
            if not outline.included:
                # a hole may lie outside of what is included; it then excludes nothing
                if 0 <= plane < len(inside):
                    inside[plane] &= ~_enclosed_within(pixels, inside.shape[1:])
                continue
            filled = _enclosed(pixels, inside.shape[1:])
            if filled.any():
                inside[plane] |= filled
            else:
                inside[plane][tuple(np.rint(pixels.mean(axis=0)).astype(int))] = True
        return inside, low


@dataclass(frozen=True, eq=False)
class Nodule:
    """What one or several readers outlined.

    Attributes:
        readings: one a reader, as a rule, in the order of the file.
        index_zyx: its place, a fractional voxel.
        diameter_mm: of the sphere of the same volume.
    """

    readings: Sequence[Reading]
    index_zyx: FloatArray
    diameter_mm: float

    @property
    def is_luna16(self) -> bool:
        """Whether enough readers outlined it for LUNA16's list of nodules."""
        return len(self.readings) >= LUNA16_READERS

    def ratings(self, name: str = "malignancy") -> tuple[int, ...]:
        """Return the readers' ratings, sorted; of those that gave one."""
        return tuple(sorted(reading.ratings[name] for reading in self.readings if name in reading.ratings))


def nodules_of(readings: Sequence[Reading], spacing_zyx: Sequence[float]) -> list[Nodule]:
    """Return the nodules of one scan, those of the most readers first.

    Args:
        readings: of all readers, in the order of the file.
        spacing_zyx: of the voxels, mm.
    """
    spacing = np.asarray(spacing_zyx, np.float64)
    found: list[Nodule] = []
    for reading in reversed(readings):
        mask, corner = reading.mask()
        diameter = float(np.cbrt(6 * mask.sum() * spacing.prod() / np.pi))
        one = Nodule([reading], np.argwhere(mask).mean(axis=0) + corner, diameter)
        apart = [float(np.linalg.norm((one.index_zyx - other.index_zyx) * spacing)) for other in found]
        near = [k for k, other in enumerate(found) if apart[k] < (one.diameter_mm + other.diameter_mm) / 2]
        if near:
            nearest = min(near, key=apart.__getitem__)
            found[nearest] = _merged(one, found[nearest])
        else:
            found.append(one)
    return sorted(found, key=lambda nodule: -len(nodule.readings))


def _merged(one: Nodule, other: Nodule) -> Nodule:
    """Return two nodules that are one: half way between them."""
    return Nodule(
        [*one.readings, *other.readings],
        (one.index_zyx + other.index_zyx) / 2,
        (one.diameter_mm + other.diameter_mm) / 2,
    )


def consensus(nodule: Nodule, shape_zyx: Sequence[int]) -> tuple[tuple[slice, ...], NDArray[np.bool_]]:
    """Return the voxels that at least half of a nodule's readers included.

    Args:
        nodule: of a scan.
        shape_zyx: the scan's.

    Returns:
        The box in the scan, and the mask in it.
    """
    masks = [reading.mask() for reading in nodule.readings]
    low = np.min([corner for _, corner in masks], axis=0)
    high = np.max([corner + mask.shape for mask, corner in masks], axis=0)
    share = np.zeros(high - low)
    for mask, corner in masks:
        share[tuple(slice(a, a + n) for a, n in zip(corner - low, mask.shape, strict=True))] += mask / len(masks)
    first, last = np.maximum(low, 0), np.minimum(high, shape_zyx)
    box = tuple(slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
    return box, share[tuple(slice(int(a), int(b)) for a, b in zip(first - low, last - low, strict=True))] >= 0.5


def _enclosed(pixels: IntArray, shape_yx: Sequence[int]) -> NDArray[np.bool_]:
    """Return what lies strictly inside a closed line of pixels (row, column)."""
    line = np.zeros(shape_yx, bool)
    for start, end in zip(pixels, np.roll(pixels, -1, axis=0), strict=True):
        steps = int(np.abs(end - start).max()) + 1
        line[tuple(np.rint(np.linspace(start, end, steps)).astype(int).T)] = True
    return ndimage.binary_fill_holes(line) & ~line


def _enclosed_within(pixels: IntArray, shape_yx: Sequence[int]) -> NDArray[np.bool_]:
    """Return the same of a line that may leave the plane."""
    low, high = np.minimum(pixels.min(axis=0), 0), np.maximum(pixels.max(axis=0) + 1, shape_yx)
    filled = _enclosed(pixels - low, high - low)
    rows, columns = (slice(int(-a), int(-a) + n) for a, n in zip(low, shape_yx, strict=True))
    return filled[rows, columns]
