"""What demo --detection scores and tells."""

from __future__ import annotations

import json

import numpy as np

from luna16_monai.evaluation.submission import evaluate, validation_reference
from luna16_monai.experiments import detection_demo
from luna16_monai.store.reading import Store
from luna16_monai.tables.luna16 import read_annotations
from luna16_monai.tables.points import write_points

NUMBERS = ("10", "25", "50", "100", "200")


def test_blobs_are_in_order_inside_the_lungs_and_four_millimetres_apart(store_dir):
    store = Store(store_dir)
    blobs = detection_demo.blob_candidates(store, store.series_uids[:2])
    for number in range(2):
        rows = blobs.series == number
        assert 20 < rows.sum() <= detection_demo.LIMIT
        # the first of a scan has rank 0: 1 / 2
        assert blobs.values[rows][:3].tolist() == [1 / 2, 1 / 3, 1 / 4]
        points = blobs.points_xyz[rows]
        gaps = np.linalg.norm(points[:, None] - points, axis=2) + 100 * np.eye(len(points))
        assert gaps.min() >= 4


def test_blobs_lie_on_nodules_as_they_are_in_the_world(store_dir, phantom_dir):
    store = Store(store_dir)
    blobs = detection_demo.blob_candidates(store, store.series_uids)
    scores = evaluate(blobs, validation_reference(phantom_dir, store.series_uids), draws=0).scores
    # a point turned round or moved by a voxel's half would be on hardly any
    assert scores["sensitivity_at_candidates"]["200"] > 0.4


def test_score_writes_three_lists_scores(phantom_dir, store_dir, tmp_path):
    store = Store(store_dir)
    (tmp_path / "detector").mkdir()
    uids = store.series_uids
    detector = {"cpm": 0.4, "diameter_error_mm": {"median": 0.5, "p90": 1.25}, "lost_to_lung_mask": 1}
    (tmp_path / "detector" / "metrics.json").write_text(json.dumps(detector))
    nodules = read_annotations(phantom_dir)
    write_points(
        tmp_path / "both_stages.csv", nodules.row_series(), nodules.points_xyz, np.full(len(nodules), 0.9),
        "probability", diameter_mm=nodules.values,
    )  # fmt: skip
    told = detection_demo.score(tmp_path, phantom_dir, store_dir, uids)
    # each nodule is marked at its middle and nothing else is
    assert told["both_stages"]["sensitivity_at_candidates"] == dict.fromkeys(NUMBERS, 1.0)
    assert told["detector"] == detector
    assert 0 < told["blob"]["cpm"] < 1
    assert {"metrics.json", "submission.csv", "candidates.csv", "blobs.csv"} <= {
        path.name for path in tmp_path.iterdir()
    }


def test_table_tells_sensitivity_of_each_list():
    one = {"sensitivity_at_candidates": dict.fromkeys(NUMBERS, 0.5), "cpm": 0.25, "cpm_ci95": [0.125, 0.375]}
    detector = {**one, "diameter_error_mm": {"median": 0.5, "p90": 1.25}, "lost_to_lung_mask": 2}
    text = detection_demo.table({"series": 4, "detector": detector, "both_stages": one, "blob": one})
    assert text.count("  0.500" * 5 + "   0.250 (0.125 to 0.375)") == 3
    assert "off by 0.50 mm (median; 90 %: 1.25 mm)" in text
    assert "2 nodules lie outside" in text
