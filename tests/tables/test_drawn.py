"""What drawn scans are drawn from, as a table."""

from __future__ import annotations

import pytest

from luna16_monai.tables.drawn import Drawn, drawn_near, read_drawn, write_drawn

ONE = Drawn("synthetic", 2, 5, 11, "", ("LIDC-IDRI-0001", "LIDC-IDRI-0007"))


def test_drawn_comes_back_by_series(tmp_path):
    assert read_drawn(tmp_path) == {}
    write_drawn(tmp_path, {"b": ONE, "a": Drawn("background", 2, 5, 0, "f00", ())})
    assert (tmp_path / "drawn.csv").read_text("utf-8").splitlines() == [
        "seriesuid,kind,recipe,seed,number,background,patients",
        "a,background,2,5,0,f00,",
        "b,synthetic,2,5,11,,LIDC-IDRI-0001 LIDC-IDRI-0007",
    ]
    assert read_drawn(tmp_path) == {"a": Drawn("background", 2, 5, 0, "f00", ()), "b": ONE}


def test_drawn_near_a_ct_is_found_from_its_subset(tmp_path):
    write_drawn(tmp_path, {"b": ONE})
    (tmp_path / "subset3").mkdir()
    for path in (tmp_path, tmp_path / "b.mhd", tmp_path / "subset3" / "b.mhd"):
        assert drawn_near([path]) == {"b": ONE}
    assert drawn_near([tmp_path.parent / "elsewhere" / "c.mhd"]) == {}


def test_read_drawn_names_the_line_that_is_wrong(tmp_path):
    write_drawn(tmp_path, {"b": ONE})
    path = tmp_path / "drawn.csv"
    path.write_text(path.read_text("utf-8").replace(",11,", ",eleven,"), "utf-8")
    with pytest.raises(ValueError, match=r"drawn\.csv, line 2: a value is missing or no number"):
        read_drawn(tmp_path)
    path.write_text("seriesuid,recipe\n", "utf-8")
    with pytest.raises(ValueError, match="column kind is missing"):
        read_drawn(tmp_path)
