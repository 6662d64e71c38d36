"""Malignant against benign nodules: how they are scored, and what becomes of nodules on the whole way."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from one_volume import OneVolume
from point_tables import point_table

from luna16_monai.dataset.candidates import CandidateList
from luna16_monai.malignancy.labels import BENIGN, LEFT_OUT, MALIGNANT, MalignancyKinds
from luna16_monai.malignancy.scores import MalignancyScores, end_to_end
from luna16_monai.runs.folder import RunFolder
from luna16_monai.tables.lidc import write_readings
from luna16_monai.tables.points import write_points

pytest.importorskip("sklearn", reason="the ruler needs the extra 'baselines'")
SERIES = tuple(f"1.{number}" for number in range(8))
# in each series a malignant nodule of 12 mm, a benign one of 6 mm and an undecided one, 40 mm apart
NODULES = [(uid, 0.0, 0.0, z, d) for uid in SERIES for z, d in ((0.0, 12.0), (40.0, 6.0), (80.0, 9.0))]


def test_end_to_end_counts_every_nodule_once():
    kind = np.array([MALIGNANT, MALIGNANT, MALIGNANT, BENIGN, BENIGN, LEFT_OUT])
    found = np.array([False, True, True, True, False, True])
    called = np.array([True, False, True, True, False, True])
    table = end_to_end(kind, found, called, np.array([False, True]), np.array([True, True]))
    assert table == {
        "malignant": {"missed": 1, "benign": 1, "malignant": 1},
        "benign": {"missed": 1, "benign": 0, "malignant": 1},
        "non_nodule": {"missed": 1, "benign": 0, "malignant": 1},
    }


@pytest.fixture
def data_dir(tmp_path) -> Path:
    folder = tmp_path / "data"
    write_points(
        folder / "annotations.csv",
        [n[0] for n in NODULES],
        [n[1:4] for n in NODULES],
        [n[4] for n in NODULES],
        "diameter_mm",
    )
    ratings = [(5, 4, 4), (1, 2, 2), (3, 3, 3)] * len(SERIES)
    write_readings(
        folder / "nodule_readings.csv",
        [n[0] for n in NODULES],
        [n[3] for n in NODULES],
        [n[4] for n in NODULES],
        ratings,
    )
    return folder


def results(data_dir: Path, nodule_run: Path | None = None, **more: Any) -> tuple[MalignancyScores, CandidateList]:
    """The first six series are held out; two candidates lie on each nodule, the second one nearer to its middle."""
    rows = []
    for uid, x, y, z, diameter in NODULES[:18]:
        kind = {12.0: 1.0, 6.0: 2.0}.get(diameter)
        if kind:
            rows += [(uid, x + 2, y, z, kind), (uid, x + 1, y, z, kind)]
    rows += [(uid, x, 0.0, 0.0, 0.0) for uid in SERIES[:6] for x in (15.0, 16.0)]
    # of the last series' benign nodule no candidate is known
    rows = [row for row in rows if not (row[0] == SERIES[5] and row[4] == 2)]
    candidates = CandidateList(point_table(rows), positives_first=False)
    split = SimpleNamespace(train_series=SERIES[6:], validation_series=SERIES[:6], validation=candidates)
    kinds = MalignancyKinds(data_dir)
    handler = MalignancyScores(
        data_dir.parent,
        data_dir,
        OneVolume(),
        split,
        kinds,
        nodule_run,
        draws=50,
        **more,  # type: ignore[arg-type]
    )
    return handler, candidates


def test_malignancy_scores_score_each_nodule_by_its_nearest_candidate(data_dir):
    handler, candidates = results(data_dir)
    # the farther candidates would turn the order round
    near = candidates.table.points_xyz[:, 0] == 1
    malignant = candidates.kinds == 1
    probability = np.where(malignant == near, 0.8, 0.2)
    told = handler.score(probability)
    assert told["nodules"] == {"malignant": 6, "benign": 6, "left_out": 6, "unrated": 0, "without_candidate": 1}
    assert told["compared"]["network"]["roc_auc"] == 1
    assert told["compared"]["diameter"]["roc_auc"] == 1
    assert told["compared"]["diameter"]["behind_by"] == 0
    assert (told["patients"], told["rule"]) == (6, "median")
    assert "end_to_end" not in told
    rows = list(csv.DictReader((data_dir.parent / "rated_nodules.csv").open(encoding="utf-8")))
    assert len(rows) == 11
    assert [(row["label"], row["malignancy"], row["median_rating"], row["mean_hu"]) for row in rows[:2]] == [
        ("1", "0.8", "4.0", "50.0"),
        ("0", "0.2", "2.0", "-1000.0"),
    ]
    nodules = RunFolder(data_dir.parent).read_rated_nodules()
    assert nodules is not None
    assert nodules.columns["diameter_mm"][:2].tolist() == [12, 6]


def nodule_run(folder: Path, candidates: CandidateList, probability: np.ndarray) -> Path:
    table = candidates.table
    uids = [table.series_uids[code] for code in table.series]
    write_points(folder / "submission.csv", uids, table.points_xyz, probability, "probability")
    return folder


def test_malignancy_scores_follow_nodules_on_the_whole_way(data_dir, tmp_path):
    _, candidates = results(data_dir)
    kinds, x = candidates.kinds, candidates.table.points_xyz[:, 0]
    # the first network prefers the farther candidate, and misses the nodules of the first series
    first = np.select([x == 15, x == 16, x == 2], [0.5, 0.3, 0.9], 0.8)
    first[(candidates.table.series == 0) & (kinds > 0)] = 0.1
    handler, _ = results(data_dir, nodule_run(tmp_path / "first", candidates, first))
    # the second network is wrong about the favourites of the second series, and right about the nearer ones
    malignancy = np.where(kinds == 1, 0.9, 0.1)
    malignancy[(candidates.table.series == 1) & (x == 2)] = [0.1, 0.9]
    told = handler.score(malignancy)["end_to_end"]
    # six false positives on six scans, one a scan; 0.3 would bring twelve
    assert told["nodule_threshold"] == 0.5
    assert told["counts"]["malignant"] == {"missed": 1, "benign": 1, "malignant": 4}
    # the one without a candidate is missed too
    assert told["counts"]["benign"] == {"missed": 2, "benign": 3, "malignant": 1}
    assert told["counts"]["non_nodule"] == {"missed": 6, "benign": 6, "malignant": 0}


def test_malignancy_scores_refuse_a_nodule_run_that_does_not_fit(data_dir, tmp_path):
    _, candidates = results(data_dir)
    with pytest.raises(ValueError, match="nodule_run with validation_negatives 6: false positives a scan need all"):
        results(data_dir, tmp_path, validation_negatives=6)
    with pytest.raises(FileNotFoundError, match=r"no .*submission\.csv: name the output folder of a run"):
        results(data_dir, tmp_path / "nowhere")[0].score(np.full(len(candidates), 0.5))
    part = CandidateList(candidates.table.select(np.arange(3)), positives_first=False)
    run = nodule_run(tmp_path / "part", part, np.full(3, 0.5))
    with pytest.raises(
        ValueError, match=r"candidate \(1\.0, 0\.0, 40\.0\) mm of series 1\.0 is not in .*validated on the"
    ):
        results(data_dir, run)[0].score(np.linspace(0, 1, len(candidates)))
    (run / "run.json").write_text(json.dumps({"data": {"train_series": [SERIES[2]]}}), encoding="utf-8")
    with pytest.raises(
        ValueError, match=rf"{SERIES[2]} is in validation, and nodule_run .* saw it in training \(1 of 6"
    ):
        results(data_dir, run)


def test_malignancy_scores_are_a_part_of_the_metrics(data_dir):
    part, candidates = results(data_dir)
    probability = np.where(candidates.kinds == 1, 0.9, 0.1)
    told = part(probability)
    assert list(told) == ["malignancy"]
    assert told["malignancy"]["compared"]["network"]["roc_auc"] == 1
    assert not (data_dir.parent / "metrics.json").exists()


def test_read_rated_nodules_of_a_run_without_them_is_none(tmp_path):
    assert RunFolder(tmp_path).read_rated_nodules() is None
    (tmp_path / "rated_nodules.csv").write_text("seriesuid,label\na,x\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"rated_nodules\.csv is damaged"):
        RunFolder(tmp_path).read_rated_nodules()
