"""Which candidates a report shows."""

from __future__ import annotations

from pathlib import Path

from point_tables import point_table

from luna16_monai.evaluation.submission import ReferenceStandard, evaluate
from luna16_monai.report.gallery import Example, choose_examples
from luna16_monai.runs.results import read_results, write_results


class TestChooseExamples:
    def test_choose_examples_takes_the_worst_the_missed_and_a_sample(self, tmp_path: Path) -> None:
        # ten scans; the false positives at 0.8 and 0.3 are fewer than one a scan, so nothing is below the threshold
        # but the nodule that no candidate is on
        nodules = [("1.0", 0.0, 0, 0, 6.0), ("1.0", 50.0, 0, 0, 8.0), ("1.1", 0.0, 0, 0, 4.0), ("1.2", 0.0, 0, 0, 5.0)]
        marks = [
            ("1.0", 0.5, 0, 0, 0.9),
            ("1.0", 90.0, 0, 0, 0.3),
            ("1.1", 80.0, 0, 0, 0.8),
            ("1.1", 0.0, 0, 0, 0.7),
            ("1.2", 0.0, 0, 0, 0.6),
        ]
        truth = ReferenceStandard(tuple(f"1.{n}" for n in range(10)), point_table(nodules), None)
        table = point_table(marks)
        scored = evaluate(table, truth, draws=0)
        write_results(tmp_path, scored.scores, table, table.values, scored)
        assert choose_examples(read_results(tmp_path), per_kind=2) == [
            Example("false", "1.1", (80.0, 0.0, 0.0), 0.8, None, None),
            Example("false", "1.0", (90.0, 0.0, 0.0), 0.3, None, None),
            Example("missed", "1.0", (50.0, 0.0, 0.0), None, None, 8.0),
            Example("hit", "1.0", (0.5, 0.0, 0.0), 0.9, None, 6.0),
            Example("hit", "1.2", (0.0, 0.0, 0.0), 0.6, None, 5.0),
        ]

    def test_choose_examples_calls_missed_what_lies_below_one_false_positive_a_scan(self, tmp_path: Path) -> None:
        # two scans: the third false positive is one too many, so 0.7 is the threshold and the nodule at 0.4 is missed
        marks = [("1.0", x, 0, 0, p) for x, p in ((0.0, 0.4), (50.0, 0.9), (80.0, 0.7), (90.0, 0.6))]
        nodules = [("1.0", 0.0, 0, 0, 6.0), ("1.1", 0.0, 0, 0, 6.0)]
        table = point_table([*marks, ("1.1", 0.0, 0, 0, 0.95)])
        scored = evaluate(table, ReferenceStandard(("1.0", "1.1"), point_table(nodules), None), draws=0)
        write_results(tmp_path, scored.scores, table, table.values, scored)
        chosen = choose_examples(read_results(tmp_path))
        assert [(one.kind, one.probability) for one in chosen if one.kind != "false"] == [
            ("missed", 0.4),
            ("hit", 0.95),
        ]
