import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from luna16_monai.ct.metaimage import write_mhd
from luna16_monai.geometry.grid import Geometry
from luna16_monai.phantom.background import (
    Background,
    blurred_share,
    insert_nodule,
    read_background,
    spread_backgrounds,
    write_background_phantom,
)
from luna16_monai.phantom.data_set import plan_scans
from luna16_monai.phantom.lesions import Look, load_shape_bank, nodule_share
from luna16_monai.phantom.nodules import ScanSettings
from luna16_monai.phantom.scan import draw_scan
from luna16_monai.tables.luna16 import read_annotations, read_candidates, read_excluded

SHARED = Path(os.environ.get("LUNA16_SHARED", "../shared"))


@pytest.fixture(scope="module")
def chest_ct(tmp_path_factory):
    settings = ScanSettings(slices=(44, 44), rows=96, nodules=(1, 1), negatives_per_positive=0.0)
    scan = draw_scan(plan_scans(1, 5, load_shape_bank())[0], 5, settings)
    path = tmp_path_factory.mktemp("background") / "real.mhd"
    write_mhd(path, scan.hu, scan.geometry)
    return path


@pytest.fixture(scope="module")
def background_phantom(chest_ct, tmp_path_factory):
    output = tmp_path_factory.mktemp("output")
    write_background_phantom(chest_ct, output, 3, seed=1, workers=1, progress=False, nodules=(2, 3), negatives=10)
    return output


def test_write_background_phantom_adds_nodules_and_changes_nothing_else(chest_ct, background_phantom):
    real = sitk.ReadImage(str(chest_ct))
    annotations = read_annotations(background_phantom)
    assert len(annotations.series_uids) == 3
    for code, uid in enumerate(annotations.series_uids):
        scan = sitk.ReadImage(str(next(background_phantom.glob(f"subset?/{uid}.mhd"))))
        same = sitk.GetArrayFromImage(sitk.Resample(real, scan, sitk.Transform(), sitk.sitkNearestNeighbor))
        added = sitk.GetArrayFromImage(scan).astype(int) - same
        assert (added >= 0).all()
        rows = annotations.series == code
        near = np.zeros(added.shape, bool)
        for point, diameter in zip(annotations.points_xyz[rows], annotations.values[rows], strict=True):
            index = scan.TransformPhysicalPointToIndex(point.tolist())[::-1]
            gap = (np.indices(added.shape).T - index) * np.array(scan.GetSpacing()[::-1])
            distance = np.sqrt((gap**2).sum(-1)).T
            near |= distance < 1.5 * diameter + 4
            assert added[distance < diameter / 2 + 1].max() > 100
        assert (added[~near] == 0).all()


def test_write_background_phantom_gives_each_scan_a_patient_and_both_classes(background_phantom):
    patients = [
        line.split(",")[1] for line in (background_phantom / "patients.csv").read_text(encoding="utf-8").split()[1:]
    ]
    assert len(set(patients)) == 3
    candidates = read_candidates(background_phantom)
    for code in range(3):
        values = candidates.values[candidates.series == code]
        assert (values == 1).sum() >= 2
        assert (values == 0).sum() >= 3
    assert len(read_excluded(background_phantom)) == 0


def test_write_background_phantom_second_call_does_nothing(chest_ct, background_phantom):
    again = write_background_phantom(chest_ct, background_phantom, 3, 1, nodules=(2, 3), negatives=10, progress=False)
    assert again["cached"]


@pytest.mark.parametrize(("backgrounds", "most"), [(1, 1), (3, 1), (10, 1), (23, 3)])
def test_spread_backgrounds_uses_all_and_few_in_each_subset(backgrounds, most):
    plans = spread_backgrounds(plan_scans(60, 0, load_shape_bank()), backgrounds)
    assert {plan.background for plan in plans} == set(range(backgrounds))
    assert [plan.background for plan in plans] == sorted(plan.background for plan in plans)
    of_subset = [{plan.background for plan in plans if plan.subset == subset} for subset in range(10)]
    assert max(map(len, of_subset)) == most
    if backgrounds >= 10:
        # none is in two subsets
        assert sum(map(len, of_subset)) == backgrounds


def test_read_background_refuses_what_holds_no_lungs(tmp_path, chest_ct):
    image = sitk.ReadImage(str(chest_ct))
    sitk.WriteImage(sitk.Clamp(image, lowerBound=-200, upperBound=3000), str(tmp_path / "head.mhd"))
    with pytest.raises(ValueError, match=r"no lungs in head.mhd \(less than 20 ml .* give a chest CT"):
        read_background(tmp_path / "head.mhd")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_background(tmp_path / "nothing.mhd")


