"""What each scan of a drawn data set was drawn from: ``drawn.csv``.

Two drawn sets of one seed give their scans other identifiers as soon as they hold different numbers of scans, and share
the anatomy all the same. This table says which scans are the same in that sense.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from luna16_monai.machine.files import write_csv
from luna16_monai.tables.text import open_table, require_columns

DRAWN = "drawn.csv"


@dataclass(frozen=True, order=True)
class Drawn:
    """What a scan was drawn from.

    Attributes:
        kind: ``synthetic``, or ``background`` for nodules drawn into a real CT.
        recipe: version of what a seed gives.
        seed: of the data set.
        number: of the scan in the data set; with recipe and seed it fixes the anatomy.
        background: SHA-256 of the real CT's voxels; empty where there is none.
        patients: LIDC-IDRI's patients whose nodules' shapes the scan may hold, sorted.
    """

    kind: str
    recipe: int
    seed: int
    number: int
    background: str
    patients: tuple[str, ...]

    @property
    def anatomy(self) -> tuple[str, int, int, int, str]:
        """What two scans share that are drawn alike: all but the patients of the shapes."""
        return self.kind, self.recipe, self.seed, self.number, self.background

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Drawn:
        """Return the record that a row of the table, or an object of JSON, holds.

        Raises:
            KeyError, ValueError, TypeError: it holds none.
        """
        patients = values["patients"]
        return cls(
            kind=str(values["kind"]),
            recipe=int(values["recipe"]),
            seed=int(values["seed"]),
            number=int(values["number"]),
            background=str(values["background"]),
            patients=tuple(patients.split() if isinstance(patients, str) else map(str, patients)),
        )


COLUMNS = ("seriesuid", *(field.name for field in fields(Drawn)))


def write_drawn(data_dir: Path, drawn: Mapping[str, Drawn]) -> None:
    """Write ``drawn.csv``, by series."""
    rows = ([uid, *astuple(one)[:-1], " ".join(one.patients)] for uid, one in sorted(drawn.items()))
    write_csv(data_dir / DRAWN, COLUMNS, rows)


def read_drawn(data_dir: Path | str) -> dict[str, Drawn]:
    """Return what each series of a data folder was drawn from; nothing where the folder has no such table.

    Raises:
        ValueError: the table lacks a column, or a value in a line.
    """
    path = Path(data_dir) / DRAWN
    if not path.is_file():
        return {}
    found = {}
    with open_table(path) as stream:
        rows = csv.DictReader(stream)
        require_columns(rows.fieldnames, COLUMNS, path)
        for row in rows:
            try:
                found[row["seriesuid"]] = Drawn.parse(row)
            except (ValueError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"{path}, line {rows.line_num}: a value is missing or no number ({error}): draw the set again"
                ) from error
    return found


def drawn_near(paths: Iterable[Path]) -> dict[str, Drawn]:
    """Return what the series at some CT files or data folders were drawn from, as far as a table near them says.

    A CT lies in a data folder itself, or one folder deeper, in its subset.
    """
    folders = dict.fromkeys(folder for path in paths for folder in (path, path.parent, path.parent.parent))
    return {uid: one for folder in folders for uid, one in read_drawn(folder).items()}
