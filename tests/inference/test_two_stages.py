"""The detector's candidates are classified CT by CT, and come out as one table."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from luna16_monai.detection.peaks import Found
from luna16_monai.inference import two_stages
from luna16_monai.inference.detect import Candidates


def found(uid: str, *probabilities: float) -> Candidates:
    n = len(probabilities)
    return Candidates.of(uid, Found(np.full((n, 3), n, float), np.array(probabilities), np.full(n, 6.0)))


class TwiceAndHalf:
    """Scores of two classifiers: twice the detector's probability, and half of it."""

    def __init__(self, classifiers: object, stores: object, views: object) -> None:
        self.calls: list[tuple[str, ...]] = []

    def __call__(self, table: object) -> list[np.ndarray]:
        return [table.values * 2, table.values / 2]  # type: ignore[attr-defined]


def test_detect_and_score_joins_cts_in_the_order_of_the_series(monkeypatch):
    monkeypatch.setattr(two_stages, "Scorer", TwiceAndHalf)
    parts = [found("a", 0.4, 0.2), found("b"), found("c", 0.3)]
    detector = SimpleNamespace(each=lambda *_, **__: parts, weights=None, bundle=None, classifier_weight=0.5)
    volumes = SimpleNamespace(series_uids=("a", "b", "c"))
    candidates, listed, scored = two_stages.detect_and_score(detector, volumes, [1, 2], [3, 4])  # type: ignore[list-item, arg-type]
    assert candidates.table.row_series() == ["a", "a", "c"]
    assert candidates.table.values.tolist() == [0.4, 0.2, 0.3]
    assert listed.without == ("b",)
    assert listed.diameter_mm is not None
    assert listed.diameter_mm.tolist() == [6, 6, 6]
    assert [values.tolist() for values in scored.values] == [
        pytest.approx([0.8, 0.4, 0.6]),
        pytest.approx([0.2, 0.1, 0.15]),
    ]
