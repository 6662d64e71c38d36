"""The volume store: every CT prepared once, any cutout read in about a millisecond.

A store is a folder with ``store.json`` and, for each series, ``<series_uid>.b2nd`` (int16 HU, (z, y, x), compressed
with blosc2 in chunks that suit cutouts) and ``<series_uid>.json`` (geometry, checksum, the recipe's hash). The latter
is written last: a series without it is not there. Rejected: one file a candidate (223 GB for candidates_V2 in
float32, and a new preparation for every change of the cutout's size), and zarr (nine times slower to read).
``prepare.py`` makes the store, here it is read and checked.

MONAI's transforms speak (x, y, z), everything from here on (z, y, x): the one transpose stands in ``prepare_volume``.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import torch
from monai.data import get_track_meta, set_track_meta
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from luna16_monai.candidates import PointTable
from luna16_monai.ct import read_geometry
from luna16_monai.files import sha256
from luna16_monai.geometry import Geometry

# blosc2's dependency greets every user with its number of threads
logging.getLogger("numexpr").setLevel(logging.WARNING)

FORMAT = 1
AIR_HU = -1000
INDEX = "store.json"
OPEN_VOLUMES = 64


@dataclass(frozen=True)
class Volume:
    """A CT on the grid that cutouts are taken from.

    Attributes:
        voxels: (z, y, x) int16 HU: an array, or a blosc2 array that is read piece by piece.
        geometry: where the voxels lie.
        scan: where the CT's own voxels lie; a resampled grid may end half a voxel short of it.
    """

    voxels: Any
    geometry: Geometry
    scan: Geometry

    def cutout(self, point_xyz: ArrayLike, shape_zyx: Sequence[int] = (32, 48, 48)) -> NDArray[np.int16]:
        """The box around the voxel nearest to a point, which comes to lie at index ``shape // 2``.

        Args:
            point_xyz: (3,) world LPS mm.
            shape_zyx: the box, always returned in full; outside the scan it is air, -1000 HU.

        Returns:
            (z, y, x) int16 HU.

        Raises:
            ValueError: the point lies outside the scan.
        """
        if not self.scan.contains(point_xyz):
            raise ValueError(f"point {_mm(point_xyz)} lies outside the scan ({_extent(self.scan)})")
        start = self._start(point_xyz, shape_zyx)
        low = np.maximum(start, 0)
        high = np.maximum(np.minimum(start + shape_zyx, self.geometry.shape_zyx), low)
        inside = self.voxels[tuple(map(slice, low.tolist(), high.tolist()))]
        if inside.shape == tuple(shape_zyx):
            return np.array(inside)  # a copy: in memory, it would be a view of the volume
        box = np.full(shape_zyx, AIR_HU, np.int16)
        box[tuple(map(slice, low - start, high - start))] = inside
        return box

    def cutout_geometry(self, point_xyz: ArrayLike, shape_zyx: Sequence[int] = (32, 48, 48)) -> Geometry:
        """Where the voxels of `cutout` lie."""
        affine = self.geometry.affine.copy()
        affine[:3, 3] = self.geometry.world_from_voxel(self._start(point_xyz, shape_zyx))
        z, y, x = map(int, shape_zyx)
        return Geometry((z, y, x), affine)

    def _start(self, point_xyz: ArrayLike, shape_zyx: Sequence[int]) -> NDArray[np.int_]:
        centre = np.floor(self.geometry.voxel_from_world(point_xyz) + 0.5).astype(int)
        return centre - np.array(shape_zyx) // 2


def prepare_volume(
    path: Path,
    transform: Callable[[dict[str, Any]], Mapping[str, Any]],
    data_dir: Path | None = None,
    allow_symlinks: bool = False,
) -> Volume:
    """Read one CT and send it through MONAI transforms.

    Args:
        path: a CT file, or a folder of DICOM files.
        transform: takes {"image": path}, gives a MetaTensor (1, x, y, z) in HU under "image".
        data_dir, allow_symlinks: as ``ct.open_ct``; the transform's reader has its own.

    Returns:
        The volume in memory, (z, y, x) int16.

    Raises:
        ValueError: the transforms do not give a single-channel volume with an affine.
    """
    # the transforms need the affine, which training and scoring do without: they switch its tracking off
    tracked = get_track_meta()
    set_track_meta(True)
    try:
        image = transform({"image": str(path)})["image"]
    finally:
        set_track_meta(tracked)
    if image.ndim != 4 or image.shape[0] != 1 or not hasattr(image, "affine"):
        raise ValueError(
            f"the transforms give {type(image).__name__} of shape {tuple(image.shape)} for {path.name}: "
            "a MetaTensor (1, x, y, z) was expected; keep LoadImaged with ensure_channel_first in the list"
        )
    geometry = Geometry.from_ras_affine(np.asarray(image.affine), image.shape[1:])
    # in place: a whole CT in float32 takes a gigabyte
    voxels = image.as_tensor()[0].permute(2, 1, 0)
    if voxels.dtype != torch.int16:
        limits = torch.iinfo(torch.int16)
        voxels = voxels.round_().clamp_(limits.min, limits.max).short()
    return Volume(np.ascontiguousarray(voxels.numpy()), geometry, read_geometry(path, data_dir, allow_symlinks))


class Store:
    """A prepared store, for reading. Cheap to make, safe to fork and to pickle, and to share among threads.

    Args:
        store_dir: the folder.
        spacing_zyx: what the store must have been made for, mm; "any" takes it as it is, None means native spacing.

    Raises:
        FileNotFoundError: there is no store, or it is not finished.
        ValueError: it was made for another spacing, or by another version.
    """

    def __init__(self, store_dir: Path | str, spacing_zyx: Sequence[float] | str | None = "any") -> None:
        self.store_dir = Path(store_dir)
        self.index = read_index(self.store_dir)
        if not self.index["complete"]:
            raise FileNotFoundError(f"the store {store_dir} is not finished: run luna16 prepare again, it goes on")
        made_for = self.index["spacing_zyx"]
        if spacing_zyx != "any" and made_for != (None if spacing_zyx is None else [float(s) for s in spacing_zyx]):
            raise ValueError(
                f"the store {store_dir} was made for spacing_zyx {made_for or 'native'}, not "
                f"{'native' if spacing_zyx is None else list(spacing_zyx)}: prepare another store, or set spacing_zyx"
            )
        self._series: dict[str, dict[str, Any]] = self.index["series"]
        self._open = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_open"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open = threading.local()

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
        return tuple(self.index["missing"])

    def volume(self, series_uid: str) -> Volume:
        """A series, its voxels read piece by piece as they are asked for.

        Raises:
            KeyError: the store does not have the series.
            FileNotFoundError: its file is gone.
        """
        # one handle a thread and process: blosc2's are not safe to share, and a fork shares the file's position
        if getattr(self._open, "process", None) != os.getpid():
            self._open.process, self._open.volumes = os.getpid(), OrderedDict()
        volumes: OrderedDict[str, Volume] = self._open.volumes
        if series_uid in volumes:
            volumes.move_to_end(series_uid)
            return volumes[series_uid]
        if series_uid not in self._series:
            raise KeyError(f"series {series_uid} is not in the store {self.store_dir}: run luna16 prepare on its CT")
        geometry, scan = (Geometry.from_dict(self._series[series_uid][name]) for name in ("geometry", "scan"))
        path = self.store_dir / f"{series_uid}.b2nd"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is gone: run luna16 prepare again, it makes what is missing")
        voxels = blosc2.open(str(path), mode="r", dparams=blosc2.DParams(nthreads=1))
        volumes[series_uid] = Volume(voxels, geometry, scan)
        while len(volumes) > OPEN_VOLUMES:
            volumes.popitem(last=False)
        return volumes[series_uid]

    def require_inside(self, table: PointTable) -> None:
        """Check that every row's point lies in its scan.

        Args:
            table: rows of series that the store has.

        Raises:
            ValueError: names the first row outside, by line and point.
        """
        for code in np.unique(table.series):
            rows = np.flatnonzero(table.series == code)
            uid = table.series_uids[code]
            scan = Geometry.from_dict(self._series[uid]["scan"])
            outside = rows[~scan.contains(table.points_xyz[rows])]
            if len(outside):
                raise ValueError(
                    f"candidate {_mm(table.points_xyz[outside[0]])} ({table.source}, line {table.lines[outside[0]]}) "
                    f"lies outside series {uid} ({_extent(scan)}): does this table belong to this CT?"
                )


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


def read_index(store_dir: Path) -> dict[str, Any]:
    """What stands in a store's ``store.json``.

    Raises:
        FileNotFoundError: there is no store.
        ValueError: it is damaged, or of another version.
    """
    path = store_dir / INDEX
    if not path.is_file():
        raise FileNotFoundError(f"no store in {store_dir}: run luna16 prepare --data DIR --store {store_dir}")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): remove it and run luna16 prepare again") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise ValueError(f"{path} is of another version (this one reads format {FORMAT}): prepare the store anew")
    return index


def read_entry(sidecar: Path) -> dict[str, Any] | None:
    """What stands beside a volume; None where it is absent or damaged."""
    try:
        entry = json.loads(sidecar.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return entry if isinstance(entry, dict) else None


def _mm(point_xyz: ArrayLike) -> str:
    return "(" + ", ".join(f"{value:.1f}" for value in np.asarray(point_xyz, float)) + ") mm"


def _extent(geometry: Geometry) -> str:
    corners = geometry.world_from_voxel([[0, 0, 0], [side - 1 for side in geometry.shape_zyx]])
    low, high = corners.min(axis=0), corners.max(axis=0)
    return ", ".join(f"{axis} from {a:.0f} to {b:.0f} mm" for axis, a, b in zip("xyz", low, high, strict=True))
