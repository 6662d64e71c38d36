"""Who is drawn, and how often: splits, the sampler's fairness, and items that depend on their seed alone."""

from __future__ import annotations

import csv
import itertools
import logging
import pickle
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data import DataLoader
from monai.transforms import Compose, OneOf, RandAffined, RandFlipd, RandGaussianNoised, ScaleIntensityRanged
from point_tables import point_table

from luna16_monai.dataset.cache import SeededCacheDataset
from luna16_monai.dataset.candidates import CandidateList, sample_negatives
from luna16_monai.dataset.cutouts import LoadCutoutd
from luna16_monai.dataset.sampler import RatioSampler
from luna16_monai.dataset.splits import Split, refuse_leakage, set_aside, split_by_stride, split_by_subset
from luna16_monai.store.reading import Store
from luna16_monai.tables.lidc import Patients, read_patients
from luna16_monai.tables.luna16 import read_annotations, read_candidates, read_series_list
from luna16_monai.tables.points import PointTable, write_points
from luna16_monai.training.checkpoints import start_worker

SHAPE_ZYX = (32, 48, 48)
CUTOUT_BYTES = 2 * 32 * 48 * 48


class FakeStore:
    """What a split sees of a store of so many series, u00, u01, ..., in subset 0, 1, ..., 9, 0, ..."""

    def __init__(self, series: int, missing: Sequence[str] = ()) -> None:
        self.subsets: Mapping[str, int | None] = {f"u{i:02d}": i % 10 for i in range(series)}
        self.missing = missing

    def require_inside(self, table: PointTable) -> None:
        assert set(table.series_codes(list(self.subsets))) <= set(range(len(self.subsets)))


def write_candidates(folder: Path, rows: Sequence[tuple[str, int]]) -> Path:
    """A data folder with candidates from (series, class), one mm apart along x."""
    points = [[i, 0, 0] for i in range(len(rows))]
    write_points(folder / "candidates_V2.csv", [uid for uid, _ in rows], points, [label for _, label in rows], "class")
    return folder


def both_classes(series: int) -> list[tuple[str, int]]:
    return [(f"u{i:02d}", label) for i in range(series) for label in (1, 0, 0)]


def pairs(sampler: RatioSampler, epoch: int, start: int = 0) -> list[tuple[int, int]]:
    sampler.set_position(epoch, start)
    return list(sampler)


# --- patients and splits --------------------------------------------------------------------------------------------


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


def test_sample_negatives_keeps_all_where_there_are_no_more():
    table = point_table([("a", i, 0, 0, i % 2) for i in range(6)])
    for negatives in (None, 3, 4):
        assert sample_negatives(table, negatives) is table
    assert sample_negatives(table, 0).values.tolist() == [1, 1, 1]


# --- the list of candidates -----------------------------------------------------------------------------------------


def test_candidate_list_puts_positives_first_and_tells_each_its_own_index():
    table = point_table([("a", 1, 2, 3, 0), ("b", 4, 5, 6, 1), ("a", 7, 8, 9, 0)])
    candidates = CandidateList(table)
    assert len(candidates) == 3
    first, *others = candidates
    assert first["series_uid"] == "b"
    assert first["point_xyz"].tolist() == [4, 5, 6]
    assert (first["label"], first["candidate"]) == (1, 0)
    assert [(item["point_xyz"].tolist(), item["label"], item["candidate"]) for item in others] == [
        ([1, 2, 3], 0, 1),
        ([7, 8, 9], 0, 2),
    ]
    assert candidates.labels.tolist() == [1, 0, 0]
    with pytest.raises(IndexError):
        candidates[3]


def test_candidate_list_is_lazy():
    rows = 100_000
    table = PointTable(
        source="made",
        series_uids=("a",),
        series=np.zeros(rows, np.int32),
        points_xyz=np.zeros((rows, 3)),
        values=np.zeros(rows),
        lines=np.arange(rows, dtype=np.int32),
    )
    # 40 bytes a row of the table and 8 of the labels: no dict, which takes 200
    assert len(pickle.dumps(CandidateList(table))) < 48 * rows + 2000


