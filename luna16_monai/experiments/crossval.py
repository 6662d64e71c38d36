"""LUNA16's official cross-validation of a bundle: each subset is scored once, by a network that never saw its patients.

A fold is a training and, when that is over, one scoring. An inner part of the other nine subsets chooses the epoch,
fits the calibration and sets the thresholds; nothing is chosen on the tenth. The folds' probabilities, pooled, are the
submission that LUNA16 scores, once over all scans.

The bundle does the work by its own ``train.yaml`` and ``evaluate.yaml``; what is here says which scans, and adds up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from luna16_monai.evaluation import froc
from luna16_monai.evaluation.by_data_set import scores_by_data_set
from luna16_monai.evaluation.calibration import Calibration, brier_score, confusion, expected_calibration_error
from luna16_monai.evaluation.roc import average_precision, roc_auc
from luna16_monai.evaluation.submission import Evaluation, evaluate, validation_reference
from luna16_monai.experiments.folds import AUDIT, PLAN, Plan, audit_leakage
from luna16_monai.machine.claims import claim
from luna16_monai.machine.files import write_json
from luna16_monai.machine.jobs import Execute, run_jobs
from luna16_monai.phantom.drawn import read_drawn
from luna16_monai.runs.folder import DataRecord, Metrics, RunFolder, RunRecord
from luna16_monai.runs.results import Results, read_results, write_results
from luna16_monai.runs.seen import read_seen, refuse_in_fold
from luna16_monai.store.reading import Store
from luna16_monai.tables.data_sets import DataSets
from luna16_monai.tables.detected import detected_tables
from luna16_monai.tables.lidc import read_patients
from luna16_monai.tables.points import PointTable

FloatArray = NDArray[np.float64]

IntArray = NDArray[np.integer[Any]]

CUTS = ("best_f1", "one_false_positive_per_scan")


def crossval(plan: Plan, execute: Execute, progress: bool = True, draws: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Run the folds that are not finished, check them for leakage, and score them together.

    Args:
        plan: what to do.
        execute: where the folds run, see `jobs.run_jobs`.
        progress: whether to show a bar.
        draws: of the bootstrap that gives the intervals.
        seed: of the draws.

    Returns:
        What metrics.json then holds, see `pool`.

    Raises:
        ValueError: a subset has no CT in the store, the weights to start from were trained on one of the tests, a
            table of ``candidates`` is not out-of-fold, the output folder holds another cross-validation, or scans of
            one patient stand in two splits of a fold.
        RuntimeError: a fold failed.
    """
    store = Store(plan.store_dir)
    subsets, data_sets = store.subsets, DataSets.of(plan.data_dir).series(store.parts)
    if absent := sorted(set(plan.folds) - set(subsets.values())):
        raise ValueError(
            f"no CT of subset {absent[0]} is in {', '.join(map(str, store.store_dirs))} (found: "
            f"{sorted(set(subsets.values()), key=str)}): prepare it too, or name other --folds"
        )
    _refuse_weights_that_saw_a_test(plan, subsets)
    _refuse_candidates_in_fold(plan, subsets)
    claim(plan.output / PLAN, plan.record(), "cross-validation")
    run_jobs([plan.job(fold) for fold in plan.folds], execute, progress)
    audit = audit_leakage(plan, subsets, read_patients(plan.data_dir))
    write_json(plan.output / AUDIT, audit)
    if audit["problems"]:
        raise ValueError(f"{'; '.join(audit['problems'][:3])}: see {plan.output / AUDIT}; nothing was scored")
    return pool(plan, subsets, draws, seed, data_sets)


def _refuse_weights_that_saw_a_test(plan: Plan, subsets: Mapping[str, int | None]) -> None:
    """As far as a record beside the ``init_weights`` lists them."""
    weights = plan.settings.get("init_weights")
    seen = read_seen(None if weights in (None, "null") else weights)
    if seen is None:
        return
    tested = [uid for uid, subset in subsets.items() if subset in plan.folds]
    for uid in seen.among(tested, read_drawn(plan.data_dir)):
        raise ValueError(
            f"init_weights {weights} were trained on series {uid} of subset {subsets[uid]}, which is to be scored: "
            "name other weights, or leave that subset out of --folds"
        )


