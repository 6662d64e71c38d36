"""Points as every format gives them: world LPS millimetres, each with its series and what is known of it.

A value that a row lacks is NaN; so a format that knows fewer of them loses none of the others' rows. What a format
could not hold, or left out when it was read, is a note: one line that a command prints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from luna16_monai.tables.points import PointTable
from luna16_monai.tables.text import is_series_uid, no_series_uid

FloatArray = NDArray[np.float64]

CLASS, PROBABILITY, DIAMETER = "class", "probability", "diameter_mm"
KNOWN = (CLASS, PROBABILITY, DIAMETER)
"""The values that more than one format knows, in the order of our tables."""


@dataclass(frozen=True, eq=False)
class Points:
    """Points of one or several series.

    Attributes:
        source: where they were read, for messages.
        series: (n,) the series of each.
        points_xyz: (n, 3), world LPS mm.
        values: (n,) for each name: `KNOWN` ones, and what else a table had; NaN where a point has none.
        names: (n,) what each is called, "" where it has no name.
        rows: (n,) the number of each in its file: a line, or which point it is.
        row_name: what ``rows`` count: "line" or "point".
        notes: what was left out, a line each.
        cells: (n,) for each name: what a table had besides, as it was written.

    Raises:
        ValueError: a position that is not finite, or a value that cannot be; it names file and row.
    """

    source: str
    series: tuple[str, ...]
    points_xyz: FloatArray
    values: Mapping[str, FloatArray] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    rows: NDArray[np.integer[Any]] = field(default_factory=lambda: np.zeros(0, np.int64))
    row_name: str = "point"
    notes: tuple[str, ...] = ()
    cells: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.series)
        object.__setattr__(self, "points_xyz", np.asarray(self.points_xyz, np.float64).reshape(n, 3))
        object.__setattr__(self, "values", {name: np.asarray(v, np.float64) for name, v in self.values.items()})
        object.__setattr__(self, "names", tuple(self.names) or ("",) * n)
        if len(self.rows) != n:
            object.__setattr__(self, "rows", np.arange(1, n + 1))
        self._check()

    def __len__(self) -> int:
        return len(self.series)

    @property
    def series_uids(self) -> tuple[str, ...]:
        """The distinct series, sorted."""
        return tuple(sorted(set(self.series)))

    def value(self, name: str) -> FloatArray:
        """Return a value of each point, (n,); NaN where it is not known."""
        return self.values.get(name, np.full(len(self), np.nan))

    def knows(self, name: str) -> bool:
        """Return whether at least one point has this value."""
        return bool(np.isfinite(self.value(name)).any())

    def place(self, row: int) -> str:
        """Return where a point was read, for messages."""
        return f"{self.source}, {self.row_name} {self.rows[row]}"

    def select(self, rows: ArrayLike) -> Points:
        """Return the same with only these points, in this order (indices or a mask)."""
        kept = np.arange(len(self))[np.asarray(rows)]
        return replace(
            self,
            series=tuple(self.series[row] for row in kept),
            points_xyz=self.points_xyz[kept],
            values={name: value[kept] for name, value in self.values.items()},
            names=tuple(self.names[row] for row in kept),
            rows=self.rows[kept],
            cells={name: [cells[row] for row in kept] for name, cells in self.cells.items()},
        )

    def of_series(self, series_uid: str) -> Points:
        """Return the points of one series, in their order."""
        return self.select(np.array([uid == series_uid for uid in self.series], bool))

    def noted(self, *notes: str) -> Points:
        """Return the same with further notes."""
        return replace(self, notes=(*self.notes, *notes))

    def table(self, value_column: str | None) -> PointTable:
        """Return the points as a table with one value.

        Args:
            value_column: which; None for bare points, whose values are 0.

        Raises:
            ValueError: a point has no such value.
        """
        value = np.zeros(len(self)) if value_column is None else self.value(value_column)
        lacking = np.flatnonzero(np.isnan(value))
        if len(lacking):
            raise ValueError(f"{self.place(int(lacking[0]))}: it has no {value_column}: give each point one")
        uids = self.series_uids
        codes = {uid: code for code, uid in enumerate(uids)}
        series = np.array([codes[uid] for uid in self.series], np.int32)
        return PointTable(self.source, uids, series, self.points_xyz, value, self.rows.astype(np.int32), self.row_name)

    def _check(self) -> None:
        """Refuse what cannot be, naming the first row that holds it."""
        for uid in set(self.series):
            if not is_series_uid(uid):
                raise ValueError(no_series_uid(uid, self.place(self.series.index(uid))))
        bad = np.flatnonzero(~np.isfinite(self.points_xyz).all(axis=1))
        if len(bad):
            point = self.points_xyz[bad[0]].tolist()
            raise ValueError(f"{self.place(int(bad[0]))}: position {point} is not finite: mend or remove it")
        if DIAMETER in self.values:  # LUNA16 writes -1 where it is unknown
            diameter = self.values[DIAMETER]
            object.__setattr__(self, "values", {**self.values, DIAMETER: np.where(diameter < 0, np.nan, diameter)})
        allowed = {
            CLASS: (lambda v: (v == 0) | (v == 1), "0 (no nodule) or 1 (nodule)"),
            PROBABILITY: (lambda v: (v >= 0) & (v <= 1), "a probability between 0 and 1"),
            DIAMETER: (lambda v: (v > 0) & np.isfinite(v), "a diameter in mm"),
        }
        for name, (fits, what) in allowed.items():
            value = self.value(name)
            wrong = np.flatnonzero(~(np.isnan(value) | fits(value)))
            if len(wrong):
                row = int(wrong[0])
                raise ValueError(f"{self.place(row)}: {name} is {value[row]:g}, expected {what}: mend or remove it")


def joined(parts: Sequence[Points], source: str) -> Points:
    """Return the points of several files as one; each keeps its number in its own file.

    Args:
        parts: at least one.
        source: of the whole.
    """
    if len(parts) == 1:
        return parts[0]
    names = sorted({name for part in parts for name in part.values}, key=lambda name: (name not in KNOWN, name))
    return Points(
        source,
        tuple(uid for part in parts for uid in part.series),
        np.concatenate([part.points_xyz for part in parts]),
        {name: np.concatenate([part.value(name) for part in parts]) for name in names},
        tuple(name for part in parts for name in part.names),
        np.concatenate([part.rows for part in parts]),
        parts[0].row_name,
        tuple(note for part in parts for note in part.notes),
        {
            name: [cell for part in parts for cell in part.cells.get(name, [""] * len(part))]
            for name in dict.fromkeys(name for part in parts for name in part.cells)
        },
    )
