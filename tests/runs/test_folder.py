"""The files of a run folder, written and read back as records."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from point_tables import point_table

from luna16_monai.evaluation.calibration import Calibration
from luna16_monai.runs.folder import DataRecord, Epoch, RunFolder, RunRecord

PACKAGE = Path(__file__).parents[2] / "luna16_monai"
SIZES = {"series": 2, "candidates": 8, "positives": 3}


def record(**more) -> RunRecord:
    data = DataRecord("scans", "real", SIZES, SIZES, ("a", "b"), ("c", "d"), ())
    given = {"settings": {"spacing_zyx": [2, 1, 1]}, "versions": {"torch": "2"}, "device": "cpu"}
    return RunRecord(**{**given, "threads": 1, "processes": 2, "parameters": 6, "data": data, **more})


@pytest.mark.parametrize(
    "name",
    [
        *("model.pt", "metrics.json", "submission.csv", "candidates.csv", "rated_nodules.csv"),
        *("history.csv", "run.json", "report.html"),
    ],
)
def test_run_folder_alone_names_its_files(name):
    # a name in prose stands between back quotes, a name in code between quotation marks
    literal = re.compile(rf"""(?<!`)["']{re.escape(name)}["']""")
    owners = {"runs/folder.py"}
    if name == "candidates.csv":
        owners |= {"tables/luna16.py", "setup/download.py", "setup/archives.py"}  # LUNA16's first table of candidates
    if name == "model.pt":
        owners |= {"networks/export.py", "networks/weights.py"}  # a layer below
    found = {
        str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if literal.search(path.read_text("utf-8"))
    }
    assert "runs/folder.py" in found
    assert found <= owners


def test_write_metrics_makes_numbers_that_are_not_finite_null(tmp_path):
    run = RunFolder(tmp_path)
    written = run.write_metrics({"loss": math.nan, "folds": [1.0, math.inf], "epoch": 3})
    assert dict(written) == {"loss": None, "folds": [1.0, None], "epoch": 3}
    assert json.loads((tmp_path / "metrics.json").read_text("utf-8")) == dict(run.read_metrics()) == dict(written)


def test_metrics_have_attributes_for_what_others_read(tmp_path):
    platt = {"slope": 2, "offset": -1.5}
    metrics = RunFolder(tmp_path).write_metrics(
        {
            "epoch": 4,
            "key_metric": "cpm",
            "cpm": 0.5,
            "calibration": {"platt": platt, "raw": {"brier": 0.1}},
            "thresholds": {"chosen_on": "the split", "best_f1": {"threshold": 0.25, "f1": 1.0}},
        }
    )
    assert (metrics.epoch, metrics.key_metric, metrics.key_score) == (4, "cpm", 0.5)
    assert metrics.calibrations == {"platt": Calibration(2.0, -1.5)}
    assert metrics.operating_points == {"best_f1": 0.25}
    assert RunFolder(tmp_path).calibration() == Calibration(2.0, -1.5)


def test_metrics_without_a_calibration_say_why(tmp_path):
    run = RunFolder(tmp_path)
    assert run.calibration() is None
    metrics = run.write_metrics({"calibration": {"skipped": "too few"}, "thresholds": None})
    assert (metrics.calibrations, metrics.operating_points, run.calibration()) == ({}, {}, None)
    assert metrics.calibration_skipped == "too few"


@pytest.mark.parametrize("content", ["{", "3", '{"calibration": {"platt": {"slope": 1}}}', '{"calibration": 3}'])
def test_calibration_of_damaged_metrics_is_an_error(content, tmp_path):
    (tmp_path / "metrics.json").write_text(content, "utf-8")
    with pytest.raises(ValueError, match=r"metrics\.json holds no calibration that can be read"):
        RunFolder(tmp_path).calibration()


def test_record_comes_back_as_it_was_written(tmp_path):
    run = RunFolder(tmp_path)
    assert run.read_record() is None
    written = record(seen_series=("a", "b", "z"))
    run.write_record(written)
    assert run.read_record() == written
    assert run.seen_series() == ("a", "b", "z")
    assert list(json.loads((tmp_path / "run.json").read_text("utf-8"))) == [
        *("settings", "versions", "device", "threads", "processes", "parameters", "data", "seen_series"),
    ]


def test_record_of_before_seen_series_has_its_own_series(tmp_path):
    content = record().as_json()
    assert "seen_series" not in content
    (tmp_path / "run.json").write_text(json.dumps(content), "utf-8")
    assert RunFolder(tmp_path).seen_series() == ("a", "b")


def test_record_of_several_runs_tells_no_split(tmp_path):
    run = RunFolder(tmp_path)
    run.write_record(record(data=DataRecord("scans", "real")))
    assert json.loads((tmp_path / "run.json").read_text("utf-8"))["data"] == {"name": "scans", "kind": "real"}
    assert run.seen_series() == ()


def test_history_keeps_scores_that_an_epoch_has(tmp_path):
    run = RunFolder(tmp_path)
    epochs = [Epoch(1, "train", {"loss": 0.1, "learning_rate": 1e-05}), Epoch(1, "validation", {"loss": 1 / 3})]
    run.write_history(epochs)
    assert (tmp_path / "history.csv").read_text("utf-8").splitlines() == [
        "epoch,split,loss,learning_rate",
        "1,train,0.1,1e-05",
        "1,validation,0.3333333333333333,",
    ]
    assert run.read_history() == epochs


def test_submission_and_rated_nodules_come_back(tmp_path):
    run = RunFolder(tmp_path)
    marks = point_table([("a", 1.0, 2.0, 3.0, 12.0)])
    run.write_submission(marks, np.array([0.5]), np.array([0.25]))
    assert (tmp_path / "submission.csv").read_text("utf-8").splitlines() == [
        "seriesuid,coordX,coordY,coordZ,probability,calibrated_probability",
        "a,1.000000,2.000000,3.000000,0.5,0.25",
    ]
    assert run.read_submission().values.tolist() == [0.5]
    run.write_rated_nodules(marks, malignancy=[0.75], label=[1])
    nodules = run.read_rated_nodules()
    assert nodules is not None
    assert (nodules.label.tolist(), nodules.malignancy.tolist(), nodules.calibrated) == ([1], [0.75], None)
    assert nodules.columns["diameter_mm"].tolist() == [12.0]


def test_read_network_folds_the_norms_of_the_record(tmp_path):
    run = RunFolder(tmp_path)
    assert run.read_network() == {}
    run.write_record(record())
    assert run.read_network() == {}
    run.write_record(record(network_def={"norm": "BATCH", "bias": False, "spatial_shape_zyx": [8, 8, 8]}))
    assert run.read_network() == {
        "network_def": {"norm": None, "bias": True, "spatial_shape_zyx": [8, 8, 8]},
        "shape_zyx": [8, 8, 8],
        "spacing_zyx": [2, 1, 1],
    }
    run.write_record(record(network_def={"norm": None}))
    with pytest.raises(ValueError, match=r"run\.json does not say which network its weights belong to"):
        run.read_network()
