"""``luna16 detect`` on a data folder: CT by CT, in several processes or on a cluster, and on where it was stopped.

Until the table is written, the candidates of each finished CT lie in a folder beside it, named after it with `PARTS`
behind; a record in it says by what they were found, and other settings are refused.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from luna16_monai.ct.opening import CT
from luna16_monai.detection.peaks import Found
from luna16_monai.inference.detect import Candidates, Detector, check_limits, lungs_from, read_detector
from luna16_monai.machine.claims import claim
from luna16_monai.machine.files import remove_abandoned, sha256, write_json
from luna16_monai.machine.processes import run_tasks
from luna16_monai.store.in_memory import InMemoryStore

PARTS = ".parts"
RECORD = "detect.json"
Execute = Callable[[Callable[[tuple[str, CT]], None], Sequence[tuple[str, CT]]], Iterator[None]]


@dataclass(frozen=True)
class Search:
    """How candidates are found; it can be sent to another process.

    Attributes:
        bundle: that detects.
        device: where the network runs.
        weights: a model.pt; None takes the bundle's own.
        limit: the most candidates of a CT.
        threshold: the least probability of each.
        lung_mask: a mask's file or folder; None finds the lungs.
        whole: search the whole scan instead.
        backend, views: see `read_detector`.
    """

    bundle: Path
    device: str = "cpu"
    weights: Path | None = None
    limit: int = 50
    threshold: float = 0.0
    lung_mask: Path | None = None
    whole: bool = False
    backend: str = "auto"
    views: int | None = None

    def absolute(self) -> Search:
        """Return the same with absolute paths, as another folder's process needs them."""
        weights, mask = (None if path is None else path.absolute() for path in (self.weights, self.lung_mask))
        return replace(self, bundle=self.bundle.absolute(), weights=weights, lung_mask=mask)

    def record(self, detector: Detector) -> dict[str, Any]:
        """Return what two calls must agree on to go on with each other's CTs."""
        return {
            "weights_sha256": None if detector.weights is None else sha256(detector.weights),
            "config_sha256": sha256(self.bundle / "configs" / "inference.yaml"),
            "max": self.limit,
            "threshold": self.threshold,
            "views": detector.views,
            "lungs": "none" if self.whole else "found" if self.lung_mask is None else self.lung_mask.name,
        }


def detect_many(
    search: Search,
    detector: Detector,
    volumes: InMemoryStore,
    output: Path,
    workers: int = 1,
    progress: bool = False,
    execute: Execute | None = None,
) -> Candidates:
    """Find the candidates of many CTs; those that a stopped call has finished are not searched again.

    Args:
        search: how.
        detector: what it describes, as `read_detector` gave it.
        volumes: the CTs.
        output: the table, which is not written here; the finished CTs lie beside it until `forget` is called.
        workers: processes of this machine.
        progress: show a bar.
        execute: where the CTs are searched; None takes ``workers`` processes.

    Raises:
        ValueError: as `Detector.each`; finished CTs by other settings lie there.
        RuntimeError: a worker process died.
    """
    check_limits(search.limit, search.threshold)
    for error in volumes.wrong.values():
        raise error
    parts = parts_of(output)
    claim(parts / RECORD, search.record(detector), "search")
    remove_abandoned(parts)
    finished = {uid: part for uid in volumes.series_uids if (part := _read(parts, uid, detector.weights))}
    todo = [(uid, volumes.cts[uid]) for uid in volumes.series_uids if uid not in finished]
    work = partial(_search_one, search=search, parts=parts)
    total = len(volumes.series_uids)
    with tqdm(total=total, initial=len(finished), desc="detect", unit="CT", disable=not progress) as bar:
        for _ in (execute or partial(run_tasks, workers=workers))(work, todo):
            bar.update()
    found = []
    for uid in volumes.series_uids:
        if (part := _read(parts, uid, detector.weights)) is None:
            raise RuntimeError(f"series {uid} was removed from {parts} meanwhile: run luna16 detect again")
        found.append(part)
    return Candidates.joined(found, volumes.series_uids, detector.weights)


def parts_of(output: Path) -> Path:
    """Return the folder of the finished CTs, beside a table."""
    return output.with_name(output.name + PARTS)


def forget(output: Path) -> None:
    """Remove the folder of the finished CTs, once the table is written."""
    shutil.rmtree(parts_of(output), ignore_errors=True)


def _search_one(item: tuple[str, CT], search: Search, parts: Path) -> None:
    if multiprocessing.parent_process() is not None:
        # one of several workers: their threads would only wait for each other
        torch.set_num_threads(1)
    uid, ct = item
    detector, empty = _detector(search)
    volumes = empty.holding({uid: ct})
    lungs = lungs_from(search.lung_mask, search.whole)
    (found,) = detector.each(volumes, search.limit, search.threshold, lungs)
    content = {
        "series_uid": uid,
        "points_xyz": found.table.points_xyz.tolist(),
        "probability": found.table.values.tolist(),
        "diameter_mm": found.diameter_mm.tolist(),
        "warnings": list(found.warnings),
    }
    write_json(parts / f"{uid}.json", content)


@lru_cache(maxsize=1)
def _detector(search: Search) -> tuple[Detector, InMemoryStore]:
    """Return the detector, and a store without CTs that prepares them for it; once in each process."""
    detector, prepare = read_detector(search.bundle, search.device, search.weights, search.backend, search.views)
    return detector, prepare([], True)


def _read(parts: Path, uid: str, weights: Path | None) -> Candidates | None:
    """Return the candidates of a finished CT; None where it is not finished."""
    path = parts / f"{uid}.json"
    if not path.is_file():
        return None
    try:
        content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        points, probability, diameter = (
            np.array(content[key], np.float64) for key in ("points_xyz", "probability", "diameter_mm")
        )
        found = Found(points.reshape(len(probability), 3), probability, diameter)
        return Candidates.of(uid, found, content["warnings"], weights)
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): remove it, and run luna16 detect again") from error
