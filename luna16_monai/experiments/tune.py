"""Run a hyper-parameter search: its trials, the table of all trials, and the best one as an overlay.

What is tried stands in the bundle's ``configs/tune.yaml``; a trial is a training as a user could type it, with these
settings. The best one becomes an overlay that ``run training`` takes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from luna16_monai.experiments.search import BEST, LOGS, SPACING, TABLE, TunePlan
from luna16_monai.machine.claims import claim
from luna16_monai.machine.cluster import connected
from luna16_monai.machine.extras import require
from luna16_monai.machine.files import atomic_write, write_csv, write_json
from luna16_monai.machine.folder_lists import Folders
from luna16_monai.machine.jobs import last_line, run_job, shown
from luna16_monai.machine.processes import run_tasks
from luna16_monai.runs.folder import RunFolder
from luna16_monai.store.reading import Store
from luna16_monai.tables.data_sets import DataSets

logger = logging.getLogger(__name__)


def run_trial(
    plan: TunePlan,
    trial: str,
    drawn: Mapping[str, Any],
    stores: Mapping[str, Folders],
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
        RuntimeError: the training failed, or gave no score.
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
    if not reported:
        raise RuntimeError(f"trial {trial}: no epoch has a {plan.search.metric}, see {plan.output / LOGS}")


def scores(folder: Path, metric: str) -> list[tuple[int, float]]:
    """Return the validated epochs of a run and their scores."""
    history = RunFolder(folder).read_history()
    return [(row.epoch, row.scores[metric]) for row in history if row.split == "validation" and metric in row.scores]


def read_trials(plan: TunePlan) -> list[dict[str, Any]]:
    """Return the trials that have a score, the best one first.

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
        raise RuntimeError(f"no trial got a score: see the logs in {plan.output / LOGS}")
    return sorted(rows, key=lambda row: -row["score"])


def write_trials(plan: TunePlan) -> dict[str, Any]:
    """Write ``best.yaml`` and ``trials.csv`` of the trials that have a score, as `read_trials` gives them."""
    rows = read_trials(plan)
    _write_best(plan, rows[0], len(rows))
    _write_table(plan, rows)
    files = [BEST, TABLE]
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
    write_csv(
        plan.output / TABLE,
        ["trial", plan.search.metric, "best_epoch", "epochs", *keys],
        (
            [
                *(row[name] for name in ("trial", "score", "epoch", "epochs")),
                *(json.dumps(row["settings"][key]) for key in keys),
            ]
            for row in rows
        ),
    )


PLAN = "tune.json"
JOURNAL = "optuna.journal"
STUDY = "tune"
NAME = "trial"
RETRIES = 3


def tune(
    plan: TunePlan, address: str | None = None, workers: int = 1, dashboard: bool = False, progress: bool = True
) -> dict[str, Any]:
    """Run the trials that are not finished, and write the best one and the table of all.

    Args:
        plan: what to do.
        address: of a Ray cluster, see `cluster.connected`; None runs the trials on this machine, without Ray.
        workers: trials at once on this machine; a cluster runs as many as it has room for.
        dashboard: see `cluster.connected`.
        progress: whether a bar is shown, on a cluster Ray Tune's own table.

    Returns:
        ``best`` (``trial``, ``score``, ``epoch``, ``settings``), ``metric``, ``trials``, and the files written.

    Raises:
        ModuleNotFoundError: Optuna, or with an address Ray Tune, is not installed.
        ValueError: the output folder holds another search.
        RuntimeError: no trial got a score.
    """
    if address is None:
        require("tune", "tune", "optuna")
    else:
        require("tune,ray", "tune --ray", "optuna", "ray", "tensorboardX")
    record = {**plan.record(), "runs_on": "this machine" if address is None else "Ray"}
    claim(plan.output / PLAN, record, "search")
    if address is None:
        _search_here(plan, _prepare_stores(plan, progress), workers, progress)
    else:
        # Tune prints a banner, which is no result
        with connected(address, dashboard), contextlib.redirect_stdout(sys.stderr):
            _search_on_ray(plan, _prepare_stores(plan, progress), progress)
    return write_trials(plan)


def _prepare_stores(plan: TunePlan, progress: bool) -> dict[str, Folders]:
    """Return a store for each spacing that is tried, of several data folders one each; those at hand serve theirs."""
    wanted = plan.search.ranges.get(SPACING, {}).get("choice", [])
    folders = DataSets.of(plan.data_dir)
    stores: dict[str, Folders] = {json.dumps(Store(plan.store_dir).index["spacing_zyx"]): plan.store_dir}
    for spacing in wanted:
        if (key := json.dumps(spacing)) not in stores:
            # here, since they import MONAI and torch, which a search over other settings does without
            from luna16_monai.store.preparation import Preparation
            from luna16_monai.store.prepare import prepare

            recipe = Preparation.read(plan.bundle / "configs" / "prepare.yaml", spacing)
            name = "native" if spacing is None else "x".join(map(str, spacing))
            place = plan.output / "stores" / name
            places = [place] if len(folders) == 1 else [place / one for one in folders.names]
            logger.info("a store of spacing %s, which is tried", name)
            for data_dir, store_dir in zip(folders.folders, places, strict=True):
                prepare(data_dir, store_dir, recipe, allow_missing=True, progress=progress)
            stores[key] = places
    return stores


