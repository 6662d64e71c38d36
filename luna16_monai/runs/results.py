"""The files of a scored run: written whole, read back by the report.

``metrics.json`` holds the scores, ``candidates.csv`` what became of each candidate, ``nodules.csv`` what became of each
nodule, ``seriesuids.csv`` the scans that were scored. The two tables name each other's rows, counted from 1.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from luna16_monai.evaluation.match import MarkStatus, Match
from luna16_monai.evaluation.submission import Evaluation
from luna16_monai.machine.files import atomic_write
from luna16_monai.runs.folder import Metrics, RunFolder
from luna16_monai.tables.luna16 import read_series_uids
from luna16_monai.tables.points import COORDINATES, PointTable, write_points
from luna16_monai.tables.text import open_table

FloatArray = NDArray[np.float64]

IntArray = NDArray[np.integer[Any]]

STATUS_NAMES = {status.name.lower(): status for status in MarkStatus}


@dataclass(frozen=True, eq=False)
class Results:
    """A scored run, as read back.

    Attributes:
        metrics: the content of metrics.json.
        candidate_series: the series of each candidate.
        candidate_points_xyz: (m, 3) world LPS mm.
        probability: (m,) raw.
        calibrated: (m,) calibrated probability; None where there is none.
        label: (m,) 0 or 1; None where the submission's labels are not known.
        nodule_points_xyz: (n, 3) world LPS mm.
        match: what became of each candidate and each nodule; None for a run that was not scored against nodules.
        series_uids: the scans that were scored, by the scan numbers of the match.
    """

    metrics: Metrics
    candidate_series: list[str]
    candidate_points_xyz: FloatArray
    probability: FloatArray
    calibrated: FloatArray | None
    label: IntArray | None
    nodule_points_xyz: FloatArray
    match: Match | None
    series_uids: tuple[str, ...]


def write_results(
    folder: Path,
    metrics: Mapping[str, Any],
    marks: PointTable,
    probability: FloatArray,
    evaluation: Evaluation | None = None,
    label: IntArray | None = None,
    calibrated: FloatArray | None = None,
    subsets: Mapping[str, int | None] | None = None,
) -> Metrics:
    """Write the files and return the content of metrics.json, which is last: it never names tables that are not there.

    Args:
        folder: where to; made if need be.
        metrics: what metrics.json is to hold; numbers that are not finite become null.
        marks: the candidates.
        probability: (m,) raw probability of each.
        evaluation: of these marks, in this order.
        label: (m,) class of each, where known.
        calibrated: (m,) calibrated probability of each.
        subsets: series to subset, where known.
    """
    run, uids = RunFolder(folder), marks.row_series()
    columns: dict[str, ArrayLike] = {}
    if calibrated is not None:
        columns["calibrated_probability"] = calibrated
    if label is not None:
        columns["label"] = label
    if evaluation is not None:
        match, nodules = evaluation.match, evaluation.truth.nodules
        names = np.array(list(STATUS_NAMES), dtype=object)
        columns["status"] = names[match.mark_status]
        columns["nodule"] = _from_one(match.mark_nodule)
        columns["diameter_mm"] = _where(match.mark_nodule >= 0, match.nodule_diameter_mm, match.mark_nodule)
        nodule_uids = nodules.row_series()
        write_points(
            run.nodules_file,
            nodule_uids,
            nodules.points_xyz,
            nodules.values,
            "diameter_mm",
            probability=_where(match.nodule_mark >= 0, match.mark_probability, match.nodule_mark),
            candidate=_from_one(match.nodule_mark),
            candidates_on_it=match.nodule_marks,
            reached=match.nodule_reached.astype(int),
            **_subset_column(nodule_uids, subsets),
        )
        with atomic_write(run.series_file) as stream:
            stream.write("".join(f"{uid}\n" for uid in evaluation.truth.series_uids).encode())
    columns.update(_subset_column(uids, subsets))
    write_points(run.candidates_file, uids, marks.points_xyz, probability, "probability", **columns)
    return run.write_metrics(metrics)


def read_results(folder: Path) -> Results:
    """Read back what `write_results` wrote.

    Raises:
        FileNotFoundError: the folder holds no scored run.
        ValueError: a file is damaged, or the tables do not belong together.
    """
    run = RunFolder(folder)
    for path in (run.metrics_file, run.candidates_file):
        if not path.is_file():
            raise FileNotFoundError(
                f"no {path.name} in {folder}: name the output folder of a training or of luna16 evaluate"
            )
    metrics = run.read_metrics()
    candidates = _read_columns(run.candidates_file)
    series = candidates["seriesuid"]
    match, series_uids, nodule_points = None, tuple(sorted(set(series))), np.empty((0, 3))
    if run.nodules_file.is_file() and run.series_file.is_file() and "status" in candidates:
        nodules = _read_columns(run.nodules_file)
        series_uids = read_series_uids(run.series_file)
        match = _match(candidates, nodules, series_uids, metrics, run)
        nodule_points = _points(nodules)
    return Results(
        metrics=metrics,
        candidate_series=series,
        candidate_points_xyz=_points(candidates),
        probability=_numbers(candidates["probability"]),
        calibrated=_numbers(candidates["calibrated_probability"]) if "calibrated_probability" in candidates else None,
        label=_numbers(candidates["label"]).astype(int) if "label" in candidates else None,
        nodule_points_xyz=nodule_points,
        match=match,
        series_uids=series_uids,
    )


def _match(
    candidates: Mapping[str, list[str]],
    nodules: Mapping[str, list[str]],
    series_uids: Sequence[str],
    metrics: Mapping[str, Any],
    run: RunFolder,
) -> Match:
    scan = {uid: number for number, uid in enumerate(series_uids)}
    try:
        match = Match(
            n_scans=len(series_uids),
            mark_scan=np.array([scan[uid] for uid in candidates["seriesuid"]], dtype=int),
            mark_probability=_numbers(candidates["probability"]),
            mark_status=np.array([STATUS_NAMES[name] for name in candidates["status"]], dtype=np.int8),
            mark_nodule=_rows(candidates["nodule"]),
            nodule_scan=np.array([scan[uid] for uid in nodules["seriesuid"]], dtype=int),
            nodule_diameter_mm=_numbers(nodules["diameter_mm"]),
            nodule_mark=_rows(nodules["candidate"]),
            nodule_marks=_numbers(nodules["candidates_on_it"]).astype(int),
            nodule_reached=_numbers(nodules["reached"]) > 0,
            n_excluded=metrics.get("excluded_findings"),
        )
    except KeyError as error:
        raise ValueError(f"{error} of the tables in {run.path} is unknown: evaluate the run again") from error
    beyond_nodules = match.mark_nodule.max(initial=-1) >= match.nodule_scan.size
    if beyond_nodules or match.nodule_mark.max(initial=-1) >= match.mark_scan.size:
        names = f"{run.candidates_file.name} and {run.nodules_file.name}"
        raise ValueError(f"{names} in {run.path} do not belong together: evaluate the run again")
    return match


def _read_columns(path: Path) -> dict[str, list[str]]:
    with open_table(path) as stream:
        header, *rows = csv.reader(stream)
    if any(len(row) != len(header) for row in rows):
        raise ValueError(f"{path} is damaged (a row does not fit the header): evaluate the run again")
    columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in header]
    return dict(zip(header, columns, strict=True))


def _points(columns: Mapping[str, list[str]]) -> FloatArray:
    return np.stack([_numbers(columns[name]) for name in COORDINATES], axis=1)


def _numbers(texts: Sequence[str]) -> FloatArray:
    return np.array(texts, dtype=np.float64)


def _rows(texts: Sequence[str]) -> IntArray:
    """Return row numbers from 0, -1 where the table names none."""
    return np.array([int(text) - 1 if text else -1 for text in texts], dtype=np.int64)


def _from_one(rows: IntArray) -> NDArray[np.object_]:
    """Return row numbers as the tables have them: from 1, empty where there is none."""
    return np.where(rows >= 0, (rows + 1).astype(object), "")


def _where(there: NDArray[np.bool_], values: FloatArray, rows: IntArray) -> NDArray[np.object_]:
    """Return the values of the rows named, empty where none is."""
    found = np.full(rows.shape, "", dtype=object)
    found[there] = values[rows[there]]
    return found


def _subset_column(series_uids: Sequence[str], subsets: Mapping[str, int | None] | None) -> dict[str, list[Any]]:
    known = [(subsets or {}).get(uid) for uid in series_uids]
    return {} if all(subset is None for subset in known) else {"subset": known}
