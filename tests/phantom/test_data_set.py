import json
from collections import defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from luna16_monai.ct.metaimage import write_mhd
from luna16_monai.evaluation.baselines import score_baselines
from luna16_monai.evaluation.roc import roc_auc
from luna16_monai.geometry.grid import Geometry
from luna16_monai.phantom.anatomy import upsample
from luna16_monai.phantom.candidates import jitter, propose_blobs
from luna16_monai.phantom.data_set import plan_scans, write_data_set, write_phantom
from luna16_monai.phantom.lesions import choose_look, ellipsoid_share, load_shape_bank, nodule_share, random_turn
from luna16_monai.phantom.nodules import CLEARANCE_MM, JITTER_MM, Nodule, ScanSettings
from luna16_monai.phantom.scan import Scan, draw_scan, finish_scan
from luna16_monai.tables.luna16 import read_annotations, read_candidates, read_excluded, read_series_list
from luna16_monai.tables.points import read_points

SCANS, SEED = 4, 1
SMALL = ScanSettings(slices=(32, 36), rows=64, nodules=(2, 3), negatives_per_positive=5.0)


@pytest.fixture(scope="module")
def small_phantom(tmp_path_factory):
    output = tmp_path_factory.mktemp("phantom")
    summary = write_phantom(output, SCANS, SEED, workers=1, progress=False, settings=SMALL)
    assert not summary["cached"]
    return output


def files_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def images_of(folder):
    return {path.stem: sitk.ReadImage(str(path)) for path in folder.glob("subset?/*.mhd")}


def by_series(table):
    rows = defaultdict(list)
    for code, point, value in zip(table.series.tolist(), table.points_xyz, table.values.tolist(), strict=True):
        rows[table.series_uids[code]].append((point, value))
    return rows


def draw_unless_third(plan, drawn):
    if len(drawn) == 2:
        raise KeyboardInterrupt
    drawn.append(plan.number)
    return draw_scan(plan, SEED, SMALL)


# --- the whole set


def test_write_phantom_same_files_with_two_workers(small_phantom, tmp_path):
    write_phantom(tmp_path, SCANS, SEED, workers=2, progress=False, settings=SMALL)
    assert files_of(tmp_path) == files_of(small_phantom)


