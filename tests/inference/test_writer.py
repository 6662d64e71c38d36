"""The table that ``run inference`` writes, and the candidates that it reads."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from drawn_scans import ORIGIN_XYZ, random_hu, write_scan
from ignite.engine import Engine
from point_tables import point_table

from luna16_monai.bundle.folders import bundle_dir
from luna16_monai.dataset.candidates import CandidateList
from luna16_monai.inference.writer import PredictionWriter, candidates_of
from luna16_monai.store.in_memory import InMemoryStore
from luna16_monai.tables.points import write_points


def rows(path):
    with path.open(encoding="utf-8", newline="") as stream:
        return [tuple(row.values()) for row in csv.DictReader(stream)]


def test_prediction_writer_puts_each_probability_beside_its_candidate(tmp_path):
    candidates = CandidateList(point_table([("b", 1, 2, 3, 0), ("a", 4, 5, 6, 1), ("a", 7, 8, 9, 0)]), False)
    # the third before the others; the probability is that of class 1
    batches = [{"candidate": torch.tensor([2, 0])}, {"candidate": torch.tensor([1])}]
    outputs = iter([torch.tensor([[0.75, 0.25], [0.5, 0.5]]), torch.tensor([[0.125, 0.875]])] * 2)
    engine = Engine(lambda _, batch: {"pred": next(outputs)})
    PredictionWriter(tmp_path / "out.csv", candidates).attach(engine)
    for _ in range(2):  # a second run begins anew
        engine.run(batches, max_epochs=1)
        found = [(uid, *map(float, numbers)) for uid, *numbers in rows(tmp_path / "out.csv")]
        assert found == [("b", 1, 2, 3, 0.5), ("a", 4, 5, 6, 0.875), ("a", 7, 8, 9, 0.25)]


def test_prediction_writer_leaves_no_file_of_a_run_that_failed(tmp_path):
    def fail(_, batch):
        raise RuntimeError("stopped")

    engine = Engine(fail)
    PredictionWriter(tmp_path / "out.csv", CandidateList(point_table([("a", 1, 2, 3, 0)]))).attach(engine)
    with pytest.raises(RuntimeError, match="stopped"):
        engine.run([{"candidate": torch.tensor([0])}])
    assert list(tmp_path.iterdir()) == []


def test_candidates_of_come_series_by_series_in_the_order_of_the_table(tmp_path):
    cts = [write_scan(tmp_path / "ct", uid, random_hu(seed)) for seed, uid in enumerate(("1.1", "1.2"))]
    volumes = InMemoryStore(cts, bundle_dir() / "configs" / "prepare.yaml", None)
    points = np.array(ORIGIN_XYZ) + [[1, 1, 2], [2, 1, 2], [3, 1, 2], [4, 1, 2]]
    write_points(tmp_path / "candidates_V2.csv", ["1.2", "1.1", "1.2", "1.1"], points, [0, 1, 1, 0], "class")
    found = [(item["series_uid"], item["point_xyz"][0] - ORIGIN_XYZ[0]) for item in candidates_of(tmp_path, volumes)]
    assert found == [("1.1", 2), ("1.1", 4), ("1.2", 1), ("1.2", 3)]
    write_points(tmp_path / "candidates_V2.csv", ["1.1"], [[0.0, 0.0, 0.0]], [0], "class")
    with pytest.raises(ValueError, match=r"candidate \(0\.0, 0\.0, 0\.0\) mm .*line 2\) lies outside series 1\.1"):
        candidates_of(tmp_path, volumes)
