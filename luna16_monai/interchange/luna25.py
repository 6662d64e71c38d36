"""LUNA25: the points of one case and their likelihoods of malignancy, and the training table.

A case's ``nodule-locations.json`` and the answer ``lung-nodule-malginancy-likelihoods.json`` (its spelling is the
contract) are grand-challenge's "Multiple points"; the answer has the names and the points as they were asked.

The training table has a label of 1 (malignant) or 0 and no diameter. Our malignancy bundle knows a nodule by series, z
and diameter and wants readers' ratings, so each nodule stands in the data folder with one rating, 5 or 1, and a
diameter that is said to be assumed. That grows by a hundredth of a mm from nodule to nodule of a series, since nodules
of one slice could else not be told apart.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from luna16_monai.interchange.files import Format, member, read_json, shown
from luna16_monai.interchange.grand_challenge import as_multiple_points, read_multiple_points
from luna16_monai.interchange.luna16 import header_of
from luna16_monai.interchange.points import CLASS, DIAMETER, PROBABILITY, Points
from luna16_monai.interchange.scans import Scans
from luna16_monai.tables.text import open_table, require_columns

LOCATIONS, CLINICAL = "nodule-locations.json", "clinical-information-lung-ct.json"
ANSWER = "lung-nodule-malginancy-likelihoods.json"
COLUMNS = ("SeriesInstanceUID", "PatientID", "CoordX", "CoordY", "CoordZ", "AnnotationID", "label")
ASSUMED_DIAMETER_MM = 10.0
"""What a nodule of the training table is taken to measure; LUNA16's own rule for findings without a diameter."""
STEP_MM = 0.01
"""By how much the assumed diameters of a series' nodules differ."""
RATINGS = {0: (1,), 1: (5,)}
"""The rating of malignancy that stands for a label."""
MALIGNANT = "malignant"


@dataclass(frozen=True)
class Clinical:
    """What a case says about the patient; None where it says nothing.

    Attributes:
        age: in years.
        gender: as the case has it.
    """

    age: float | None
    gender: str | None


def read_clinical(path: Path) -> Clinical:
    """Read ``clinical-information-lung-ct.json``.

    Raises:
        ValueError: it is no JSON object, or the age is no number.
    """
    document = read_json(path)
    if not isinstance(document, dict):
        raise ValueError(f"{path}: {shown(document)} is no JSON object: is this the right file?")
    lowered: dict[str, Any] = {key.lower(): value for key, value in document.items()}
    age = next((lowered[key] for key in ("age", "age_at_studydate") if lowered.get(key) is not None), None)
    if age is not None:
        age = float(member({"age": age}, "age", (int, float), str(path)))
    gender = lowered.get("gender")
    return Clinical(age, None if gender is None else str(gender))


@dataclass(frozen=True)
class TrainingTable:
    """LUNA25's training table.

    Attributes:
        points: the nodules, class 1; values ``malignant`` (the label) and the assumed diameter.
        patients: the patient of each series.
    """

    points: Points
    patients: dict[str, str]


def is_training_table(path: Path) -> bool:
    """Return whether a file's header names the table's first columns."""
    header = header_of(path)
    return "SeriesInstanceUID" in header and "CoordX" in header


def read_training_table(path: Path) -> TrainingTable:
    """Read the training table.

    Raises:
        ValueError: a column is missing, a value is none, or a series belongs to two patients; it names the line.
    """
    series, xyz, labels, names, lines = [], [], [], [], []
    patients: dict[str, str] = {}
    with open_table(path) as text:
        rows = csv.DictReader(text)
        require_columns([name.strip() for name in rows.fieldnames or ()], COLUMNS, path)
        rows.fieldnames = [name.strip() for name in rows.fieldnames or ()]
        for row in rows:
            where = f"{path}, line {rows.line_num}"
            uid, patient = (_text(row[key], key, where) for key in ("SeriesInstanceUID", "PatientID"))
            if patients.setdefault(uid, patient) != patient:
                raise ValueError(f"{where}: series {uid} is of patients {patients[uid]} and {patient}: mend one line")
            series.append(uid)
            xyz.append([_finite(row[key], key, where) for key in ("CoordX", "CoordY", "CoordZ")])
            label = _finite(row["label"], "label", where)
            if label not in RATINGS:
                raise ValueError(f"{where}: label is {row['label']!r}, 0 (benign) or 1 (malignant) is meant: mend it")
            labels.append(label)
            names.append(_text(row["AnnotationID"], "AnnotationID", where))
            lines.append(rows.line_num)
    n = len(series)
    seen: Counter[str] = Counter()
    before = []
    for uid in series:
        before.append(seen[uid])
        seen[uid] += 1
    diameter = ASSUMED_DIAMETER_MM + STEP_MM * np.array(before, np.float64)
    values = {CLASS: np.ones(n), DIAMETER: diameter, MALIGNANT: np.array(labels, np.float64)}
    points = Points(
        str(path), tuple(series), np.array(xyz, np.float64).reshape(-1, 3), values, tuple(names),
        np.array(lines, np.int64), "line",
        (f"LUNA25 measures no nodule: a diameter of {ASSUMED_DIAMETER_MM:g} mm is assumed for each",),
    )  # fmt: skip
    return TrainingTable(points, patients)


def _text(value: str | None, key: str, where: str) -> str:
    if not (value and value.strip()):
        raise ValueError(f"{where}: {key} is empty: mend or remove the line")
    return value.strip()


def _finite(value: str | None, key: str, where: str) -> float:
    try:
        found = float(value or "")
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(f"{where}: {key} is {value!r}, not a finite number: mend or remove the line")
    return found


def _read(path: Path, scans: Scans, _: bool) -> Points:
    """Read a case's locations or its answer, or the training table's points."""
    if path.name.lower().endswith(".json"):
        return read_multiple_points(path, scans)
    return read_training_table(path).points


def _answer(points: Points) -> tuple[dict[str, Any], tuple[str, ...]]:
    if len(points) and not points.knows(PROBABILITY):
        raise ValueError(f"{points.source}: no point has a probability, as LUNA25's answer needs: name predictions")
    return as_multiple_points(points), ()


FORMAT = Format(
    "luna25",
    recognises=lambda path, document: document is None and path.is_file() and is_training_table(path),
    read=_read,
    document=_answer,
    suffixes=(".json",),
    new_names=(ANSWER,),
    holds=(PROBABILITY,),
)
