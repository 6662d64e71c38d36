"""What a synthetic scan holds: nodules, and what is mistaken for them, put into a drawn chest.

Positions and sizes are mm in (z, y, x) from the volume's corner, as in ``luna16_monai.anatomy``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from luna16_monai.anatomy import Chest
from luna16_monai.lesions import (
    ShapeBank,
    choose_look,
    ellipsoid_share,
    load_shape_bank,
    nodule_increment,
    nodule_share,
    random_turn,
    tube_share,
)

Floats = NDArray[np.floating]
Location = Literal["isolated", "vascular", "pleural"]

JITTER_MM = 1.55
"""Largest distance of a candidate from what it marks: below the radius of the smallest nodule, 1.6 mm."""
CLEARANCE_MM = 4.0
LARGEST_PLUG_MM = 14.0
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
        """Brightness of a mimic, given that at difficulty 1: darker below it, nearer to solid nodules above."""
        return hu - 200 * max(1 - self.difficulty, 0) + 0.6 * max(self.difficulty - 1, 0) * (SOLID_HU - hu)


@dataclass(frozen=True)
class Nodule:
    """One nodule that was put into a scan; ``shape`` is its number in the bank of shapes."""

    position_zyx: Floats
    diameter_mm: float
    kind: str
    location: str
    shape: int
    texture: float
    malignancy: float


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
        position, location = _nodule_position(rng, chest, diameter / 2)
        if not _has_room(chest, position, diameter / 2, placed):
            continue
        look = choose_look(rng, bank, shape, softness)
        box, share = nodule_share(bank, shape, look, random_turn(rng), position, lung.shape_zyx, spacing)
        chest.image_hu[box] += nodule_increment(rng, look, share, chest.image_hu[box])
        ratings = (round(float(bank.texture[shape]), 4), round(float(bank.malignancy[shape]), 4))
        placed.append(Nodule(position, round(diameter, 6), look.kind, location, shape, *ratings))
    if not placed:
        raise ValueError(f"no nodule finds a place in a volume of {lung.size_mm.round(1).tolist()} mm: enlarge it")
    return placed


def _nodule_position(rng: np.random.Generator, chest: Chest, radius_mm: float) -> tuple[Floats, Location]:
    lung, fate = chest.lung, rng.random()
    deepest = -float(lung.distance_mm.min())
    if fate < 0.18:
        return lung.sample(rng, 1, min(radius_mm + 2, 0.7 * deepest))[0], "isolated"
    if fate < 0.72:
        radii = chest.vessel_radius_mm
        vessel = rng.choice(np.flatnonzero((radii > 1.1) & (radii < 3.5)))
        aside = np.cross(chest.vessel_direction_zyx[vessel], rng.standard_normal(3))
        aside *= (radii[vessel] + radius_mm * rng.uniform(0.35, 0.95)) / np.linalg.norm(aside)
        return chest.vessels_zyx[vessel] + aside, "vascular"
    start = lung.sample(rng, 1, 0.5)[0]
    return lung.slide_to_depth(start, radius_mm * rng.uniform(0.45, 0.9)), "pleural"


def _has_room(chest: Chest, position_zyx: Floats, radius_mm: float, placed: Sequence[Nodule]) -> bool:
    """Most of the nodule in the lung, inside the field of view, off the volume's faces and off other nodules."""
    if chest.lung.distance_at(position_zyx)[0] > -0.35 * radius_mm:
        return False
    if not in_view(position_zyx, chest.lung.size_mm, 6):
        return False
    return clearance(position_zyx[None], placed)[0] > radius_mm + CLEARANCE_MM


def in_view(points_zyx: Floats, size_mm: Floats, margin_mm: float) -> NDArray[np.bool_]:
    """Which points (..., 3) lie inside the volume and its round field of view, off their edges by a margin."""
    boxed = ((points_zyx > margin_mm) & (points_zyx < size_mm - margin_mm)).all(-1)
    from_axis = np.linalg.norm((points_zyx - size_mm / 2)[..., 1:], axis=-1)
    return boxed & (from_axis < size_mm[1] / 2 - margin_mm)


def clearance(points_zyx: Floats, nodules: Sequence[Nodule]) -> NDArray[np.float64]:
    """Distance of each point (n, 3) to the nearest nodule's surface, mm; infinite without nodules."""
    if not nodules:
        return np.full(len(points_zyx), np.inf)
    centres = np.stack([n.position_zyx for n in nodules])
    radii = np.array([n.diameter_mm / 2 for n in nodules])
    return (np.linalg.norm(points_zyx[:, None] - centres, axis=2) - radii).min(1)


