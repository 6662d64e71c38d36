"""``luna16 demo``: the whole main job on synthetic data, from nothing to a table of scores.

With ``--malignancy`` it goes on from there: the second bundle, fine-tuned from the demo's network, beside a ruler.
With ``--detection``: the detector, alone and with the demo's network behind it, beside a plain blob detector.

Each step is the command that a user would type, so that the demo shows what it does and breaks where they would.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luna16_monai.cli import console

if TYPE_CHECKING:
    import numpy as np

    from luna16_monai.cli.console import Verbs
    from luna16_monai.dataset.candidates import CandidateList
    from luna16_monai.store.reading import Store


@dataclass(frozen=True)
class Plan:
    """How much is trained, on how much data.

    Attributes:
        scans: of the phantom.
        stride: every so many scans one is held out.
        nodules: settings of the nodule bundle's training, beside those of its ``recipe.yaml``.
        malignancy: settings of the second bundle's training.
        detection: settings of the detector's training.
        baselines: what the network is compared with.
    """

    scans: int
    stride: int
    nodules: dict[str, Any]
    malignancy: dict[str, Any]
    detection: dict[str, Any]
    baselines: tuple[str, ...] = ("mean_hu_centre", "size_brightness", "radial_profile")


# the network of recipe.yaml, from whose weights the second bundle goes on; they have no norms any more: a lower rate
FINE_TUNING = {"network_def#two_scales": True, "batch_size": 32, "learning_rate": 1e-3}
# Validated once, at its end, so that nothing is chosen on the scans that it is reported on.
SHORT = Plan(
    scans=60,
    stride=3,
    nodules={"max_epochs": 12, "samples_per_epoch": 4096, "val_interval": 12},
    malignancy={**FINE_TUNING, "max_epochs": 6, "samples_per_epoch": 1024, "val_interval": 3},
    detection={"max_epochs": 10, "samples_per_epoch": 3000, "val_interval": 10, "bf16": True},
)
# What the phantom's hardness is measured with.
LONG = Plan(
    scans=200,
    stride=5,
    nodules={"max_epochs": 12, "samples_per_epoch": 12288, "val_interval": 12},
    malignancy={**FINE_TUNING, "max_epochs": 6, "samples_per_epoch": 4096, "val_interval": 6},
    detection={"max_epochs": 16, "samples_per_epoch": 8000, "val_interval": 16, "bf16": True},
    baselines=("mean_hu_centre", "size_brightness", "radial_profile", "component_shape"),
)


# of metrics.json, in what --json prints
KEYS = ("roc_auc", "average_precision", "cpm", "cpm_ci95", "baselines")
LUNA16 = [sys.executable, "-m", "luna16_monai"]


def add_demo(verbs: Verbs) -> None:
    """Add ``luna16 demo``."""
    text = "synthetic CTs, store, training and scores in one go, 6 minutes on 2 cores; resumable"
    verb = console.add_verb(verbs, "demo", run_demo, text)
    verb.add_argument("--output", type=Path, metavar="DIR", help="default: demo in the folder of LUNA16_RUNS")
    text = "go on to the second bundle, from the finished demo in --output"
    verb.add_argument("--malignancy", type=Path, metavar="DIR", help=text)
    text = "go on to the detector, from the finished demo in --output"
    verb.add_argument("--detection", type=Path, metavar="DIR", help=text)
    verb.add_argument("--long", action="store_true", help="200 scans instead of 60")
    verb.add_argument("--seed", type=int, default=0, metavar="N", help="of the training")


def run_demo(options: argparse.Namespace) -> int:
    """Run ``luna16 demo``: what is there already is kept and said so; return its exit code."""
    from luna16_monai.machine.extras import require
    from luna16_monai.runs.folder import RunFolder

    if options.malignancy and options.detection:
        raise ValueError("--malignancy and --detection: give one of them, then the other")
    # asked for now, not after minutes of training
    require("demo", "luna16 demo", "sklearn", "matplotlib", "jinja2")
    plan, suffix = (LONG, "_200") if options.long else (SHORT, "")
    output = options.output or console.folder("LUNA16_RUNS", "runs") / "demo"
    console.require_folder("--output", output)
    data, store = console.folder("LUNA16_DATA", "data/phantom"), console.folder("LUNA16_STORE", "data/store")
    demo = _Demo(plan, output, data.with_name(data.name + suffix), store.with_name(store.name + suffix), options)
    further = options.malignancy or options.detection
    if further is None:
        result = demo.classify_nodules()
    else:
        if not RunFolder(output).report_file.is_file():
            demo.say(f"no finished demo in {output}: that comes first\n")
            demo.classify_nodules()
        go_on = demo.classify_malignancy if options.malignancy else demo.detect_nodules
        result = go_on(further)
    if options.json:
        print(json.dumps(result, indent=2))
    return console.DONE


class _Demo:
    """The steps of one demo.

    Args:
        plan: how much is trained.
        output: the nodule bundle's run.
        data, store: the synthetic data set, and its prepared volumes.
        options: of the verb; with --json all that the steps print goes to standard error.
    """

    def __init__(self, plan: Plan, output: Path, data: Path, store: Path, options: argparse.Namespace) -> None:
        from luna16_monai.runs.folder import RunFolder

        self.run = RunFolder(output)
        self.plan, self.output, self.data, self.store, self.seed = plan, output, data, store, options.seed
        self.stream = sys.stderr if options.json else sys.stdout
        self.quiet = ["--quiet"] if options.quiet else []

    def say(self, line: str) -> None:
        """Print a line."""
        print(line, file=self.stream, flush=True)

    def classify_nodules(self) -> dict[str, Any]:
        """Draw the data, train and score the nodule bundle; return what --json prints."""

        started = time.monotonic()
        self._prepare(5)
        title = f"3/5  training, with the settings of recipe.yaml -> {self.output}"
        self._train("nodule_classification", title, {"output_dir": self.output, **self.plan.nodules}, "recipe.yaml")
        self.say("4/5  simple baselines on the same scans")
        metrics = _add_baselines(self.output, self.data, self.store, self.plan)
        self._report("5/5", self.output)
        self.say(_table(metrics))
        self._list_files(
            {
                "report, opens in any browser": self.run.report_file,
                "weights of the best epoch": self.run.weights,
                "scores": self.run.metrics_file,
                "probability of each candidate": self.run.submission_file,
                "curves": f"{self.output} (tensorboard --logdir {self.output})",
                "CTs and tables": self.data,
                "prepared volumes": self.store,
            },
            started,
        )
        return self._result(self.output, {key: metrics[key] for key in KEYS})

    def classify_malignancy(self, output: Path) -> dict[str, Any]:
        """Fine-tune and score the malignancy bundle from the nodule run; return what --json prints."""
        from luna16_monai.runs.folder import RunFolder

        started = time.monotonic()
        self._prepare(5)
        run, weights = RunFolder(output), self.run.weights
        settings = {"output_dir": output, "init_weights": weights, "nodule_run": self.output}
        title = f"3/5  fine-tuning from {self.output}: malignant, benign and no nodules -> {output}"
        self._train("malignancy_classification", title, {**settings, **self.plan.malignancy})
        self._report("4/5", output)
        uid, points = _points_of_one_scan(self.output, output)
        scan = next(self.data.glob(f"subset?/{uid}.mhd"))
        both = ["--weights", weights, "--malignancy", "--malignancy-weights", run.weights]
        files = ["--ct", scan, "--candidates", points, "--output", output / "predictions.csv"]
        self._luna16("5/5  both networks in a row on a held-out scan", "predict", *files, *both)
        metrics = run.read_metrics()
        self.say(_malignancy_table(metrics["malignancy"]))
        self._list_files(
            {
                "report, opens in any browser": run.report_file,
                "weights of the best epoch": run.weights,
                "scores": run.metrics_file,
                "each nodule": run.rated_nodules_file,
                "both probabilities, one scan": output / "predictions.csv",
            },
            started,
        )
        return self._result(output, {"nodule_run": str(self.output), "malignancy": metrics["malignancy"]})

    def detect_nodules(self, output: Path) -> dict[str, Any]:
        """Train the detector, and score it with and without the nodule run behind it; return what --json prints."""
        from luna16_monai.experiments import detection_demo
        from luna16_monai.runs.folder import RunFolder

        started = time.monotonic()
        self._prepare(5)
        detector = output / "detector"
        title = f"3/5  training the detector -> {detector}"
        self._train("nodule_detection", title, {"output_dir": detector, **self.plan.detection})
        scans = detection_demo.held_out(self.data, self.store, self.plan.stride)
        both = ["--detector-weights", RunFolder(detector).weights, "--weights", self.run.weights]
        files = ["--ct", *scans.values(), "--max", detection_demo.LIMIT, "--output", output / "both_stages.csv"]
        self._luna16("4/5  both stages on the held-out scans", "predict", *files, *both)
        metrics = detection_demo.score(output, self.data, self.store, list(scans))
        self._report("5/5", output)
        self.say(detection_demo.table(metrics))
        run = RunFolder(output)
        self._list_files(
            {
                "report, opens in any browser": run.report_file,
                "weights of the detector": RunFolder(detector).weights,
                "scores": run.metrics_file,
                "candidates, both stages": output / "both_stages.csv",
            },
            started,
        )
        scores = {name: metrics[name] for name in detection_demo.NAMES}
        return self._result(output, {"nodule_run": str(self.output), **scores})

    def _prepare(self, steps: int) -> None:
        title = f"1/{steps}  synthetic CTs in LUNA16's layout -> {self.data}"
        self._luna16(title, "phantom", "--output", self.data, "--scans", self.plan.scans)
        title = f"2/{steps}  the volume store -> {self.store}"
        self._luna16(title, "prepare", "--data", self.data, "--store", self.store)

    def _train(self, bundle: str, title: str, settings: dict[str, Any], *overlays: str) -> None:
        from luna16_monai.bundle.command import command
        from luna16_monai.bundle.folders import bundle_dir

        overrides = {
            "dataset_dir": self.data,
            "store_dir": self.store,
            "resume": "true",
            "validation_stride": self.plan.stride,
            "num_workers": 2,
            "seed": self.seed,
            **settings,
        }
        configs = [bundle_dir(bundle) / "configs" / name for name in ("train.yaml", *overlays)]
        words = command("training", configs, {key: str(value) for key, value in overrides.items()})
        self._step(title, words, one_thread=True)

    def _report(self, number: str, run: Path) -> None:
        from luna16_monai.runs.folder import RunFolder

        files = ["--run", run, "--output", RunFolder(run).report_file, "--store", self.store]
        self._luna16(f"{number}  the report", "report", *files)

    def _luna16(self, title: str, *words: Any) -> None:
        self._step(title, [*LUNA16, *words, *self.quiet])

    def _step(self, title: str, command: Sequence[Any], one_thread: bool = False) -> None:
        words = [str(word) for word in command]
        shown = ["python" if word == sys.executable else word for word in words]
        environment = dict(os.environ)
        if one_thread and not environment.get("OMP_NUM_THREADS"):
            # batches of 16 small cutouts: two threads of torch take nearly twice as long as one
            environment["OMP_NUM_THREADS"] = "1"
            shown = ["OMP_NUM_THREADS=1", *shown]
        self.say(f"{title}\n     {' '.join(shown)}")
        process = subprocess.Popen(words, stdout=self.stream, env=environment)
        try:
            code = process.wait()
        except BaseException:
            # a training saves where it is; after Ctrl-C it does so already
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise
        if code:
            raise RuntimeError(f"this step of the demo ended with exit code {code}: what went wrong stands above")

    def _list_files(self, files: dict[str, Path | str], started: float) -> None:
        seconds = int(time.monotonic() - started)
        lines = [f"  {what:<30} {where}" for what, where in files.items()]
        self.say("\n".join([*lines, f"\ndone in {seconds // 60} min {seconds % 60} s"]))

    def _result(self, output: Path, scores: dict[str, Any]) -> dict[str, Any]:
        return {"output": str(output), "data": str(self.data), "store": str(self.store), **scores}


def _points_of_one_scan(nodule_run: Path, output: Path) -> tuple[str, Path]:
    """Write the candidates of the first held-out scan to a table; return its series, and the file."""
    import numpy as np

    from luna16_monai.runs.folder import RunFolder
    from luna16_monai.tables.points import write_points

    table = RunFolder(nodule_run).read_submission()
    rows = table.select(table.series == 0)
    uid, path = table.series_uids[0], output / "points.csv"
    write_points(path, [uid] * len(rows), rows.points_xyz, np.zeros(len(rows)), "class")
    return uid, path


def _add_baselines(output: Path, data: Path, store_dir: Path, plan: Plan) -> dict[str, Any]:
    """Train the baselines on the training cutouts, score the validation cutouts, and add the AUCs to metrics.json."""
    import numpy as np

    from luna16_monai.dataset.splits import Split
    from luna16_monai.evaluation.baselines import score_baselines
    from luna16_monai.evaluation.roc import compare_roc_auc
    from luna16_monai.runs.folder import RunFolder
    from luna16_monai.store.reading import Store

    run = RunFolder(output)
    store = Store(store_dir)
    split = Split(data, store, validation_stride=plan.stride)
    train, validation = (cutouts(part, store) for part in (split.train, split.validation))
    spacing = store.index["spacing_zyx"]
    scores = score_baselines(train, split.train.labels, validation, spacing, plan.baselines)
    table, submission = split.validation.table, run.read_submission()
    if not np.array_equal(submission.points_xyz, table.points_xyz):
        raise ValueError(f"{run.submission_file} lists other candidates than {data}: make clean-demo")
    compared = compare_roc_auc({"network": submission.values, **scores}, split.validation.labels, table.series)
    network = compared.pop("network")
    more = {
        "roc_auc_ci95": network["roc_auc_ci95"],
        "baselines": {name: one["roc_auc"] for name, one in compared.items()},
        "baselines_compared": compared,
    }
    return run.write_metrics({**run.read_metrics(), **more}).content


def cutouts(candidates: CandidateList, store: Store) -> np.ndarray:
    """Return all cutouts of a split, (n, z, y, x) HU."""
    import numpy as np

    return np.stack([store.volume(item["series_uid"]).cutout(item["point_xyz"]) for item in candidates])


def _table(metrics: dict[str, Any]) -> str:
    """Return what the network and the baselines reached, in words."""
    lines = [
        f"\nOn {metrics['series']} held-out synthetic scans ({metrics['candidates']} candidates, "
        f"{metrics['positives']} positive), epoch {metrics['epoch']}; intervals over scans\n",
        f"  {'classifier':<32} ROC AUC (95 %)            the network is ahead by (95 %)",
    ]
    for name, one in metrics["baselines_compared"].items():
        ahead = _with_interval(one["behind_by"], one["behind_by_ci95"], "+")
        trees = "boosted trees: " + name.replace("_", " ")
        lines.append(f"  {trees:<32} {_with_interval(one['roc_auc'], one['roc_auc_ci95']):<24}  {ahead}")
    network = _with_interval(metrics["roc_auc"], metrics["roc_auc_ci95"])
    low, high = metrics["cpm_ci95"]
    lines += [
        f"  {'network':<32} {network}   average precision {metrics['average_precision']:.3f}\n",
        f"LUNA16's official score, CPM: {metrics['cpm']:.3f} (95 % {low:.3f} to {high:.3f})",
        "The data are synthetic: these figures say nothing about real LUNA16.",
    ]
    return "\n".join(lines)


def _malignancy_table(told: dict[str, Any]) -> str:
    """Return what the malignancy bundle and the ruler reached, in words."""
    nodules = told["nodules"]
    lines = [
        f"\nMalignant ({nodules['malignant']}) against benign nodules ({nodules['benign']}) of {told['patients']} "
        "held-out synthetic patients; intervals over patients\n",
        f"  {'':<24} ROC AUC (95 %)            the network is ahead by (95 %)",
    ]
    for name, one in told["compared"].items():
        ahead = _with_interval(one["behind_by"], one["behind_by_ci95"], "+") if "behind_by" in one else ""
        shown = {"diameter": "diameter alone", "diameter_and_mean_hu": "diameter and mean HU"}.get(name, name)
        lines.append(f"  {shown:<24} {_with_interval(one['roc_auc'], one['roc_auc_ci95']):<24}  {ahead}")
    lines.append(
        f"\n  {'candidate to malignant':<24} {'left by the first':>18} {'called benign':>14} {'called malignant':>17}"
    )
    for name, row in told["end_to_end"]["counts"].items():
        shown = {"malignant": "malignant nodules", "benign": "benign nodules"}.get(name, "other candidates")
        lines.append(f"  {shown:<24} {row['missed']:>18} {row['benign']:>14} {row['malignant']:>17}")
    lines.append(
        "\nMalignant is what radiologists rated so of real nodules with these shapes, and they call large ones\n"
        "malignant: a ruler is hard to beat. The data are synthetic: these figures say nothing about real CTs."
    )
    return "\n".join(lines)


def _with_interval(value: float, bounds: Sequence[float], sign: str = "") -> str:
    return f"{value:{sign}.3f} ({bounds[0]:{sign}.3f} to {bounds[1]:{sign}.3f})"
