"""Networks against each other for the same time of one thread, and boosted trees: ``make compare-networks``.

Each network is trained by train.yaml and recipe.yaml, from scratch and in one round, on the phantom of ``make demo``;
MONAI's have norms of their own, see the whole cutout and stay in float32. First all run for a minute or so, to learn
how fast they are; the machine should do nothing else then. After that each sees as many cutouts as it would in the
given time, however long it takes. Every third scan is held out and scored once, at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from luna16_monai.bundle.command import command
from luna16_monai.bundle.folders import bundle_dir
from luna16_monai.cli.demo import cutouts
from luna16_monai.dataset.splits import Split
from luna16_monai.evaluation.baselines import score_baselines
from luna16_monai.evaluation.submission import compare, evaluate, read_reference
from luna16_monai.machine.files import write_json
from luna16_monai.runs.folder import RunFolder
from luna16_monai.store.reading import Store
from luna16_monai.tables.points import read_points, write_points

# the cutouts by which its speed is learned: about a minute's
TRIAL = {"the recipe's": 16384, "ResNet10": 256, "DenseNet121": 256}
NETWORKS: dict[str, dict[str, Any] | None] = {
    "the recipe's": None,
    "ResNet10": {"_target_": "resnet10", "spatial_dims": 3, "n_input_channels": 1, "num_classes": 2},
    "DenseNet121": {"_target_": "DenseNet121", "spatial_dims": 3, "in_channels": 1, "out_channels": 2},
}
TREES = {
    "mean_hu_centre": "trees on the mean HU at the centre",
    "size_brightness": "trees on size and brightness",
    "radial_profile": "trees on the radial profile",
    "component_shape": "trees on the shape of the central component",
}
STRIDE, BATCH = 3, 16
CONFIGS = [bundle_dir() / "configs" / name for name in ("train.yaml", "recipe.yaml")]


def train(data: Path, store: Path, output: Path, network: dict[str, Any] | None, samples: int, **more: Any) -> float:
    """Train one epoch of so many cutouts and validate; gives the cutouts a second of the training.

    The speed is that between the first and the last line of progress; where it is too fast for two lines, what the one
    line says. It is kept in the folder, so that a second call trains nothing anew.
    """
    kept = output / "speed.json"
    if kept.is_file():
        return float(json.loads(kept.read_text(encoding="utf-8"))["cutouts_per_second"])
    settings = {
        "dataset_dir": data, "store_dir": store, "output_dir": output, "resume": "true", "validation_stride": STRIDE,
        "batch_size": BATCH, "samples_per_epoch": samples, "max_epochs": 1, "num_workers": 1, **more,
    }  # fmt: skip
    if network is not None:
        settings |= {"network_def": network, "bf16": "false"}
    words = command("training", CONFIGS, {key: str(value) for key, value in settings.items()})
    seen: list[tuple[float, int, float]] = []
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8"}
    with subprocess.Popen(words, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if found := re.search(r"training: batch (\d+) of .* (\d+) cutouts/s", line):
                seen.append((time.monotonic(), int(found[1]), float(found[2])))
    if process.returncode or not seen:
        sys.exit(f"networks: the training in {output} ended with exit code {process.returncode}, or told no speed")
    (begun, first, _), (ended, last, told) = seen[0], seen[-1]
    rate = (last - first) * BATCH / (ended - begun) if last > first else told
    write_json(kept, {"cutouts_per_second": rate})
    return rate


def parameters(network: dict[str, Any] | None) -> int:
    """How many weights are trained."""
    config = ConfigParser(ConfigParser.load_config_files(list(map(str, CONFIGS))))
    if network is not None:
        config["network_def"] = network
    return sum(weight.numel() for weight in config.get_parsed_content("network_def").parameters())


def add_trees(data: Path, store_dir: Path, output: Path) -> dict[str, Path]:
    """Boosted trees on the same split; gives the submission of each."""
    store = Store(store_dir)
    split = Split(data, store, validation_stride=STRIDE)
    train_cutouts, held_out = (cutouts(part, store) for part in (split.train, split.validation))
    scores = score_baselines(train_cutouts, split.train.labels, held_out, store.index["spacing_zyx"])
    table = split.validation.table
    uids = table.row_series()
    paths = {TREES[name]: RunFolder(output / name).submission_file for name in scores}
    for path, probability in zip(paths.values(), scores.values(), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_points(path, uids, table.points_xyz, probability, "probability")
    return paths


def main() -> None:
    """Train, score, print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/networks"))
    parser.add_argument("--minutes", type=float, default=12.0, help="of training for each network")
    options = parser.parse_args()
    data, store = (
        Path(os.environ.get(name, default))
        for name, default in (("LUNA16_DATA", "data/phantom"), ("LUNA16_STORE", "data/store"))
    )
    folders = {name: options.output / name.replace("'", "").replace(" ", "_") for name in NETWORKS}
    speeds = {
        name: train(data, store, folders[name] / "trial", network, TRIAL[name], validation_negatives=16)
        for name, network in NETWORKS.items()
    }
    told: dict[str, tuple[str, str, str]] = {}
    submissions: dict[str, Path] = {}
    for name, network in NETWORKS.items():
        samples = max(round(speeds[name] * options.minutes * 60 / BATCH), 2) * BATCH
        train(data, store, folders[name], network, samples)
        told[name] = (f"{parameters(network):,}", f"{samples:,}", f"{speeds[name]:.1f}")
        submissions[name] = RunFolder(folders[name]).submission_file
    series = RunFolder(folders["the recipe's"]).series_file
    truth = read_reference(data / "annotations.csv", data / "annotations_excluded.csv", series)
    submissions |= add_trees(data, store, options.output)
    scored = {name: evaluate(read_points(path, "probability"), truth) for name, path in submissions.items()}
    first = next(iter(scored.values()))
    rows = []
    print("\n| classifier | CPM (95 %) | against the recipe's (95 %) | parameters | cutouts seen | cutouts/s |")
    print("|---|---|---|---|---|---|")
    for name, one in scored.items():
        low, high = one.scores["cpm_ci95"]
        against = "" if one is first else compare(first, one)
        if against:
            bounds = against["cpm_difference_ci95"]
            against = f"{against['cpm_difference']:+.3f} ({bounds[0]:+.3f} to {bounds[1]:+.3f})"
        row = (name, f"{one.scores['cpm']:.3f} ({low:.3f} to {high:.3f})", against, *told.get(name, ("", "", "")))
        rows.append(row)
        print(f"| {' | '.join(row)} |", flush=True)
    write_json(options.output / "networks.json", {"minutes": options.minutes, "rows": rows})


if __name__ == "__main__":
    main()
