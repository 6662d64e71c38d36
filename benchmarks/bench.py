"""Ours, the naive way, MONAI's stock way and the machine's limit, in one run on the same data: ``make bench``.

Every row is the median of several rounds in which the ways take turns, so that a machine whose speed drifts slows all
of them. Rates are cutouts a second unless a row says otherwise; the limit of a network's row is what a float32 matrix
product of the same number of operations takes. Rows for CUDA run where there is a GPU.
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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import detection
import naive
import numpy as np
import quality
import SimpleITK as sitk
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.data import CacheDataset, DataLoader, MetaTensor, set_track_meta
from monai.engines import SupervisedTrainer
from monai.engines.utils import default_prepare_batch
from monai.transforms import Compose, Spacingd
from torch import nn

from luna16_monai.bundle.command import command
from luna16_monai.bundle.folders import bundle_dir
from luna16_monai.ct.metaimage import write_mhd
from luna16_monai.dataset.augmentation import Augmentation
from luna16_monai.dataset.cache import SeededCacheDataset
from luna16_monai.dataset.candidates import CandidateList
from luna16_monai.dataset.cutouts import LoadCutoutd
from luna16_monai.dataset.sampler import RatioSampler
from luna16_monai.dataset.splits import Split
from luna16_monai.geometry.grid import Geometry
from luna16_monai.machine.files import write_json
from luna16_monai.networks.backends import OpenVinoNetwork, on_device
from luna16_monai.networks.nodule_net import NoduleNet
from luna16_monai.store.preparation import Preparation, prepare_volume
from luna16_monai.store.reading import Store
from luna16_monai.tables.luna16 import read_candidates
from luna16_monai.training.seeds import configure_torch

SHAPE = (32, 48, 48)
BATCH, WARM_UP, ITERATIONS, CANDIDATES, WORKERS = 64, 2, 6, 960, 2
LUNA16_CANDIDATES, LUNA16_SCANS = 754_975, 888
LUNA16_VOXELS = 58.2e9  # at 1.25 x 0.7 x 0.7 mm, from the published geometry
TRAIN = bundle_dir() / "configs" / "train.yaml"
Way = Callable[[], float]


class Case:
    """What all ways work on: 960 candidates of the store, one positive in six."""

    def __init__(self, data: Path, store: Path, folder: Path) -> None:
        self.store, self.folder = Store(store), folder
        train = Split(data, self.store, validation_stride=3).train
        positive, negative = (np.flatnonzero(train.labels == label) for label in (1, 0))
        chosen = np.r_[positive[: CANDIDATES // 6], negative[: CANDIDATES - min(len(positive), CANDIDATES // 6)]]
        self.candidates = CandidateList(train.table.select(chosen))
        self.labels = self.candidates.labels.tolist()
        config = ConfigParser(ConfigParser.load_config_file(str(TRAIN)))
        self.random = config.get_parsed_content("train#random_transforms")
        self.clip = config.get_parsed_content("train#final_transforms")
        self.load = LoadCutoutd("image", self.store, SHAPE)
        if not (folder / "npz").is_dir():
            cutouts = (self.load(item)["image"][0].numpy() for item in self.candidates)
            naive.write_files(folder / "npz", cutouts, self.labels)
        self.images = torch.stack([self.load(self.candidates[row])["image"] for row in range(128)])


def network() -> NoduleNet:
    """The design's network, giving logits."""
    torch.manual_seed(0)
    return NoduleNet(return_probabilities=False)


def rate(run: Callable[[], Any], count: int, seconds: float = 2.0) -> float:
    """How many a second, after a first call that does not count."""
    run()
    started, done = time.perf_counter(), 0
    while (passed := time.perf_counter() - started) < seconds:
        run()
        done += count
    return done / passed


def matrix_product_rate() -> float:
    """Operations a second of a float32 matrix product, all threads."""
    a, b = torch.randn(1536, 1536), torch.randn(1536, 1536)
    return rate(lambda: a @ b, 2 * 1536**3, 1.0)


def memory_bandwidth() -> float:
    """Bytes a second of a copy that no cache holds, read and written."""
    a = torch.zeros(64_000_000)
    b = torch.empty_like(a)
    return rate(lambda: b.copy_(a), 2 * a.nbytes, 1.0)