def scene_of(hu, spacing, blur, noise_growth=0.0):
    nothing = np.empty((0, 3))
    affine = np.eye(4)
    affine[:3, :3] = np.diag(spacing)[::-1]
    return Background(hu, Geometry(hu.shape, affine), *[nothing] * 5, np.array(blur), noise_growth)


def variances(share, spacing):
    """Of a share's distribution along each axis, mm²; those of blurs add up."""
    index = np.indices(share.shape)
    middle = [(index[i] * share).sum() / share.sum() for i in range(3)]
    return np.array([((index[i] - middle[i]) ** 2 * share).sum() / share.sum() * spacing[i] ** 2 for i in range(3)])


def test_blurred_share_has_the_blur_of_the_scan():
    bank, spacing, look = load_shape_bank(), np.array([3.0, 0.6, 0.6]), Look("solid", 0, None, 2.95)
    shape = int(np.argmin(np.abs(bank.diameter_mm - 9)))
    place, turn = np.array([30.7, 29.9, 30.2]), np.eye(3)
    _, drawn = nodule_share(bank, shape, look, turn, place, (300, 300, 300), np.full(3, 0.2))
    box, share = blurred_share(
        scene_of(np.zeros((20, 100, 100), np.int16), spacing, [1.3, 0.5, 0.7]), bank, shape, look, turn, place
    )
    assert share.sum() * spacing.prod() == pytest.approx(drawn.sum() * 0.2**3, rel=0.02)
    # less the 0.25 mm that the share has as drawn
    wanted = np.array([1.3, 0.5, 0.7]) ** 2 - 0.25**2
    assert variances(share, spacing) - variances(drawn, [0.2] * 3) == pytest.approx(wanted, abs=0.1)
    index = np.indices(share.shape).reshape(3, -1) + [[s.start + 0.5] for s in box]
    middle = (index * share.ravel()).sum(1) / share.sum() * spacing
    assert middle == pytest.approx(place, abs=0.15)


def test_insert_nodule_scales_the_scans_noise_and_hides_vessels():
    rng = np.random.default_rng(0)
    bank, spacing = load_shape_bank(), np.array([3.0, 0.6, 0.6])
    shape = int(np.argmin(np.abs(bank.diameter_mm - 20) + 100 * ((bank.texture < 4.8) | (bank.calcification < 6))))
    hu = np.rint(20 * rng.standard_normal((30, 120, 120)) - 850).astype(np.int16)
    hu[:, :, 64:66] += 500
    inserted = hu.copy()
    scene = scene_of(hu, spacing, [1.3, 0.4, 0.4], noise_growth=0.5 / 850)
    insert_nodule(rng, inserted, scene, bank, shape, np.array([45.0, 36.0, 36.0]), "isolated")
    core = ndimage.binary_erosion(
        ndimage.gaussian_filter((inserted > -200).astype(float), (0, 1, 1)) > 0.9, np.ones((1, 5, 5))
    )
    assert core.sum() > 300
    vessel, away = core[:, :, 64:66], core.copy()
    away[:, :, 58:72] = False
    assert vessel.sum() > 20
    body = inserted[away].mean()
    # noise of 20 HU grows by half where 850 HU are added, less outliers and what the median follows
    noise = np.diff(np.diff(inserted.astype(float), axis=1), axis=2)[away[:, 1:, 1:]] / 2
    assert noise.std() == pytest.approx(20 * (1 + 0.5 * (body + 850) / 850), rel=0.08)
    assert inserted[:, :, 64:66][vessel].mean() == pytest.approx(body, abs=30)


@pytest.mark.skipif(not (SHARED / "data/ct_dicom").is_dir(), reason="the real CT of LUNA16_SHARED is absent")
def test_read_background_finds_both_lungs_of_a_real_ct():
    scene = read_background(SHARED / "data/ct_dicom")
    lungs_l = len(scene.lung_zyx) * scene.spacing_zyx.prod() * 4 / 1e6
    assert 2 < lungs_l < 7
    assert 1.2 < scene.blur_zyx_mm[0] < 1.7
    assert (scene.blur_zyx_mm[1:] > 0.2).all()
    assert (scene.blur_zyx_mm[1:] < 0.5).all()
    assert 0.1 < 850 * scene.noise_growth < 0.5
    assert scene.depth_mm.max() > 20
    assert len(scene.blobs_zyx) > 100
