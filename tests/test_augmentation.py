"""The fused augmentation against MONAI's transforms as written."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from monai.transforms import Compose, RandAffined, RandFlipd, RandGaussianNoised, RandRotate90d

from luna16_monai.augmentation import FusedAugmentation, augmentation, resample_axial


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
    fused, stock = augmentation(parts), Compose(copy.deepcopy(parts))
    assert isinstance(fused, FusedAugmentation)
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
    fused = augmentation(transforms(0.0, rotate_range=[0.0] * 3, translate_range=[0.0] * 3, scale_range=[0.0] * 3))
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
    assert torch.allclose(resample_axial(image, matrix, z, plane), expected)


def test_fused_noise_is_25_hu_and_follows_the_seed() -> None:
    fused = augmentation(transforms())
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


def test_fused_leaves_the_global_random_state_alone() -> None:
    fused = augmentation(transforms())
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
    chosen = augmentation(changed)
    assert type(chosen) is Compose
    assert list(chosen.transforms) == changed