def operations(forward_only: bool) -> float:
    """Of the convolutions and the head for one cutout; the backward pass takes twice the forward's."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network().eval()(torch.zeros(1, 1, *SHAPE))
    return counter.get_total_flops() * (1 if forward_only else 3)


# --- training, from the loader to the optimizer ----------------------------------------------------------------------


def run_trainer(
    loader: Any, net: nn.Module, device: str = "cpu", prepare_batch: Callable[..., Any] = default_prepare_batch
) -> float:
    """Cutouts a second of a SupervisedTrainer over ITERATIONS batches, after WARM_UP."""
    times: list[float] = []
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    trainer = SupervisedTrainer(
        torch.device(device), 1, loader, net, optimizer, nn.CrossEntropyLoss(), decollate=False,
        epoch_length=WARM_UP + ITERATIONS, prepare_batch=prepare_batch, amp=device != "cpu",
    )  # fmt: skip
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: times.append(time.perf_counter()))
    trainer.run()
    return BATCH * ITERATIONS / (times[-1] - times[WARM_UP - 1])


def train_ours(case: Case, device: str = "cpu") -> float:
    """The bundle's transforms, dataset and sampler, and the network in its layout."""
    set_track_meta(False)
    plan = Augmentation(case.random, case.clip, on_device=device != "cpu")
    dataset = SeededCacheDataset(case.candidates, Compose([case.load, *plan.transforms]), cache_gb=4.0, progress=False)
    sampler = RatioSampler(case.labels, (1, 5), BATCH * (WARM_UP + ITERATIONS), 0)
    loader = DataLoader(dataset, batch_size=BATCH, sampler=sampler, num_workers=WORKERS, pin_memory=device != "cpu")
    return run_trainer(loader, on_device(network(), device), device, plan.prepare_batch)


def train_monai(case: Case, device: str = "cpu") -> float:
    """CacheDataset with the random transforms as MONAI has them, in the default layout."""
    set_track_meta(True)
    items = [dict(case.candidates[row]) for row in range(len(case.candidates))]
    dataset = CacheDataset(items, Compose([case.load, *case.random, *case.clip]), progress=False)
    loader = DataLoader(dataset, batch_size=BATCH, shuffle=True, num_workers=WORKERS, pin_memory=device != "cpu")
    return run_trainer(loader, network().to(device), device)


def train_naive(case: Case) -> float:
    """A file per candidate and a plain loop."""
    net = network()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    batches = iter(naive.loader(case.folder / "npz", len(case.labels), BATCH, WORKERS))
    for _ in range(WARM_UP):
        naive.step(net, optimizer, *next(batches))
    started = time.perf_counter()
    for _ in range(ITERATIONS):
        naive.step(net, optimizer, *next(batches))
    return BATCH * ITERATIONS / (time.perf_counter() - started)


# --- parts of it -----------------------------------------------------------------------------------------------------


def augment(case: Case, way: str) -> float:
    """One core: a cutout of int16 HU, augmented."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    set_track_meta(False)
    try:
        item = {"image": case.images[0]}
        if way == "naive":
            image = case.images[0].float()
            return rate(lambda: naive.augment(image), 1)
        if way == "monai":
            item = {"image": case.images[0].float()}
        transform = Compose(Augmentation(case.random).transforms if way == "ours" else case.random)
        return rate(lambda: transform(item), 1)
    finally:
        torch.set_num_threads(threads)


def step(case: Case, ours: bool) -> float:
    """The network alone: forward, backward, optimizer."""
    net = network()
    if ours:
        net = on_device(net, "cpu")
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    image, label = case.images[:BATCH].float(), torch.tensor(case.labels[:BATCH])
    return rate(lambda: naive.step(net, optimizer, image, label), BATCH, 6.0)


def score(case: Case, way: str) -> float:
    """Probabilities of cutouts that are in memory."""
    net, size = network().eval(), 32 if way == "ours" else BATCH
    if way == "ours":
        net = OpenVinoNetwork(net, SHAPE)
    elif way == "torch":
        net = net.to(memory_format=torch.channels_last_3d)
    image = case.images[:size].float()
    with torch.inference_mode():
        return rate(lambda: net(image), size, 4.0)


def random_cutouts(case: Case) -> float:
    """Out of whole CTs, with all checks, in random order, one core."""
    order = np.random.default_rng(0).permutation(len(case.candidates))
    return rate(lambda: [case.load(case.candidates[row]) for row in order[:200]], 200)


def random_files(case: Case) -> float:
    """The naive way's files, in random order."""
    files = naive.Cutouts(case.folder / "npz", len(case.labels), augmented=False)
    order = np.random.default_rng(0).permutation(len(files))
    return rate(lambda: [files[int(row)] for row in order[:200]], 200)


