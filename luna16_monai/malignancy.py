"""How malignant radiologists thought a nodule: the readings, found again for the user's nodules, and made labels.

LUNA16 does not say what its nodules are; the readers of LIDC-IDRI, where they come from, rated each from 1 (highly
unlikely to be malignant) to 5 (highly suspicious). These are opinions, no biopsies. The table that comes with the
package knows a nodule's series, z and diameter, not its x and y, so nodules are matched by those three; what finds no
match is named and left out.

Candidates then are of three kinds: malignant nodule 1, benign nodule 2, non-nodule 0. The target is kind 1 against
the others.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from luna16_monai.candidates import PointTable, open_table, read_annotations
from luna16_monai.files import atomic_write
from luna16_monai.hits import Findings, FloatArray, IntArray, Marks, pairs_inside

logger = logging.getLogger(__name__)

READINGS = "nodule_readings.csv"
COLUMNS = ("seriesuid", "coordZ", "diameter_mm", "readings", "malignancy")
NON_NODULE, MALIGNANT, BENIGN = 0, 1, 2
LEFT_OUT, UNRATED = -1, -2
RULES = ("median", "two_readers")
MIDDLE = 3
"""The rating that says neither: "indeterminate likelihood"."""
LUNA16_READERS = 3
"""LUNA16's nodules are those that three readers of four, or all, outlined."""
Z_TOLERANCE_MM, DIAMETER_TOLERANCE = 3.0, 0.2
"""How far a nodule and its readings may differ: in z, and in diameter as a share of the larger one."""
_MOST_NAMED = 20


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

    def select(self, rows: Sequence[int] | IntArray) -> Readings:
        """The same with only these rows."""
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
        if missing := [name for name in COLUMNS if name not in (rows.fieldnames or ())]:
            raise ValueError(f"{path}, line 1: the column {missing[0]} is missing: name {', '.join(COLUMNS)}")
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
    with atomic_write(path) as raw, io.TextIOWrapper(raw, "utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        for uid, z, diameter, rated in zip(series_uids, z_mm, diameter_mm, ratings, strict=True):
            writer.writerow([uid, f"{z:.6f}", diameter, len(rated), " ".join(map(str, rated))])


def lidc_readings() -> Readings:
    """The readings of LIDC-IDRI that come with the package: 2,655 nodules that one reader or more outlined."""
    return read_readings(Path(__file__).parent / "resources" / "lidc_readings.csv")


def readings_for(data_dir: Path) -> Readings:
    """The data folder's own ``nodule_readings.csv``; else LIDC-IDRI's nodules with three readers or more.

    Raises:
        ValueError: the data folder's table is malformed.
    """
    if (own := data_dir / READINGS).is_file():
        return read_readings(own)
    shipped = lidc_readings()
    return shipped.select([row for row, rated in enumerate(shipped.ratings) if len(rated) >= LUNA16_READERS])


def shape_ratings() -> dict[int, tuple[int, ...]]:
    """The ratings of each shape in the phantom's bank, by its number."""
    shipped = lidc_readings()
    return {shape: rated for shape, rated in zip(shipped.shape.tolist(), shipped.ratings, strict=True) if shape >= 0}


def match_readings(nodules: PointTable, readings: Readings) -> IntArray:
    """Find the readings of each nodule, by series, z and diameter.

    In each series nodules and readings are paired one to one, such that the differences are least in sum; a pair
    differs by 3 mm in z and by a fifth in diameter at most.

    Args:
        nodules: values are diameters in mm.
        readings: to find them in.

    Returns:
        (n,) row in ``readings``, -1 where none fits.
    """
    found = np.full(len(nodules), -1, np.int64)
    rows_of: dict[str, list[int]] = {}
    for row, uid in enumerate(readings.series_uids):
        rows_of.setdefault(uid, []).append(row)
    for code in np.unique(nodules.series):
        rows = np.array(rows_of.get(nodules.series_uids[code], []), np.int64)
        here = np.flatnonzero(nodules.series == code)
        if not len(rows):
            continue
        apart = np.abs(nodules.points_xyz[here, 2, None] - readings.z_mm[rows]) / Z_TOLERANCE_MM
        ours, theirs = nodules.values[here, None], readings.diameter_mm[rows]
        unlike = np.abs(ours - theirs) / np.maximum(ours, theirs) / DIAMETER_TOLERANCE
        fits = (apart <= 1) & (unlike <= 1)
        # a pair that does not fit costs more than all that do, so as many as possible are paired
        one, other = linear_sum_assignment(np.where(fits, apart + unlike, 3.0 * (len(here) + len(rows))))
        paired = fits[one, other]
        found[here[one[paired]]] = rows[other[paired]]
    return found


def judge(ratings: Sequence[int], rule: str = "median") -> int:
    """What the readers made of a nodule: `MALIGNANT`, `BENIGN` or `LEFT_OUT`.

    Args:
        ratings: 1 to 5, one for each reader.
        rule: ``median``: malignant above 3, benign below, 3 left out; ``two_readers``: malignant where two readers or
            more gave 4 or 5, all others benign (Stevens, Antiga and Viehmann, 2020, chapter 14).

    Raises:
        ValueError: there is no such rule, or no rating.
    """
    if rule not in RULES or not len(ratings):
        raise ValueError(
            f"rule {rule!r} for ratings {list(ratings)}: name {' or '.join(RULES)}, and one rating or more"
        )
    if rule == "two_readers":
        return MALIGNANT if sum(rating > MIDDLE for rating in ratings) >= 2 else BENIGN
    middle = float(np.median(ratings))
    return LEFT_OUT if middle == MIDDLE else MALIGNANT if middle > MIDDLE else BENIGN


class MalignancyKinds:
    """Make the classes of a data folder's candidates kinds: 0 non-nodule, 1 malignant nodule, 2 benign nodule.

    Args:
        dataset_dir: with ``annotations.csv``, and ``nodule_readings.csv`` where the nodules are not LIDC-IDRI's.
        rule: as `judge`.

    Attributes:
        names: of the kinds.
        nodules: the annotations; values are diameters in mm.
        reading: (n,) each one's row in ``readings``, -1 where none was found.
        kind: (n,) `MALIGNANT`, `BENIGN`, `LEFT_OUT`, or `UNRATED` where no reading was found.

    Raises:
        FileNotFoundError: there is no ``annotations.csv``.
        ValueError: a table is malformed, there is no such rule, or no nodule at all has readings.
    """

    names: ClassVar[dict[int, str]] = {NON_NODULE: "non-nodule", MALIGNANT: "malignant", BENIGN: "benign"}

    def __init__(self, dataset_dir: Path | str, rule: str = "median") -> None:
        self.rule, self.nodules = rule, read_annotations(Path(dataset_dir))
        self.readings = readings_for(Path(dataset_dir))
        self.reading = match_readings(self.nodules, self.readings)
        judged = [UNRATED if row < 0 else judge(self.readings.ratings[row], rule) for row in self.reading.tolist()]
        self.kind = np.array(judged, np.int64)
        if len(judged) and (self.kind == UNRATED).all():
            raise ValueError(
                f"none of the {len(judged)} nodules in {self.nodules.source} has readings in {self.readings.source}: "
                f"put a {READINGS} ({', '.join(COLUMNS)}) beside it"
            )
        counts = [int((self.kind == kind).sum()) for kind in (MALIGNANT, BENIGN, LEFT_OUT, UNRATED)]
        logger.info(
            "malignancy by %s: %d nodules, %d malignant, %d benign, %d left out as neither, %d without readings",
            *(rule, len(judged), *counts),
        )
        self._name_unrated()

    def __call__(self, candidates: PointTable) -> PointTable:
        """The candidates with their kinds as values; those on nodules without a kind are left out.

        Args:
            candidates: values are the classes 0 and 1.
        """
        nodule = nearest_nodule(candidates, self.nodules)
        kind = np.where(nodule >= 0, self.kind[nodule], LEFT_OUT) if len(self.kind) else np.full(len(nodule), LEFT_OUT)
        kind = np.where(candidates.values == 1, kind, NON_NODULE)
        if stray := int(((candidates.values == 1) & (nodule < 0)).sum()):
            logger.info("%d candidates of class 1 lie on no nodule of the annotations: left out", stray)
        kept = np.flatnonzero(kind >= 0)
        table = candidates.select(kept)
        table.values[:] = kind[kept]
        return table

    def _name_unrated(self) -> None:
        unrated = np.flatnonzero(self.kind == UNRATED)
        for row in unrated[:_MOST_NAMED]:
            x, y, z = self.nodules.points_xyz[row]
            logger.warning(
                "no readings of the nodule at (%.1f, %.1f, %.1f) mm, %.1f mm wide, in series %s: left out",
                *(x, y, z, self.nodules.values[row], self.nodules.series_uids[self.nodules.series[row]]),
            )
        if len(unrated) > _MOST_NAMED:
            logger.warning("and %d further nodules without readings", len(unrated) - _MOST_NAMED)


def nearest_nodule(points: PointTable, nodules: PointTable) -> NDArray[np.int64]:
    """The nodule that each point lies on, by LUNA16's hit rule; of several the one whose middle is nearest.

    Args:
        points: candidates.
        nodules: values are diameters in mm.

    Returns:
        (n,) row in ``nodules``, -1 where a point lies on none.
    """
    marks = Marks(points.series_codes(nodules.series_uids), points.points_xyz, np.zeros(len(points)))
    mark, nodule = pairs_inside(marks, Findings(nodules.series, nodules.points_xyz, nodules.values))
    distance = np.linalg.norm(points.points_xyz[mark] - nodules.points_xyz[nodule], axis=1)
    farthest_first = np.argsort(-distance, kind="stable")
    nearest = np.full(len(points), -1, np.int64)
    nearest[mark[farthest_first]] = nodule[farthest_first]
    return nearest
