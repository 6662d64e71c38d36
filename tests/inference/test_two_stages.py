"""Candidates are scored CT by CT, and both keep their order. The command is tested in tests/cli/test_detection.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from luna16_monai.detection.peaks import Found
from luna16_monai.inference.detect import Candidates
from luna16_monai.inference.two_stages import detect_and_score


class Volumes:
    series_uids = ("a", "b", "c")

    def require_inside(self, table):
        pass


class Detector:
    bundle, weights, classifier_weight = Path("bundle"), Path("model.pt"), 0.25

    def __init__(self, log):
        self.log = log

    def each(self, volumes, limit, lungs, progress):
        for uid, n in (("a", 2), ("b", 0), ("c", 1)):
            self.log.append(f"detect {uid}")
            points = np.arange(3.0 * n).reshape(n, 3)
            yield Candidates.of(uid, Found(points, np.linspace(0.9, 0.5, n), np.full(n, 6.0)), (), self.weights)


class Classifier:
    """The probability is a hundredth of x, plus a share of its own."""

    def __init__(self, log, share):
        self.log, self.share = log, share

    def preprocessing(self, volumes):
        return None

    def score_rows(self, table, rows, preprocessing, views, done):
        self.log.append(f"score {table.series_uids[table.series[rows[0]]]} with {views}")
        done(len(rows))
        return table.points_xyz[rows, 0] / 100 + self.share


def test_each_ct_is_scored_right_after_it_was_searched():
    log, volumes = [], Volumes()
    classifiers = [Classifier(log, 0.1), Classifier(log, 0.2)]
    found, listed, scored = detect_and_score(Detector(log), volumes, classifiers, [volumes, volumes], 4)
    assert log == [
        "detect a", "score a with 4", "score a with 4", "detect b", "detect c", "score c with 4", "score c with 4"
    ]  # fmt: skip
    assert listed.table.row_series() == ["a", "a", "c"]
    np.testing.assert_allclose(scored.values, [[0.1, 0.13, 0.1], [0.2, 0.23, 0.2]])
    assert listed.table.values.tolist() == [0.9, 0.5, 0.9]
    assert (found.empty, listed.without, listed.classifier_weight) == (("b",), ("b",), 0.25)
    assert (listed.detection, listed.detection_weights) == (Path("bundle"), Path("model.pt"))
