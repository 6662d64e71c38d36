"""The cross-validation: what it refuses, the pooled score, two folds whole, and ten."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_crossval import DETECTION, TINY, plan

from luna16_monai.bundle.folders import bundle_dir
from luna16_monai.cli import experiments as job_verbs
from luna16_monai.cli import main as cli
from luna16_monai.evaluation.submission import evaluate, validation_reference
from luna16_monai.experiments.crossval import crossval, pool
from luna16_monai.experiments.folds import Plan
from luna16_monai.machine.files import write_json
from luna16_monai.machine.processes import run_tasks
from luna16_monai.runs.folder import RunFolder
from luna16_monai.runs.seen import Seen, read_seen, write_seen
from luna16_monai.store.reading import Store
from luna16_monai.tables.data_sets import DataSets
from luna16_monai.tables.luna16 import read_candidates
from luna16_monai.tables.points import read_points, write_points

ROOT = Path(__file__).parents[2]


# --- what is refused ------------------------------------------------------------------------------------------------


def test_crossval_refuses_a_subset_that_is_not_prepared(phantom_dir, store_dir, tmp_path):
    with pytest.raises(ValueError, match=r"no CT of subset 9 is in .* \(found: \[0, 1, .*7\]\): prepare it too"):
        crossval(plan(phantom_dir, store_dir, tmp_path / "cv", (1, 9)), run_tasks, progress=False)
    assert not (tmp_path / "cv").exists()


def test_crossval_refuses_a_folder_with_other_settings_or_other_things(phantom_dir, store_dir, tmp_path):
    nothing = partial(lambda _, __: iter(()))
    with pytest.raises(FileNotFoundError):  # nothing was run, so there is nothing to audit
        crossval(plan(phantom_dir, store_dir, tmp_path / "cv", (0,)), nothing, progress=False)
    other = plan(phantom_dir, store_dir, tmp_path / "cv", (0,), settings={**TINY, "max_epochs": "2"})
    with pytest.raises(ValueError, match=r"holds a cross-validation of other settings \(settings: .*\): name another"):
        crossval(other, nothing, progress=False)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "a").touch()
    with pytest.raises(FileExistsError, match=r"is not empty \(it holds a\): that is no cross-validation"):
        crossval(plan(phantom_dir, store_dir, tmp_path / "used", (0,)), nothing, progress=False)


def test_crossval_refuses_weights_that_were_trained_on_a_test(phantom_dir, store_dir, tmp_path):
    test = next(uid for uid, subset in Store(store_dir).subsets.items() if subset == 4)
    write_json(tmp_path / "before" / "run.json", {"data": {"train_series": [test]}})
    settings = {**TINY, "init_weights": str(tmp_path / "before" / "model.pt")}
    one, other = (plan(phantom_dir, store_dir, tmp_path / "cv", folds, settings=settings) for folds in ((1, 4), (1,)))
    with pytest.raises(ValueError, match=rf"model.pt were trained on series {test} of subset 4, .* out of --folds"):
        crossval(one, run_tasks, progress=False)
    assert not (tmp_path / "cv").exists()
    with pytest.raises(FileNotFoundError):  # nothing is run here, so nothing is there to audit
        crossval(other, lambda *_: iter(()), progress=False)


def test_crossval_refuses_candidates_of_a_detector_that_saw_their_series(phantom_dir, store_dir, tmp_path):
    """Of a single fold the rows of its own test are not used."""
    subsets = Store(store_dir).subsets
    table = tmp_path / "found.csv"
    write_points(table, list(subsets), np.zeros((len(subsets), 3)), np.full(len(subsets), 0.5), "probability")
    write_seen(table, Seen.of([uid for uid, subset in subsets.items() if subset == 4], {}))
    settings = {**TINY, "candidates": str(table)}
    one, other = (plan(phantom_dir, store_dir, tmp_path / "cv", folds, settings=settings) for folds in ((1, 4), (4,)))
    with pytest.raises(ValueError, match=r"found.csv: series .* is one .* trained on \(1 of 8 series"):
        crossval(one, run_tasks, progress=False)
    assert not (tmp_path / "cv").exists()
    with pytest.raises(FileNotFoundError):  # nothing is run here, so nothing is there to audit
        crossval(other, lambda *_: iter(()), progress=False)
    words = other.job(4).commands
    assert [f"--candidates={table}" in " ".join(one) or str(table) in one for one in words] == [True, False]


# --- the pooled score -----------------------------------------------------------------------------------------------


def test_pool_scores_all_scans_once_and_each_fold_on_its_own(faked):
    one, subsets = faked
    told = pool(one, subsets, draws=20)
    scans = sorted(uid for uid, subset in subsets.items() if subset in (0, 5))
    submission = read_points(one.output / "submission.csv", "probability")
    official = evaluate(submission, validation_reference(one.data_dir, scans, subsets), draws=20)
    assert (told["cpm"], told["cpm_ci95"]) == (official.scores["cpm"], official.scores["cpm_ci95"])
    assert told["scans"] == 2
    assert told["nodules"] == (DataSets.of(one.data_dir).annotations().series_codes(scans) >= 0).sum()
    folds = [json.loads((one.fold_dir(fold) / "test" / "metrics.json").read_text())["cpm"] for fold in (0, 5)]
    assert [told["folds"][name]["cpm"] for name in ("0", "5")] == folds
    assert [told["by_subset"][name]["cpm"] for name in ("0", "5")] == pytest.approx(folds)
    # of two values the mean is half-way, and t with one degree of freedom is 12.706 at 97.5 %
    half = abs(folds[0] - folds[1]) / 2
    assert told["mean_of_folds"]["cpm"] == pytest.approx(sum(folds) / 2)
    assert told["mean_of_folds"]["cpm_ci95"] == pytest.approx(
        [sum(folds) / 2 - 12.7062 * half, sum(folds) / 2 + 12.7062 * half], abs=1e-4
    )


def test_pool_calibrates_and_cuts_by_what_the_inner_validation_chose(faked):
    one, subsets = faked
    told = pool(one, subsets, draws=0)
    rows = (one.output / "submission.csv").read_text().splitlines()
    assert rows[0].endswith("probability,calibrated_probability")
    raw, calibrated = np.array([row.split(",")[-2:] for row in rows[1:]], float).T
    first = raw == 0.25
    np.testing.assert_allclose(calibrated[first], 0.25)
    # slope 2 on the logit squares the odds: p² / (p² + (1 - p)²)
    odds = (raw[~first] / (1 - raw[~first])) ** 2
    np.testing.assert_allclose(calibrated[~first], odds / (1 + odds))
    # fold 0 cuts at 0.5, above all of it, fold 5 at 0, below all of it
    cut = told["thresholds"]["best_f1"]
    assert (cut["tp"] + cut["fp"], cut["tn"] + cut["fn"]) == ((~first).sum(), first.sum())
    assert told["thresholds"]["chosen_on"].startswith("the inner validation scans of each fold")


def test_pool_gives_no_cpm_where_no_fold_has_one(faked):
    """As with a bundle that tells malignant nodules from benign ones."""
    one, subsets = faked
    for fold in one.folds:
        path = one.fold_dir(fold) / "test" / "metrics.json"
        told = json.loads(path.read_text())
        write_json(path, {key: value for key, value in told.items() if key not in ("cpm", "cpm_ci95", "nodules")})
    told = pool(one, subsets, draws=20)
    assert "cpm" not in told
    assert told["mean_of_folds"] is None
    assert told["candidates"] > 0


def test_a_training_on_two_gpus_has_the_cores_of_two_processes(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)

    def asked(*words: str) -> tuple[int, dict[str, Any]]:
        options = cli.parser().parse_args(["crossval", "--output", "x", *words])
        return job_verbs._threads(options), job_verbs._execute(options).keywords

    assert asked("--workers", "2") == (8, {"workers": 2})
    assert asked("--workers", "2", "--gpus", "2") == (4, {"workers": 2})
    on_ray = {"address": "local", "dashboard": False}
    assert asked("--ray", "local", "--gpus", "2", "--threads", "3") == (3, {**on_ray, "cpus": 6, "gpus": 2})
    assert asked("--ray", "local", "--threads", "3") == (3, {**on_ray, "cpus": 3, "gpus": 0})


# --- whole ----------------------------------------------------------------------------------------------------------


def words(data: Path, store: Path, output: Path, *more: object) -> list[str]:
    settings = [f"{key}={value}" for key, value in TINY.items() if key != "device"]
    folders = ["--data", data, "--store", store, "--output", output]
    return [
        *("crossval", *map(str, folders), "--device", "cpu", "--threads", "1", "--bootstrap", "50"),
        *("--set", *settings, *map(str, more)),
    ]


def test_crossval_of_two_folds_from_the_command_line(phantom_dir, store_dir, tmp_path, capsys):
    output = tmp_path / "cv"
    call = words(phantom_dir, store_dir, output, "--folds", 0, 5, "--json")
    assert cli.main(call) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((output / "metrics.json").read_text())
    assert (told["pooled_folds"], told["scans"], sorted(told["folds"])) == ([0, 5], 2, ["0", "5"])
    audit = json.loads((output / "leakage.json").read_text())
    subsets = Store(store_dir).subsets
    for fold in ("0", "5"):
        splits = audit["folds"][fold]
        people = [set(splits[name]["patients"]) for name in ("train", "validation", "test")]
        assert sum(map(len, people)) == len(set.union(*people))
        assert splits["test"]["series"] == [uid for uid in sorted(subsets) if subsets[uid] == int(fold)]
    wanted = all(find_spec(name) for name in ("matplotlib", "jinja2"))
    assert (output / "report.html").is_file() == wanted
    if wanted:
        page = (output / "report.html").read_text(encoding="utf-8")
        assert "The scans are synthetic" in page
        assert 'id="folds"' in page
    # the second time nothing is run, and a fold's log has no new line
    log = (output / "logs" / "fold_0.log").read_bytes()
    assert cli.main([*call, "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out) == told
    assert (output / "logs" / "fold_0.log").read_bytes() == log


@pytest.mark.slow
def test_a_fold_with_two_gpus_is_trained_by_two_processes(phantom_dir, store_dir, tmp_path, monkeypatch):
    """On a CPU, which is told by the settings; the places of two GPUs are taken all the same."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    one = plan(phantom_dir, store_dir, tmp_path / "out", (0,), gpus=2)
    assert "--nproc_per_node=2" in one.job(0).commands[0]
    told = crossval(one, partial(run_tasks, workers=1), progress=False, draws=20)
    assert told["pooled_folds"] == [0]
    log = (tmp_path / "out" / "logs" / "fold_0.log").read_text(encoding="utf-8")
    assert log.count("training: loss") == 1


