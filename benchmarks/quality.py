"""CPU seconds of training until the demo's held-out scans have a CPM of 0.45: recipe, design, and the naive way.

One thread and no workers, so that a process's CPU time is all of it; reading the data at the start counts, validation
does not. It is validated after every 4,096 cutouts, with one view. A way that does not arrive is stopped at the cap.

- ``recipe``: train.yaml and recipe.yaml, the demo's plan
- ``design``: train.yaml, as many epochs as fit into the cap
- ``naive``: the design's network, batches and rate in a plain loop over a float32 file per candidate, see ``naive.py``
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import naive
import numpy as np
import torch
from ignite.engine import Events
from monai.bundle import create_workflow
from monai.data import set_track_meta

from luna16_monai.bundle.folders import bundle_dir
from luna16_monai.dataset.cutouts import LoadCutoutd
from luna16_monai.dataset.sampler import RatioSampler
from luna16_monai.dataset.splits import Split
from luna16_monai.evaluation.submission import evaluate, validation_reference
from luna16_monai.networks.nodule_net import NoduleNet
from luna16_monai.store.reading import Store

WAYS = ("recipe", "design", "naive")
WANTED, CAP = 0.45, 3000.0
EPOCH, STRIDE, SHAPE, BATCH, RATIO = 4096, 3, (32, 48, 48), 64, (1, 5)
RECIPE_EPOCHS = 12
DESIGN_SECONDS = 0.025
"""About what a cutout of the design's training takes, which fixes the length of its schedule."""


class Clock:
    """CPU seconds of this process without the time in which it was stopped."""

    def __init__(self) -> None:
        self.left_out, self.stopped = 0.0, 0.0

    def seconds(self) -> float:
        """Return them."""
        return time.process_time() - self.left_out

    def stop(self, *_: Any) -> None:
        """Stop it."""
        self.stopped = time.process_time()

    def go_on(self, *_: Any) -> None:
        """Let it run again."""
        self.left_out += time.process_time() - self.stopped


def by_bundle(way: str, data: Path, store: Path, output: Path, seed: int, cap: float) -> Iterator[tuple[float, float]]:
    """Yield (CPU seconds, CPM) of each epoch of the bundle's own training, until it is closed."""
    clock, seen = Clock(), []
    configs = bundle_dir() / "configs"
    files = [configs / name for name in ("train.yaml", *(["recipe.yaml"] if way == "recipe" else []))]
    epochs = RECIPE_EPOCHS if way == "recipe" else max(1, int(cap / DESIGN_SECONDS / EPOCH))
    settings = {
        "dataset_dir": str(data), "store_dir": str(store), "output_dir": str(output), "device": "cpu", "seed": seed,
        "num_workers": 0, "validation_stride": STRIDE, "max_epochs": epochs, "samples_per_epoch": EPOCH,
    }  # fmt: skip
    flow = create_workflow(config_file=list(map(str, files)), workflow_type="train", logging_file=False, **settings)
    parts = {name: flow.parser.get_parsed_content(name) for name in ("train#trainer", "validate#evaluator")}
    trainer, evaluator = parts.values()

    def validated(engine: Any) -> None:
        clock.go_on()
        seen.append((clock.seconds(), engine.state.metrics["cpm"]))
        if arrived(*seen[-1], cap):
            trainer.terminate()

    evaluator.add_event_handler(Events.STARTED, clock.stop)
    evaluator.add_event_handler(Events.COMPLETED, validated)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: clock.seconds() > cap and engine.terminate())
    flow.run()
    yield from seen


def by_hand(data: Path, store_dir: Path, output: Path, seed: int) -> Iterator[tuple[float, float]]:
    """Yield (CPU seconds, CPM) after every so many cutouts of the naive way, without end."""
    set_track_meta(False)
    store = Store(store_dir)
    split = Split(data, store, validation_stride=STRIDE)
    load = LoadCutoutd("image", store, SHAPE)

    def cutouts(candidates: Any) -> Iterator[np.ndarray]:
        return (load(item)["image"][0].numpy() for item in candidates)

    naive.write_files(output / "npz", cutouts(split.train), split.train.labels.tolist())
    truth = validation_reference(data, split.validation_series, store.subsets)
    if truth is None:
        sys.exit(f"{data} has no annotations to score against")
    table = split.validation.table
    held_out = torch.from_numpy(np.stack(list(cutouts(split.validation)))).clamp(-1000, 1000)
    clock = Clock()
    # what stands in the files was cut by us, and is no work of the naive way's training
    clock.left_out = time.process_time()
    torch.manual_seed(seed)
    network = NoduleNet(return_probabilities=False)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    files = naive.Cutouts(output / "npz", len(split.train), augmented=True)
    sampler = RatioSampler(split.train.labels.tolist(), RATIO, EPOCH, seed)
    epoch = 0
    while True:
        sampler.set_position(epoch, 0)
        rows = [int(np.atleast_1d(row)[0]) for row in sampler]
        for start in range(0, len(rows), BATCH):
            images, labels = zip(*(files[row] for row in rows[start : start + BATCH]), strict=True)
            naive.step(network, optimizer, torch.stack(images), torch.tensor(labels))
        epoch += 1
        seconds = clock.seconds()
        clock.stop()
        probability = _probabilities(network, held_out)
        marks = replace(table, values=probability, source="the naive way")
        yield seconds, evaluate(marks, truth, 0, 0).scores["cpm"]
        clock.go_on()


