import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from luna16_monai.background import estimate_blur, find_lungs, read_background, write_background_phantom
from luna16_monai.candidates import read_annotations, read_candidates, read_excluded
from luna16_monai.lesions import load_shape_bank
from luna16_monai.phantom import plan_scans, write_mhd
from luna16_monai.placement import ScanSettings
from luna16_monai.synthesis import draw_scan

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


def test_read_background_refuses_what_holds_no_lungs(tmp_path, chest_ct):
    image = sitk.ReadImage(str(chest_ct))
    sitk.WriteImage(sitk.Clamp(image, lowerBound=0, upperBound=100), str(tmp_path / "head.mhd"))
    with pytest.raises(ValueError, match=r"no lungs in head.mhd \(less than 20 ml .* give a chest CT"):
        read_background(tmp_path / "head.mhd")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_background(tmp_path / "nothing.mhd")


def test_find_lungs_takes_enclosed_air_with_its_vessels():
    hu = np.full((20, 60, 60), -1000.0)
    hu[:, 5:55, 5:55] = 40  # a body in air
    hu[:, 10:50, 10:24] = hu[:, 10:50, 36:50] = -850  # two lungs
    hu[:, 20:23, 15:18] = 40  # a vessel through all slices
    hu[3:5, 12:14, 29:31] = -900  # a bubble between them, too small
    lungs = find_lungs(hu, np.ones(3))
    expected = np.zeros(hu.shape, bool)
    expected[:, 10:50, 10:24] = expected[:, 10:50, 36:50] = True
    assert lungs[2:-2][expected[2:-2]].all()
    assert not lungs[:, :9].any()
    assert (lungs & ~expected).sum() < 0.02 * expected.sum()


@pytest.mark.parametrize("sigma_mm", [0.5, 0.8])
def test_estimate_blur_of_blurred_discs(sigma_mm):
    spacing = np.array([2.0, 0.4, 0.4])
    y, x = np.mgrid[:120, :120] - 60
    disc = np.where(np.hypot(y, x) < 35, -850.0, 50.0)
    blurred = ndimage.gaussian_filter(np.stack([disc] * 5), (0, sigma_mm / 0.4, sigma_mm / 0.4))
    assert estimate_blur(np.rint(blurred).astype(np.int16), spacing) == pytest.approx(sigma_mm, abs=0.12)


@pytest.mark.skipif(not (SHARED / "data/ct_dicom").is_dir(), reason="the real CT of LUNA16_SHARED is absent")
def test_read_background_finds_both_lungs_of_a_real_ct():
    scene = read_background(SHARED / "data/ct_dicom")
    lungs_l = len(scene.lung_zyx) * scene.spacing_zyx.prod() * 4 / 1e6
    assert 2 < lungs_l < 7
    assert 0.3 < scene.blur_mm < 0.9
    assert scene.depth_mm.max() > 20
    assert len(scene.blobs_zyx) > 100
