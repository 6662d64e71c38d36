"""Splits by series, patient and subset, and the split of a data folder."""

from __future__ import annotations

import csv
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luna16_monai.dataset.sampler import RatioSampler
from luna16_monai.dataset.splits import Split, refuse_leakage, set_aside, split_by_stride, split_by_subset
from luna16_monai.store.reading import Store
from luna16_monai.tables.lidc import Patients, read_patients
from luna16_monai.tables.luna16 import read_annotations, read_candidates, read_series_list
from luna16_monai.tables.points import PointTable, write_points


class FakeStore:
    """What a split sees of a store of so many series, u00, u01, ..., in subset 0, 1, ..., 9, 0, ..."""

    def __init__(self, series: int, missing: Sequence[str] = ()) -> None:
        self.subsets: Mapping[str, int | None] = {f"u{i:02d}": i % 10 for i in range(series)}
        self.missing = missing

    @property
    def parts(self) -> tuple[tuple[str, ...], ...]:
        """One data folder's series."""
        return (tuple(sorted(self.subsets)),)

    def require_inside(self, table: PointTable) -> None:
        assert set(table.series_codes(list(self.subsets))) <= set(range(len(self.subsets)))


def write_candidates(folder: Path, rows: Sequence[tuple[str, int]]) -> Path:
    """A data folder with candidates from (series, class), one mm apart along x."""
    points = [[i, 0, 0] for i in range(len(rows))]
    write_points(folder / "candidates_V2.csv", [uid for uid, _ in rows], points, [label for _, label in rows], "class")
    return folder


def both_classes(series: int) -> list[tuple[str, int]]:
    return [(f"u{i:02d}", label) for i in range(series) for label in (1, 0, 0)]


# --- splits of series -----------------------------------------------------------------------------------------------


def test_split_by_stride_holds_out_every_nth_in_sorted_order():
    train, validation = split_by_stride(["f", "b", "d", "a", "c", "e", "g"], 3, Patients())
    assert validation == ("a", "d", "g")
    assert train == ("b", "c", "e", "f")


def test_split_by_stride_takes_the_other_series_of_a_patient_along():
    # a and d are held out; b is of a's patient, c is not
    train, validation = split_by_stride(list("abcdef"), 3, Patients({"a": "P", "b": "P", "c": "Q", "f": "Q"}))
    assert validation == ("a", "b", "d")
    assert train == ("c", "e", "f")


@given(st.integers(1, 60), st.integers(2, 70), st.lists(st.integers(0, 20), min_size=60, max_size=60))
def test_split_by_stride_never_parts_a_patient(count, stride, owners):
    uids = [f"s{i}" for i in range(count)]
    patients = Patients(zip(uids, map(str, owners), strict=False))
    train, validation = split_by_stride(uids, stride, patients)
    assert sorted(train + validation) == sorted(uids)
    assert not {patients[uid] for uid in train} & {patients[uid] for uid in validation}
    assert set(sorted(uids)[::stride]) <= set(validation)


@pytest.mark.parametrize("stride", [1, 0, -3])
def test_split_by_stride_refuses_a_stride_that_leaves_nothing(stride):
    with pytest.raises(ValueError, match=f"validation_stride {stride} leaves nothing to train on: use 2 or more"):
        split_by_stride(["a", "b"], stride, Patients())


def test_split_by_subset_warns_of_a_patient_on_both_sides_and_joins_on_request(caplog):
    subsets = {"a": 0, "b": 1, "c": 1, "d": 2}
    patients = Patients({"a": "P", "c": "P", "d": "Q"})
    with caplog.at_level(logging.WARNING):
        assert split_by_subset(subsets, 1, patients) == (("a", "d"), ("b", "c"))
    assert "patient P has scans in training and validation (series a): join_patients: true" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert split_by_subset(subsets, 1, patients, join_patients=True) == (("d",), ("a", "b", "c"))
        assert split_by_subset(subsets, 2, patients) == (("a", "b", "c"), ("d",))
    assert caplog.text == ""