def _search_here(plan: TunePlan, stores: Mapping[str, Folders], workers: int, progress: bool) -> None:
    """Search by Optuna alone, whose journal holds what was drawn and is open to several processes."""
    import optuna

    drop_unfinished_line(plan.output / JOURNAL)
    study = optuna.create_study(
        storage=_journal(plan), study_name=STUDY, direction="maximize", load_if_exists=True, pruner=_pruner(plan)
    )
    ended = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    known = study.get_trials(deepcopy=False)
    done = {one.user_attrs[NAME] for one in known if one.state in ended}
    waiting = {one.user_attrs[NAME] for one in known if one.state == optuna.trial.TrialState.WAITING}
    begun = {one.user_attrs[NAME]: one.params for one in known if NAME in one.user_attrs}
    # what was stopped or failed is drawn again as it was, under its old name, and goes on
    for name, drawn in begun.items():
        if name not in done | waiting:
            study.enqueue_trial(drawn, user_attrs={NAME: name})
    todo = range(len(done), plan.trials)

    def tell() -> str:
        values = [one.value for one in study.get_trials(deepcopy=False) if one.value is not None]
        logs = sorted((plan.output / LOGS).glob("*.log"), key=lambda log: log.stat().st_mtime)[-max(1, workers) :]
        best = [f"best {max(values):.4f}"] if values else []
        return "; ".join([*best, *(f"{log.stem}: {last_line(log)[:60]}" for log in logs)])

    bar = tqdm(total=plan.trials, initial=len(done), desc="trials", unit="trial", disable=not progress)
    with bar, logging_redirect_tqdm(), shown(bar, tell):
        for failure in run_tasks(partial(_run_one_here, plan, dict(stores), len(known)), todo, workers):
            bar.update()
            if failure is not None:
                logger.warning("a trial failed: %s", failure)


def drop_unfinished_line(journal: Path) -> None:
    """Cut off what a killed process has left of a line: Optuna would write the next one behind it, and read neither.

    Under Optuna's own lock, which a killed process leaves behind for 30 s.
    """
    from optuna.storages.journal import JournalFileSymlinkLock

    if not journal.is_file():
        return
    lock = JournalFileSymlinkLock(str(journal))
    lock.acquire()
    try:
        content = journal.read_bytes()
        if not content.endswith(b"\n"):
            os.truncate(journal, content.rfind(b"\n") + 1)
    finally:
        lock.release()


def _run_one_here(plan: TunePlan, stores: Mapping[str, Folders], known: int, number: int) -> str | None:
    """Draw and run a trial; what went wrong, or None."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # each draw has a seed of its own, so that two processes do not draw the same
    seed = int(np.random.SeedSequence([plan.seed, known, number]).generate_state(1)[0])
    sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    study = optuna.load_study(study_name=STUDY, storage=_journal(plan), sampler=sampler, pruner=_pruner(plan))
    trial = study.ask()
    name = trial.user_attrs.get(NAME, f"{trial.number:05d}")
    trial.set_user_attr(NAME, name)

    def report(told: dict[str, Any]) -> None:
        trial.report(told[plan.search.metric], told["epoch"])
        if trial.should_prune():
            raise optuna.TrialPruned

    try:
        run_trial(plan, name, plan.search.draw(trial), stores, report)
    except optuna.TrialPruned:
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    except RuntimeError as error:
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return str(error)
    else:
        study.tell(trial, max(score for _, score in scores(plan.trial_dir(name), plan.search.metric)))
    return None


def _journal(plan: TunePlan) -> Any:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(plan.output / JOURNAL)))


def _pruner(plan: TunePlan) -> Any:
    from optuna.pruners import SuccessiveHalvingPruner

    return SuccessiveHalvingPruner(
        min_resource=min(plan.search.grace_period, plan.max_epochs), reduction_factor=plan.search.reduction_factor
    )


def _search_on_ray(plan: TunePlan, stores: Mapping[str, Folders], progress: bool) -> None:
    from ray import tune as ray_tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    def trial(drawn: dict[str, Any]) -> None:
        run_trial(plan, ray_tune.get_context().get_trial_id(), drawn, stores, ray_tune.report)

    trainable = ray_tune.with_resources(trial, {"cpu": plan.threads, "gpu": plan.gpus})
    folder = plan.output / "ray"
    if ray_tune.Tuner.can_restore(str(folder)):
        tuner = ray_tune.Tuner.restore(str(folder), trainable, resume_unfinished=True, restart_errored=True)
    else:
        tuner = ray_tune.Tuner(
            trainable,
            tune_config=ray_tune.TuneConfig(
                num_samples=plan.trials,
                search_alg=OptunaSearch(plan.search.draw, seed=plan.seed, metric=plan.search.metric, mode="max"),
                metric=plan.search.metric,
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
                verbose=int(progress),
            ),
        )
    for result in tuner.fit():
        if result.error is not None:
            logger.warning("a trial failed: %s", result.error)
