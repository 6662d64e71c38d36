"""How much memory a training at LUNA16's size takes, on a made-up index: 888 series that share a few real volumes.

    python benchmarks/memory.py STORE [--rows 754975] [--workers 2]

Prints one JSON object: peak resident memory in MB of the main process and of each loader worker, beyond the cache of
``cache_gb``, and the seconds until the first batch.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from luna16_monai.bundle.command import command
from luna16_monai.machine.files import write_json
from luna16_monai.store.index import INDEX
from luna16_monai.store.reading import Store
from luna16_monai.tables.points import write_points

SERIES, POSITIVES, CACHE_GB = 888, 1557, 0.5
TRAIN = Path("bundles/nodule_classification/configs/train.yaml")


def make_up(source: Path, folder: Path, rows: int) -> None:
    """A data folder and a store of 888 series, each a hard link to one of the volumes of a real store."""
    store = Store(source)
    names = store.series_uids
    (folder / "store").mkdir()
    index = json.loads((source / INDEX).read_text(encoding="utf-8"))
    series = {}
    for number in range(SERIES):
        uid, origin = f"1.2.{number + 1}", names[number % len(names)]
        series[uid] = {**index["series"][origin], "series_uid": uid, "subset": number % 10}
        os.link(source / f"{origin}.b2nd", folder / "store" / f"{uid}.b2nd")
    write_json(folder / "store" / INDEX, {**index, "series": series, "missing": []})
    (folder / "seriesuids.csv").write_text("".join(f"{uid}\n" for uid in series), encoding="utf-8")
    rng, uids = np.random.default_rng(0), list(series)
    chosen = np.sort(rng.integers(SERIES, size=rows))
    points = np.empty((rows, 3))
    for number in range(min(SERIES, len(names))):
        mine = chosen % len(names) == number
        geometry = store.volume(names[number]).scan
        inside = rng.uniform(0.2, 0.8, (int(mine.sum()), 3)) * (np.array(geometry.shape_zyx) - 1)
        points[mine] = geometry.world_from_voxel(inside)
    label = np.zeros(rows, int)
    label[rng.choice(rows, POSITIVES, replace=False)] = 1
    write_points(folder / "candidates_V2.csv", [uids[code] for code in chosen], points, label, "class")


def peak_mb(pid: int) -> float:
    """The largest resident size that a process ever had."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) / 1e3 if found else 0.0


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [int(word) for word in text.split()]


def train(folder: Path, workers: int) -> dict[str, Any]:
    """A short training; the peaks of its processes."""
    settings = {
        "dataset_dir": folder, "store_dir": folder / "store", "output_dir": folder / "run", "max_epochs": 1,
        "samples_per_epoch": 256, "batch_size": 32, "num_workers": workers, "cache_gb": CACHE_GB,
        "validation_negatives": 64, "device": "cpu",
    }  # fmt: skip
    words = command("training", [TRAIN], {key: str(value) for key, value in settings.items()})
    started = time.monotonic()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    main = worker = 0.0
    while process.poll() is None:
        main = max(main, peak_mb(process.pid))
        worker = max([worker, *map(peak_mb, children(process.pid))])
        time.sleep(0.1)
    if process.returncode:
        sys.exit(f"the training ended with {process.returncode}: {process.stderr.read() if process.stderr else ''}")
    return {"main_mb": main, "worker_mb": worker, "seconds": time.monotonic() - started}


def main() -> None:
    """Make up the index, train, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("--rows", type=int, default=754_975)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    # beside the store, so that its volumes can be linked
    with tempfile.TemporaryDirectory(dir=options.store.parent) as folder:
        make_up(options.store, Path(folder), options.rows)
        print(json.dumps({"rows": options.rows, "cache_gb": CACHE_GB, **train(Path(folder), options.workers)}))


if __name__ == "__main__":
    main()
