"""What reviewers decided about candidates: one CSV, whole at any time, that several of them may write at once.

Its first columns are those of LUNA16's candidates, so training reads it as it is; who decided and when follows. Every
change reads the file, changes one row and replaces it, all under a lock beside it: so the last decision about a
candidate wins, and nobody's about another is lost. The lock has a file of its own, since the table is replaced each
time. Rejected: one row a click, appended, which training would have to sort out; a database, which it cannot read.
"""

from __future__ import annotations

import csv
import getpass
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock

from luna16_monai.machine.files import write_csv
from luna16_monai.tables.points import COORDINATES, Key, has_column, point_key, read_points
from luna16_monai.tables.text import open_table, require_columns

COLUMNS = ("seriesuid", *COORDINATES, "class", "reviewer", "time")
DIAMETER = "diameter_mm"
"""A further column, where the diameter of any candidate is known; -1 for the others, as in LUNA16's own tables."""
LONGEST_NAME = 64


@dataclass(frozen=True)
class Decision:
    """One reviewer's word about one candidate.

    Attributes:
        label: the class: 1 accepted as a nodule, 0 rejected.
        reviewer: who decided.
        time: when, UTC, ISO 8601.
        diameter_mm: of the candidate; None where it is not known.
    """

    label: int
    reviewer: str
    time: str
    diameter_mm: float | None = None


def login_name() -> str:
    """The name under which the user is known to this machine.

    Raises:
        ValueError: there is none, as for a bare user id in a container.
    """
    try:
        return getpass.getuser()
    except (OSError, KeyError) as error:
        raise ValueError("this machine has no name for you: give one with --reviewer") from error


class Decisions:
    """A decisions file and the reviewer who writes to it. Safe to share among threads and with other processes.

    Args:
        path: the CSV; made at the first decision.
        reviewer: the name that stands beside each decision.

    Raises:
        ValueError: the file is there and holds something else, or the name can't stand in a table.
        OSError: the folder can't be written to.
    """

    def __init__(self, path: Path, reviewer: str) -> None:
        if not 0 < len(reviewer) <= LONGEST_NAME or not reviewer.isprintable() or reviewer != reviewer.strip():
            raise ValueError(
                f"reviewer {reviewer[:LONGEST_NAME]!r}: give a name of 1 to {LONGEST_NAME} characters on one line"
            )
        self.path, self.reviewer = path, reviewer
        with self._locked():
            self.read()

    def read(self) -> dict[Key, Decision]:
        """All decisions in the file, whoever made them; empty where there is no file.

        Raises:
            ValueError: the file is no table of decisions; the message names file and line.
        """
        if not self.path.is_file():
            return {}
        table = read_points(self.path, "class")
        with open_table(self.path) as lines:
            rows = csv.DictReader(lines)
            cure = "it holds no decisions of reviewers, name another file"
            require_columns(rows.fieldnames, COLUMNS, self.path, cure)
            written = [(row["reviewer"], row["time"]) for row in rows]
        known = read_points(self.path, DIAMETER).values.tolist() if has_column(self.path, DIAMETER) else []
        diameters = [diameter if diameter > 0 else None for diameter in known] or [None] * len(written)
        points = table.points_xyz.tolist()
        return {
            point_key(table.series_uids[code], point): Decision(int(label), *who_and_when, diameter)
            for code, point, label, who_and_when, diameter in zip(
                table.series, points, table.values, written, diameters, strict=True
            )
        }

    def decide(self, key: Key, label: int | None, diameter_mm: float | None = None) -> dict[Key, Decision]:
        """Write what the reviewer says about one candidate; None takes back what was said.

        Args:
            key: see `point_key`.
            label: 1, 0 or None.
            diameter_mm: of the candidate, where it is known.

        Returns:
            All decisions, as the file has them now.

        Raises:
            ValueError: the label is none of these, or the file is damaged.
            OSError: it can't be written.
        """
        if label not in (0, 1, None):
            raise ValueError(f"class {label}: give 1 (nodule), 0 (no nodule) or nothing")
        with self._locked():
            decisions = self.read()
            if label is None:
                decisions.pop(key, None)
            else:
                now = datetime.now(UTC).isoformat(timespec="seconds")
                decisions[key] = Decision(label, self.reviewer, now, diameter_mm)
            measured = any(one.diameter_mm for one in decisions.values())
            rows = (
                (*key, one.label, one.reviewer, one.time, *([one.diameter_mm or -1] if measured else []))
                for key, one in decisions.items()
            )
            write_csv(self.path, (*COLUMNS, *([DIAMETER] if measured else [])), rows)
        return decisions

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep out every other writer, in this process or another; a lock goes with the process that holds it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_name(f".{self.path.name[:100]}.lock")):
            yield
