"""A search for better settings of a bundle: Optuna proposes, Ray Tune runs the trials, ASHA ends the poor ones early.

What is tried stands in the bundle's ``configs/tune.yaml``; a trial is a training as a user could type it, with these
settings. The best one becomes an overlay that ``run training`` takes. The scans that the score is from have chosen it:
what it is worth is told by scans that took no part, such as ``--set test_subset=9``.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from luna16_monai.cluster import LOCAL, connected
from luna16_monai.crossval import command
from luna16_monai.cutouts import Store
from luna16_monai.files import atomic_write, write_json
from luna16_monai.handlers import HISTORY, read_history
from luna16_monai.jobs import Job, run_job
from luna16_monai.prepare import Recipe, prepare

logger = logging.getLogger(__name__)

METRICS = ("average_precision", "cpm")
KINDS = ("uniform", "log_uniform", "choice")
PLAN, BEST, TABLE, CHART = "tune.json", "best.yaml", "trials.csv", "trials.svg"
SPACING = "spacing_zyx"
RESERVED = {"dataset_dir", "store_dir", "output_dir", "resume", "key_metric", SPACING}
RETRIES = 3


@dataclass(frozen=True)
class Search:
    """What a ``tune.yaml`` says.

    Attributes:
        metric: the score of the validation that decides.
        grace_period: epochs before a trial may be stopped.
        reduction_factor: of so many trials that got equally far one goes on.
        ranges: by name ``uniform`` or ``log_uniform`` (two numbers) or ``choice`` (a list), and perhaps ``times``.
    """

    metric: str
    grace_period: int
    reduction_factor: int
    ranges: Mapping[str, Mapping[str, Any]]

    @classmethod
    def read(cls, path: Path) -> Search:
        """Read and check the file.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is no YAML, lacks a key, or a range is none.
        """
        if not path.is_file():
            raise FileNotFoundError(f"no search {path}: name a bundle with configs/tune.yaml, or a file by --search")
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            search = cls(*(content[key] for key in ("metric", "grace_period", "reduction_factor", "search")))
        except (yaml.YAMLError, KeyError, TypeError) as error:
            raise ValueError(f"{path} cannot be read ({error}): see the nodule bundle's configs/tune.yaml") from error
        if search.metric not in METRICS:
            raise ValueError(f"{path}: metric {search.metric}: name one of {', '.join(METRICS)}")
        for name, one in search.ranges.items():
            kinds = [kind for kind in KINDS if kind in one]
            if len(kinds) != 1 or not isinstance(one[kinds[0]], list) or set(one) - {*KINDS, "times"}:
                raise ValueError(f"{path}: {name} is {one}: one of {', '.join(KINDS)} with a list was expected")
            values = one[kinds[0]]
            if kinds[0] == "choice":
                continue
            numbers = len(values) == 2 and all(isinstance(value, int | float) for value in values)
            if not numbers or not (0 if kinds[0] == "log_uniform" else float("-inf")) < values[0] < values[1]:
                raise ValueError(f"{path}: {name} is {values}: two numbers, the smaller one first, were expected")
        return search

    def space(self) -> dict[str, Any]:
        """The ranges as Ray Tune has them; a choice is among texts, since Optuna takes no lists."""
        from ray import tune

        drawn: dict[str, Any] = {}
        for name, one in self.ranges.items():
            if "choice" in one:
                drawn[name] = tune.choice([json.dumps(value) for value in one["choice"]])
            else:
                draw = tune.uniform if "uniform" in one else tune.loguniform
                drawn[name] = draw(*map(float, one.get("uniform") or one["log_uniform"]))
        return drawn

    def settings(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of the bundle that a draw stands for."""
        settings: dict[str, Any] = {}
        for name, value in drawn.items():
            one = self.ranges[name]
            value = json.loads(value) if "choice" in one else float(f"{value:.4g}")
            for key, base in one.get("times", {name: None}).items():
                settings[key] = _times(base, value)
        return settings


