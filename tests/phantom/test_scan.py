"""One drawn scan: what difficulty, ratio and seed do to it, and where its nodules lie."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from luna16_monai.ct.metaimage import write_mhd
from luna16_monai.evaluation.baselines import score_baselines
from luna16_monai.evaluation.roc import roc_auc
from luna16_monai.geometry.grid import Geometry
from luna16_monai.phantom.data_set import plan_scans
from luna16_monai.phantom.lesions import load_shape_bank
from luna16_monai.phantom.nodules import CLEARANCE_MM, JITTER_MM, Nodule, ScanSettings
from luna16_monai.phantom.scan import Scan, draw_scan, finish_scan

SCANS, SEED = 4, 1


SMALL = ScanSettings(slices=(32, 36), rows=64, nodules=(2, 3), negatives_per_positive=5.0)


def test_draw_scan_without_difficulty_marks_centres():
    plan = plan_scans(1, SEED, load_shape_bank())[0]
    findings = draw_scan(plan, SEED, replace(SMALL, difficulty=0.0)).findings
    centres = np.array([nodule[:3] for nodule in findings.nodules])
    marked = [np.abs(centres - mark[:3]).sum(1).min() for mark in findings.candidates if mark[3] == 1]
    assert len(marked) >= 2
    assert max(marked) < 1e-5


@pytest.mark.slow
def test_draw_scan_higher_difficulty_lowers_the_baselines():
    # 16 scans each, half to train on and half to test on: 0.95 and 0.71
    settings = ScanSettings(slices=(32, 36), rows=80, nodules=(5, 6), negatives_per_positive=4.0)
    aucs = [auc_of_profile(replace(settings, difficulty=d), 16) for d in (0.0, 2.0)]
    assert aucs[0] > aucs[1] + 0.1
    assert aucs[1] > 0.4


def auc_of_profile(settings, scans):
    spacing, shape = np.array([1.25, 0.7, 0.7]), (17, 31, 31)
    offsets = np.stack(np.meshgrid(*[(np.arange(n) - n // 2) * s for n, s in zip(shape, spacing, strict=True)]), -1)
    offsets = offsets.swapaxes(0, 1).reshape(-1, 3)
    cutouts, labels = [], []
    for plan in plan_scans(scans, 0, load_shape_bank()):
        scan = draw_scan(plan, 0, settings)
        marks = np.array(scan.findings.candidates)
        index = scan.geometry.voxel_from_world(marks[:, :3])[:, None] + offsets / scan.geometry.spacing_zyx
        values = ndimage.map_coordinates(scan.hu, index.reshape(-1, 3).T, order=1, mode="nearest")
        cutouts.append(values.reshape(-1, *shape))
        labels.append(marks[:, 3])
    half = scans // 2
    train, test = np.concatenate(cutouts[:half]), np.concatenate(cutouts[half:])
    scores = score_baselines(train, np.concatenate(labels[:half]), test, spacing, ["radial_profile"])
    return float(roc_auc(scores["radial_profile"], np.concatenate(labels[half:]))[0])


@pytest.mark.parametrize("ratio", [0.0, 2.5, 10.0, 100.0])
def test_draw_scan_keeps_the_ratio_of_classes(ratio):
    plan = plan_scans(1, SEED, load_shape_bank())[0]
    findings = draw_scan(plan, SEED, replace(SMALL, negatives_per_positive=ratio)).findings
    labels = [mark[3] for mark in findings.candidates]
    positives = labels.count(1)
    assert positives >= 2
    assert labels.count(0) == round(ratio * positives)
    centres = np.array([nodule[:3] for nodule in findings.nodules])
    radii = np.array([nodule[3] / 2 for nodule in findings.nodules])
    others = np.array([mark[:3] for mark in findings.candidates if mark[3] == 0]).reshape(-1, 3)
    gap = np.linalg.norm(others[:, None] - centres, axis=2) - radii
    assert (gap > CLEARANCE_MM - JITTER_MM - 1e-5).all()
    assert len(np.unique(others, axis=0)) == len(others)


@pytest.mark.parametrize(
    ("flipped", "origin", "index_xyz"),
    [(False, (-10.0, -20.0, -30.0), (3, 2, 1)), (True, (-6.5, -17.5, -30.0), (4, 3, 1))],
)
def test_finish_scan_keeps_world_coordinates_when_flipped(tmp_path, flipped, origin, index_xyz):
    # voxel (1, 2, 3) of 2 x 0.5 x 0.5 mm: its centre is (3, 1.25, 1.75) mm from the corner,
    # and -10 + 3 * 0.5 = -8.5, -20 + 2 * 0.5 = -19, -30 + 1 * 2 = -28 in the world
    hu = np.full((4, 6, 8), -1000, np.int16)
    hu[1, 2, 3] = 500
    geometry = Geometry.from_axes((8, 6, 4), (0.5, 0.5, 2.0), (-10, -20, -30), np.eye(3))
    at = np.array([3.0, 1.25, 1.75])
    nodule = Nodule(at, 6.0, "solid", "isolated", 7, 5.0, 3.0)
    scan = finish_scan(hu, geometry, [nodule], [(at, -1.0)], [(at, 1)], flipped)
    assert scan.findings.nodules == [[-8.5, -19.0, -28.0, 6.0, "solid", "isolated", 7, 5.0, 3.0]]
    assert scan.findings.excluded == [[-8.5, -19.0, -28.0, -1.0]]
    assert scan.findings.candidates == [[-8.5, -19.0, -28.0, 1]]

    write_mhd(tmp_path / "a.mhd", scan.hu, scan.geometry)
    image = sitk.ReadImage(str(tmp_path / "a.mhd"))
    assert image.GetOrigin() == origin
    assert image.TransformPhysicalPointToIndex((-8.5, -19.0, -28.0)) == index_xyz
    assert image.GetPixel(index_xyz) == 500
    assert (sitk.GetArrayFromImage(image) == 500).sum() == 1


def test_finish_scan_keeps_marks_in_a_scan_that_shows_a_part_of_the_lungs():
    """A mark beside the last voxels is moved onto their centres; others stay where they are."""
    hu = np.zeros((4, 5, 6), np.int16)
    geometry = Geometry.from_axes((6, 5, 4), (1, 1, 2), (10, 20, 30), np.eye(3))
    marks = [(np.array([-0.8, 2.5, 7.3]), 0), (np.array([3.0, 2.25, 1.5]), 1), (np.array([9.0, -1.0, 0.2]), 0)]
    scan = finish_scan(hu, geometry, [], [], marks, flipped=False)
    # mm from the corner less half a voxel, from the origin on
    assert scan.findings.candidates == [[15, 22, 30, 0], [11, 21.75, 32, 1], [10, 20, 36, 0]]
    assert geometry.contains([point[:3] for point in scan.findings.candidates]).all()


def test_draw_scan_repeats_and_differs_between_scans():
    first, other = plan_scans(2, SEED, load_shape_bank())
    one, again, two = (draw_scan(plan, SEED, SMALL) for plan in (first, first, other))
    assert isinstance(one, Scan)
    np.testing.assert_array_equal(one.hu, again.hu)
    assert one.findings == again.findings
    assert one.geometry == again.geometry
    assert one.findings.candidates != two.findings.candidates
    assert one.hu.dtype == np.int16
    assert 32 <= one.hu.shape[0] <= 36
    assert one.hu.shape[1:] == (64, 64)