@pytest.mark.slow
def test_crossval_goes_on_after_a_kill_and_ends_as_if_nothing_had_happened(phantom_dir, store_dir, tmp_path):
    longer = ["max_epochs=3", "samples_per_epoch=40", "checkpoint_iterations=1"]
    straight, cut = (words(phantom_dir, store_dir, tmp_path / name, *longer, "--folds", 2) for name in "ab")
    run = [sys.executable, "-W", "ignore", "-m", "luna16_monai"]
    assert subprocess.run([*run, *straight], cwd=ROOT, check=False).returncode == 0
    process = subprocess.Popen([*run, *cut], cwd=ROOT)
    checkpoints = tmp_path / "b" / "fold_2" / "checkpoints"
    deadline = time.monotonic() + 300
    while not list(checkpoints.glob("iteration_*.pt")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "b" / "fold_2" / "test" / "metrics.json").exists()
    assert subprocess.run([*run, *cut], cwd=ROOT, check=False).returncode == 0
    assert "going on after iteration" in (tmp_path / "b" / "logs" / "fold_2.log").read_text(encoding="utf-8")
    one, other = ((tmp_path / name / "submission.csv").read_text() for name in "ab")
    assert one == other


@pytest.mark.slow
def test_crossval_of_the_detector_gives_the_classifier_its_candidates(phantom_dir, store_dir, tmp_path):
    """The commands of docs/crossval.md: two folds of the detector, whose tables a fold of the classifier trains on."""
    one = Plan(
        bundle_dir("nodule_detection"), phantom_dir, store_dir, tmp_path / "detector", (0, 5),
        {**DETECTION, "validation_stride": "3"},
    )  # fmt: skip
    told = crossval(one, partial(run_tasks, workers=1), progress=False, draws=20)
    assert (told["pooled_folds"], told["scans"]) == ([0, 5], 2)
    assert {"cpm", "nodules", "sensitivity_at_candidates"} <= set(told)
    subsets = Store(store_dir).subsets
    tables = [one.fold_dir(fold) / "test" / "submission.csv" for fold in one.folds]
    for fold, table in zip(one.folds, tables, strict=True):
        # the scored subset is not among what its detector has seen, and the record lies beside the table
        assert {subsets[uid] for uid in read_points(table, None).series_uids} == {fold}
        seen = read_seen(table)
        assert seen is not None
        assert {subsets[uid] for uid in seen.among(subsets, {})}.isdisjoint({fold})
    pattern = str(one.output / "fold_*" / "test" / "submission.csv")
    other = plan(phantom_dir, store_dir, tmp_path / "classifier", (2,), settings={**TINY, "candidates": pattern})
    assert crossval(other, partial(run_tasks, workers=1), progress=False, draws=20)["pooled_folds"] == [2]
    record = RunFolder(other.fold_dir(2)).read_record()
    assert record is not None
    assert record.settings["candidates"] == "submission.csv"
    assert record.data.train is not None
    proposed = [uid for table in tables for uid in read_points(table, None).row_series()]
    used = [uid for uid in proposed if uid in record.data.train_series]
    assert record.data.train["candidates"] > len(used) / 2 > 50
    # by weights that had seen the series of the second table, nothing begins
    write_seen(tables[1], Seen.of(read_points(tables[1], None).series_uids, {}))
    with pytest.raises(ValueError, match="is one that the weights which proposed its candidates were trained on"):
        crossval(replace(other, output=tmp_path / "mixed"), run_tasks, progress=False)


