"""How well labelled cutouts are ranked: ROC AUC, the share found at few false calls, by size, and paired differences.

The bootstrap draws patients, since the candidates of one resemble each other. Draws that hold one class alone say
nothing and are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from luna16_monai.evaluation.bootstrap import drawn_weights, interval
from luna16_monai.evaluation.roc import roc_auc

FloatArray = NDArray[np.float64]

FALSE_CALLS = (0.01, 0.05)
SIZES: Mapping[str, tuple[float, float]] = {"<8": (0, 8), "8-15": (8, 15), ">=15": (15, math.inf)}
"""Half-open bins of the diameter in mm."""
FEW_PATIENTS = 5
_ELEMENTS_PER_CHUNK = 2_000_000


def found_at(
    probability: ArrayLike,
    label: ArrayLike,
    rates: Sequence[float] = FALSE_CALLS,
    weights: ArrayLike | None = None,
    counted: ArrayLike | None = None,
) -> FloatArray:
    """Return the share of positives above the lowest threshold at which few enough negatives are called.

    A candidate is called where its probability is strictly above the threshold, which is that of a negative. So ties
    with it are never found.

    Args:
        probability: (n,).
        label: (n,) 0 or 1.
        rates: the largest share of the negatives that may be called.
        weights: (d, n), how often each candidate counts, in each of d draws; None for once.
        counted: (n,) bool, the positives whose share is wanted; None for all.

    Returns:
        (d, rates), NaN for a draw without negatives or without such positives.

    Raises:
        ValueError: the arrays do not fit together, or a rate is not from 0 to below 1.
    """
    values, truth = np.asarray(probability, np.float64), np.asarray(label)
    counts = np.ones((1, len(values))) if weights is None else np.asarray(weights, np.float64)
    if values.shape != truth.shape or counts.shape[1:] != values.shape:
        raise ValueError(
            f"probability {values.shape}, label {truth.shape}, weights {counts.shape}: give (n,), (n,) and (d, n)"
        )
    if not all(0 <= rate < 1 for rate in rates):
        raise ValueError(f"rates {list(rates)}: give shares from 0 to below 1")
    negatives = np.flatnonzero(truth == 0)
    negatives = negatives[np.argsort(-values[negatives], kind="stable")]
    positives = np.flatnonzero((truth == 1) & (True if counted is None else np.asarray(counted, bool)))
    result = np.full((len(counts), len(rates)), np.nan)
    if not len(negatives) or not len(positives):
        return result
    called = np.cumsum(counts[:, negatives], axis=1)
    wanted = counts[:, positives]
    with np.errstate(invalid="ignore"):
        for column, rate in enumerate(rates):
            # 1e-9: 0.05 * 60 may come out a little below 3
            over = called > rate * called[:, -1:] + 1e-9
            threshold = values[negatives[over.argmax(1)]]
            found = (wanted * (values[positives] > threshold[:, None])).sum(1)
            result[:, column] = np.where(over.any(1), found / wanted.sum(1), np.nan)
    return result


def benchmark(
    probabilities: Mapping[str, FloatArray],
    label: NDArray[np.integer[Any]],
    patient: Sequence[str],
    diameter_mm: FloatArray,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Score weights on the same candidates, each alone and in difference to the first.

    Args:
        probabilities: (n,) by the name of the weights.
        label: (n,) 0 or 1.
        patient: (n,) of each candidate, by which the bootstrap draws.
        diameter_mm: (n,) of the nodules, NaN where it is not known.
        draws: of the bootstrap, the same for all weights; 0 gives no intervals.
        seed: of the draws.

    Returns:
        ``nodules``, ``negatives``, ``patients``, ``weights`` (for each its ``name``, ``roc_auc``, ``roc_auc_ci95``,
        ``found_at``, ``found_at_ci95``, ``by_diameter_mm``), ``differences`` (for each but the first the same, as
        its own score minus that of the first) and ``warnings``.

    Raises:
        ValueError: one class alone, or arrays that do not fit together.
    """
    label = np.asarray(label)
    if set(np.unique(label).tolist()) != {0, 1}:
        raise ValueError(f"the candidates hold label {np.unique(label).tolist()} alone: nodules and others are needed")
    names, code = np.unique(np.asarray(patient), return_inverse=True)
    sizes = {name: (diameter_mm >= low) & (diameter_mm < high) for name, (low, high) in SIZES.items()}
    rows = 1 + _ELEMENTS_PER_CHUNK // len(label)
    drawn: dict[str, list[FloatArray]] = {name: [] for name in probabilities}
    for weights in drawn_weights(len(names), draws, seed, rows):
        for name, one in probabilities.items():
            drawn[name].append(_scores(one, label, sizes, weights[:, code]))
    point = {name: _scores(one, label, sizes)[0] for name, one in probabilities.items()}
    spread = {name: np.concatenate(parts) if parts else None for name, parts in drawn.items()}
    first = next(iter(probabilities))
    counts = {name: int(((label == 1) & inside).sum()) for name, inside in sizes.items()}
    differences = []
    for name in [name for name in probabilities if name != first]:
        mine, other = spread[name], spread[first]
        apart = None if mine is None or other is None else mine - other
        differences.append({"name": name, "from": first, **_told(point[name] - point[first], apart, counts)})
    return {
        "nodules": int((label == 1).sum()),
        "negatives": int((label == 0).sum()),
        "patients": len(names),
        "weights": [{"name": name, **_told(point[name], spread[name], counts)} for name in probabilities],
        "differences": differences,
        "warnings": _warnings(label, code, draws),
    }


def _scores(
    probability: FloatArray,
    label: NDArray[Any],
    sizes: Mapping[str, NDArray[np.bool_]],
    weights: FloatArray | None = None,
) -> FloatArray:
    """Return (d, 1 + rates x (1 + sizes)): the AUC, what is found of all, and what of each size."""
    parts = [roc_auc(probability, label, weights)[:, None], found_at(probability, label, weights=weights)]
    parts += [found_at(probability, label, weights=weights, counted=inside) for inside in sizes.values()]
    return np.concatenate(parts, axis=1)


def _told(point: FloatArray, drawn: FloatArray | None, counts: Mapping[str, int]) -> dict[str, Any]:
    """Return a row of `_scores` with its intervals as JSON has it."""
    bounds = [None if drawn is None else _interval(column) for column in (drawn.T if drawn is not None else point)]

    def part(start: int) -> dict[str, Any]:
        places = list(zip(FALSE_CALLS, range(start, start + len(FALSE_CALLS)), strict=True))
        return {
            "found_at": {f"{rate:g}": _number(point[place]) for rate, place in places},
            "found_at_ci95": None if drawn is None else {f"{rate:g}": bounds[place] for rate, place in places},
        }

    by_size = {
        name: {"nodules": count, **part(1 + len(FALSE_CALLS) * (number + 1))}
        for number, (name, count) in enumerate(counts.items())
    }
    return {"roc_auc": _number(point[0]), "roc_auc_ci95": bounds[0], **part(1), "by_diameter_mm": by_size}


def _interval(drawn: FloatArray) -> list[float] | None:
    known = drawn[~np.isnan(drawn)]
    return interval(known).tolist() if len(known) else None


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _warnings(label: NDArray[Any], code: NDArray[Any], draws: int) -> list[str]:
    """Say where the intervals show too little."""
    few = len(np.unique(code[label == 0]))
    if draws and few < FEW_PATIENTS:
        return [
            f"the candidates that are no nodules come from {few} patient{'s' * (few != 1)}: the intervals do not show "
            "how other patients' would differ"
        ]
    return []
