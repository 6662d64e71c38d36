"""Split a data set into training, validation and test by series and patient.

A split is made of whole series, never of candidates, and a patient never stands on both sides of a stride split.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from luna16_monai.dataset.candidates import CandidateList, sample_negatives
from luna16_monai.machine.folder_lists import Folders
from luna16_monai.store.reading import Store
from luna16_monai.tables.data_sets import DataSets
from luna16_monai.tables.detected import detected_tables, read_detected, with_detected
from luna16_monai.tables.hits import lies_on
from luna16_monai.tables.lidc import Patients
from luna16_monai.tables.points import PointTable

logger = logging.getLogger(__name__)


def split_by_stride(
    series_uids: Sequence[str], stride: int, patients: Patients, data_sets: Sequence[Sequence[str]] | None = None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Hold out every ``stride``-th series in sorted order, and with each the other series of its patient.

    Args:
        series_uids: the series to split.
        stride: 20 is the design's; the first series is held out.
        patients: of the series.
        data_sets: the series of each data set, of which every ``stride``-th is held out; None for one data set.

    Returns:
        The series for training and those for validation, sorted.

    Raises:
        ValueError: the stride is below 2.
    """
    if stride < 2:
        raise ValueError(f"validation_stride {stride} leaves nothing to train on: use 2 or more")
    ordered = sorted(series_uids)
    sets = [set(ordered)] if data_sets is None else [set(part) for part in data_sets]
    parts = [[uid for uid in ordered if uid in one] for one in sets]
    held_out = patients.of_all(uid for part in parts for uid in part[::stride])
    validation = tuple(uid for uid in ordered if patients.of(uid) in held_out)
    return tuple(uid for uid in ordered if patients.of(uid) not in held_out), validation


