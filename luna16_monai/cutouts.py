"""The volume store: every CT prepared once, any cutout read in about a millisecond.

A store is a folder with ``store.json`` and, for each series, ``<series_uid>.b2nd`` (int16 HU, (z, y, x), compressed
with blosc2 in chunks that suit cutouts) and ``<series_uid>.json`` (geometry, checksum, the recipe's hash). The latter
is written last: a series without it is not there. Rejected: one file a candidate (223 GB for candidates_V2 in
float32, and a new preparation for every change of the cutout's size), and zarr (nine times slower to read).

MONAI's transforms speak (x, y, z), everything from here on (z, y, x): the one transpose stands in ``prepare_volume``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from monai.bundle import ConfigParser
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from luna16_monai.candidates import PointTable, find_table, read_candidates, read_series_list
from luna16_monai.ct import CTFile, find_cts, read_geometry
from luna16_monai.files import publish, write_json
from luna16_monai.geometry import Geometry

logger = logging.getLogger(__name__)
# blosc2's dependency greets every user with its number of threads
logging.getLogger("numexpr").setLevel(logging.WARNING)

FORMAT = 1
AIR_HU = -1000
INDEX = "store.json"
CHUNKS_ZYX, BLOCKS_ZYX = (64, 128, 128), (16, 16, 16)
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
        centre = np.floor(self.geometry.voxel_from_world(point_xyz) + 0.5).astype(int)
        start = centre - np.array(shape_zyx) // 2
        low = np.maximum(start, 0)
        high = np.maximum(np.minimum(start + shape_zyx, self.geometry.shape_zyx), low)
        inside = self.voxels[tuple(map(slice, low.tolist(), high.tolist()))]
        if inside.shape == tuple(shape_zyx):
            return np.asarray(inside)
        box = np.full(shape_zyx, AIR_HU, np.int16)
        box[tuple(map(slice, low - start, high - start))] = inside
        return box


def prepare_volume(path: Path, transform: Callable[[dict[str, Any]], Mapping[str, Any]]) -> Volume:
    """Read one CT and send it through MONAI transforms.

    Args:
        path: a CT file, or a folder of DICOM files.
        transform: takes {"image": path}, gives a MetaTensor (1, x, y, z) in HU under "image".

    Returns:
        The volume in memory, (z, y, x) int16.

    Raises:
        ValueError: the transforms do not give a single-channel volume with an affine.
    """
    image = transform({"image": str(path)})["image"]
    if image.ndim != 4 or image.shape[0] != 1 or not hasattr(image, "affine"):
        raise ValueError(
            f"the transforms give {type(image).__name__} of shape {tuple(image.shape)} for {path.name}: "
            "a MetaTensor (1, x, y, z) was expected; keep LoadImaged with ensure_channel_first in the list"
        )
    geometry = Geometry.from_ras_affine(np.asarray(image.affine), image.shape[1:])
    voxels = np.asarray(image[0].numpy()).transpose(2, 1, 0)
    if voxels.dtype != np.int16:
        limits = np.iinfo(np.int16)
        voxels = np.clip(np.rint(voxels), limits.min, limits.max).astype(np.int16)
    return Volume(np.ascontiguousarray(voxels), geometry, read_geometry(path))


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
        self.index = _read_index(self.store_dir)
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


@dataclass(frozen=True)
class Recipe:
    """How CTs become volumes: the transform list of a bundle's ``prepare.yaml``, as read, not yet built.

    Attributes:
        config: the file's content, with ``spacing_zyx`` and ``transforms``.
    """

    config: dict[str, Any]

    @classmethod
    def read(cls, path: Path, spacing_zyx: Sequence[float] | None | str = "file") -> Recipe:
        """Read a recipe; ``spacing_zyx`` replaces the file's unless it is "file".

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file lacks a key.
        """
        if not path.is_file():
            raise FileNotFoundError(f"no transform list {path}: name a bundle's prepare.yaml")
        config = ConfigParser.load_config_file(str(path))
        for key in ("spacing_zyx", "transforms"):
            if key not in config:
                raise ValueError(f"{path} has no {key}: see the nodule bundle's configs/prepare.yaml")
        if spacing_zyx != "file":
            config["spacing_zyx"] = None if spacing_zyx is None else [float(s) for s in spacing_zyx]
        return cls(config)

    @property
    def spacing_zyx(self) -> list[float] | None:
        """The grid's spacing in mm, None for each CT's own."""
        spacing = self.config["spacing_zyx"]
        return None if spacing is None else [float(s) for s in spacing]

    @property
    def hash(self) -> str:
        """Changes when anything in the transform list does."""
        return hashlib.sha256(json.dumps(self.config, sort_keys=True).encode()).hexdigest()

    def build(self) -> Callable[[dict[str, Any]], Mapping[str, Any]]:
        """The transforms, as MONAI's config parser builds them."""
        return ConfigParser(dict(self.config)).get_parsed_content("transforms")


