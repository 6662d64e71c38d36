"""How far a probability can be believed, and where to cut it: calibration, its measures, and thresholds.

A network trained on one nodule in six candidates is far too sure of itself where one in 500 is real. Platt scaling
mends that with a straight line on the logit: the slope for over- or underconfidence, the offset for the other share
of nodules. Temperature scaling is the same line through the origin; it cannot follow a change of that share and is
here for comparison. Isotonic regression was left aside: with some hundred nodules it makes steps that tie
candidates, and so changes the FROC. A line with a positive slope leaves every ranking as it was, but that
probabilities within 1e-8 of 0 or of 1 become equal.

All arrays have one row a candidate: `probability` in 0..1, `label` 0 or 1 (nodule).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

IntArray = NDArray[np.integer[Any]]

_NEAREST_TO_CERTAIN = 1e-8
"""Logits are taken of probabilities this far from 0 and 1: less than the 6e-8 by which a float32 can miss 1."""
_SLOPE_BOUNDS = (1e-3, 1e3)
"""Slopes stay positive, so that no calibration reverses a ranking; scores that tell nothing get nearly flat."""


@dataclass(frozen=True)
class Calibration:
    """A line on the logit: calibrated = sigmoid(``slope`` x logit(probability) + ``offset``)."""

    slope: float
    offset: float

    def apply(self, probability: FloatArray) -> FloatArray:
        """Return calibrated probabilities, of the shape given."""
        from scipy.special import expit

        return np.asarray(expit(self.slope * _logit(probability) + self.offset), dtype=np.float64)


class ReliabilityCurve(NamedTuple):
    """Per bin that holds a candidate, (k,) each: mean probability, share of nodules among them, and how many."""

    mean_probability: FloatArray
    nodule_share: FloatArray
    candidates: IntArray


def fit_platt(probability: FloatArray, label: IntArray) -> Calibration:
    """Return the slope and offset that make the labels most likely.

    The labels are drawn in a little, to (n + 1) / (n + 2) for n nodules and 1 / (n + 2) for n others: so the slope
    stays finite where a threshold separates the classes.

    Raises:
        ValueError: fewer than two classes; probabilities or labels out of range, or not one of each per row.

    Source:
        Platt 1999, Probabilistic Outputs for Support Vector Machines; Lin, Lin and Weng 2007,
        doi:10.1007/s10994-007-5018-6.
    """
    return _fit_line(probability, label, with_offset=True)


def fit_temperature(probability: FloatArray, label: IntArray) -> Calibration:
    """Return the slope alone, that is 1 / temperature, with labels drawn in as in `fit_platt`.

    Raises:
        ValueError: as `fit_platt`.

    Source:
        Guo et al. 2017, On Calibration of Modern Neural Networks.
    """
    return _fit_line(probability, label, with_offset=False)


def cross_fit(
    probability: FloatArray,
    label: IntArray,
    scan: IntArray,
    folds: int = 5,
    seed: int = 0,
    fit: Callable[[FloatArray, IntArray], Calibration] = fit_platt,
) -> FloatArray:
    """Calibrate every scan by a line fitted to the scans of the other folds, (n,).

    So the result can be judged on the same data without having seen it. Scans are dealt to the folds at random,
    those with the most nodules first, so that every fold gets its share.

    Args:
        probability: (n,) raw probabilities.
        label: (n,) 0 or 1.
        scan: (n,) number of each row's scan.
        folds: number of folds, 2 or more.
        seed: of the dealing.
        fit: `fit_platt` or `fit_temperature`.

    Raises:
        ValueError: fewer scans than folds, all nodules in one fold, or as `fit`.
    """
    _check(probability, label)
    if scan.shape != label.shape:
        raise ValueError(f"scans have shape {scan.shape}, labels {label.shape}: name one scan a row")
    scans, scan_of_row = np.unique(scan, return_inverse=True)
    if scans.size < 2:
        raise ValueError(
            f"candidates of {scans.size} scan: calibration needs two or more, to fit on one, judge on another"
        )
    if not 2 <= folds <= scans.size:
        raise ValueError(f"number of folds ({folds}) must be 2 to {scans.size}, the number of scans: choose another")
    nodules_of_scan = np.bincount(scan_of_row, weights=label)
    order = np.lexsort((np.random.default_rng(seed).random(scans.size), -nodules_of_scan))
    fold_of_scan = np.empty(scans.size, dtype=np.int64)
    fold_of_scan[order] = np.arange(scans.size) % folds

    fold = fold_of_scan[scan_of_row]
    calibrated = np.empty(probability.shape, dtype=np.float64)
    for k in range(folds):
        held_out = fold == k
        calibrated[held_out] = fit(probability[~held_out], label[~held_out]).apply(probability[held_out])
    return calibrated


def brier_score(probability: FloatArray, label: IntArray) -> float:
    """Return the mean squared difference of probability and label. Raises ValueError where rows do not fit."""
    _check(probability, label)
    return float(np.mean((probability - label) ** 2))


def reliability_curve(probability: FloatArray, label: IntArray, bins: int = 15) -> ReliabilityCurve:
    """Return the mean probability against the share of nodules in `bins` bins of equal width; 1 belongs to the last.

    Raises:
        ValueError: fewer than one bin; rows that do not fit.
    """
    _check(probability, label)
    if bins < 1:
        raise ValueError(f"number of bins ({bins}) must be 1 or more: 15 is usual")
    bin_of_row = np.minimum((probability * bins).astype(np.int64), bins - 1)
    count = np.bincount(bin_of_row, minlength=bins)
    held = count > 0
    sums = (np.bincount(bin_of_row, weights=values, minlength=bins) for values in (probability, label))
    mean_probability, nodule_share = (total[held] / count[held] for total in sums)
    return ReliabilityCurve(mean_probability, nodule_share, count[held])


def expected_calibration_error(probability: FloatArray, label: IntArray, bins: int = 15) -> float:
    """Return the mean distance of the reliability curve from the diagonal, weighed by the candidates in each bin.

    Raises:
        ValueError: as `reliability_curve`.

    Source:
        Guo et al. 2017, On Calibration of Modern Neural Networks, section 2.
    """
    curve = reliability_curve(probability, label, bins)
    return float(np.average(np.abs(curve.mean_probability - curve.nodule_share), weights=curve.candidates))


def best_f1_threshold(probability: FloatArray, label: IntArray) -> float:
    """Return the probability from which on "nodule" gives the highest F1; of equally good ones the highest.

    Chosen on the labels it is judged by, it flatters: say so beside the number.

    Raises:
        ValueError: no row is a nodule; rows that do not fit.
    """
    _check(probability, label)
    if not label.any():
        raise ValueError(f"no nodule among the rows ({label.size}), so there is no F1: pass labels of both classes")
    threshold, true_positives, false_positives = counts_at_thresholds(probability, label)
    f1 = 2 * true_positives / (true_positives + false_positives + label.sum())
    return float(threshold[np.argmax(f1)])


def threshold_at_false_positives_per_scan(
    probability: FloatArray, label: IntArray, n_scans: int, rate: float = 1.0
) -> float:
    """Return the lowest probability from which on "nodule" errs at most `rate` times a scan.

    Args:
        probability: (n,) probabilities.
        label: (n,) 0 or 1.
        n_scans: number of scans, those without a candidate included.
        rate: false positives allowed per scan.

    Returns:
        One of the probabilities, or the next number above them all where even the highest brings too many.

    Raises:
        ValueError: fewer than one scan, a negative rate; rows that do not fit.
    """
    _check(probability, label)
    if n_scans < 1 or not rate >= 0:
        raise ValueError(
            f"false positives a scan ({rate}) over {n_scans} scans: pass a rate from 0 on and 1 scan or more"
        )
    threshold, _, false_positives = counts_at_thresholds(probability, label)
    allowed = threshold[false_positives <= rate * n_scans]
    return float(allowed[-1] if allowed.size else np.nextafter(threshold[0], np.inf))


def confusion(probability: FloatArray, label: IntArray, threshold: float) -> dict[str, int | float | None]:
    """Return what calling everything from `threshold` on a nodule gets right and wrong.

    Returns:
        ``tp fp tn fn`` as counts; ``precision recall specificity f1``, None where nothing stands below the line.

    Raises:
        ValueError: rows that do not fit.
    """
    _check(probability, label)
    called, nodule = probability >= threshold, label == 1
    tp, fp = int((called & nodule).sum()), int((called & ~nodule).sum())
    tn, fn = int((~called & ~nodule).sum()), int((~called & nodule).sum())
    return {
        "tp": tp,
        "fp": fp,
        "tn": tn,
        "fn": fn,
        "precision": _share(tp, tp + fp),
        "recall": _share(tp, tp + fn),
        "specificity": _share(tn, tn + fp),
        "f1": _share(2 * tp, 2 * tp + fp + fn),
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def counts_at_thresholds(probability: FloatArray, label: IntArray) -> tuple[FloatArray, IntArray, IntArray]:
    """Return the distinct probabilities, falling, and the nodules and the others at or above each, (k,) each."""
    order = np.argsort(-probability, kind="stable")
    falling = probability[order]
    last_of_equals = np.flatnonzero(np.append(falling[1:] < falling[:-1], True))
    true_positives = np.cumsum(label[order], dtype=np.int64)[last_of_equals]
    return falling[last_of_equals], true_positives, last_of_equals + 1 - true_positives


def _fit_line(probability: FloatArray, label: IntArray, with_offset: bool) -> Calibration:
    _check(probability, label)
    n_nodules = int(label.sum())
    n_others = label.size - n_nodules
    if not n_nodules or not n_others:
        raise ValueError(f"{n_nodules} nodules and {n_others} others cannot be calibrated: pass rows of both classes")
    # not at the top: a page about a run fits nothing, and would pay for both
    from scipy.optimize import minimize
    from scipy.special import expit

    target = np.where(label == 1, (n_nodules + 1) / (n_nodules + 2), 1 / (n_others + 2))
    x = _logit(probability)
    # The rarer class sets the scale: a mean over all rows would be so small that the search stops too early.
    scale = min(n_nodules, n_others)

    def cost_and_gradient(line: FloatArray) -> tuple[float, FloatArray]:
        slope, offset = line
        z = slope * x + offset
        residual = expit(z) - target
        return (np.logaddexp(0, z) - target * z).sum() / scale, np.array([residual @ x, residual.sum()]) / scale

    offset_bounds = (None, None) if with_offset else (0.0, 0.0)
    found = minimize(
        cost_and_gradient,
        x0=np.array([1.0, 0.0]),
        jac=True,
        method="L-BFGS-B",
        bounds=[_SLOPE_BOUNDS, offset_bounds],
        options={"ftol": 1e-15, "gtol": 1e-9},
    )
    return Calibration(slope=float(found.x[0]), offset=float(found.x[1]))


def _logit(probability: FloatArray) -> FloatArray:
    from scipy.special import logit

    clipped = np.clip(np.asarray(probability, dtype=np.float64), _NEAREST_TO_CERTAIN, 1 - _NEAREST_TO_CERTAIN)
    return np.asarray(logit(clipped), dtype=np.float64)


def _check(probability: FloatArray, label: IntArray) -> None:
    """Check that each of 1 or more rows has a probability from 0 to 1 and a label of 0 or 1; raises ValueError."""
    if probability.ndim != 1 or probability.shape != label.shape or not label.size:
        raise ValueError(
            f"probabilities have shape {probability.shape}, labels {label.shape}: pass (n,) each, n from 1 on"
        )
    bad = np.flatnonzero(~((probability >= 0) & (probability <= 1)))  # NaN is bad
    if bad.size:
        raise ValueError(
            f"probability ({probability[bad[0]]}) of row {bad[0]} lies outside 0 to 1: pass probabilities, not logits"
        )
    bad = np.flatnonzero((label != 0) & (label != 1))
    if bad.size:
        raise ValueError(f"label ({label[bad[0]]}) of row {bad[0]} is neither 0 nor 1: pass 1 for a nodule, else 0")


CALIBRATION_FOLDS = 5
OPERATING_RATE = 1.0
"""The false positives a scan at which a threshold is reported, and below which a nodule counts as missed."""


def calibrate(
    probability: FloatArray, label: IntArray, scan: IntArray, seed: int = 0
) -> tuple[FloatArray | None, dict[str, Any]]:
    """Calibrate by Platt scaling, cross-fitted by scan, and tell what it does, with temperature scaling beside it.

    Args:
        probability: (n,) raw.
        label: (n,) 0 or 1.
        scan: (n,) number of each row's scan.
        seed: of the dealing of scans to folds.

    Returns:
        (n,) calibrated probabilities, None where there is too little to fit; and the ``calibration`` of metrics.json:
        each line fitted to all rows (``slope``, ``offset``, for use on other scans), and the Brier score and expected
        calibration error of the raw and of the cross-fitted probabilities. ``skipped`` gives the reason where none.
    """
    fits = {"platt": fit_platt, "temperature": fit_temperature}
    folds = min(CALIBRATION_FOLDS, np.unique(scan).size)
    try:
        calibrated = {name: cross_fit(probability, label, scan, folds, seed, fit) for name, fit in fits.items()}
        lines = {name: fit(probability, label) for name, fit in fits.items()}
    except ValueError as error:
        return None, {"skipped": str(error)}
    summary: dict[str, Any] = {"cross_fitted_folds": folds, "raw": _calibration_errors(probability, label)}
    for name, line in lines.items():
        fitted = {"slope": line.slope, "offset": line.offset}
        summary[name] = {**fitted, **_calibration_errors(calibrated[name], label)}
    return calibrated["platt"], summary


def operating_points(probability: FloatArray, label: IntArray, n_scans: int) -> dict[str, Any]:
    """Return the confusion at two thresholds, chosen on the rows that they are reported on, and labelled so.

    Args:
        probability: (n,).
        label: (n,) 0 or 1, with at least one nodule.
        n_scans: by which false positives are divided.
    """
    chosen = {
        "best_f1": best_f1_threshold(probability, label),
        "one_false_positive_per_scan": threshold_at_false_positives_per_scan(
            probability, label, n_scans, OPERATING_RATE
        ),
    }
    return {
        "chosen_on": "the split that they are reported on, so the figures are optimistic",
        **{name: {"threshold": cut, **confusion(probability, label, cut)} for name, cut in chosen.items()},
    }


def _calibration_errors(probability: NDArray[np.float64], label: IntArray) -> dict[str, float]:
    return {"brier": brier_score(probability, label), "ece": expected_calibration_error(probability, label)}
