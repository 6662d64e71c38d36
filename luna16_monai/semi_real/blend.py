"""Put a real nodule into another CT: blur, size of voxels, level and noise as the CT's, with a soft edge.

The nodule keeps its own voxels inside the readers' outlines and its own margin around them; over 3 mm outside of them
the image passes into the CT's. What is brighter in the CT, a vessel or the wall, stays where the nodule's box shows
lung. Structure and noise are put together apart from each other: the structure is the nodule's, brought to the blur of
the CT and with its lung as dark as the CT's; of the noise, the nodule's own is kept as far as it is not stronger than
the CT's, and the CT's own fills up the rest.

A nodule is mirrored, and turned about the body's long axis alone: slices are thicker than pixels are wide, so that
another turn would show blur and steps where a scanner gives none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from luna16_monai.phantom.background import Background
from luna16_monai.phantom.estimates import estimate_blur, split_noise
from luna16_monai.phantom.lesions import Box
from luna16_monai.semi_real.bank import RealNodule
from luna16_monai.semi_real.contact import Contact, distance_outside, find_contact

Floats = NDArray[np.floating]

REACH_MM = 3.0
"""Distance outside the outlines at which the image is the CT's alone."""
_FULL_MM = 0.5
"""Up to here it is the nodule's alone."""
_RING_MM = (1.5, 6.0)
_LUNG_HU, _BRIGHT_HU = -700, -400
_TISSUE_HU = 40
_LUNG_ALONE_HU = -500
_USUAL_LUNG_HU = -850.0
_WALL_MM, _WALL_RISE_HU = 3.0, 250
_SHARPEST = 0.9
"""Largest deviation of blur that is taken away, in voxels of the nodule's box."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A nodule ready to be put into CTs of one blur.

    Attributes:
        nodule: as in the bank.
        contact: what it touches in its own CT.
        structure, noise: its voxels with the CT's blur, HU, float32 (z, y, x) of its box.
        distance_mm: from the outlines, below 0 inside.
        middle: of the readers' shares, a fractional voxel.
        lung_hu: level of the lung around it.
        noise_hu: usual deviation of its noise.
    """

    nodule: RealNodule
    contact: Contact
    structure: Floats
    noise: Floats
    distance_mm: Floats
    middle: Floats
    lung_hu: float
    noise_hu: float

    @property
    def reach_mm(self) -> float:
        """Beyond this distance from the middle the nodule changes nothing."""
        at = np.argwhere(self.distance_mm < REACH_MM) - self.middle
        return float(np.linalg.norm(at * self.nodule.spacing_zyx, axis=1).max())


def prepare_nodule(nodule: RealNodule, blur_zyx_mm: Floats) -> Prepared:
    """Bring a nodule to the blur of a CT (standard deviation along z, y, x in mm), in its own voxels."""
    spacing, own = nodule.spacing_zyx, own_blur(nodule)
    image = nodule.hu.astype(np.float32)
    wanted = np.array([blur_zyx_mm[0], *[np.mean(blur_zyx_mm[1:])] * 2])
    more = wanted**2 - np.array([own[0], *[np.mean(own[1:])] * 2]) ** 2
    image = ndimage.gaussian_filter(image, np.sqrt(np.maximum(more, 0)) / spacing, truncate=3, mode="nearest")
    if (more < 0).any():
        # to the second order in the deviation, the inverse of a Gaussian blur
        less = np.minimum(np.sqrt(np.maximum(-more, 0)) / spacing, _SHARPEST)
        image = 2 * image - ndimage.gaussian_filter(image, less, truncate=3, mode="nearest")
    structure, noise = split_noise(image, spacing)
    distance = distance_outside(nodule)
    middle = np.array(ndimage.center_of_mass(nodule.share))
    return Prepared(
        nodule,
        find_contact(nodule),
        structure,
        noise,
        distance,
        middle,
        lung_level(structure, distance),
        usual(noise),
    )


def own_blur(nodule: RealNodule) -> Floats:
    """Return the standard deviation of the blur of a nodule's own CT along (z, y, x), mm: as the bank says, or measured
    on the edges in its box.
    """
    if np.isfinite(nodule.blur_zyx_mm).all():
        return nodule.blur_zyx_mm
    return estimate_blur(nodule.hu, nodule.hu < _BRIGHT_HU, nodule.spacing_zyx)


def lung_level(structure: Floats, distance_mm: Floats) -> float:
    """Return the median HU of the lung in a ring around a nodule; a usual level where there is none."""
    ring = (distance_mm > _RING_MM[0]) & (distance_mm < _RING_MM[1]) & (structure < _LUNG_ALONE_HU)
    return float(np.median(structure[ring])) if ring.sum() >= 30 else _USUAL_LUNG_HU


def usual(noise: Floats) -> float:
    """Return the standard deviation of noise, were it not for outliers."""
    return float(1.4826 * np.median(np.abs(noise)))