def test_split_by_subset_refuses_series_without_a_subset_and_empty_subsets():
    with pytest.raises(ValueError, match="series b lies in no subset folder, so validation_subset 0 cannot be held"):
        split_by_subset({"a": 0, "b": None}, 0, Patients())
    with pytest.raises(ValueError, match=r"validation_subset 7: no series is in it \(found: \[0, 2\]\): name one"):
        split_by_subset({"a": 0, "b": 2}, 7, Patients())


@pytest.fixture
def luna16_subsets(shared) -> dict[str, int | None]:
    with (shared("data/luna16") / "subsets.csv").open(newline="") as stream:
        header, *rows = csv.reader(stream)
    assert len(header) == 2
    return {uid: int(subset) for uid, subset in rows}


def test_split_of_the_real_series_by_stride(luna16_subsets):
    patients = read_patients()
    assert len(luna16_subsets) == 888
    assert set(luna16_subsets) <= set(patients)
    train, validation = split_by_stride(list(luna16_subsets), 20, patients)
    # 888 / 20 = 44.4, so 45 series, and whatever else is of their patients
    assert set(sorted(luna16_subsets)[::20]) <= set(validation)
    assert 45 <= len(validation) <= 45 + 8
    assert len(train) + len(validation) == 888
    assert not {patients[uid] for uid in train} & {patients[uid] for uid in validation}


@pytest.mark.parametrize("subset", range(10))
def test_split_of_the_real_series_by_subset(luna16_subsets, subset, caplog):
    patients = read_patients()
    with caplog.at_level(logging.WARNING):
        train, validation = split_by_subset(luna16_subsets, subset, patients)
    assert len(validation) == (89 if subset < 8 else 88)
    # one patient only stands on both sides, with scans in 2 and 6
    assert ("LIDC-IDRI-0332" in caplog.text) == (subset in (2, 6))
    joined_train, joined = split_by_subset(luna16_subsets, subset, patients, join_patients=True)
    assert len(joined) - len(validation) == (subset in (2, 6))
    assert not {patients[uid] for uid in joined_train} & {patients[uid] for uid in joined}
    assert set(train) >= set(joined_train)


def test_split_of_the_real_tables(shared, luna16_subsets, tmp_path):
    """The real nodules as positives, and as negatives the same points moved by 50 mm."""
    folder = shared("data/luna16")
    nodules, uids = read_annotations(folder), read_series_list(folder)
    names = [nodules.series_uids[code] for code in nodules.series]
    points = np.concatenate([nodules.points_xyz, nodules.points_xyz + [50, 0, 0]])
    write_points(tmp_path / "candidates_V2.csv", names * 2, points, [1] * len(names) + [0] * len(names), "class")

    class RealStore(FakeStore):
        def __init__(self) -> None:
            self.subsets, self.missing = luna16_subsets, ()

    assert set(uids) == set(luna16_subsets)
    split = Split(tmp_path, RealStore(), validation_subset=3)
    assert len(split.validation_series) == 89
    assert int(split.train.labels.sum() + split.validation.labels.sum()) == 1186
    inside = {name for name in names if luna16_subsets[name] == 3}
    table = split.validation.table
    assert {table.series_uids[code] for code in table.series} == inside


def test_refuse_leakage_names_series_and_splits():
    refuse_leakage(train=["a", "b"], validation=["c"], test=["d"])
    with pytest.raises(ValueError, match="series b is in train and in test: splits may not share a series"):
        refuse_leakage(train=["a", "b"], validation=["c"], test=["b"])


# --- the split of a data folder -------------------------------------------------------------------------------------