# --- the sampler ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "samples", "expected"),
    [
        ([1, 5], 12, (2, 10)),
        ([1, 5], 200, (33, 167)),  # 200 / 6 = 33.3
        ([1, 1], 12, (6, 6)),
        ([2, 1], 12, (8, 4)),
        ([1, 0], 12, (12, 0)),
        ([0, 3], 12, (0, 12)),
        ([0.5, 2.5], 12, (2, 10)),
        ([1, 5], 1, (0, 1)),
    ],
)
def test_ratio_sampler_draws_the_classes_exactly_at_the_ratio(ratio, samples, expected):
    labels = np.array([1] * 7 + [0] * 100)
    sampler = RatioSampler(labels, ratio, samples)
    assert len(sampler) == samples
    for epoch in range(3):
        drawn = [labels[index] for index, _ in pairs(sampler, epoch)]
        assert (drawn.count(1), drawn.count(0)) == expected


def test_ratio_sampler_draws_three_classes():
    labels = np.array([0] * 5 + [1] * 5 + [2] * 5)
    sampler = RatioSampler(labels, [1, 2, 3], 12, classes=[2, 0, 1])
    assert Counter(labels[index] for index, _ in sampler) == {2: 2, 0: 4, 1: 6}


def test_ratio_sampler_repeats_no_negative_before_all_were_drawn():
    labels = np.array([0] * 37 + [1] * 3)
    sampler = RatioSampler(labels, [1, 5], 12, seed=5)
    # ten negatives an epoch: in 37 epochs each comes exactly ten times, and each run of 37 has all of them
    drawn = [index for epoch in range(37) for index in sampler._from_pool(1, epoch).tolist()]
    for first in range(0, 370, 37):
        assert sorted(drawn[first : first + 37]) == list(range(37))
    of_epochs = [index for epoch in range(37) for index, _ in pairs(sampler, epoch) if labels[index] == 0]
    assert Counter(of_epochs) == dict.fromkeys(range(37), 10)
    # the first three epochs, 30 of 37, hold nothing twice
    assert len(set(of_epochs[:30])) == 30


@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 60), st.integers(0, 5), st.integers(0, 5), st.integers(0, 99)
)
def test_ratio_sampler_is_fair_at_any_size(positives, negatives, samples, one, other, seed):
    labels = np.array([1] * positives + [0] * negatives)
    if one + other == 0:
        one = 1
    sampler = RatioSampler(labels, [one, other], samples, seed=seed)
    drawn = [index for epoch in range(4) for index, _ in pairs(sampler, epoch)]
    assert len(drawn) == 4 * samples
    for label, pool in ((1, positives), (0, negatives)):
        count = Counter(index for index in drawn if labels[index] == label)
        # nobody is drawn twice more often than anybody else
        times = [count[index] for index in np.flatnonzero(labels == label).tolist()]
        assert len(times) == pool
        assert max(times) - min(times) <= 1


def test_ratio_sampler_repeats_positives_as_needed():
    labels = np.array([1, 1, 1] + [0] * 500)
    sampler = RatioSampler(labels, [1, 1], 100)
    count = Counter(index for index, _ in sampler if index < 3)
    assert sorted(count.values()) == [16, 17, 17]


def test_ratio_sampler_makes_every_negative_equally_likely():
    labels = np.array([1] + [0] * 10)
    first = Counter(int(RatioSampler(labels, [0, 1], 1, seed=seed)._from_pool(1, 0)[0]) for seed in range(2000))
    # 200 expected each, with a standard deviation of 13.4
    assert sorted(first) == list(range(1, 11))
    assert all(abs(times - 200) < 5 * 13.4 for times in first.values())


def test_ratio_sampler_mixes_the_classes():
    labels = np.array([1] * 50 + [0] * 50)
    sampler = RatioSampler(labels, [1, 1], 1000)
    kinds = [int(labels[index]) for index, _ in sampler]
    # 500 changes between neighbours expected with a standard deviation of 16; one if the classes were not mixed
    assert 420 < sum(a != b for a, b in itertools.pairwise(kinds)) < 580