def loader_workers(case: Case, workers: int) -> float:
    """What loader workers deliver when nothing is cached: read, augmented, clipped."""
    set_track_meta(False)
    transform = Compose([case.load, *Augmentation(case.random, case.clip).transforms])
    dataset = SeededCacheDataset(case.candidates, transform, cache_gb=0, progress=False)
    sampler = RatioSampler(case.labels, (1, 5), BATCH * 30, 0)
    batches = iter(DataLoader(dataset, batch_size=BATCH, sampler=sampler, num_workers=workers))
    for _ in range(5):
        next(batches)
    started = time.perf_counter()
    for _ in range(20):
        next(batches)
    return BATCH * 20 / (time.perf_counter() - started)


class Whole:
    """A made-up CT of 512 x 512 x 300 voxels of 1 x 0.68 x 0.68 mm, as LUNA16 writes it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "whole.mhd"
        rng = np.random.default_rng(0)
        hu = rng.integers(-1000, 400, (300, 512, 512), dtype=np.int16)
        write_mhd(self.path, hu, Geometry.from_axes((512, 512, 300), (0.68, 0.68, 1.0), (-170, -170, -200), np.eye(3)))

    def ours(self) -> float:
        """Seconds to read and resample, as `luna16 prepare` does before it compresses."""
        set_track_meta(True)
        transform = Preparation.read(bundle_dir() / "configs" / "prepare.yaml").build()
        started = time.perf_counter()
        prepare_volume(self.path, transform)
        return time.perf_counter() - started

    def monai(self) -> float:
        """Seconds with MONAI's Spacingd."""
        spacing = Spacingd("image", (0.7, 0.7, 1.25), mode="bilinear", padding_mode="border", dtype=np.float32)
        started = time.perf_counter()
        image = sitk.ReadImage(str(self.path))
        voxels = torch.from_numpy(sitk.GetArrayFromImage(image).transpose(2, 1, 0)[None]).float()
        affine = torch.diag(torch.tensor([-0.68, -0.68, 1.0, 1.0], dtype=torch.float64))
        spacing({"image": MetaTensor(voxels, affine=affine)})
        return time.perf_counter() - started

    def simpleitk(self) -> float:
        """Seconds with SimpleITK."""
        started = time.perf_counter()
        image = sitk.ReadImage(str(self.path))
        size = [
            round(n * old / new)
            for n, old, new in zip(image.GetSize(), image.GetSpacing(), (0.7, 0.7, 1.25), strict=True)
        ]
        sitk.Resample(
            image, size, sitk.Transform(), sitk.sitkLinear, image.GetOrigin(), (0.7, 0.7, 1.25), image.GetDirection()
        )
        return time.perf_counter() - started


def seconds_of(command: Sequence[str], until: str | None = None) -> float:
    """Of a command, whole or until it prints something."""
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if until is not None and until in line:
                passed = time.perf_counter() - started
                process.kill()
                return passed
    if until is not None:
        sys.exit(f"{' '.join(command)} never said {until!r}")
    return time.perf_counter() - started


def start_up(data: Path, store: Path, folder: Path) -> float:
    """Seconds from `python -m monai.bundle run training` to the end of its first iteration."""
    settings = {
        "dataset_dir": data, "store_dir": store, "output_dir": folder / f"run{time.monotonic_ns()}", "device": "cpu",
        "validation_stride": 3, "max_epochs": 1, "samples_per_epoch": 64,
    }  # fmt: skip
    words = command("training", [TRAIN], {key: str(value) for key, value in settings.items()})
    return seconds_of(words, "epoch 1 training: loss")


def index_of(rows: int, folder: Path) -> dict[str, float]:
    """Seconds to read, and memory, of a table of so many candidates over 888 series."""
    path = folder / f"index{rows}"
    path.mkdir()
    rng = np.random.default_rng(0)
    with (path / "candidates_V2.csv").open("w", encoding="utf-8") as stream:
        stream.write("seriesuid,coordX,coordY,coordZ,class\n")
        uids = [f"1.3.6.1.4.1.14519.5.2.1.6279.6001.{10**29 + number}" for number in range(LUNA16_SCANS)]
        for start in range(0, rows, 100_000):
            points = rng.uniform(-200, 200, (min(100_000, rows - start), 3)).round(6).tolist()
            codes = np.sort(rng.integers(LUNA16_SCANS, size=len(points))).tolist()
            stream.writelines(f"{uids[c]},{x},{y},{z},0\n" for c, (x, y, z) in zip(codes, points, strict=True))
    started = time.perf_counter()
    table = read_candidates(path)
    passed = time.perf_counter() - started
    size = table.points_xyz.nbytes + table.values.nbytes + table.series.nbytes + table.lines.nbytes
    return {"s": passed, "MB": size / 1e6}