def _times(base: Any, factor: Any) -> Any:
    if base is None:
        return factor
    return [_times(one, factor) for one in base] if isinstance(base, list) else float(f"{base * factor:.4g}")


@dataclass(frozen=True)
class TunePlan:
    """A search before it is run.

    Attributes:
        bundle: its folder.
        data_dir: LUNA16's layout.
        store_dir: the prepared volumes.
        output: where all of it goes.
        search: what is tried.
        trials: how many.
        settings: of the bundle, the same for each trial; values as on its command line.
        overlays: further config files for each training.
        threads: of each process.
        gpus: of each trial.
        seed: of the search.
        folder: in which the trainings run; Ray gives each trial another one.
    """

    bundle: Path
    data_dir: Path
    store_dir: Path
    output: Path
    search: Search
    trials: int
    settings: Mapping[str, str] = field(default_factory=dict)
    overlays: tuple[Path, ...] = ()
    threads: int = 1
    gpus: float = 0
    seed: int = 0
    folder: Path = field(default_factory=Path.cwd)

    def __post_init__(self) -> None:
        for name in ("bundle", "data_dir", "store_dir", "output"):
            object.__setattr__(self, name, getattr(self, name).absolute())
        object.__setattr__(self, "overlays", tuple(path.absolute() for path in self.overlays))
        if self.trials < 1:
            raise ValueError(f"trials {self.trials}: give 1 or more")
        if taken := sorted((RESERVED | set(self.search.ranges)) & set(self.settings)):
            raise ValueError(f"{taken[0]} is what each trial decides itself: leave it out of --set")

    @property
    def max_epochs(self) -> int:
        """Of a trial that is not stopped."""
        written = yaml.safe_load((self.bundle / "configs" / "train.yaml").read_text(encoding="utf-8"))
        return int(self.settings.get("max_epochs", written["max_epochs"]))

    def trial_dir(self, trial: str) -> Path:
        """The output folder of a trial's training."""
        return self.output / "trials" / trial

    def job(self, trial: str, settings: Mapping[str, Any], stores: Mapping[str, Path]) -> Job:
        """A trial as a job."""
        store = stores[json.dumps(settings[SPACING])] if SPACING in settings else self.store_dir
        told = {key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()}
        fixed = {
            "key_metric": self.search.metric,
            "dataset_dir": str(self.data_dir),
            "store_dir": str(store),
            "output_dir": str(self.trial_dir(trial)),
            "resume": "true",
        }
        configs = [self.bundle / "configs" / "train.yaml", *self.overlays]
        return Job(
            name=f"trial {trial}",
            commands=(command("training", configs, {**self.settings, **told, **fixed}),),
            log=self.output / "logs" / f"{trial}.log",
            done=None,
            folder=self.folder,
            threads=self.threads,
        )

    def record(self) -> dict[str, Any]:
        """What two calls must agree on to go on with each other's trials."""
        return {
            "bundle": self.bundle.name,
            "trials": self.trials,
            "settings": dict(sorted(self.settings.items())),
            "overlays": [path.name for path in self.overlays],
            "seed": self.seed,
            "metric": self.search.metric,
            "search": dict(self.search.ranges),
        }


def tune(plan: TunePlan, address: str = LOCAL, dashboard: bool = False, progress: bool = True) -> dict[str, Any]:
    """Run the trials that are not finished, and write the best one, the table and the plot of all.

    Args:
        plan: what to do.
        address: of a Ray cluster, see `cluster.connected`.
        dashboard: see there.
        progress: whether a bar is shown while a store is prepared.

    Returns:
        ``best`` (``trial``, ``score``, ``epoch``, ``settings``), ``metric``, ``trials``, and the files written.

    Raises:
        ModuleNotFoundError: Ray Tune or Optuna is not installed.
        ValueError: the output folder holds another search.
        RuntimeError: no trial got a score.
    """
    _claim(plan)
    stores = _prepare_stores(plan, progress)
    # Tune prints a banner, which is no result
    with connected(address, dashboard), contextlib.redirect_stdout(sys.stderr):
        _search(plan, stores)
    return write_trials(plan)