def prepare(
    data_dir: Path,
    store_dir: Path,
    recipe: Recipe,
    workers: int | None = None,
    allow_missing: bool = False,
    allow_symlinks: bool = False,
    progress: bool = True,
) -> Store:
    """Send every CT of a data folder once through the recipe, into the store; goes on where it was stopped.

    Args:
        data_dir: LUNA16's layout.
        store_dir: the store; made if need be.
        recipe: what is done to each CT.
        workers: processes; None takes one a core.
        allow_missing: go on when a series of ``seriesuids.csv`` has no CT.
        allow_symlinks: take CTs that are linked into the data folder.
        progress: whether to show a bar.

    Returns:
        The finished store.

    Raises:
        FileNotFoundError: no CT is there, or one that is listed is missing.
        ValueError: the store was made by another recipe, or a CT or table is wrong.
    """
    cts = find_cts(data_dir, allow_symlinks=allow_symlinks)
    missing = sorted(set(read_series_list(data_dir) or ()) - {ct.series_uid for ct in cts})
    if missing and not allow_missing:
        raise FileNotFoundError(
            f"{len(missing)} of the series in {data_dir / 'seriesuids.csv'} have no CT, the first is {missing[0]}: "
            "download the rest, or go on without them with --allow-missing"
        )
    _begin(store_dir, recipe)
    todo = [ct for ct in cts if _finished_entry(store_dir, ct.series_uid, recipe.hash) is None]
    workers = min(workers if workers is not None else os.cpu_count() or 1, len(todo))
    work = partial(_prepare_one, store_dir=store_dir, recipe=recipe)
    with tqdm(total=len(cts), initial=len(cts) - len(todo), desc="prepare", unit="CT", disable=not progress) as bar:
        if workers <= 1:
            for ct in todo:
                work(ct)
                bar.update()
        else:
            # spawned, not forked: a fork of a process that already runs torch's threads may hang
            with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
                try:
                    for done in as_completed([pool.submit(work, ct) for ct in todo]):
                        done.result()
                        bar.update()
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
    entries = {ct.series_uid: _finished_entry(store_dir, ct.series_uid, recipe.hash) for ct in cts}
    write_json(store_dir / INDEX, _index(recipe, complete=True, missing=missing, series=entries))
    store = Store(store_dir)
    if find_table(data_dir, "candidates_V2") or find_table(data_dir, "candidates"):
        candidates = read_candidates(data_dir)
        store.require_inside(candidates.select(candidates.series_codes(store.series_uids) >= 0))
    return store


def verify(store_dir: Path, progress: bool = True) -> list[str]:
    """Check every file of a store against its checksum.

    Returns:
        One line for each thing that is wrong, empty when all is well.

    Raises:
        FileNotFoundError: there is no store.
        ValueError: the store is of another version.
    """
    index = _read_index(store_dir)
    wrong = [] if index["complete"] else [f"{store_dir / INDEX}: not finished: run luna16 prepare again, it goes on"]
    for uid, entry in tqdm(index["series"].items(), desc="verify", unit="CT", disable=not progress):
        path, sidecar = store_dir / f"{uid}.b2nd", store_dir / f"{uid}.json"
        cure = "remove it and run luna16 prepare again"
        if not path.is_file():
            wrong.append(f"{path}: missing: run luna16 prepare again")
        elif path.stat().st_size != entry["bytes"]:
            wrong.append(f"{path}: {path.stat().st_size} bytes instead of {entry['bytes']}: {cure}")
        elif _checksum(path) != entry["sha256"]:
            wrong.append(f"{path}: its checksum differs, so its voxels have changed: {cure}")
        if _read_entry(sidecar) != entry:
            wrong.append(f"{sidecar}: missing or not what {INDEX} says: {cure}")
    return wrong


