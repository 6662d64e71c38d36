"""The volume store: every CT prepared once, any cutout read in about a millisecond.

A store is a folder with ``store.json`` and, for each series, ``<series_uid>.b2nd`` (int16 HU, (z, y, x), compressed
with blosc2 in chunks that suit cutouts) and ``<series_uid>.json`` (geometry, checksum, the preparation's hash). The
latter is written last: a series without it is not there. Rejected: one file a candidate (223 GB for candidates_V2 in
float32, and a new preparation for every change of the cutout's size), and zarr (nine times slower to read).
``luna16_monai.store.prepare`` makes the store, here it is read and checked.

MONAI's transforms speak (x, y, z), everything from here on (z, y, x): the one transpose is in
``luna16_monai.store.preparation.prepare_volume``.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from luna16_monai.geometry.grid import Geometry, require_inside
from luna16_monai.geometry.volume import Volume
from luna16_monai.machine.files import sha256
from luna16_monai.machine.folder_lists import Folders, folder_list
from luna16_monai.store.index import INDEX, read_entry, read_index
from luna16_monai.tables.points import PointTable

# blosc2's dependency greets every user with its number of threads
logging.getLogger("numexpr").setLevel(logging.WARNING)
OPEN_VOLUMES = 64


class Store:
    """A prepared store, or several, for reading. Cheap to make, safe to fork and to pickle, and to share among threads.

    Args:
        store_dir: the folder; or several, one for each data folder, which are read as one store.
        spacing_zyx: what the store must have been made for, mm; "any" takes it as it is, None means native spacing.

    Attributes:
        store_dirs: the folders.
        index: what stands in ``store.json``; of several, the first one's with the series of all.
        parts: the series of each folder, sorted.

    Raises:
        FileNotFoundError: there is no store, or it is not finished.
        ValueError: it was made for another spacing, or by another version; or two of several have a series in common,
            or prepare CTs differently.
    """

    def __init__(self, store_dir: Folders, spacing_zyx: Sequence[float] | str | None = "any") -> None:
        self.store_dirs = folder_list(store_dir)
        indices = [_finished_index(folder) for folder in self.store_dirs]
        for folder, index in zip(self.store_dirs, indices, strict=True):
            made_for = index["spacing_zyx"]
            if spacing_zyx != "any" and made_for != (None if spacing_zyx is None else [float(s) for s in spacing_zyx]):
                raise ValueError(
                    f"the store {folder} was made for spacing_zyx {made_for or 'native'}, not "
                    f"{'native' if spacing_zyx is None else list(spacing_zyx)}: prepare another store, or set "
                    "spacing_zyx"
                )
            if index["recipe"] != indices[0]["recipe"]:
                raise ValueError(
                    f"the stores {self.store_dirs[0]} ({indices[0]['spacing_zyx'] or 'native spacing'}) and {folder} "
                    f"({made_for or 'native spacing'}) prepare CTs differently: make one of them anew, with the same "
                    "spacing and transform list"
                )
        self.parts = tuple(tuple(sorted(index["series"])) for index in indices)
        self._series: dict[str, dict[str, Any]] = {}
        self._folders: dict[str, Path] = {}
        self._missing: list[str] = []
        for folder, index in zip(self.store_dirs, indices, strict=True):
            if shared := sorted(self._series.keys() & index["series"].keys()):
                raise ValueError(
                    f"series {shared[0]} is in the stores {self._folders[shared[0]]} and {folder}: take its CT out of "
                    "one of the data folders and prepare that again, or leave that data set out"
                )
            self._series |= index["series"]
            self._folders |= dict.fromkeys(index["series"], folder)
            self._missing += index["missing"]
        self.index = {**indices[0], "missing": self._missing, "series": self._series}
        self._start_reading()

    def _start_reading(self) -> None:
        self._open = threading.local()
        self._whole: dict[str, Volume] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_open", "_whole")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start_reading()

    @property
    def series_uids(self) -> tuple[str, ...]:
        """The series of the store, sorted."""
        return tuple(sorted(self._series))

    @property
    def subsets(self) -> dict[str, int | None]:
        """Each series' official subset, None where it lay in no subset folder."""
        return {uid: entry["subset"] for uid, entry in self._series.items()}

    @property
    def missing(self) -> tuple[str, ...]:
        """Series that the data folder lists, but whose CT was absent when the store was made."""
        return tuple(self._missing)

    def volume(self, series_uid: str) -> Volume:
        """Return a series, its voxels read piece by piece as they are asked for.

        Raises:
            KeyError: the store does not have the series.
            FileNotFoundError: its file is gone.
        """
        if series_uid in self._whole:
            return self._whole[series_uid]
        # one handle a thread and process: blosc2's are not safe to share, and a fork shares the file's position
        if getattr(self._open, "process", None) != os.getpid():
            self._open.process, self._open.volumes = os.getpid(), OrderedDict()
        volumes: OrderedDict[str, Volume] = self._open.volumes
        if series_uid in volumes:
            volumes.move_to_end(series_uid)
            return volumes[series_uid]
        if series_uid not in self._series:
            stores = ", ".join(map(str, self.store_dirs))
            raise KeyError(f"series {series_uid} is not in the store {stores}: run luna16 prepare on its CT")
        geometry, scan = (Geometry.from_dict(self._series[series_uid][name]) for name in ("geometry", "scan"))
        path = self._folders[series_uid] / f"{series_uid}.b2nd"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is gone: run luna16 prepare again, it makes what is missing")
        # a quarter of a second, which a prediction that reads no store does not need
        import blosc2

        voxels = blosc2.open(str(path), mode="r", dparams=blosc2.DParams(nthreads=1))
        volumes[series_uid] = Volume(voxels, geometry, scan)
        while len(volumes) > OPEN_VOLUMES:
            volumes.popitem(last=False)
        return volumes[series_uid]

    @contextmanager
    def whole(self, series_uid: str) -> Iterator[None]:
        """Keep a series decompressed in memory while the block runs, for many cutouts of it, in all threads.

        Raises:
            KeyError, FileNotFoundError: as `volume`.
        """
        self._whole[series_uid] = self.volume(series_uid).in_memory()
        try:
            yield
        finally:
            del self._whole[series_uid]

    def require_inside(self, table: PointTable) -> None:
        """Check that every row's point lies in its scan.

        Args:
            table: rows of series that the store has.

        Raises:
            ValueError: names the first row outside, by line and point.
        """
        for code in np.unique(table.series):
            part = table.select(table.series == code)
            uid = table.series_uids[code]
            scan = Geometry.from_dict(self._series[uid]["scan"])
            require_inside(part.points_xyz, scan, uid, part.place)


