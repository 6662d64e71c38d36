"""Data sets of real nodules in real and drawn CTs."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
from real_nodules import ball, bank_of

from luna16_monai.bundle.folders import bundle_dir
from luna16_monai.ct.metaimage import write_mhd
from luna16_monai.phantom.background import read_background
from luna16_monai.phantom.data_set import plan_scans
from luna16_monai.phantom.lesions import load_shape_bank
from luna16_monai.phantom.nodules import ScanSettings
from luna16_monai.phantom.scan import draw_scan
from luna16_monai.semi_real.bank import write_bank
from luna16_monai.semi_real.blend import prepare_nodule
from luna16_monai.semi_real.data_set import Insertion, find_place, wall_direction, write_semi_real
from luna16_monai.store.preparation import Preparation
from luna16_monai.store.prepare import prepare
from luna16_monai.tables.luna16 import read_annotations, read_candidates

SMALL = ScanSettings(slices=(44, 44), rows=96, nodules=(1, 1), negatives_per_positive=0.0)
FEW = Insertion(nodules=(2, 3), negatives=10)


@pytest.fixture(scope="module")
def chest_cts(tmp_path_factory):
    """Two CTs that stand for real ones."""
    folder = tmp_path_factory.mktemp("real")
    for plan in plan_scans(2, 5, load_shape_bank()):
        scan = draw_scan(plan, 5, SMALL)
        write_mhd(folder / f"{plan.number}.mhd", scan.hu, scan.geometry)
    return [folder / "0.mhd", folder / "1.mhd"]


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    path = tmp_path_factory.mktemp("bank") / "bank.npz"
    write_bank(path, bank_of(12))
    return path


@pytest.fixture(scope="module")
def semi_real(chest_cts, bank, tmp_path_factory):
    output = tmp_path_factory.mktemp("semi_real")
    write_semi_real(bank, output, chest_cts, 4, seed=1, workers=1, progress=False, insertion=FEW)
    return output


def test_write_semi_real_puts_bank_nodules_where_its_tables_say(semi_real):
    annotations, candidates = read_annotations(semi_real), read_candidates(semi_real)
    assert len(annotations.series_uids) == 4
    for code, uid in enumerate(annotations.series_uids):
        image = sitk.ReadImage(str(next(semi_real.glob(f"subset?/{uid}.mhd"))))
        hu = sitk.GetArrayFromImage(image)
        for point in annotations.points_xyz[annotations.series == code]:
            z, y, x = image.TransformPhysicalPointToIndex(point.tolist())[::-1]
            assert np.median(hu[z, y - 1 : y + 2, x - 1 : x + 2]) == pytest.approx(40, abs=120)
        values = candidates.values[candidates.series == code]
        assert (values == 1).sum() >= 2
        assert (values == 0).sum() >= 3


def test_write_semi_real_gives_no_patient_to_two_subsets_and_records_backgrounds(semi_real, bank):
    drawn = json.loads((semi_real / "drawn.json").read_text("utf-8"))
    manifest = json.loads((semi_real / "phantom.json").read_text("utf-8"))
    assert {one["background"] for one in drawn.values()} == set(manifest["background_sha256"])
    assert len(manifest["background_sha256"]) == 2
    owners = [set(one["patients"]) for one in drawn.values()]
    assert sum(map(len, owners)) == 12
    assert len(set.union(*owners)) == 12
    # names of patients who are not public do not go with weights
    assert not any("patient" in name for one in owners for name in one)
    with (semi_real / "nodules.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["kind"] for row in rows} == {"solid"}
    assert {int(row["shape"]) for row in rows} <= set(range(12))
    ratings = (semi_real / "nodule_readings.csv").read_text("utf-8").split("\n")[1]
    assert ratings.endswith((",1,3\r", ",1,3"))


def test_write_semi_real_second_call_does_nothing(semi_real, bank, chest_cts):
    again = write_semi_real(bank, semi_real, chest_cts, 4, seed=1, progress=False, insertion=FEW)
    assert again["cached"]


def test_write_semi_real_takes_drawn_lungs(bank, tmp_path):
    told = write_semi_real(bank, tmp_path / "set", (), 1, 0, 1, progress=False, insertion=FEW, drawn=SMALL)
    assert told["scans"] == 1
    assert 2 <= told["nodules"] <= 3


def test_write_semi_real_refuses_a_background_without_lungs_and_writes_nothing(bank, chest_cts, tmp_path):
    image = sitk.ReadImage(str(chest_cts[0]))
    sitk.WriteImage(sitk.Clamp(image, lowerBound=-200, upperBound=3000), str(tmp_path / "head.mhd"))
    with pytest.raises(ValueError, match=r"no lungs in head.mhd"):
        write_semi_real(bank, tmp_path / "set", [tmp_path / "head.mhd"], 2, progress=False)
    with pytest.raises(ValueError, match="are one CT: name it once"):
        write_semi_real(bank, tmp_path / "set", [chest_cts[0], chest_cts[0]], 2, progress=False)
    assert not (tmp_path / "set").exists()


def test_write_semi_real_lists_what_a_background_has_of_its_own(bank, chest_cts, semi_real, tmp_path):
    scene = read_background(chest_cts[0])
    x, y, z = scene.geometry.world_from_voxel(np.array(scene.hu.shape) / 2).round(3).tolist()
    table = tmp_path / "own.csv"
    table.write_text(f"seriesuid,coordX,coordY,coordZ,diameter_mm\n0,{x},{y},{z},7.5\n9,0,0,0,5\n", encoding="utf-8")
    arguments = ([chest_cts[0]], 2, 1, 1)
    write_semi_real(bank, tmp_path / "set", *arguments, progress=False, insertion=FEW, known=table)
    found = read_annotations(tmp_path / "set")
    for code in range(2):
        of_scan = found.series == code
        own = np.flatnonzero(of_scan & (found.values == 7.5))
        assert found.points_xyz[own] == pytest.approx(np.array([[x, y, z]]), abs=1e-3)
        others = found.points_xyz[of_scan & (found.values != 7.5)]
        assert np.linalg.norm(others - [x, y, z], axis=1).min() > 7.5 / 2 + 4
    table.write_text("seriesuid,coordX,coordY,coordZ,diameter_mm\n9,0,0,0,5\n", encoding="utf-8")
    with pytest.raises(ValueError, match="lists no nodule in any of the 1 backgrounds"):
        write_semi_real(bank, tmp_path / "other", *arguments, progress=False, insertion=FEW, known=table)


@pytest.mark.parametrize("wrong", [{"nodules": (0, 2)}, {"nodules": (3, 2)}, {"negatives": -1}])
def test_insertion_refuses_numbers_out_of_range(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Insertion(**wrong)


def test_find_place_turns_the_wall_of_a_nodule_to_the_wall(chest_cts):
    scene, rng = read_background(chest_cts[0]), np.random.default_rng(0)
    one = prepare_nodule(ball(8.0, wall_from_x=19), scene.blur_zyx_mm)
    found = [place for _ in range(60) if (place := find_place(rng, scene, one)) is not None]
    assert len(found) > 5
    for position, turn in found:
        outward = wall_direction(scene, position)
        assert (turn @ outward) @ one.contact.outward > 0.75
        gap = np.linalg.norm(scene.lung_zyx - position, axis=1)
        assert scene.depth_mm[gap.argmin()] == pytest.approx(one.contact.depth_mm, abs=2.5)


@pytest.mark.parametrize("part", ["bases", "apices"])
def test_write_semi_real_takes_a_part_of_the_lungs(part, chest_cts, bank, tmp_path):
    part_of(chest_cts[0], part, tmp_path / "part.mhd")
    few = Insertion(nodules=(1, 2), negatives=6)
    told = write_semi_real(bank, tmp_path / "set", [tmp_path / "part.mhd"], 2, 0, 1, progress=False, insertion=few)
    assert told["nodules"] >= 2
    assert told["candidates"] > told["positives"] >= 2


# two trainings in processes of their own: half a minute
@pytest.mark.slow
@pytest.mark.parametrize("part", ["bases", "apices"])
def test_a_set_on_a_part_of_the_lungs_trains(part, chest_cts, bank, tmp_path):
    part_of(chest_cts[0], part, tmp_path / "part.mhd")
    few = Insertion(nodules=(1, 2), negatives=6)
    write_semi_real(bank, tmp_path / "set", [tmp_path / "part.mhd"], 4, 0, 1, progress=False, insertion=few)
    configs = bundle_dir() / "configs"
    prepare(tmp_path / "set", tmp_path / "store", Preparation.read(configs / "prepare.yaml"), 1, progress=False)
    settings = {"device": "cpu", "max_epochs": 1, "samples_per_epoch": 8, "batch_size": 4, "num_workers": 0}
    words = [str(word) for key, value in {**settings, "validation_stride": 3}.items() for word in (f"--{key}", value)]
    folders = {f"LUNA16_{name}": str(tmp_path / folder) for name, folder in FOLDERS.items()}
    environment = {**os.environ, **folders}
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", str(configs / "train.yaml")]
    done = subprocess.run([*command, *words], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = json.loads((tmp_path / "runs" / "nodule_classification" / "metrics.json").read_text("utf-8"))
    assert metrics["candidates"] >= 2


FOLDERS = {"DATA": "set", "STORE": "store", "RUNS": "runs"}


def part_of(path, part, output):
    """The lower or upper third of a CT."""
    image = sitk.ReadImage(str(path))
    third = image.GetSize()[2] // 3
    sitk.WriteImage(image[:, :, :third] if part == "bases" else image[:, :, -third:], str(output))
