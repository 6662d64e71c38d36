"""What is put into a lung: nodules in the shapes of real ones, and what is mistaken for them.

Nodules come from a bank of 1,184 shapes which radiologists outlined in LIDC-IDRI (see ``resources/README.md``), each
turned and mirrored at random; their look follows the radiologists' ratings. All drawing here is additive and local:
a share of each voxel that the lesion fills, times what it lacks to the lesion's HU, so that brighter vessels stay and
a real CT keeps its own noise.

Positions and sizes are mm in (z, y, x) from the volume's corner, as in ``luna16_monai.phantom.anatomy``.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

Floats = NDArray[np.floating]

Box = tuple[slice, slice, slice]
Kind = Literal["ground-glass", "part-solid", "calcified", "solid"]
BANK_SPACING_MM = 0.8
_EVERY_READER = 15


@dataclass(frozen=True)
class ShapeBank:
    """Shapes of real nodules: soft masks of 0.8 mm voxels, 0 to 1 by the share of readers who included the voxel.

    Attributes:
        masks: one uint8 (z, y, x) array a shape, 0 to 15.
        diameter_mm: of the sphere of equal volume, (n,).
        slice_spacing_mm: of the scan that the shape was outlined on, (n,).
        calcification, margin, texture, malignancy: mean ratings of the readers, (n,). Calcification 6 is none,
            margin 5 sharp, texture 1 ground glass and 5 solid, malignancy 5 highly suspicious.
        patient: LIDC-IDRI's patient, (n,).
    """

    masks: tuple[NDArray[np.uint8], ...]
    diameter_mm: Floats
    slice_spacing_mm: Floats
    calcification: Floats
    margin: Floats
    texture: Floats
    malignancy: Floats
    patient: NDArray[np.str_]

    def occupancy(self, shape: int) -> Floats:
        """Return one shape as float32 (z, y, x), its contour steps smoothed away, its volume kept."""
        mask = np.pad(self.masks[shape].astype(np.float32) / _EVERY_READER, 2)
        along_z = float(np.clip(0.35 * self.slice_spacing_mm[shape] / BANK_SPACING_MM, 0.3, 1.2))
        smooth = ndimage.gaussian_filter(mask, (along_z, 0.5, 0.5))
        return smooth * (mask.sum() / smooth.sum())


@cache
def load_shape_bank() -> ShapeBank:
    """Read the bank of shapes that is shipped with the package."""
    packed = files("luna16_monai").joinpath("resources", "nodule_shapes.npz").read_bytes()
    with np.load(io.BytesIO(packed)) as bank:
        shapes = bank["shape"].astype(int)
        ends = np.cumsum(shapes.prod(1))
        masks = [m.reshape(s) for m, s in zip(np.split(bank["vox"], ends[:-1]), shapes, strict=True)]
        ratings = {name: bank[name] for name in ("calcification", "margin", "texture", "malignancy")}
        return ShapeBank(tuple(masks), bank["diam"], bank["dz"], **ratings, patient=bank["patient"])


@dataclass(frozen=True)
class Look:
    """How a nodule appears: its kind, the HU of its body, the HU of its core (None: no core), its edge's steepness."""

    kind: Kind
    body_hu: float
    core_hu: float | None
    steepness: float


def choose_look(rng: np.random.Generator, bank: ShapeBank, shape: int, softness: float = 1.0) -> Look:
    """Draw a look that fits the readers' ratings of a shape; ``softness`` is a factor on the width of its edge."""
    steepness = (1.2 + 0.35 * float(bank.margin[shape])) / softness
    solid_hu = rng.normal(5, 35) if rng.random() < 0.75 else rng.uniform(-120, 0)
    if bank.texture[shape] < 2.5:
        return Look("ground-glass", rng.uniform(-680, -430), None, steepness)
    if bank.texture[shape] < 4.2:
        return Look("part-solid", rng.uniform(-600, -350), rng.normal(-20, 40), steepness)
    if bank.calcification[shape] < 5.2 and bank.diameter_mm[shape] < 11:
        return Look("calcified", solid_hu, solid_hu + rng.uniform(150, 600), steepness)
    return Look("solid", solid_hu, None, steepness)


