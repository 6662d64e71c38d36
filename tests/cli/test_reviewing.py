"""``luna16 review`` without predictions: they are made first. The page itself is tested in tests/review."""

from __future__ import annotations

import csv
import json

import pytest

from luna16_monai.cli.main import main
from luna16_monai.ct.opening import open_ct
from luna16_monai.review.server import ReviewServer
from luna16_monai.tables.points import write_points


@pytest.fixture
def served(monkeypatch):
    """The servers that were started; each ends at once."""
    started = []

    def serve(self, tell):
        tell()
        started.append(self)
        self.server_close()

    monkeypatch.setattr(ReviewServer, "serve_until_stopped", serve)
    return started


def test_review_without_predictions_predicts_first(phantom_dir, weights, tmp_path, monkeypatch, capsys, served):
    monkeypatch.chdir(tmp_path)
    ct = sorted(phantom_dir.glob("subset*/*.mhd"))[0]
    words = ["review", "--ct", ct, "--detector-weights", weights, "--max", 4, "--views", 1, "--reviewer", "Anna"]
    assert main([*map(str, words), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    name = f"{ct.stem}_predictions.csv"
    assert (told["predictions"], told["candidates"]) == (name, 4)
    assert told["decisions"] == f"{ct.stem}_predictions_decisions.csv"
    with (tmp_path / name).open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    shown = served[0].review.candidates
    assert [one["diameter_mm"] for one in shown] == [float(row["diameter_mm"]) for row in rows]
    # a second call would write over what was decided about
    assert main([*map(str, words)]) == 2
    assert f"review it with --predictions {name}" in capsys.readouterr().err
    assert main(["review", "--ct", str(ct), "--predictions", name, "--reviewer", "Anna"]) == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--ras"], "--ras is about a table of predictions"),
        (["--port", "70000"], "port 70000"),
        (["--reviewer", "An\nna"], "reviewer"),
    ],
)
def test_review_refuses_before_it_predicts(phantom_dir, tmp_path, monkeypatch, capsys, served, more, message):
    monkeypatch.chdir(tmp_path)
    ct = sorted(phantom_dir.glob("subset*/*.mhd"))[0]
    assert main(["review", "--ct", str(ct), "--detector-weights", "nowhere.pt", *more]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert served == []
    assert not list(tmp_path.glob("*.csv"))


def test_review_takes_a_linked_ct_with_the_flag_that_its_line_names(phantom_dir, tmp_path, capsys, served):
    ct = sorted(phantom_dir.glob("subset*/*.mhd"))[0]
    (tmp_path / "here").mkdir()
    for path in (ct, ct.with_suffix(".raw")):
        (tmp_path / "here" / path.name).symlink_to(path)
    x, y, z = open_ct(ct).geometry.world_from_voxel([20, 20, 20])
    write_points(tmp_path / "p.csv", [ct.stem], [(x, y, z)], [0.5], "probability")
    words = ["review", "--ct", tmp_path / "here" / ct.name, "--predictions", tmp_path / "p.csv", "--reviewer", "Anna"]
    assert main([*map(str, words)]) == 2
    assert "--allow-symlinks" in capsys.readouterr().err
    assert main([*map(str, words), "--allow-symlinks"]) == 0
    assert len(served) == 1
