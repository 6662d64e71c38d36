"""Scoring a submission against LUNA16's tables: the guards, the match, and every figure that is reported about it.

Most wrong scores of this field are right numbers of the wrong question: one fold against all scans, no list of
excluded findings, a table of other scans. `ReferenceStandard` holds the question, and `evaluate` refuses it where it
does not fit, or says beside the answer what is unusual. The rules themselves are in ``match.py`` and ``froc.py``.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luna16_monai.evaluation import froc
from luna16_monai.evaluation.match import MARKS_PER_SCAN, MarkStatus, Match, match_marks
from luna16_monai.evaluation.ranks import diameter_error, sensitivity_by_rank
from luna16_monai.evaluation.roc import compare_roc_auc
from luna16_monai.machine.folder_lists import Folders
from luna16_monai.tables.data_sets import DataSets
from luna16_monai.tables.hits import Findings, Marks, lies_on
from luna16_monai.tables.luna16 import read_nodules, read_series_uids
from luna16_monai.tables.points import PointTable, duplicate_rows, read_points
from luna16_monai.tables.text import open_table, require_columns

IntArray = NDArray[np.integer[Any]]

FloatArray = NDArray[np.float64]

logger = logging.getLogger(__name__)

NO_EXCLUDED = "scored without a list of excluded findings: LUNA16 leaves them out, so this CPM is lower than its own"


@dataclass(frozen=True, eq=False)
class ReferenceStandard:
    """What a submission is scored against.

    Attributes:
        series_uids: the scans that are scored, with and without nodules, sorted.
        nodules: the annotations in these scans; values are diameters in mm.
        excluded: findings in these scans that count neither way; None without such a list.
        subsets: series to LUNA16's subset, where known.

    Raises:
        ValueError: there is no nodule in the scans.
    """

    series_uids: tuple[str, ...]
    nodules: PointTable
    excluded: PointTable | None
    subsets: Mapping[str, int | None] | None = None

    def __post_init__(self) -> None:
        for name in ("nodules", "excluded"):
            if (table := getattr(self, name)) is not None:
                object.__setattr__(self, name, table.select(table.series_codes(self.series_uids) >= 0))
        if not len(self.nodules):
            raise ValueError(
                f"no nodule of {self.nodules.source} lies in the {len(self.series_uids)} scans of the series list: "
                "do the annotations belong to these scans?"
            )

    def match(self, points: PointTable, probability: FloatArray) -> Match:
        """Apply the hit rule.

        Args:
            points: the marks.
            probability: (n,) of each mark.

        Raises:
            ValueError: a probability outside 0 to 1, a mark in a scan that is not scored.
        """
        return match_marks(
            Marks(points.series_codes(self.series_uids), points.points_xyz, probability),
            self._findings(self.nodules),
            None if self.excluded is None else self._findings(self.excluded),
            len(self.series_uids),
        )

    def compared(self, marks: PointTable) -> tuple[Marks, Findings]:
        """Return marks, whose values are probabilities, and the nodules, both by the number of their scan."""
        return Marks(marks.series_codes(self.series_uids), marks.points_xyz, marks.values), self._findings(self.nodules)

    @property
    def scan_subset(self) -> IntArray | None:
        """(n_scans,) the subset of each scan; None where that of any is unknown."""
        known = [(self.subsets or {}).get(uid) for uid in self.series_uids]
        return None if None in known else np.array(known, dtype=np.int64)

    def _findings(self, table: PointTable) -> Findings:
        return Findings(table.series_codes(self.series_uids), table.points_xyz, table.values)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A scored submission.

    Attributes:
        truth: what it was scored against.
        marks: the submission; values are the probabilities.
        match: what became of each mark and of each nodule of ``truth.nodules``.
        scores: the keys of ``luna16 evaluate --json``, with ``warnings``, a list of sentences.
    """

    truth: ReferenceStandard
    marks: PointTable
    match: Match
    scores: dict[str, Any]


