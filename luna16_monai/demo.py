"""``make demo``: the whole main job on the embedded data, from nothing to a table of scores.

Each step is the command that a user would type, so that the demo shows what it does and breaks where they would.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.metrics import compute_roc_auc

from luna16_monai.baselines import score_baselines
from luna16_monai.bundle import bundle_dir
from luna16_monai.cutouts import Store
from luna16_monai.datalist import CandidateList, Split
from luna16_monai.files import write_json

SCANS = 60
STRIDE = 3
# Chosen so that the demo takes under 8 minutes on 2 cores. The first round looks at the inner eighth of each cutout,
# which costs an eighth; the second goes on with its convolutions on whole cutouts. With one round of the same length
# the network would still be behind the baselines.
COMMON = {"batch_size": 32, "validation_stride": STRIDE, "num_workers": 2}
FIRST_ROUND = {
    "shape_zyx": [16, 24, 24],
    "margin_zyx": [8, 12, 12],
    "max_epochs": 5,
    "samples_per_epoch": 4096,
    "learning_rate": 3e-3,
    "val_interval": 5,
}
SECOND_ROUND = {"max_epochs": 4, "samples_per_epoch": 1536, "learning_rate": 1e-3, "val_interval": 2}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; what is there already is kept and said so."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/demo"))
    options = parser.parse_args(arguments)
    data = Path(os.environ.get("LUNA16_DATA", "data/phantom"))
    store = Path(os.environ.get("LUNA16_STORE", "data/store"))
    started = time.monotonic()
    luna16 = [sys.executable, "-m", "luna16_monai"]
    config = bundle_dir() / "configs" / "train.yaml"
    _step(f"1/6  synthetic CTs in LUNA16's layout -> {data}", [*luna16, "phantom", "--output", data, "--scans", SCANS])
    _step(f"2/6  the volume store -> {store}", [*luna16, "prepare", "--data", data, "--store", store])
    first = options.output / "first_round"
    rounds = {
        f"3/6  training, first round: small cutouts -> {first}": {"output_dir": first, **FIRST_ROUND},
        f"4/6  training, second round: whole cutouts -> {options.output}": {
            "output_dir": options.output,
            "init_weights": first / "model.pt",
            **SECOND_ROUND,
        },
    }
    for title, settings in rounds.items():
        overrides = {"dataset_dir": data, "store_dir": store, "resume": "true", **COMMON, **settings}
        training = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "training", "--config_file", config]
        for key, value in overrides.items():
            training += [f"--{key}", value]
        _step(title, training)
    print("5/6  simple baselines on the same scans", flush=True)
    metrics = _add_baselines(options.output, data, store)
    report = options.output / "report.html"
    _step("6/6  the report", [*luna16, "report", "--run", options.output, "--output", report, "--store", store])
    _print_table(metrics, options.output, data, store, time.monotonic() - started)
    return 0


def _step(title: str, command: Sequence[Any]) -> None:
    words = [str(word) for word in command]
    shown = ["python" if word == sys.executable else word for word in words]
    print(f"{title}\n     {' '.join(shown)}", flush=True)
    if code := subprocess.run(words, check=False).returncode:
        sys.exit(f"demo: this step ended with exit code {code}: what went wrong stands above")


def _add_baselines(output: Path, data: Path, store_dir: Path) -> dict[str, Any]:
    """Train the baselines on the training cutouts, score the validation cutouts, and add the AUCs to metrics.json."""
    path = output / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8"))
    store = Store(store_dir)
    split = Split(data, store, validation_stride=STRIDE)
    train, validation = (_cutouts(part, store) for part in (split.train, split.validation))
    spacing = store.index["spacing_zyx"]
    scores = score_baselines(train, split.train.labels, validation, spacing)
    labels = torch.from_numpy(split.validation.labels)
    metrics["baselines"] = {
        name: float(np.asarray(compute_roc_auc(torch.from_numpy(score), labels))) for name, score in scores.items()
    }
    write_json(path, metrics)
    return metrics


def _cutouts(candidates: CandidateList, store: Store) -> np.ndarray:
    return np.stack([store.volume(item["series_uid"]).cutout(item["point_xyz"]) for item in candidates])


def _print_table(metrics: dict[str, Any], output: Path, data: Path, store: Path, seconds: float) -> None:
    print(
        f"\nOn {metrics['series']} held-out synthetic scans ({metrics['candidates']} candidates, "
        f"{metrics['positives']} positive), best of {SECOND_ROUND['max_epochs']} epochs: number {metrics['epoch']}\n"
    )
    print(f"  {'classifier':<40} ROC AUC")
    for name, auc in metrics["baselines"].items():
        print(f"  {'boosted trees: ' + name.replace('_', ' '):<40} {auc:.3f}")
    print(f"  {'network':<40} {metrics['roc_auc']:.3f}   (average precision {metrics['average_precision']:.3f})\n")
    low, high = metrics["cpm_ci95"]
    print(f"LUNA16's official score, CPM: {metrics['cpm']:.3f} (95 % {low:.3f} to {high:.3f})")
    print("The data are synthetic: these figures say nothing about real LUNA16.")
    for what, where in {
        "report, opens in any browser": output / "report.html",
        "weights of the best epoch": output / "model.pt",
        "scores": output / "metrics.json",
        "probability of each candidate": output / "submission.csv",
        "curves": f"{output} (tensorboard --logdir {output})",
        "CTs and tables": data,
        "prepared volumes": store,
    }.items():
        print(f"  {what:<30} {where}")
    print(f"\ndone in {int(seconds) // 60} min {int(seconds) % 60} s")


if __name__ == "__main__":
    sys.exit(main())
