"""Scoring against tables: the guards, the figures beside the score, the command and the bundle's config."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import monai
import numpy as np
import pytest
import torch
from monai.bundle import create_workflow
from point_tables import point_table
from scipy.special import ndtr
from scored_tables import EXCLUDED, MARKS, NODULES, truth

from luna16_monai.cli import main as cli
from luna16_monai.evaluation import submission as evaluation
from luna16_monai.evaluation.submission import (
    NO_EXCLUDED,
    ReferenceStandard,
    evaluate,
    read_subsets,
    validation_reference,
)
from luna16_monai.machine.files import write_json
from luna16_monai.networks.nodule_net import NoduleNet
from luna16_monai.runs.results import read_results
from luna16_monai.runs.seen import Seen, seen_beside, write_seen
from luna16_monai.tables.points import write_points

ROOT = Path(__file__).resolve().parents[2]
EVALUATE = ROOT / "bundles" / "nodule_classification" / "configs" / "evaluate.yaml"
COUNTS = ("nodules", "true_positives", "false_positives", "ignored_on_excluded", "ignored_double", "scored_candidates")


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    for name, rows, column in (
        ("annotations", NODULES, "diameter_mm"),
        ("annotations_excluded", EXCLUDED, "diameter_mm"),
        ("submission", MARKS, "probability"),
    ):
        points = [row[1:4] for row in rows]
        write_points(tmp_path / f"{name}.csv", [row[0] for row in rows], points, [row[4] for row in rows], column)
    (tmp_path / "seriesuids.csv").write_text("1.1\n1.2\n")
    return tmp_path


def call(verb: str, tables: Path, *more: object, excluded: bool = True) -> int:
    words = [verb, "--annotations", tables / "annotations.csv", "--seriesuids", tables / "seriesuids.csv", *more]
    words += ["--excluded", tables / "annotations_excluded.csv"] if excluded else ["--no-excluded"]
    return cli.main([str(word) for word in words])


class TestTruth:
    def test_truth_keeps_the_findings_of_the_listed_scans_alone(self) -> None:
        asked = truth()
        assert asked.nodules.values.tolist() == [6.0, 8.0]
        assert asked.excluded is not None
        assert asked.excluded.points_xyz[:, 0].tolist() == [100.0]

    def test_truth_without_a_nodule_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"no nodule of rows lies in the 1 scans"):
            truth(("1.2",))

    def test_truth_scan_subset_is_known_for_all_scans_or_for_none(self) -> None:
        known = truth(subsets={"1.1": 4, "1.2": 7, "1.9": 1}).scan_subset
        assert known is not None
        assert known.tolist() == [4, 7]
        assert truth(subsets={"1.1": 4}).scan_subset is None
        assert truth().scan_subset is None

    def test_validation_reference_gives_no_score_of_a_sample_of_negatives(self, phantom_dir: Path) -> None:
        assert validation_reference(phantom_dir, ["x"], validation_negatives=100) is None

    def test_validation_reference_tells_what_is_missing(self, tables: Path, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.WARNING)
        (tables / "annotations_excluded.csv").unlink()
        marked = validation_reference(tables, ["1.2", "1.1"])
        assert marked is not None
        assert (marked.series_uids, marked.excluded) == (("1.1", "1.2"), None)
        (tables / "annotations.csv").unlink()
        assert validation_reference(tables, ["1.1"]) is None
        assert [NO_EXCLUDED in caplog.messages[0], "no annotations.csv" in caplog.messages[1]] == [True, True]


class TestEvaluate:
    def test_evaluate_takes_a_match_that_is_known(self) -> None:
        marks = point_table(MARKS)
        match = truth().match(marks, marks.values)
        evaluation = evaluate(marks, truth(), 50, match=match)
        assert evaluation.match is match
        assert evaluation.scores == evaluate(marks, truth(), 50).scores

    def test_evaluate_tells_how_many_marks_fall_because_they_tie_at_the_limit(self) -> None:
        # 101 marks of one scan at the top: all of them fall, and with them the hit; the other scan keeps its 3
        tied = [("1.1", 200.0 + row, 0, 0, 1.0) for row in range(100)] + [("1.1", 1.0, 0, 0, 1.0)]
        others = [("1.2", float(row), 0, 0, 1.0) for row in range(3)]
        scores = evaluate(point_table(tied + others), truth(), 0).scores
        assert (scores["true_positives"], scores["scored_candidates"]) == (0, 3)
        (told,) = (text for text in scores["warnings"] if "fell" in text)
        assert told.startswith(
            "101 marks of 1 scans fell to the limit of 100 a scan, which leaves 0 there: LUNA16 keeps"
        )

    def test_evaluate_says_nothing_of_marks_beyond_the_limit_without_ties(self) -> None:
        marks = [("1.1", 200.0 + row, 0, 0, 1 - row / 200) for row in range(150)]
        scores = evaluate(point_table(marks), truth(("1.1",)), 0).scores
        assert (scores["scored_candidates"], scores["warnings"]) == (100, [])

    def test_evaluate_tells_of_one_subset_against_all_scans(self) -> None:
        scans = ("1.1", *(f"1.{number}" for number in range(3, 12) if number != 9))
        (told,) = evaluate(point_table(MARKS[:4]), truth(scans), 0).scores["warnings"]
        assert told.startswith("8 of 9 scans in the series list have no row in the submission")
        assert told.endswith("One subset is scored against the scans of that subset alone.")

    def test_evaluate_refuses_the_match_of_other_marks(self) -> None:
        marks = point_table(MARKS)
        match = truth().match(marks, marks.values)
        with pytest.raises(ValueError, match=r"match \(5 marks\) is not one of .* \(4 marks\)"):
            evaluate(point_table(MARKS[:4]), truth(), match=match)

    def test_evaluate_counts_each_kind_of_mark(self) -> None:
        scores = evaluate(point_table(MARKS), truth()).scores
        assert [scores[name] for name in COUNTS] == [2, 1, 2, 1, 1, 5]
        # one of two nodules above every false positive: sensitivity 1/2 at all seven rates
        assert (scores["cpm"], scores["warnings"], scores["duplicate_rows"]) == (0.5, [], 0)

    def test_evaluate_names_the_series_that_is_not_in_the_list(self) -> None:
        with pytest.raises(ValueError, match=r"series 1\.9 \(rows, line 3\) is not in the series list"):
            evaluate(point_table([MARKS[0], ("1.9", 0, 0, 0, 0.5)]), truth())

    def test_evaluate_refuses_a_submission_of_other_scans(self) -> None:
        with pytest.raises(ValueError, match=r"no series of rows \(1\) is in the series list \(2\)"):
            evaluate(point_table([("7.7", 0, 0, 0, 0.5)]), truth())

    def test_evaluate_refuses_an_empty_submission(self) -> None:
        with pytest.raises(ValueError, match="rows holds a header and no row"):
            evaluate(point_table([]), truth())

    def test_evaluate_says_how_many_scans_have_no_mark(self) -> None:
        scores = evaluate(point_table(MARKS[:4]), truth()).scores
        assert scores["scans_without_marks"] == 1
        assert scores["warnings"][0].startswith("1 of 2 scans in the series list have no row")

    def test_evaluate_counts_repeated_rows(self) -> None:
        scores = evaluate(point_table([*MARKS, MARKS[3], MARKS[3]]), truth()).scores
        assert (scores["duplicate_rows"], scores["false_positives"]) == (2, 4)
        assert scores["warnings"] == ["2 rows repeat the series and point of an earlier one: all were scored"]

    def test_evaluate_without_excluded_findings_is_marked_and_lower(self) -> None:
        scores = evaluate(point_table(MARKS), truth(excluded=False)).scores
        assert (scores["excluded_findings"], scores["false_positives"]) == (None, 3)
        assert scores["warnings"] == [NO_EXCLUDED]

    def test_evaluate_doubts_an_excluded_list_of_other_scans(self) -> None:
        other = ReferenceStandard(("1.1", "1.2"), point_table(NODULES), point_table([("1.9", 9.0, 0, 0, -1.0)]))
        assert (
            "none of the excluded findings lies in the scans"
            in evaluate(point_table(MARKS), other).scores["warnings"][0]
        )

    def test_evaluate_breaks_down_by_subset(self) -> None:
        subsets = evaluate(point_table(MARKS), truth(subsets={"1.1": 3, "1.2": 8})).scores["by_subset"]
        assert {name: (row["nodules"], row["cpm"]) for name, row in subsets.items()} == {"3": (2, 0.5), "8": (0, None)}

    def test_compare_of_a_submission_with_itself_is_zero_and_keeps_the_warnings(self) -> None:
        one = evaluate(point_table(MARKS[:4]), truth(), draws=0)
        result = evaluation.compare(one, one, draws=20)
        assert (result["cpm_difference"], result["cpm_difference_ci95"], result["scans"]) == (0.0, [0.0, 0.0], 2)
        assert [text[:20] for text in result["warnings"]] == ["first submission: 1 ", "second submission: 1"]

    def test_compare_tests_the_aucs_of_the_same_candidates_in_any_order(self) -> None:
        places = [("1.1", 0.0), ("1.1", 50.0), ("1.1", 60.0), ("1.2", 50.0), ("1.2", 90.0), ("1.1", 0.5)]
        nodules = point_table([("1.1", 0.0, 0, 0, 4.0)])
        truth = ReferenceStandard(("1.1", "1.2"), nodules, point_table([("1.2", 90.0, 0, 0, -1.0)]))
        # two on the nodule, three others, one on an excluded finding: 0.8 and 0.3 above 2 and 1 of 3: AUC 3/6; then all
        tables = [
            point_table([(uid, x, 0, 0, value) for (uid, x), value in zip(places, values, strict=True)][::step])
            for values, step in (([0.8, 0.9, 0.4, 0.2, 1.0, 0.3], 1), ([0.8, 0.1, 0.4, 0.2, 0.0, 0.9], -1))
        ]
        one, other = (evaluate(table, truth, draws=0) for table in tables)
        result = evaluation.compare(one, other, draws=20)
        assert result["roc_auc"] == [0.5, 1.0]
        assert result["roc_auc_difference"] == 0.5
        # share of others below each positive: 2/3, 1/3, then 1, 1; of positives above each other one: 0, 1/2, 1, then 0
        error = np.sqrt(np.var([1 / 3, 2 / 3], ddof=1) / 2 + np.var([1, 0.5, 0], ddof=1) / 3)
        assert result["delong_p"] == pytest.approx(2 * ndtr(-0.5 / error))
        back = evaluation.compare(other, one, draws=20)
        low, high = result["roc_auc_difference_ci95"]
        assert (back["roc_auc_difference"], back["roc_auc_difference_ci95"]) == (-0.5, [-high, -low])

    def test_compare_has_no_auc_of_other_candidates(self) -> None:
        one, other = (evaluate(point_table(MARKS[:number]), truth(), draws=0) for number in (4, 3))
        result = evaluation.compare(one, other, draws=20)
        assert [result[key] for key in ("roc_auc", "roc_auc_difference", "roc_auc_difference_ci95", "delong_p")] == [
            None
        ] * 4


class TestCommand:
    @pytest.mark.parametrize("case", ["small", "full"])
    def test_evaluate_equals_the_official_evaluator(
        self, shared: Callable[[str], Path], case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        froc, luna16 = shared("reference/froc"), shared("data/luna16")
        words = [
            "evaluate",
            "--submission",
            froc / f"{case}_submission.csv",
            "--annotations",
            luna16 / "annotations.csv",
        ]
        words += ["--excluded", luna16 / "annotations_excluded.csv", "--seriesuids", froc / f"{case}_seriesuids.csv"]
        words += ["--subsets", luna16 / "subsets.csv", "--output", tmp_path / "out", "--json"]
        assert cli.main([str(word) for word in words]) == 0
        printed = json.loads(capsys.readouterr().out)
        expected = json.loads((froc / f"{case}_expected.json").read_text(encoding="utf-8"))
        for name, value in expected.items():
            assert printed[name] == (pytest.approx(value, abs=1e-6) if name in ("cpm", "sensitivity_at") else value), (
                name
            )
        assert printed == json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
        assert printed["cpm_ci95"][0] < printed["cpm"] < printed["cpm_ci95"][1]
        assert sum(row["scans"] for row in printed["by_subset"].values()) == printed["scans"]

    def test_evaluate_prints_a_line_for_people(self, tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert call("evaluate", tables, "--submission", tables / "submission.csv", "--bootstrap", 0) == 0
        out = capsys.readouterr().out
        assert out.startswith("evaluate: CPM 0.5000 on 2 scans with 2 nodules\n")

    def test_evaluate_warns_on_standard_error_alone(self, tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert call("evaluate", tables, "--submission", tables / "submission.csv", "--json", excluded=False) == 0
        printed = capsys.readouterr()
        assert json.loads(printed.out)["warnings"] == [NO_EXCLUDED]
        assert printed.err == f"luna16: warning: {NO_EXCLUDED}\n"

    @pytest.mark.parametrize(
        ("name", "content", "told"),
        [
            ("submission.csv", "1.9,0,0,0,0.5\n1.1,0,0,0,0.5\n", "series 1.9"),
            ("submission.csv", "7.7,0,0,0,0.5\n", "no series of"),
            (
                "submission.csv",
                "",
                "submission.csv holds a header and no row: a submission has a row for each",
            ),
            ("submission.csv", "1.1,0,0,0,1.5\n", "line 2: probability is 1.5"),
            ("submission.csv", None, "no file"),
            ("annotations.csv", None, "the table of annotations"),
            ("annotations.csv", "1.9,0,0,0,5\n", "no nodule of"),
            ("seriesuids.csv", None, "the table of series"),
        ],
    )
    def test_evaluate_refuses_wrong_input(
        self, tables: Path, capsys: pytest.CaptureFixture[str], name: str, content: str | None, told: str
    ) -> None:
        if content is None:
            (tables / name).unlink()
        else:
            header = (tables / name).read_text(encoding="utf-8").splitlines()[0]
            (tables / name).write_text(f"{header}\n{content}")
        assert call("evaluate", tables, "--submission", tables / "submission.csv", "--output", tables / "out") == 2
        printed = capsys.readouterr()
        assert (printed.out, printed.err.count("\n")) == ("", 1)
        assert told in printed.err
        assert not (tables / "out").exists()

    def test_evaluate_wants_the_excluded_findings_or_to_be_told(self, tables: Path) -> None:
        words = ["evaluate", "--submission", "x", "--annotations", "x", "--seriesuids", "x"]
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        assert ended.value.code == 2

    def test_compare_tells_the_difference(self, tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
        worse = tables / "worse.csv"
        # the hit is the least probable of all: above it two false positives on two scans, so found at 1 a scan and more
        worse.write_text((tables / "submission.csv").read_text(encoding="utf-8").replace(",0.9", ",0.1"))
        both = ("--submission", worse, "--submission", tables / "submission.csv")
        assert call("compare", tables, *both, "--json", "--output", tables / "out", "--bootstrap", 50) == 0
        result = json.loads(capsys.readouterr().out)
        assert result["submissions"] == ["worse.csv", "submission.csv"]
        assert result["sensitivity_at_difference"]["0.125"] == pytest.approx(0.5)
        assert result["sensitivity_at_difference"]["8"] == 0
        assert json.loads((tables / "out" / "comparison.json").read_text(encoding="utf-8")) == result

    def test_compare_takes_two_submissions(self, tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert call("compare", tables, "--submission", tables / "submission.csv") == 2
        assert "compare takes it twice" in capsys.readouterr().err

    def test_read_subsets_of_a_table_and_of_a_data_folder(self, tmp_path: Path, phantom_dir: Path) -> None:
        (tmp_path / "subsets.csv").write_text("seriesuid,subset\n1.1,4\n")
        assert read_subsets(tmp_path / "subsets.csv") == {"1.1": 4}
        (tmp_path / "subsets.csv").write_text("seriesuid,subset\n1.1,four\n")
        with pytest.raises(ValueError, match=r"line 2: subset is 'four'"):
            read_subsets(tmp_path / "subsets.csv")
        assert sorted(read_subsets(phantom_dir).values()) == list(range(8))  # type: ignore[type-var]


class TestBundle:
    @pytest.fixture(autouse=True)
    def _as_before(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """The config changes what is global: the hook for errors, MONAI's metadata, torch's switches."""
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)
        benchmark = torch.backends.cudnn.benchmark
        yield
        monai.data.set_track_meta(True)
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = benchmark

    @pytest.fixture
    def settings(self, phantom_dir: Path, store_dir: Path, tmp_path: Path) -> dict[str, object]:
        torch.save(NoduleNet(return_probabilities=False).state_dict(), tmp_path / "model.pt")
        folders = {"dataset_dir": str(phantom_dir), "store_dir": str(store_dir), "run_dir": str(tmp_path)}
        return {**folders, "validation_stride": 3, "device": "cpu", "num_workers": 0, "bootstrap_draws": 20}

    def test_evaluating_writes_the_results(self, settings: dict[str, object], tmp_path: Path) -> None:
        write_seen(tmp_path / "model.pt", Seen.of(["elsewhere"], {}))
        workflow = create_workflow(config_file=str(EVALUATE), workflow_type="inference", logging_file=False, **settings)
        assert workflow.check_properties() == []
        workflow.run_id = "evaluating"
        workflow.run()
        results = read_results(tmp_path / "evaluation")
        assert results.match is not None
        assert results.label is not None
        assert results.metrics["scans"] == 3
        assert results.metrics["cpm"] is not None
        # what the weights have seen lies beside what they scored
        seen = seen_beside(tmp_path / "evaluation" / "submission.csv")
        assert seen is not None
        assert seen.has("elsewhere")

    def test_evaluating_refuses_scans_that_were_trained_on(self, settings: dict[str, object], tmp_path: Path) -> None:
        series = sorted(
            json.loads((Path(str(settings["store_dir"])) / "store.json").read_text(encoding="utf-8"))["series"]
        )
        write_json(tmp_path / "run.json", {"data": {"train_series": series[:1]}})
        with pytest.raises(RuntimeError) as failed:
            create_workflow(config_file=str(EVALUATE), workflow_type="inference", logging_file=False, **settings)
        assert f"series {series[0]} is in evaluation, and the run in" in str(failed.value.__cause__)
