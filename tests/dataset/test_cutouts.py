"""The bundle's pipelines for one candidate, against the same computed plainly with NumPy and SciPy."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose, RandAffined, RandFlipd
from numpy.typing import NDArray
from scipy import ndimage

from luna16_monai.dataset.candidates import CandidateList
from luna16_monai.dataset.cutouts import LoadCutoutd
from luna16_monai.dataset.splits import Split
from luna16_monai.store.reading import Store

TRAIN_YAML = Path(__file__).parents[2] / "bundles" / "nodule_classification" / "configs" / "train.yaml"
SHAPE_ZYX = (32, 48, 48)
MARGIN_ZYX = (4, 9, 11)


def parser(store_dir: Path, **settings: Any) -> ConfigParser:
    """The bundle's train.yaml with these settings."""
    config = ConfigParser.load_config_file(str(TRAIN_YAML))
    return ConfigParser({**config, "store_dir": str(store_dir), **settings})


@pytest.fixture(scope="module")
def candidates(phantom_dir, store_dir) -> CandidateList:
    return Split(phantom_dir, Store(store_dir), validation_stride=3).train


def raw_box(store_dir: Path, item: Mapping[str, Any], margin_zyx: tuple[int, ...]) -> NDArray[np.float64]:
    """The voxels around a candidate, read out of the whole volume by slicing, with air outside."""
    volume = Store(store_dir).volume(item["series_uid"])
    whole = np.pad(volume.voxels[:].astype(float), 64, constant_values=-1000)
    nearest = np.floor(volume.geometry.voxel_from_world(item["point_xyz"]) + 0.5).astype(int)
    low = nearest + 64 - np.array(SHAPE_ZYX) // 2 - margin_zyx
    return whole[tuple(slice(a, a + n + 2 * m) for a, n, m in zip(low, SHAPE_ZYX, margin_zyx, strict=True))]


def affine_by_scipy(
    box: NDArray[np.float64], angle: float, scale: Sequence[float], offset: Sequence[float]
) -> NDArray[np.float64]:
    """Trilinear resampling about the middle: output voxel p looks at middle + R (scale * p + offset).

    R turns about z: y' = cos y - sin x, x' = sin y + cos x.
    """
    z, y, x = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in SHAPE_ZYX), indexing="ij")
    z, y, x = (s * p + o for s, p, o in zip(scale, (z, y, x), offset, strict=True))
    y, x = math.cos(angle) * y - math.sin(angle) * x, math.sin(angle) * y + math.cos(angle) * x
    middle = [(n - 1) / 2 for n in box.shape]
    positions = [p + m for p, m in zip((z, y, x), middle, strict=True)]
    return ndimage.map_coordinates(box, positions, order=1, mode="nearest")


def drawn(affine: RandAffined) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """Angle about z, scale and offset (z, y, x) that a RandAffined has used.

    They are read from its matrix: MONAI draws its parameters once more after it has used them.
    """
    matrix = np.asarray(affine.rand_affine.rand_affine_grid.get_transformation_matrix(), float)
    angle = math.atan2(matrix[2, 1], matrix[1, 1])
    scale = np.array([matrix[0, 0], math.hypot(*matrix[1:3, 1]), math.hypot(*matrix[1:3, 2])])
    c, s = math.cos(angle), math.sin(angle)
    rotation = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    np.testing.assert_allclose(matrix[:3, :3], rotation * scale, atol=1e-6)
    return angle, scale, rotation.T @ matrix[:3, 3]


def parts(transform: Any) -> list[Any]:
    """The transforms inside a list of transforms, however deep."""
    return [p for t in transform.transforms for p in parts(t)] if isinstance(transform, Compose) else [transform]


# --- reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("margin_zyx", [(0, 0, 0), MARGIN_ZYX])
def test_load_cutoutd_reads_the_box_with_its_margin(candidates, store_dir, margin_zyx):
    load = LoadCutoutd("image", store_dir, margin_zyx=margin_zyx)
    for index in range(0, len(candidates), 7):
        given = candidates[index]
        item = load(given)
        assert item.keys() == {"image", "label", "candidate"}
        assert item["image"].dtype == torch.int16
        np.testing.assert_array_equal(item["image"][0].numpy(), raw_box(store_dir, given, margin_zyx))
        # the item that was given stays as it was
        assert given.keys() == {"series_uid", "point_xyz", "label", "candidate"}