def test_split_puts_every_candidate_on_the_side_of_its_series(tmp_path):
    split = Split(write_candidates(tmp_path, both_classes(5)), FakeStore(5), validation_stride=2)
    assert split.validation_series == ("u00", "u02", "u04")
    assert split.train_series == ("u01", "u03")
    # rows 3, 4, 5 and 9, 10, 11 of the table, positives first
    assert split.train.table.points_xyz[:, 0].tolist() == [3, 9, 4, 5, 10, 11]
    assert split.train.labels.tolist() == [1, 1, 0, 0, 0, 0]
    assert split.validation.table.points_xyz[:, 0].tolist() == [0, 6, 12, 1, 2, 7, 8, 13, 14]


class KindsInTurn:
    """In the order of the rows: malignant, benign, no nodule, without a kind, and again."""

    names: ClassVar = {0: "non-nodule", 1: "malignant", 2: "benign"}

    def __call__(self, candidates: PointTable) -> PointTable:
        kind = np.resize([1, 2, 0, -1], len(candidates))
        return replace(candidates, values=kind.astype(float)).select(kind >= 0)


def test_split_by_kinds_and_the_sampler_draws_three_at_a_ratio(tmp_path):
    rows = [(f"u{i:02d}", label) for i in range(4) for label in (1, 1, 0, 1)]
    split = Split(write_candidates(tmp_path, rows), FakeStore(4), validation_stride=4, kinds=KindsInTurn())
    # rows 4 to 15 without each fourth; benign and malignant ones come first
    assert split.train.kinds.tolist() == [2, 2, 2, 1, 1, 1, 0, 0, 0]
    assert split.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0]
    assert split.train.table.points_xyz[:, 0].tolist() == [5, 9, 13, 4, 8, 12, 6, 10, 14]
    sampler = RatioSampler(split.train.kinds, [1, 5, 10], 32, classes=[1, 2, 0])
    assert np.bincount(split.train.kinds[sampler.draw(0)[0]]).tolist() == [20, 2, 10]


def test_split_refuses_a_kind_that_is_absent(tmp_path):
    rows = [(f"u{i:02d}", label) for i in range(4) for label in (1, 0)]
    with pytest.raises(ValueError, match="the validation split has no candidate of non-nodule in its 1 series"):
        Split(write_candidates(tmp_path, rows), FakeStore(4), validation_stride=4, kinds=KindsInTurn())


def test_split_by_validation_subset(tmp_path):
    split = Split(write_candidates(tmp_path, both_classes(11)), FakeStore(11), validation_subset=0)
    assert split.validation_series == ("u00", "u10")
    assert len(split.train) == 27


def test_split_keeps_patients_of_the_data_folder_together(tmp_path):
    (tmp_path / "patients.csv").write_text("seriesuid,patient_id\nu00,P\nu03,P\n")
    split = Split(write_candidates(tmp_path, both_classes(4)), FakeStore(4), validation_stride=3)
    assert split.validation_series == ("u00", "u03")


def test_split_leaves_out_candidates_of_scans_that_are_not_there(tmp_path):
    data = write_candidates(tmp_path, [*both_classes(4), ("gone", 1), ("listed", 0)])
    (data / "seriesuids.csv").write_text("u00\nu01\nu02\nu03\nlisted\n")
    split = Split(data, FakeStore(4, missing=["gone"]), validation_stride=2)
    assert len(split.train) + len(split.validation) == 12


def test_split_refuses_a_series_that_nobody_knows(tmp_path):
    data = write_candidates(tmp_path, [*both_classes(4), ("1.2.3", 1)])
    message = (
        r"series 1\.2\.3 \(.*candidates_V2\.csv, line 14\) is not in the prepared store, nor in .*seriesuids\.csv: "
    )
    with pytest.raises(ValueError, match=message):
        Split(data, FakeStore(4), validation_stride=2)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("u00", 1), ("u00", 0), ("u01", 0)], "the training split has no candidate of class 1 in its 1 series"),
        ([("u00", 1), ("u00", 0), ("u01", 1)], "the training split has no candidate of class 0 in its 1 series"),
        ([("u00", 0), ("u01", 0), ("u01", 1)], "the validation split has no candidate of class 1 in its 1 series"),
        ([("u00", 1), ("u01", 0), ("u01", 1)], "the validation split has no candidate of class 0 in its 1 series"),
    ],
)
def test_split_refuses_an_empty_class(tmp_path, rows, message):
    with pytest.raises(ValueError, match=rf"{message} \(.*\): hold out other series with validation_stride"):
        Split(write_candidates(tmp_path, rows), FakeStore(2), validation_stride=2)


