import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from luna16_monai.ct.opening import open_ct
from luna16_monai.tables.points import read_points

pytest.importorskip("matplotlib", reason="the extra `report` is not installed")
SCRIPTS = Path(__file__).parents[1] / "tools"


def load(name):
    spec = importlib.util.spec_from_file_location(f"data_{name}", SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


fidelity, montage = load("fidelity"), load("montage")
sys.modules["montage"] = montage  # as it is called by the script beside it
background_check, real_cutouts = load("background_check"), load("real_cutouts")


def test_wasserstein_is_the_shift_of_a_histogram():
    first, second = np.zeros(20, int), np.zeros(20, int)
    first[[3, 7]] = 10, 30
    second[[5, 9]] = 5, 15
    # all of it moves by 2 bins of 5
    assert fidelity.wasserstein(first, second, 5) == pytest.approx(10)
    assert fidelity.wasserstein(first, first, 5) == 0


def test_ks_distance_is_the_largest_gap():
    # at 2 all of the first and half of the second
    assert fidelity.ks_distance(np.array([1.0, 2.0]), np.array([1.0, 2.0, 3.0, 4.0])) == 0.5
    assert fidelity.ks_distance(np.array([1.0]), np.array([2.0])) == 1


def test_band_shares_adds_up_bins():
    histogram = np.histogram([-1000, -960, -940, -899, -800, 100, 100, 100], fidelity.HU_EDGES)[0]
    # below -950, to -900, to -850, to -700, to -400, to 0, above
    np.testing.assert_allclose(fidelity.band_shares(histogram) * 8, [2, 1, 1, 1, 0, 0, 3])


def test_peak_and_half_interpolates():
    spectrum = np.full(len(fidelity.FREQUENCIES), np.nan)
    spectrum[:5] = 4, 8, 10, 6, 2
    # bins of 0.05: the peak at 0.15, half of it, 5, a quarter of the way from 0.20 to 0.25
    assert fidelity.peak_and_half(spectrum) == pytest.approx((0.15, 0.2125))
    spectrum[3:] = np.nan
    assert np.isnan(fidelity.peak_and_half(spectrum)[1])


def test_noise_spectrum_of_white_noise_is_flat():
    hu = np.random.default_rng(0).normal(50, 20, (24, 128, 128)).round().astype(np.int16)
    spectrum, deviation = fidelity.noise_spectrum(hu, np.array([1.0, 0.7, 0.7]))
    assert deviation == pytest.approx(20, rel=0.05)
    # white noise: variance times a voxel's area, 400 * 0.49 = 196; the lowest go with each patch's mean
    assert np.isnan(spectrum[-1])  # 0.85, beyond the voxels' 0.71 per mm
    np.testing.assert_allclose(spectrum[2:12], 196, rtol=0.1)


def test_noise_spectrum_finds_no_patch_in_air():
    spectrum, deviation = fidelity.noise_spectrum(np.full((2, 64, 64), -1000, np.int16), np.array([1.0, 0.7, 0.7]))
    assert np.isnan(spectrum).all()
    assert np.isnan(deviation)


def test_bright_radii_measures_discs():
    y, x = np.meshgrid(*[(np.arange(80) + 0.5) * 0.6] * 2, indexing="ij")
    # the share of each voxel that discs of 3 and of 1.5 mm fill
    depth = np.maximum(3 - np.hypot(y - 12, x - 12), 1.5 - np.hypot(y - 30, x - 36))
    section = (-900 + 900 * np.clip(depth / 0.6 + 0.5, 0, 1)).astype(np.int16)
    inside = np.ones((1, 80, 80), bool)
    radii = fidelity.bright_radii(section[None], inside, np.array([1.0, 0.6, 0.6]))
    assert np.sort(radii)[-1] == pytest.approx(3, abs=0.35)
    assert np.abs(radii - 1.5).min() < 0.35
    assert fidelity.bright_radii(section[None], ~inside, np.array([1.0, 0.6, 0.6])).size == 0


def test_deep_lung_closes_half_a_chest_only():
    # tissue with a lung of 40 x 30 x 40 mm that runs out of the volume on one side
    hu = np.full((40, 60, 60), 40, np.int16)
    hu[:, 10:40, 20:] = -850
    spacing = np.ones(3)
    inside = fidelity.deep_lung(hu, spacing, half_chest=True)
    assert inside[20, 25, 40]
    assert not inside[20, 11, 40]  # 1.5 mm from the wall
    assert not fidelity.deep_lung(hu, spacing, half_chest=False).any()


def test_windowed_spans_the_lung_window():
    # -1000 to 400 HU
    assert montage.windowed(np.array([-2000, -1000, -300, 400, 3000])).tolist() == [0, 0, 127, 255, 255]


def test_phantom_cutouts_shows_every_kind(phantom_dir):
    nodules, others = montage.phantom_cutouts(phantom_dir, 4, np.random.default_rng(0))
    assert len(nodules) == len(others) == 4
    assert all(picture.shape == (51, 51) for picture, _ in nodules + others)
    assert {title for _, title in others} == {"class 0"}
    assert len({title.split(",")[0] for _, title in nodules}) >= 2


def test_section_of_a_blurred_disc():
    y, x = np.indices((121, 121)) * 0.5
    away = np.hypot(y - 30, x - 30)
    # a disc of 4 mm, 0.5 mm of blur
    hu = np.rint(-850 + 900 * ndimage.gaussian_filter((away < 4).astype(float), 1)).astype(np.int16)
    found = background_check.section(hu, np.array([60, 60]), 0.5)
    assert found.radius_mm == pytest.approx(4, abs=0.2)  # blur draws the contour of a disc in
    assert found.contrast_hu == pytest.approx(900, abs=5)
    # 1.68 deviations, and what bins of 0.3 mm and a grid of 0.17 mm add
    assert background_check.rise_mm([found.edge] * 3) == pytest.approx(1.68 * 0.5, abs=0.12)
    assert background_check.section(hu, np.array([30, 30]), 0.5) is None


def test_second_difference_keeps_noise_and_drops_slopes():
    y, x = np.indices((200, 200))
    noise = np.random.default_rng(0).normal(0, 20, (200, 200))
    assert background_check.second_difference(3.0 * y + 7 * x).max() == 0
    assert background_check.second_difference(3.0 * y + 7 * x + noise).std() == pytest.approx(20, rel=0.03)


def test_steps_along_z_counts_the_middle_of_four_slices():
    column = np.array([-850, -850, -700, 0, 50, 50])
    hu = np.tile(column[:, None, None], (1, 20, 20))
    steps = background_check.steps_along_z(hu, np.array([3, 0.6, 0.6]), np.ones(hu.shape, bool))
    # from -850 over -700 and 0 to 50: 700 of 900; the other fours cross their middle elsewhere
    assert len(steps) == 400
    assert steps[0].tolist() == pytest.approx([700, 900], abs=0.1)


def test_write_as_cts_puts_each_candidate_in_the_middle_of_its_own_ct(tmp_path):
    hu = np.full((32, 48, 48), -850, np.int16)
    hu[16, 24, 24] = 77
    np.save(tmp_path / "a.npy", hu)
    (tmp_path / "cutouts.csv").write_text(
        "file,label,diameter_mm,spacing_z,spacing_y,spacing_x\na.npy,1,6.74,2.5,0.6,0.5\na.npy,0,-1,1,0.7,0.7\n",
        encoding="utf-8",
    )
    paths, names = real_cutouts.write_as_cts(tmp_path, tmp_path)
    assert names == ["nodule, 6.7 mm", "class 0"]
    points = read_points(tmp_path / "points.csv", "class")
    # 24 x 0.5, 24 x 0.6 and 16 x 2.5 mm from the first voxel's centre
    np.testing.assert_allclose(points.points_xyz, [[12, 14.4, 40], [16.8, 16.8, 16]], atol=1e-6)
    for path, point in zip(paths, points.points_xyz, strict=True):
        ct = open_ct(path)
        assert ct.read()[tuple(np.rint(ct.geometry.voxel_from_world(point)).astype(int))] == 77
