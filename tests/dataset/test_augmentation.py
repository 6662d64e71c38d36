"""The fused augmentation against MONAI's transforms as written."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from monai.data import DataLoader, list_data_collate, set_track_meta
from monai.engines.utils import default_prepare_batch
from monai.transforms import (
    Compose,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandRotate90d,
    ScaleIntensityRanged,
)

from luna16_monai.dataset.augmentation import Augmentation, DeviceAugmentation, FusedAugmentation, resample_axial
from luna16_monai.dataset.cache import SeededCacheDataset


def transforms(std: float = 25.0, **affine: Any) -> list[Any]:
    affine = {
        "prob": 1.0,
        "rotate_range": [math.pi, 0.0, 0.0],
        "translate_range": [1.6, 2.4, 2.4],
        "scale_range": [0.2, 0.2, 0.2],
        "spatial_size": [32, 48, 48],
        "mode": "bilinear",
        "padding_mode": "border",
        **affine,
    }
    return [
        *(RandFlipd("image", prob=0.5, spatial_axis=axis) for axis in range(3)),
        RandAffined("image", **affine),
        RandGaussianNoised("image", prob=1.0, mean=0.0, std=std, sample_std=False),
    ]


@pytest.mark.parametrize("shape", [(32, 48, 48), (42, 60, 68)])
def test_fused_equals_monai_for_the_same_draws(shape: tuple[int, int, int]) -> None:
    parts = transforms(std=0.0)
    fused, stock = FusedAugmentation(parts), Compose(copy.deepcopy(parts))
    image = torch.randint(-1000, 1000, (1, *shape), generator=torch.Generator().manual_seed(1), dtype=torch.int16)
    flipped = 0
    for seed in range(40):
        fused.set_random_state(seed)
        stock.set_random_state(seed)
        ours, theirs = fused({"image": image})["image"], stock({"image": image})["image"]
        assert ours.shape == (1, 32, 48, 48)
        # neighbours differ by up to 2,000 HU here, so a coordinate's rounding of 1e-6 voxels shows as 0.01 HU
        assert torch.as_tensor(theirs).sub(ours).abs().max() < 0.05
        flipped += sum(part._do_transform for part in parts[:3])
    assert 30 < flipped < 90


def test_fused_keeps_the_image_where_nothing_is_drawn() -> None:
    fused = FusedAugmentation(transforms(0.0, rotate_range=[0.0] * 3, translate_range=[0.0] * 3, scale_range=[0.0] * 3))
    for flip in fused.flips:
        flip.prob = 0.0
    image = torch.arange(32 * 48 * 48).reshape(1, 32, 48, 48).float() / 100
    assert torch.allclose(fused({"image": image})["image"], image, atol=1e-2)


def test_resample_axial_by_hand() -> None:
    image = torch.tensor([[[0.0, 10.0], [20.0, 30.0]], [[100.0, 110.0], [120.0, 130.0]]])
    z = torch.tensor([-0.5, 0.5])
    y, x = torch.meshgrid(z, z, indexing="ij")
    plane = torch.stack([y, x, torch.ones(2, 2)], dim=-1)
    matrix = torch.eye(4)
    matrix[0, 3] = 0.25  # a quarter slice up: the last one is already at the border
    matrix[1:3, 1:3] = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])  # output (y, x) looks at input (x, -y)
    expected = torch.tensor([[[35.0, 55.0], [25.0, 45.0]], [[110.0, 130.0], [100.0, 120.0]]])
    images, matrices = torch.stack([image, image + 7]), torch.stack([matrix, torch.eye(4)])
    out = resample_axial(images, matrices, z, plane)
    assert torch.allclose(out[0], expected)
    assert torch.allclose(out[1], image + 7)


def test_fused_noise_is_25_hu_and_follows_the_seed() -> None:
    fused = FusedAugmentation(transforms())
    flat = torch.full((1, 32, 48, 48), -300, dtype=torch.int16)
    fused.set_random_state(3)
    first = fused({"image": flat})["image"]
    other = fused({"image": flat})["image"]
    fused.set_random_state(3)
    again = fused({"image": flat})["image"]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    # 73,728 draws: the mean is within 5 standard errors, 0.46; the deviation likewise, 0.33
    assert abs(first.mean() + 300) < 0.46
    assert abs(first.std() - 25) < 0.33


@pytest.mark.slow
def test_fused_gives_the_same_in_a_worker_that_is_no_fork() -> None:
    image = torch.randint(-1000, 1000, (1, 32, 48, 48), generator=torch.Generator().manual_seed(1), dtype=torch.int16)
    dataset = SeededCacheDataset([{"image": image}], Compose([FusedAugmentation(transforms())]), progress=False)
    here = dataset[0, 7]["image"]
    loader = DataLoader(dataset, sampler=[(0, 7)], num_workers=1, multiprocessing_context="spawn")
    assert torch.equal(next(iter(loader))["image"][0], here)


def test_fused_leaves_the_global_random_state_alone() -> None:
    fused = FusedAugmentation(transforms())
    before = torch.get_rng_state()
    fused({"image": torch.zeros(1, 32, 48, 48, dtype=torch.int16)})
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "changed",
    [
        transforms(rotate_range=[math.pi, 0.1, 0.0]),
        transforms(shear_range=[0.1] * 6),
        transforms(mode="nearest"),
        transforms(padding_mode="zeros"),
        transforms(prob=0.5),
        transforms(spatial_size=None),
        transforms()[:-1],
        [*transforms(), RandRotate90d("image")],
        [RandRotate90d("image"), *transforms()],
        [RandFlipd("image", prob=0.5), *transforms()[3:]],
        [*transforms()[:4], RandGaussianNoised("image", prob=1.0, std=25.0)],
        [],
    ],
)
def test_augmentation_runs_monai_as_written_where_the_form_differs(changed: list[Any]) -> None:
    chosen = Augmentation(changed, on_device=True)
    assert chosen.transforms == changed
    assert chosen.prepare_batch is default_prepare_batch


CLIP = ScaleIntensityRanged("image", -1000, 1000, -1000, 1000, clip=True)


def test_augmentation_is_fused_in_the_loader() -> None:
    chosen = Augmentation(transforms(), [CLIP])
    assert [type(part) for part in chosen.transforms] == [FusedAugmentation, ScaleIntensityRanged]
    assert chosen.prepare_batch is default_prepare_batch


def on_both_ways(device: str, std: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Five cutouts augmented in the loader, and the same draws on a device, twice."""
    set_track_meta(False)
    images = torch.randint(-1200, 1200, (5, 1, 36, 50, 52), generator=torch.Generator().manual_seed(2)).short()
    data = [{"image": image, "label": number % 2, "candidate": number} for number, image in enumerate(images)]
    found = []
    for on_device in (False, True):
        chosen = Augmentation(transforms(std), [CLIP], on_device)
        dataset = SeededCacheDataset(data, Compose(chosen.transforms), cache_gb=1, progress=False)
        batch = list_data_collate([dataset[(number, 40 + number)] for number in range(5)])
        assert batch["image"].dtype == (torch.int16 if on_device else torch.float32)
        for _ in range(1 + on_device):
            image, label = chosen.prepare_batch(batch, torch.device(device), False)
            assert label.tolist() == [0, 1, 0, 1, 0]
            assert image.device.type == torch.device(device).type
            found.append(image.cpu())
    return found[0], found[1], found[2]


