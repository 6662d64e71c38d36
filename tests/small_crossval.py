"""The plan of a cross-validation whose trainings take seconds, and what a fold leaves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from luna16_monai.bundle.folders import bundle_dir
from luna16_monai.evaluation.submission import evaluate, validation_reference
from luna16_monai.experiments.folds import Plan
from luna16_monai.machine.files import write_json
from luna16_monai.runs.results import write_results
from luna16_monai.tables.data_sets import DataSets

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

DETECTION = {
    "max_epochs": "1",
    "samples_per_epoch": "8",
    "batch_size": "2",
    "num_workers": "0",
    "shape_zyx": "[32,48,48]",
    "device": "cpu",
    "bf16": "false",
}
"""Settings of a detector's training that takes seconds."""


def plan(data: Path, store: Path, output: Path, folds: tuple[int, ...], **more: Any) -> Plan:
    return Plan(bundle_dir(), data, store, output, folds, more.pop("settings", TINY), **more)


def fake_fold(one: Plan, fold: int, subsets: dict[str, int | None], probability: np.ndarray, line: tuple) -> None:
    """What a fold leaves: its training's record and choices, its subset's scores."""
    table = DataSets.of(one.data_dir).candidates()
    test = sorted(uid for uid, subset in subsets.items() if subset == fold)
    rows = table.select(table.series_codes(test) >= 0)
    truth = validation_reference(one.data_dir, test, subsets)
    marks = replace(rows, values=probability[: len(rows)])
    scored = evaluate(marks, truth, draws=20)
    told = {**scored.scores, "roc_auc": 0.5, "average_precision": 0.5, "loss": 1.0}
    write_results(one.fold_dir(fold) / "test", told, marks, marks.values, scored, rows.values.astype(int))
    rest = sorted(set(subsets) - set(test))
    sizes = {"series": 1, "candidates": 1, "positives": 1}
    data = {"name": "phantom", "kind": "synthetic", "train": sizes, "validation": sizes}
    series = {"train_series": rest[2:], "validation_series": rest[:2], "test_series": test}
    settings = {"max_epochs": 1, "test_subset": fold}
    versions = {"versions": {}, "device": "cpu", "threads": 1, "parameters": 1}
    write_json(one.fold_dir(fold) / "run.json", {"settings": settings, **versions, "data": {**data, **series}})
    slope, offset, cut = line
    chosen = {name: {"threshold": cut} for name in ("best_f1", "one_false_positive_per_scan")}
    fitted = {kind: {"slope": slope, "offset": offset} for kind in ("platt", "temperature")}
    inner = {"epoch": 3, "key_metric": "average_precision", "average_precision": 0.9}
    write_json(one.fold_dir(fold) / "metrics.json", {**inner, "calibration": fitted, "thresholds": chosen})
