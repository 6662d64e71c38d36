"""Patients of series: LIDC-IDRI's own, and those of a data folder."""

from __future__ import annotations

from collections import Counter

import pytest

from luna16_monai.tables.lidc import Patients, read_patients


def test_read_patients_knows_the_public_series():
    patients = read_patients()
    assert len(patients) == 1018
    assert len(set(patients.values())) == 1010
    # the eight patients with two scans
    assert Counter(Counter(patients.values()).values()) == {1: 1002, 2: 8}


def test_read_patients_lets_the_data_folder_win(tmp_path):
    some = next(iter(read_patients()))
    (tmp_path / "patients.csv").write_bytes(f"\ufeffpatient_id,seriesuid\r\nP1,{some}\r\nP2,1.2.3\r\n".encode())
    patients = read_patients(tmp_path)
    assert (patients[some], patients["1.2.3"]) == ("P1", "P2")
    assert len(patients) == 1019


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("seriesuid,patient\n1.2,P\n", "line 1: column patient_id is missing"),
        ("seriesuid,patient_id\n1.2,P\n1.3\n", "line 3: a value is missing"),
        ("seriesuid,patient_id\n1.2,\n", "line 2: a value is missing"),
    ],
)
def test_read_patients_refuses(tmp_path, content, message):
    (tmp_path / "patients.csv").write_text(content)
    with pytest.raises(ValueError, match=rf"patients\.csv, {message}"):
        read_patients(tmp_path)


def test_patients_of_a_series_that_is_not_listed_is_the_series_itself():
    patients = Patients({"1.2": "P", "1.3": "P", "1.4": "Q"})
    assert (patients.of("1.3"), patients.of("1.5")) == ("P", "1.5")
    assert patients.of_all(["1.2", "1.3", "1.5"]) == {"P", "1.5"}
    assert patients.of_all([]) == set()