def test_split_omits_training_negatives_on_excluded_findings_only(tmp_path):
    data = write_candidates(tmp_path, both_classes(4))
    # rows 3, 4, 5 are u01's, at x = 3, 4, 5; the finding takes in 3.1 to 4.9; rows 0 to 2 are u00's, for validation
    findings = [("u01", 4.0), ("u00", 1.0)]
    write_points(
        data / "annotations_excluded.csv",
        [uid for uid, _ in findings],
        [[x, 0, 0] for _, x in findings],
        [1.8, -1.0],
        "diameter_mm",
    )
    assert len(Split(data, FakeStore(4), validation_stride=2).train) == 6
    split = Split(data, FakeStore(4), validation_stride=2, omit_excluded=True)
    assert split.train.table.points_xyz[:, 0].tolist() == [3, 9, 5, 10, 11]
    assert len(split.validation) == 6


def test_split_omits_no_positive(tmp_path):
    data = write_candidates(tmp_path, both_classes(4))
    write_points(data / "annotations_excluded.csv", ["u01"], [[3, 0, 0]], [1.0], "diameter_mm")
    split = Split(data, FakeStore(4), validation_stride=2, omit_excluded=True)
    assert split.train.table.points_xyz[:, 0].tolist() == [3, 9, 4, 5, 10, 11]


def test_split_validates_on_a_fixed_sample_of_negatives(tmp_path):
    data = write_candidates(tmp_path, both_classes(20))
    whole = Split(data, FakeStore(20), validation_stride=2)
    first, again, other = (
        Split(data, FakeStore(20), validation_stride=2, validation_negatives=5, seed=seed) for seed in (1, 1, 2)
    )
    assert Counter(whole.validation.labels.tolist()) == {1: 10, 0: 20}
    assert Counter(first.validation.labels.tolist()) == {1: 10, 0: 5}
    assert len(first.train) == len(whole.train)
    rows = [set(split.validation.table.lines.tolist()) for split in (whole, first, again, other)]
    assert rows[1] < rows[0]
    assert rows[1] == rows[2] != rows[3]


def test_split_of_the_prepared_phantom(phantom_dir, store_dir):
    split = Split(phantom_dir, Store(store_dir), validation_stride=3)
    assert (len(split.train_series), len(split.validation_series)) == (5, 3)
    # four negatives to a positive in each scan, and none is lost
    for part in (split.train, split.validation):
        assert int((part.labels == 0).sum()) == 4 * int((part.labels == 1).sum()) > 0
    assert len(split.train) + len(split.validation) == len(read_candidates(phantom_dir))


def test_set_aside_keeps_the_subset_as_it_is_and_its_patients_out_of_the_rest():
    subsets = {"a": 0, "b": 1, "c": 1, "d": 2}
    patients = Patients({"a": "P", "c": "P", "d": "Q"})
    # the test is LUNA16's subset and no more; a is of a patient in it, so nothing may be learned from it
    assert set_aside(subsets, 1, patients) == ({"d": 2}, ("b", "c"))
    assert set_aside(subsets, 2, patients) == ({"a": 0, "b": 1, "c": 1}, ("d",))
    with pytest.raises(ValueError, match=r"test_subset 7: no series is in it \(found: \[0, 1, 2\]\): name one"):
        set_aside(subsets, 7, patients)


