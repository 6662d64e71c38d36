"""predict and review: what is printed, and what is refused. Probabilities and the page are tested elsewhere."""

from __future__ import annotations

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
