"""`luna16 predict`: its rows, its columns, and what it refuses."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from ct_files import write_dicom

from luna16_monai.cli.main import main
from luna16_monai.ct import dicom
from luna16_monai.ct.folders import find_cts
from luna16_monai.ct.opening import CT, read_geometry, series_uid
from luna16_monai.inference.classifier import Classifier
from luna16_monai.networks.nodule_net import NoduleNet
from luna16_monai.phantom.drawn import read_drawn
from luna16_monai.runs.folder import RunFolder
from luna16_monai.runs.seen import Seen, seen_beside, seen_file, write_seen
from luna16_monai.store.preparation import prepare_volume
from luna16_monai.tables.luna16 import read_candidates
from luna16_monai.tables.points import read_points, write_points


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


def test_predict_gives_the_same_for_dicom_mhd_and_nifti(
    shared: Callable[[str], Path], weights: Path, tmp_path: Path
) -> None:
    folder = shared("data/ct_dicom")
    uid, geometry = series_uid(folder), read_geometry(folder)
    rng = np.random.default_rng(0)
    inside = rng.uniform(0.2, 0.8, (20, 3)) * (np.array(geometry.shape_zyx) - 1)
    write_points(tmp_path / "points.csv", [uid] * 20, geometry.world_from_voxel(inside), np.zeros(20), "class")
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
        assert main([*call, "--weights", str(weights), "--device", "cpu", "--views", "1"]) == 0
        probabilities.append(read_points(output, "probability").values)
    assert np.ptp(probabilities[0]) > 0.01
    np.testing.assert_allclose(probabilities[1], probabilities[0], atol=1e-3)
    np.testing.assert_allclose(probabilities[2], probabilities[0], atol=1e-3)


def test_predict_says_how_many_cts_the_weights_have_seen(
    phantom_dir: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here one of two: by what it was drawn from, in a set where it had another name."""
    own = tmp_path / "model.pt"
    shutil.copy(weights, own)
    drawn = read_drawn(phantom_dir)
    table = read_candidates(phantom_dir)
    first, second = table.series_uids[:2]
    write_seen(own, Seen.of(["another name"], {"another name": replace(drawn[first], patients=())}))
    part = table.select(np.concatenate([np.flatnonzero(table.series == code)[:2] for code in (0, 1)]))
    points, output = tmp_path / "points.csv", tmp_path / "predictions.csv"
    write_points(points, part.row_series(), part.points_xyz, np.zeros(4), "class")
    paths = [str(ct.path) for ct in find_cts(phantom_dir) if ct.series_uid in (first, second)]
    call = ["predict", "--ct", *paths, "--candidates", str(points), "--output", str(output), "--device", "cpu"]
    assert main([*call, "--weights", str(own)]) == 0
    assert "luna16: the weights have seen 1 of the 2 CTs at hand in training\n" in capsys.readouterr().err
    seen = seen_beside(output)
    assert seen is not None
    assert seen.among([first, second], drawn) == [first]
    assert main([*call, "--weights", str(own), str(weights)]) == 0
    assert "1 of 2 weights have no record of what they were trained on" in capsys.readouterr().err
    assert not seen_file(output).exists()


def test_predict_averages_several_weights(phantom_dir: Path, weights: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = tmp_path / "other.pt"
    torch.save(NoduleNet(two_scales=True, return_probabilities=False).state_dict(), other)
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
        RunFolder(run).calibration()


@pytest.mark.parametrize("more", [[], ["--explain", "explained", "--explain-top", "1"]])
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
    assert parsed == (["InMemoryStore", "InMemoryStore", "_Lung"] if more else ["InMemoryStore"])