ALONE: dict[str, Callable[[Case], float]] = {
    "train_ours": train_ours,
    "train_naive": train_naive,
    "train_monai": train_monai,
    "step_ours": lambda case: step(case, True),
    "step_naive": lambda case: step(case, False),
    "step_monai": lambda case: step(case, False),
}


def alone(way: str, data: Path, store: Path, folder: Path) -> float:
    """The result of a way in a process of its own: how torch takes its memory is settled once a process."""
    words = [sys.executable, "-W", "ignore", __file__, "--alone", way, data, store, folder]
    done = subprocess.run([*map(str, words)], check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.split()[-1])


# --- the table -------------------------------------------------------------------------------------------------------


def medians(ways: dict[str, Way], rounds: int) -> dict[str, float]:
    """The median of each way, the ways taking turns."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            found[name].append(way())
    return {name: statistics.median(values) for name, values in found.items()}


def measure(data: Path, store: Path, folder: Path, rounds: int) -> Iterator[dict[str, Any]]:
    """All rows, as they are ready."""
    case, whole = Case(data, store, folder), Whole(folder)
    flops = matrix_product_rate()
    forward, training = flops / operations(True), flops / operations(False)
    bandwidth = memory_bandwidth()

    def row(name: str, unit: str, ways: dict[str, Way], limit: float | None = None, n: int = rounds) -> dict[str, Any]:
        return {
            "name": name,
            "unit": unit,
            "ours": None,
            "naive": None,
            "monai": None,
            **medians(ways, n),
            "limit": limit,
        }

    rate_unit = "cutouts/s"
    for name, what in (("training end to end", "train"), ("network step alone", "step")):
        ways: dict[str, Way] = {
            way: (lambda words=f"{what}_{way}": alone(words, data, store, folder)) for way in ("ours", "naive", "monai")
        }
        yield row(name, rate_unit, ways, training)
    ways = {way: (lambda way=way: augment(case, way)) for way in ("ours", "naive", "monai")}
    # a cutout read as int16 and written as float32
    yield row("augmentation, one core", rate_unit, ways, bandwidth / (np.prod(SHAPE) * 6))
    ways = {way: (lambda way=way: score(case, way)) for way in ("ours", "torch", "naive")}
    yield row("scoring", rate_unit, ways, forward)
    yield row(
        "random cutouts, one core", rate_unit,
        {"ours": lambda: random_cutouts(case), "naive": lambda: random_files(case)},
        bandwidth / (np.prod(SHAPE) * 2),
    )  # fmt: skip
    for workers in (1, 2):
        name = f"loader without cache, {workers} worker{'s' * (workers > 1)}"
        yield row(name, rate_unit, {"ours": lambda n=workers: loader_workers(case, n)})
    ways = {"ours": whole.ours, "simpleitk": whole.simpleitk, "monai": whole.monai}
    yield row("prepare a CT of 512 x 512 x 300", "s", ways)
    yield from detection.rows(folder)
    yield row("start-up to the first iteration", "s", {"ours": lambda: start_up(data, store, folder)})
    help_ = [sys.executable, "-m", "luna16_monai", "--help"]
    yield row("luna16 --help", "s", {"ours": lambda: seconds_of(help_)})
    sizes = [path.stat().st_size for path in Path(store).glob("*.b2nd")]
    voxels = sum(np.prod(case.store.volume(uid).voxels.shape) for uid in case.store.series_uids)
    at_scale = LUNA16_VOXELS * sum(sizes) / voxels
    yield {
        "name": "store of LUNA16, from the phantom's bytes a voxel", "unit": "GB", "ours": at_scale / 1e9,
        "naive": LUNA16_CANDIDATES * (np.prod(SHAPE) * 4 + 250) / 1e9, "monai": None, "limit": None,
    }  # fmt: skip
    for count in (LUNA16_CANDIDATES, 7_500_000):
        found = index_of(count, folder)
        for unit, value in found.items():
            name = f"index of {count:,} candidates"
            yield {"name": name, "unit": unit, "ours": value, "naive": None, "monai": None, "limit": None}
    memory = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("memory.py")), str(store)]
    peak = json.loads(subprocess.run(memory, capture_output=True, text=True, check=True).stdout)
    for name in ("main", "worker"):
        yield {
            "name": f"peak memory at LUNA16's size, {name} (cache {peak['cache_gb']} GB)", "unit": "MB",
            "ours": peak[f"{name}_mb"], "naive": None, "monai": None, "limit": None,
        }  # fmt: skip
    if torch.cuda.is_available():
        ways = {"ours": lambda: train_ours(case, "cuda"), "monai": lambda: train_monai(case, "cuda")}
        yield row("training end to end on CUDA", rate_unit, ways)


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The figures to quote; above 1 ours is faster, but for the last, which is our time over SimpleITK's."""
    named = {row["name"]: row for row in rows}

    def of(name: str, way: str) -> float:
        return named[name]["ours"] / named[name][way]

    return {
        "training_vs_naive": of("training end to end", "naive"),
        "training_vs_monai": of("training end to end", "monai"),
        "step_vs_limit": of("network step alone", "limit"),
        "augmentation_vs_monai": of("augmentation, one core", "monai"),
        "scoring_vs_naive": of("scoring", "naive"),
        "prepare_vs_simpleitk": of("prepare a CT of 512 x 512 x 300", "simpleitk"),
    }


