"""Who is drawn, and how often: splits by series and patient, the lazy list of candidates, the ratio sampler.

A split is made of whole series, never of candidates, and a patient never stands on both sides of a stride split.
The sampler yields (index, seed) pairs that depend on (seed, epoch, position) alone; the dataset turns the seed into
the random state of the augmentation. So a batch is the same whatever the number of workers, and a run can go on
in the middle of an epoch.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from monai.data import CacheDataset
from monai.transforms import Compose, Randomizable
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Sampler

from luna16_monai.candidates import PointTable, lies_on, open_table, read_candidates, read_excluded, read_series_list

logger = logging.getLogger(__name__)

ORDER_STREAM, POOL_STREAM, ITEM_STREAM, VALIDATION_STREAM = range(4)


def read_patients(data_dir: Path | None = None) -> dict[str, str]:
    """The patient of each public LIDC-IDRI series, and of those in the data folder's own ``patients.csv``.

    Args:
        data_dir: a data folder; its ``patients.csv`` (seriesuid, patient_id) wins over the packaged table.

    Raises:
        ValueError: the data folder's table lacks a column, or a value in a line.
    """
    patients: dict[str, str] = {}
    sources = [Path(__file__).parent / "resources" / "patients.csv"]
    if data_dir is not None and (own := data_dir / "patients.csv").is_file():
        sources.append(own)
    for source in sources:
        with open_table(source) as stream:
            rows = csv.DictReader(stream)
            if not {"seriesuid", "patient_id"} <= set(rows.fieldnames or ()):
                raise ValueError(f"{source}, line 1: the header must name seriesuid and patient_id")
            for row in rows:
                if not (row["seriesuid"] and row["patient_id"]):
                    raise ValueError(f"{source}, line {rows.line_num}: a value is missing: mend or remove the line")
                patients[row["seriesuid"]] = row["patient_id"]
    return patients


def split_by_stride(
    series_uids: Sequence[str], stride: int, patients: Mapping[str, str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Hold out every ``stride``-th series in sorted order, and with each the other series of its patient.

    Args:
        series_uids: the series to split.
        stride: 20 is the design's; the first series is held out.
        patients: series to patient; a series that is not in it counts as a patient of its own.

    Returns:
        The series for training and those for validation, sorted.

    Raises:
        ValueError: the stride is below 2.
    """
    if stride < 2:
        raise ValueError(f"validation_stride {stride} leaves nothing to train on: use 2 or more")
    ordered = sorted(series_uids)
    held_out = {patients.get(uid, uid) for uid in ordered[::stride]}
    validation = tuple(uid for uid in ordered if patients.get(uid, uid) in held_out)
    return tuple(uid for uid in ordered if patients.get(uid, uid) not in held_out), validation


