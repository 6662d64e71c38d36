"""The script that chooses with which weight the classifier's logit counts behind the detector's."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from point_tables import point_table

from luna16_monai.tables.points import write_points

SCRIPT = Path(__file__).parents[1] / "tools" / "choose_classifier_weight.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("choose_classifier_weight", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tables(tmp_path):
    """A scan whose nodule the detector ranks behind a false positive, and the classifier before it."""
    write_points(tmp_path / "annotations.csv", ["s"], [[0, 0, 0]], [10], "diameter_mm")
    (tmp_path / "series.csv").write_text("s\n")
    for name, values in (("detected", [0.9, 0.5]), ("classified", [0.1, 0.8])):
        write_points(tmp_path / f"{name}.csv", ["s", "s"], [[90, 0, 0], [1, 0, 0]], values, "probability")
    return tmp_path


def test_each_weight_is_scored_and_the_highest_cpm_named(script, tables, monkeypatch, capsys):
    words = ["detected.csv", "classified.csv", "--annotations", "annotations.csv", "--seriesuids", "series.csv"]
    monkeypatch.chdir(tables)
    monkeypatch.setattr(sys, "argv", ["choose", *words, "--json"])
    script.main()
    told = json.loads(capsys.readouterr().out)
    # logits: 2.197 and 0 of the detector, -2.197 and 1.386 of the classifier
    # of both: 0.879 and 0.416 at 0.3, 0.439 and 0.555 at 0.4
    assert [row["classifier_weight"] for row in told["rows"]] == [k / 10 for k in range(11)]
    assert [row["cpm"] == 1 for row in told["rows"]] == [False] * 4 + [True] * 7
    assert told["best"] == 0.4
    assert {row["sensitivity_at_candidates"]["10"] for row in told["rows"]} == {1.0}
    monkeypatch.setattr(sys, "argv", ["choose", *words])
    script.main()
    assert "   0.4  1.000   1.000  1.000  1.000   highest CPM" in capsys.readouterr().out


def test_tables_of_other_points_are_refused(script):
    one, other = point_table([("s", 1, 0, 0, 0.5)]), point_table([("s", 1.1, 0, 0, 0.5)])
    with pytest.raises(ValueError, match="rows lists other points than rows: score that very list"):
        script.require_same_points(one, other)
