"""Crops depend on (index, seed) alone, and an augmented crop keeps its nodule where its target says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from luna16_monai.dataset.candidates import CandidateList
from luna16_monai.dataset.sampler import RatioSampler
from luna16_monai.detection.crops import (
    NEGATIVE,
    NODULE,
    NOWHERE,
    CropList,
    LabelledScans,
    ScanList,
    Strength,
    augment,
    box_of,
)
from luna16_monai.detection.targets import MAPS, MIDDLE, OFFSETS
from luna16_monai.geometry.grid import Geometry
from luna16_monai.geometry.volume import Volume
from luna16_monai.store.reading import Store
from luna16_monai.tables.luna16 import read_candidates


@pytest.fixture(scope="module")
def scans(phantom_dir, store_dir):
    return LabelledScans(phantom_dir, Store(store_dir))


@pytest.fixture(scope="module")
def crops(phantom_dir, scans):
    return CropList(scans, scans.store.series_uids, CandidateList(read_candidates(phantom_dir)), (32, 48, 48))


def test_items_are_nodules_negatives_and_scans(crops, scans):
    assert (crops.labels == NOWHERE).sum() == len(scans.store.series_uids) == 8
    assert (crops.labels == NODULE).sum() == len(scans.nodules)
    assert (crops.labels == NEGATIVE).sum() > 0


def test_crop_depends_on_index_and_seed_alone(crops, scans):
    order = list(RatioSampler(crops.labels, (2, 1, 1), 12, seed=5, classes=(NODULE, NEGATIVE, NOWHERE)))
    first = [crops[pair] for pair in order]
    again = CropList(scans, scans.store.series_uids, None, (32, 48, 48))
    for pair, item in reversed(list(zip(order, first, strict=True))):
        assert torch.equal(crops[pair]["image"], item["image"])
        assert torch.equal(crops[pair]["label"], item["label"])
        if crops.labels[pair[0]] != NEGATIVE:
            assert torch.equal(again[pair]["image"], item["image"])
    assert not torch.equal(crops[order[0][0], 1]["image"], crops[order[0][0], 2]["image"])


def test_crop_near_a_nodule_shows_one(crops):
    seen = 0
    for index in np.flatnonzero(crops.labels == NODULE):
        item = crops[index, 3]
        assert item["image"].shape == (1, 32, 48, 48)
        assert item["label"].shape == (MAPS, 8, 12, 12)
        seen += bool(item["label"][MIDDLE].any())
    assert seen >= 0.8 * (crops.labels == NODULE).sum()  # the rest lie at the end of their scan


def blob(point, shape):
    z, y, x = np.indices(shape)
    inside = (z - point[0]) ** 2 + (y - point[1]) ** 2 + (x - point[2]) ** 2 < 3**2
    return np.where(inside, 0, -900).astype(np.float32)


def test_augmentation_moves_image_and_target_alike():
    shape, point = (16, 24, 24), np.array([5.0, 9.0, 15.0])
    target = np.zeros((MAPS, 4, 6, 6), np.float32)
    # cells' middles at 1.5, 5.5, ...: nearest (5.5, 9.5, 13.5), off by -0.125, -0.125 and 0.375 cells
    target[MIDDLE, 1, 2, 3] = 1
    target[(OFFSETS, 1, 2, 3)] = [-0.125, -0.125, 0.375]
    places = set()
    for seed in range(60):
        image, moved = augment(np.random.default_rng(seed), blob(point, shape), target, Strength(0, 0, 0))
        cell = np.argwhere(moved[MIDDLE])[0]
        told = (cell + moved[(OFFSETS, *cell)]) * 4 + 1.5
        np.testing.assert_allclose(np.argwhere(image > -500).mean(0), told, atol=1e-6)
        places.add(tuple(told))
    assert len(places) == 16


def test_augmentation_changes_hu_within_its_bounds():
    flat = np.full((16, 16, 16), 0, np.float32)
    target = np.zeros((MAPS, 4, 4, 4), np.float32)
    for seed in range(20):
        image, _ = augment(np.random.default_rng(seed), flat, target, Strength(0.08, 25, 0))
        assert np.ptp(image) == 0
        assert abs(image[0, 0, 0]) <= 80 + 25


def test_box_of_is_air_outside_the_volume():
    grid = Geometry.from_axes((4, 3, 2), [1, 1, 1], (0, 0, 0), np.eye(3))
    volume = Volume(np.arange(24, dtype=np.int16).reshape(2, 3, 4), grid, grid)
    box = box_of(volume, (-1, 1, 2), (4, 3, 3))
    assert box[:, 0, 0].tolist() == [-1000, 6, 18, -1000]
    assert box[1].tolist() == [[6, 7, -1000], [10, 11, -1000], [-1000] * 3]
    assert (box_of(volume, (50, 50, 50), (2, 2, 2)) == -1000).all()


def test_scans_are_given_whole(scans):
    listed = ScanList(scans, scans.store.series_uids[:2], (8, 8, 8))
    item = listed[1]
    assert item["image"].dtype == torch.int16
    assert all(side % 8 == 0 for side in item["image"].shape[1:])
    assert item["candidate"] == 1


@pytest.mark.parametrize("shape", [(30, 48, 48), (16, 48, 8)])
def test_crop_of_a_wrong_size_is_refused(scans, shape):
    with pytest.raises(ValueError, match="give multiples of 16"):
        CropList(scans, scans.store.series_uids, None, shape)