def _claim(plan: TunePlan) -> None:
    path, record = plan.output / PLAN, json.loads(json.dumps(plan.record()))
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        if changed := [key for key in record if before.get(key) != record[key]]:
            raise ValueError(
                f"{plan.output} holds a search with other {changed[0]} ({before.get(changed[0])}, now "
                f"{record[changed[0]]}): name another --output, or go on with the same"
            )
    elif plan.output.is_dir() and any(plan.output.iterdir()):
        raise FileExistsError(f"{plan.output} is not empty and holds no search: name another --output")
    else:
        write_json(path, record)


def _prepare_stores(plan: TunePlan, progress: bool) -> dict[str, Path]:
    """A store for each spacing that is tried; the one that is there serves its own."""
    wanted = plan.search.ranges.get(SPACING, {}).get("choice", [])
    stores = {json.dumps(Store(plan.store_dir).index["spacing_zyx"]): plan.store_dir}
    for spacing in wanted:
        if (key := json.dumps(spacing)) not in stores:
            recipe = Recipe.read(plan.bundle / "configs" / "prepare.yaml", spacing)
            name = "native" if spacing is None else "x".join(map(str, spacing))
            stores[key] = plan.output / "stores" / name
            logger.info("a store of spacing %s, which is tried", name)
            prepare(plan.data_dir, stores[key], recipe, allow_missing=True, progress=progress)
    return stores


def _search(plan: TunePlan, stores: Mapping[str, Path]) -> None:
    try:
        from ray import tune as ray_tune
        from ray.tune.schedulers import ASHAScheduler
        from ray.tune.search.optuna import OptunaSearch
    except ImportError as error:
        raise ModuleNotFoundError(
            f"{error.name} is not installed, and tune needs it: pip install 'luna16_monai[tune]'"
        ) from error
    metric = plan.search.metric

    def trial(drawn: dict[str, Any]) -> None:
        run_trial(plan, ray_tune.get_context().get_trial_id(), drawn, stores, ray_tune.report)

    trainable = ray_tune.with_resources(trial, {"cpu": plan.threads, "gpu": plan.gpus})
    folder = plan.output / "ray"
    if ray_tune.Tuner.can_restore(str(folder)):
        tuner = ray_tune.Tuner.restore(str(folder), trainable, resume_unfinished=True, restart_errored=True)
    else:
        tuner = ray_tune.Tuner(
            trainable,
            param_space=plan.search.space(),
            tune_config=ray_tune.TuneConfig(
                num_samples=plan.trials,
                search_alg=OptunaSearch(seed=plan.seed),
                metric=metric,
                mode="max",
                scheduler=ASHAScheduler(
                    time_attr="epoch",
                    max_t=plan.max_epochs,
                    grace_period=min(plan.search.grace_period, plan.max_epochs),
                    reduction_factor=plan.search.reduction_factor,
                ),
            ),
            run_config=ray_tune.RunConfig(
                name=folder.name,
                storage_path=str(plan.output),
                failure_config=ray_tune.FailureConfig(max_failures=RETRIES),
                verbose=0,
            ),
        )
    for result in tuner.fit():
        if result.error is not None:
            logger.warning("a trial failed: %s", result.error)


