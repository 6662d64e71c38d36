"""Scores of each of several data sets, beside those of all together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luna16_monai.evaluation.roc import average_precision, roc_auc
from luna16_monai.evaluation.submission import ReferenceStandard, evaluate
from luna16_monai.tables.points import PointTable

IntArray = NDArray[np.integer[Any]]

OFFICIAL = ("nodules", "cpm", "cpm_ci95", "sensitivity_at", "sensitivity_at_candidates")
"""What is told of LUNA16's score; the keys are those of ``luna16 evaluate``."""


def scores_by_data_set(
    data_sets: Mapping[str, Sequence[str]],
    marks: PointTable,
    label: IntArray,
    truth: ReferenceStandard | None,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Return the scores of each data set on its own scans.

    Args:
        data_sets: the scored series of each, by its name, those without a mark too.
        marks: the candidates of all; values are the probabilities.
        label: (n,) 0 or 1 of each.
        truth: what all are scored against; None leaves LUNA16's score out.
        draws: of the bootstrap.
        seed: of the draws.

    Returns:
        By name: ``series``, ``candidates``, ``positives``, ``roc_auc`` and ``average_precision`` (None where one class
        is absent) and, with a truth, `OFFICIAL` (None but for ``nodules`` where the data set has no nodule or no mark).
    """
    told: dict[str, dict[str, Any]] = {}
    for name, uids in data_sets.items():
        rows = marks.series_codes(list(uids)) >= 0
        own, own_label = marks.select(rows), label[rows]
        both = bool(own_label.any() and not own_label.all())
        told[name] = {
            "series": len(uids),
            "candidates": len(own),
            "positives": int(own_label.sum()),
            "roc_auc": float(roc_auc(own.values, own_label)[0]) if both else None,
            "average_precision": average_precision(own.values, own_label) if both else None,
            **({} if truth is None else _official(uids, own, truth, draws, seed)),
        }
    return told


def _official(
    series_uids: Sequence[str], marks: PointTable, truth: ReferenceStandard, draws: int, seed: int
) -> dict[str, Any]:
    """Return LUNA16's score of one data set."""
    nodules = int((truth.nodules.series_codes(list(series_uids)) >= 0).sum())
    if not nodules or not len(marks):
        return {**dict.fromkeys(OFFICIAL), "nodules": nodules}
    scores = evaluate(marks, replace(truth, series_uids=tuple(sorted(series_uids))), draws, seed).scores
    return {key: scores[key] for key in OFFICIAL}