@pytest.mark.parametrize("inner", [{"validation_stride": 3}, {"validation_subset": 4}])
def test_split_with_a_test_subset_has_no_series_and_no_patient_of_it(tmp_path, inner):
    data = write_candidates(tmp_path, [(f"u{i:02d}", label) for i in range(20) for label in (0, 1)])
    # u03 and u13 are subset 3; u07 is a scan of u13's patient
    (tmp_path / "patients.csv").write_text("seriesuid,patient_id\nu13,P\nu07,P\n")
    split = Split(data, FakeStore(20), test_subset=3, **inner)
    assert split.test_series == ("u03", "u13")
    assert {*split.train_series, *split.validation_series} == {f"u{i:02d}" for i in range(20)} - {"u03", "u13", "u07"}
    assert not set(split.train_series) & set(split.validation_series)
    if "validation_subset" in inner:
        assert split.validation_series == ("u04", "u14")


def test_split_takes_a_detectors_candidates_for_training_alone(tmp_path):
    data = write_candidates(tmp_path, both_classes(4))
    # u00 and u02 are held out by the stride of 2; the detector hit the nodule of u01 at x = 3, and twice nothing
    write_points(data / "annotations.csv", ["u01"], [[3, 0, 0]], [4], "diameter_mm")
    found = [("u00", 50.0), ("u01", 4.0), ("u01", 60.0), ("u01", 70.0)]
    write_points(data / "found.csv", [uid for uid, _ in found], [[x, 0, 0] for _, x in found], [0.5] * 4, "probability")
    plain = Split(data, FakeStore(4), validation_stride=2)
    split = Split(data, FakeStore(4), validation_stride=2, candidates="found.csv")

    def told(candidates):
        return sorted((one["series_uid"], one["point_xyz"][0], one["label"]) for one in candidates)

    # of the list u01 has a nodule at 3 and negatives at 4 and 5, u03 a nodule at 9 and negatives at 10 and 11
    assert told(plain.train)[:3] == [("u01", 3.0, 1), ("u01", 4.0, 0), ("u01", 5.0, 0)]
    assert told(split.train) == [
        ("u01", 3.0, 1), ("u01", 4.0, 1), ("u01", 60.0, 0), ("u01", 70.0, 0),
        ("u03", 9.0, 1), ("u03", 10.0, 0), ("u03", 11.0, 0),
    ]  # fmt: skip
    assert told(split.validation) == told(plain.validation)
    assert split.validation.digest() == plain.validation.digest()
    assert split.train.digest() != plain.train.digest()


# --- several data sets ------------------------------------------------------------------------------------------------


def test_stride_holds_out_of_each_data_set():
    uids = ["a1", "a2", "a3", "b1", "b2"]
    train, validation = split_by_stride(uids, 3, Patients(), [["a1", "a2", "a3"], ["b2", "b1"]])
    assert validation == ("a1", "b1")
    assert train == ("a2", "a3", "b2")
    # a patient of both data sets is held out whole
    shared = Patients({"a1": "P", "b2": "P"})
    assert split_by_stride(uids, 3, shared, [["a1", "a2", "a3"], ["b1", "b2"]])[1] == ("a1", "b1", "b2")


def test_split_of_several_data_sets_has_the_candidates_of_all(two_sets, phantom_dir, store_dir):
    data, stores = two_sets
    split, whole = Split(data, Store(stores), 4), Split(phantom_dir, Store(store_dir), 4)
    assert {name: len(uids) for name, uids in split.data_sets.items()} == {"luna16": 4, "own": 4}
    # the first of each four, as of all eight in one
    assert split.validation_series == whole.validation_series
    assert len(split.train) == len(whole.train)
    assert split.train.labels.sum() == whole.train.labels.sum()
    assert split.validation.data_sets == {
        "luna16": split.validation_series[:1], "own": split.validation_series[1:],
    }  # fmt: skip
    assert whole.validation.data_sets == {}


def test_split_needs_a_store_for_each_data_set(two_sets, store_dir):
    with pytest.raises(ValueError, match=r"2 data folders .* with 1 stores: name one store for each"):
        Split(two_sets[0], Store(store_dir))
