"""Nodules of recipe 3: as large as 30 mm, hollow, spiculated, calcified, faint, and at the wall."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from luna16_monai.phantom.anatomy import Chest
from luna16_monai.phantom.lesions import (
    Look,
    ShapeBank,
    choose_look,
    ellipsoid_share,
    nodule_increment,
    nodule_share,
    random_turn,
    tube_share,
)
from luna16_monai.phantom.nodules import Location, Nodule, has_room, nodule_position
from luna16_monai.variety.settings import Variety

Floats = NDArray[np.floating]

_LARGEST_SCALE = 2.2
_HOLLOW_MM, _SPICULATED_MM = 10.0, 8.0
_AIR_HU = -960.0
_TRIES = 60


def place_varied_nodules(
    rng: np.random.Generator,
    chest: Chest,
    bank: ShapeBank,
    shapes: Sequence[int],
    count: int,
    settings: Variety,
    softness: float,
    occupied: Sequence[Nodule] = (),
) -> list[Nodule]:
    """Put nodules into a drawn chest.

    Args:
        rng: source of chance.
        chest: its image is changed in place.
        bank: the shapes.
        shapes: the numbers that may be used.
        count: how many nodules are wanted.
        settings: how often they are large, hollow, spiculated, calcified, faint.
        softness: factor on the width of their edges.
        occupied: what they keep away from.

    Raises:
        ValueError: no nodule at all finds a place.
    """
    placed: list[Nodule] = []
    for _ in range(_TRIES * count):
        if len(placed) == count:
            break
        shape, scale = _choose_size(rng, bank, shapes, settings)
        diameter = float(bank.diameter_mm[shape]) * scale
        if diameter >= settings.large_mm[0] and rng.random() < 0.5:
            start = chest.lung.sample(rng, 1, 0.5)[0]
            place: tuple[Floats, Location] = (
                chest.lung.slide_to_depth(start, diameter / 2 * rng.uniform(0.4, 0.8)),
                "pleural",
            )
        else:
            place = nodule_position(rng, chest, diameter / 2)
        if not has_room(chest, place[0], diameter / 2, [*placed, *occupied]):
            continue
        look = _choose_look(rng, bank, shape, settings, softness)
        _draw(rng, chest, bank, shape, scale, look, place[0], settings)
        placed.append(_as_placed(bank, shape, scale, look, *place))
    if not placed:
        raise ValueError(
            f"no nodule finds a place in a volume of {chest.lung.size_mm.round(1).tolist()} mm: enlarge it"
        )
    return placed


def _choose_size(
    rng: np.random.Generator, bank: ShapeBank, shapes: Sequence[int], settings: Variety
) -> tuple[int, float]:
    """Return a shape, and the factor by which it is enlarged."""
    if rng.random() < settings.large:
        wanted = rng.uniform(*settings.large_mm)
        enough = [shape for shape in shapes if wanted / bank.diameter_mm[shape] <= _LARGEST_SCALE]
        if enough:
            shape = int(rng.choice(enough))
            return shape, float(wanted / bank.diameter_mm[shape])
    return int(rng.choice(shapes)), 1.0


def _choose_look(rng: np.random.Generator, bank: ShapeBank, shape: int, settings: Variety, softness: float) -> Look:
    look, fate = choose_look(rng, bank, shape, softness), rng.random()
    if fate < settings.ground_glass:
        return replace(look, kind="ground-glass", body_hu=rng.uniform(-700, -450), core_hu=None)
    if fate < settings.ground_glass + settings.calcified:
        # calcified throughout, or in its core
        if rng.random() < 0.5:
            return replace(look, kind="calcified", body_hu=rng.uniform(200, 900), core_hu=None)
        return replace(look, kind="calcified", body_hu=rng.uniform(-20, 80), core_hu=rng.uniform(250, 900))
    return look


def _draw(
    rng: np.random.Generator,
    chest: Chest,
    bank: ShapeBank,
    shape: int,
    scale: float,
    look: Look,
    position: Floats,
    settings: Variety,
) -> None:
    """Draw one nodule into the chest's image, with its spicules and its cavity."""
    lung, turn = chest.lung, random_turn(rng)
    radius = float(bank.diameter_mm[shape]) * scale / 2
    box, share = nodule_share(bank, shape, look, turn, position, lung.shape_zyx, lung.spacing_zyx, scale)
    chest.image_hu[box] += nodule_increment(rng, look, share, chest.image_hu[box])
    solid = look.kind in ("solid", "part-solid")
    if 2 * radius >= _SPICULATED_MM and solid and rng.random() < settings.spiculated:
        add_spicules(rng, chest, position, radius, look.body_hu)
    if 2 * radius >= _HOLLOW_MM and solid and rng.random() < settings.hollow:
        half_axes = radius * rng.uniform(0.3, 0.65) * rng.uniform(0.8, 1.2, 3)
        middle = position + rng.uniform(-0.15, 0.15, 3) * radius
        hole, air = ellipsoid_share(half_axes, turn, lung.edge_mm, middle, lung.shape_zyx, lung.spacing_zyx)
        chest.image_hu[hole] += air * np.minimum(_AIR_HU - chest.image_hu[hole], 0)


def add_spicules(rng: np.random.Generator, chest: Chest, position: Floats, radius_mm: float, body_hu: float) -> None:
    """Draw thin strands that leave a nodule on all sides and taper."""
    lung = chest.lung
    for _ in range(rng.integers(7, 16)):
        direction = rng.standard_normal(3)
        direction /= np.linalg.norm(direction)
        aside = np.cross(direction, rng.standard_normal(3)) * rng.uniform(0, 1.0)
        t = np.linspace(0, 1, 24)[:, None]
        length = rng.uniform(3, 4 + 0.7 * radius_mm)
        line = direction * (0.7 * radius_mm + t * (0.3 * radius_mm + length)) + aside * t**2
        radii = rng.uniform(0.6, 1.2) * (1 - 0.75 * t[:, 0])
        box, share = tube_share(line, radii, lung.edge_mm, position, lung.shape_zyx, lung.spacing_zyx)
        hu = body_hu - rng.uniform(0, 150)
        chest.image_hu[box] += share * np.maximum(hu - chest.image_hu[box], 0)


def _as_placed(bank: ShapeBank, shape: int, scale: float, look: Look, position: Floats, location: Location) -> Nodule:
    texture = {"ground-glass": 1.0, "part-solid": 3.0}.get(look.kind, 5.0)
    diameter = round(float(bank.diameter_mm[shape]) * scale, 6)
    return Nodule(position, diameter, look.kind, location, shape, texture, round(float(bank.malignancy[shape]), 4))
