"""How well malignant nodules are separated from benign ones, beside what size alone gives.

Radiologists call large nodules malignant, so the diameter alone ranks them nearly as well as networks do. Here the
network stands beside it, and beside a logistic regression on diameter and mean HU, on the same nodules with the same
draws. Then calibration among nodules, and what becomes of each nodule on the whole way: candidate, nodule, malignant.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luna16_monai.dataset.splits import Split
from luna16_monai.evaluation.calibration import OPERATING_RATE, calibrate, threshold_at_false_positives_per_scan
from luna16_monai.evaluation.roc import compare_roc_auc
from luna16_monai.machine.folder_lists import Folders
from luna16_monai.malignancy.labels import BENIGN, LEFT_OUT, MALIGNANT, NON_NODULE, UNRATED, MalignancyKinds
from luna16_monai.malignancy.size_baseline import measure_nodules, require_scikit_learn, score_ruler
from luna16_monai.phantom.drawn import read_drawn
from luna16_monai.runs.folder import RunFolder
from luna16_monai.runs.seen import Seen, read_seen, refuse_seen
from luna16_monai.store.reading import Store
from luna16_monai.tables.hits import best_point, nearest_point
from luna16_monai.tables.lidc import read_patients
from luna16_monai.tables.points import PointTable

IntArray = NDArray[np.integer[Any]]

FloatArray = NDArray[np.float64]

OUTCOMES = ("missed", "benign", "malignant")
"""What becomes of a nodule or another candidate: left by the first network, or how the second one calls it."""
CALLED_FROM = 0.5
"""From this calibrated probability on a nodule is called malignant."""


def end_to_end(
    nodule_kind: IntArray,
    nodule_found: NDArray[np.bool_],
    nodule_called: NDArray[np.bool_],
    other_found: NDArray[np.bool_],
    other_called: NDArray[np.bool_],
) -> dict[str, dict[str, int]]:
    """Count what becomes of nodules and of other candidates on the whole way.

    Args:
        nodule_kind: (n,) `MALIGNANT`, `BENIGN` or else neither.
        nodule_found, nodule_called: (n,) whether the first network found it, and the second called it malignant.
        other_found, other_called: (m,) the same of the candidates that are no nodules.

    Returns:
        For ``malignant``, ``benign`` and ``non_nodule`` (candidates) how many ended as each of `OUTCOMES`.
    """
    table: dict[str, dict[str, int]] = {}
    for name, found, called in (
        ("malignant", nodule_found[nodule_kind == MALIGNANT], nodule_called[nodule_kind == MALIGNANT]),
        ("benign", nodule_found[nodule_kind == BENIGN], nodule_called[nodule_kind == BENIGN]),
        ("non_nodule", other_found, other_called),
    ):
        counts = (~found, found & ~called, found & called)
        table[name] = {outcome: int(count.sum()) for outcome, count in zip(OUTCOMES, counts, strict=True)}
    return table


class MalignancyScores:
    """Give ``malignancy`` of metrics.json from the probabilities, and write rated_nodules.csv; see `training.results`.

    Each nodule is scored once, by the candidate nearest to its middle; a nodule without a candidate has no score, and
    counts as missed on the whole way.

    Args:
        output_dir: where rated_nodules.csv goes.
        dataset_dir: the data folder, or several, for the patients.
        store: for the nodules' brightness.
        split: the regression is fitted on the nodules of its training series.
        kinds: the nodules and what the readers made of them.
        nodule_run: the output folder of a run of the first bundle on the same candidates; None leaves the whole way
            out.
        validation_negatives: the sample of negatives that is validated on; None for all, which the whole way needs.
        draws: of the bootstrap over patients.
        seed: of the draws and of the folds of the calibration.

    Raises:
        ModuleNotFoundError: scikit-learn is missing.
        ValueError: the first bundle's run was trained on validation scans, or negatives are left out.
    """

    def __init__(
        self,
        output_dir: Path | str,
        dataset_dir: Folders,
        store: Store,
        split: Split,
        kinds: MalignancyKinds,
        nodule_run: Path | str | None = None,
        validation_negatives: int | None = None,
        draws: int = 1000,
        seed: int = 0,
    ) -> None:
        require_scikit_learn()
        self.folder, self.dataset_dir, self.store, self.split = RunFolder(output_dir), dataset_dir, store, split
        self.kinds, self.draws, self.seed = kinds, draws, seed
        self.nodule_run = None if nodule_run is None else RunFolder(nodule_run)
        if self.nodule_run is not None:
            if validation_negatives is not None:
                raise ValueError(
                    f"nodule_run with validation_negatives {validation_negatives}: false positives a scan need all "
                    "candidates; set one of the two to null"
                )
            drawn = read_drawn(dataset_dir)
            seen = Seen.of(self.nodule_run.seen_series(), drawn, read_seen(self.nodule_run.weights))
            refuse_seen(f"nodule_run {nodule_run}", seen, drawn, validation=split.validation_series)
        # the same in every epoch
        self._ruler: dict[str, FloatArray] = {}
        self._test = np.empty((0, 2))

    def __call__(self, probability: FloatArray) -> dict[str, Any]:
        """Return the part of metrics.json; ``probability`` as of `score`."""
        return {"malignancy": self.score(probability)}

    def score(self, probability: FloatArray) -> dict[str, Any]:
        """Score the validation.

        Args:
            probability: (n,) of malignancy, of each validation candidate.
        """
        kinds = self.kinds
        held_out = kinds.nodules.series_codes(self.split.validation_series) >= 0
        nearest = nearest_point(self.split.validation.table, kinds.nodules, self.split.validation.table.values > 0)
        rows = np.flatnonzero(held_out)
        rated = np.flatnonzero(held_out & np.isin(kinds.kind, (MALIGNANT, BENIGN)) & (nearest >= 0))
        malignant = (kinds.kind[rated] == MALIGNANT).astype(np.int64)
        scored = probability[nearest[rated]]
        patients = self._patients(kinds.nodules.select(rated))
        if not self._ruler:
            train = np.flatnonzero(
                (kinds.nodules.series_codes(self.split.train_series) >= 0) & np.isin(kinds.kind, (MALIGNANT, BENIGN))
            )
            self._test = measure_nodules(kinds.nodules.select(rated), self.store)
            self._ruler = score_ruler(
                measure_nodules(kinds.nodules.select(train), self.store),
                (kinds.kind[train] == MALIGNANT).astype(np.int64),
                self._test,
            )
        compared = compare_roc_auc({"network": scored, **self._ruler}, malignant, patients, self.draws, self.seed)
        calibrated, calibration = calibrate(scored, malignant, patients, self.seed)
        counts = {
            name: int((kinds.kind[rows] == kind).sum())
            for name, kind in {
                "malignant": MALIGNANT,
                "benign": BENIGN,
                "left_out": LEFT_OUT,
                "unrated": UNRATED,
            }.items()
        }
        told: dict[str, Any] = {
            "rule": kinds.rule,
            "nodules": {**counts, "without_candidate": counts["malignant"] + counts["benign"] - len(rated)},
            "patients": len(np.unique(patients)),
            "compared": compared,
            "calibration": calibration,
        }
        columns: dict[str, Any] = {"malignancy": scored, "label": malignant, "mean_hu": self._test[:, 1], **self._ruler}
        del columns["diameter"]
        if calibrated is not None:
            columns["calibrated_malignancy"] = calibrated
        if self.nodule_run is not None:
            first = self._first_probability(self.nodule_run, self.split.validation.table)
            told["end_to_end"], found = self._whole_way(first, probability, calibration, rows)
            columns["found"] = found[rated].astype(int)
        table = kinds.nodules.select(rated)
        self.folder.write_rated_nodules(
            table,
            median_rating=[float(np.median(kinds.readings.ratings[row])) for row in kinds.reading[rated]],
            **columns,
        )
        return told

    def _patients(self, nodules: PointTable) -> IntArray:
        patients = read_patients(self.dataset_dir)
        return np.unique([patients.of(uid) for uid in nodules.row_series()], return_inverse=True)[1]

    def _whole_way(
        self, first: FloatArray, probability: FloatArray, calibration: Mapping[str, Any], rows: IntArray
    ) -> tuple[dict[str, Any], NDArray[np.bool_]]:
        """Return the table from candidate to malignant, and whether each nodule was found, by its row."""
        kinds, candidates = self.kinds, self.split.validation.table
        is_nodule = candidates.values != NON_NODULE
        threshold = threshold_at_false_positives_per_scan(
            first, is_nodule.astype(np.int64), len(self.split.validation_series), OPERATING_RATE
        )
        line = calibration.get("platt")
        called_from = CALLED_FROM if line is None else _raw(CALLED_FROM, line["slope"], line["offset"])
        # of the candidates on a nodule the first network's favourite goes on to the second
        favourite = best_point(candidates, kinds.nodules, is_nodule, first)
        found = (favourite >= 0) & (first[favourite] >= threshold)
        called = found & (probability[favourite] >= called_from)
        others = np.flatnonzero(~is_nodule)
        table = end_to_end(
            kinds.kind[rows],
            found[rows],
            called[rows],
            first[others] >= threshold,
            probability[others] >= called_from,
        )
        return {
            "nodule_threshold": threshold,
            "malignancy_threshold": called_from,
            "chosen_on": "the split that they are reported on, so the figures are optimistic",
            "counts": table,
        }, found

    def _first_probability(self, run: RunFolder, candidates: PointTable) -> FloatArray:
        """Return the first bundle's probability of each candidate, from its run's submission."""
        path = run.submission_file
        if not path.is_file():
            raise FileNotFoundError(f"no {path}: name the output folder of a run of the nodule bundle as nodule_run")
        submission = run.read_submission()
        known = {submission.row_key(row): submission.values[row] for row in range(len(submission))}
        values = np.array([known.get(candidates.row_key(row), np.nan) for row in range(len(candidates))])
        unknown = np.flatnonzero(np.isnan(values))
        if len(unknown):
            uid = candidates.series_uids[candidates.series[unknown[0]]]
            point = ", ".join(f"{value:.1f}" for value in candidates.points_xyz[unknown[0]])
            raise ValueError(
                f"candidate ({point}) mm of series {uid} is not in {path}: nodule_run must have been validated on the "
                "same scans and all of their candidates; name another run, or null"
            )
        return values


def _raw(calibrated: float, slope: float, offset: float) -> float:
    """Return the raw probability that a calibration line makes ``calibrated``."""
    logit = (np.log(calibrated / (1 - calibrated)) - offset) / slope
    return float(1 / (1 + np.exp(-logit)))