def split_by_subset(
    subsets: Mapping[str, int | None], validation_subset: int, patients: Patients, join_patients: bool = False
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Hold out one of LUNA16's official subsets.

    The official subsets are by scan: patient LIDC-IDRI-0332 has scans in 2 and 6. Such a patient on both sides is
    warned of, or with ``join_patients`` held out whole.

    Args:
        subsets: series to subset, 0 to 9.
        validation_subset: the subset to hold out.
        patients: of the series.
        join_patients: hold out all series of the patients in the validation subset.

    Returns:
        The series for training and those for validation, sorted.

    Raises:
        ValueError: a series has no subset, or no series is in the validation subset.
    """
    validation = _of_subset(subsets, validation_subset, "validation_subset")
    held_out = patients.of_all(validation)
    both_sides = [
        uid for uid, subset in subsets.items() if subset != validation_subset and patients.of(uid) in held_out
    ]
    if both_sides and not join_patients:
        logger.warning(
            "patient %s has scans in training and validation (series %s): join_patients: true holds them out too",
            patients[both_sides[0]],
            both_sides[0],
        )
    if join_patients:
        validation.update(both_sides)
    return tuple(sorted(set(subsets) - validation)), tuple(sorted(validation))


def set_aside(
    subsets: Mapping[str, int | None], test_subset: int, patients: Patients
) -> tuple[dict[str, int | None], tuple[str, ...]]:
    """Keep one of LUNA16's official subsets for a test: neither it nor its patients take part in what comes before.

    Args:
        subsets: series to subset, 0 to 9.
        test_subset: the subset to keep.
        patients: of the series.

    Returns:
        The subset of each series that is left to train and validate on, without the other scans of the test's
        patients; and the series of the test, sorted: LUNA16's own, so they are the subset and no more.

    Raises:
        ValueError: as `split_by_subset`.
    """
    test = _of_subset(subsets, test_subset, "test_subset")
    tested = patients.of_all(test)
    return {uid: subset for uid, subset in subsets.items() if patients.of(uid) not in tested}, tuple(sorted(test))


def _of_subset(subsets: Mapping[str, int | None], number: int, setting: str) -> set[str]:
    """Return the series of a subset that a setting names."""
    without = sorted(uid for uid, subset in subsets.items() if subset is None)
    if without:
        raise ValueError(
            f"series {without[0]} lies in no subset folder, so {setting} {number} cannot be held out: put the CTs into "
            "subset0 ... subset9, or use validation_stride"
        )
    if number not in subsets.values():
        raise ValueError(
            f"{setting} {number}: no series is in it (found: {sorted(set(subsets.values()), key=str)}): name one of "
            "those"
        )
    return {uid for uid, subset in subsets.items() if subset == number}


def refuse_leakage(**splits: Sequence[str]) -> None:
    """Check that no series stands in two splits.

    Raises:
        ValueError: names the series and the two splits.
    """
    split_of: dict[str, str] = {}
    for name, series_uids in splits.items():
        for uid in series_uids:
            if uid in split_of:
                raise ValueError(f"series {uid} is in {split_of[uid]} and in {name}: splits may not share a series")
            split_of[uid] = name


class Kinds(Protocol):
    """What makes the classes of candidates kinds."""

    @property
    def names(self) -> Mapping[int, str]:
        """Each kind's name; both splits must hold each."""
        ...

    def __call__(self, candidates: PointTable) -> PointTable:
        """Return the candidates that have a kind, with it as their value: 0 is non-nodule, 1 the target."""
        ...


class Split:
    """The candidates of a prepared data set, split into training and validation.

    Args:
        dataset_dir: the data folder, for its tables; or several, see `tables.data_sets`.
        store: the prepared store, or stores; its series are split.
        validation_stride: hold out every n-th series of each data set in sorted order.
        validation_subset: hold out this official subset instead; None means the stride.
        join_patients: with a subset, hold out all series of its patients.
        validation_negatives: validate on a fixed sample of this many negatives; None takes them all.
        omit_excluded: leave training negatives out that lie on an excluded finding.
        seed: of the sample of negatives.
        kinds: makes kinds of the classes; None leaves them.
        test_subset: keep this official subset, and all scans of its patients, out of both; None keeps none out.
        candidates: tables of a detector, from which training series take their negatives and further positives, see
            `detected_tables`; None takes all from the data folder's list. What is validated on stays as listed.

    Attributes:
        train: the candidates to train on.
        validation: the candidates to validate on.
        train_series: the series of the former, sorted.
        validation_series: the series of the latter, sorted.
        test_series: those of ``test_subset``, sorted; none without one.
        data_sets: the series of each data set, by its name; those of all splits.

    Raises:
        ValueError: a candidate's series is unknown or its point lies outside its scan; a split lacks a class.
    """

    def __init__(
        self,
        dataset_dir: Folders,
        store: Store,
        validation_stride: int = 20,
        validation_subset: int | None = None,
        join_patients: bool = False,
        validation_negatives: int | None = None,
        omit_excluded: bool = False,
        seed: int = 0,
        kinds: Kinds | None = None,
        test_subset: int | None = None,
        candidates: Path | str | None = None,
    ) -> None:
        folders = DataSets.of(dataset_dir)
        self.data_sets = folders.series(store.parts)
        subsets, patients = store.subsets, folders.patients()
        rest: Mapping[str, int | None] = subsets
        self.test_series: tuple[str, ...] = ()
        if test_subset is not None:
            rest, self.test_series = set_aside(subsets, test_subset, patients)
        if validation_subset is None:
            series = split_by_stride(list(rest), validation_stride, patients, [*self.data_sets.values()])
        else:
            series = split_by_subset(rest, validation_subset, patients, join_patients)
        self.train_series, self.validation_series = series
        refuse_leakage(train=self.train_series, validation=self.validation_series, test=self.test_series)
        table = folders.candidates()
        folders.require_series(table, store.parts, store.missing)
        if tables := detected_tables(candidates, folders):
            table = with_detected(table, read_detected(tables, folders), self.train_series)
        table = table.select(table.series_codes(list(subsets)) >= 0)
        store.require_inside(table)
        if kinds is not None:
            table = kinds(table)
        names = {0: "class 0", 1: "class 1"} if kinds is None else kinds.names
        train = table.select(table.series_codes(self.train_series) >= 0)
        if omit_excluded:
            train = train.select((train.values > 0) | ~lies_on(train, folders.excluded_of_all()))
        validation = table.select(table.series_codes(self.validation_series) >= 0)
        self.train = CandidateList(train)
        self.validation = CandidateList(
            sample_negatives(validation, validation_negatives, seed), data_sets=self.of_each(self.validation_series)
        )
        for name, part in (("training", self.train), ("validation", self.validation)):
            for kind, what in names.items():
                if not (part.kinds == kind).any():
                    raise ValueError(
                        f"the {name} split has no candidate of {what} in its {len(series[name != 'training'])} "
                        f"series ({folders}): hold out other series with validation_stride or validation_subset"
                    )
        logger.info(
            "training on %d series (%d positive, %d negative candidates), validating on %d series (%d, %d)",
            *(len(self.train_series), self.train.labels.sum(), (self.train.labels == 0).sum()),
            *(len(self.validation_series), self.validation.labels.sum(), (self.validation.labels == 0).sum()),
        )

    def of_each(self, series_uids: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Return those of some series that each data set has, by its name; nothing where there is one data set."""
        if len(self.data_sets) < 2:
            return {}
        wanted = set(series_uids)
        return {name: tuple(uid for uid in uids if uid in wanted) for name, uids in self.data_sets.items()}
