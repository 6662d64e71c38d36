"""The plan of a cross-validation: the jobs of its folds, what it refuses, and the audit."""

from __future__ import annotations

import json
import shutil

import pytest
from small_crossval import TINY, plan

from luna16_monai.bundle.folders import bundle_dir
from luna16_monai.experiments.folds import VIEWS, Plan, audit_leakage
from luna16_monai.inference.views import NUMBERS
from luna16_monai.machine.files import write_json
from luna16_monai.tables.lidc import Patients


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


def test_a_fold_with_two_gpus_needs_a_bundle_that_says_how(phantom_dir, store_dir, tmp_path):
    mine = tmp_path / "mine"
    shutil.copytree(bundle_dir("malignancy_classification"), mine)
    assert "--nproc_per_node=2" in Plan(mine, phantom_dir, store_dir, tmp_path, (0,), gpus=2).job(0).commands[0]
    (mine / "configs" / "multi_gpu_train.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=r"multi_gpu_train\.yaml: name a bundle with"):
        Plan(mine, phantom_dir, store_dir, tmp_path, (0,), gpus=2)


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


def test_views_are_a_setting_of_the_scoring_alone(phantom_dir, store_dir, tmp_path):
    job = Plan(bundle_dir(), phantom_dir, store_dir, tmp_path, (0,), {"views": "16", "max_epochs": "1"}).job(0)
    training, scoring = job.commands
    assert "--views" not in training
    assert scoring[scoring.index("--views") + 1] == "16"
    assert "--max_epochs" in training
    with pytest.raises(ValueError, match="views 3: give one of 1, 2, 4, 8, 16"):
        Plan(bundle_dir(), phantom_dir, store_dir, tmp_path, (0,), {"views": "3"})
    assert tuple(map(str, NUMBERS)) == VIEWS
