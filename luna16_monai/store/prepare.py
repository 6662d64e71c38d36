"""Preparing: every CT of a data folder is sent once through a bundle's transform list, into the store.

Stopped at any moment, it goes on: a file under its final name is whole, and what is finished stays. Two at once do the
same work twice, and end with the same store.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import multiprocessing
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import blosc2
import torch
from tqdm import tqdm

from luna16_monai.ct.folders import CTFile, find_cts
from luna16_monai.machine.claims import require_same
from luna16_monai.machine.errors import one_line
from luna16_monai.machine.files import atomic_write, remove_abandoned, write_json
from luna16_monai.machine.processes import run_tasks
from luna16_monai.store import source
from luna16_monai.store.index import FORMAT, INDEX, read_entry, read_index
from luna16_monai.store.preparation import Preparation, prepare_volume
from luna16_monai.store.reading import Store
from luna16_monai.tables.luna16 import find_table, read_candidates, read_series_list

logger = logging.getLogger(__name__)

Work = Callable[[CTFile], str | None]
"""Prepares a CT, and returns what a user is to know of it, if anything."""
Execute = Callable[[Work, Sequence[CTFile]], Iterator[str | None]]
"""Runs a function for each CT somewhere: `processes.run_tasks`, or that of a cluster."""
CHUNKS_ZYX, BLOCKS_ZYX = (64, 128, 128), (16, 16, 16)


def prepare(
    data_dir: Path,
    store_dir: Path,
    recipe: Preparation,
    workers: int | None = None,
    allow_missing: bool = False,
    allow_symlinks: bool = False,
    progress: bool = True,
    execute: Execute | None = None,
    log_dir: Path | None = None,
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
        execute: where the CTs are prepared; None takes ``workers`` processes of this machine.
        log_dir: for a log of each CT: where and when it was prepared, and what was said; None writes none.

    Returns:
        The finished store.

    Raises:
        FileNotFoundError: no CT is there, or one that is listed is missing.
        ValueError: the store was made by another recipe, or a CT, a table or the recipe is wrong.
        RuntimeError: a worker process died.
    """
    _built(recipe, data_dir, allow_symlinks)
    cts = find_cts(data_dir, allow_symlinks=allow_symlinks)
    missing = sorted(set(read_series_list(data_dir) or ()) - {ct.series_uid for ct in cts})
    if missing and not allow_missing:
        raise FileNotFoundError(
            f"{len(missing)} of the series in {data_dir / 'seriesuids.csv'} have no CT, the first is {missing[0]}: "
            "download the rest, or go on without them with --allow-missing"
        )
    # read first, so that a wrong line in it is reported before the long work
    candidates = read_candidates(data_dir) if _has_candidates(data_dir) else None
    _begin(store_dir, recipe)
    remove_abandoned(store_dir)
    work = partial(_prepare_one, store_dir=store_dir, recipe=recipe, data_dir=data_dir, allow_symlinks=allow_symlinks)
    if log_dir is not None:
        work = partial(_logged, work=work, log_dir=log_dir)
    _prepare_all(cts, store_dir, recipe, work, execute or partial(run_tasks, workers=workers), progress)
    _finish(cts, store_dir, recipe, missing)
    store = Store(store_dir)
    if candidates is not None:
        store.require_inside(candidates.select(candidates.series_codes(store.series_uids) >= 0))
    return store


def _prepare_all(
    cts: Sequence[CTFile],
    store_dir: Path,
    recipe: Preparation,
    work: Work,
    execute: Execute,
    progress: bool,
) -> None:
    """Prepare the CTs that are not finished, under a bar."""
    entries = {ct.series_uid: _finished_entry(store_dir, ct.series_uid, recipe.hash) for ct in cts}
    todo = [ct for ct in cts if (e := entries[ct.series_uid]) is None or source.compare(ct.ct, e) != source.State.SAME]
    if any(entries[ct.series_uid] is not None for ct in todo):
        # until what has changed is made anew, this is no whole store
        write_json(store_dir / INDEX, _index(recipe, complete=False, missing=[], series={}))
    with tqdm(total=len(cts), initial=len(cts) - len(todo), desc="prepare", unit="CT", disable=not progress) as bar:
        for said in execute(work, todo):
            bar.update()
            if said:
                logger.warning("%s", said)


def _finish(cts: Sequence[CTFile], store_dir: Path, recipe: Preparation, missing: Sequence[str]) -> None:
    """Write the index of the finished store."""
    entries = {}
    for ct in cts:
        if (entry := _finished_entry(store_dir, ct.series_uid, recipe.hash)) is None:
            raise RuntimeError(f"series {ct.series_uid} was changed in {store_dir} meanwhile: run luna16 prepare again")
        # where the CT lies now, whatever it was when the volume was made
        entries[ct.series_uid] = {**entry, "subset": ct.subset}
    write_json(store_dir / INDEX, _index(recipe, complete=True, missing=missing, series=entries))


class _Log(logging.FileHandler):
    """A log that a full disk does not stop: the work itself reports that."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Say nothing."""

    def close(self) -> None:
        """Leave out what there is no room for."""
        with contextlib.suppress(OSError):
            super().close()


