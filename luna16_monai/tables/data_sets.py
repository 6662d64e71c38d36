"""One data folder or several, read as one data set.

Here alone a setting that names several folders becomes tables of all of them; what comes after sees one table. A series
belongs to one folder. Each folder has a store of its own, in the same order, which says which series are its.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from luna16_monai.machine.folder_lists import Folders, folder_list, folder_names
from luna16_monai.tables.lidc import Patients, Readings, read_patients, readings_for
from luna16_monai.tables.luna16 import find_table, read_annotations, read_candidates, read_excluded, read_series_list
from luna16_monai.tables.points import PointTable, joined_tables


@dataclass(frozen=True)
class DataSets:
    """One data folder or several in LUNA16's layout.

    Attributes:
        folders: the data folders.
    """

    folders: tuple[Path, ...]

    @classmethod
    def of(cls, setting: Folders) -> DataSets:
        """Return the data folders that a setting names, see `folder_list`."""
        return cls(folder_list(setting))

    def __len__(self) -> int:
        return len(self.folders)

    def __str__(self) -> str:
        return ", ".join(map(str, self.folders))

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each: that of its folder."""
        return folder_names(self.folders)

    def series(self, stores: Sequence[Sequence[str]]) -> dict[str, tuple[str, ...]]:
        """Return the series of each data set, by its name.

        Args:
            stores: the series of each store, in the order of the data folders.

        Raises:
            ValueError: there are more stores than data folders, or fewer.
        """
        if len(stores) != len(self):
            raise ValueError(
                f"{len(self)} data folders ({self}) with {len(stores)} stores: name one store for each, in the same "
                "order (dataset_dir and store_dir, or --data and --store)"
            )
        return {name: tuple(sorted(uids)) for name, uids in zip(self.names, stores, strict=True)}

    def candidates(self) -> PointTable:
        """Return the candidates, see `read_candidates`."""
        return _joined([read_candidates(folder) for folder in self.folders])

    def annotations(self) -> PointTable:
        """Return the nodules, see `read_annotations`."""
        return _joined([read_annotations(folder) for folder in self.folders])

    def without(self, table: str) -> list[Path]:
        """Return the folders that do not have a table."""
        return [folder for folder in self.folders if find_table(folder, table) is None]

    def excluded(self) -> PointTable | None:
        """Return the findings that count neither way, of those folders that have a table of them; None without any."""
        without = self.without("annotations_excluded")
        tables = [read_excluded(folder) for folder in self.folders if folder not in without]
        return _joined(tables) if tables else None

    def excluded_of_all(self) -> PointTable:
        """Return the findings that count neither way.

        Raises:
            FileNotFoundError: a folder has no table of them.
        """
        return _joined([read_excluded(folder) for folder in self.folders])

    def require_series(self, table: PointTable, stores: Sequence[Sequence[str]], missing: Sequence[str]) -> None:
        """Check that each row's series is one of its own folder: prepared, known to be missing, or listed.

        Args:
            table: what `candidates` gave.
            stores: the series of each store, in the order of the data folders.
            missing: series that the data folders list and that have no CT.

        Raises:
            ValueError: names the first row for which that is not so.
        """
        self.series(stores)
        for number, folder in enumerate(self.folders):
            part = table if table.file is None else table.select(table.file == number)
            known = [*stores[number], *missing, *(read_series_list(folder) or ())]
            there = {part.series_uids[code] for code in np.unique(part.series)}
            others = {uid for place, uids in enumerate(stores) if place != number for uid in uids}
            if clash := sorted(there & others):
                owner = next(self.folders[place] for place, uids in enumerate(stores) if clash[0] in uids)
                raise ValueError(_clash(clash[0], str(owner), table.files[number]))
            part.require_series(known, f"the prepared store, nor in {folder / 'seriesuids.csv'}")

    def patients(self) -> Patients:
        """Return the patient of each series, see `read_patients`; an identifier means the same patient in all."""
        return read_patients(self.folders)

    def readings(self) -> Readings:
        """Return the readers' ratings, see `readings_for`."""
        found = {one.source: one for one in map(readings_for, self.folders)}
        return Readings.joined(list(found.values()))


def _clash(uid: str, one: str, other: str) -> str:
    return (
        f"series {uid} is in {one} and in {other}: a series belongs to one data folder: take it out of one of the two, "
        "or leave that folder out"
    )


def _joined(tables: Sequence[PointTable]) -> PointTable:
    """Return the rows of all tables; refuse a series that is in two."""
    owner: dict[str, PointTable] = {}
    for table in tables:
        for uid in table.series_uids:
            if uid in owner:
                raise ValueError(_clash(uid, owner[uid].source, table.source))
            owner[uid] = table
    return joined_tables(tables)
