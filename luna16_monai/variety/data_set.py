"""Plan and write a drawn set of recipe 3, in LUNA16's layout."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from luna16_monai.phantom.data_set import plan_scans, write_data_set
from luna16_monai.variety.scan import STREAM, draw_varied_scan
from luna16_monai.variety.settings import Variety
from luna16_monai.variety.shapes import load_allowed_shapes

RECIPE = 3


def write_varied_phantom(
    output: Path,
    scans: int = 60,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
    settings: Variety | None = None,
) -> dict[str, Any]:
    """Write a drawn set of recipe 3 in LUNA16's layout; files, result and errors as `phantom.data_set.write_phantom`.

    Args:
        output, scans, seed, workers, progress: as there.
        settings: what a scan holds; None for the defaults.
    """
    settings = settings or Variety()
    allowed = load_allowed_shapes()
    plans = [
        # shapes keep their numbers in the shipped file
        replace(plan, shapes=tuple(allowed.numbers[list(plan.shapes)].tolist()))
        for plan in plan_scans(scans, seed, allowed, STREAM)
    ]
    recipe = {"kind": "synthetic", "recipe": RECIPE, "seed": seed, "scans": scans, **asdict(settings)}
    return write_data_set(
        output, recipe, plans, partial(draw_varied_scan, seed=seed, settings=settings), workers, progress
    )