def run_trial(
    plan: TunePlan,
    trial: str,
    drawn: Mapping[str, Any],
    stores: Mapping[str, Path],
    report: Callable[[dict[str, Any]], Any],
) -> None:
    """Train one trial, and tell the score of each epoch as it is written.

    Args:
        plan: of the search.
        trial: its identifier, the same when it is begun anew.
        drawn: what was drawn for it.
        stores: by spacing.
        report: takes ``epoch`` and the metric; it may raise, which stops the training in good order.

    Raises:
        RuntimeError: the training failed.
    """
    settings, folder = plan.search.settings(drawn), plan.trial_dir(trial)
    told = {"trial": trial, "drawn": dict(drawn), "settings": settings}
    write_json(plan.output / "trials" / f"{trial}.json", told)
    reported = 0

    def watch() -> None:
        nonlocal reported
        for epoch, score in scores(folder, plan.search.metric):
            if epoch > reported:
                reported = epoch
                report({"epoch": epoch, plan.search.metric: score})

    failure = run_job(plan.job(trial, settings, stores), watch)
    if failure is not None:
        raise RuntimeError(failure)
    watch()


def scores(folder: Path, metric: str) -> list[tuple[int, float]]:
    """The validated epochs of a run and their scores."""
    rows = read_history(folder / HISTORY)
    return [(int(row["epoch"]), float(row[metric])) for row in rows if row["split"] == "validation" and row.get(metric)]


def write_trials(plan: TunePlan) -> dict[str, Any]:
    """Write ``best.yaml``, ``trials.csv`` and ``trials.svg`` of the trials that have a score.

    Raises:
        RuntimeError: none has.
    """
    rows = []
    for path in sorted((plan.output / "trials").glob("*.json")):
        told = json.loads(path.read_text(encoding="utf-8"))
        if found := scores(plan.trial_dir(told["trial"]), plan.search.metric):
            epoch, score = max(found, key=lambda pair: pair[1])
            rows.append({**told, "score": score, "epoch": epoch, "epochs": found[-1][0]})
    if not rows:
        raise RuntimeError(f"no trial got a score: see the logs in {plan.output / 'logs'}")
    rows.sort(key=lambda row: -row["score"])
    _write_best(plan, rows[0], len(rows))
    _write_table(plan, rows)
    files = [BEST, TABLE, *([CHART] if _write_chart(plan, rows) else [])]
    best = {key: rows[0][key] for key in ("trial", "score", "epoch", "settings")}
    return {"metric": plan.search.metric, "trials": len(rows), "best": best, "files": files}


def _write_best(plan: TunePlan, best: Mapping[str, Any], trials: int) -> None:
    score = f"{plan.search.metric} {best['score']:.4f} after epoch {best['epoch']}"
    head = (
        f"# The best of {trials} trials: {score}, on the scans that it was chosen on.\n"
        "# python -m monai.bundle run training --config_file \"['.../configs/train.yaml','best.yaml']\"\n"
    )
    with atomic_write(plan.output / BEST) as stream:
        stream.write((head + yaml.safe_dump(best["settings"], sort_keys=False)).encode())


def _write_table(plan: TunePlan, rows: Sequence[Mapping[str, Any]]) -> None:
    keys = list(rows[0]["settings"])
    with atomic_write(plan.output / TABLE) as raw, io.TextIOWrapper(raw, "utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["trial", plan.search.metric, "best_epoch", "epochs", *keys])
        for row in rows:
            values = [json.dumps(row["settings"][key]) for key in keys]
            writer.writerow([row["trial"], row["score"], row["epoch"], row["epochs"], *values])


def _write_chart(plan: TunePlan, rows: Sequence[Mapping[str, Any]]) -> bool:
    try:
        from luna16_monai import charts
    except ModuleNotFoundError:
        logger.warning("no %s: it needs matplotlib: pip install 'luna16_monai[report]'", CHART)
        return False
    ranges = plan.search.ranges
    drawn = {name: [row["drawn"][name] for row in rows] for name in ranges}
    numbers = {
        name: ("log", *one["log_uniform"]) if "log_uniform" in one else ("linear", *one["uniform"])
        for name, one in ranges.items()
        if "choice" not in one
    }
    chart = charts.trials_chart(drawn, [row["score"] for row in rows], plan.search.metric, numbers)
    with atomic_write(plan.output / CHART) as stream:
        stream.write(charts.standalone(chart).encode())
    return True
