"""The plan of a search, and what a file says of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from luna16_monai.bundle.folders import bundle_dir
from luna16_monai.experiments.search import Search, TunePlan

RANGES: dict[str, Any] = {
    "learning_rate": {"log_uniform": [1e-4, 1e-2]},
    "network_def#norm": {"choice": [None, "BATCH"]},
    "augmentation": {
        "uniform": [0.0, 2.0],
        "times": {"train#random_transforms#3#scale_range": [0.2, 0.2, 0.2], "train#random_transforms#4#std": 25.0},
    },
}


def plan(output: Path, **more: Any) -> TunePlan:
    return TunePlan(bundle_dir(), output, output, output, Search("cpm", 1, 2, RANGES), 3, **more)


def search(**changes: Any) -> dict[str, Any]:
    return {"metric": "cpm", "grace_period": 1, "reduction_factor": 2, "search": RANGES, **changes}


def written(folder: Path, content: Any) -> Path:
    path = folder / "search.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path
