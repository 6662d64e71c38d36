"""predict and review: what is printed, and what is refused. Probabilities and the page are tested elsewhere."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from grand_challenge_schema import MULTIPLE_POINTS
from verb_calls import refused

from luna16_monai.interchange.formats import read, write
from luna16_monai.review.decisions import Decisions
from luna16_monai.review.session import Review
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


# --- other programs' formats ----------------------------------------------------------------------------------------


def converted(call, words: list[object], path: Path, format_: str) -> list[object]:
    """The same call with the candidates in another format."""
    table = words[words.index("--candidates") + 1]
    assert call("convert", "--input", table, "--output", path, "--to", format_)[0] == 0
    return [path if word == table else word for word in words]


@pytest.mark.parametrize(
    ("name", "format_"), [("a.json", "grand-challenge"), ("a.mrk.json", "slicer"), ("any.json", "monai")]
)
def test_predict_takes_candidates_in_any_format(call, words, tmp_path, name, format_):
    assert call(*words)[0] == 0
    expected = read_points(tmp_path / "out.csv", "probability")
    if format_ == "monai":
        write_points(tmp_path / "points.csv", ["a", "a"], [[5, 5, 5], [2, 6, 7]], [4.0, 5.0], "diameter_mm")
    code, _, _ = call(*converted(call, words, tmp_path / name, format_))
    assert code == 0
    found = read_points(tmp_path / "out.csv", "probability")
    assert found.points_xyz.tolist() == expected.points_xyz.tolist()
    assert found.values.tolist() == expected.values.tolist()


def test_predict_writes_by_suffix_and_format_wins(call, words, tmp_path):
    write_points(tmp_path / "points.csv", ["a", "a"], [[5, 5, 5], [2, 6, 7]], np.zeros(2), "class", diameter_mm=[4, -1])
    assert call(*words)[0] == 0
    expected = read_points(tmp_path / "out.csv", "probability").values
    at = words.index("--output") + 1
    words[at] = tmp_path / "a.json"
    code, out, err = call(*words)
    assert (code, out) == (0, f"predict: 2 probabilities in {tmp_path / 'a.json'}\n")
    assert "diameter_mm left out: grand-challenge cannot hold it" in err
    document = json.loads((tmp_path / "a.json").read_text())
    jsonschema.validate(document, MULTIPLE_POINTS)
    np.testing.assert_allclose([one["probability"] for one in document["points"]], expected)
    assert call(*words, "--format", "slicer")[0] == 0
    (marks,) = json.loads((tmp_path / "a.json").read_text())["markups"]
    assert [mark["position"] for mark in marks["controlPoints"]] == [[5, 5, 5], [2, 6, 7]]
    assert marks["controlPoints"][0]["description"].endswith("diameter_mm=4.0")
    refused(call(*words, "--format", "nifti"), "--format nifti: name one of luna16, grand-challenge")
    refused(call(*words, "--format", "lidc"), "format lidc is only read")
    write_points(tmp_path / "points.csv", ["a"], [[5, 5, 5]], [0], "class")
    refused(call(*words, "--format", "monai"), "points.csv has no diameters, so there are no boxes to write")


def test_predict_gives_each_ct_a_file_of_its_own(call, words, tmp_path, data):
    write_points(tmp_path / "points.csv", ["a", "b"], [[5, 5, 5], [2, 6, 7]], np.zeros(2), "class")
    words = [data if word == data / "subset0" / "a.mhd" else word for word in words]
    words[words.index("--output") + 1] = tmp_path / "marks.mrk.json"
    code, out, _ = call(*words)
    assert (code, out) == (0, f"predict: 2 probabilities in {tmp_path / 'marks'}\n")
    assert sorted(path.name for path in (tmp_path / "marks").iterdir()) == ["a.mrk.json", "b.mrk.json"]
    refused(call(*words), "marks is not empty", "name another --output, or empty it")


def test_predict_turns_ras_tables_alone(call, words, tmp_path):
    refused(call(*converted(call, words, tmp_path / "a.json", "grand-challenge"), "--ras"), "--ras is about a table")


def test_review_opens_points_of_any_format(data, tmp_path):
    write_points(tmp_path / "p.csv", ["a", "a"], [[5, 5, 5], [2, 6, 7]], [0.25, 0.75], "probability")
    ct = data / "subset0" / "a.mhd"
    shown = []
    for name in ("p.csv", "a.json", "a.mrk.json"):
        if name != "p.csv":
            write(tmp_path / name, read(tmp_path / "p.csv"))
        session = Review(tmp_path / name, [ct], Decisions(tmp_path / f"{name}.decisions.csv", "Anna"))
        shown.append([(one["series_uid"], one["point_xyz"], one["probability"]) for one in session.candidates])
    assert shown[0] == [("a", [2, 6, 7], 0.75), ("a", [5, 5, 5], 0.25)]
    assert shown[1] == shown[2] == shown[0]


# --- what is known of the list, and what would be lost ------------------------------------------------------------


def test_predict_keeps_the_lists_columns_behind_its_own(call, words, tmp_path):
    table = tmp_path / "points.csv"
    header = "id,seriesuid,path,coordX,coordY,coordZ,probability,class,diameter_mm,malignancy,note,id"
    rows = ["007,a,x,5,5,5,0.25,1,4.5,high,'é, \"two\"',1", "008,a,y,2,6,7,0.5,0,-1,,,2"]
    table.write_text("\n".join([header, *(row.replace("'é, \"two\"'", '"é, ""two"""') for row in rows)]) + "\n")
    assert call(*words, "--malignancy")[0] == 0
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as stream:
        written, *cells = csv.reader(stream)
    place, behind = written[:4], written[7:]
    assert place == ["seriesuid", "coordX", "coordY", "coordZ"]
    assert written[4:7] == ["probability", "calibrated_probability", "malignancy"]
    # what the list called probability is the detector's; another name that is taken is the list's
    assert behind == [
        "id", "path", "detection_probability", "class", "diameter_mm", "list_malignancy", "note", "list_id",
    ]  # fmt: skip
    assert cells[0][7:] == ["007", "x", "0.25", "1", "4.5", "high", 'é, "two"', "1"]
    assert cells[1][7:] == ["008", "y", "0.5", "0", "-1", "", "", "2"]
    # predicted once more: three names are taken
    table.write_bytes((tmp_path / "out.csv").read_bytes())
    assert call(*words)[0] == 0
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as stream:
        again = next(csv.reader(stream))
    ours, theirs = again[4:6], again[6:10]
    assert ours == ["probability", "calibrated_probability"]
    assert theirs == ["list_probability", "list_calibrated_probability", "malignancy", "id"]
    assert "detection_probability" in again


