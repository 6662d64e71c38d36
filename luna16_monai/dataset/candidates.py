"""The lazy list of candidates: one dict per row, built only when it is read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luna16_monai.dataset.seeds import VALIDATION_STREAM
from luna16_monai.tables.points import PointTable


class CandidateList(Sequence[dict[str, Any]]):
    """The candidates of a split, as a sequence of MONAI's dicts that are made when they are read.

    Training at LUNA16's size would otherwise hold 754,975 dicts in every worker.

    Args:
        table: the candidates of the split; their values are the classes 0 and 1, or kinds of which 1 is the target.
        positives_first: so that a cache of limited size keeps what is drawn most often; else the table's order.
        data_sets: the series of each data set, by its name, those without a candidate too; nothing for one data set.

    Attributes:
        table: the rows in this list's order.
        labels: (n,) int64, 1 is the target: nodule, or malignant nodule where the values are kinds.
    """

    def __init__(
        self,
        table: PointTable,
        positives_first: bool = True,
        data_sets: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.data_sets = dict(data_sets or {})
        self.table = table.select(np.argsort(-table.values, kind="stable")) if positives_first else table
        self.labels = (self.table.values == 1).astype(np.int64)

    @property
    def kinds(self) -> NDArray[np.int64]:
        """(n,) the values of the table as they are: 0 is non-nodule, 1 the target."""
        return self.table.values.astype(np.int64)

    def digest(self) -> str:
        """Return a checksum of the rows: of series, points (with 6 decimals) and values, in this order."""
        uids = sorted({self.table.series_uids[code] for code in np.unique(self.table.series)})
        sha = hashlib.sha256("\n".join(uids).encode())
        for column, kind in (
            (self.table.series_codes(uids), "<i4"),
            (np.round(self.table.points_xyz * 1e6), "<i8"),
            (self.table.values, "<i8"),
        ):
            sha.update(np.ascontiguousarray(column.astype(kind)).tobytes())
        return sha.hexdigest()

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]
        """One candidate: ``series_uid``, ``point_xyz`` ((3,) world LPS mm), ``label``, ``candidate`` (its index)."""
        return {
            "series_uid": self.table.series_uids[self.table.series[index]],
            "point_xyz": self.table.points_xyz[index],
            "label": int(self.labels[index]),
            "candidate": index,
        }


def sample_negatives(table: PointTable, negatives: int | None, seed: int = 0) -> PointTable:
    """Keep every positive and a fixed random sample of negatives.

    Args:
        table: candidates; their values are the classes, or kinds of which 0 is non-nodule.
        negatives: how many to keep; None keeps all.
        seed: of the sample.
    """
    pool = np.flatnonzero(table.values == 0)
    if negatives is None or negatives >= len(pool):
        return table
    random = np.random.default_rng(np.random.SeedSequence([seed, VALIDATION_STREAM]))
    kept = random.choice(pool, negatives, replace=False)
    return table.select(np.sort(np.concatenate([np.flatnonzero(table.values > 0), kept])))
