"""convert and challenge: what is printed and written, and what is refused without writing anything."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import numpy as np
import pytest
from lidc_files import PATIENT, nodule, ring, roi, write_reads, write_series
from verb_calls import refused

from luna16_monai.cli.main import Interrupted, Terminated
from luna16_monai.inference.challenge import PORT_VARIABLE, ChallengeServer
from luna16_monai.tables.luna16 import read_annotations
from luna16_monai.tables.points import read_points, write_points


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "points.csv"
    write_points(path, ["a", "b"], [[5, 5, 5], [2, 6, 7]], [0.25, 0.5], "probability", diameter_mm=[4.0, 6.0])
    return path


def test_convert_there_and_back(call, table, tmp_path):
    code, out, err = call("convert", "--input", table, "--output", tmp_path / "boxes.json", "--to", "monai")
    assert (code, out, err) == (0, f"convert: 2 points, luna16 to monai, in {tmp_path / 'boxes.json'}\n", "")
    code, out, err = call("convert", "--input", tmp_path / "boxes.json", "--output", tmp_path / "back.csv", "--json")
    assert json.loads(out) == {
        "from": "monai", "to": "luna16", "points": 2, "series": 2,
        "files": [str(tmp_path / "back.csv")], "left_out": [],
    }  # fmt: skip
    back = read_points(tmp_path / "back.csv", "probability")
    assert (back.points_xyz.tolist(), back.values.tolist()) == ([[5, 5, 5], [2, 6, 7]], [0.25, 0.5])


def test_convert_says_what_is_left_out_and_where_several_files_are(call, table, tmp_path):
    code, out, err = call("convert", "--input", table, "--output", tmp_path / "gc.json")
    assert (code, out) == (0, f"convert: 2 points, luna16 to grand-challenge, in {tmp_path / 'gc'}\n")
    assert err == f"luna16: warning: {table}: diameter_mm left out: grand-challenge cannot hold it\n"
    assert sorted(path.name for path in (tmp_path / "gc").iterdir()) == ["a.json", "b.json"]


def test_convert_reads_voxels(call, data, tmp_path):
    """The CTs begin at (0, 0, 0) mm, with voxels of 1 mm."""
    write_points(tmp_path / "v.csv", ["a"], [[1, 3, 2]], [1], "class")
    words = ["convert", "--input", tmp_path / "v.csv", "--output", tmp_path / "mm.csv", "--ct", data, "--voxel", "zyx"]
    assert call(*words)[0] == 0
    assert read_points(tmp_path / "mm.csv", "class").points_xyz.tolist() == [[2, 3, 1]]


def test_convert_lidc_makes_a_data_folder(call, tmp_path):
    series = write_series(tmp_path / "lidc" / PATIENT)
    write_reads(series / "068.xml", [nodule(roi(1, ring((3, 7), (2, 6))), malignancy=4)] * 3)
    code, out, _ = call("convert", "--input", tmp_path / "lidc", "--output", tmp_path / "data")
    assert (code, out) == (0, f"convert: 1 nodules of 1 series in {tmp_path / 'data'}\n")
    assert len(read_annotations(tmp_path / "data")) == 1


def test_convert_luna25_makes_a_data_folder_or_a_table(call, tmp_path):
    header = "SeriesInstanceUID,StudyDate,CoordX,CoordY,CoordZ,PatientID,NoduleID,AnnotationID,label"
    (tmp_path / "train.csv").write_text(f"{header}\na,19990102,1,2,3,100570,1,100570_1_19990102,1\n")
    words = ["convert", "--input", tmp_path / "train.csv", "--output"]
    code, out, err = call(*words, tmp_path / "data")
    assert (code, out) == (0, f"convert: 1 nodules of 1 series in {tmp_path / 'data'}\n")
    assert "a diameter of 10 mm is assumed" in err
    assert call(*words, tmp_path / "points.csv")[0] == 0
    assert (tmp_path / "points.csv").read_text().splitlines()[
        1
    ] == "a,1.000000,2.000000,3.000000,1,10.0,1.0,100570_1_19990102"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--from", "nifti"], ["'nifti' is no format: name one of luna16, grand-challenge"]),
        (["--to", "lidc"], ["format lidc is only read"]),
        (["--output", "out.txt"], ["'out.txt' says no format to write in"]),
        (["--input", "none.csv"], ["no file none.csv", "name a table that is there"]),
        (["--masks"], ["--masks of luna16", "leave --masks out"]),
        (["--from", "lidc"], ["is no folder", "LIDC-IDRI"]),
        (["--voxel", "zyx"], ["voxels need their CT: name it with --ct"]),
        (["--from", "monai"], ["save it as JSON anew"]),
        (["--from", "slicer"], ["save it as JSON anew"]),
    ],
)
def test_convert_refuses_and_writes_nothing(call, table, tmp_path, monkeypatch, words, parts):
    monkeypatch.chdir(tmp_path)
    refused(call("convert", "--input", table, "--output", tmp_path / "out.json", *words), *parts)
    assert [path.name for path in tmp_path.iterdir()] == ["points.csv"]


def test_convert_refuses_points_outside_their_ct(call, data, tmp_path):
    write_points(tmp_path / "far.csv", ["a", "a"], [[5, 5, 5], [500, 5, 5]], [1, 1], "class")
    words = ["convert", "--input", tmp_path / "far.csv", "--output", tmp_path / "out.json", "--ct", data]
    refused(call(*words), "(500.0, 5.0, 5.0) mm", "far.csv, line 3", "lies outside series a")
    write_points(tmp_path / "far.csv", ["c"], [[5, 5, 5]], [1], "class")
    refused(call(*words), "far.csv, line 2: c is none of the CTs (a, b): name its CT with --ct")
    assert not (tmp_path / "out.json").exists()


def test_evaluate_scores_boxes_as_their_table(call, tmp_path):
    """Of one nodule a box hits, of the other none: the same figures from a table and from MONAI's boxes."""
    write_points(tmp_path / "n.csv", ["a", "b"], [[5, 5, 5], [2, 6, 7]], [4.0, 6.0], "diameter_mm")
    (tmp_path / "uids.csv").write_text("a\nb\n")
    write_points(tmp_path / "s.csv", ["a", "b"], [[5, 5, 6], [9, 9, 9]], [0.75, 0.5], "probability", diameter_mm=[4, 5])
    assert call("convert", "--input", tmp_path / "s.csv", "--output", tmp_path / "s.json", "--to", "monai")[0] == 0
    scores = []
    for name in ("s.csv", "s.json"):
        words = ["evaluate", "--submission", tmp_path / name, "--annotations", tmp_path / "n.csv", "--no-excluded"]
        code, out, _ = call(*words, "--seriesuids", tmp_path / "uids.csv", "--bootstrap", 0, "--json")
        assert code == 0
        scores.append(json.loads(out))
    assert (scores[0]["true_positives"], scores[0]["false_positives"], scores[0]["nodules"]) == (1, 1, 2)
    for name in ("cpm", "true_positives", "false_positives", "sensitivity_at"):
        assert scores[0][name] == scores[1][name]


