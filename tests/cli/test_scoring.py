"""evaluate, compare and report: what is printed, and what is refused. The scores themselves are tested elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from verb_calls import refused

from luna16_monai.tables.points import write_points

POINTS = "seriesuid,coordX,coordY,coordZ"


@pytest.fixture
def words(tmp_path: Path) -> list[object]:
    """Two scans with a nodule each of 10 mm; the options of the reference standard."""
    (tmp_path / "annotations.csv").write_text(f"{POINTS},diameter_mm\na,0,0,0,10\nb,50,0,0,10\n")
    (tmp_path / "excluded.csv").write_text(f"{POINTS},diameter_mm\na,-90,0,0,5\n")
    (tmp_path / "seriesuids.csv").write_text("a\nb\n")
    named = [f"--{name}={tmp_path / name}.csv" for name in ("annotations", "excluded", "seriesuids")]
    return [*named, "--bootstrap", 0]


@pytest.fixture
def both(tmp_path: Path) -> Path:
    """A submission that finds both nodules, with one false positive in each scan below them."""
    rows = ["a,0,0,0,0.9", "b,50,0,0,0.8", "a,90,0,0,0.2", "b,90,0,0,0.1"]
    (tmp_path / "both.csv").write_text("\n".join([f"{POINTS},probability", *rows]) + "\n")
    return tmp_path / "both.csv"


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """A submission that finds the first nodule alone, and has nothing else but one false positive below it."""
    rows = ["a,0,0,0,0.9", "b,90,0,0,0.1"]
    (tmp_path / "half.csv").write_text("\n".join([f"{POINTS},probability", *rows]) + "\n")
    return tmp_path / "half.csv"


def test_evaluate_prints_the_score_and_writes_the_tables(call, words, both, tmp_path):
    code, out, err = call("evaluate", *words, "--submission", both, "--output", tmp_path / "run")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    # both nodules lie above every false positive, so the sensitivity is 1 at each rate
    assert lines[0] == "evaluate: CPM 1.0000 on 2 scans with 2 nodules"
    assert lines[2].split() == ["sensitivity", *["1.0000"] * 7]
    # and the first of their scan each, so it is 1 among the first 10
    assert lines[3].split() == ["candidates", "a", "scan", "10", "25", "50", "100", "200"]
    assert lines[4].split() == ["sensitivity", *["1.0000"] * 5]
    assert lines[5:] == ["  1.0000 of the nodules have a candidate on them"]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (metrics["true_positives"], metrics["false_positives"], metrics["false_negatives"]) == (2, 2, 0)
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"metrics.json", "candidates.csv", "nodules.csv"}


def test_evaluate_prints_json_alone(call, words, half):
    code, out, err = call("evaluate", *words, "--submission", half, "--json")
    told = json.loads(out)
    assert (code, err) == (0, "")
    assert (told["true_positives"], told["false_positives"], told["false_negatives"]) == (1, 1, 1)
    assert (told["cpm"], told["cpm_ci95"]) == (0.5, None)


def test_evaluate_tells_the_error_of_diameters_and_what_a_lung_mask_loses(call, tmp_path):
    write_points(tmp_path / "n.csv", ["a", "b"], [[5, 5, 5], [2, 6, 7]], [4.0, 6.0], "diameter_mm")
    (tmp_path / "uids.csv").write_text("a\nb\n")
    # off by 1 and by 3 mm, and of the false positive nothing is told
    points, diameters = [[5, 5, 5], [2, 6, 7], [9, 9, 9]], [5.0, 3.0, -1.0]
    write_points(
        tmp_path / "s.csv", ["a", "b", "b"], points, [0.75, 0.5, 0.25], "probability", diameter_mm=diameters
    )  # fmt: skip
    masks = tmp_path / "masks"
    masks.mkdir()
    for uid, lung in (("a", slice(None)), ("b", slice(0, 6))):  # (2, 6, 7) mm lies at index 7 of z
        values = np.zeros((10, 10, 10), np.uint8)
        values[lung] = 1
        sitk.WriteImage(sitk.GetImageFromArray(values), str(masks / f"{uid}.mha"))
    words = ["evaluate", "--submission", tmp_path / "s.csv", "--annotations", tmp_path / "n.csv", "--no-excluded"]
    words += ["--seriesuids", tmp_path / "uids.csv", "--bootstrap", 0, "--lung-mask", masks]
    code, out, _ = call(*words, "--json")
    assert code == 0
    told = json.loads(out)
    assert told["diameter_error_mm"] == {"median": 2.0, "p90": pytest.approx(2.8), "nodules": 2}
    assert told["lost_to_lung_mask"] == 1
    lines = call(*words)[1].splitlines()
    assert lines[-2:] == [
        "  diameters are off by 2.00 mm in the median, 2.80 at the 90th %", "  1 nodules lie outside the lung masks"
    ]  # fmt: skip


def test_evaluate_refuses_tables_that_are_not_there_and_scans_that_are_not_listed(call, words, both, tmp_path):
    refused(call("evaluate", *words, "--submission", tmp_path / "no.csv"), "no file", "no.csv", "name a table")
    (tmp_path / "seriesuids.csv").write_text("a\n")
    refused(call("evaluate", *words, "--submission", both, "--output", tmp_path / "run"), "both.csv", "b")
    assert not (tmp_path / "run").exists()


def test_compare_prints_the_difference_and_writes_it(call, words, both, half, tmp_path):
    words = [*words[:-1], 20]
    more = ["--submission", half, "--submission", both, "--output", tmp_path / "out"]
    code, out, _ = call("compare", *words, *more)
    assert code == 0
    assert out.startswith("compare: CPM 0.5000 and 1.0000 on 2 scans, difference +0.5000 (95 % ")
    written = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert written["submissions"] == ["half.csv", "both.csv"]
    assert (written["cpm"], written["cpm_difference"]) == ([0.5, 1.0], 0.5)
    assert json.loads(call("compare", *words, *more, "--json")[1]) == written


@pytest.mark.parametrize("count", [1, 3])
def test_compare_takes_two_submissions(call, words, both, count):
    more = ["--submission", both] * count
    refused(call("compare", *words, *more), f"--submission is given {count} times", "compare takes it twice")


def test_report_writes_into_the_run_unless_told_otherwise(call, words, both, tmp_path):
    run = tmp_path / "run"
    call("evaluate", *words, "--submission", both, "--output", run)
    code, out, _ = call("report", "--run", run, "--store", tmp_path / "store")
    assert code == 0
    assert out.startswith(f"report: {run / 'report.html'} (")
    code, out, _ = call(
        "report", "--run", run, "--store", tmp_path / "store", "--output", tmp_path / "r.html", "--json"
    )
    assert code == 0
    assert json.loads(out)["megabytes"] > 0
    assert (tmp_path / "r.html").is_file()
    refused(call("report", "--run", tmp_path / "no"), "no")
