"""What leads the false positives of real CTs: normal anatomy that bulges into the lung, lymph nodes, scars.

Each function draws into the chest's image and returns points in what it drew, (z, y, x) in mm; none where that part of
the chest is out of view, or taken by a nodule.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from luna16_monai.phantom.anatomy import Chest
from luna16_monai.phantom.lesions import ellipsoid_share, random_turn, tube_share
from luna16_monai.phantom.nodules import CLEARANCE_MM, Nodule, clearance, in_view
from luna16_monai.variety.settings import Variety

Floats = NDArray[np.floating]


def add_look_alikes(
    rng: np.random.Generator, chest: Chest, nodules: Sequence[Nodule], settings: Variety
) -> list[Floats]:
    """Draw what the settings ask for; returns the points of all."""
    found: list[Floats] = []
    for share, draw in (
        (settings.azygos, add_azygos_arch),
        (settings.hilar_nodes, add_hilar_nodes),
        (settings.calcified_nodes, add_calcified_nodes),
        (settings.dome, add_dome),
        (settings.rib_ends, add_rib_ends),
        (settings.apical_scars, add_apical_scars),
    ):
        if rng.random() < share:
            found += draw(rng, chest, nodules)
    return found


def add_azygos_arch(rng: np.random.Generator, chest: Chest, nodules: Sequence[Nodule]) -> list[Floats]:
    """A vein of 7 to 12 mm that bows from the spine forward, along the medial wall above the hilum."""
    lung = chest.lung
    top = lung.middle_zyx[0] + rng.uniform(0.3, 0.5) * lung.half_axes_zyx[0]
    start = _at_medial_wall(chest, top)
    if start is None:
        return []
    radius, bow = rng.uniform(3.5, 6), rng.uniform(9, 15)
    t = np.linspace(0, np.pi, 30)
    away = -lung.side
    line = np.stack(
        [rng.uniform(-2, 2) * np.sin(t), bow * np.cos(t), away * rng.uniform(0.5, 0.9) * bow * np.sin(t)], 1
    )
    tip = start + line[15]
    if not _free(chest, tip, radius, nodules):
        return []
    _paint_tube(chest, line, np.full(len(line), radius), start, rng.uniform(25, 70))
    return [tip]


def add_hilar_nodes(rng: np.random.Generator, chest: Chest, nodules: Sequence[Nodule]) -> list[Floats]:
    """Two to five lymph nodes of 7 to 16 mm around the hilum."""
    return _nodes(rng, chest, nodules, int(rng.integers(2, 6)), (3.5, 8.0), (10.0, 70.0), 14.0)


def add_calcified_nodes(rng: np.random.Generator, chest: Chest, nodules: Sequence[Nodule]) -> list[Floats]:
    """One to three calcified lymph nodes of 4 to 10 mm around the hilum."""
    return _nodes(rng, chest, nodules, int(rng.integers(1, 4)), (2.0, 5.0), (250.0, 1100.0), 18.0)


def add_dome(rng: np.random.Generator, chest: Chest, nodules: Sequence[Nodule]) -> list[Floats]:
    """The top of the diaphragm, or a hump of it: a slice through its tip shows a round spot in the lung."""
    lung = chest.lung
    for _ in range(40):
        point = lung.sample(rng, 1, 0.5)[0]
        below = _first_outside(chest, point, np.array([-1.0, 0, 0]))
        if below is None or below[0] > lung.middle_zyx[0] or lung.distance_at(below + [6, 0, 0])[0] > -4:
            continue
        half_axes = np.array([rng.uniform(5, 9), *rng.uniform(7, 16, 2)])
        tip = below + [0.8 * half_axes[0], 0, 0]
        if _free(chest, tip, 5, nodules):
            _paint_ellipsoid(chest, below, half_axes, np.eye(3), rng.uniform(35, 70))
            return [tip]
    return []


def add_rib_ends(rng: np.random.Generator, chest: Chest, nodules: Sequence[Nodule]) -> list[Floats]:
    """Two to four ends of ribs, or spurs of bone, that dent the lung from the front or the side."""
    lung = chest.lung
    found: list[Floats] = []
    for _ in range(int(rng.integers(2, 5))):
        start = lung.sample(rng, 1, 0.5)[0]
        point = lung.slide_to_depth(start, -1.5)
        outward = lung.outward(point)
        # neither the mediastinum nor the diaphragm
        if outward[2] * lung.side > 0.4 or abs(outward[0]) > 0.6 or abs(lung.distance_at(point)[0] - 1.5) > 1.5:
            continue
        radius = rng.uniform(3.5, 7)
        inner = point - outward * 0.6 * radius
        if not _free(chest, inner, radius, nodules):
            continue
        half_axes = radius * np.array([1, rng.uniform(0.8, 1.6), rng.uniform(0.8, 1.6)])
        side = np.cross(outward, rng.standard_normal(3))
        side /= np.linalg.norm(side)
        turn = np.stack([outward, side, np.cross(outward, side)])
        _paint_ellipsoid(chest, point, half_axes, turn, rng.uniform(300, 750))
        if rng.random() < 0.6:
            _paint_ellipsoid(chest, point, half_axes * 0.6, turn, rng.uniform(120, 250), exactly=True)
        found.append(inner)
    return found


def add_apical_scars(rng: np.random.Generator, chest: Chest, nodules: Sequence[Nodule]) -> list[Floats]:
    """Two to five ragged caps and strands at the top of the lung."""
    lung = chest.lung
    found: list[Floats] = []
    least = lung.middle_zyx[0] + 0.6 * lung.half_axes_zyx[0]
    if least > lung.size_mm[0] - 6:
        return []
    for _ in range(int(rng.integers(2, 6))):
        start = lung.sample(rng, 1, 0.5)[0]
        start[0] = rng.uniform(least, min(least + 0.35 * lung.half_axes_zyx[0], lung.size_mm[0] - 6))
        if lung.distance_at(start)[0] > -1:
            continue
        point = lung.slide_to_depth(start, rng.uniform(0, 4))
        if not _free(chest, point, 6, nodules) or lung.distance_at(point)[0] > 2:
            continue
        hu, outward = rng.uniform(-200, 60), lung.outward(point)
        flat = np.cross(outward, rng.standard_normal(3))
        flat /= np.linalg.norm(flat)
        turn = np.stack([outward, flat, np.cross(outward, flat)])
        _paint_ellipsoid(chest, point, rng.uniform(1.5, 4) * np.array([1, *rng.uniform(1.2, 3, 2)]), turn, hu)
        t = np.linspace(0, 1, 20)[:, None]
        strand = -outward * rng.uniform(6, 16) * t + flat * rng.uniform(-4, 4) * t**2
        _paint_tube(chest, strand, 1.4 - 0.9 * t[:, 0], point, hu - 60)
        found.append(point)
    return found


def _nodes(
    rng: np.random.Generator,
    chest: Chest,
    nodules: Sequence[Nodule],
    count: int,
    radius_mm: tuple[float, float],
    hu: tuple[float, float],
    spread_mm: float,
) -> list[Floats]:
    """Draw lymph nodes around the hilum and along the medial wall."""
    lung = chest.lung
    found: list[Floats] = []
    for _ in range(count):
        radius = rng.uniform(*radius_mm)
        point = lung.hilum_zyx + rng.normal(0, 1, 3) * [spread_mm, 0.6 * spread_mm, 0.4 * spread_mm]
        if _free(chest, point, radius, nodules) and lung.distance_at(point)[0] < 0.7 * radius:
            _paint_ellipsoid(chest, point, radius * rng.uniform(0.7, 1.2, 3), random_turn(rng), rng.uniform(*hu))
            found.append(point)
    return found


def _at_medial_wall(chest: Chest, z_mm: float) -> Floats | None:
    """Return the medial edge of the lung at a height, behind its middle; None where that is out of view."""
    lung = chest.lung
    if not 6 < z_mm < lung.size_mm[0] - 6:
        return None
    start = np.array([z_mm, lung.middle_zyx[1] + 0.25 * lung.half_axes_zyx[1], lung.middle_zyx[2]])
    if lung.distance_at(start)[0] > -4:
        return None
    return _first_outside(chest, start, np.array([0, 0, float(lung.side)]))


def _first_outside(chest: Chest, point: Floats, direction: Floats) -> Floats | None:
    """Return where a line from a point in the lung leaves it; None where the volume ends before."""
    line = point + np.arange(0, 120, 0.5)[:, None] * direction
    inside = np.all((line > 2) & (line < chest.lung.size_mm - 2), axis=1)
    beyond = np.flatnonzero(chest.lung.distance_at(line) > 0)
    return line[beyond[0]] if len(beyond) and np.all(inside[: beyond[0] + 1]) else None


def _free(chest: Chest, point: Floats, radius_mm: float, nodules: Sequence[Nodule]) -> bool:
    in_field = bool(in_view(point, chest.lung.size_mm, CLEARANCE_MM))
    return in_field and bool(clearance(point[None], nodules)[0] > radius_mm + CLEARANCE_MM)


def _paint_ellipsoid(
    chest: Chest, point: Floats, half_axes_mm: Floats, turn: Floats, hu: float, exactly: bool = False
) -> None:
    lung = chest.lung
    box, share = ellipsoid_share(half_axes_mm, turn, lung.edge_mm, point, lung.shape_zyx, lung.spacing_zyx)
    change = hu - chest.image_hu[box]
    chest.image_hu[box] += share * (change if exactly else np.maximum(change, 0))


def _paint_tube(chest: Chest, line_mm: Floats, radius_mm: Floats, point: Floats, hu: float) -> None:
    lung = chest.lung
    box, share = tube_share(line_mm, radius_mm, lung.edge_mm, point, lung.shape_zyx, lung.spacing_zyx)
    chest.image_hu[box] += share * np.maximum(hu - chest.image_hu[box], 0)
