"""What weights were trained on: recorded, handed on, found again and refused."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from luna16_monai.cli.main import main
from luna16_monai.phantom.drawn import Drawn, write_drawn
from luna16_monai.runs.folder import DataRecord, RunFolder, RunRecord
from luna16_monai.runs.seen import (
    Seen,
    copy_seen,
    read_seen,
    refuse_in_fold,
    refuse_seen,
    seen_beside,
    seen_file,
    tell_seen,
    write_seen,
    write_seen_by_all,
)
from luna16_monai.tables.points import write_points


def drawn(number: int, seed: int = 0, patients: tuple[str, ...] = ("P1",), **more) -> Drawn:
    return Drawn(**{"kind": "synthetic", "recipe": 2, "background": "", **more}, seed=seed, number=number,
                 patients=patients)  # fmt: skip


def test_seen_knows_its_series_and_no_other():
    seen = Seen.of(["1.2.3", "1.2.4"], {})
    assert seen.among(["1.2.2", "1.2.3", "1.2.4", "1.2"], {}) == ["1.2.3", "1.2.4"]


def test_seen_file_holds_no_series_and_another_salt_each_time(tmp_path):
    texts = []
    for name in ("a.pt", "b.pt"):
        write_seen(tmp_path / name, Seen.of(["1.2.840.7"], {}))
        texts.append((tmp_path / f"{name}.seen.json").read_text("utf-8"))
    assert "1.2.840.7" not in texts[0]
    hashes = [json.loads(text)["trained_on"][0]["series_sha256"][0] for text in texts]
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in hashes)
    assert hashes[0] != hashes[1]


def test_seen_over_three_generations_keeps_all(tmp_path):
    grandmother = Seen.of(["a"], {"a": drawn(0)})
    mother = Seen.of(["b"], {}, grandmother)
    write_seen(tmp_path / "model.pt", Seen.of(["c", "a"], {}, mother))
    seen = read_seen(tmp_path / "model.pt")
    assert seen is not None
    assert seen.among(["a", "b", "c", "d"], {}) == ["a", "b", "c"]
    # "a" is known already, and is not written twice
    assert (len(seen.series), seen.drawn) == (3, {drawn(0)})


def test_seen_finds_a_drawn_scan_under_another_name_by_its_anatomy():
    seen = Seen.of(["x"], {"x": drawn(7, patients=("P1", "P2"))})
    table = {
        "same": drawn(7, patients=("P9",)),
        "number": drawn(8, patients=("P9",)),
        "seed": drawn(7, seed=1, patients=("P2", "P3")),
        "recipe": drawn(7, recipe=1, patients=("P9",)),
        "kind": drawn(7, kind="background", background="f00", patients=("P9",)),
    }
    assert seen.among([*table, "unknown"], table) == ["same"]
    assert seen.sharing_shapes([*table, "unknown"], table) == ["seed"]


def test_read_seen_of_a_run_of_before_takes_its_run_json(tmp_path):
    run = RunFolder(tmp_path)
    assert read_seen(run.weights) is None
    data = DataRecord("scans", "real", train_series=("a", "b"))
    run.write_record(RunRecord({}, {}, "cpu", 1, 1, 1, data))
    run.record_file.write_text(json.dumps({"data": {"train_series": ["a", "b"]}}), "utf-8")
    seen = read_seen(run.weights)
    assert seen is not None
    assert seen.among(["a", "b", "c"], {}) == ["a", "b"]
    # other weights in the folder are not that run's
    assert read_seen(tmp_path / "other.pt") is None
    assert read_seen(None) is None


def test_copy_seen_goes_with_the_weights(tmp_path):
    write_seen(tmp_path / "model.pt", Seen.of(["a"], {"a": drawn(3)}))
    copy_seen(tmp_path / "model.pt", tmp_path / "out" / "net.onnx")
    assert read_seen(tmp_path / "out" / "net.onnx") == read_seen(tmp_path / "model.pt")
    # weights without a record must not inherit that of older ones of this name
    copy_seen(tmp_path / "unknown.pt", tmp_path / "out" / "net.onnx")
    assert not seen_file(tmp_path / "out" / "net.onnx").exists()


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"format": 2}', '{"format": 1, "trained_on": [1], "drawn": []}'])
def test_read_seen_refuses_damage(content, tmp_path):
    seen_file(tmp_path / "model.pt").write_text(content, "utf-8")
    with pytest.raises(ValueError, match=r"model\.pt\.seen\.json does not say what the weights were trained on"):
        read_seen(tmp_path / "model.pt")


def test_refuse_seen_names_series_split_and_how_many():
    seen = Seen.of(["b", "c", "x"], {"x": drawn(5)})
    with pytest.raises(ValueError, match=r"series b is in test, and first\.pt saw it in training \(2 of 3 series"):
        refuse_seen("first.pt", seen, {}, validation=["a"], test=["a", "b", "c"])
    with pytest.raises(ValueError, match=r"series y is in test, .* saw a scan that was drawn with the same anatomy"):
        refuse_seen("first.pt", seen, {"y": drawn(5)}, test=["y"])
    refuse_seen("first.pt", seen, {"y": drawn(6)}, validation=["a"], test=["y"])
    refuse_seen("first.pt", None, {}, test=["b"])


def test_tell_seen_counts_each_ct_once():
    one, other = Seen.of(["a", "b"], {"a": drawn(1)}), Seen.of(["b"], {})
    table = {"d": drawn(9)}
    assert tell_seen([one, other], ["a", "b", "c"], {}) == ("the weights have seen 2 of the 3 CTs at hand in training")
    assert tell_seen([one, None], ["c", "d"], table) == (
        "the weights have seen 0 of the 2 CTs at hand in training; 1 more may hold nodules in shapes that they have "
        "seen; 1 of 2 weights have no record of what they were trained on"
    )
    assert tell_seen([None], ["a"], {}, "scans") == (
        "whether the weights have seen the scans is not known: 1 of 1 weights have no record of what they were "
        "trained on"
    )


def test_seen_beside_a_table_is_its_own_record_else_that_of_the_folder(tmp_path):
    write_seen(tmp_path / "model.pt", Seen.of(["a"], {}))
    table = tmp_path / "predictions.csv"
    found = seen_beside(table)
    assert found is not None and found.has("a")
    write_seen_by_all(table, [Seen.of(["b"], {}), Seen.of(["c"], {})])
    found = seen_beside(table)
    assert found is not None
    assert found.among(["a", "b", "c"], {}) == ["b", "c"]
    write_seen_by_all(table, [Seen.of(["b"], {}), None])
    assert not seen_file(table).exists()


def test_evaluate_says_how_many_of_the_scored_scans_the_weights_have_seen(tmp_path, capsys):
    data, run = tmp_path / "data", RunFolder(tmp_path / "run")
    points = np.array([[0.0, 0.0, 0.0], [50.0, 0.0, 0.0], [0.0, 50.0, 0.0]])
    write_points(data / "annotations.csv", ["a", "b", "c"], points, [6.0] * 3, "diameter_mm")
    write_points(run.submission_file, ["a", "b", "c"], points, [0.5] * 3, "probability")
    (data / "seriesuids.csv").write_text("a\nb\nc\n", "utf-8")
    write_drawn(data, {"c": drawn(4)})
    tables = ["--annotations", data / "annotations.csv", "--no-excluded", "--seriesuids", data / "seriesuids.csv"]
    call = [str(word) for word in ["evaluate", "--submission", run.submission_file, *tables, "--bootstrap", 0]]
    assert main(call) == 0
    assert "have seen" not in capsys.readouterr().err
    # "a" by its name, "c" by what it was drawn from
    write_seen(run.weights, Seen.of(["a", "other"], {"other": drawn(4)}))
    assert main(call) == 0
    assert "the weights have seen 2 of the 3 scans that are scored in training" in capsys.readouterr().err


def test_refuse_in_fold_asks_each_table_for_the_series_that_its_weights_have_seen(tmp_path):
    """Two folds of a detector: each proposed candidates in what the other was trained on."""
    points = [[0, 0, 0], [1, 0, 0]]
    tables = [tmp_path / "fold_0.csv", tmp_path / "fold_1.csv"]
    for table, rows, trained in zip(tables, (["a", "b"], ["c", "d"]), (["c", "d"], ["a", "b"]), strict=True):
        write_points(table, rows, points, [0.5, 0.5], "probability")
        write_seen(table, Seen.of(trained, {}))
    records = refuse_in_fold(tables, ["a", "b", "c", "d"], {})
    assert [one.among(["a", "c"], {}) for one in records] == [["c"], ["a"]]
    write_seen(tables[1], Seen.of(["d"], {}))
    with pytest.raises(ValueError, match=r"fold_1.csv: series d is one .* trained on \(1 of 2 series that are used"):
        refuse_in_fold(tables, ["a", "c", "d"], {})
    # where the row of d is not used it does not matter
    assert len(refuse_in_fold(tables, ["a", "c"], {})) == 2


def test_refuse_in_fold_finds_a_drawn_scan_by_its_anatomy(tmp_path):
    write_points(tmp_path / "a.csv", ["new"], [[0, 0, 0]], [0.5], "probability")
    write_seen(tmp_path / "a.csv", Seen.of(["old"], {"old": drawn(3)}))
    with pytest.raises(ValueError, match="series new is one that"):
        refuse_in_fold([tmp_path / "a.csv"], ["new"], {"new": drawn(3)})
    assert refuse_in_fold([tmp_path / "a.csv"], ["new"], {"new": drawn(4)})


def test_refuse_in_fold_wants_a_record_of_the_table_itself(tmp_path):
    """The weights that happen to lie in its folder need not be those that made it; a run's own submission is theirs."""
    write_seen(tmp_path / "model.pt", Seen.of(["x"], {}))
    for name in ("found.csv", "submission.csv"):
        write_points(tmp_path / name, ["a"], [[0, 0, 0]], [0.5], "probability")
    with pytest.raises(ValueError, match=r"found.csv: no found.csv.seen.json beside it says"):
        refuse_in_fold([tmp_path / "found.csv"], ["a"], {})
    assert refuse_in_fold([tmp_path / "submission.csv"], ["a"], {})[0].has("x")
