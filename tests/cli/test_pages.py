"""``luna16 predict --report``, with a list and without; ``luna16 review`` is tested beside its server."""

from __future__ import annotations

import json

import pytest

from luna16_monai.cli.main import main

pytest.importorskip("jinja2", reason="the report needs the extra 'report'")


def test_predict_writes_a_page_about_what_it_has_found(cts, weights, tmp_path, capsys):
    words = ["predict", "--ct", cts[0], "--output", tmp_path / "a.csv", "--max", 5, "--views", 1, "--threshold", 0]
    words += ["--detector-weights", weights, "--report", tmp_path / "a.html", "--malignancy", "--json"]
    assert main([str(word) for word in words]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["report"], told["shown"]) == (str(tmp_path / "a.html"), 5)
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert cts[0].stem in page
    assert page.count("data:image/jpeg") == 15
    for text in ("Diameter", "Malignancy", "Detector alone", "third", "For research, not for clinical use"):
        assert text in page
    assert str(tmp_path) not in page


def test_predict_refuses_a_page_that_cannot_be_made_and_writes_nothing(cts, tmp_path, capsys):
    def refused(*words: object) -> str:
        given = [*words, "--candidates", tmp_path / "c.csv", "--output", tmp_path / "a.csv"]
        assert main(["predict", *map(str, given)]) == 2
        return capsys.readouterr().err

    (tmp_path / "c.csv").write_text(f"seriesuid,coordX,coordY,coordZ\n{cts[0].stem},0,0,0\n")
    assert "about one CT, and --ct names 2" in refused("--ct", *cts, "--report", tmp_path / "a.html")
    assert "name a file of its own" in refused("--ct", cts[0], "--report", tmp_path)
    assert "name a file of its own" in refused("--ct", cts[0], "--report", tmp_path / "a.csv")
    assert "threshold 2" in refused("--ct", cts[0], "--report", tmp_path / "a.html", "--threshold", 2)
    assert [path.name for path in tmp_path.iterdir()] == ["c.csv"]