def random_turn(rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a random rotation, in half of the cases with a reflection, (3, 3)."""
    matrix = Rotation.from_quat(rng.standard_normal(4)).as_matrix()
    return matrix * [1, 1, rng.choice([-1, 1])]


def share_of_voxels(
    middle_zyx: Floats,
    reach_mm: float,
    shape_zyx: tuple[int, ...],
    spacing_zyx: Floats,
    share: Callable[[Floats], Floats],
) -> tuple[Box, Floats]:
    """Evaluate a lesion's share on the voxels of a volume around it.

    Args:
        middle_zyx: where the lesion's origin lies, mm.
        reach_mm: beyond this distance the share is 0.
        shape_zyx, spacing_zyx: of the volume.
        share: takes offsets from the middle (n, 3) in mm, returns n shares from 0 to 1.

    Returns:
        The box of the volume, empty where the lesion lies outside, and the float32 shares in it.
    """
    low = np.clip(np.floor((middle_zyx - reach_mm) / spacing_zyx), 0, shape_zyx).astype(int)
    high = np.clip(np.ceil((middle_zyx + reach_mm) / spacing_zyx) + 1, low, shape_zyx).astype(int)
    axes = [(np.arange(a, b) + 0.5) * s - m for a, b, s, m in zip(low, high, spacing_zyx, middle_zyx, strict=True)]
    offsets = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    z, y, x = (slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))
    return (z, y, x), share(offsets.reshape(-1, 3)).reshape(offsets.shape[:3]).astype(np.float32)


def nodule_share(
    bank: ShapeBank,
    shape: int,
    look: Look,
    turn: Floats,
    middle_zyx: Floats,
    shape_zyx: tuple[int, ...],
    spacing_zyx: Floats,
    scale: float = 1.0,
) -> tuple[Box, Floats]:
    """Return the share of each voxel that a nodule around ``middle_zyx`` (mm) fills; see `share_of_voxels`.

    With another ``scale`` than 1 it is that many times as large as its shape.
    """
    occupancy = bank.occupancy(shape)
    centre = np.array(ndimage.center_of_mass(occupancy))
    step_mm = BANK_SPACING_MM * scale

    def share(offsets: Floats) -> Floats:
        index = offsets @ turn.T / step_mm + centre
        values = ndimage.map_coordinates(occupancy, index.T, order=1)
        return np.clip((values - 0.5) * look.steepness + 0.5, 0, 1)

    corner = np.maximum(centre, np.array(occupancy.shape) - centre)
    reach = float(np.linalg.norm(corner)) * step_mm
    box, values = share_of_voxels(middle_zyx, reach, shape_zyx, spacing_zyx, share)
    # below half a reader's vote a low steepness would leave a veil over the whole box
    floor = np.clip(0.5 - 0.5 * look.steepness, 0, 1)
    return box, values if floor == 0 else np.where(values > floor, values, 0)


def nodule_increment(rng: np.random.Generator, look: Look, share: Floats, around_hu: Floats) -> Floats:
    """Return what to add to an image, HU, so that a nodule fills ``share`` of its voxels.

    Args:
        share: from `nodule_share`, (z, y, x).
        around_hu: the image in the same box, or a smooth estimate of it where the image is noisy.

    Returns:
        float32 (z, y, x), never negative: what is brighter than the nodule stays.
    """
    target = look.body_hu + 45 * ndimage.gaussian_filter(rng.standard_normal(share.shape), 1.0)
    if look.core_hu is not None:
        deep = ndimage.gaussian_filter((share > 0.9).astype(np.float32), 1.0)
        target += np.clip((deep - 0.75) * 4, 0, 1) * (look.core_hu - look.body_hu)
    return (share * np.maximum(target - around_hu, 0)).astype(np.float32)


def ellipsoid_share(
    half_axes_mm: Floats,
    turn: Floats,
    edge_mm: float,
    middle_zyx: Floats,
    shape_zyx: tuple[int, ...],
    spacing_zyx: Floats,
) -> tuple[Box, Floats]:
    """Return the share of each voxel that an ellipsoid fills; rows of ``turn`` are directions of its half axes."""

    def share(offsets: Floats) -> Floats:
        radius = np.sqrt((((offsets @ turn.T) / half_axes_mm) ** 2).sum(1))
        return np.clip((1 - radius) * half_axes_mm.min() / edge_mm + 0.5, 0, 1)

    return share_of_voxels(middle_zyx, float(half_axes_mm.max()) + 2, shape_zyx, spacing_zyx, share)


def tube_share(
    line_mm: Floats,
    radius_mm: Floats,
    edge_mm: float,
    middle_zyx: Floats,
    shape_zyx: tuple[int, ...],
    spacing_zyx: Floats,
) -> tuple[Box, Floats]:
    """Return the share of each voxel that a tube fills: samples of its line (n, 3) from the middle, radii (n,)."""

    def share(offsets: Floats) -> Floats:
        gap = np.linalg.norm(offsets[:, None] - line_mm, axis=2)
        return np.clip((radius_mm - gap).max(1) / edge_mm + 0.5, 0, 1)

    reach = float(np.linalg.norm(line_mm, axis=1).max() + radius_mm.max()) + 1
    return share_of_voxels(middle_zyx, reach, shape_zyx, spacing_zyx, share)
