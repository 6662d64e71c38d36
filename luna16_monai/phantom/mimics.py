"""Put what is mistaken for a nodule into a drawn chest: mucus plugs, scars and plaques."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from luna16_monai.phantom.anatomy import Chest
from luna16_monai.phantom.lesions import (
    choose_look,
    ellipsoid_share,
    load_shape_bank,
    nodule_increment,
    random_turn,
    tube_share,
)
from luna16_monai.phantom.nodules import CLEARANCE_MM, Nodule, ScanSettings, clearance, in_view, nodule_position

Floats = NDArray[np.floating]

LARGEST_PLUG_MM = 14.0


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

    Their volumes and their looks are those of nodules drawn from the bank: size and brightness separate nothing.
    """
    lung, bank = chest.lung, load_shape_bank()
    placed = []
    for _ in range(rng.integers(26, 34)):
        shape = int(rng.integers(len(bank.masks)))
        diameter = min(float(bank.diameter_mm[shape]), LARGEST_PLUG_MM)
        slenderness = rng.uniform(2.2, 3.4) / settings.likeness
        radius = diameter / 2 / np.cbrt(1.5 * slenderness)
        length = 2 * radius * slenderness
        point, _ = nodule_position(rng, chest, 1.5 * radius)
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