def _refuse_candidates_in_fold(plan: Plan, subsets: Mapping[str, int | None]) -> None:
    """Before anything is trained, which would find it too: all series that a fold may train on."""
    candidates = plan.settings.get("candidates")
    tables = detected_tables(None if candidates in (None, "null") else candidates, DataSets.of(plan.data_dir))
    kept_out = set(plan.folds) if len(plan.folds) == 1 else set()
    trained = [uid for uid, subset in subsets.items() if subset not in kept_out]
    refuse_in_fold(tables, trained, read_drawn(plan.data_dir))


def pool(
    plan: Plan,
    subsets: Mapping[str, int | None],
    draws: int = 1000,
    seed: int = 0,
    data_sets: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Score the finished folds together, and write ``submission.csv``, ``metrics.json`` and the tables beside it.

    Returns:
        The keys of ``luna16 evaluate --json`` for the pooled submission; ``folds``, each on its own scans;
        ``mean_of_folds``; ``calibration`` and ``thresholds``, which each fold's inner validation has chosen; of several
        ``data_sets``, whose series are told by their name, ``by_data_set``.
    """
    folds = [_Fold.read(plan, fold) for fold in plan.folds]
    run = RunFolder(plan.output)
    marks = _marks(folds, str(run.submission_file))
    probability = marks.values
    label = np.concatenate([fold.label for fold in folds])
    calibrated: dict[str, FloatArray] = {}
    if all(fold.calibrations for fold in folds):
        for kind in ("platt", "temperature"):
            calibrated[kind] = np.concatenate([f.calibrations[kind].apply(f.results.probability) for f in folds])
    run.write_submission(marks, probability, calibrated.get("platt"))
    scans = sorted({uid for fold in folds for uid in fold.results.series_uids})
    # a bundle that asks another question than LUNA16 has no CPM of its folds
    official = any("cpm" in fold.results.metrics for fold in folds)
    truth = validation_reference(plan.data_dir, scans, subsets) if official else None
    evaluation = None if truth is None else evaluate(marks, truth, draws, seed)
    metrics: dict[str, Any] = {
        **_ranking(probability, label),
        **({} if evaluation is None else evaluation.scores),
        "series": len(scans),
        "candidates": int(label.size),
        "positives": int(label.sum()),
        "pooled_folds": list(plan.folds),
        "mean_of_folds": _mean_of_folds([fold.summary["cpm"] for fold in folds if "cpm" in fold.summary]),
        "folds": {str(fold.number): fold.summary for fold in folds},
        "calibration": _calibration(probability, calibrated, label, folds),
        "thresholds": _thresholds(folds),
    }
    if evaluation is not None:
        metrics["cpm_of_calibrated"] = _cpm(evaluation, marks, calibrated.get("platt"))
    if data_sets and len(data_sets) > 1:
        scored = {name: [uid for uid in uids if uid in set(scans)] for name, uids in data_sets.items()}
        metrics["by_data_set"] = scores_by_data_set(scored, marks, label, truth, draws, seed)
    platt = calibrated.get("platt")
    written = write_results(plan.output, metrics, marks, probability, evaluation, label, platt, subsets)
    run.write_record(_record(folds))
    return written.content


@dataclass(frozen=True, eq=False)
class _Fold:
    """A finished fold.

    Attributes:
        number: its subset.
        results: what was scored.
        label: (n,) class of each candidate.
        inner: metrics.json of the training, on the scans that chose its epoch.
        run: run.json of the training.
    """

    number: int
    results: Results
    label: IntArray
    inner: Metrics
    run: RunRecord

    @classmethod
    def read(cls, plan: Plan, number: int) -> _Fold:
        folder = plan.fold_dir(number)
        results = read_results(folder / "test")
        if results.label is None:
            raise ValueError(f"{folder / 'test'} has no labels: remove it and run crossval again")
        training = RunFolder(folder)
        if (record := training.read_record()) is None:
            raise FileNotFoundError(f"no {training.record_file}: remove the folder and run crossval again")
        return cls(number, results, results.label, training.read_metrics(), record)

    @property
    def calibrations(self) -> dict[str, Calibration]:
        """The lines that the inner validation fitted; none where it had too little for it."""
        return self.inner.calibrations

    @property
    def operating_points(self) -> dict[str, float]:
        """What the inner validation chose."""
        return {name: self.inner.operating_points[name] for name in CUTS}

    @property
    def summary(self) -> dict[str, Any]:
        """The fold's row: on its own scans, with what was chosen for it elsewhere."""
        told = self.results.metrics
        probability = self.results.probability
        return {
            "epoch": self.inner.epoch,
            "key_metric": self.inner.key_metric,
            "inner_score": self.inner.key_score,
            **{name: sizes["series"] for name, sizes in self.run.data.sizes.items()},
            "scans": len(self.results.series_uids),
            **{key: told[key] for key in ("nodules", "cpm", "cpm_ci95", "sensitivity_at") if key in told},
            **{key: told[key] for key in ("roc_auc", "average_precision", "loss") if key in told},
            "calibration": {kind: [line.slope, line.offset] for kind, line in self.calibrations.items()},
            "thresholds": {
                name: {"threshold": cut, **confusion(probability, self.label, cut)}
                for name, cut in self.operating_points.items()
            },
        }


def _marks(folds: Sequence[_Fold], source: str) -> PointTable:
    """Return the candidates of all folds as one submission, fold by fold, with the raw probabilities."""
    uids = [uid for fold in folds for uid in fold.results.candidate_series]
    series_uids, series = np.unique(np.array(uids, dtype=object), return_inverse=True)
    return PointTable(
        source=source,
        series_uids=tuple(series_uids.tolist()),
        series=series.astype(np.int32),
        points_xyz=np.concatenate([fold.results.candidate_points_xyz for fold in folds]),
        values=np.concatenate([fold.results.probability for fold in folds]),
        # the file has a header
        lines=np.arange(2, len(uids) + 2, dtype=np.int32),
    )


def _ranking(probability: FloatArray, label: IntArray) -> dict[str, float]:
    return {
        "roc_auc": float(roc_auc(probability, label)[0]),
        "average_precision": average_precision(probability, label),
    }


def _cpm(evaluation: Evaluation, marks: PointTable, probability: FloatArray | None) -> float | None:
    return None if probability is None else froc.cpm(evaluation.truth.match(marks, probability))


def _mean_of_folds(cpms: Sequence[float]) -> dict[str, Any] | None:
    """Return the mean and 95 % interval of the folds' CPMs by Student's t.

    The folds share training scans, so they are no independent draws and the interval is too narrow if anything.

    Source:
        Bengio and Grandvalet 2004, No Unbiased Estimator of the Variance of K-Fold Cross-Validation.
    """
    if not cpms:
        return None
    mean, number = float(np.mean(cpms)), len(cpms)
    told: dict[str, Any] = {"cpm": mean, "folds": number, "cpm_sd": None, "cpm_ci95": None}
    if number > 1:
        deviation = float(np.std(cpms, ddof=1))
        reach = float(stats.t.ppf(0.975, number - 1)) * deviation / math.sqrt(number)
        told |= {"cpm_sd": deviation, "cpm_ci95": [mean - reach, mean + reach]}
    return told


def _calibration(
    probability: FloatArray, calibrated: Mapping[str, FloatArray], label: IntArray, folds: Sequence[_Fold]
) -> dict[str, Any]:
    if not calibrated:
        reason = next(fold.inner.calibration_skipped for fold in folds if not fold.calibrations)
        return {"skipped": f"the inner validation of a fold had too little for it: {reason}"}
    lines = {"raw": probability, **calibrated}
    return {
        "fitted_on": "the inner validation scans of each fold",
        **{
            name: {"brier": brier_score(values, label), "ece": expected_calibration_error(values, label)}
            for name, values in lines.items()
        },
    }


def _thresholds(folds: Sequence[_Fold]) -> dict[str, Any]:
    """Return the confusion over all scans where each fold cuts at the threshold that its inner validation chose."""
    label = np.concatenate([fold.label for fold in folds])
    told: dict[str, Any] = {"chosen_on": "the inner validation scans of each fold, so each fold has its own"}
    for name in CUTS:
        called = np.concatenate([fold.results.probability >= fold.operating_points[name] for fold in folds])
        told[name] = {"threshold": None, **confusion(called.astype(np.float64), label, 1.0)}
    return told


def _record(folds: Sequence[_Fold]) -> RunRecord:
    """Return a run.json for all: what those of the folds have in common, without the series."""
    first, *others = [fold.run for fold in folds]
    same = {key: value for key, value in first.settings.items() if all(run.settings[key] == value for run in others)}
    return replace(first, settings=same, data=DataRecord(first.data.name, first.data.kind), seen_series=())
