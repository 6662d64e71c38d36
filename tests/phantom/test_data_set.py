import json
import shutil
from collections import defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from luna16_monai.ct.metaimage import write_mhd
from luna16_monai.geometry.grid import Geometry
from luna16_monai.phantom.data_set import drawn_from, plan_scans, write_data_set, write_phantom
from luna16_monai.phantom.lesions import load_shape_bank
from luna16_monai.phantom.nodules import JITTER_MM, ScanSettings
from luna16_monai.phantom.scan import draw_scan
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
        "drawn.json",
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
    refused = r"is not empty \(it holds annotations\.csv\): that is no unfinished phantom, so name another folder"
    with pytest.raises(FileExistsError, match=refused):
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


def test_plan_scans_of_two_sets_share_no_patient():
    bank = load_shape_bank()
    sets = [{plan.patient_id for plan in plan_scans(12, *which)} for which in ((0, bank), (1, bank), (0, bank, 1))]
    assert [len(one) for one in sets] == [12] * 3
    assert len(set.union(*sets)) == 36


def test_drawn_from_tells_two_sets_of_one_seed_alike():
    """Other names, other patients, the same anatomy."""
    bank = load_shape_bank()
    small, large = (
        drawn_from({"kind": "synthetic", "recipe": 2, "seed": 0}, plan_scans(scans, 0, bank)) for scans in (3, 5)
    )
    assert set(small).isdisjoint(large)
    assert [one.number for one in small.values()] == [0, 1, 2]
    assert [one.anatomy for one in small.values()] == [one.anatomy for one in large.values()][:3]
    # 600 patients are dealt out
    assert [len(one.patients) for one in small.values()] == [200] * 3
    assert [len(one.patients) for one in large.values()] == [120] * 5


def test_write_phantom_adds_what_a_set_of_before_was_drawn_from(small_phantom, tmp_path):
    copy = tmp_path / "phantom"
    shutil.copytree(small_phantom, copy)
    (copy / "drawn.json").unlink()
    made = json.loads((copy / "phantom.json").read_text(encoding="utf-8"))
    plans = plan_scans(made["scans"], made["seed"], load_shape_bank())
    recipe = {key: value for key, value in made.items() if key != "summary"}
    assert write_data_set(copy, recipe, plans, lambda plan: pytest.fail("drawn again"), 1, False)["cached"]
    assert (copy / "drawn.json").read_bytes() == (small_phantom / "drawn.json").read_bytes()


# --- one scan


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


def test_phantom_names_no_absolute_path(small_phantom):
    assert str(Path.home()) not in (small_phantom / "phantom.json").read_text(encoding="utf-8")
    assert str(small_phantom) not in (small_phantom / "phantom.json").read_text(encoding="utf-8")
