"""What a synthetic scan holds: nodules, and what is mistaken for them, put into a drawn chest.

Positions and sizes are mm in (z, y, x) from the volume's corner, as in ``luna16_monai.phantom.anatomy``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from luna16_monai.phantom.anatomy import Chest
from luna16_monai.phantom.lesions import ShapeBank, choose_look, nodule_increment, nodule_share, random_turn

Floats = NDArray[np.floating]

Location = Literal["isolated", "vascular", "pleural"]
JITTER_MM = 1.55
"""Largest distance of a candidate from what it marks: below the radius of the smallest nodule, 1.6 mm."""
CLEARANCE_MM = 4.0
SOLID_HU = 5.0
"""What solid nodules are on average."""


@dataclass(frozen=True)
class ScanSettings:
    """What a scan holds.

    Attributes:
        slices: fewest and most slices.
        rows: voxels along y and along x.
        nodules: fewest and most nodules a scan.
        difficulty: from 0, easy, to 2, hard: softer edges, plugs as short as nodules, mimics as bright as nodules, and
            up to 1 candidates farther from what they mark.
        negatives_per_positive: candidates of class 0 for each of class 1; LUNA16 has about 500.
    """

    slices: tuple[int, int] = (80, 112)
    rows: int = 192
    nodules: tuple[int, int] = (6, 8)
    difficulty: float = 1.0
    negatives_per_positive: float = 10.0

    def __post_init__(self) -> None:
        for name, (fewest, most) in {"slices": self.slices, "nodules": self.nodules}.items():
            if not 1 <= fewest <= most:
                raise ValueError(f"{name} {(fewest, most)}: give two whole numbers, 1 or more, the smaller one first")
        if self.slices[0] < 32 or self.rows < 64:
            raise ValueError(f"slices {self.slices}, rows {self.rows}: a chest needs 32 slices and 64 rows at least")
        if not 0 <= self.difficulty <= 2:
            raise ValueError(f"difficulty {self.difficulty}: give a number from 0 (easy) to 2 (hard)")
        ratio = self.negatives_per_positive
        if not (math.isfinite(ratio) and ratio >= 0):
            raise ValueError(f"negatives_per_positive {ratio}: give 0 or more")

    @property
    def likeness(self) -> float:
        """Factor on the width of edges, and divisor of the length of plugs: 1/2 to 2."""
        return 2.0 ** (self.difficulty - 1)

    @property
    def overlap(self) -> float:
        """Share of the negatives, mimics apart, that are chosen to be as bright as the positives: 0 to 1."""
        return min(0.75 * self.difficulty, 1.0)

    @property
    def jitter_mm(self) -> float:
        """Largest distance of a candidate from what it marks: no farther at any difficulty than in a small nodule."""
        return JITTER_MM * min(self.difficulty, 1.0)

    def mimic_hu(self, hu: float) -> float:
        """Return the HU of a mimic, given that at difficulty 1: darker below it, nearer to solid nodules above."""
        return hu - 200 * max(1 - self.difficulty, 0) + 0.6 * max(self.difficulty - 1, 0) * (SOLID_HU - hu)


@dataclass(frozen=True)
class Nodule:
    """One nodule that was put into a scan; ``shape`` is its number in its bank, an unknown rating is None."""

    position_zyx: Floats
    diameter_mm: float
    kind: str
    location: str
    shape: int
    texture: float | None
    malignancy: float | None


def place_nodules(
    rng: np.random.Generator, chest: Chest, bank: ShapeBank, shapes: Sequence[int], count: int, softness: float = 1.0
) -> list[Nodule]:
    """Put nodules into a drawn chest: free in the lung, on vessels, and at the wall.

    Args:
        rng: source of chance.
        chest: its image is changed in place.
        bank: the shapes.
        shapes: the numbers that may be used, each several times if need be.
        count: how many nodules are wanted.
        softness: factor on the width of their edges.

    Raises:
        ValueError: no nodule at all finds a place.
    """
    lung, spacing = chest.lung, chest.lung.spacing_zyx
    placed: list[Nodule] = []
    for _ in range(60 * count):
        if len(placed) == count:
            break
        shape = int(rng.choice(shapes))
        diameter = float(bank.diameter_mm[shape])
        if diameter > 22 and rng.random() < 0.5:
            continue
        position, location = nodule_position(rng, chest, diameter / 2)
        if not has_room(chest, position, diameter / 2, placed):
            continue
        look = choose_look(rng, bank, shape, softness)
        box, share = nodule_share(bank, shape, look, random_turn(rng), position, lung.shape_zyx, spacing)
        chest.image_hu[box] += nodule_increment(rng, look, share, chest.image_hu[box])
        ratings = (round(float(bank.texture[shape]), 4), round(float(bank.malignancy[shape]), 4))
        placed.append(Nodule(position, round(diameter, 6), look.kind, location, shape, *ratings))
    if not placed:
        raise ValueError(f"no nodule finds a place in a volume of {lung.size_mm.round(1).tolist()} mm: enlarge it")
    return placed


def nodule_position(rng: np.random.Generator, chest: Chest, radius_mm: float) -> tuple[Floats, Location]:
    """Return a random place for a nodule, (z, y, x) in mm, and whether it is free, on a vessel or at the wall."""
    lung, fate = chest.lung, rng.random()
    deepest = -float(lung.distance_mm.min())
    radii = chest.vessel_radius_mm
    thick = np.flatnonzero((radii > 1.1) & (radii < 3.5))
    # at the very top of a lung there may be no vessel of that size
    if fate < 0.18 or (fate < 0.72 and not len(thick)):
        return lung.sample(rng, 1, min(radius_mm + 2, 0.7 * deepest))[0], "isolated"
    if fate < 0.72:
        vessel = rng.choice(thick)
        aside = np.cross(chest.vessel_direction_zyx[vessel], rng.standard_normal(3))
        aside *= (radii[vessel] + radius_mm * rng.uniform(0.35, 0.95)) / np.linalg.norm(aside)
        return chest.vessels_zyx[vessel] + aside, "vascular"
    start = lung.sample(rng, 1, 0.5)[0]
    return lung.slide_to_depth(start, radius_mm * rng.uniform(0.45, 0.9)), "pleural"


def has_room(chest: Chest, position_zyx: Floats, radius_mm: float, placed: Sequence[Nodule]) -> bool:
    """Most of the nodule in the lung, inside the field of view, off the volume's faces and off other nodules."""
    if chest.lung.distance_at(position_zyx)[0] > -0.35 * radius_mm:
        return False
    if not in_view(position_zyx, chest.lung.size_mm, 6):
        return False
    return clearance(position_zyx[None], placed)[0] > radius_mm + CLEARANCE_MM


def in_view(points_zyx: Floats, size_mm: Floats, margin_mm: float) -> NDArray[np.bool_]:
    """Return which points (..., 3) lie inside the volume and its round field of view, off their edges by a margin."""
    boxed = ((points_zyx > margin_mm) & (points_zyx < size_mm - margin_mm)).all(-1)
    from_axis = np.linalg.norm((points_zyx - size_mm / 2)[..., 1:], axis=-1)
    return boxed & (from_axis < size_mm[1] / 2 - margin_mm)


def clearance(points_zyx: Floats, nodules: Sequence[Nodule]) -> NDArray[np.float64]:
    """Return the distance of each point (n, 3) to the nearest nodule's surface, mm; infinite without nodules."""
    if not nodules:
        return np.full(len(points_zyx), np.inf)
    centres = np.stack([n.position_zyx for n in nodules])
    radii = np.array([n.diameter_mm / 2 for n in nodules])
    return (np.linalg.norm(points_zyx[:, None] - centres, axis=2) - radii).min(1)