def test_ratio_sampler_depends_on_seed_and_epoch_alone():
    labels = np.array([1] * 5 + [0] * 50)
    one, other = RatioSampler(labels, samples_per_epoch=60, seed=1), RatioSampler(labels, samples_per_epoch=60, seed=1)
    third = pairs(one, 3)
    for epoch in (0, 7, 1):  # another history
        pairs(other, epoch)
    np.random.seed(0)
    torch.manual_seed(0)
    assert pairs(other, 3) == third
    assert pairs(one, 4) != third
    assert pairs(RatioSampler(labels, samples_per_epoch=60, seed=2), 3) != third
    seeds = [seed for epoch in range(50) for _, seed in pairs(one, epoch)]
    assert len(set(seeds)) == len(seeds) == 3000
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert {type(value) for pair in third for value in pair} == {int}


def test_ratio_sampler_goes_on_from_a_start_position():
    sampler = RatioSampler([1] * 5 + [0] * 50, samples_per_epoch=60, seed=1)
    whole = pairs(sampler, 2)
    for start in (0, 1, 17, 59, 60):
        assert pairs(sampler, 2, start) == whole[start:]
        assert len(sampler) == 60  # of the whole epoch, wherever it starts


def test_ratio_sampler_shares_an_epoch_among_ranks():
    labels = [1] * 5 + [0] * 50
    whole = pairs(RatioSampler(labels, samples_per_epoch=60, seed=1), 2)
    ranks = [RatioSampler(labels, samples_per_epoch=60, seed=1, rank=rank, world_size=3) for rank in range(3)]
    shares = [pairs(sampler, 2) for sampler in ranks]
    assert [len(sampler) for sampler in ranks] == [20, 20, 20]
    # position by position, so that three ranks with batches of 4 see what one sees with batches of 12
    assert [pair for position in zip(*shares, strict=True) for pair in position] == whole
    assert pairs(ranks[1], 2, 5) == shares[1][5:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": [0, 0]}, r"class 1 has no candidate in the training split, but ratio \[1, 5\] asks for it"),
        ({"labels": [1, 1]}, "class 0 has no candidate in the training split"),
        ({"labels": [0, 1], "ratio": [1, 5, 2]}, r"ratio \[1, 5, 2\]: 2 numbers from 0 were expected"),
        ({"labels": [0, 1], "ratio": [0, 0]}, r"ratio \[0, 0\]: 2 numbers"),
        ({"labels": [0, 1], "ratio": [-1, 5]}, r"ratio \[-1, 5\]: 2 numbers"),
        ({"labels": [0, 1], "samples_per_epoch": 0}, "samples_per_epoch 0 cannot be shared by 1 processes"),
        ({"labels": [0, 1], "samples_per_epoch": 10, "world_size": 3}, "samples_per_epoch 10 cannot be shared by 3"),
    ],
)
def test_ratio_sampler_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        RatioSampler(**arguments)


def test_ratio_sampler_allows_an_empty_class_that_is_not_asked_for():
    assert sorted(index for index, _ in RatioSampler([0, 0], [0, 1], 2)) == [0, 1]


# --- items that depend on their seed --------------------------------------------------------------------------------


def augmentation() -> list[Any]:
    return [
        RandFlipd("image", prob=0.5, spatial_axis=0),
        RandAffined(
            "image",
            prob=1.0,
            rotate_range=[3.14, 0, 0],
            scale_range=[0.2] * 3,
            spatial_size=SHAPE_ZYX,
            padding_mode="border",
        ),
        RandGaussianNoised("image", prob=1.0, std=25.0, sample_std=False),
        ScaleIntensityRanged("image", -1000, 1000, -1000, 1000, clip=True),
    ]


@pytest.fixture(scope="module")
def candidates(phantom_dir, store_dir) -> CandidateList:
    return Split(phantom_dir, Store(store_dir), validation_stride=2).train


def dataset(candidates: CandidateList, store_dir: Path, cache_gb: float, *more: Any) -> SeededCacheDataset:
    transform = Compose([LoadCutoutd("image", store_dir), *more, *augmentation()])
    return SeededCacheDataset(candidates, transform, cache_gb=cache_gb, progress=False)


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(torch.as_tensor(one[key]), torch.as_tensor(other[key])) for key in one
    )