def test_write_phantom_lays_files_out_as_luna16(small_phantom):
    uids = read_series_list(small_phantom)
    assert len(uids) == SCANS
    volumes = {f"{p.parent.name}/{p.name}" for p in small_phantom.glob("subset?/*")}
    assert {name.split("/")[0] for name in volumes} == {"subset0", "subset1", "subset2", "subset3"}
    assert {name.split("/")[1] for name in volumes} == {f"{uid}{end}" for uid in uids for end in (".mhd", ".raw")}
    assert {p.name for p in small_phantom.iterdir() if p.is_file()} == {
        "annotations.csv",
        "annotations_excluded.csv",
        "candidates_V2.csv",
        "nodule_readings.csv",
        "nodules.csv",
        "patients.csv",
        "phantom.json",
        "seriesuids.csv",
    }
    header = (small_phantom / "annotations.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header == "seriesuid,coordX,coordY,coordZ,diameter_mm"
    assert not list(small_phantom.rglob(".*"))


def test_write_phantom_tables_agree_with_each_other(small_phantom):
    uids = read_series_list(small_phantom)
    annotations = read_annotations(small_phantom)
    nodules = read_points(small_phantom / "nodules.csv", "diameter_mm")
    assert annotations.series_uids == uids
    np.testing.assert_array_equal(nodules.points_xyz, annotations.points_xyz)
    np.testing.assert_array_equal(nodules.values, annotations.values)
    excluded = read_excluded(small_phantom).values
    assert (annotations.values > 3).all()
    assert ((excluded == -1) | ((excluded > 0) & (excluded < 3))).all()
    candidates = read_candidates(small_phantom)
    for uid, rows in by_series(candidates).items():
        labels = [label for _, label in rows]
        assert labels.count(0) == 5 * labels.count(1), uid
        assert labels.count(1) >= 2, uid
    patients = dict(
        line.split(",") for line in (small_phantom / "patients.csv").read_text(encoding="utf-8").split()[1:]
    )
    assert sorted(patients) == list(uids)
    assert len(set(patients.values())) == SCANS


def test_write_phantom_marks_nodules_and_nothing_else_as_class_1(small_phantom):
    nodules = by_series(read_annotations(small_phantom))
    for uid, rows in by_series(read_candidates(small_phantom)).items():
        centres = np.array([point for point, _ in nodules[uid]])
        radii = np.array([diameter / 2 for _, diameter in nodules[uid]])
        for point, label in rows:
            distance = np.linalg.norm(centres - point, axis=1)
            nearest = distance.argmin()
            if label == 1:
                assert distance[nearest] <= JITTER_MM + 1e-5
                assert distance[nearest] < radii[nearest]
            else:
                assert (distance - radii > 4 - JITTER_MM - 1e-5).all()


def test_write_phantom_draws_nodules_where_the_tables_say(small_phantom):
    images = images_of(small_phantom)
    flips = {image.GetDirection()[0] for image in images.values()}
    assert flips == {1.0, -1.0}, "the seed should give both directions"
    rows = [line.split(",") for line in (small_phantom / "nodules.csv").read_text(encoding="utf-8").split()[1:]]
    solid = 0
    for uid, *values, kind, location, _, _, _ in rows:
        x, y, z, diameter = map(float, values)
        image = images[uid]
        index = image.TransformPhysicalPointToIndex((x, y, z))
        assert all(0 <= i < n for i, n in zip(index, image.GetSize(), strict=True))
        hu = sitk.GetArrayFromImage(image)
        spacing = np.array(image.GetSpacing()[::-1])
        gap = (np.indices(hu.shape) - np.array(index[::-1])[:, None, None, None]) * spacing[:, None, None, None]
        distance = np.sqrt((gap**2).sum(0))
        core, shell = hu[distance < diameter / 4 + 0.5], hu[(distance > diameter) & (distance < diameter + 4)]
        if kind == "solid" and location != "pleural":
            solid += 1
            assert core.mean() > np.median(shell) + 150, (uid, diameter)
    assert solid >= 2


def test_write_phantom_second_call_does_nothing(small_phantom):
    before = {path: path.stat().st_mtime_ns for path in small_phantom.rglob("*")}
    summary = write_phantom(small_phantom, SCANS, SEED, progress=False, settings=SMALL)
    assert summary["cached"]
    assert summary["scans"] == SCANS
    assert summary["candidates"] == 6 * summary["positives"]
    assert {path: path.stat().st_mtime_ns for path in small_phantom.rglob("*")} == before


def test_write_data_set_takes_up_where_it_stopped(small_phantom, tmp_path):
    plans = plan_scans(SCANS, SEED, load_shape_bank())
    recipe = {
        k: v
        for k, v in json.loads((small_phantom / "phantom.json").read_text(encoding="utf-8")).items()
        if k != "summary"
    }
    first, second = [], []
    with pytest.raises(KeyboardInterrupt):
        write_data_set(tmp_path, recipe, plans, partial(draw_unless_third, drawn=first), workers=1, progress=False)
    left = files_of(tmp_path)
    whole = files_of(small_phantom)
    visible = {name for name in left if not name.startswith(".unfinished/")}
    assert len(visible) == 4  # two scans, header and voxels; no table, no manifest
    assert all(left[name] == whole[name] for name in visible)
    (tmp_path / "subset0" / ".half.raw.1.tmp").write_bytes(b"left by a killed writer")

    write_data_set(tmp_path, recipe, plans, partial(draw_unless_third, drawn=second), workers=1, progress=False)
    assert sorted(first + second) == [0, 1, 2, 3]
    assert files_of(tmp_path) == whole


def test_write_data_set_draws_a_cut_volume_again(small_phantom, tmp_path):
    plans = plan_scans(SCANS, SEED, load_shape_bank())
    first, second = [], []
    with pytest.raises(KeyboardInterrupt):
        write_data_set(tmp_path, {}, plans, partial(draw_unless_third, drawn=first), workers=1, progress=False)
    raw = next((tmp_path / f"subset{plans[0].subset}").glob("*.raw"))
    raw.write_bytes(raw.read_bytes()[:-2])
    with pytest.raises(KeyboardInterrupt):
        write_data_set(tmp_path, {}, plans, partial(draw_unless_third, drawn=second), workers=1, progress=False)
    assert second[0] == plans[0].number
    assert raw.read_bytes() == next(small_phantom.rglob(raw.name)).read_bytes()


def test_write_phantom_refuses_another_data_set(small_phantom, tmp_path):
    with pytest.raises(
        ValueError, match=r"holds a phantom of other settings \(seed 1 instead of 2\): remove the folder"
    ):
        write_phantom(small_phantom, SCANS, SEED + 1, settings=SMALL)
    (tmp_path / "annotations.csv").write_text("real")
    with pytest.raises(ValueError, match=r"holds annotations\.csv, which is not a phantom's: choose another folder"):
        write_phantom(tmp_path, SCANS, SEED, settings=SMALL)
    assert (tmp_path / "annotations.csv").read_text(encoding="utf-8") == "real"


def test_write_phantom_leaves_global_random_state(tmp_path):
    before = np.random.get_state()[1].copy()
    write_phantom(tmp_path, 1, SEED, progress=False, settings=SMALL)
    np.testing.assert_array_equal(np.random.get_state()[1], before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scans": 0}, r"scans 0: give 1 or more"),
        ({"seed": -1}, r"seed -1: give 0 or more"),
    ],
)
def test_write_phantom_refuses_numbers_out_of_range(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        write_phantom(tmp_path / "new", **arguments)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"slices": (40, 39)},
        {"nodules": (0, 2)},
        {"rows": 32},
        {"slices": (8, 40)},
        {"difficulty": 2.1},
        {"difficulty": float("nan")},
        {"negatives_per_positive": -1.0},
        {"negatives_per_positive": float("inf")},
    ],
)
def test_scan_settings_refuses_numbers_out_of_range(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        ScanSettings(**settings)


# --- difficulty and prevalence


def test_write_phantom_a_seed_gives_what_it_gave_before(small_phantom):
    # measured when the recipe got its number 2: a seed must go on giving the same data set while it keeps that number
    candidates, annotations = read_candidates(small_phantom), read_annotations(small_phantom)
    assert (len(candidates), int(candidates.values.sum()), len(annotations)) == (54, 9, 9)
    np.testing.assert_allclose(candidates.points_xyz.sum(0), [-5914.437, -6797.524, -10316.931], atol=0.01)
    np.testing.assert_allclose(annotations.points_xyz.sum(0), [-918.382, -1227.048, -1637.37], atol=0.01)
    means = sorted(sitk.GetArrayFromImage(image).mean() for image in images_of(small_phantom).values())
    np.testing.assert_allclose(means, [-879.337, -824.545, -639.198, -264.193], atol=0.01)
    assert json.loads((small_phantom / "phantom.json").read_text(encoding="utf-8"))["recipe"] == 2


def test_write_phantom_tells_difficulties_apart(small_phantom, tmp_path):
    with pytest.raises(ValueError, match=r"other settings \(difficulty 1\.0 instead of 2\.0\)"):
        write_phantom(small_phantom, SCANS, SEED, settings=replace(SMALL, difficulty=2.0))
    write_phantom(tmp_path, 1, SEED, workers=1, progress=False, settings=replace(SMALL, negatives_per_positive=3.0))
    assert json.loads((tmp_path / "phantom.json").read_text(encoding="utf-8"))["negatives_per_positive"] == 3.0


def test_scan_settings_difficulty_moves_each_knob():
    easy, usual, hard = (ScanSettings(difficulty=d) for d in (0.0, 1.0, 2.0))
    assert [s.likeness for s in (easy, usual, hard)] == [0.5, 1, 2]
    assert [s.overlap for s in (easy, usual, hard)] == [0, 0.75, 1]
    # the smallest nodule's radius is 1.6 mm: no farther at any difficulty
    assert [s.jitter_mm for s in (easy, usual, hard)] == [0, JITTER_MM, JITTER_MM]
    assert ScanSettings(difficulty=0.5).jitter_mm == JITTER_MM / 2
    # -95 HU is 100 below solid nodules: 200 darker when easy, 60 of the 100 made up for when hard
    assert [s.mimic_hu(-95.0) for s in (easy, usual, hard)] == pytest.approx([-295, -95, -35])


def test_choose_look_softens_the_edge():
    bank = load_shape_bank()
    sharp, soft = (choose_look(np.random.default_rng(0), bank, 3, softness) for softness in (1.0, 2.0))
    assert soft == replace(sharp, steepness=sharp.steepness / 2)


def test_draw_scan_without_difficulty_marks_centres():
    plan = plan_scans(1, SEED, load_shape_bank())[0]
    findings = draw_scan(plan, SEED, replace(SMALL, difficulty=0.0)).findings
    centres = np.array([nodule[:3] for nodule in findings.nodules])
    marked = [np.abs(centres - mark[:3]).sum(1).min() for mark in findings.candidates if mark[3] == 1]
    assert len(marked) >= 2
    assert max(marked) < 1e-5


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


# --- the plan


def test_plan_scans_keeps_each_real_patient_in_one_scan():
    bank = load_shape_bank()
    owners = defaultdict(set)
    for plan in plan_scans(60, 0, bank):
        for shape in plan.shapes:
            owners[bank.patient[shape]].add(plan.number)
    assert len(owners) == 600
    assert all(len(scans) == 1 for scans in owners.values())


def test_plan_scans_shares_patients_within_a_subset_when_scans_outnumber_them():
    bank = load_shape_bank()
    plans = plan_scans(1000, 0, bank)
    subsets, shapes = defaultdict(set), defaultdict(set)
    for plan in plans:
        subsets[plan.patient_id].add(plan.subset)
        shapes[plan.patient_id].add(plan.shapes)
    assert len(subsets) == 600
    assert all(len(values) == 1 for values in (*subsets.values(), *shapes.values()))
    counts = np.bincount([plan.subset for plan in plans])
    assert counts.tolist() == [100] * 10


def test_plan_scans_names_tell_nothing_about_the_subset():
    plans = plan_scans(60, 0, load_shape_bank())
    assert len({plan.series_uid for plan in plans}) == 60
    assert all(plan.series_uid.startswith("2.25.") and len(plan.series_uid) <= 64 for plan in plans)
    ordered = [plan.subset for plan in sorted(plans, key=lambda plan: plan.series_uid)]
    by_patient = [plan.subset for plan in sorted(plans, key=lambda plan: plan.patient_id)]
    assert abs(np.corrcoef(ordered, range(60))[0, 1]) < 0.3
    assert abs(np.corrcoef(by_patient, range(60))[0, 1]) < 0.3


def test_plan_scans_depends_on_seed_and_stream():
    bank = load_shape_bank()
    uids = [plan_scans(2, seed, bank, stream)[0].series_uid for seed, stream in ((0, 0), (1, 0), (0, 1), (0, 0))]
    assert uids[0] == uids[3]
    assert len(set(uids)) == 3


# --- one scan


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


def test_write_mhd_writes_luna16s_header(tmp_path):
    geometry = Geometry.from_axes(
        (5, 4, 3), (0.7617, 0.7617, 2.5), (198.100006, 195, -335.209991), np.diag([-1, -1, 1])
    )
    write_mhd(tmp_path / "1.2.mhd", np.zeros((3, 4, 5), np.int16), geometry)
    assert (tmp_path / "1.2.mhd").read_text(encoding="utf-8") == (
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n"
        "TransformMatrix = -1 0 0 0 -1 0 0 0 1\nOffset = 198.100006 195 -335.209991\nCenterOfRotation = 0 0 0\n"
        "AnatomicalOrientation = LPI\nElementSpacing = 0.7617 0.7617 2.5\nDimSize = 5 4 3\nElementType = MET_SHORT\n"
        "ElementDataFile = 1.2.raw\n"
    )
    assert (tmp_path / "1.2.raw").stat().st_size == 2 * 3 * 4 * 5


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


def test_jitter_stays_in_its_ball_and_fills_it():
    points = np.tile([10.0, 20.0, 30.0], (4000, 1))
    moved = np.linalg.norm(jitter(np.random.default_rng(0), points) - points, axis=1)
    assert moved.max() <= JITTER_MM
    # evenly over a ball: the mean distance is three quarters of the radius
    assert moved.mean() == pytest.approx(0.75 * JITTER_MM, rel=0.02)


# --- what is drawn


def test_upsample_interpolates_between_cell_centres():
    # cells of two voxels each: their centres lie at 0.5 and 2.5, voxel 1 a quarter of the way between
    coarse = np.array([0.0, 4.0], np.float32).reshape(1, 1, 2)
    np.testing.assert_allclose(upsample(coarse, (1, 1, 4)).ravel(), [0, 1, 3, 4])


def test_ellipsoid_share_fills_the_volume_of_an_ellipsoid():
    share = partial(ellipsoid_share, np.array([4.0, 3.0, 2.0]), random_turn(np.random.default_rng(0)), 0.5)
    box, values = share(np.full(3, 10.0), (40, 40, 40), np.full(3, 0.5))
    # 4/3 pi * 4 * 3 * 2 = 100.5 mm3
    assert values.sum() * 0.125 == pytest.approx(100.5, rel=0.05)
    assert values.shape == tuple(s.stop - s.start for s in box)
    outside, nothing = share(np.full(3, 90.0), (40, 40, 40), np.full(3, 0.5))
    assert nothing.size == 0
    assert np.zeros((40, 40, 40))[outside].size == 0


def test_nodule_share_keeps_size_and_centre():
    rng, bank = np.random.default_rng(0), load_shape_bank()
    shape = int(np.flatnonzero((bank.diameter_mm > 9) & (bank.margin > 4.5))[0])
    box, values = nodule_share(
        bank,
        shape,
        choose_look(rng, bank, shape),
        random_turn(rng),
        np.array([20.0, 21.0, 22.0]),
        (64,) * 3,
        np.full(3, 0.7),
    )
    diameter = np.cbrt(6 * values.sum() * 0.343 / np.pi)
    assert diameter == pytest.approx(bank.diameter_mm[shape], rel=0.1)
    grid = np.stack(np.meshgrid(*[(np.arange(s.start, s.stop) + 0.5) * 0.7 for s in box], indexing="ij"), -1)
    centre = (grid * values[..., None]).sum((0, 1, 2)) / values.sum()
    np.testing.assert_allclose(centre, [20, 21, 22], atol=0.4)


def test_load_shape_bank_holds_the_shapes_of_600_patients():
    bank = load_shape_bank()
    assert len(bank.masks) == len(bank.diameter_mm) == 1184
    assert len(np.unique(bank.patient)) == 600
    assert all(mask.max() <= 15 for mask in bank.masks)
    # the smallest nodule's radius bounds the jitter, else a mark of class 1 could miss its nodule
    assert bank.diameter_mm.min() / 2 > JITTER_MM


def test_propose_blobs_finds_a_blob_inside_only():
    spacing = np.array([1.25, 0.7, 0.7])
    grid = np.stack(
        np.meshgrid(*[(np.arange(n) + 0.5) * s for n, s in zip((40, 80, 80), spacing, strict=True)], indexing="ij")
    )
    image = np.full((40, 80, 80), -850.0)
    for centre in ([25, 20, 20], [25, 40, 40]):
        image += 800 * np.exp(-((grid - np.array(centre)[:, None, None, None]) ** 2).sum(0) / (2 * 2.5**2))
    inside = np.zeros(image.shape, bool)
    inside[:, :40, :40] = True
    found = propose_blobs(image, spacing, inside, 10)
    assert len(found) == 1
    np.testing.assert_allclose(found[0], [25, 20, 20], atol=1.3)
    assert len(propose_blobs(image, spacing, np.ones_like(inside), 10)) == 2
    assert len(propose_blobs(image, spacing, np.ones_like(inside), 1)) == 1


def test_phantom_names_no_absolute_path(small_phantom):
    assert str(Path.home()) not in (small_phantom / "phantom.json").read_text(encoding="utf-8")
    assert str(small_phantom) not in (small_phantom / "phantom.json").read_text(encoding="utf-8")