@pytest.mark.slow
def test_crossval_of_all_ten_folds(tmp_path):
    from luna16_monai.phantom.data_set import write_phantom
    from luna16_monai.phantom.nodules import ScanSettings
    from luna16_monai.store.preparation import Preparation
    from luna16_monai.store.prepare import prepare

    data, store = tmp_path / "data", tmp_path / "store"
    settings = ScanSettings(slices=(32, 40), rows=96, nodules=(2, 3), negatives_per_positive=4.0)
    write_phantom(data, scans=10, seed=3, workers=1, progress=False, settings=settings)
    prepare(data, store, Preparation.read(bundle_dir() / "configs" / "prepare.yaml"), workers=1, progress=False)
    told = crossval(plan(data, store, tmp_path / "cv", tuple(range(10))), partial(run_tasks, workers=2), False, 50)
    assert told["pooled_folds"] == list(range(10))
    assert told["scans"] == 10
    assert told["candidates"] == len(read_candidates(data))
    cpms = np.array([fold["cpm"] for fold in told["folds"].values()])
    # t with nine degrees of freedom is 2.2622 at 97.5 %
    reach = 2.2622 * cpms.std(ddof=1) / math.sqrt(10)
    mean = told["mean_of_folds"]
    assert [mean["cpm"], *mean["cpm_ci95"]] == pytest.approx(
        [cpms.mean(), cpms.mean() - reach, cpms.mean() + reach], abs=1e-4
    )
    official = evaluate(
        read_points(tmp_path / "cv" / "submission.csv", "probability"),
        validation_reference(data, Store(store).series_uids, Store(store).subsets),
        draws=50,
    )
    assert (told["cpm"], told["cpm_ci95"]) == (official.scores["cpm"], official.scores["cpm_ci95"])
    assert len(list((tmp_path / "cv" / "logs").glob("fold_*.log"))) == 10
    audit = json.loads((tmp_path / "cv" / "leakage.json").read_text())
    assert audit["problems"] == []
    tested = [uid for fold in audit["folds"].values() for uid in fold["test"]["series"]]
    assert len(tested) == len(set(tested)) == 10
    for fold in audit["folds"].values():
        split = [uid for name in ("train", "validation", "test") for uid in fold[name]["series"]]
        assert sorted(split) == sorted(tested)
    shutil.rmtree(tmp_path / "cv" / "fold_3" / "test")
    before = (tmp_path / "cv" / "submission.csv").read_text()
    crossval(plan(data, store, tmp_path / "cv", tuple(range(10))), run_tasks, False, 50)
    assert (tmp_path / "cv" / "submission.csv").read_text() == before
