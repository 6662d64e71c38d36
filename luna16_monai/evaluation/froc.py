"""LUNA16's official score: the FROC curve, the CPM and their bootstrap intervals.

Everything is a pure function of plain arrays. `match.match_marks` applies the hit rule once; all scores read
its `Match`, and all in the same way: a weight per scan goes in, sensitivities come out. Weights of one give
the score itself, a draw of the bootstrap weighs a scan by how often it was drawn, a subset weighs the other scans 0.
So an interval cannot drift from its score, and 1,000 draws are cumulative sums instead of 1,000 evaluations.

Rules: the evaluation script of LUNA16 (Setio et al. 2017, doi:10.1016/j.media.2017.06.015; van Ginneken et al. 2010,
doi:10.1016/j.media.2010.05.005, for the scoring of ANODE09 that it follows).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from luna16_monai.evaluation.bootstrap import drawn_weights, interval
from luna16_monai.evaluation.match import MarkStatus, Match

FloatArray = NDArray[np.float64]

IntArray = NDArray[np.integer[Any]]

RATES: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""The false positives per scan at which the CPM reads the sensitivity."""
DIAMETER_BINS_MM: dict[str, tuple[float, float]] = {
    "<5": (0.0, 5.0),
    "5-6": (5.0, 6.0),
    "6-8": (6.0, 8.0),
    "8-15": (8.0, 15.0),
    ">=15": (15.0, np.inf),
}
"""Half-open ranges [low, high) by which sensitivities are broken down."""
_ELEMENTS_PER_CHUNK = 2_000_000
"""Draws are scored in chunks of at most this many (draw, false positive) pairs: 16 MB an array."""


class FrocCurve(NamedTuple):
    """Points of the curve in order of falling threshold, (k,) each; the first is (0, 0) at infinity."""

    false_positives_per_scan: FloatArray
    sensitivity: FloatArray
    threshold: FloatArray


class Intervals(NamedTuple):
    """95 % intervals, low and high: of the CPM (2,), and of the sensitivity at each of `RATES` (7, 2)."""

    cpm: FloatArray
    sensitivity_at: FloatArray


def froc_curve(match: Match) -> FrocCurve:
    """Return the FROC curve, one point per distinct probability. Raises ValueError where there is no nodule at all."""
    _require_nodules(match)
    sweep = _sweep(match)
    return FrocCurve(
        sweep.n_false_positives / match.n_scans, sweep.n_hits / match.nodule_scan.size, sweep.threshold.copy()
    )


def sensitivity_at(match: Match, rates: Sequence[float] = RATES) -> FloatArray:
    """Return the sensitivity at each rate of false positives per scan, (len(rates),), linear between points.

    Raises:
        ValueError: there is no nodule at all.
    """
    _require_nodules(match)
    return _sensitivities(_sweep(match), np.ones((1, match.n_scans)), rates).reshape(-1)


def cpm(match: Match) -> float:
    """Return the CPM: the mean sensitivity at `RATES`. Raises ValueError where there is no nodule."""
    return float(sensitivity_at(match).mean())


def ceiling(match: Match) -> float:
    """Share of the nodules with any mark on them: what no classifier of these candidates can exceed.

    Raises:
        ValueError: there is no nodule at all.
    """
    _require_nodules(match)
    return float(match.nodule_reached.mean())


def bootstrap(match: Match, draws: int = 1000, seed: int = 0) -> Intervals:
    """Return 95 % intervals by drawing scans with replacement, bounded by values 26 and 976 of 1,000 sorted ones.

    Draws without any nodule have no sensitivity and are left out.

    Raises:
        ValueError: no nodule at all, or none in any draw; fewer than one draw.
    """
    (drawn,) = _drawn_sensitivities([match], draws, seed, RATES)
    return Intervals(interval(drawn.mean(axis=1)), interval(drawn))


def froc_band(match: Match, rates: Sequence[float], draws: int = 1000, seed: int = 0) -> FloatArray:
    """Return the interval of `bootstrap` at any rates, (len(rates), 2): the band around a drawn curve."""
    (drawn,) = _drawn_sensitivities([match], draws, seed, rates)
    return interval(drawn)