def read_reference(
    annotations: Path, excluded: Path | None, series_uids: Path, subsets: Path | None = None
) -> ReferenceStandard:
    """Read LUNA16's tables from the files named.

    Args:
        annotations: the nodules.
        excluded: the findings that count neither way; None to do without.
        series_uids: the scans that are scored, one a line.
        subsets: a table (seriesuid, subset), or a data folder with subset0 to subset9.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a row is malformed, or no nodule lies in the scans.
    """
    named = {"annotations": annotations, "excluded findings": excluded, "series": series_uids, "subsets": subsets}
    for what, path in named.items():
        if path is not None and not path.exists():
            raise FileNotFoundError(f"the table of {what} {path}: no such file: name LUNA16's own, or yours")
    return ReferenceStandard(
        read_series_uids(series_uids),
        read_nodules(annotations),
        None if excluded is None else read_points(excluded, "diameter_mm"),
        None if subsets is None else read_subsets(subsets),
    )


def read_subsets(path: Path) -> dict[str, int | None]:
    """Return LUNA16's subset of each series: from a table with seriesuid and subset, or from a data folder's CTs.

    Raises:
        ValueError: a column is missing, or a subset is no whole number.
    """
    if path.is_dir():
        # brings SimpleITK and nibabel along, which a table does without
        from luna16_monai.ct.folders import find_cts

        return {ct.series_uid: ct.subset for ct in find_cts(path, allow_symlinks=True)}
    with open_table(path) as stream:
        rows = csv.DictReader(stream)
        require_columns(rows.fieldnames, ("seriesuid", "subset"), path)
        subsets: dict[str, int | None] = {}
        for row in rows:
            if not (row["subset"] or "").strip().isdecimal():
                raise ValueError(f"{path}, line {rows.line_num}: subset is {row['subset']!r}, a number was expected")
            subsets[row["seriesuid"]] = int(row["subset"])
    return subsets


def validation_reference(
    dataset_dir: Folders,
    series_uids: Sequence[str],
    subsets: Mapping[str, int | None] | None = None,
    validation_negatives: int | None = None,
) -> ReferenceStandard | None:
    """Return what a bundle's validation is scored against; None, and a line in the log, where a CPM would mislead.

    Args:
        dataset_dir: the data folder, or several; without ``annotations_excluded`` the score is marked as such.
        series_uids: the validation series; they alone are scored.
        subsets: series to subset.
        validation_negatives: the sample of negatives that is validated on; None for all of them.

    Raises:
        ValueError: a row is malformed, or no nodule lies in the scans.
    """
    folders = DataSets.of(dataset_dir)
    if validation_negatives is not None:
        logger.info("no CPM: with %d sampled negatives it would be too high", validation_negatives)
        return None
    for folder in folders.without("annotations"):
        logger.warning("no CPM: no annotations.csv in %s", folder)
        return None
    for folder in folders.without("annotations_excluded"):
        logger.warning("no annotations_excluded.csv in %s: %s", folder, NO_EXCLUDED)
    return ReferenceStandard(tuple(sorted(series_uids)), folders.annotations(), folders.excluded(), subsets)


def evaluate(
    submission: PointTable,
    truth: ReferenceStandard,
    draws: int = 1000,
    seed: int = 0,
    match: Match | None = None,
    diameter_mm: FloatArray | None = None,
) -> Evaluation:
    """Score a submission as LUNA16 does, with bootstrap intervals.

    Args:
        submission: the marks; values are the probabilities.
        truth: what they are scored against.
        draws: of the bootstrap; 0 leaves the intervals None.
        seed: of the draws.
        match: of the submission with the truth, where it is known already; None makes it.
        diameter_mm: (n,) what the submission tells of each mark, NaN where nothing; None leaves its error out.

    Raises:
        ValueError: the submission names a scan that is not scored, or none that is; `draws` is below 0; the match is
            one of other marks.
    """
    scored = set(truth.series_uids)
    marked = {submission.series_uids[code] for code in np.unique(submission.series)}
    if not marked:
        raise ValueError(f"{submission.source} holds a header and no row: a submission has a row for each candidate")
    if not marked & scored:
        raise ValueError(
            f"no series of {submission.source} ({len(marked)}) is in the series list ({len(scored)}): "
            "name the list of the scans that the submission is about"
        )
    submission.require_series(truth.series_uids, "the series list")
    if match is None:
        match = truth.match(submission, submission.values)
    elif not np.array_equal(match.mark_probability, submission.values):
        raise ValueError(
            f"the match ({len(match.mark_scan)} marks) is not one of {submission.source} ({len(submission)} marks): "
            "give that of the same candidates in the same order"
        )
    scores = froc.score(match, draws, seed, truth.scan_subset)
    compared = truth.compared(submission)
    scores |= sensitivity_by_rank(*compared, match.n_scans, draws, seed)
    if diameter_mm is not None:
        scores["diameter_error_mm"] = diameter_error(*compared, diameter_mm)
    repeated = len(duplicate_rows(submission))
    warnings = []
    if (unmarked := scores["scans_without_marks"]) > 0:
        warnings.append(
            f"{unmarked} of {match.n_scans} scans in the series list have no row in the submission: "
            "their nodules count as missed; is this the list of the scans that were meant?"
            + (" One subset is scored against the scans of that subset alone." if 2 * unmarked > match.n_scans else "")
        )
    warnings += _fallen_by_ties(match)
    if repeated:
        warnings.append(f"{repeated} rows repeat the series and point of an earlier one: all were scored")
    if truth.excluded is None:
        warnings.append(NO_EXCLUDED)
    elif not len(truth.excluded):
        warnings.append(f"none of the excluded findings lies in the scans ({truth.excluded.source}): is it theirs?")
    return Evaluation(truth, submission, match, {**scores, "duplicate_rows": repeated, "warnings": warnings})


