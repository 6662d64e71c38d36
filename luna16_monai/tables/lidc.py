"""LIDC-IDRI's patients, and its readers' ratings of malignancy."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luna16_monai.machine.files import write_csv
from luna16_monai.machine.folder_lists import Folders, folder_list
from luna16_monai.tables.points import written
from luna16_monai.tables.text import open_table, require_columns

FloatArray = NDArray[np.float64]

IntArray = NDArray[np.integer[Any]]


class Patients(dict[str, str]):
    """The patient of each series, by series; a series that is not in it is a patient of its own."""

    def of(self, series_uid: str) -> str:
        """Return the patient of a series: the one that is known, else the series itself."""
        return self.get(series_uid, series_uid)

    def of_all(self, series_uids: Iterable[str]) -> set[str]:
        """Return the patients of some series."""
        return {self.of(uid) for uid in series_uids}


def read_patients(data_dir: Folders | None = None) -> Patients:
    """Return the patient of each public LIDC-IDRI series, and of those in the data folder's own ``patients.csv``.

    Args:
        data_dir: a data folder, or several; its ``patients.csv`` (seriesuid, patient_id) wins over the packaged table.

    Raises:
        ValueError: the data folder's table lacks a column, or a value in a line.
    """
    patients = Patients()
    sources = [Path(__file__).parents[1] / "resources" / "patients.csv"]
    for folder in () if data_dir is None else folder_list(data_dir):
        if (own := folder / "patients.csv").is_file():
            sources.append(own)
    for source in sources:
        with open_table(source) as stream:
            rows = csv.DictReader(stream)
            require_columns(rows.fieldnames, PATIENT_COLUMNS, source)
            for row in rows:
                if not (row["seriesuid"] and row["patient_id"]):
                    raise ValueError(f"{source}, line {rows.line_num}: a value is missing: mend or remove the line")
                patients[row["seriesuid"]] = row["patient_id"]
    return patients


PATIENT_COLUMNS = ("seriesuid", "patient_id")
READINGS = "nodule_readings.csv"
COLUMNS = ("seriesuid", "coordZ", "diameter_mm", "readings", "malignancy")
LUNA16_READERS = 3
"""LUNA16's nodules are those that three readers of four, or all, outlined."""


@dataclass(frozen=True)
class Readings:
    """Nodules as radiologists saw them.

    Attributes:
        source: where they were read, for messages.
        series_uids: the series of each nodule.
        z_mm: (n,) world z of each.
        diameter_mm: (n,).
        ratings: of malignancy, 1 to 5, one for each reader.
        shape: each nodule's number in the phantom's bank of shapes, -1 where it is none of them or this is not told.
    """

    source: str
    series_uids: tuple[str, ...]
    z_mm: FloatArray
    diameter_mm: FloatArray
    ratings: tuple[tuple[int, ...], ...]
    shape: IntArray

    def __len__(self) -> int:
        return len(self.series_uids)

    @classmethod
    def joined(cls, several: Sequence[Readings]) -> Readings:
        """Return the nodules of all, one after the other."""
        return cls(
            ", ".join(one.source for one in several),
            tuple(uid for one in several for uid in one.series_uids),
            np.concatenate([one.z_mm for one in several]),
            np.concatenate([one.diameter_mm for one in several]),
            tuple(rated for one in several for rated in one.ratings),
            np.concatenate([one.shape for one in several]),
        )

    def select(self, rows: Sequence[int] | IntArray) -> Readings:
        """Return the same with only these rows."""
        kept = np.asarray(rows, np.int64)
        return Readings(
            self.source,
            tuple(self.series_uids[row] for row in kept),
            self.z_mm[kept],
            self.diameter_mm[kept],
            tuple(self.ratings[row] for row in kept),
            self.shape[kept],
        )


def read_readings(path: Path) -> Readings:
    """Read a table of readings (seriesuid, coordZ, diameter_mm, readings, malignancy: the ratings, with spaces).

    Raises:
        ValueError: a column is missing, a number is none, or a row does not hold as many ratings as readings.
    """
    uids, numbers, ratings, shapes = [], [], [], []
    with open_table(path) as stream:
        rows = csv.DictReader(stream)
        require_columns(rows.fieldnames, COLUMNS, path)
        for row in rows:
            try:
                place = [float(row[name]) for name in ("coordZ", "diameter_mm")]
                rated = tuple(int(rating) for rating in row["malignancy"].split())
                readers, shape = int(row["readings"]), int(row.get("shape") or -1)
            except (ValueError, TypeError, AttributeError) as error:
                raise ValueError(f"{path}, line {rows.line_num}: {error}: mend or remove the line") from error
            if not (np.isfinite(place).all() and place[1] > 0 and row["seriesuid"]):
                raise ValueError(
                    f"{path}, line {rows.line_num}: a series, a finite z and a diameter above 0 are needed"
                )
            if len(rated) != readers or not rated or not set(rated) <= {1, 2, 3, 4, 5}:
                raise ValueError(
                    f"{path}, line {rows.line_num}: malignancy is {row['malignancy']!r}, {readers} ratings from 1 to 5 "
                    "were expected: mend or remove the line"
                )
            uids.append(row["seriesuid"])
            numbers.append(place)
            ratings.append(rated)
            shapes.append(shape)
    z_mm, diameter = np.array(numbers, np.float64).reshape(-1, 2).T
    return Readings(str(path), tuple(uids), z_mm, diameter, tuple(ratings), np.array(shapes, np.int64))


def write_readings(
    path: Path,
    series_uids: Sequence[str],
    z_mm: Sequence[float],
    diameter_mm: Sequence[float],
    ratings: Sequence[Sequence[int]],
) -> None:
    """Write a table that `read_readings` reads; the file is whole or absent. All arguments: one entry a nodule."""
    nodules = zip(series_uids, z_mm, diameter_mm, ratings, strict=True)
    rows = ([uid, written(z), size, len(rated), " ".join(map(str, rated))] for uid, z, size, rated in nodules)
    write_csv(path, COLUMNS, rows)


def lidc_readings() -> Readings:
    """Return the readings of LIDC-IDRI that come with the package: 2,655 nodules that one reader or more outlined."""
    return read_readings(Path(__file__).parents[1] / "resources" / "lidc_readings.csv")


def readings_for(data_dir: Path) -> Readings:
    """Return the data folder's own ``nodule_readings.csv``; else LIDC-IDRI's nodules with three readers or more.

    Raises:
        ValueError: the data folder's table is malformed.
    """
    if (own := data_dir / READINGS).is_file():
        return read_readings(own)
    shipped = lidc_readings()
    return shipped.select([row for row, rated in enumerate(shipped.ratings) if len(rated) >= LUNA16_READERS])


def shape_ratings() -> dict[int, tuple[int, ...]]:
    """Return the ratings of each shape in the phantom's bank, by its number."""
    shipped = lidc_readings()
    return {shape: rated for shape, rated in zip(shipped.shape.tolist(), shipped.ratings, strict=True) if shape >= 0}