def random_turn(rng: np.random.Generator, contact: Contact, outward: Floats) -> Floats:
    """Return how a nodule is turned and mirrored, (3, 3): offsets (z, y, x) in the CT to offsets in its box.

    Args:
        rng: source of chance.
        contact: of the nodule; one at the wall is turned so that its wall's side looks ``outward``.
        outward: unit vector (z, y, x) to the wall in the CT; zeros for a nodule that touches none.
    """
    mirror = np.diag([rng.choice([-1.0, 1.0]), 1.0, rng.choice([-1.0, 1.0])])
    angle = rng.uniform(0, 2 * np.pi)
    if outward.any() and contact.outward.any():
        mirror[0, 0] = 1.0 if contact.outward[0] * outward[0] >= 0 else -1.0
        mine, theirs = mirror @ contact.outward, outward
        angle = float(np.arctan2(mine[2], mine[1]) - np.arctan2(theirs[2], theirs[1]))
    cos, sin = np.cos(angle), np.sin(angle)
    # (y, x) of the CT turned by the angle lie as in the mirrored box
    return np.asarray(mirror @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]))


def blend(hu: NDArray[np.int16], scene: Background, one: Prepared, position_zyx: Floats, turn: Floats) -> Box:
    """Put a nodule into ``hu`` in place.

    Args:
        hu: (z, y, x) of the scene.
        scene: the CT.
        one: the nodule, prepared for the scene's blur.
        position_zyx: where its middle comes to lie, mm from the volume's corner.
        turn: see `random_turn`.

    Returns:
        The box that was changed.
    """
    spacing, box = scene.spacing_zyx, _box_around(position_zyx, one.reach_mm, scene)
    index = index_in_box(scene, one, position_zyx, turn, box)
    structure = ndimage.map_coordinates(one.structure, index, order=3, mode="nearest")
    own_noise = ndimage.map_coordinates(one.noise, index, order=1, mode="nearest")
    distance = ndimage.map_coordinates(one.distance_mm, index, order=1, mode="nearest")
    share = ndimage.map_coordinates(one.nodule.share, index, order=1)
    inside_box = ((index >= -0.5) & (np.array(one.structure.shape) - 0.5 >= index.T).T).all(0)

    ramp = np.clip((REACH_MM - distance) / (REACH_MM - _FULL_MM), 0, 1)
    weight = np.maximum(share, ramp * ramp * (3 - 2 * ramp)) * inside_box
    base, noise = split_noise(hu[box], spacing)
    structure = _to_level(structure, one.lung_hu, lung_level(base, distance))
    change = weight * (structure - base)
    # a vessel is darkened by the nodule alone, and not by the lung around it; the wall, bright over some mm, by neither
    mean = ndimage.gaussian_filter(base, _WALL_MM / spacing, mode="nearest")
    in_lung = 1 - np.clip((mean - _LUNG_HU) / _WALL_RISE_HU, 0, 1)
    spared = np.clip((base - _LUNG_HU) / (_BRIGHT_HU - _LUNG_HU), 0, 1) * (1 - share * in_lung)
    change = np.where(change < 0, change * (1 - spared), change)

    noise_hu = max(usual(noise), 1e-3)
    kept = weight * min(1.0, noise_hu / max(one.noise_hu, 1e-3))
    rest = np.sqrt(np.clip(1 - (kept * one.noise_hu / noise_hu) ** 2, 0, 1))
    noisy = kept * own_noise + rest * noise * (1 + scene.noise_growth * np.maximum(change, 0))
    new = np.where(weight > 0, np.rint(base + change + noisy), hu[box])
    hu[box] = np.clip(new, -32768, 3071).astype(np.int16)
    return box


def index_in_box(scene: Background, one: Prepared, position_zyx: Floats, turn: Floats, box: Box) -> Floats:
    """Return where the voxels of a part of a CT lie in the box of a nodule that is put in: (3, z, y, x), fractional."""
    places = np.stack(np.meshgrid(*[np.arange(s.start, s.stop) for s in box], indexing="ij"), -1)
    offsets = (places + 0.5) * scene.spacing_zyx - position_zyx
    return np.moveaxis(offsets @ turn.T / one.nodule.spacing_zyx + one.middle, -1, 0)


def _box_around(position_zyx: Floats, reach_mm: float, scene: Background) -> Box:
    low = np.clip(np.floor((position_zyx - reach_mm) / scene.spacing_zyx), 0, scene.hu.shape).astype(int)
    high = np.clip(np.ceil((position_zyx + reach_mm) / scene.spacing_zyx) + 1, low, scene.hu.shape).astype(int)
    z, y, x = (slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))
    return z, y, x


def _to_level(structure: Floats, lung_hu: float, wanted_hu: float) -> Floats:
    """Return an image whose lung has another level; tissue keeps its own, and what lies between moves in proportion."""
    factor = (_TISSUE_HU - wanted_hu) / (_TISSUE_HU - lung_hu)
    return np.where(structure < _TISSUE_HU, _TISSUE_HU + (structure - _TISSUE_HU) * factor, structure)
