"""The plan of a cross-validation whose trainings take seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luna16_monai.bundle.folders import bundle_dir
from luna16_monai.experiments.folds import Plan

TINY = {
    "max_epochs": "1",
    "samples_per_epoch": "8",
    "batch_size": "4",
    "num_workers": "0",
    "validation_stride": "3",
    "shape_zyx": "[16,16,16]",
    "margin_zyx": "[0,0,0]",
    "device": "cpu",
}


def plan(data: Path, store: Path, output: Path, folds: tuple[int, ...], **more: Any) -> Plan:
    return Plan(bundle_dir(), data, store, output, folds, more.pop("settings", TINY), **more)
