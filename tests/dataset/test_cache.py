"""Items that depend on their seed alone, cached or not, with any number of workers."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import DataLoader
from monai.transforms import Compose, OneOf, RandAffined, RandFlipd, RandGaussianNoised, ScaleIntensityRanged

from luna16_monai.dataset.cache import SeededCacheDataset
from luna16_monai.dataset.candidates import CandidateList
from luna16_monai.dataset.cutouts import LoadCutoutd
from luna16_monai.dataset.sampler import RatioSampler
from luna16_monai.dataset.splits import Split
from luna16_monai.store.reading import Store
from luna16_monai.training.checkpoints import start_worker

SHAPE_ZYX = (32, 48, 48)


CUTOUT_BYTES = 2 * 32 * 48 * 48


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


def test_seeded_cache_dataset_reads_each_volume_once_and_keeps_the_order(candidates, store_dir, monkeypatch):
    read: list[str] = []
    whole = Store.whole
    monkeypatch.setattr(Store, "whole", lambda store, uid: (read.append(uid), whole(store, uid))[1])
    order = np.random.default_rng(0).permutation(len(candidates)).tolist()
    mixed = torch.utils.data.Subset(candidates, order)
    load = LoadCutoutd("image", store_dir)
    data = SeededCacheDataset(mixed, Compose([load]), progress=False)
    # at 2 to 3 nodules and 4 negatives to each, the boxes hold more voxels than a scan of 32 to 40 slices
    assert sorted(read) == sorted({item["series_uid"] for item in mixed})
    assert len(data) == len(order) == data.cache_num
    for index in range(len(order)):
        assert same(data[index], load(mixed[index]))


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


class GlobalNoise:
    """A user's transform that draws from the states of the process."""

    def __call__(self, item: Mapping[str, Any]) -> dict[str, Any]:
        drawn = [np.random.rand(), random.random(), torch.rand(1).item()]
        return {**item, "drawn": torch.tensor(drawn, dtype=torch.float64)}


def test_draws_from_global_states_are_the_seeds_with_any_number_of_workers() -> None:
    items = [{"image": torch.zeros(1, 4, 4, 4)} for _ in range(6)]
    transform = Compose([RandFlipd("image", prob=0.5), GlobalNoise()])
    made = SeededCacheDataset(items, transform, cache_gb=1e-6, progress=False)
    order = [(index, 100 + index) for index in (3, 1, 5, 0, 2, 4)]
    before = np.random.get_state()[1].tolist(), random.getstate(), torch.get_rng_state().tolist()
    drawn = {
        workers: torch.cat(
            [
                batch["drawn"]
                for batch in DataLoader(
                    made, sampler=order, batch_size=2, num_workers=workers, worker_init_fn=start_worker
                )
            ]
        )
        for workers in (0, 1, 2)
    }
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])
    assert len(drawn[0].unique()) == 18
    # numpy's first number of the seed 103
    assert drawn[0][0, 0].item() == np.random.RandomState(103).rand()
    assert not torch.equal(made[3, 7]["drawn"], made[3, 8]["drawn"])
    made[3, 7]
    after = np.random.get_state()[1].tolist(), random.getstate(), torch.get_rng_state().tolist()
    assert after[:2] == before[:2]