def check_on_device(device: str) -> None:
    loader, ours, again = on_both_ways(device, 0.0)
    assert loader.shape == ours.shape == (5, 1, 32, 48, 48)
    # neighbours differ by up to 2,400 HU: see above
    assert (loader - ours).abs().max() < 0.05
    assert torch.equal(ours, again)
    noisy = on_both_ways(device, 25.0)
    assert torch.equal(noisy[1], noisy[2])
    inside = ours.abs() < 900
    noise = (noisy[1] - ours)[inside]
    assert abs(noise.mean()) < 0.3
    assert abs(noise.std() - 25) < 0.3


def test_device_augmentation_equals_the_loaders() -> None:
    check_on_device("cpu")
    assert isinstance(Augmentation(transforms(), on_device=True).prepare_batch, DeviceAugmentation)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_device_augmentation_equals_the_loaders_on_cuda() -> None:
    check_on_device("cuda")


@pytest.mark.parametrize("cache_gb", [0.0, 1.0])
def test_batch_at_once_equals_one_by_one(cache_gb: float) -> None:
    images = torch.randint(-1200, 1200, (5, 1, 36, 50, 52), generator=torch.Generator().manual_seed(2)).short()
    items = [{"image": image, "label": index} for index, image in enumerate(images)]
    transform = Compose([FusedAugmentation(transforms()), CLIP])
    dataset = SeededCacheDataset(items, transform, cache_gb=cache_gb, progress=False)
    wanted = [(3, 11), (0, 5), (3, 12), (4, 11)]
    at_once = dataset.__getitems__(wanted)
    for pair, item in zip(wanted, at_once, strict=True):
        alone = dataset[pair]
        assert item["label"] == alone["label"] == pair[0]
        torch.testing.assert_close(item["image"], alone["image"], rtol=0, atol=2e-3)
        assert item["image"].shape == (1, 32, 48, 48)
    assert not torch.equal(at_once[0]["image"], at_once[2]["image"])
    assert torch.equal(dataset.__getitems__(wanted)[2]["image"], at_once[2]["image"])


def test_batch_goes_one_by_one_where_a_later_transform_may_look_at_more_than_a_voxel() -> None:
    items = [{"image": torch.zeros(1, 36, 50, 52, dtype=torch.int16)}]
    seen: list[tuple[int, ...]] = []

    def look(item: dict[str, Any]) -> dict[str, Any]:
        seen.append(tuple(item["image"].shape))
        return item

    dataset = SeededCacheDataset(items, Compose([FusedAugmentation(transforms()), look]), progress=False)
    dataset.__getitems__([(0, 1), (0, 2)])
    assert seen == [(1, 32, 48, 48)] * 2