def test_load_cutoutd_puts_the_candidates_voxel_in_the_middle(candidates, store_dir):
    store, given = Store(store_dir), candidates[0]
    volume = store.volume(given["series_uid"])
    nearest = tuple(np.floor(volume.geometry.voxel_from_world(given["point_xyz"]) + 0.5).astype(int).tolist())
    assert LoadCutoutd("image", store)(given)["image"][0, 16, 24, 24] == volume.voxels[nearest]
    box = LoadCutoutd("image", store, margin_zyx=MARGIN_ZYX)(given)["image"]
    assert box[0, 16 + 4, 24 + 9, 24 + 11] == volume.voxels[nearest]


def test_load_cutoutd_fills_every_key_and_takes_another_shape(candidates, store_dir):
    item = LoadCutoutd(["image", "copy"], store_dir, shape_zyx=(8, 6, 4))(candidates[0])
    assert item["image"].shape == item["copy"].shape == (1, 8, 6, 4)
    assert torch.equal(item["image"], item["copy"])


# --- MONAI's conventions, on which the YAML relies ------------------------------------------------------------------


def test_rand_flipd_axes_are_z_y_x():
    image = torch.arange(2 * 3 * 4).reshape(1, 2, 3, 4)
    for axis in range(3):
        flipped = RandFlipd("image", prob=1.0, spatial_axis=axis)({"image": image})["image"]
        np.testing.assert_array_equal(flipped[0].numpy(), np.flip(image[0].numpy(), axis))


def draw(times: int, **ranges: Any) -> Iterator[tuple[float, NDArray[np.float64], NDArray[np.float64]]]:
    affine = RandAffined("image", prob=1.0, spatial_size=(2, 2, 2), **ranges)
    affine.set_random_state(3)
    for _ in range(times):
        affine({"image": torch.zeros(1, 2, 2, 2)})
        yield drawn(affine)


def test_rand_affined_turns_the_image_in_the_axial_plane_for_the_first_range_alone():
    quarter = RandAffined("image", prob=1.0, rotate_range=[(math.pi / 2, math.pi / 2), 0.0, 0.0], mode="bilinear")
    image = torch.arange(2 * 3 * 3).reshape(1, 2, 3, 3).float()
    turned = quarter({"image": image})["image"]
    # output (y, x) looks at input (-x, y), counted from the middle: (-1, -1) at (1, -1)
    np.testing.assert_allclose(turned[0, 0], [[6, 3, 0], [7, 4, 1], [8, 5, 2]], atol=1e-4)
    np.testing.assert_allclose(turned[0, 1], [[15, 12, 9], [16, 13, 10], [17, 14, 11]], atol=1e-4)


def test_rand_affined_turns_by_the_full_circle_and_nothing_else():
    draws = list(draw(400, rotate_range=[math.pi, 0.0, 0.0]))
    for _, scale, offset in draws:
        np.testing.assert_allclose(scale, 1, atol=1e-6)
        np.testing.assert_allclose(offset, 0, atol=1e-6)
    # 50 expected in each eighth, with a standard deviation of 6.6
    counts, _ = np.histogram([angle for angle, _, _ in draws], 8, (-math.pi, math.pi))
    assert counts.sum() == 400
    assert (abs(counts - 50) < 5 * 6.6).all()


def test_rand_affined_scale_and_offset_are_in_z_y_x():
    draws = list(draw(400, scale_range=[0.2, 0.1, 0.05], translate_range=[1.6, 2.4, 0.3]))
    scales, offsets = (np.array(values) for values in list(zip(*draws, strict=True))[1:])
    # of 400 uniform draws the outermost are within 5 % of the ends, but for one case in a million
    for values, reach in ((scales - 1, [0.2, 0.1, 0.05]), (offsets, [1.6, 2.4, 0.3])):
        np.testing.assert_allclose(values.max(axis=0), reach, rtol=0.05)
        np.testing.assert_allclose(values.min(axis=0), np.negative(reach), rtol=0.05)
        assert (abs(values) <= np.array(reach) + 1e-6).all()