def _probabilities(network: NoduleNet, images: torch.Tensor) -> np.ndarray:
    network.eval()
    with torch.inference_mode():
        scored = [torch.softmax(network(part[:, None].float()).double(), 1)[:, 1] for part in images.split(BATCH)]
    network.train()
    return torch.cat(scored).numpy()


def arrived(seconds: float, cpm: float, cap: float) -> bool:
    """Whether there is nothing more to wait for."""
    return cpm >= WANTED or seconds > cap


def run(way: str, data: Path, store: Path, seed: int, cap: float) -> dict[str, Any]:
    """Train one way once, in this process.

    Returns:
        ``cpu_seconds`` when it arrived, None where it did not up to the cap; and the ``cpm`` it had then.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        epochs = (
            by_hand(data, store, output, seed) if way == "naive" else by_bundle(way, data, store, output, seed, cap)
        )
        seconds, cpm = 0.0, 0.0
        for seconds, cpm in epochs:
            if arrived(seconds, cpm, cap):
                break
    reached = cpm >= WANTED and seconds <= cap
    return {"cpu_seconds": round(seconds, 1) if reached else None, "cpm": round(cpm, 4)}


def measure(
    data: Path, store: Path, seeds: int, cap: float, one: Callable[[str, int], dict[str, Any]] | None = None
) -> dict[str, Any]:
    """Return, for each way, the median of its seeds, each in a process of its own.

    A way of which most seeds did not arrive has no median, so the last ones are left out then.

    Args:
        data, store: of the demo.
        seeds: how many.
        cap: CPU seconds of a training.
        one: runs a way with a seed; None starts a process.
    """

    def in_process(way: str, seed: int) -> dict[str, Any]:
        words = [sys.executable, "-W", "ignore", __file__, "--way", way, "--seed", seed, "--cap", cap, data, store]
        threads = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([*map(str, words)], check=True, stdout=subprocess.PIPE, text=True, env=threads)
        return json.loads(done.stdout.splitlines()[-1])

    result = {}
    for way in WAYS:
        runs: list[dict[str, Any]] = []
        for seed in range(seeds):
            if sum(done["cpu_seconds"] is None for done in runs) <= seeds // 2:
                runs.append((one or in_process)(way, seed))
        result[way] = {**median(runs, seeds), "runs": runs}
    return {"wanted_cpm": WANTED, "cap_cpu_seconds": cap, **result}


def median(runs: list[dict[str, Any]], seeds: int) -> dict[str, Any]:
    """Return the median of the seconds, None where it lies beyond the cap, and of the CPM."""
    seconds = sorted(done["cpu_seconds"] or float("inf") for done in runs)
    seconds += [float("inf")] * (seeds - len(seconds))
    middle = statistics.median_low(seconds)
    return {
        "cpu_seconds": None if middle == float("inf") else middle,
        "cpm": statistics.median(done["cpm"] for done in runs),
    }


def ratio(result: dict[str, Any]) -> float | None:
    """Return how many times the recipe's seconds the naive way takes; at least so many where it was stopped."""
    ours, other = (result[way]["cpu_seconds"] for way in ("recipe", "naive"))
    return None if ours is None else (result["cap_cpu_seconds"] if other is None else other) / ours


def lines(result: dict[str, Any]) -> Iterator[str]:
    """Yield the rows of the printed table."""
    for way in WAYS:
        seconds = result[way]["cpu_seconds"]
        shown = f"over {result['cap_cpu_seconds']:,.0f}" if seconds is None else f"{seconds:,.0f}"
        what = f"CPU seconds to CPM {WANTED} on the demo's held-out scans, {way}"
        yield f"{what:<66} {shown:>10}  (CPM {result[way]['cpm']:.3f})"


def main() -> None:
    """Run one way once, and print its result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--way", choices=WAYS, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cap", type=float, default=CAP)
    parser.add_argument("data", type=Path)
    parser.add_argument("store", type=Path)
    options = parser.parse_args()
    print(json.dumps(run(options.way, options.data, options.store, options.seed, options.cap)))


if __name__ == "__main__":
    main()
