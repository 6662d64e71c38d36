"""One scan of recipe 3, from its plan to voxels and tables."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from luna16_monai.phantom.anatomy import Chest, draw_chest
from luna16_monai.phantom.candidates import choose_candidates
from luna16_monai.phantom.mimics import place_mimics
from luna16_monai.phantom.nodules import Nodule, ScanSettings
from luna16_monai.phantom.scan import Scan, ScanPlan, finish_scan, pad_outside_view, random_geometry
from luna16_monai.variety.body import add_surroundings, soften_below_diaphragm
from luna16_monai.variety.disease import add_consolidation, add_emphysema, add_fibrosis
from luna16_monai.variety.look_alikes import add_look_alikes
from luna16_monai.variety.nodules import place_varied_nodules
from luna16_monai.variety.protocol import draw_protocol, take
from luna16_monai.variety.settings import Variety
from luna16_monai.variety.shapes import load_allowed_shapes

Floats = NDArray[np.floating]

STREAM = 3
"""Of chance: other scans than recipe 2 draws with the same seed."""


def draw_varied_scan(plan: ScanPlan, seed: int, settings: Variety) -> Scan:
    """Draw one scan of recipe 3; the same plan, seed and settings give the same scan.

    Raises:
        ValueError: no nodule, or no candidate, finds a place in it.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, plan.number], spawn_key=(STREAM,)))
    protocol = draw_protocol(rng, settings)
    chest = draw_chest(rng, protocol.drawn_shape_zyx, protocol.drawn_spacing_zyx, protocol.frame)
    soften_below_diaphragm(chest)
    occupied = _add_diseases(rng, chest, settings)
    empty = rng.random() < settings.empty
    wanted = int(rng.integers(settings.nodules[0], settings.nodules[1] + 1))
    common = ScanSettings(
        nodules=settings.nodules,
        difficulty=settings.difficulty,
        negatives_per_positive=settings.negatives_per_positive,
    )
    bank = load_allowed_shapes().bank
    nodules: list[Nodule] = []
    if not empty:
        nodules = place_varied_nodules(rng, chest, bank, plan.shapes, wanted, settings, common.likeness, occupied)
    look_alikes = add_look_alikes(rng, chest, nodules, settings)
    mimics, excluded = place_mimics(rng, chest, nodules, common)
    if protocol.wide:
        add_surroundings(rng, chest, settings)
    clean, noisy = take(rng, chest, protocol)
    hu = np.clip(np.rint(noisy), -1024, 3071).astype(np.int16)
    if rng.random() < settings.padded:
        pad_outside_view(rng, hu, always=True)
    marks = choose_candidates(rng, chest, clean, nodules, [*look_alikes, *mimics], excluded, common)
    shape = (protocol.slices, protocol.rows, protocol.rows)
    geometry = random_geometry(rng, shape, protocol.spacing_zyx)
    return finish_scan(hu, geometry, nodules, excluded, marks, flipped=rng.random() < 1 / 3)


def _add_diseases(rng: np.random.Generator, chest: Chest, settings: Variety) -> list[Nodule]:
    """Draw the diseases of a scan; returns where nodules do not lie."""
    if rng.random() < settings.emphysema:
        add_emphysema(rng, chest)
    if rng.random() < settings.fibrosis:
        add_fibrosis(rng, chest)
    return add_consolidation(rng, chest) if rng.random() < settings.consolidation else []