def test_seeded_cache_dataset_gives_the_same_item_whatever_ran_before(candidates, store_dir):
    cached, uncached = dataset(candidates, store_dir, 1.0), dataset(candidates, store_dir, 0.0)
    assert (cached.cache_num, uncached.cache_num) == (len(candidates), 0)
    first = cached[3, 17]
    assert first["image"].shape == (1, *SHAPE_ZYX)
    assert (first["label"], first["candidate"]) == (int(candidates.labels[3]), 3)
    for other in ((0, 5), (3, 18), (len(candidates) - 1, 17)):
        assert not torch.equal(cached[other]["image"], first["image"])
    assert same(cached[3, 17], first)
    assert same(uncached[3, 17], first)


def test_seeded_cache_dataset_seeds_what_chooses_among_transforms(candidates, store_dir):
    choice = OneOf([RandFlipd("image", prob=0.5, spatial_axis=axis) for axis in (1, 2)])
    data = dataset(candidates, store_dir, 0.0, choice)
    first = [data[1, seed]["image"] for seed in range(8)]
    assert all(torch.equal(data[1, seed]["image"], first[seed]) for seed in range(8))


def test_seeded_cache_dataset_gives_each_transform_a_stream_of_its_own(candidates, store_dir):
    data = dataset(candidates, store_dir, 0.0)
    _ = data[0, 5]
    states = [state.get_state()[1][:4].tolist() for state in data._random_states]
    assert len({tuple(state) for state in states}) == len(states) >= 5


def test_seeded_cache_dataset_never_changes_its_cache(candidates, store_dir):
    data = dataset(candidates, store_dir, 1.0)
    before = [item["image"].clone() for item in data._cache]
    assert before[0].dtype == torch.int16
    for seed in range(4):
        for index in range(0, len(data), 3):
            data[index, seed]["image"].add_(1)  # as a careless user of the item might
    assert all(torch.equal(item["image"], image) for item, image in zip(data._cache, before, strict=True))


@pytest.mark.parametrize(
    ("cache_gb", "expected"),
    [(0.0, 0), (CUTOUT_BYTES * 0.99e-9, 0), (CUTOUT_BYTES * 6.5e-9, 6), (1.0, None)],
)
def test_seeded_cache_dataset_keeps_what_cache_gb_allows(candidates, store_dir, cache_gb, expected):
    data = dataset(candidates, store_dir, cache_gb)
    assert data.cache_num == len(data._cache) == (len(candidates) if expected is None else expected)
    whole = dataset(candidates, store_dir, 0.0)
    for index in (0, 5, 6, 7, len(candidates) - 1):
        assert same(data[index, 1], whole[index, 1])


def test_seeded_cache_dataset_leaves_the_global_random_states_alone(candidates, store_dir):
    np.random.seed(1)
    torch.manual_seed(1)
    numpy_state, torch_state = np.random.get_state(), torch.get_rng_state()
    data = dataset(candidates, store_dir, 1.0)
    sampler = RatioSampler(candidates.labels, samples_per_epoch=12)
    for pair in sampler:
        data[pair]
    for before, after in zip(numpy_state, np.random.get_state(), strict=True):
        np.testing.assert_array_equal(before, after)
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_batches_are_the_same_with_any_number_of_workers(candidates, store_dir):
    def batches(workers: int, cache_gb: float) -> list[dict[str, Any]]:
        sampler = RatioSampler(candidates.labels, samples_per_epoch=20, seed=4)
        loader = DataLoader(
            dataset(candidates, store_dir, cache_gb),
            sampler=sampler,
            batch_size=6,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=start_worker,
        )
        seen = []
        for epoch, start in ((0, 0), (1, 0), (1, 12)):
            sampler.set_position(epoch, start)
            seen += list(loader)
        return seen

    torch.manual_seed(8)
    expected = batches(0, 1.0)
    # batches of 6, 6, 6, 2, twice; then from the 13th position, the second batch's end: 6, 2
    assert [len(batch["label"]) for batch in expected] == [6, 6, 6, 2, 6, 6, 6, 2, 6, 2]
    assert torch.equal(expected[6]["image"], expected[8]["image"])
    assert not torch.equal(expected[0]["image"], expected[4]["image"])
    for workers, cache_gb in ((1, 1.0), (2, 0.0)):
        torch.manual_seed(workers)  # MONAI's loader draws its workers' seeds from here
        got = batches(workers, cache_gb)
        assert len(got) == len(expected)
        assert all(same(one, other) for one, other in zip(got, expected, strict=True))


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
