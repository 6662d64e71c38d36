"""LIDC-IDRI's patients."""

from __future__ import annotations

from luna16_monai.tables.lidc import Patients


def test_patients_of_a_series_that_is_not_listed_is_the_series_itself():
    patients = Patients({"1.2": "P", "1.3": "P", "1.4": "Q"})
    assert (patients.of("1.3"), patients.of("1.5")) == ("P", "1.5")
    assert patients.of_all(["1.2", "1.3", "1.5"]) == {"P", "1.5"}
    assert patients.of_all([]) == set()
