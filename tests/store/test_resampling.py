import numpy as np
import pytest
import torch
from ct_files import write_ct
from monai.data import MetaTensor
from monai.transforms import Compose, LoadImaged, ScaleIntensityRanged, Spacingd

from luna16_monai.store import resampling as spacing
from luna16_monai.store.preparation import prepare_volume
from luna16_monai.store.reader import CTReader
from luna16_monai.store.resampling import Held, SeparableSpacingd, interpolate_axes

TURNED = np.array([[0.0, -0.8, 0.0, 5.0], [0.6, 0.0, 0.0, -7.0], [0.0, 0.0, 2.0, 3.0], [0.0, 0.0, 0.0, 1.0]])
OBLIQUE = np.diag([0.8, 0.6, 2.0, 1.0]) @ np.array(
    [[np.cos(0.1), -np.sin(0.1), 0, 0], [np.sin(0.1), np.cos(0.1), 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
)


def straight(x, y, z):
    affine = np.diag([x, y, z, 1.0])
    affine[:3, 3] = 10.3, -20.7, 30.1
    return affine


def scan(affine, shape=(9, 11, 7), seed=0):
    hu = torch.from_numpy(np.random.default_rng(seed).integers(-1000, 1000, (1, *shape)).astype(np.float32))
    return MetaTensor(hu, affine=torch.from_numpy(affine))


def both(affine, shape=(9, 11, 7), **settings):
    settings = {
        "pixdim": (0.7, 0.7, 1.25),
        "mode": "bilinear",
        "padding_mode": "border",
        "dtype": np.float32,
        **settings,
    }
    stock, ours = (kind("image", **settings) for kind in (Spacingd, SeparableSpacingd))
    return stock, ours, stock({"image": scan(affine, shape)}), ours({"image": scan(affine, shape)})


@pytest.fixture
def separable_only(monkeypatch):
    """Fail where MONAI's own way is taken."""

    def refuse(*_, **__):
        raise AssertionError("MONAI's way was taken")

    monkeypatch.setattr(spacing.SpatialResample, "__call__", refuse)


def test_interpolate_axes_by_hand():
    # 10 x + 100 y + 1000 z is linear, so any point inside is known; outside the border is repeated
    x, y, z = np.meshgrid(np.arange(3.0), np.arange(2.0), np.arange(4.0), indexing="ij")
    voxels = torch.from_numpy(10 * x + 100 * y + 1000 * z)[None].float()
    out = interpolate_axes(voxels, [np.array([0.5, 1.25, 5.0]), np.array([-1.0, 0.3]), np.array([2.75, 0.0, 3.0])])
    assert out.shape == (1, 3, 2, 3)
    expected = np.array([5, 12.5, 20])[:, None, None] + np.array([0, 30])[:, None] + np.array([2750, 0, 3000])
    np.testing.assert_allclose(out[0].numpy(), expected, atol=1e-3)


@pytest.mark.parametrize(
    "affine",
    [straight(0.5, 0.9, 2.5), straight(-0.5, -0.9, 2.5), straight(0.46, 0.46, 0.45), straight(-0.98, 0.98, -3.0)],
)
def test_separable_spacingd_equals_monais(affine, request):
    stock, ours, expected, result = both(affine)
    np.testing.assert_allclose(result["image"].numpy(), expected["image"].numpy(), atol=0.05)
    assert torch.equal(result["image"].affine, expected["image"].affine)
    back, expected_back = ours.inverse(result)["image"], stock.inverse(expected)["image"]
    np.testing.assert_allclose(back.numpy(), expected_back.numpy(), atol=0.05)
    np.testing.assert_allclose(back.affine, affine, atol=1e-9)
    request.getfixturevalue("separable_only")
    ours({"image": scan(affine)})


def test_separable_spacingd_leaves_a_scan_of_that_spacing_as_it_is():
    _, _, expected, result = both(straight(0.7, 0.7, 1.25))
    assert torch.equal(result["image"].as_tensor(), expected["image"].as_tensor())


@pytest.mark.parametrize(
    ("affine", "settings"),
    [
        (OBLIQUE, {"diagonal": True}),
        (straight(0.5, 0.9, 2.5), {"mode": "nearest"}),
        (straight(0.5, 0.9, 2.5), {"mode": 0}),
        (straight(0.5, 0.9, 2.5), {"padding_mode": "zeros"}),
        (straight(0.5, 0.9, 2.5), {"dtype": np.float64}),
    ],
)
def test_separable_spacingd_takes_monais_way_for_all_else(affine, settings, request):
    _, ours, expected, result = both(affine, **settings)
    assert torch.equal(result["image"].as_tensor(), expected["image"].as_tensor())
    assert torch.equal(result["image"].affine, expected["image"].affine)
    request.getfixturevalue("separable_only")
    with pytest.raises(AssertionError, match="MONAI's way"):
        ours({"image": scan(affine)})


def test_separable_spacingd_of_turned_axes_equals_monais():
    # the spacing changes along the axes as they are stored, so turned axes stay parallel to themselves
    _, _, expected, result = both(TURNED)
    np.testing.assert_allclose(result["image"].numpy(), expected["image"].numpy(), atol=0.05)
    assert torch.equal(result["image"].affine, expected["image"].affine)


# --- held back ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", [(0.7, 0.7, 1.25), (0.5, 0.9, 3.0), (1.0, 0.8, 2.0)])
def test_resampling_that_is_held_back_gives_the_voxels_of_the_whole(tmp_path, spacing):
    rng = np.random.default_rng(1)
    hu = rng.integers(-1024, 1500, (14, 21, 19)).astype(np.int16)
    path = write_ct(tmp_path / "scan.mhd", hu)
    transform = Compose(
        [
            LoadImaged("image", reader=CTReader, ensure_channel_first=True),
            SeparableSpacingd("image", spacing, mode="bilinear", padding_mode="border", dtype=np.float32),
        ]
    )
    whole, held = prepare_volume(path, transform), prepare_volume(path, transform, True)
    assert isinstance(held.voxels, Held)
    assert held.geometry == whole.geometry
    assert held.voxels.shape == whole.voxels.shape
    for z, y, x in [(0, 0, 0), (3, 5, 2), (9, 1, 6), (50, 0, 0)]:
        box = tuple(slice(start, start + side) for start, side in zip((z, y, x), (5, 7, 6), strict=True))
        np.testing.assert_array_equal(held.voxels[box], whole.voxels[box])
    point = whole.geometry.world_from_voxel((4, 3, 5))
    np.testing.assert_array_equal(held.cutout(point), whole.cutout(point))
    # more than the whole was asked for by now: it is made, and gives the same
    everything = (slice(None),) * 3
    for _ in range(2):
        np.testing.assert_array_equal(held.voxels[everything], whole.voxels)
    assert held.voxels.source is None


def test_resampling_is_not_held_back_where_the_list_goes_on(tmp_path):
    hu = np.random.default_rng(1).integers(-1000, 500, (8, 9, 10)).astype(np.int16)
    path = write_ct(tmp_path / "scan.mhd", hu)
    transform = Compose(
        [
            LoadImaged("image", reader=CTReader, ensure_channel_first=True),
            SeparableSpacingd("image", (1, 1, 1), mode="bilinear", padding_mode="border", dtype=np.float32),
            ScaleIntensityRanged("image", -1000, 1000, -500, 500),
        ]
    )
    whole, held = prepare_volume(path, transform), prepare_volume(path, transform, True)
    assert isinstance(held.voxels, np.ndarray)
    np.testing.assert_array_equal(held.voxels, whole.voxels)
