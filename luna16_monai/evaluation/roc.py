"""ROC AUC and average precision; ROC AUC of several classifiers with intervals over scans and paired differences.

Candidates of one scan resemble each other, so scans are drawn, not candidates (Efron and Tibshirani, 1993).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from luna16_monai.evaluation.bootstrap import drawn_weights, interval

FloatArray = NDArray[np.float64]

_ELEMENTS_PER_CHUNK = 2_000_000


def roc_auc(probability: ArrayLike, label: ArrayLike, weights: ArrayLike | None = None) -> FloatArray:
    """Return the area under the ROC curve: how often a positive stands above a negative, ties counting half.

    Args:
        probability: (n,).
        label: (n,) 0 or 1.
        weights: (d, n), how often each candidate counts, in each of d draws; None for once.

    Returns:
        (d,), NaN for a draw that holds one class only.

    Raises:
        ValueError: the arrays do not fit together.
    """
    values, truth = np.asarray(probability, np.float64), np.asarray(label)
    counts = np.ones((1, len(values))) if weights is None else np.asarray(weights, np.float64)
    if values.shape != truth.shape or counts.shape[1:] != values.shape:
        raise ValueError(
            f"probability {values.shape}, label {truth.shape}, weights {counts.shape}: give (n,), (n,) and (d, n)"
        )
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(values[order]) > 0]) if len(values) else np.zeros(0, np.int64)
    positive, negative = (np.add.reduceat(counts[:, order] * (truth[order] == one), starts, axis=1) for one in (1, 0))
    below = np.cumsum(negative, axis=1) - negative
    pairs = positive.sum(1) * negative.sum(1)
    with np.errstate(invalid="ignore"):
        return (positive * (below + negative / 2)).sum(1) / np.where(pairs > 0, pairs, np.nan)


def average_precision(probability: ArrayLike, label: ArrayLike) -> float:
    """Return the average precision: the precision at each threshold, weighted by the recall that it adds.

    Equal to MONAI's ``compute_average_precision`` to the last bit, since the terms are added in its order.

    Args:
        probability: (n,).
        label: (n,) 0 or 1.

    Returns:
        NaN where one class is absent.

    Raises:
        ValueError: the arrays do not fit together.
    """
    values, truth = np.asarray(probability, np.float64), np.asarray(label)
    if values.ndim != 1 or values.shape != truth.shape:
        raise ValueError(f"probability {values.shape}, label {truth.shape}: give (n,) and (n,)")
    positives = int((truth == 1).sum())
    if positives in (0, len(truth)):
        return math.nan
    order = np.argsort(-values, kind="stable")
    ends = np.flatnonzero(np.r_[np.diff(values[order]) < 0, True])
    found = np.cumsum(truth[order] == 1)[ends].astype(np.float64)
    terms = np.diff(found, prepend=0.0) * found / (ends + 1)
    # one term after the other: np.sum adds in pairs, which rounds differently
    return float(np.cumsum(terms)[-1] / positives)


def compare_roc_auc(
    probabilities: Mapping[str, ArrayLike],
    label: ArrayLike,
    group: ArrayLike,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Compare classifiers with the first of them.

    Args:
        probabilities: (n,) by each classifier's name.
        label: (n,) 0 or 1.
        group: (n,) whole numbers: the scan of each candidate.
        draws: of the bootstrap; the same for all classifiers.
        seed: of the draws.

    Returns:
        For each name ``roc_auc`` and ``roc_auc_ci95``; for all but the first also ``behind_by``, the first one's AUC
        minus this one's, and ``behind_by_ci95``.

    Raises:
        ValueError: one class only, or arrays that do not fit together.
    """
    truth = np.asarray(label)
    if len(np.unique(truth)) < 2:
        raise ValueError(f"label holds class {np.unique(truth).tolist()} only: an AUC needs both")
    names, code = np.unique(np.asarray(group), return_inverse=True)
    rows = 1 + _ELEMENTS_PER_CHUNK // len(truth)
    chunks = [
        np.stack([roc_auc(one, truth, weights[:, code]) for one in probabilities.values()], axis=1)
        for weights in drawn_weights(len(names), draws, seed, rows)
    ]
    drawn = np.concatenate(chunks)
    drawn = drawn[~np.isnan(drawn[:, 0])]
    found = [float(roc_auc(one, truth)[0]) for one in probabilities.values()]
    result: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(probabilities):
        result[name] = {"roc_auc": found[number], "roc_auc_ci95": interval(drawn[:, number]).tolist()}
        if number:
            result[name]["behind_by"] = found[0] - found[number]
            result[name]["behind_by_ci95"] = interval(drawn[:, 0] - drawn[:, number]).tolist()
    return result