# --- challenge ------------------------------------------------------------------------------------------------------


def test_challenge_refuses_a_case_without_ct_or_list(call, tmp_path, data):
    (tmp_path / "in" / "images" / "ct").mkdir(parents=True)
    words = ["challenge", "--input", tmp_path / "in", "--output", tmp_path / "out", "--device", "cpu"]
    refused(call(*words), "images/*/*.mha: one CT a case is meant, found none: put one there")
    (tmp_path / "in" / "images" / "ct" / "a.mha").write_bytes(b"")
    # without a list they are looked for, by weights that have to be there
    refused(call(*words, "--detector-weights", "no.pt"), "no weights no.pt")
    assert not (tmp_path / "out").exists()


def test_challenge_refuses_a_port_that_is_none_or_taken(call, tmp_path, monkeypatch):
    words = ["challenge", "--serve", "--input", tmp_path, "--output", tmp_path, "--device", "cpu"]
    monkeypatch.setenv(PORT_VARIABLE, "http")
    refused(call(*words), f"{PORT_VARIABLE} is 'http'")
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        monkeypatch.setenv(PORT_VARIABLE, str(taken.getsockname()[1]))
        refused(call(*words), "cannot be used", f"set {PORT_VARIABLE}")


def test_download_lidc_refuses_options_of_luna16(call, tmp_path):
    refused(call("download", "--lidc", "--subset", 1, "--output", tmp_path), "--lidc with --subset")
    refused(call("download", "--patient", "LIDC-IDRI-0001", "--output", tmp_path), "--patient is about LIDC-IDRI")
    assert not np.size(list(tmp_path.iterdir()))


@pytest.mark.parametrize(("raised", "code"), [(Interrupted, 130), (Terminated, 143)])
def test_a_served_challenge_ends_by_the_signals_code(call, tmp_path, monkeypatch, raised, code):
    closed = []

    def serve(self):
        raise raised

    monkeypatch.setenv(PORT_VARIABLE, "0")
    monkeypatch.setattr("luna16_monai.inference.classifier.Classifier", lambda *_: None)
    monkeypatch.setattr(ChallengeServer, "serve_forever", serve)
    monkeypatch.setattr(ChallengeServer, "server_close", lambda self: closed.append(self.socket.close()))
    words = ["challenge", "--serve", "--input", tmp_path, "--output", tmp_path, "--device", "cpu"]
    done, out, err = call(*words)
    assert (done, len(closed), err.count("\n")) == (code, 1, 1)
    assert out.startswith("challenge: GET /health, POST /invoke on ")
