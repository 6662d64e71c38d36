"""The verbs that run many trainings: ``crossval`` and ``tune``."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luna16_monai.cli import console
from luna16_monai.machine.platforms import usable_cores

if TYPE_CHECKING:
    from luna16_monai.cli.console import Verbs
    from luna16_monai.experiments.search import TunePlan

logger = logging.getLogger(__name__)


def add_crossval(verbs: Verbs) -> None:
    """Add ``luna16 crossval``."""
    verb = console.add_verb(verbs, "crossval", run_crossval, "official cross-validation of a bundle; resumable")
    verb.add_argument("--folds", type=int, nargs="+", metavar="N", help="0 to 9; default: all that are prepared")
    _add_trainings(verb)
    console.add_bootstrap(verb)


def run_crossval(options: argparse.Namespace) -> int:
    """Run ``luna16 crossval``; return its exit code."""
    from luna16_monai.experiments.crossval import crossval
    from luna16_monai.experiments.folds import Plan
    from luna16_monai.machine.extras import install, is_installed
    from luna16_monai.report.page import write_report
    from luna16_monai.runs.folder import RunFolder
    from luna16_monai.store.reading import Store

    console.require_folder("--output", options.output)
    bundle = _trained_bundle(options)
    store_dir = console.store_folders(options)
    folds = options.folds or sorted({subset for subset in Store(store_dir).subsets.values() if subset is not None})
    plan = Plan(
        bundle,
        console.data_folders(options),
        store_dir,
        options.output,
        tuple(folds),
        _settings(options),
        tuple(options.overlay or ()),
        _threads(options),
        options.gpus,
    )
    result = crossval(plan, _execute(options), console.shows_progress(options), options.bootstrap, options.seed)
    if is_installed("matplotlib", "jinja2"):
        write_report(options.output, RunFolder(options.output).report_file, store_dir)
    else:
        print(f"luna16: no report.html: {install('report')}, then luna16 report --run", file=sys.stderr)
    console.warn(result.get("warnings", ()))
    return console.tell(options, result, _told_folds(result, options.output))


def add_tune(verbs: Verbs) -> None:
    """Add ``luna16 tune``."""
    verb = console.add_verb(verbs, "tune", run_tune, "search for better settings of a bundle; resumable")
    verb.add_argument("--trials", type=int, required=True, metavar="N")
    verb.add_argument("--search", type=Path, metavar="FILE", help="what is tried; default: the bundle's tune.yaml")
    _add_trainings(verb)


def run_tune(options: argparse.Namespace) -> int:
    """Run ``luna16 tune``; return its exit code."""
    from luna16_monai.experiments.search import Search, TunePlan
    from luna16_monai.experiments.tune import read_trials, tune

    console.require_folder("--output", options.output)
    bundle = _trained_bundle(options)
    plan = TunePlan(
        bundle,
        console.data_folders(options),
        console.store_folders(options),
        options.output,
        Search.read(options.search or bundle / "configs" / "tune.yaml"),
        options.trials,
        _settings(options),
        tuple(options.overlay or ()),
        _threads(options),
        options.gpus,
        options.seed,
    )
    result = tune(plan, options.ray, options.workers or 1, options.dashboard, console.shows_progress(options))
    if write_chart(plan, read_trials(plan)):
        result["files"].append("trials.svg")
    best, metric = result["best"], result["metric"]
    line = f"tune: {metric} {best['score']:.4f} after epoch {best['epoch']}, the best of {result['trials']} trials"
    return console.tell(options, result, f"{line}: {options.output / 'best.yaml'}")


def _add_trainings(verb: argparse.ArgumentParser) -> None:
    """Add the options of what runs several trainings."""
    console.add_ray(verb)
    console.add_bundle(verb)
    console.add_trust(verb)
    verb.add_argument("--output", type=Path, required=True, metavar="DIR")
    console.add_data(verb)
    console.add_store(verb)
    verb.add_argument("--set", nargs="+", action="extend", metavar="KEY=VALUE", help="settings of each training")
    verb.add_argument("--overlay", type=Path, nargs="+", metavar="FILE", help="config files on top of train.yaml")
    console.add_workers(verb, "trainings at once; default: 1")
    verb.add_argument("--threads", type=int, metavar="N", help="of each process; default: the cores shared")
    verb.add_argument("--gpus", type=int, default=0, metavar="N", help="that a training takes for itself")
    console.add_device(verb)
    console.add_seed(verb)


def _trained_bundle(options: argparse.Namespace) -> Path:
    """The folder of the bundle that is trained; one from elsewhere, and an overlay that calls something, if trusted."""
    from luna16_monai.bundle.bases import foreign_files, read_yaml
    from luna16_monai.bundle.folders import bundle_dir, called_names, require_trust

    bundle = options.bundle or bundle_dir()
    files = [bundle / "configs" / name for name in ("train.yaml", "evaluate.yaml")]
    for path in dict.fromkeys(one for file in files if file.is_file() for one in foreign_files(file)):
        require_trust(path, read_yaml(path), options.trust_bundle)
    for path in options.overlay or ():
        if path.is_file() and called_names(config := read_yaml(path)):
            require_trust(path, config, options.trust_bundle)
    return bundle


def _settings(options: argparse.Namespace) -> dict[str, str]:
    """What --set, --seed and --device ask of each training."""
    settings = {"seed": str(options.seed)}
    if options.device != "auto":
        settings["device"] = options.device
    for text in options.set or ():
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise ValueError(f"--set {text}: key=value was expected, such as max_epochs=20")
        settings[key] = value
    return settings


def _threads(options: argparse.Namespace) -> int:
    """Of each process; the cores shared by those that run at once, unless it is said."""
    return options.threads or max(1, usable_cores() // ((options.workers or 1) * _processes(options)))


def _processes(options: argparse.Namespace) -> int:
    """Of each training: one for each of its GPUs."""
    return max(1, options.gpus)


def _execute(options: argparse.Namespace) -> Any:
    """Where jobs run: in processes of this machine, one at a time unless it is said otherwise; or on a cluster."""
    if options.ray:
        from luna16_monai.machine import cluster

        resources = {"cpus": _threads(options) * _processes(options), "gpus": options.gpus}
        return partial(cluster.run_tasks, address=options.ray, dashboard=options.dashboard, **resources)
    from luna16_monai.machine.processes import run_tasks

    return partial(run_tasks, workers=options.workers or 1)


def _told_folds(result: dict[str, Any], output: Path) -> str:
    lines = [f"crossval: {len(result['folds'])} folds in {output}"]
    if "cpm" in result:
        interval = "" if result["cpm_ci95"] is None else " (95 % {:.4f} to {:.4f})".format(*result["cpm_ci95"])
        lines.append(f"  CPM {result['cpm']:.4f}{interval} on all {result['scans']} scans, pooled")
        mean = result["mean_of_folds"]
        interval = "" if mean["cpm_ci95"] is None else " (95 % {:.4f} to {:.4f})".format(*mean["cpm_ci95"])
        lines.append(f"  CPM {mean['cpm']:.4f}{interval} as the mean of the folds, each on its own scans")
        lines += [
            f"    fold {name}: {fold['cpm']:.4f} on {fold['scans']} scans" for name, fold in result["folds"].items()
        ]
    else:
        scores = "average precision {average_precision:.4f}, ROC AUC {roc_auc:.4f}".format(**result)
        lines.append(f"  {scores}, pooled; no fold has a CPM, see its log")
    return "\n".join(lines)


def write_chart(plan: TunePlan, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Draw what was tried against the score as ``trials.svg``; whether it could, as matplotlib is an extra."""
    from luna16_monai.machine.extras import install
    from luna16_monai.machine.files import atomic_write

    try:
        from luna16_monai.report import charts
    except ModuleNotFoundError:
        logger.warning("no trials.svg: it needs matplotlib: %s", install("report"))
        return False
    ranges = plan.search.ranges
    drawn = {name: [row["drawn"][name] for row in rows] for name in ranges}
    numbers = {
        name: ("log", *one["log_uniform"]) if "log_uniform" in one else ("linear", *one["uniform"])
        for name, one in ranges.items()
        if "choice" not in one
    }
    chart = charts.trials_chart(drawn, [row["score"] for row in rows], plan.search.metric, numbers)
    with atomic_write(plan.output / "trials.svg") as stream:
        stream.write(charts.standalone(chart).encode())
    return True
