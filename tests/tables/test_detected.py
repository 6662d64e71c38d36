"""A detector's candidates: tables found by path and pattern, classes by LUNA16's rule, negatives replaced."""

from __future__ import annotations

import numpy as np
import pytest
from point_tables import point_table

from luna16_monai.tables.data_sets import DataSets
from luna16_monai.tables.detected import detected_tables, read_detected, with_detected
from luna16_monai.tables.points import write_points

FOUND = "seriesuid,coordX,coordY,coordZ,probability,diameter_mm\n"


def rows(table):
    points = table.points_xyz[:, 0].tolist()
    return [
        (table.series_uids[code], x, value) for code, x, value in zip(table.series, points, table.values, strict=True)
    ]


def test_detected_tables_finds_a_path_or_a_pattern_here_or_in_the_data_folder(tmp_path, monkeypatch):
    here, data = tmp_path / "here", tmp_path / "data"
    for path in (
        here / "a.csv",
        data / "a.csv",
        data / "fold_1" / "b.csv",
        data / "fold_0" / "b.csv",
        here / "c[1].csv",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(here)
    sets = DataSets.of([tmp_path / "none", data])
    assert detected_tables(None, sets) == []
    assert [path.parts for path in detected_tables("a.csv", sets)] == [("a.csv",)]
    assert detected_tables("fold_*/b.csv", sets) == [data / "fold_0" / "b.csv", data / "fold_1" / "b.csv"]
    assert detected_tables(here / "c[1].csv", sets) == [here / "c[1].csv"]
    with pytest.raises(
        FileNotFoundError, match=r"candidates fold_\*: no such table here nor in .*: name one that luna16"
    ):
        detected_tables("fold_*", sets)


def test_read_detected_labels_by_the_radius_and_leaves_out_what_counts_neither_way(tmp_path):
    # a nodule of 6 mm at x = 10: 2.9 mm off is on it, 3 mm off is not; a finding of 4 mm at x = 50 does not count
    write_points(tmp_path / "annotations.csv", ["s1"], [[10, 0, 0]], [6], "diameter_mm")
    write_points(tmp_path / "annotations_excluded.csv", ["s1"], [[50, 0, 0]], [4], "diameter_mm")
    (tmp_path / "a.csv").write_text(FOUND + "s1,12.9,0,0,0.9,5\ns1,13,0,0,0.8,5\ns1,51,0,0,0.7,5\ns2,10,0,0,0.6,5\n")
    (tmp_path / "b.csv").write_text("seriesuid,coordX,coordY,coordZ\ns2,10,0,0\ns0,1,0,0\n")
    table = read_detected([tmp_path / "a.csv", tmp_path / "b.csv"], DataSets.of(tmp_path))
    # the second row of s2 repeats the first
    assert rows(table) == [("s1", 12.9, 1.0), ("s1", 13.0, 0.0), ("s2", 10.0, 0.0), ("s0", 1.0, 0.0)]
    (tmp_path / "annotations_excluded.csv").unlink()
    assert ("s1", 51.0, 0.0) in rows(read_detected([tmp_path / "a.csv"], DataSets.of(tmp_path)))


def test_with_detected_replaces_negatives_where_there_are_new_ones():
    listed = point_table([(uid, x, 0, 0, value) for uid in ("s1", "s2", "s3") for x, value in ((1.0, 1), (2.0, 0))])
    detected = point_table([("s1", 7, 0, 0, 0), ("s1", 8, 0, 0, 1), ("s3", 9, 0, 0, 0)])
    table = with_detected(listed, detected, ["s1", "s2"])
    # s1 keeps its nodule and gets both rows; s2 has no new ones; s3 is not among the series
    assert rows(table) == [
        ("s1", 1.0, 1.0), ("s2", 1.0, 1.0), ("s2", 2.0, 0.0), ("s3", 1.0, 1.0), ("s3", 2.0, 0.0),
        ("s1", 7.0, 0.0), ("s1", 8.0, 1.0),
    ]  # fmt: skip
    assert table.series.dtype == np.int32
    with pytest.raises(ValueError, match=r"candidates rows: no row is of one of the 1 training series"):
        with_detected(listed, detected, ["s2"])
