"""The cross-validation: which scans each fold sees, the audit, the pooled score, two folds whole, and ten."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_crossval import TINY, plan

from luna16_monai.bundle.folders import bundle_dir
from luna16_monai.cli import experiments as job_verbs
from luna16_monai.cli import main as cli
from luna16_monai.evaluation.submission import evaluate, validation_truth
from luna16_monai.experiments.crossval import crossval, pool
from luna16_monai.experiments.folds import VIEWS, Plan, audit_leakage
from luna16_monai.inference.views import NUMBERS
from luna16_monai.machine.files import write_json
from luna16_monai.machine.processes import run_tasks
from luna16_monai.runs.results import write_results
from luna16_monai.store.reading import Store
from luna16_monai.tables.lidc import Patients
from luna16_monai.tables.luna16 import read_annotations, read_candidates
from luna16_monai.tables.points import read_points

ROOT = Path(__file__).parents[2]


def fake_fold(one: Plan, fold: int, subsets: dict[str, int | None], probability: np.ndarray, line: tuple) -> None:
    """What a fold leaves: its training's record and choices, its subset's scores."""
    table = read_candidates(one.data_dir)
    test = sorted(uid for uid, subset in subsets.items() if subset == fold)
    rows = table.select(table.series_codes(test) >= 0)
    truth = validation_truth(one.data_dir, test, subsets)
    marks = read_points_of(rows, probability[: len(rows)])
    scored = evaluate(marks, truth, draws=20)
    told = {**scored.scores, "roc_auc": 0.5, "average_precision": 0.5, "loss": 1.0}
    write_results(one.fold_dir(fold) / "test", told, marks, marks.values, scored, rows.values.astype(int))
    rest = sorted(set(subsets) - set(test))
    sizes = {"series": 1, "candidates": 1, "positives": 1}
    data = {"name": "phantom", "kind": "synthetic", "train": sizes, "validation": sizes}
    series = {"train_series": rest[2:], "validation_series": rest[:2], "test_series": test}
    settings = {"max_epochs": 1, "test_subset": fold}
    versions = {"versions": {}, "device": "cpu", "threads": 1, "parameters": 1}
    write_json(one.fold_dir(fold) / "run.json", {"settings": settings, **versions, "data": {**data, **series}})
    slope, offset, cut = line
    chosen = {name: {"threshold": cut} for name in ("best_f1", "one_false_positive_per_scan")}
    fitted = {kind: {"slope": slope, "offset": offset} for kind in ("platt", "temperature")}
    inner = {"epoch": 3, "key_metric": "average_precision", "average_precision": 0.9}
    write_json(one.fold_dir(fold) / "metrics.json", {**inner, "calibration": fitted, "thresholds": chosen})


def read_points_of(rows: Any, probability: np.ndarray) -> Any:
    from dataclasses import replace

    return replace(rows, values=probability)


# --- what a fold is -------------------------------------------------------------------------------------------------


def test_plan_trains_without_the_subset_and_scores_it_once_afterwards(phantom_dir, store_dir, tmp_path):
    settings = {**TINY, "init_weights": "a.pt", "validation_negatives": "6"}
    job = plan(phantom_dir, store_dir, tmp_path, (4,), settings=settings).job(4)
    training, scoring = (dict(zip(words[9::2], words[10::2], strict=True)) for words in job.commands)
    assert (training["--test_subset"], training["--join_patients"], training["--resume"]) == ("4", "true", "true")
    assert (training["--init_weights"], training["--validation_stride"]) == ("a.pt", "3")
    # the scoring takes the same network and scans of the subset alone, all of their candidates, the fold's weights
    assert (scoring["--validation_subset"], scoring["--run_dir"]) == ("4", str(tmp_path / "fold_4"))
    assert scoring["--init_weights"] == str(tmp_path / "fold_4" / "model.pt")
    assert not {"--validation_negatives", "--validation_stride", "--test_subset"} & set(scoring)
    assert scoring["--shape_zyx"] == training["--shape_zyx"]
    assert job.done == tmp_path / "fold_4" / "test" / "metrics.json"


@pytest.mark.parametrize(
    ("folds", "settings", "message"),
    [
        ((), {}, r"folds \[\]: name some of 0 to 9"),
        ((1, 1), {}, r"folds \[1, 1\]: name some of 0 to 9, each once"),
        ((10,), {}, r"folds \[10\]"),
        ((1,), {"test_subset": "3"}, "test_subset is what each fold decides itself: leave it out of --set"),
    ],
)
def test_plan_refuses(folds, settings, message, phantom_dir, store_dir, tmp_path):
    with pytest.raises(ValueError, match=message):
        plan(phantom_dir, store_dir, tmp_path, folds, settings=settings)


def test_crossval_refuses_a_subset_that_is_not_prepared(phantom_dir, store_dir, tmp_path):
    with pytest.raises(ValueError, match=r"no CT of subset 9 is in .* \(found: \[0, 1, .*7\]\): prepare it too"):
        crossval(plan(phantom_dir, store_dir, tmp_path / "cv", (1, 9)), run_tasks, progress=False)
    assert not (tmp_path / "cv").exists()


def test_crossval_refuses_a_folder_with_other_settings_or_other_things(phantom_dir, store_dir, tmp_path):
    nothing = partial(lambda _, __: iter(()))
    with pytest.raises(FileNotFoundError):  # nothing was run, so there is nothing to audit
        crossval(plan(phantom_dir, store_dir, tmp_path / "cv", (0,)), nothing, progress=False)
    other = plan(phantom_dir, store_dir, tmp_path / "cv", (0,), settings={**TINY, "max_epochs": "2"})
    with pytest.raises(ValueError, match=r"holds a cross-validation with other settings, .*: name another --output"):
        crossval(other, nothing, progress=False)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "a").touch()
    with pytest.raises(FileExistsError, match="is not empty and holds no cross-validation"):
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


# --- the audit ------------------------------------------------------------------------------------------------------


@pytest.fixture
def faked(phantom_dir, store_dir, tmp_path) -> tuple[Plan, dict[str, int | None]]:
    """Two finished folds whose probabilities are made up: all 0.25 in fold 0, rising in fold 5."""
    one = plan(phantom_dir, store_dir, tmp_path / "cv", (0, 5))
    subsets = dict(Store(store_dir).subsets)
    fake_fold(one, 0, subsets, np.full(99, 0.25), (1.0, 0.0, 0.5))
    fake_fold(one, 5, subsets, np.linspace(0.1, 0.9, 99), (2.0, 0.0, 0.0))
    return one, subsets


def test_audit_lists_series_and_patients_of_every_split(faked):
    one, subsets = faked
    patients = Patients({uid: f"patient of {uid}" for uid in subsets})
    audit = audit_leakage(one, subsets, patients)
    assert (audit["problems"], audit["patients_in_two_tests"]) == ([], {})
    fold = audit["folds"]["5"]
    assert fold["test"]["series"] == [uid for uid, subset in subsets.items() if subset == 5]
    assert fold["test"]["patients"] == [f"patient of {uid}" for uid in fold["test"]["series"]]
    assert [len(fold[name]["series"]) for name in ("train", "validation", "test")] == [5, 2, 1]
    assert fold["left_out"] == []


def test_audit_finds_a_patient_in_two_splits_and_in_two_tests(faked):
    one, subsets = faked
    tests = [next(uid for uid, subset in subsets.items() if subset == fold) for fold in (0, 5)]
    audit = audit_leakage(one, subsets, Patients(dict.fromkeys(tests, "P")))
    assert audit["patients_in_two_tests"] == {"P": [0, 5]}
    # the scan of fold 5 is in a split of fold 0's training, and the other way round
    assert len(audit["problems"]) == 2
    assert all("patient P is in" in problem and problem.endswith("in test") for problem in audit["problems"])


def test_audit_finds_a_series_that_was_trained_on_and_scored(faked):
    one, subsets = faked
    path = one.fold_dir(0) / "run.json"
    run = json.loads(path.read_text())
    test = next(uid for uid, subset in subsets.items() if subset == 0)
    run["data"]["train_series"].append(test)
    run["data"]["test_series"] = []
    write_json(path, run)
    problems = audit_leakage(one, subsets, Patients())["problems"]
    assert f"fold 0: series {test} is in train and in test" in problems
    assert "fold 0: 1 series were scored and 0 kept out, subset 0 has 1" in problems


# --- the pooled score -----------------------------------------------------------------------------------------------


def test_pool_scores_all_scans_once_and_each_fold_on_its_own(faked):
    one, subsets = faked
    told = pool(one, subsets, draws=20)
    scans = sorted(uid for uid, subset in subsets.items() if subset in (0, 5))
    submission = read_points(one.output / "submission.csv", "probability")
    official = evaluate(submission, validation_truth(one.data_dir, scans, subsets), draws=20)
    assert (told["cpm"], told["cpm_ci95"]) == (official.scores["cpm"], official.scores["cpm_ci95"])
    assert told["scans"] == 2
    assert told["nodules"] == (read_annotations(one.data_dir).series_codes(scans) >= 0).sum()
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
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))

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


def test_a_fold_with_two_gpus_needs_a_bundle_that_says_how(phantom_dir, store_dir, tmp_path):
    mine = tmp_path / "mine"
    shutil.copytree(bundle_dir("malignancy_classification"), mine)
    assert "--nproc_per_node=2" in Plan(mine, phantom_dir, store_dir, tmp_path, (0,), gpus=2).job(0).commands[0]
    (mine / "configs" / "multi_gpu_train.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=r"multi_gpu_train\.yaml: name a bundle with"):
        Plan(mine, phantom_dir, store_dir, tmp_path, (0,), gpus=2)


def test_views_are_a_setting_of_the_scoring_alone(phantom_dir, store_dir, tmp_path):
    job = Plan(bundle_dir(), phantom_dir, store_dir, tmp_path, (0,), {"views": "16", "max_epochs": "1"}).job(0)
    training, scoring = job.commands
    assert "--views" not in training
    assert scoring[scoring.index("--views") + 1] == "16"
    assert "--max_epochs" in training
    with pytest.raises(ValueError, match="views 3: give one of 1, 2, 4, 8, 16"):
        Plan(bundle_dir(), phantom_dir, store_dir, tmp_path, (0,), {"views": "3"})
    assert tuple(map(str, NUMBERS)) == VIEWS


def test_record_tells_which_files_of_another_bundle_a_cross_validation_builds_on(phantom_dir, store_dir, tmp_path):
    """So that it does not go on where one of them has changed since."""
    first, second = (
        Plan(bundle_dir(name), phantom_dir, store_dir, tmp_path, (0,)).record()["configs_sha256"]
        for name in ("nodule_classification", "malignancy_classification")
    )
    assert {name for name in first if "/" in name} == set()
    assert {name for name in second if "/" in name} == {
        "nodule_classification/train.yaml",
        "nodule_classification/evaluate.yaml",
    }
    assert second["nodule_classification/train.yaml"] == first["train.yaml"] != second["train.yaml"]


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
        validation_truth(data, Store(store).series_uids, Store(store).subsets),
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
