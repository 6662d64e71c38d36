"""What a real nodule touches in its own CT: nothing, a vessel, or the wall, and on which side."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from luna16_monai.phantom.nodules import Location
from luna16_monai.semi_real.bank import RealNodule

Floats = NDArray[np.floating]

_TISSUE_HU, _VESSEL_HU = -300, -500
_WALL_RADIUS_MM = 3.5
"""Tissue in which no ball of this radius fits is no wall."""
_SHELL_MM = 2.5
_WALL_SHARE, _VESSEL_SHARE = 0.08, 0.04
"""Of the shell around the nodule, at least."""


@dataclass(frozen=True, eq=False)
class Contact:
    """Where a nodule lies in its own CT.

    Attributes:
        location: free in the lung, on a vessel, or at the wall.
        outward: unit vector (z, y, x) from its middle to the wall that it touches; zeros where it touches none.
        depth_mm: distance of its middle from that wall; 0 where it touches none, or reaches into it.
    """

    location: Location
    outward: Floats
    depth_mm: float


def distance_outside(nodule: RealNodule) -> Floats:
    """Return the distance of each voxel from what half of the readers call nodule, mm; below 0 inside."""
    inside = nodule.share >= min(0.5, float(nodule.share.max()))
    beyond = ndimage.distance_transform_edt(~inside, sampling=nodule.spacing_zyx)
    within = ndimage.distance_transform_edt(inside, sampling=nodule.spacing_zyx)
    # the border lies half a voxel off the middles beside it
    return np.where(inside, -within, beyond) + 0.5 * float(nodule.spacing_zyx[1:].mean()) * np.where(inside, 1, -1)


def find_contact(nodule: RealNodule) -> Contact:
    """Return where a nodule lies in its own CT."""
    spacing, distance = nodule.spacing_zyx, distance_outside(nodule)
    smooth = ndimage.gaussian_filter(nodule.hu.astype(np.float32), [0, *(0.7 / spacing[1:])])
    tissue = (smooth > _TISSUE_HU) & (distance > 0)
    # what lies beyond the box is as what lies at its edge: a wall goes on there
    width = np.ceil(_WALL_RADIUS_MM / spacing).astype(int) + 1
    padded = np.pad(tissue, [(n, n) for n in width], mode="edge")
    thick = ndimage.distance_transform_edt(padded, sampling=spacing) > _WALL_RADIUS_MM
    grown = ndimage.distance_transform_edt(~thick, sampling=spacing) < _WALL_RADIUS_MM + 1
    wall = grown[tuple(slice(n, n + size) for n, size in zip(width, tissue.shape, strict=True))] & tissue
    shell = (distance > 0) & (distance <= max(_SHELL_MM, 1.2 * float(spacing.max())))
    at_wall, at_vessel = shell & wall, shell & ~wall & (smooth > _VESSEL_HU)
    if at_wall.sum() >= _WALL_SHARE * shell.sum():
        middle = np.array(ndimage.center_of_mass(nodule.share))
        outward = (np.argwhere(at_wall).mean(0) - middle) * spacing
        to_wall = ndimage.distance_transform_edt(~wall, sampling=spacing)
        depth = float(ndimage.map_coordinates(to_wall, middle[:, None], order=1)[0])
        length = float(np.linalg.norm(outward))
        if length > 0.1 * nodule.diameter_mm:
            return Contact("pleural", outward / length, depth)
        # tissue on all sides, as at the hilum
        return Contact("vascular", np.zeros(3), 0.0)
    if at_vessel.sum() >= _VESSEL_SHARE * shell.sum():
        return Contact("vascular", np.zeros(3), 0.0)
    return Contact("isolated", np.zeros(3), 0.0)