def place_mimics(
    rng: np.random.Generator, chest: Chest, nodules: Sequence[Nodule], settings: ScanSettings
) -> tuple[list[Floats], list[tuple[Floats, float]]]:
    """Put plugs, scars, pleural plaques and micronodules into a drawn chest.

    Plugs (airways filled with mucus, stumps of vessels) and scars are longer than wide by three and more, unlike the
    real nodules (1.2 to 2.6), and plaques lie flat on the wall. The settings' difficulty changes all three: their
    edges, their brightness and the length of the plugs. Micronodules are below 3 mm: LUNA16 counts them
    neither way, nor a few of the others.

    Returns:
        Positions of plugs, scars and plaques, and of excluded findings with their diameter (mm, -1: not measured).
    """
    mimics = [
        *_place_plugs(rng, chest, nodules, settings),
        *_place_scars(rng, chest, nodules, settings),
        *_place_plaques(rng, chest, nodules, settings),
    ]
    excluded = [(point, -1.0) for point in mimics if rng.random() < 0.1]
    for _ in range(rng.integers(2, 7)):
        point = chest.lung.sample(rng, 1, 3)[0]
        radius = rng.uniform(0.8, 1.3)
        if clearance(point[None], nodules)[0] > 3 + CLEARANCE_MM:
            _add_ellipsoid(chest, point, np.full(3, radius), np.eye(3), rng.uniform(-100, 50), settings.likeness)
            excluded.append((point, -1.0 if rng.random() < 0.8 else round(2 * radius, 6)))
    return mimics, excluded


def _place_plugs(
    rng: np.random.Generator, chest: Chest, nodules: Sequence[Nodule], settings: ScanSettings
) -> list[Floats]:
    """Short bent tubes, half of them forked, where nodules lie too: free, on vessels, near the wall.

    Their volumes and their looks are those of nodules drawn from the bank, so that neither size nor brightness tells.
    """
    lung, bank = chest.lung, load_shape_bank()
    placed = []
    for _ in range(rng.integers(26, 34)):
        shape = int(rng.integers(len(bank.masks)))
        diameter = min(float(bank.diameter_mm[shape]), LARGEST_PLUG_MM)
        slenderness = rng.uniform(2.2, 3.4) / settings.likeness
        radius = diameter / 2 / np.cbrt(1.5 * slenderness)
        length = 2 * radius * slenderness
        point, _ = _nodule_position(rng, chest, 1.5 * radius)
        if clearance(point[None], nodules)[0] <= length / 2 + CLEARANCE_MM or lung.distance_at(point)[0] > -radius:
            continue
        turn, bend = random_turn(rng), rng.normal(0, 0.12) * length
        t = np.linspace(-1, 1, 25)
        line = np.stack([t * length / 2, bend * (1 - t**2), np.zeros_like(t)], 1)
        taper = radius * (1 - rng.uniform(0, 0.25) * t)
        if rng.random() < 0.5:
            arm = np.linspace(0, 1, 12)[:, None] * length * rng.uniform(0.3, 0.5) * np.array([0.6, 0.3, 0.75])
            line, taper = np.concatenate([line, line[12] + arm]), np.concatenate([taper, np.full(12, 0.8 * radius)])
        look = choose_look(rng, bank, shape)
        look = replace(look, body_hu=settings.mimic_hu(look.body_hu))
        edge = lung.edge_mm * settings.likeness
        box, share = tube_share(line @ turn, taper, edge, point, lung.shape_zyx, lung.spacing_zyx)
        chest.image_hu[box] += nodule_increment(rng, look, share, chest.image_hu[box])
        placed.append(point)
    return placed


def _place_scars(
    rng: np.random.Generator, chest: Chest, nodules: Sequence[Nodule], settings: ScanSettings
) -> list[Floats]:
    placed = []
    for _ in range(rng.integers(4, 9)):
        point = chest.lung.sample(rng, 1, 2)[0]
        if clearance(point[None], nodules)[0] <= 6 + CLEARANCE_MM:
            continue
        width = rng.uniform(1.1, 2.2)
        band = [1, rng.uniform(1, 2.2), rng.uniform(5, 9)]
        plate = [1, rng.uniform(4, 6), rng.uniform(5, 8)]
        half_axes = width * np.array(band if rng.random() < 0.6 else plate)
        turn, hu = random_turn(rng), settings.mimic_hu(rng.uniform(-150, 30))
        _add_ellipsoid(chest, point, half_axes, turn, hu, settings.likeness)
        placed.append(point)
    return placed


def _place_plaques(
    rng: np.random.Generator, chest: Chest, nodules: Sequence[Nodule], settings: ScanSettings
) -> list[Floats]:
    placed = []
    for _ in range(rng.integers(3, 7)):
        point = chest.lung.slide_to_depth(chest.lung.sample(rng, 1, 0.5)[0], 0.3, steps=12)
        height = rng.uniform(2, 4.5)
        outward = chest.lung.outward(point)
        at_wall = abs(chest.lung.distance_at(point)[0]) < 1.5 and in_view(point, chest.lung.size_mm, CLEARANCE_MM)
        if not at_wall or clearance(point[None], nodules)[0] <= 8 + CLEARANCE_MM:
            continue
        flat = np.cross(outward, rng.standard_normal(3))
        flat /= np.linalg.norm(flat)
        turn = np.stack([outward, flat, np.cross(outward, flat)])
        half_axes = height * np.array([1, *[rng.uniform(3, 6)] * 2])
        _add_ellipsoid(chest, point, half_axes, turn, settings.mimic_hu(rng.uniform(-20, 60)), settings.likeness)
        placed.append(point - outward * 0.4 * height)
    return placed


def _add_ellipsoid(
    chest: Chest, point_zyx: Floats, half_axes_mm: Floats, turn: Floats, hu: float, softness: float
) -> None:
    lung = chest.lung
    edge = lung.edge_mm * softness
    box, share = ellipsoid_share(half_axes_mm, turn, edge, point_zyx, lung.shape_zyx, lung.spacing_zyx)
    chest.image_hu[box] += share * np.maximum(hu - chest.image_hu[box], 0)