def _prepare_one(ct: CTFile, store_dir: Path, recipe: Recipe) -> None:
    volume = prepare_volume(ct.path, recipe.build())
    path = store_dir / f"{ct.series_uid}.b2nd"
    aside = path.with_name(f".{path.stem}.{os.getpid()}.tmp")
    try:
        # one thread, for the same bytes at every call: two runs at once then agree on the checksum
        blosc2.asarray(
            volume.voxels,
            chunks=tuple(map(min, CHUNKS_ZYX, volume.voxels.shape)),
            blocks=tuple(map(min, BLOCKS_ZYX, volume.voxels.shape)),
            cparams=blosc2.CParams(
                codec=blosc2.Codec.ZSTD, clevel=1, filters=[blosc2.Filter.BITSHUFFLE], typesize=2, nthreads=1
            ),
            urlpath=str(aside),
            mode="w",
            contiguous=True,
        )
        entry = {
            "format": FORMAT,
            "series_uid": ct.series_uid,
            "subset": ct.subset,
            "source": ct.path.name,
            "recipe": recipe.hash,
            "geometry": volume.geometry.to_dict(),
            "scan": volume.scan.to_dict(),
            "bytes": aside.stat().st_size,
            "sha256": _checksum(aside),
        }
        publish(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    write_json(store_dir / f"{ct.series_uid}.json", entry)


def _begin(store_dir: Path, recipe: Recipe) -> None:
    """Write the index of an unfinished store, unless one by the same recipe is there."""
    if (store_dir / INDEX).exists():
        index = _read_index(store_dir)
        begun = any(path.name != INDEX for path in store_dir.glob("*.json"))
        if index["recipe"] != recipe.hash and begun:
            raise ValueError(
                f"the store {store_dir} was made by another transform list (spacing_zyx "
                f"{index['spacing_zyx'] or 'native'}, now {recipe.spacing_zyx or 'native'}): "
                "name another --store, or remove this one"
            )
        if index["recipe"] == recipe.hash:
            return
    write_json(store_dir / INDEX, _index(recipe, complete=False, missing=[], series={}))


def _index(recipe: Recipe, complete: bool, missing: Iterable[str], series: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "complete": complete,
        "recipe": recipe.hash,
        "spacing_zyx": recipe.spacing_zyx,
        "config": recipe.config,
        "missing": list(missing),
        "series": dict(series),
    }


def _read_index(store_dir: Path) -> dict[str, Any]:
    path = store_dir / INDEX
    if not path.is_file():
        raise FileNotFoundError(f"no store in {store_dir}: run luna16 prepare --data DIR --store {store_dir}")
    try:
        index = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): remove it and run luna16 prepare again") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise ValueError(f"{path} is of another version (this one reads format {FORMAT}): prepare the store anew")
    return index


def _read_entry(sidecar: Path) -> dict[str, Any] | None:
    try:
        return json.loads(sidecar.read_text())
    except (FileNotFoundError, ValueError):
        return None


def _finished_entry(store_dir: Path, series_uid: str, recipe_hash: str) -> dict[str, Any] | None:
    """What stands beside a finished volume; None where it is absent, damaged or of another recipe."""
    entry = _read_entry(store_dir / f"{series_uid}.json")
    path = store_dir / f"{series_uid}.b2nd"
    if entry is None or entry.get("recipe") != recipe_hash or entry.get("format") != FORMAT:
        return None
    return entry if path.is_file() and path.stat().st_size == entry["bytes"] else None


def _checksum(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _mm(point_xyz: ArrayLike) -> str:
    return "(" + ", ".join(f"{value:.1f}" for value in np.asarray(point_xyz, float)) + ") mm"


def _extent(geometry: Geometry) -> str:
    corners = geometry.world_from_voxel([[0, 0, 0], [side - 1 for side in geometry.shape_zyx]])
    low, high = corners.min(axis=0), corners.max(axis=0)
    return ", ".join(f"{axis} from {a:.0f} to {b:.0f} mm" for axis, a, b in zip("xyz", low, high, strict=True))