def test_predict_keeps_what_other_formats_know(call, words, tmp_path):
    write_points(tmp_path / "points.csv", ["a"], [[5, 5, 5]], [0.25], "probability", diameter_mm=[4.0])
    assert call(*converted(call, words, tmp_path / "a.mrk.json", "slicer"))[0] == 0
    with (tmp_path / "out.csv").open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert (row["detection_probability"], row["diameter_mm"]) == ("0.25", "4.0")


def test_predict_refuses_to_write_over_what_it_reads(call, words, tmp_path, data):
    table, output = tmp_path / "points.csv", words.index("--output") + 1
    before = table.read_bytes()
    (tmp_path / "linked.csv").symlink_to(table)
    for same in (table, tmp_path / "." / "points.csv", tmp_path / "linked.csv"):
        words[output] = same
        refused(call(*words), "points.csv", "would be lost", "name another file")
    words[output] = data / "subset0" / "a.mhd"
    refused(call(*words), "a.mhd", "would be lost")
    words[output] = tmp_path / "out.csv"
    refused(call(*words, "--dicom-sr", table), "--dicom-sr", "would be lost")
    refused(call(*words, "--dicom-sr", tmp_path / "out.csv"), "--output and --dicom-sr are both")
    assert table.read_bytes() == before
    assert not (tmp_path / "out.csv").exists()


def test_predict_refuses_a_folder_before_the_work(call, words, tmp_path):
    output = words.index("--output") + 1
    words[output] = tmp_path / "results"
    words[output].mkdir()
    refused(call(*words), "results is a folder", "name a file in it")
    words[output] = tmp_path / "points.csv" / "out.csv"
    refused(call(*words), "points.csv is a file, where a folder is needed")
    words[output] = tmp_path / "out.csv"
    refused(call(*words, "--explain", tmp_path / "points.csv"), "points.csv is a file, where a folder is needed")
