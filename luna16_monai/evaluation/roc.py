"""ROC AUC and average precision; ROC AUC of several classifiers with intervals over scans and paired differences.

Candidates of one scan resemble each other, so scans are drawn, not candidates (Efron and Tibshirani, 1993). DeLong's
test, which others report, takes candidates for independent, and so finds differences more easily.
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
        minus this one's, ``behind_by_ci95``, and ``delong_p`` of this difference, see `delong`.

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
            first, other = (probabilities[one] for one in (next(iter(probabilities)), name))
            result[name]["delong_p"] = delong(first, other, truth)["p_value"]
    return result


def delong(one: ArrayLike, other: ArrayLike, label: ArrayLike) -> dict[str, float | None]:
    """Return DeLong's test of two AUCs on the same candidates, each of which counts as independent of the others.

    Args:
        one: (n,) probabilities of a classifier.
        other: (n,) of another.
        label: (n,) 0 or 1.

    Returns:
        ``difference`` (the AUC of one minus that of the other), ``standard_error``, ``z`` and ``p_value`` (two-sided).
        All but the first are None where a class has fewer than two candidates; ``z`` also where the error is 0, and
        then ``p_value`` is 1 for a difference of 0, else 0.

    Raises:
        ValueError: one class only, or arrays that do not fit together.

    Source:
        DeLong, DeLong and Clarke-Pearson 1988, Comparing the areas under two or more correlated receiver operating
        characteristic curves, Biometrics 44, 837-845.
    """
    truth = np.asarray(label)
    first, second = np.asarray(one, np.float64), np.asarray(other, np.float64)
    if truth.ndim != 1 or not first.shape == second.shape == truth.shape:
        raise ValueError(f"probabilities {first.shape} and {second.shape}, label {truth.shape}: give (n,) of each")
    if len(np.unique(truth)) < 2:
        raise ValueError(f"label holds class {np.unique(truth).tolist()} only: an AUC needs both")
    (above, below), (above_second, below_second) = _placements(first, truth), _placements(second, truth)
    positives, negatives = above - above_second, below - below_second
    difference = float(positives.mean())
    if min(len(positives), len(negatives)) < 2:
        return {"difference": difference, "standard_error": None, "z": None, "p_value": None}
    error = math.sqrt(positives.var(ddof=1) / len(positives) + negatives.var(ddof=1) / len(negatives))
    if error == 0:
        return {"difference": difference, "standard_error": 0.0, "z": None, "p_value": float(difference == 0)}
    from scipy.special import ndtr

    z = difference / error
    return {"difference": difference, "standard_error": error, "z": z, "p_value": float(2 * ndtr(-abs(z)))}


def _placements(values: FloatArray, truth: NDArray[Any]) -> tuple[FloatArray, FloatArray]:
    """For each positive the share of negatives below it, for each negative that of positives above; ties count half."""
    positive, negative = np.sort(values[truth == 1]), np.sort(values[truth != 1])
    of_positive, of_negative = (
        (np.searchsorted(others, own, "left") + np.searchsorted(others, own, "right")) / 2 / len(others)
        for others, own in ((negative, values[truth == 1]), (positive, values[truth != 1]))
    )
    return of_positive, 1 - of_negative
