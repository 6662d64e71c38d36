"""The files of a scored run: what they hold, and that they are read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from point_tables import point_table
from scored_tables import MARKS, truth

from luna16_monai.evaluation.submission import evaluate
from luna16_monai.runs.results import read_results, write_results


class TestResults:
    def test_write_results_names_hits_by_row(self, tmp_path: Path) -> None:
        marks = point_table(MARKS)
        scored = evaluate(marks, truth(subsets={"1.1": 4, "1.2": 7}))
        write_results(tmp_path, scored.scores, marks, marks.values, scored, subsets=scored.truth.subsets)
        rows = [line.split(",")[4:] for line in (tmp_path / "candidates.csv").read_text(encoding="utf-8").splitlines()]
        assert rows == [
            ["probability", "status", "nodule", "diameter_mm", "subset"],
            ["0.9", "hit", "1", "6.0", "4"],
            ["0.3", "double", "1", "6.0", "4"],
            ["0.8", "on_excluded", "", "", "4"],
            ["0.4", "false_positive", "", "", "4"],
            ["0.2", "false_positive", "", "", "7"],
        ]
        assert (tmp_path / "nodules.csv").read_text(encoding="utf-8").splitlines()[1:] == [
            "1.1,0.000000,0.000000,0.000000,6.0,0.9,1,2,1,4",
            "1.1,50.000000,0.000000,0.000000,8.0,,,0,0,4",
        ]

    def test_read_results_gives_back_the_match(self, tmp_path: Path) -> None:
        marks = point_table(MARKS)
        scored = evaluate(marks, truth())
        write_results(tmp_path, {**scored.scores, "loss": float("nan")}, marks, marks.values, scored)
        back = read_results(tmp_path)
        assert back.match is not None
        for name in vars(scored.match):
            assert np.array_equal(getattr(back.match, name), getattr(scored.match, name)), name
        assert (back.metrics["loss"], back.metrics["cpm"], back.label) == (None, 0.5, None)

    def test_read_results_without_a_truth_has_labels_and_no_match(self, tmp_path: Path) -> None:
        marks = point_table(MARKS)
        write_results(tmp_path, {}, marks, marks.values, label=np.array([1, 1, 0, 0, 0]), calibrated=marks.values / 2)
        back = read_results(tmp_path)
        assert (back.match, back.label.tolist()) == (None, [1, 1, 0, 0, 0])  # type: ignore[union-attr]
        assert back.calibrated is not None
        assert back.calibrated.tolist() == [0.45, 0.15, 0.4, 0.2, 0.1]

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("metrics.json", "{", "metrics.json is damaged"),
            ("candidates.csv", None, "no candidates.csv in"),
            ("candidates.csv", "seriesuid,coordX\n1.1\n", "a row does not fit the header"),
            (
                "nodules.csv",
                "seriesuid,coordX,coordY,coordZ,diameter_mm,candidate,candidates_on_it,reached\n",
                "together",
            ),
            ("seriesuids.csv", "1.1\n", "'1.2' of the tables"),
        ],
    )
    def test_read_results_refuses_damage(self, tmp_path: Path, name: str, content: str | None, message: str) -> None:
        marks = point_table(MARKS)
        scored = evaluate(marks, truth())
        write_results(tmp_path, scored.scores, marks, marks.values, scored)
        if content is None:
            (tmp_path / name).unlink()
        else:
            (tmp_path / name).write_text(content)
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            read_results(tmp_path)
