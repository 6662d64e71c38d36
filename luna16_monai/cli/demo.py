"""``make demo``: the whole main job on the embedded data, from nothing to a table of scores.

``make demo-malignancy`` goes on from there: the second bundle, fine-tuned from the demo's network, beside a ruler.

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from luna16_monai.bundle.command import command
from luna16_monai.bundle.folders import bundle_dir
from luna16_monai.dataset.candidates import CandidateList
from luna16_monai.dataset.splits import Split
from luna16_monai.evaluation.baselines import score_baselines
from luna16_monai.evaluation.roc import compare_roc_auc
from luna16_monai.machine.files import write_json
from luna16_monai.store.reading import Store
from luna16_monai.tables.points import read_points, write_points


@dataclass(frozen=True)
class Plan:
    """How much is trained, on how much data.

    The first round looks at the inner eighth of each cutout, which costs an eighth; the second goes on with its
    convolutions on whole cutouts. With one round of the same length the network would still be behind the baselines.

    Attributes:
        scans: of the phantom.
        stride: every so many scans one is held out.
        first, second: settings of the two rounds.
        malignancy: settings of the second bundle's training.
        baselines: what the network is compared with.
    """

    scans: int
    stride: int
    first: dict[str, Any]
    second: dict[str, Any]
    malignancy: dict[str, Any]
    baselines: tuple[str, ...] = ("mean_hu_centre", "size_brightness", "radial_profile")


COMMON = {"batch_size": 32, "num_workers": 2}
SMALL_CUTOUTS = {"shape_zyx": [16, 24, 24], "margin_zyx": [8, 12, 12], "learning_rate": 3e-3}
# 7 and a half minutes in all on 2 cores.
SHORT = Plan(
    scans=60,
    stride=3,
    first={**SMALL_CUTOUTS, "max_epochs": 12, "samples_per_epoch": 4096, "val_interval": 12},
    second={"max_epochs": 4, "samples_per_epoch": 1536, "learning_rate": 1e-3, "val_interval": 4},
    malignancy={"max_epochs": 6, "samples_per_epoch": 1024, "learning_rate": 1e-3, "val_interval": 3},
)
# What the phantom's hardness is measured with, and what the bundle's weights come from: under 40 minutes of training
# on 2 cores. Validated once, at its end, so that nothing is chosen on the scans that it is reported on.
LONG = Plan(
    scans=200,
    stride=5,
    first={**SMALL_CUTOUTS, "max_epochs": 8, "samples_per_epoch": 16384, "val_interval": 8},
    second={"max_epochs": 7, "samples_per_epoch": 8192, "learning_rate": 1e-3, "val_interval": 7},
    malignancy={"max_epochs": 6, "samples_per_epoch": 4096, "learning_rate": 1e-3, "val_interval": 6},
    baselines=("mean_hu_centre", "size_brightness", "radial_profile", "component_shape"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; what is there already is kept and said so."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/demo"))
    parser.add_argument(
        "--malignancy", type=Path, metavar="DIR", help="go on to the second bundle, from the finished demo in --output"
    )
    parser.add_argument("--long", action="store_true", help="200 scans and 40 minutes instead of 60 and 8")
    parser.add_argument("--seed", type=int, default=0, help="of the two trainings")
    options = parser.parse_args(arguments)
    plan, suffix = (LONG, "_200") if options.long else (SHORT, "")
    data = Path(os.environ.get("LUNA16_DATA", "data/phantom") + suffix)
    store = Path(os.environ.get("LUNA16_STORE", "data/store") + suffix)
    if options.malignancy is not None:
        if not (options.output / "report.html").is_file():
            print(f"no finished demo in {options.output}: that comes first\n", flush=True)
            _classify_nodules(plan, options.output, data, store, options.seed)
        return _classify_malignancy(plan, options.malignancy, options.output, data, store, options.seed)
    return _classify_nodules(plan, options.output, data, store, options.seed)


LUNA16 = [sys.executable, "-m", "luna16_monai"]


def _classify_nodules(plan: Plan, output: Path, data: Path, store: Path, seed: int) -> int:
    started = time.monotonic()
    _prepare(plan, data, store, 6)
    first = output / "first_round"
    title = f"3/6  training, first round: small cutouts -> {first}"
    _train("nodule_classification", title, plan, data, store, {"output_dir": first, "seed": seed, **plan.first})
    title = f"4/6  training, second round: whole cutouts -> {output}"
    second = {"output_dir": output, "init_weights": first / "model.pt", "seed": seed, **plan.second}
    _train("nodule_classification", title, plan, data, store, second)
    print("5/6  simple baselines on the same scans", flush=True)
    metrics = _add_baselines(output, data, store, plan)
    report = output / "report.html"
    _step("6/6  the report", [*LUNA16, "report", "--run", output, "--output", report, "--store", store])
    _print_table(metrics, output, data, store, time.monotonic() - started)
    return 0


def _classify_malignancy(plan: Plan, output: Path, nodule_run: Path, data: Path, store: Path, seed: int) -> int:
    started = time.monotonic()
    _prepare(plan, data, store, 5)
    settings = {"output_dir": output, "init_weights": nodule_run / "model.pt", "nodule_run": nodule_run, "seed": seed}
    title = f"3/5  fine-tuning from {nodule_run}: malignant, benign and no nodules -> {output}"
    _train("malignancy_classification", title, plan, data, store, {**settings, **plan.malignancy})
    report = output / "report.html"
    _step("4/5  the report", [*LUNA16, "report", "--run", output, "--output", report, "--store", store])
    uid, points = _points_of_one_scan(nodule_run, output)
    scan = next(data.glob(f"subset?/{uid}.mhd"))
    both = ["--weights", nodule_run / "model.pt", "--malignancy", "--malignancy-weights", output / "model.pt"]
    files = ["--ct", scan, "--candidates", points, "--output", output / "predictions.csv"]
    _step("5/5  both networks in a row on a held-out scan", [*LUNA16, "predict", *files, *both])
    metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    _print_malignancy(metrics, output, time.monotonic() - started)
    return 0


def _prepare(plan: Plan, data: Path, store: Path, steps: int) -> None:
    _step(
        f"1/{steps}  synthetic CTs in LUNA16's layout -> {data}",
        [*LUNA16, "phantom", "--output", data, "--scans", plan.scans],
    )
    _step(f"2/{steps}  the volume store -> {store}", [*LUNA16, "prepare", "--data", data, "--store", store])


def _train(bundle: str, title: str, plan: Plan, data: Path, store: Path, settings: dict[str, Any]) -> None:
    overrides = {
        "dataset_dir": data,
        "store_dir": store,
        "resume": "true",
        "validation_stride": plan.stride,
        **COMMON,
        **settings,
    }
    config = bundle_dir(bundle) / "configs" / "train.yaml"
    _step(title, command("training", [config], {key: str(value) for key, value in overrides.items()}))


def _points_of_one_scan(nodule_run: Path, output: Path) -> tuple[str, Path]:
    """Write the candidates of the first held-out scan to a table; gives its series, and the file."""
    table = read_points(nodule_run / "submission.csv", "probability")
    rows = table.select(table.series == 0)
    uid, path = table.series_uids[0], output / "points.csv"
    write_points(path, [uid] * len(rows), rows.points_xyz, np.zeros(len(rows)), "class")
    return uid, path


def _step(title: str, command: Sequence[Any]) -> None:
    words = [str(word) for word in command]
    shown = ["python" if word == sys.executable else word for word in words]
    print(f"{title}\n     {' '.join(shown)}", flush=True)
    if code := subprocess.run(words, check=False).returncode:
        sys.exit(f"demo: this step ended with exit code {code}: what went wrong stands above")


def _add_baselines(output: Path, data: Path, store_dir: Path, plan: Plan) -> dict[str, Any]:
    """Train the baselines on the training cutouts, score the validation cutouts, and add the AUCs to metrics.json."""
    path = output / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8"))
    store = Store(store_dir)
    split = Split(data, store, validation_stride=plan.stride)
    train, validation = (cutouts(part, store) for part in (split.train, split.validation))
    spacing = store.index["spacing_zyx"]
    scores = score_baselines(train, split.train.labels, validation, spacing, plan.baselines)
    table, submission = split.validation.table, read_points(output / "submission.csv", "probability")
    if not np.array_equal(submission.points_xyz, table.points_xyz):
        raise ValueError(f"{output / 'submission.csv'} lists other candidates than {data}: make clean-demo")
    compared = compare_roc_auc({"network": submission.values, **scores}, split.validation.labels, table.series)
    network = compared.pop("network")
    metrics |= {"roc_auc_ci95": network["roc_auc_ci95"], "baselines": {n: c["roc_auc"] for n, c in compared.items()}}
    metrics["baselines_compared"] = compared
    write_json(path, metrics)
    return metrics


def cutouts(candidates: CandidateList, store: Store) -> np.ndarray:
    """All cutouts of a split, (n, z, y, x) HU."""
    return np.stack([store.volume(item["series_uid"]).cutout(item["point_xyz"]) for item in candidates])


def _print_table(metrics: dict[str, Any], output: Path, data: Path, store: Path, seconds: float) -> None:
    print(
        f"\nOn {metrics['series']} held-out synthetic scans ({metrics['candidates']} candidates, "
        f"{metrics['positives']} positive), epoch {metrics['epoch']}; intervals over scans\n"
    )
    print(f"  {'classifier':<32} ROC AUC (95 %)            the network is ahead by (95 %)")
    for name, one in metrics["baselines_compared"].items():
        ahead = _with_interval(one["behind_by"], one["behind_by_ci95"], "+")
        trees = "boosted trees: " + name.replace("_", " ")
        print(f"  {trees:<32} {_with_interval(one['roc_auc'], one['roc_auc_ci95']):<24}  {ahead}")
    network = _with_interval(metrics["roc_auc"], metrics["roc_auc_ci95"])
    print(f"  {'network':<32} {network}   average precision {metrics['average_precision']:.3f}\n")
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


def _print_malignancy(metrics: dict[str, Any], output: Path, seconds: float) -> None:
    told = metrics["malignancy"]
    nodules = told["nodules"]
    print(
        f"\nMalignant ({nodules['malignant']}) against benign nodules ({nodules['benign']}) of {told['patients']} "
        "held-out synthetic patients; intervals over patients\n"
    )
    print(f"  {'':<24} ROC AUC (95 %)            the network is ahead by (95 %)")
    for name, one in told["compared"].items():
        ahead = _with_interval(one["behind_by"], one["behind_by_ci95"], "+") if "behind_by" in one else ""
        shown = {"diameter": "diameter alone", "diameter_and_mean_hu": "diameter and mean HU"}.get(name, name)
        print(f"  {shown:<24} {_with_interval(one['roc_auc'], one['roc_auc_ci95']):<24}  {ahead}")
    print(
        f"\n  {'candidate to malignant':<24} {'left by the first':>18} {'called benign':>14} {'called malignant':>17}"
    )
    for name, row in told["end_to_end"]["counts"].items():
        shown = {"malignant": "malignant nodules", "benign": "benign nodules"}.get(name, "other candidates")
        print(f"  {shown:<24} {row['missed']:>18} {row['benign']:>14} {row['malignant']:>17}")
    print(
        "\nMalignant is what radiologists rated so of real nodules with these shapes, and they call large ones\n"
        "malignant: a ruler is hard to beat. The data are synthetic: these figures say nothing about real CTs."
    )
    for what, where in {
        "report, opens in any browser": output / "report.html",
        "weights of the best epoch": output / "model.pt",
        "scores": output / "metrics.json",
        "each nodule": output / "rated_nodules.csv",
        "both probabilities, one scan": output / "predictions.csv",
    }.items():
        print(f"  {what:<30} {where}")
    print(f"\ndone in {int(seconds) // 60} min {int(seconds) % 60} s")


def _with_interval(value: float, bounds: Sequence[float], sign: str = "") -> str:
    return f"{value:{sign}.3f} ({bounds[0]:{sign}.3f} to {bounds[1]:{sign}.3f})"


if __name__ == "__main__":
    sys.exit(main())
