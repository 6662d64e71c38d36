"""predict and review: what is printed, and what is refused. Probabilities and the page are tested elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from verb_calls import refused

from luna16_monai.tables.points import read_points, write_points


@pytest.fixture
def words(data: Path, tmp_path: Path) -> list[object]:
    """A prediction for two candidates of the first CT."""
    points = tmp_path / "points.csv"
    write_points(points, ["a", "a"], [[5, 5, 5], [2, 6, 7]], np.zeros(2), "class")
    output = tmp_path / "out.csv"
    return [
        "predict",
        "--ct",
        data / "subset0" / "a.mhd",
        "--candidates",
        points,
        "--output",
        output,
        "--device",
        "cpu",
    ]


def test_predict_writes_a_row_for_each_candidate(call, words, tmp_path):
    output = tmp_path / "out.csv"
    code, out, _ = call(*words)
    assert (code, out) == (0, f"predict: 2 probabilities in {output}\n")
    table = read_points(output, "probability")
    assert table.points_xyz.tolist() == [[5, 5, 5], [2, 6, 7]]
    assert np.all((table.values >= 0) & (table.values <= 1))
    code, out, _ = call(*words, "--json")
    assert code == 0
    assert isinstance(json.loads(out), dict)


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (["--candidates", "no.csv"], ["no file no.csv", "name a table that is there"]),
        (["--malignancy-weights", "a.pt"], ["--malignancy-weights without --malignancy", "add it"]),
        (["--bundle", "no_such"], ["no_such"]),
        (["--weights", "no.pt"], ["no.pt"]),
    ],
)
def test_predict_refuses(call, words, tmp_path, more, parts):
    refused(call(*words, *more), *parts)
    assert not (tmp_path / "out.csv").exists()


def test_review_refuses_predictions_that_are_not_there(call, data, tmp_path):
    words = ["--predictions", tmp_path / "no.csv", "--ct", data / "subset0" / "a.mhd"]
    refused(call("review", *words), "no file", "no.csv", "name a table that is there")