def _fallen_by_ties(match: Match) -> list[str]:
    """Return a line about marks that fell because more of a scan tie than its limit leaves room for; else nothing."""
    beyond = match.mark_status == MarkStatus.BEYOND_LIMIT
    fallen = np.bincount(match.mark_scan[beyond], minlength=match.n_scans)
    kept = np.bincount(match.mark_scan[~beyond], minlength=match.n_scans)
    tied = (fallen > 0) & (kept < MARKS_PER_SCAN)
    if not tied.any():
        return []
    return [
        f"{fallen[tied].sum()} marks of {tied.sum()} scans fell to the limit of {MARKS_PER_SCAN} a scan, which leaves "
        f"{kept[tied].sum()} there: LUNA16 keeps those strictly above mark number {MARKS_PER_SCAN + 1}, and all that "
        "tie with it fall too; were the probabilities rounded, or are they labels?"
    ]


def compare(one: Evaluation, other: Evaluation, draws: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Return the difference of two submissions to the same truth, the other minus the one; see `froc.compare`.

    Of two that list the same candidates also ``roc_auc`` (of both), ``roc_auc_difference``,
    ``roc_auc_difference_ci95`` and ``delong_p``, see `roc.delong`; None where they don't, or where one class is absent.
    A candidate on a nodule is a positive; those on excluded findings alone are left out.

    Raises:
        ValueError: fewer than one draw.
    """
    warnings = [
        f"{name}: {text}"
        for name, scored in (("first submission", one), ("second submission", other))
        for text in scored.scores["warnings"]
    ]
    return {
        **froc.compare(one.match, other.match, draws, seed),
        **_compare_auc(one, other, draws, seed),
        "scans": one.match.n_scans,
        "nodules": one.match.nodule_scan.size,
        "warnings": warnings,
    }


def _compare_auc(one: Evaluation, other: Evaluation, draws: int, seed: int) -> dict[str, Any]:
    """Return the AUCs over the candidates that two submissions share, and their difference; see `compare`."""
    names = ("roc_auc", "roc_auc_difference", "roc_auc_difference_ci95", "delong_p")
    # programs may list the same candidates in other orders
    orders = [np.lexsort((*each.marks.points_xyz.T, each.match.mark_scan)) for each in (one, other)]
    rows = [
        np.column_stack([each.match.mark_scan, each.marks.points_xyz, each.marks.values])[order]
        for each, order in zip((one, other), orders, strict=True)
    ]
    if not np.array_equal(rows[0][:, :4], rows[1][:, :4]):
        return dict.fromkeys(names)
    marks, truth = one.marks.select(orders[0]), one.truth
    label = lies_on(marks, truth.nodules)
    kept = label | ~(lies_on(marks, truth.excluded) if truth.excluded is not None else np.zeros_like(label))
    if len(np.unique(label[kept])) < 2:
        return dict.fromkeys(names)
    probabilities = {"one": rows[0][kept, 4], "other": rows[1][kept, 4]}
    found = compare_roc_auc(probabilities, label[kept], rows[0][kept, 0], draws, seed)
    low, high = found["other"]["behind_by_ci95"]
    aucs = [found[name]["roc_auc"] for name in probabilities]
    return dict(zip(names, [aucs, aucs[1] - aucs[0], [0.0 - high, 0.0 - low], found["other"]["delong_p"]], strict=True))