def _finished_index(store_dir: Path) -> dict[str, Any]:
    """Return the index of a finished store."""
    index = read_index(store_dir)
    if not index["complete"]:
        raise FileNotFoundError(f"the store {store_dir} is not finished: run luna16 prepare again, it goes on")
    return index


def verify(store_dir: Path, progress: bool = True) -> list[str]:
    """Check every file of a store against its checksum.

    Returns:
        One line for each thing that is wrong, empty when all is well.

    Raises:
        FileNotFoundError: there is no store.
        ValueError: the store is of another version.
    """
    index = read_index(store_dir)
    wrong = [] if index["complete"] else [f"{store_dir / INDEX}: not finished: run luna16 prepare again, it goes on"]
    for uid, entry in tqdm(index["series"].items(), desc="verify", unit="CT", disable=not progress):
        path, sidecar = store_dir / f"{uid}.b2nd", store_dir / f"{uid}.json"
        cure = "remove it and run luna16 prepare again"
        if not path.is_file():
            wrong.append(f"{path}: missing: run luna16 prepare again")
        elif path.stat().st_size != entry["bytes"]:
            wrong.append(f"{path}: {path.stat().st_size} bytes instead of {entry['bytes']}: {cure}")
        elif sha256(path) != entry["sha256"]:
            wrong.append(f"{path}: its checksum differs, so its voxels have changed: {cure}")
        if {**(read_entry(sidecar) or {}), "subset": entry["subset"]} != entry:
            wrong.append(f"{sidecar}: missing or not what {INDEX} says: {cure}")
    return wrong
