"""One data folder or several as one data set: the tables of all, whose series is whose, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from luna16_monai.tables.data_sets import DataSets

HEADER = "seriesuid,coordX,coordY,coordZ,"


def data_folder(path: Path, *series: str, excluded: bool = True) -> Path:
    """Two candidates and a nodule of each series."""
    path.mkdir(parents=True)
    rows = [f"{uid},{x},0,0,{x}" for uid in series for x in (1, 0)]
    (path / "candidates_V2.csv").write_text("\n".join([HEADER + "class", *rows]) + "\n")
    (path / "annotations.csv").write_text("\n".join([HEADER + "diameter_mm", *[f"{uid},1,0,0,7" for uid in series]]))
    if excluded:
        (path / "annotations_excluded.csv").write_text(f"{HEADER}diameter_mm\n{series[0]},9,9,9,-1\n")
    return path


def test_tables_of_two_folders_are_one(tmp_path):
    sets = DataSets.of([data_folder(tmp_path / "luna16", "s2", "s1"), data_folder(tmp_path / "own", "s0")])
    table = sets.candidates()
    assert table.series_uids == ("s0", "s1", "s2")
    assert table.row_series() == ["s2", "s2", "s1", "s1", "s0", "s0"]
    assert table.values.tolist() == [1, 0] * 3
    # each row is named by its own file and line there
    assert table.place(2) == f"{tmp_path / 'luna16' / 'candidates_V2.csv'}, line 4"
    assert table.select(table.series == 0).place(1) == f"{tmp_path / 'own' / 'candidates_V2.csv'}, line 3"
    assert len(sets.annotations()) == 3
    assert sets.excluded().row_series() == ["s2", "s0"]


def test_excluded_are_those_of_the_folders_that_have_them(tmp_path):
    sets = DataSets.of([data_folder(tmp_path / "luna16", "s1"), data_folder(tmp_path / "own", "s0", excluded=False)])
    assert sets.without("annotations_excluded") == [tmp_path / "own"]
    assert sets.excluded().row_series() == ["s1"]


def test_a_series_of_two_folders_is_refused_with_both(tmp_path):
    sets = DataSets.of([data_folder(tmp_path / "luna16", "s1"), data_folder(tmp_path / "own", "s0", "s1")])
    with pytest.raises(ValueError, match=r"series s1 is in .*luna16.candidates_V2.csv and in .*own.candidates_V2.csv"):
        sets.candidates()


def test_a_row_about_the_series_of_another_store_is_refused(tmp_path):
    sets = DataSets.of([data_folder(tmp_path / "luna16", "s1"), data_folder(tmp_path / "own", "s0", "s2")])
    table = sets.candidates()
    sets.require_series(table, [["s1"], ["s0"]], missing=["s2"])
    with pytest.raises(ValueError, match=r"series s2 is in .*luna16 and in .*own.candidates_V2.csv"):
        sets.require_series(table, [["s1", "s2"], ["s0"]], missing=[])
    with pytest.raises(ValueError, match=r"series s2 \(.*own.candidates_V2.csv, line 4\) is not in the prepared store"):
        sets.require_series(table, [["s1"], ["s0"]], missing=[])


def test_series_needs_a_store_for_each_folder(tmp_path):
    sets = DataSets((tmp_path / "luna16", tmp_path / "own"))
    assert sets.series([["b", "a"], ["c"]]) == {"luna16": ("a", "b"), "own": ("c",)}
    with pytest.raises(ValueError, match=r"2 data folders .* with 1 stores: name one store for each"):
        sets.series([["a", "b", "c"]])


def test_patients_and_readings_are_of_all_folders(tmp_path):
    folders = [data_folder(tmp_path / "luna16", "s1"), data_folder(tmp_path / "own", "s0")]
    for folder, uid in zip(folders, ("s1", "s0"), strict=True):
        (folder / "patients.csv").write_text(f"seriesuid,patient_id\n{uid},P{uid}\n")
        (folder / "nodule_readings.csv").write_text(
            f"seriesuid,coordZ,diameter_mm,readings,malignancy\n{uid},0,7,2,3 4\n"
        )
    sets = DataSets.of(folders)
    assert (sets.patients()["s1"], sets.patients()["s0"]) == ("Ps1", "Ps0")
    assert sets.readings().series_uids == ("s1", "s0")
    assert sets.readings().ratings == ((3, 4), (3, 4))