# --- the whole pipelines --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("margin_zyx", [(0, 0, 0), MARGIN_ZYX])
@pytest.mark.parametrize("written", [False, True], ids=["as the bundle runs it", "MONAI's transforms as written"])
def test_training_pipeline_equals_numpy_and_scipy(candidates, store_dir, margin_zyx, written):
    config = parser(store_dir, margin_zyx=list(margin_zyx))
    if written:
        config["train#preprocessing#transforms"] = (
            "$@train#deterministic_transforms + @train#random_transforms + @train#final_transforms"
        )
    pipeline = config.get_parsed_content("train#preprocessing")
    inside = parts(pipeline)
    flips = [part for part in inside if isinstance(part, RandFlipd)]
    (affine,) = [part for part in inside if isinstance(part, RandAffined)]
    assert [flip.flipper.spatial_axis for flip in flips] == [0, 1, 2]
    augmentation = Compose(pipeline.transforms[1:-2])
    seen_flips = set()
    for seed in range(6):
        given = candidates[seed * 5]
        box = raw_box(store_dir, given, margin_zyx)
        pipeline.set_random_state(seed)
        state = copy.deepcopy(augmentation)
        got = pipeline(given)["image"]
        # the same draws on a box of zeros leave the noise alone
        noise = state({"image": torch.zeros(1, *box.shape)})["image"][0].numpy().astype(float)
        assert 24 < noise.std() < 26
        for axis, flip in enumerate(flips):
            if flip._do_transform:
                seen_flips.add(axis)
                box = np.flip(box, axis)
        angle, scale, offset = drawn(affine)
        assert (abs(scale - 1) <= 0.2).all()
        assert (abs(offset) <= [1.6, 2.4, 2.4]).all()
        expected = np.clip(affine_by_scipy(box, angle, scale, offset) + noise, -1000, 1000)
        assert type(got) is torch.Tensor
        assert got.dtype == torch.float32
        # neighbouring voxels differ by up to 3,000 HU, and positions are float32
        np.testing.assert_allclose(got[0].numpy(), expected, rtol=0, atol=0.1)
        assert abs(got[0].numpy() - np.clip(box[tuple(map(slice, SHAPE_ZYX))], -1000, 1000)).mean() > 10
    assert seen_flips == {0, 1, 2}


@pytest.mark.parametrize(("margin_zyx", "whole"), [((0, 0, 0), False), ((0, 10, 10), True)])
def test_load_cutoutd_with_a_margin_fills_a_turned_box_with_tissue(candidates, store_dir, margin_zyx, whole):
    """Turned by 45 degrees the corners lie 23.5 * sqrt(2) = 33.2 voxels from the middle, 9.7 beyond the box."""
    eighth = math.pi / 4
    turn = RandAffined(
        "image",
        prob=1.0,
        rotate_range=[(eighth, eighth), 0.0, 0.0],
        spatial_size=SHAPE_ZYX,
        mode="bilinear",
        padding_mode="border",
    )
    read = Compose([LoadCutoutd("image", store_dir, margin_zyx=margin_zyx), turn])
    # the truth is cut out of so large a box that nothing of its border is seen
    truth = affine_by_scipy(raw_box(store_dir, candidates[3], (0, 20, 20)), eighth, [1, 1, 1], [0, 0, 0])
    difference = abs(read(candidates[3])["image"][0].numpy() - truth)
    assert difference[:, 16:32, 16:32].max() < 0.1
    assert (difference.max() < 0.1) == whole


def test_pipelines_end_with_a_clip_to_1000_hu_and_do_not_rescale(store_dir):
    image = torch.tensor([-3000.0, -1000.5, -1000, -999.5, 0, 999.5, 1000, 3000]).reshape(1, 2, 2, 2)
    for name in ("train", "validate"):
        last = parser(store_dir).get_parsed_content(f"{name}#preprocessing").transforms[-2:]
        clipped = Compose(last)({"image": image})["image"]
        expected = [-1000, -1000, -1000, -999.5, 0, 999.5, 1000, 1000]
        np.testing.assert_allclose(clipped.ravel(), expected, atol=1e-3)


def test_validation_pipeline_is_the_raw_cutout_clipped(candidates, store_dir):
    # a margin is for the augmentation, and changes nothing here
    pipeline = parser(store_dir, margin_zyx=[4, 9, 11]).get_parsed_content("validate#preprocessing")
    for index in range(0, len(candidates), 5):
        first, again = (pipeline(candidates[index]) for _ in range(2))
        raw = raw_box(store_dir, candidates[index], (0, 0, 0))
        np.testing.assert_allclose(first["image"][0].numpy(), np.clip(raw, -1000, 1000), rtol=0, atol=1e-4)
        assert torch.equal(first["image"], again["image"])
        assert type(first["image"]) is torch.Tensor
        assert first["image"].dtype == torch.float32
        assert (first["label"], first["candidate"]) == (int(candidates.labels[index]), index)


def test_validation_pipeline_holds_nothing_random(store_dir):
    for part in parts(parser(store_dir).get_parsed_content("validate#preprocessing")):
        assert not type(part).__name__.startswith("Rand")


def test_load_cutoutd_reads_a_volume_whole_from_half_its_voxels_on(store_dir):
    store = Store(store_dir)
    uid = store.series_uids[0]
    voxels = math.prod(store.volume(uid).geometry.shape_zyx)
    load = LoadCutoutd("image", store, (1, 1, 1))
    for cutouts, whole in ((voxels // 2 - 1, False), (-(-voxels // 2), True)):
        with load.reading(uid, cutouts):
            assert isinstance(store.volume(uid).voxels, np.ndarray) is whole
