"""The candidates that a detector would list in a synthetic scan: nodules, and what it mistakes for them.

Candidates of both classes are jittered alike, so that nothing but the image separates them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from luna16_monai.phantom.anatomy import THIN_MM, Chest, shrink_slices
from luna16_monai.phantom.nodules import CLEARANCE_MM, JITTER_MM, Nodule, ScanSettings, clearance, in_view

Floats = NDArray[np.floating]

THICKNESS_BIAS = 2.0
"""A structure is listed with odds that grow with this power of its radius."""


def jitter(rng: np.random.Generator, points_zyx: Floats, reach_mm: float = JITTER_MM) -> NDArray[np.float64]:
    """Move points (n, 3) by up to ``reach_mm``, evenly over the ball."""
    direction = rng.standard_normal((len(points_zyx), 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    return points_zyx + direction * (reach_mm * np.cbrt(rng.random((len(points_zyx), 1))))


def choose_candidates(
    rng: np.random.Generator,
    chest: Chest,
    clean_hu: Floats,
    nodules: Sequence[Nodule],
    mimics: Sequence[Floats],
    excluded: Sequence[tuple[Floats, float]],
    settings: ScanSettings,
) -> list[tuple[Floats, int]]:
    """List the candidates of a scan in random order: (position mm, class).

    One mark in each nodule, in a fifth of them two, in one of 25 none (never in the first two). Of the negatives,
    plugs, scars, plaques and some excluded findings come first, up to 0.4 of all. Of the rest, a share that grows with
    the difficulty, three quarters at 1, is as bright as the positives over 2 mm and over 5 mm: what real detectors list
    has passed such a test. The others are blobs, and vessels, forks, crossings and airways, the thicker the likelier.
    Where these do not suffice, thin vessels and any places in the lung fill up.

    Raises:
        ValueError: the lung has no room for so many off the nodules.
    """
    positives = _mark_nodules(rng, nodules)
    # a scan without nodules has as many negatives as one with the fewest
    negatives = round(settings.negatives_per_positive * (len(positives) or settings.nodules[0]))

    per_slice = len(chest.image_hu) // len(clean_hu)
    spacing = chest.lung.spacing_zyx * [per_slice, 1, 1]
    inside = chest.wall_distance_mm[per_slice // 2 :: per_slice] < 0.5
    blobs = propose_blobs(clean_hu, spacing, inside, 2 * negatives + 40)
    shaped = np.array([*mimics, *(p for p, _ in excluded if rng.random() < 0.4)]).reshape(-1, 3)
    off_limits = np.array([p for p, _ in excluded]).reshape(-1, 3)

    free = partial(_free, nodules=nodules, size_mm=chest.lung.size_mm)
    chosen = free(rng.permutation(np.unique(shaped, axis=0)), np.empty((0, 3)))[: round(0.4 * negatives)]
    blobs, structures = free(rng.permutation(blobs), off_limits), free(_structures(rng, chest), off_limits)
    wanted = negatives - len(chosen)
    twins, others = round(settings.overlap * wanted), wanted - round(settings.overlap * wanted)
    plain = np.concatenate([blobs[: others - others // 2], structures[: others // 2]])
    rest = np.concatenate([blobs[others - others // 2 :], structures[others // 2 :]])
    alike = _alike(clean_hu, spacing, positives, rest, twins)
    chosen = np.concatenate([chosen, plain, rest[alike]])
    if len(chosen) < negatives:
        chosen = _fill_up(rng, chest, chosen, np.delete(rest, alike, 0), negatives, partial(free, spots=off_limits))
    if len(chosen) < negatives:
        raise ValueError(
            f"negatives_per_positive {settings.negatives_per_positive}: {len(chosen)} of {negatives} candidates "
            "find a place off the nodules: ask for fewer nodules, or a larger volume"
        )

    points = jitter(rng, np.concatenate([positives, chosen]), settings.jitter_mm)
    labels = np.repeat([1, 0], [len(positives), len(chosen)])
    return [(points[i], int(labels[i])) for i in rng.permutation(len(points))]


def _mark_nodules(rng: np.random.Generator, nodules: Sequence[Nodule]) -> Floats:
    """Return the positives, (n, 3) mm: one mark in each nodule, in some two, in a few none."""
    marks = [
        0 if i > 1 and chance < 0.04 else 2 if chance > 0.8 else 1 for i, chance in enumerate(rng.random(len(nodules)))
    ]
    return np.repeat(np.reshape([n.position_zyx for n in nodules], (-1, 3)), np.array(marks, int), axis=0)


def _free(points: Floats, spots: Floats, nodules: Sequence[Nodule], size_mm: Floats) -> Floats:
    """Return the points that are in view and off the nodules and the spots."""
    apart = clearance(points, nodules) > CLEARANCE_MM
    points = points[apart & in_view(points, size_mm, 2)]
    if not len(spots):
        return points
    return points[np.linalg.norm(points[:, None] - spots, axis=2).min(1) > CLEARANCE_MM]


def _fill_up(
    rng: np.random.Generator,
    chest: Chest,
    chosen: Floats,
    rest: Floats,
    negatives: int,
    free: Callable[[Floats], Floats],
) -> Floats:
    """Return the chosen negatives; where they are too few also what is left, thin vessels, and any places."""
    thin = rng.permutation(chest.vessels_zyx[chest.vessel_radius_mm <= THIN_MM])
    more = free(np.concatenate([rest, thin]))
    chosen = np.concatenate([chosen, more[: (negatives - len(chosen)) // 2]])
    for _ in range(20):
        anywhere = chest.lung.sample(rng, negatives - len(chosen), 0.5)
        chosen = np.concatenate([chosen, free(anywhere)])
    return chosen


def _alike(hu: Floats, spacing_zyx: Floats, wanted_zyx: Floats, points_zyx: Floats, count: int) -> list[int]:
    """Return which points, at most ``count``, are as bright over 2 and 5 mm as the wanted ones, each in its turn."""
    both = np.concatenate([wanted_zyx, points_zyx])
    smooth = [ndimage.gaussian_filter(hu, sigma_mm / spacing_zyx, truncate=2.5) for sigma_mm in (2, 5)]
    index = (both / spacing_zyx - 0.5).T
    look = np.stack([ndimage.map_coordinates(s, index, order=1, mode="nearest") for s in smooth], 1)
    gap = np.linalg.norm(look[: len(wanted_zyx), None] - look[len(wanted_zyx) :], axis=2)
    taken: list[int] = []
    for turn in range(min(count, len(points_zyx)) if len(wanted_zyx) else 0):
        nearest = int(gap[turn % len(wanted_zyx)].argmin())
        taken.append(nearest)
        gap[:, nearest] = np.inf
    return taken


def _structures(rng: np.random.Generator, chest: Chest) -> Floats:
    """Return vessels, forks, crossings and airways, (n, 3) mm, in random order, likelier first the thicker they are."""
    thick = chest.vessel_radius_mm > THIN_MM
    crossing, airway = len(chest.crossings_zyx), len(chest.bronchi_zyx)
    points = np.concatenate([chest.vessels_zyx[thick], chest.bifurcations_zyx, chest.crossings_zyx, chest.bronchi_zyx])
    radius = np.concatenate(
        [chest.vessel_radius_mm[thick], chest.bifurcation_radius_mm, np.full(crossing, 1.5), np.full(airway, 1.5)]
    )
    # the smallest of exponential waiting times first: draws without replacement, in proportion to the rates
    return points[np.argsort(rng.exponential(1 / radius**THICKNESS_BIAS), kind="stable")]


def propose_blobs(image_hu: NDArray[np.generic], spacing_zyx: Floats, inside: NDArray[np.bool_], limit: int) -> Floats:
    """Return candidates of a plain detector: bright blobs of about 3 and 6 mm, by differences of Gaussians.

    Works on pairs of rows and columns averaged, which is enough for blobs of that size and four times as fast.

    Args:
        image_hu: (z, y, x).
        spacing_zyx: mm.
        inside: where blobs may lie, (z, y, x).
        limit: how many to keep.

    Returns:
        Points (n, 3) in mm, at most ``limit`` and at least 4 mm apart, the strongest first.
    """
    pairs = shrink_slices(np.clip(image_hu, -1000, 200), 2)
    outside = ~inside[:, ::2, ::2][:, : pairs.shape[1], : pairs.shape[2]]
    step = spacing_zyx * [1, 2, 2]
    points, scores = [np.empty((0, 3))], [np.empty(0)]
    for sigma_mm in (1.8, 3.6):
        narrow = ndimage.gaussian_filter(pairs, sigma_mm / step, truncate=3)
        contrast = narrow - ndimage.gaussian_filter(narrow, np.sqrt(1.6**2 - 1) * sigma_mm / step, truncate=3)
        contrast[outside] = -np.inf
        window = np.maximum(3, (2 * sigma_mm / step).astype(int) | 1)
        peaks = np.argwhere((contrast == ndimage.maximum_filter(contrast, size=tuple(window))) & (contrast > 25))
        points.append((peaks + 0.5) * step)
        scores.append(contrast[tuple(peaks.T)])
    ranked = np.concatenate(points)[np.argsort(-np.concatenate(scores), kind="stable")]
    kept = np.empty((0, 3))
    for point in ranked:
        if len(kept) == limit:
            break
        if not len(kept) or ((kept - point) ** 2).sum(1).min() > 16:
            kept = np.vstack([kept, point])
    return kept
