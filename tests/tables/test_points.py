"""Tables of points: read strictly, joined by series, and written whole."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from point_tables import TABLE, point_table, write

from luna16_monai.tables.luna16 import (
    read_candidates,
)
from luna16_monai.tables.points import duplicate_rows, point_key, read_points, write_points


def test_read_points_reads_submissions(tmp_path):
    path = write(tmp_path, TABLE.replace("class", "probability").replace(",0\n", ",0.25\n"), "submission.csv")
    assert read_points(path, "probability").values.tolist() == [0.25, 1, 1]


def test_duplicate_rows_leaves_the_first_of_each():
    a, b = ("1.3.6", 1, 2, 3), ("1.3.9", 1, 2, 3)
    table = point_table([(*a, 1), (*b, 0), (*a, 1), (*b, 0), (*a, 1)])
    assert duplicate_rows(table).tolist() == [2, 3, 4]


@pytest.mark.parametrize("probability", ["-0.1", "1.5"])
def test_read_points_refuses_what_is_no_probability(tmp_path, probability):
    path = write(tmp_path, TABLE.replace("class", "probability").replace("2,3,1", f"2,3,{probability}"), "s.csv")
    with pytest.raises(ValueError, match=f"s.csv, line 3: probability is {probability}, expected a probability"):
        read_points(path, "probability")


def test_require_series_names_the_first_row_of_an_unknown_series(tmp_path):
    write(tmp_path, TABLE)
    table = read_candidates(tmp_path)
    table.require_series(["1.3.9", "1.3.6", "1.3.7"], "the store")
    with pytest.raises(ValueError, match=r"series 1\.3\.6 \(.*candidates_V2\.csv, line 3\) is not in the store: does"):
        table.require_series(["1.3.9"], "the store")


# --- joining --------------------------------------------------------------------------------------------------------


def test_series_codes_follows_the_other_list():
    table = point_table([("c", 0, 0, 0, 0), ("a", 0, 0, 0, 0), ("b", 0, 0, 0, 0), ("a", 0, 0, 0, 0)])
    assert table.series_codes(["b", "x", "a"]).tolist() == [-1, 2, 0, 2]


def test_select_takes_masks_and_indices():
    table = point_table([("a", 1, 0, 0, 0), ("b", 2, 0, 0, 1), ("a", 3, 0, 0, 1)])
    for rows in (np.array([True, False, True]), np.array([0, 2])):
        part = table.select(rows)
        assert part.points_xyz[:, 0].tolist() == [1, 3]
        assert part.values.tolist() == [0, 1]
        assert part.lines.tolist() == [2, 4]
        assert [part.series_uids[code] for code in part.series] == ["a", "a"]


# --- writing --------------------------------------------------------------------------------------------------------

series_names = st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="/\\"), min_size=1, max_size=40)
rows = st.tuples(
    series_names.filter(lambda uid: uid[0] != "."),
    *[st.floats(-5000, 5000)] * 3,
    st.floats(0, 1),
)


@given(st.lists(rows, max_size=20))
def test_write_points_is_read_back(written):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        write_points(path, [r[0] for r in written], [r[1:4] for r in written], [r[4] for r in written], "probability")
        table = read_points(path, "probability")
    assert [table.series_uids[code] for code in table.series] == [row[0] for row in written]
    # six decimals of the coordinates, every bit of the value
    expected = np.array([row[1:4] for row in written]).reshape(-1, 3)
    np.testing.assert_allclose(table.points_xyz, expected, rtol=0, atol=5.1e-7)
    assert table.values.tolist() == [row[4] for row in written]


def test_write_points_writes_luna16s_columns_and_further_ones(tmp_path):
    path = tmp_path / "table.csv"
    write_points(path, ["1.3.6"], [[1, -2.5, 1 / 3]], np.array([1]), "class", malignancy=np.array([0.5]))
    assert (
        path.read_text(encoding="utf-8")
        == "seriesuid,coordX,coordY,coordZ,class,malignancy\n1.3.6,1.000000,-2.500000,0.333333,1,0.5\n"
    )


def test_write_points_leaves_nothing_where_columns_differ_in_length(tmp_path):
    with pytest.raises(ValueError, match="zip"):
        write_points(tmp_path / "table.csv", ["1.3.6", "1.3.9"], [[1, 2, 3]], [0, 1], "class")
    assert list(tmp_path.iterdir()) == []


# --- rows -----------------------------------------------------------------------------------------------------------


def test_point_key_is_that_of_the_written_table(tmp_path):
    point = (-0.0, -1e-9, 1.23456789)
    assert point_key("1.2", point) == ("1.2", "0.000000", "0.000000", "1.234568")
    write_points(tmp_path / "t.csv", ["1.2"], [point], [1], "class")
    assert read_points(tmp_path / "t.csv", "class").row_key(0) == point_key("1.2", point)


def test_row_series_names_the_series_of_each_row(tmp_path):
    table = read_points(write(tmp_path, TABLE), "class")
    assert table.row_series() == ["1.3.9", "1.3.6", "1.3.9"]
    assert table.select(np.array([1])).row_series() == ["1.3.6"]
    assert table.row_key(0) == ("1.3.9", "-10.500000", "20.000000", "-300.250000")


def test_require_series_tells_of_one_name_in_two_forms_of_unicode(tmp_path):
    composed, parted = "M\u00fcller", "Mu\u0308ller"
    path = tmp_path / "points.csv"
    path.write_text(f"seriesuid,coordX,coordY,coordZ\n{composed},1,2,3\n", encoding="utf-8")
    with pytest.raises(ValueError, match="is not in the store: ") as caught:
        read_points(path, None).require_series([parted], "the store")
    told = str(caught.value).split("the store: ")[1]
    assert told.startswith(r"'Mu\u0308ller' there and 'M\xfcller' here are one name in two forms of Unicode: rename")
