"""What a verb writes to: refused before any work where it is no place for it, or what is read would be lost."""

from __future__ import annotations

import numpy as np
import pytest
from verb_calls import refused

from luna16_monai.tables.points import write_points


@pytest.fixture
def tables(tmp_path):
    """A submission of one mark, and the tables to score it by."""
    write_points(tmp_path / "s.csv", ["a"], [[5, 5, 5]], [0.5], "probability")
    (tmp_path / "luna").mkdir()
    write_points(tmp_path / "luna" / "annotations.csv", ["a"], [[5, 5, 5]], [4], "diameter_mm")
    (tmp_path / "luna" / "seriesuids.csv").write_text("a\n")
    return tmp_path


def evaluate(tables, output, submission="s.csv"):
    luna = tables / "luna"
    return [
        "evaluate", "--submission", tables / submission, "--annotations", luna / "annotations.csv", "--no-excluded",
        "--seriesuids", luna / "seriesuids.csv", "--bootstrap", 0, "--output", output,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "verb",
    [
        ["phantom", "--output"],
        ["bundle", "--output"],
        ["prepare", "--data", "{data}", "--store"],
        ["demo", "--output"],
        ["crossval", "--output"],
        ["tune", "--trials", 1, "--output"],
        ["download", "--base-url", "http://127.0.0.1:9", "--output"],
        ["challenge", "--input", "{data}", "--output"],
    ],
)
@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_verbs_refuse_a_file_as_their_folder(call, data, tmp_path, verb, below):
    file = tmp_path / "file"
    file.write_text("kept")
    words = [str(word).format(data=data) for word in verb]
    refused(call(*words, file / below), f"{words[-1]}: {file} is a file, where a folder is needed", "name another path")
    assert file.read_text() == "kept"


@pytest.mark.parametrize(
    "verb",
    [
        ["detect", "--ct", "{data}/subset0/a.mhd", "--output"],
        ["export", "--format", "torchscript", "--output"],
        ["convert", "--input", "{data}/points.csv", "--to", "grand-challenge", "--output"],
        ["report", "--run", "{data}", "--output"],
    ],
)
def test_verbs_refuse_a_folder_as_their_file(call, data, tmp_path, verb):
    write_points(data / "points.csv", ["a"], [[5, 5, 5]], np.zeros(1), "class")
    words = [str(word).format(data=data) for word in verb]
    refused(call(*words, data), f"{data} is a folder", "name a file in it")


def test_verbs_refuse_to_write_over_what_they_read(call, data, tmp_path):
    table, weights = tmp_path / "points.csv", tmp_path / "model.pt"
    write_points(table, ["a"], [[5, 5, 5]], np.zeros(1), "class")
    weights.write_bytes(b"weights")
    before = table.read_bytes()
    ct = data / "subset0" / "a.mhd"
    refused(call("convert", "--input", table, "--output", table), "points.csv", "would be lost", "name another file")
    refused(call("detect", "--ct", ct, "--output", ct), "a.mhd", "would be lost")
    refused(call("export", "--format", "onnx", "--weights", weights, "--output", weights), "model.pt", "would be lost")
    (tmp_path / "metrics.json").write_text("{}")
    refused(call("report", "--run", tmp_path, "--output", tmp_path / "metrics.json"), "would be lost")
    assert (table.read_bytes(), weights.read_bytes()) == (before, b"weights")


def test_evaluate_keeps_the_tables_that_it_reads(call, tables):
    code, _, _ = call(*evaluate(tables, tables / "out"))
    assert code == 0
    # the submission under the name of what is written
    (tables / "candidates.csv").write_bytes((tables / "s.csv").read_bytes())
    refused(call(*evaluate(tables, tables, "candidates.csv")), "candidates.csv", "would be lost")
    # the data folder, where candidates.csv would be lost, which evaluate does not read
    (tables / "luna" / "seriesuids.csv").rename(tables / "luna" / "list.csv")
    words = [tables / "luna" / "list.csv" if word == tables / "luna" / "seriesuids.csv" else word
             for word in evaluate(tables, tables / "luna")]  # fmt: skip
    refused(call(*words), "is a data folder, whose tables would be lost")