def compare(match_a: Match, match_b: Match, draws: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Return the difference of two submissions, b minus a, with intervals from drawing the same scans for both.

    Returns:
        ``cpm`` and ``sensitivity_at`` of both, ``cpm_difference`` and ``sensitivity_at_difference``, and the 95 %
        intervals of the differences under the same names with ``_ci95``.

    Raises:
        ValueError: they were not matched to the same nodules of the same scans; else as `bootstrap`.
    """
    for what, n_a, n_b in (
        ("scans", match_a.n_scans, match_b.n_scans),
        ("nodules", match_a.nodule_scan.size, match_b.nodule_scan.size),
        ("excluded findings", match_a.n_excluded, match_b.n_excluded),
    ):
        if n_a != n_b:
            raise ValueError(f"number of {what} ({n_a} and {n_b}) differs: match both submissions to the same tables")
    if not np.array_equal(match_a.nodule_scan, match_b.nodule_scan):
        raise ValueError(
            f"the nodules ({match_a.nodule_scan.size}) lie in other scans: match both submissions to the same tables"
        )
    a, b = sensitivity_at(match_a), sensitivity_at(match_b)
    drawn_a, drawn_b = _drawn_sensitivities([match_a, match_b], draws, seed, RATES)
    return {
        "cpm": [float(a.mean()), float(b.mean())],
        "cpm_difference": float((b - a).mean()),
        "cpm_difference_ci95": interval((drawn_b - drawn_a).mean(axis=1)).tolist(),
        "sensitivity_at": _keyed(np.stack((a, b), axis=1)),
        "sensitivity_at_difference": _keyed(b - a),
        "sensitivity_at_difference_ci95": _keyed(interval(drawn_b - drawn_a)),
        "draws": draws,
    }


def by_diameter(match: Match) -> dict[str, dict[str, Any]]:
    """Return nodules and sensitivities of each diameter bin, against the false positives of all scans.

    Sensitivities are None in a bin without nodules.
    """
    everywhere = np.ones((1, match.n_scans))
    bins: dict[str, dict[str, Any]] = {}
    for name, (low, high) in DIAMETER_BINS_MM.items():
        chosen = (match.nodule_diameter_mm >= low) & (match.nodule_diameter_mm < high)
        sensitivities = _sensitivities(_sweep(match, chosen), everywhere, RATES)[0]
        bins[name] = {"nodules": int(chosen.sum()), "sensitivity_at": _keyed(sensitivities)}
    return bins


def by_group(match: Match, scan_group: IntArray) -> dict[str, dict[str, Any]]:
    """Return scores of each group of scans, such as LUNA16's subsets, each divided by its own scans alone.

    Args:
        match: the matched submission.
        scan_group: (n_scans,) the group that each scan belongs to.

    Returns:
        Per group ``scans``, ``nodules``, ``cpm`` and ``sensitivity_at``, None where the group has no nodule.

    Raises:
        ValueError: there is not one group per scan.
    """
    if scan_group.shape != (match.n_scans,):
        raise ValueError(f"groups have shape {scan_group.shape}, not ({match.n_scans},): name one group per scan")
    groups = np.unique(scan_group)
    membership = (scan_group == groups[:, None]).astype(np.float64)
    sensitivities = _sensitivities(_sweep(match), membership, RATES)
    return {
        str(group): {
            "scans": int(member.sum()),
            "nodules": int(member[match.nodule_scan].sum()),
            "cpm": _number(row.mean()),
            "sensitivity_at": _keyed(row),
        }
        for group, member, row in zip(groups, membership, sensitivities, strict=True)
    }


def score(match: Match, draws: int = 1000, seed: int = 0, scan_group: IntArray | None = None) -> dict[str, Any]:
    """Return all scores of a submission as one JSON-ready object, with the keys of ``luna16 evaluate --json``.

    Args:
        match: the matched submission.
        draws: of the bootstrap; 0 leaves the intervals None.
        seed: of the draws.
        scan_group: (n_scans,) subset of each scan, for ``by_subset``; None leaves that key out.

    Raises:
        ValueError: there is no nodule at all, or `draws` is below 0.
    """
    sensitivities = sensitivity_at(match)
    intervals = bootstrap(match, draws, seed) if draws else None
    status = np.bincount(match.mark_status, minlength=len(MarkStatus))
    n_hit = int((match.nodule_mark >= 0).sum())
    result: dict[str, Any] = {
        "cpm": float(sensitivities.mean()),
        "cpm_ci95": intervals and intervals.cpm.tolist(),
        "sensitivity_at": _keyed(sensitivities),
        "sensitivity_at_ci95": intervals and _keyed(intervals.sensitivity_at),
        "scans": match.n_scans,
        "scans_without_marks": match.n_scans - np.unique(match.mark_scan).size,
        "nodules": match.nodule_scan.size,
        "true_positives": n_hit,
        "false_positives": int(status[MarkStatus.FALSE_POSITIVE]),
        "false_negatives": match.nodule_scan.size - n_hit,
        "scored_candidates": match.mark_status.size - int(status[MarkStatus.BEYOND_LIMIT]),
        "ignored_on_excluded": int(status[MarkStatus.ON_EXCLUDED]),
        # Counted by nodule, as the official script does: a mark can be the double of two nodules.
        "ignored_double": int(match.nodule_marks.sum()) - n_hit,
        "ignored_beyond_limit": int(status[MarkStatus.BEYOND_LIMIT]),
        "excluded_findings": match.n_excluded,
        "candidate_ceiling": ceiling(match),
        "by_diameter_mm": by_diameter(match),
    }
    if scan_group is not None:
        result["by_subset"] = by_group(match, scan_group)
    return result


@dataclass(frozen=True, eq=False)
class _Sweep:
    """Hits and false positives in falling order of probability, and how many lie at or above each threshold.

    Attributes:
        false_positive_scan: (f,) scans of the false positives, most probable first.
        hit_scan: (h,) scans of the nodules that were hit, likewise.
        nodule_scan: (n,) scans of all nodules, hit or not.
        threshold: (k,) infinity, then the distinct probabilities, falling.
        n_false_positives: (k,) false positives at or above each threshold.
        n_hits: (k,) nodules hit at or above each threshold.
    """

    false_positive_scan: IntArray
    hit_scan: IntArray
    nodule_scan: IntArray
    threshold: FloatArray
    n_false_positives: IntArray
    n_hits: IntArray

    @property
    def corners(self) -> IntArray:
        """Indices of the thresholds at which the curve can bend, whatever the weights: all around a rise."""
        rises = np.diff(self.n_hits, prepend=0) > 0
        return np.flatnonzero(rises | np.append(rises[1:], True))


def _sweep(match: Match, chosen: NDArray[np.bool_] | None = None) -> _Sweep:
    """Sort a match for counting; with `chosen` (n,) the other nodules and the marks on them are left out."""
    if chosen is None:
        chosen = np.ones(match.nodule_scan.size, dtype=bool)
    hit = np.flatnonzero(chosen & (match.nodule_mark >= 0))
    hit_probability = match.mark_probability[match.nodule_mark[hit]]
    false_positive = np.flatnonzero(match.mark_status == MarkStatus.FALSE_POSITIVE)
    false_positive_probability = match.mark_probability[false_positive]

    threshold = np.unique(np.concatenate((hit_probability, false_positive_probability, [np.inf])))[::-1]
    hit_order = np.argsort(-hit_probability, kind="stable")
    false_positive_order = np.argsort(-false_positive_probability, kind="stable")
    return _Sweep(
        false_positive_scan=match.mark_scan[false_positive[false_positive_order]],
        hit_scan=match.nodule_scan[hit[hit_order]],
        nodule_scan=match.nodule_scan[chosen],
        threshold=threshold,
        n_false_positives=np.searchsorted(-false_positive_probability[false_positive_order], -threshold, "right"),
        n_hits=np.searchsorted(-hit_probability[hit_order], -threshold, "right"),
    )


def _sensitivities(sweep: _Sweep, weights: FloatArray, rates: Sequence[float]) -> FloatArray:
    """Return the sensitivity at each rate for each row of scan weights.

    Args:
        sweep: the sorted hits and false positives.
        weights: (d, n_scans) how often each scan counts; a row's sum is its number of scans.
        rates: false positives per scan.

    Returns:
        (d, len(rates)); rows whose scans hold no nodule are NaN.
    """
    corners = sweep.corners
    false_positives = _weighted_counts(weights, sweep.false_positive_scan, sweep.n_false_positives[corners])
    hits = _weighted_counts(weights, sweep.hit_scan, sweep.n_hits[corners])
    all_false_positives = false_positives[:, -1:]
    nodules = weights[:, sweep.nodule_scan].sum(axis=1, keepdims=True)

    # There and back, because the official script goes by way of the ROC's false positive rate: where the curve
    # rises exactly at a rate that is read, the last bit decides between the lower and the upper end of the step.
    share = np.divide(false_positives, all_false_positives, out=np.zeros_like(hits), where=all_false_positives > 0)
    per_scan = share * all_false_positives / weights.sum(axis=1, keepdims=True)
    sensitivity = np.divide(hits, nodules, out=np.full_like(hits, np.nan), where=nodules > 0)
    return np.stack([np.interp(rates, x, y) for x, y in zip(per_scan, sensitivity, strict=True)])


def _weighted_counts(weights: FloatArray, scan: IntArray, counts: IntArray) -> FloatArray:
    """Return for each row of weights that of the first ``counts[i]`` of the events in `scan`, (d, len(counts))."""
    running = np.zeros((len(weights), scan.size + 1))
    np.cumsum(np.take(weights, scan, axis=1), axis=1, out=running[:, 1:])
    return np.take(running, counts, axis=1)


def _drawn_sensitivities(matches: Sequence[Match], draws: int, seed: int, rates: Sequence[float]) -> list[FloatArray]:
    """Return sensitivities of each match in the same draws of scans, (draws that hold a nodule, len(rates)) each."""
    if draws < 1:
        raise ValueError(f"number of bootstrap draws ({draws}) must be 1 or more: 1000 is LUNA16's own")
    for match in matches:
        _require_nodules(match)
    sweeps = [_sweep(match) for match in matches]
    most_events = max(sweep.false_positive_scan.size + sweep.nodule_scan.size for sweep in sweeps)
    chunks = [
        [_sensitivities(sweep, weights, rates) for sweep in sweeps]
        for weights in drawn_weights(matches[0].n_scans, draws, seed, rows=1 + _ELEMENTS_PER_CHUNK // most_events)
    ]
    drawn = [np.concatenate(parts) for parts in zip(*chunks, strict=True)]
    held_a_nodule = ~np.isnan(drawn[0][:, 0])
    if not held_a_nodule.any():
        raise ValueError(f"none of the bootstrap draws ({draws}) holds a nodule: make more draws, 1000 is usual")
    return [values[held_a_nodule] for values in drawn]


def _require_nodules(match: Match) -> None:
    """Check that there is a nodule, else there is no sensitivity; raises ValueError."""
    if match.nodule_scan.size == 0:
        raise ValueError(
            f"no nodule (0) in the {match.n_scans} scans, so there is no sensitivity:"
            " do the annotations belong to these scans?"
        )


def _keyed(values: FloatArray) -> dict[str, Any]:
    """Return one entry per rate: ``{"0.125": ..., ..., "8": ...}``, a number or, for several columns, a list."""
    return {f"{rate:g}": _number(value) for rate, value in zip(RATES, values, strict=True)}


def _number(value: Any) -> Any:
    """Return a plain float or list for JSON; None for what is not defined (NaN)."""
    return None if np.isnan(value).any() else np.asarray(value).tolist()
