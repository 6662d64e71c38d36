"""How malignant radiologists thought a nodule: the readings, found again for the user's nodules, and made labels.

LUNA16 does not say what its nodules are; the readers of LIDC-IDRI, where they come from, rated each from 1 (highly
unlikely to be malignant) to 5 (highly suspicious). These are opinions, no biopsies. The table that comes with the
package knows a nodule's series, z and diameter, not its x and y, so nodules are matched by those three; what finds no
match is named and left out.

Candidates then are of three kinds: malignant nodule 1, benign nodule 2, non-nodule 0. The target is kind 1 against
the others.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from luna16_monai.machine.folder_lists import Folders
from luna16_monai.tables.data_sets import DataSets
from luna16_monai.tables.hits import nearest_nodule
from luna16_monai.tables.lidc import COLUMNS, READINGS, Readings
from luna16_monai.tables.points import PointTable

IntArray = NDArray[np.integer[Any]]

logger = logging.getLogger(__name__)

NON_NODULE, MALIGNANT, BENIGN = 0, 1, 2
LEFT_OUT, UNRATED = -1, -2
RULES = ("median", "two_readers")
MIDDLE = 3
"""The rating that says neither: "indeterminate likelihood"."""
Z_TOLERANCE_MM, DIAMETER_TOLERANCE = 3.0, 0.2
"""How far a nodule and its readings may differ: in z, and in diameter as a share of the larger one."""
_MOST_NAMED = 20


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


def label_from_ratings(ratings: Sequence[int], rule: str = "median") -> int:
    """Return what the readers made of a nodule: `MALIGNANT`, `BENIGN` or `LEFT_OUT`.

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
        dataset_dir: one folder or several, with ``annotations.csv``, and ``nodule_readings.csv`` where the nodules are
            not LIDC-IDRI's.
        rule: as `label_from_ratings`.

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

    def __init__(self, dataset_dir: Folders, rule: str = "median") -> None:
        folders = DataSets.of(dataset_dir)
        self.rule, self.nodules, self.readings = rule, folders.annotations(), folders.readings()
        self.reading = match_readings(self.nodules, self.readings)
        judged = [
            UNRATED if row < 0 else label_from_ratings(self.readings.ratings[row], rule)
            for row in self.reading.tolist()
        ]
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
        """Return the candidates with their kinds as values; those on nodules without a kind are left out.

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
