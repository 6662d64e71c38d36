"""Read the history of a run: the scores of each epoch."""

from __future__ import annotations

import csv
from pathlib import Path

HISTORY = "history.csv"


def read_history(path: Path) -> list[dict[str, str]]:
    """The rows of a ``history.csv``; none where there is no such file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))
