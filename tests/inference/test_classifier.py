"""From CTs and points to probabilities: the same as in validation."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from ct_files import write_dicom

from luna16_monai.bundle.folders import bundle_dir
from luna16_monai.cli.main import main
from luna16_monai.ct import dicom
from luna16_monai.ct.folders import find_cts
from luna16_monai.ct.opening import CT, read_geometry, series_uid
from luna16_monai.inference.classifier import Classifier, score_in_turn, volumes_of
from luna16_monai.networks.nodule_net import NoduleNet
from luna16_monai.runs.record import read_calibration
from luna16_monai.store.in_memory import PreparedInMemory
from luna16_monai.store.preparation import prepare_volume
from luna16_monai.store.reading import Store
from luna16_monai.tables.luna16 import read_candidates
from luna16_monai.tables.points import read_points, write_points


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    state = NoduleNet(return_probabilities=False).state_dict()
    # as if it had seen lungs: untouched, its logits are in the hundreds, and 1 HU moves a probability from end to end
    state["tail.running_mean"].fill_(-600)
    state["tail.running_var"].fill_(300**2)
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def classifier(weights: Path) -> Classifier:
    return Classifier(bundle_dir(), weights=[weights], backend="torch")


def test_probabilities_equal_those_of_the_store(
    phantom_dir: Path, store_dir: Path, classifier: Classifier, weights: Path
) -> None:
    table = read_candidates(phantom_dir).select(np.arange(0, 40, 4)[::-1])
    got = classifier.probabilities(table, classifier.volumes([phantom_dir]), batch_size=3)
    network = NoduleNet(return_probabilities=True).eval()
    network.load_state_dict(torch.load(weights, weights_only=True))
    store = Store(store_dir)
    for row in range(len(table)):
        cutout = store.volume(table.series_uids[table.series[row]]).cutout(table.points_xyz[row])
        image = torch.from_numpy(cutout).float().clamp(-1000, 1000)[None, None]
        with torch.no_grad():
            assert got[row] == pytest.approx(network(image)[1][0, 1].item(), abs=1e-5)


def test_score_averages_over_the_views(classifier: Classifier) -> None:
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(-1000, 400, (1, 1, 32, 48, 48), generator=generator).float()
    once, averaged = classifier.score(image), classifier.score(image, tta=True)
    turned = classifier.score(image.flip(2).rot90(1, (3, 4)), tta=True)
    assert not torch.allclose(once, averaged, atol=1e-4)
    assert torch.allclose(averaged, turned, atol=1e-5)


def test_predict_writes_the_rows_in_their_order(
    phantom_dir: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = read_candidates(phantom_dir)
    uid = table.series_uids[0]
    rows = np.flatnonzero(table.series == 0)[:5][::-1]
    points = tmp_path / "points.csv"
    write_points(points, [uid] * 5, table.points_xyz[rows], np.zeros(5), "anything")
    path = next(ct.path for ct in find_cts(phantom_dir) if ct.series_uid == uid)
    nifti = tmp_path / f"{uid}.nii.gz"
    sitk.WriteImage(sitk.ReadImage(str(path)), str(nifti))
    results = []
    for ct in (path, nifti):
        output = tmp_path / "predictions.csv"
        call = ["predict", "--ct", str(ct), "--candidates", str(points), "--output", str(output)]
        assert main([*call, "--weights", str(weights), "--device", "cpu"]) == 0
        results.append(read_points(output, "probability"))
        assert np.allclose(results[-1].points_xyz, table.points_xyz[rows], atol=1e-6)
    assert np.allclose(results[0].values, results[1].values, atol=1e-3)
    ras = tmp_path / "ras.csv"
    write_points(ras, [uid] * 5, table.points_xyz[rows] * [-1, -1, 1], np.zeros(5), "anything")
    call = ["predict", "--ct", str(path), "--candidates", str(ras), "--output", str(tmp_path / "ras_out.csv"), "--ras"]
    assert main([*call, "--weights", str(weights), "--device", "cpu"]) == 0
    assert np.allclose(read_points(tmp_path / "ras_out.csv", "probability").values, results[0].values, atol=1e-6)


def test_predict_refuses_wrong_input(
    phantom_dir: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = read_candidates(phantom_dir)
    uid, other = table.series_uids[:2]
    path = next(ct.path for ct in find_cts(phantom_dir) if ct.series_uid == uid)
    output = tmp_path / "predictions.csv"
    points = tmp_path / "points.csv"

    def predict(*more: str) -> tuple[int, str]:
        call = ["predict", "--candidates", str(points), "--output", str(output), "--device", "cpu", *more]
        code = main(call)
        assert not output.exists()
        return code, capsys.readouterr().err

    write_points(points, [uid], [[9999.0, 0.0, 0.0]], [0], "class")
    code, told = predict("--ct", str(path), "--weights", str(weights))
    assert code == 2
    assert "candidate (9999.0, 0.0, 0.0) mm" in told
    assert "line 2" in told
    write_points(points, [other], table.points_xyz[:1], [0], "class")
    code, told = predict("--ct", str(path), "--weights", str(weights))
    assert code == 2
    assert f"series {other}" in told
    code, told = predict("--ct", str(path), "--weights", str(tmp_path / "none.pt"))
    assert code == 2
    assert "no weights" in told
    torch.save(NoduleNet(channels=(4, 8), return_probabilities=False).state_dict(), tmp_path / "other.pt")
    code, told = predict("--ct", str(path), "--weights", str(tmp_path / "other.pt"))
    assert code == 2
    assert "belong to another network" in told
    code, told = predict("--ct", str(path), str(path), "--weights", str(weights))
    assert code == 2
    assert "are both series" in told
    points.write_text("seriesuid,coordX,coordY\na,1,2\n")
    code, told = predict("--ct", str(path), "--weights", str(weights))
    assert code == 2
    assert "column coordZ is missing" in told


def test_prepared_in_memory_keeps_one_volume(phantom_dir: Path) -> None:
    volumes = PreparedInMemory(phantom_dir, bundle_dir() / "configs" / "prepare.yaml")
    one, other = volumes.series_uids[:2]
    first = volumes.volume(one)
    assert volumes.volume(one) is first
    volumes.volume(other)
    assert volumes.volume(one) is not first


def test_score_in_turn_prepares_each_ct_once_for_bundles_that_prepare_it_alike(
    phantom_dir: Path, weights: Path, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = read_candidates(phantom_dir)
    rows = np.flatnonzero(table.series < 2)[::-4]
    second = Classifier(bundle_dir("malignancy_classification"), weights=[weights], backend="torch")
    expected = classifier.probabilities(table.select(rows), classifier.volumes([phantom_dir]))
    prepared = []

    def prepare(ct: CT, *rest: Any) -> Any:
        prepared.append(ct.path.stem)
        return prepare_volume(ct, *rest)

    monkeypatch.setattr("luna16_monai.store.in_memory.prepare_volume", prepare)
    both = [classifier, second]
    scored = score_in_turn(both, table.select(rows), volumes_of(both, [phantom_dir]))
    assert sorted(prepared) == sorted(table.series_uids[:2])
    for one in scored:
        np.testing.assert_allclose(one, expected, atol=1e-6)


def test_predict_gives_the_same_for_dicom_mhd_and_nifti(
    shared: Callable[[str], Path], weights: Path, tmp_path: Path
) -> None:
    folder = shared("data/ct_dicom")
    uid, geometry = series_uid(folder), read_geometry(folder)
    rng = np.random.default_rng(0)
    inside = rng.uniform(0.2, 0.8, (50, 3)) * (np.array(geometry.shape_zyx) - 1)
    write_points(tmp_path / "points.csv", [uid] * 50, geometry.world_from_voxel(inside), np.zeros(50), "class")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    forms = {"dicom": folder, "mhd": tmp_path / f"{uid}.mhd", "nifti": tmp_path / f"{uid}.nii.gz"}
    probabilities = []
    for form, path in forms.items():
        if form != "dicom":
            sitk.WriteImage(image, str(path))
        output = tmp_path / f"{form}.csv"
        call = ["predict", "--ct", str(path), "--candidates", str(tmp_path / "points.csv"), "--output", str(output)]
        assert main([*call, "--weights", str(weights), "--device", "cpu"]) == 0
        probabilities.append(read_points(output, "probability").values)
    assert np.ptp(probabilities[0]) > 0.01
    np.testing.assert_allclose(probabilities[1], probabilities[0], atol=1e-3)
    np.testing.assert_allclose(probabilities[2], probabilities[0], atol=1e-3)


def test_predict_averages_several_weights(phantom_dir: Path, weights: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = tmp_path / "other.pt"
    torch.save(NoduleNet(return_probabilities=False).state_dict(), other)
    table = read_candidates(phantom_dir)
    uid = table.series_uids[0]
    path = next(ct.path for ct in find_cts(phantom_dir) if ct.series_uid == uid)
    points = tmp_path / "points.csv"
    write_points(points, [uid] * 4, table.points_xyz[np.flatnonzero(table.series == 0)[:4]], np.zeros(4), "class")

    def predict(*more: str) -> np.ndarray:
        output = tmp_path / "predictions.csv"
        call = ["predict", "--ct", str(path), "--candidates", str(points), "--output", str(output), "--device", "cpu"]
        assert main([*call, *more]) == 0
        return read_points(output, "probability").values

    one, two = predict("--weights", str(weights)), predict("--weights", str(other))
    assert np.abs(one - two).max() > 0.01
    np.testing.assert_allclose(predict("--weights", str(weights), str(other)), (one + two) / 2, atol=1e-6)


def test_predict_adds_what_the_runs_calibration_makes_of_it(phantom_dir: Path, weights: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "model.pt").write_bytes(weights.read_bytes())
    # sigmoid(2 logit(p) - 1)
    (run / "metrics.json").write_text(json.dumps({"calibration": {"platt": {"slope": 2.0, "offset": -1.0}}}))
    table = read_candidates(phantom_dir)
    uid = table.series_uids[0]
    path = next(ct.path for ct in find_cts(phantom_dir) if ct.series_uid == uid)
    points, output = tmp_path / "points.csv", tmp_path / "predictions.csv"
    write_points(points, [uid] * 4, table.points_xyz[np.flatnonzero(table.series == 0)[:4]], np.zeros(4), "class")
    call = ["predict", "--ct", str(path), "--candidates", str(points), "--output", str(output), "--device", "cpu"]
    assert main([*call, "--weights", str(run / "model.pt")]) == 0
    with output.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    raw, calibrated = (
        np.array([float(row[name]) for row in rows]) for name in ("probability", "calibrated_probability")
    )
    p = np.clip(raw, 1e-8, 1 - 1e-8)
    np.testing.assert_allclose(calibrated, 1 / (1 + np.exp(1) * ((1 - p) / p) ** 2), rtol=1e-6)
    (run / "metrics.json").write_text("{]")
    with pytest.raises(ValueError, match="holds no calibration that can be read"):
        read_calibration(run / "model.pt")


@pytest.mark.parametrize("more", [[], ["--explain", "explained", "--explain-top", "2"]])
def test_predict_opens_and_prepares_a_dicom_series_once(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    folder = write_dicom(tmp_path / "series")
    uid, geometry = series_uid(folder), read_geometry(folder)
    inside = np.full((40, 3), 1.0)
    write_points(tmp_path / "points.csv", [uid] * 40, geometry.world_from_voxel(inside), np.zeros(40), "class")
    opened, prepared, parsed = [], [], []
    open_series, preprocessing = dicom.open_series, Classifier.preprocessing

    def counted(path: Path, *rest: Any) -> Any:
        opened.append(path)
        return open_series(path, *rest)

    def prepare(ct: CT, *rest: Any) -> Any:
        prepared.append(ct.path)
        return prepare_volume(ct, *rest)

    def counted_preprocessing(one: Classifier, volumes: Any) -> Any:
        parsed.append(type(volumes).__name__)
        return preprocessing(one, volumes)

    monkeypatch.setattr(dicom, "open_series", counted)
    monkeypatch.setattr("luna16_monai.store.in_memory.prepare_volume", prepare)
    monkeypatch.setattr(Classifier, "preprocessing", counted_preprocessing)
    call = ["predict", "--ct", str(folder), "--candidates", str(tmp_path / "points.csv"), "--device", "cpu"]
    call += ["--output", str(tmp_path / "predictions.csv"), "--weights", str(weights)]
    assert main([*call, *(str(tmp_path / word) if word == "explained" else word for word in more)]) == 0
    assert (opened, prepared) == ([folder], [folder])
    # 40 candidates are two batches: the transforms are parsed once a source all the same
    assert parsed == (["PreparedInMemory", "PreparedInMemory", "_Lung"] if more else ["PreparedInMemory"])