def _logged(ct: CTFile, work: Work, log_dir: Path) -> str | None:
    """Prepare a CT and add to its log."""
    log_dir.mkdir(parents=True, exist_ok=True)
    handler = _Log(log_dir / f"{ct.series_uid}.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(min(root.level, logging.INFO))

    def note(text: str) -> None:
        # into the log alone: a terminal shows the bar, and the error
        handler.handle(logging.LogRecord(__name__, logging.INFO, __file__, 0, text, None, None))

    try:
        note(f"{ct.path.name} on {platform.node()}")
        said = work(ct)
        note("finished" if said is None else f"finished; {said}")
        return said
    except Exception as error:
        note(f"failed: {one_line(error)}")
        raise
    finally:
        root.removeHandler(handler)
        handler.close()


def _prepare_one(ct: CTFile, store_dir: Path, recipe: Preparation, data_dir: Path, allow_symlinks: bool) -> str | None:
    if multiprocessing.parent_process() is not None:
        # one of several workers: their threads would only wait for each other
        torch.set_num_threads(1)
    files = source.identify(ct.ct)
    before = _finished_entry(store_dir, ct.series_uid, recipe.hash)
    changed = [] if before is None else source.changed_files(files, before)
    if before is not None and not changed:
        write_json(store_dir / f"{ct.series_uid}.json", {**before, source.KEY: files})
        return None
    volume = prepare_volume(ct.ct, _built(recipe, data_dir, allow_symlinks))
    # one thread, for the same bytes at every call: two runs at once then agree on the checksum
    content = blosc2.asarray(
        volume.voxels,
        chunks=tuple(map(min, CHUNKS_ZYX, volume.voxels.shape)),
        blocks=tuple(map(min, BLOCKS_ZYX, volume.voxels.shape)),
        cparams=blosc2.CParams(
            codec=blosc2.Codec.ZSTD, clevel=1, filters=[blosc2.Filter.BITSHUFFLE], typesize=2, nthreads=1
        ),
    ).to_cframe()
    with atomic_write(store_dir / f"{ct.series_uid}.b2nd") as stream:
        stream.write(content)
    entry = {
        "format": FORMAT,
        "series_uid": ct.series_uid,
        "source": ct.path.name,
        source.KEY: files,
        "recipe": recipe.hash,
        "geometry": volume.geometry.to_dict(),
        "scan": volume.scan.to_dict(),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    write_json(store_dir / f"{ct.series_uid}.json", entry)
    if not changed:
        return None
    return f"series {ct.series_uid}: {', '.join(changed)} has changed since it was prepared: it was prepared again"


def _built(recipe: Preparation, data_dir: Path, allow_symlinks: bool) -> Callable[[dict[str, Any]], Mapping[str, Any]]:
    """Return the recipe's transforms, built once in each process."""
    return _built_of(json.dumps(recipe.config), data_dir, allow_symlinks)


@lru_cache(maxsize=1)
def _built_of(config: str, data_dir: Path, allow_symlinks: bool) -> Callable[[dict[str, Any]], Mapping[str, Any]]:
    return Preparation(json.loads(config)).build(data_dir, allow_symlinks)


def _has_candidates(data_dir: Path) -> bool:
    return any(find_table(data_dir, name) is not None for name in ("candidates_V2", "candidates"))


def _begin(store_dir: Path, recipe: Preparation) -> None:
    """Write the index of an unfinished store, unless one by the same recipe is there."""
    if (store_dir / INDEX).exists():
        index = read_index(store_dir)
        begun = any(path.name != INDEX for path in store_dir.glob("*.json"))
        if begun:
            was, now = _settings(index["recipe"], index["spacing_zyx"]), _settings(recipe.hash, recipe.spacing_zyx)
            require_same(store_dir, "store", was, now, "name another --store, or remove this one")
        if index["recipe"] == recipe.hash:
            return
    write_json(store_dir / INDEX, _index(recipe, complete=False, missing=[], series={}))


def _settings(recipe_hash: str, spacing_zyx: Sequence[float] | None) -> dict[str, Any]:
    """Return what two calls must agree on, by the names of the error."""
    return {"spacing_zyx": list(spacing_zyx) if spacing_zyx else "native", "transform list": recipe_hash[:12]}


def _index(recipe: Preparation, complete: bool, missing: Iterable[str], series: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "complete": complete,
        "recipe": recipe.hash,
        "spacing_zyx": recipe.spacing_zyx,
        "config": recipe.config,
        "missing": list(missing),
        "series": dict(series),
    }


def _finished_entry(store_dir: Path, series_uid: str, recipe_hash: str) -> dict[str, Any] | None:
    """Return what stands beside a finished volume; None where it is absent, damaged or of another recipe."""
    entry = read_entry(store_dir / f"{series_uid}.json")
    path = store_dir / f"{series_uid}.b2nd"
    if entry is None or entry.get("recipe") != recipe_hash or entry.get("format") != FORMAT:
        return None
    return entry if path.is_file() and path.stat().st_size == entry["bytes"] else None