def line(row: dict[str, Any]) -> str:
    """One row of the printed table."""
    values = ["" if row[way] is None else f"{row[way]:.4g}" for way in ("ours", "naive", "monai", "limit")]
    against = [f"{row['ours'] / row[way]:.2f}" if row[way] else "" for way in ("naive", "monai")]
    extra = "".join(f"  ({way} {row[way]:.4g})" for way in ("torch", "simpleitk") if way in row)
    numbers = " ".join(f"{value:>9}" for value in values) + "  " + " ".join(f"{ratio:>10}" for ratio in against)
    return f"{row['name'] + ', ' + row['unit']:<56} {numbers}{extra}".rstrip()


def main() -> None:
    """Measure, print as it goes, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/bench.json"))
    parser.add_argument("--rounds", type=int, default=3)
    text = "CPU seconds of each training to CPM 0.45, of which there are up to 9 in turn; 0 leaves them out"
    parser.add_argument("--quality-cap", type=float, default=quality.CAP, metavar="S", help=text)
    parser.add_argument("--quality-seeds", type=int, default=3, metavar="N")
    parser.add_argument("--alone", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        way, *paths = options.alone
        if way.endswith("ours"):
            configure_torch(False)  # as a training of the bundle does
        print(ALONE[way](Case(*map(Path, paths))))
        return
    data, store = (
        Path(os.environ.get(name, default))
        for name, default in (("LUNA16_DATA", "data/phantom"), ("LUNA16_STORE", "data/store"))
    )
    for words in (["phantom", "--output", data], ["prepare", "--data", data, "--store", store]):
        subprocess.run([sys.executable, "-m", "luna16_monai", *map(str, words)], check=True)
    print(f"{'':<56} {'ours':>9} {'naive':>9} {'MONAI':>9} {'limit':>9}  ours/naive ours/MONAI", flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for row in measure(data, store, Path(folder), options.rounds):
            rows.append(row)
            values = [
                f"{'' if row[way] is None else format(row[way], '.4g'):>9}"
                for way in ("ours", "naive", "monai", "limit")
            ]
            against = [f"{row['ours'] / row[way]:10.2f}" if row[way] else " " * 10 for way in ("naive", "monai")]
            extra = "".join(f"  ({way} {row[way]:.4g})" for way in ("torch", "simpleitk") if way in row)
            print(f"{row['name'] + ', ' + row['unit']:<56} {' '.join(values)}  {' '.join(against)}{extra}", flush=True)
    result = {
        "rows": rows,
        "ratios": ratios(rows),
        "cutouts_per_second_per_core": next(row["ours"] for row in rows if row["name"] == "random cutouts, one core"),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
    }
    if options.quality_cap:
        found = quality.measure(data, store, options.quality_seeds, options.quality_cap)
        result["time_to_quality"] = found
        if (times := quality.ratio(found)) is not None:
            result["ratios"]["time_to_quality_vs_naive"] = times
        print("\n".join(["", *quality.lines(found)]))
    write_json(options.output, result)
    print("\n" + "\n".join(f"{name:<24} {value:.2f}" for name, value in result["ratios"].items()))
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