def split_by_subset(
    subsets: Mapping[str, int | None], validation_subset: int, patients: Mapping[str, str], join_patients: bool = False
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Hold out one of LUNA16's official subsets.

    The official subsets are by scan: patient LIDC-IDRI-0332 has scans in 2 and 6. Such a patient on both sides is
    warned of, or with ``join_patients`` held out whole.

    Args:
        subsets: series to subset, 0 to 9.
        validation_subset: the subset to hold out.
        patients: series to patient.
        join_patients: hold out all series of the patients in the validation subset.

    Returns:
        The series for training and those for validation, sorted.

    Raises:
        ValueError: a series has no subset, or no series is in the validation subset.
    """
    validation = _of_subset(subsets, validation_subset, "validation_subset")
    held_out = {patients.get(uid, uid) for uid in validation}
    both_sides = [
        uid for uid, subset in subsets.items() if subset != validation_subset and patients.get(uid, uid) in held_out
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
    subsets: Mapping[str, int | None], test_subset: int, patients: Mapping[str, str]
) -> tuple[dict[str, int | None], tuple[str, ...]]:
    """Keep one of LUNA16's official subsets for a test: neither it nor its patients take part in what comes before.

    Args:
        subsets: series to subset, 0 to 9.
        test_subset: the subset to keep.
        patients: series to patient.

    Returns:
        The subset of each series that is left to train and validate on, without the other scans of the test's
        patients; and the series of the test, sorted: LUNA16's own, so they are the subset and no more.

    Raises:
        ValueError: as `split_by_subset`.
    """
    test = _of_subset(subsets, test_subset, "test_subset")
    tested = {patients.get(uid, uid) for uid in test}
    return {uid: subset for uid, subset in subsets.items() if patients.get(uid, uid) not in tested}, tuple(sorted(test))


def _of_subset(subsets: Mapping[str, int | None], number: int, setting: str) -> set[str]:
    """The series of a subset that a setting names."""
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


class CandidateList(Sequence[dict[str, Any]]):
    """The candidates of a split, as a sequence of MONAI's dicts that are made when they are asked for.

    Training at LUNA16's size would otherwise hold 754,975 dicts in every worker.

    Args:
        table: the candidates of the split; their values are the classes 0 and 1, or kinds of which 1 is the target.
        positives_first: so that a cache of limited size keeps what is drawn most often; else the table's order.

    Attributes:
        table: the rows in this list's order.
        labels: (n,) int64, 1 is the target: nodule, or malignant nodule where the values are kinds.
    """

    def __init__(self, table: PointTable, positives_first: bool = True) -> None:
        self.table = table.select(np.argsort(-table.values, kind="stable")) if positives_first else table
        self.labels = (self.table.values == 1).astype(np.int64)

    @property
    def kinds(self) -> NDArray[np.int64]:
        """(n,) the values of the table as they are: 0 is non-nodule, 1 the target."""
        return self.table.values.astype(np.int64)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]
        """One candidate: ``series_uid``, ``point_xyz`` ((3,) world LPS mm), ``label``, ``candidate`` (its index)."""
        return {
            "series_uid": self.table.series_uids[self.table.series[index]],
            "point_xyz": self.table.points_xyz[index],
            "label": int(self.labels[index]),
            "candidate": index,
        }


class PreparedStore(Protocol):
    """What a split needs to know of a store."""

    @property
    def subsets(self) -> Mapping[str, int | None]:
        """Series to official subset."""
        ...

    @property
    def missing(self) -> Sequence[str]:
        """Series without a CT."""
        ...

    def require_inside(self, table: PointTable) -> None:
        """Check that the points lie in their scans."""
        ...


class Kinds(Protocol):
    """What makes the classes of candidates kinds."""

    @property
    def names(self) -> Mapping[int, str]:
        """Each kind's name; both splits must hold each."""
        ...

    def __call__(self, candidates: PointTable) -> PointTable:
        """The candidates that have a kind, with it as their value: 0 is non-nodule, 1 the target."""
        ...


class Split:
    """The candidates of a prepared data set, split into training and validation.

    Args:
        dataset_dir: the data folder, for its tables.
        store: the prepared store; its series are split.
        validation_stride: hold out every n-th series in sorted order.
        validation_subset: hold out this official subset instead; None means the stride.
        join_patients: with a subset, hold out all series of its patients.
        validation_negatives: validate on a fixed sample of this many negatives; None takes them all.
        omit_excluded: leave training negatives out that lie on an excluded finding.
        seed: of the sample of negatives.
        kinds: makes kinds of the classes; None leaves them.
        test_subset: keep this official subset, and all scans of its patients, out of both; None keeps none out.

    Attributes:
        train: the candidates to train on.
        validation: the candidates to validate on.
        train_series: the series of the former, sorted.
        validation_series: the series of the latter, sorted.
        test_series: those of ``test_subset``, sorted; none without one.

    Raises:
        ValueError: a candidate's series is unknown or its point lies outside its scan; a split lacks a class.
    """

    def __init__(
        self,
        dataset_dir: Path | str,
        store: PreparedStore,
        validation_stride: int = 20,
        validation_subset: int | None = None,
        join_patients: bool = False,
        validation_negatives: int | None = None,
        omit_excluded: bool = False,
        seed: int = 0,
        kinds: Kinds | None = None,
        test_subset: int | None = None,
    ) -> None:
        data_dir = Path(dataset_dir)
        subsets, patients = store.subsets, read_patients(data_dir)
        rest: Mapping[str, int | None] = subsets
        self.test_series: tuple[str, ...] = ()
        if test_subset is not None:
            rest, self.test_series = set_aside(subsets, test_subset, patients)
        if validation_subset is None:
            series = split_by_stride(list(rest), validation_stride, patients)
        else:
            series = split_by_subset(rest, validation_subset, patients, join_patients)
        self.train_series, self.validation_series = series
        refuse_leakage(train=self.train_series, validation=self.validation_series, test=self.test_series)
        table = read_candidates(data_dir)
        known = [*subsets, *store.missing, *(read_series_list(data_dir) or ())]
        table.require_series(known, f"the prepared store, nor in {data_dir / 'seriesuids.csv'}")
        table = table.select(table.series_codes(list(subsets)) >= 0)
        store.require_inside(table)
        if kinds is not None:
            table = kinds(table)
        names = {0: "class 0", 1: "class 1"} if kinds is None else kinds.names
        train = table.select(table.series_codes(self.train_series) >= 0)
        if omit_excluded:
            train = train.select((train.values > 0) | ~lies_on(train, read_excluded(data_dir)))
        validation = table.select(table.series_codes(self.validation_series) >= 0)
        self.train = CandidateList(train)
        self.validation = CandidateList(sample_negatives(validation, validation_negatives, seed))
        for name, part in (("training", self.train), ("validation", self.validation)):
            for kind, what in names.items():
                if not (part.kinds == kind).any():
                    raise ValueError(
                        f"the {name} split has no candidate of {what} in its {len(series[name != 'training'])} "
                        f"series ({data_dir}): hold out other series with validation_stride or validation_subset"
                    )
        logger.info(
            "training on %d series (%d positive, %d negative candidates), validating on %d series (%d, %d)",
            *(len(self.train_series), self.train.labels.sum(), (self.train.labels == 0).sum()),
            *(len(self.validation_series), self.validation.labels.sum(), (self.validation.labels == 0).sum()),
        )


class RatioSampler(Sampler[tuple[int, int]]):
    """Draw classes at a ratio; yields (index, seed) pairs that depend on (seed, epoch, position) alone.

    Each class is drawn from shuffled rounds through its pool that go on from epoch to epoch: no candidate comes
    again before its class is used up, and every one is equally likely.

    Args:
        labels: (n,) class of each candidate.
        ratio: how often each class is drawn, in the order of ``classes``: (1, 5) is one positive to five negatives.
        samples_per_epoch: pairs drawn in an epoch, over all ranks.
        seed: of the whole run.
        classes: the class that each part of the ratio belongs to.
        rank: this process's share of the epoch is every ``world_size``-th position, starting here.
        world_size: number of processes.

    Raises:
        ValueError: a class is empty, the ratio is not positive, or the ranks cannot share the epoch evenly.
    """

    def __init__(
        self,
        labels: ArrayLike,
        ratio: Sequence[int] = (1, 5),
        samples_per_epoch: int = 200_000,
        seed: int = 0,
        classes: Sequence[int] = (1, 0),
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        labels = np.asarray(labels)
        if len(ratio) != len(classes) or min(ratio) < 0 or sum(ratio) == 0:
            raise ValueError(f"ratio {list(ratio)}: {len(classes)} numbers from 0 were expected, such as [1, 5]")
        if samples_per_epoch < 1 or samples_per_epoch % world_size:
            raise ValueError(
                f"samples_per_epoch {samples_per_epoch} cannot be shared by {world_size} processes: "
                "use a positive multiple of their number"
            )
        self.pools = [np.flatnonzero(labels == label) for label in classes]
        for label, part, pool in zip(classes, ratio, self.pools, strict=True):
            if part and not len(pool):
                raise ValueError(
                    f"class {label} has no candidate in the training split, but ratio {list(ratio)} asks for it: "
                    "check the candidates table and the split"
                )
        ends = np.round(np.cumsum(ratio) / sum(ratio) * samples_per_epoch).astype(int)
        self.counts = np.diff(ends, prepend=0)
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.samples = samples_per_epoch
        self.set_position(0)

    def set_position(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch, counted from 0, and how many of this rank's pairs to skip."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        """Pairs of a whole epoch on this rank, wherever it starts."""
        return self.samples // self.world_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        indices, seeds = self.draw(self.epoch)
        mine = slice(self.rank + self.start * self.world_size, None, self.world_size)
        return zip(indices[mine].tolist(), seeds[mine].tolist(), strict=True)

    def draw(self, epoch: int) -> tuple[NDArray[np.intp], NDArray[np.uint32]]:
        """The whole epoch over all ranks: (samples,) indices and (samples,) seeds."""
        drawn = [self._from_pool(kind, epoch) for kind in range(len(self.pools))]
        indices = self._random(ORDER_STREAM, epoch).permutation(np.concatenate(drawn))
        seeds = self._random(ITEM_STREAM, epoch).integers(2**32, size=self.samples, dtype=np.uint32)
        return indices, seeds

    def _from_pool(self, kind: int, epoch: int) -> NDArray[np.intp]:
        pool, count = self.pools[kind], int(self.counts[kind])
        if not count:
            return pool[:0]
        first = epoch * count
        rounds = range(first // len(pool), (first + count - 1) // len(pool) + 1)
        shuffled = np.concatenate([self._random(POOL_STREAM, kind, number).permutation(pool) for number in rounds])
        return shuffled[first - rounds.start * len(pool) :][:count]

    def _random(self, *key: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence([self.seed, *key]))


class SeededCacheDataset(CacheDataset):
    """MONAI's CacheDataset, asked for by (index, seed): the seed alone decides the item's augmentation.

    Args:
        data: the items.
        transform: deterministic transforms first; what they give is kept.
        cache_gb: how much to keep, in 10^9 bytes over all items; the first items are kept.
        num_workers: threads that fill the cache.
        progress: whether to show a bar while the cache is filled.
    """

    def __init__(
        self,
        data: Sequence[Any],
        transform: Compose,
        cache_gb: float = 1.0,
        num_workers: int | None = None,
        progress: bool = True,
    ) -> None:
        super().__init__(
            data, transform, cache_num=0, num_workers=num_workers, progress=progress, copy_cache=False
        )  # no transform here changes its input in place
        self._random_states = list(_random_states(transform))
        if cache_gb > 0 and len(data):
            item = self._load_cache_item(0)
            size = sum(value.nbytes for value in item.values() if isinstance(value, torch.Tensor | np.ndarray))
            self.set_num = int(cache_gb * 1e9 / max(size, 1))
            self.set_data(data)

    def __getitem__(self, index: int | tuple[int, int]) -> Any:  # type: ignore[override]
        """An item; with a pair (index, seed) its augmentation is drawn from the seed."""
        if isinstance(index, tuple):
            index, seed = index
            for offset, state in enumerate(self._random_states):
                # in place: MONAI's set_random_state makes new states, at ten times the cost
                state.seed((seed + offset * 0x9E3779B9) % 2**32)
        return super().__getitem__(index)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> None:
        """Do nothing: MONAI's loader calls this as it starts and in each worker, but here the items' seeds decide."""


def _random_states(transform: Any) -> Iterator[np.random.RandomState]:
    """The random state of each transform inside a transform, its own first; OneOf, a Compose, draws from its own."""
    if isinstance(transform, Randomizable):
        yield transform.R
    for inner in transform.transforms if isinstance(transform, Compose) else vars(transform).values():
        if isinstance(inner, Randomizable):
            yield from _random_states(inner)


def sample_negatives(table: PointTable, negatives: int | None, seed: int = 0) -> PointTable:
    """Keep every positive and a fixed random sample of negatives.

    Args:
        table: candidates; their values are the classes, or kinds of which 0 is non-nodule.
        negatives: how many to keep; None keeps all.
        seed: of the sample.
    """
    pool = np.flatnonzero(table.values == 0)
    if negatives is None or negatives >= len(pool):
        return table
    random = np.random.default_rng(np.random.SeedSequence([seed, VALIDATION_STREAM]))
    kept = random.choice(pool, negatives, replace=False)
    return table.select(np.sort(np.concatenate([np.flatnonzero(table.values > 0), kept])))
