"""A threshold for a wanted number of false calls a scan, with the intervals of what it gives."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luna16_monai.evaluation.bootstrap import drawn_weights, interval
from luna16_monai.evaluation.calibration import threshold_at_false_positives_per_scan

FloatArray = NDArray[np.float64]

IntArray = NDArray[np.integer[Any]]

_ROWS = 64
"""Draws of the bootstrap at once."""


def choose_threshold(
    probability: FloatArray,
    label: IntArray,
    scan: IntArray,
    n_scans: int,
    rate: float,
    draws: int = 1000,
    seed: int = 0,
    missed: IntArray | None = None,
) -> dict[str, Any]:
    """Choose the lowest probability from which on at most ``rate`` candidates a scan are called that are none.

    Args:
        probability: (n,) of each candidate.
        label: (n,) 1 for a nodule, else 0.
        scan: (n,) number of each candidate's scan, 0 to ``n_scans`` - 1.
        n_scans: number of scans, those without a candidate included.
        rate: false calls allowed a scan.
        draws: of scans, for the intervals; 0 gives none.
        seed: of the draws.
        missed: (n_scans,) nodules of each scan that no candidate lies on; None where there are none.

    Returns:
        ``wanted`` (the rate), ``threshold``, ``threshold_ci95`` (what it would be with other scans),
        ``false_positives_per_scan`` and ``sensitivity`` (the share of the rows with label 1, and of the missed, that is
        called) at the threshold, each with ``_ci95``; ``chosen_on``. An interval is None without draws, and
        ``sensitivity`` without a nodule.

    Raises:
        ValueError: fewer than one scan, a negative rate; rows that do not fit.
    """
    if len(scan) != len(label) or (len(scan) and not 0 <= scan.min() <= scan.max() < n_scans):
        raise ValueError(
            f"{len(scan)} numbers of scans for {len(label)} candidates: give each one from 0 to {n_scans - 1}"
        )
    threshold = threshold_at_false_positives_per_scan(probability, label, n_scans, rate)
    called = probability >= threshold
    false = np.bincount(scan[called & (label == 0)], minlength=n_scans)
    hits = np.bincount(scan[called & (label == 1)], minlength=n_scans)
    nodules = np.bincount(scan[label == 1], minlength=n_scans) + (0 if missed is None else missed)
    told: dict[str, Any] = {
        "wanted": float(rate),
        "threshold": threshold,
        "threshold_ci95": None,
        "false_positives_per_scan": float(false.sum() / n_scans),
        "false_positives_per_scan_ci95": None,
        "sensitivity": float(hits.sum() / nodules.sum()) if nodules.sum() else None,
        "sensitivity_ci95": None,
        "chosen_on": "the scans that it is reported on, so the figures are optimistic",
    }
    if draws:
        counts = np.stack([false, hits, nodules])
        weights = drawn_weights(n_scans, draws, seed, _ROWS)
        told |= _intervals(probability, label == 0, scan, counts, rate * n_scans, weights)
    return told


def _intervals(
    probability: FloatArray,
    others: NDArray[np.bool_],
    scan: IntArray,
    counts: IntArray,
    allowed: float,
    draws: Iterable[FloatArray],
) -> dict[str, Any]:
    """Return the intervals of `choose_threshold`.

    Args:
        probability, others, scan: (n,) of each candidate: its probability, whether it is no nodule, its scan.
        counts: (3, n_scans) false calls, called nodules and all nodules of each scan, at the threshold.
        allowed: false calls in all scans.
        draws: (d, n_scans) each, how often each scan is drawn.
    """
    false, hits, nodules = counts
    order = np.argsort(-probability[others], kind="stable")
    falling, their_scan = probability[others][order], scan[others][order]
    thresholds, rates, found = [], [], [np.zeros(0)]
    for weights in draws:
        thresholds += [_threshold(probability, falling, row[their_scan], allowed) for row in weights]
        rates.append(weights @ false / len(false))
        drawn = weights @ nodules
        found.append((weights @ hits)[drawn > 0] / drawn[drawn > 0])
    shares = np.concatenate(found)
    return {
        "threshold_ci95": interval(np.array(thresholds)).tolist(),
        "false_positives_per_scan_ci95": interval(np.concatenate(rates)).tolist(),
        "sensitivity_ci95": interval(shares).tolist() if len(shares) else None,
    }


def _threshold(probability: FloatArray, others: FloatArray, weights: FloatArray, allowed: float) -> float:
    """Return the lowest of the probabilities at or above which no more others than allowed lie, by weight.

    Args:
        probability: (n,) of all candidates.
        others: (m,) of those that are no nodule, falling.
        weights: (m,) how often each was drawn.
        allowed: how many may be called.
    """
    beyond = np.flatnonzero(np.cumsum(weights) > allowed)
    if not len(beyond):
        return float(probability.min())
    # the first that is one too many, and all that tie with it, must stay below
    above = probability[probability > others[beyond[0]]]
    return float(above.min()) if len(above) else float(np.nextafter(others[beyond[0]], np.inf))
