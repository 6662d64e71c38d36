"""``luna16 detect`` and ``luna16 predict`` without a list, with a new network's weights."""

from __future__ import annotations

import csv
import json
import re
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from ct_files import UID, write_dicom

from luna16_monai.bundle.folders import bundle_dir
from luna16_monai.cli.main import main
from luna16_monai.inference.detect import Detector, report_threshold
from luna16_monai.machine import memory
from luna16_monai.machine.files import sha256
from luna16_monai.networks.backends import core
from luna16_monai.networks.nodule_detector import NoduleDetector
from luna16_monai.store.preparation import prepare_volume


def rows(path):
    with path.open() as stream:
        return list(csv.DictReader(stream))


def detect(cts, output, weights, *more):
    return main(["detect", "--ct", *map(str, cts), "--output", str(output), "--weights", str(weights), *map(str, more)])


def test_detect_writes_each_series_most_probable_first(cts, weights, tmp_path, capsys):
    assert detect(cts, tmp_path / "a.csv", weights, "--max", 7) == 0
    found = rows(tmp_path / "a.csv")
    assert list(found[0]) == ["seriesuid", "coordX", "coordY", "coordZ", "probability", "diameter_mm"]
    assert [row["seriesuid"] for row in found] == sorted(ct.stem for ct in cts for _ in range(7))
    for ct in cts:
        mine = [row for row in found if row["seriesuid"] == ct.stem]
        values = [float(row["probability"]) for row in mine]
        assert values == sorted(values, reverse=True)
        points = np.array([[float(row[f"coord{a}"]) for a in "XYZ"] for row in mine])
        gaps = np.linalg.norm(points[:, None] - points[None], axis=2)[~np.eye(7, dtype=bool)]
        assert gaps.min() >= 4
    assert "14 candidates of 2 CTs" in capsys.readouterr().out


def test_detect_says_which_ct_has_no_candidate(cts, weights, tmp_path, capsys):
    assert detect(cts[:1], tmp_path / "a.csv", weights, "--threshold", 1) == 0
    assert rows(tmp_path / "a.csv") == []
    assert f"series {cts[0].stem} has no candidate" in capsys.readouterr().err


def test_detect_keeps_to_a_lung_mask(cts, weights, tmp_path):
    image = sitk.ReadImage(str(cts[0]))
    size = np.array(image.GetSize())
    values = np.zeros(size[::-1], np.uint8)
    values[:, : size[1] // 2] = 1
    mask = sitk.GetImageFromArray(values)
    mask.CopyInformation(image)
    sitk.WriteImage(mask, str(tmp_path / "mask.mha"))
    assert detect(cts[:1], tmp_path / "a.csv", weights, "--lung-mask", tmp_path / "mask.mha") == 0
    found = rows(tmp_path / "a.csv")
    for row in found:
        index = image.TransformPhysicalPointToContinuousIndex([float(row[f"coord{a}"]) for a in "XYZ"])
        assert index[1] < size[1] // 2
    assert detect(cts[:1], tmp_path / "b.csv", weights, "--no-lung-mask", "--max", 200) == 0
    assert len(rows(tmp_path / "b.csv")) > len(found) > 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--max", "0"], "max 0"),
        (["--threshold", "1.5"], "threshold 1.5"),
        (["--lung-mask", "nowhere"], "no lung mask nowhere"),
        (["--bundle", "bundles/nodule_classification"], "has no detector"),
    ],
)
def test_detect_refuses_in_one_line_and_writes_nothing(cts, weights, tmp_path, capsys, more, message):
    assert detect(cts[:1], tmp_path / "a.csv", weights, *more) == 2
    lines = capsys.readouterr().err.splitlines()
    assert message in lines[-1]
    assert list(tmp_path.iterdir()) == []


def test_detect_refuses_a_ct_without_lungs(weights, tmp_path, capsys):
    hu = np.full((20, 40, 40), -1000, np.int16)
    hu[:, 5:35, 5:35] = 40
    sitk.WriteImage(sitk.GetImageFromArray(hu), str(tmp_path / "liver.mha"))
    assert detect([tmp_path / "liver.mha"], tmp_path / "a.csv", weights) == 2
    assert "no lungs are found in series liver" in capsys.readouterr().err
    assert not (tmp_path / "a.csv").exists()


def test_detect_warns_of_thick_slices(weights, tmp_path, capsys):
    image = sitk.GetImageFromArray(np.full((20, 60, 60), -850, np.int16))
    image.SetSpacing([1.0, 1.0, 5.0])
    sitk.WriteImage(image, str(tmp_path / "thick.mha"))
    assert detect([tmp_path / "thick.mha"], tmp_path / "a.csv", weights, "--no-lung-mask") == 0
    assert "slices 5.0 mm apart" in capsys.readouterr().err


def test_predict_without_a_list_detects_and_classifies(cts, weights, tmp_path):
    call = ["predict", "--ct", *map(str, cts), "--output", str(tmp_path / "a.csv"), "--max", "5", "--views", "1"]
    assert main([*call, "--detector-weights", str(weights)]) == 0
    found = rows(tmp_path / "a.csv")
    assert list(found[0]) == [
        "seriesuid", "coordX", "coordY", "coordZ", "probability", "detection_probability", "diameter_mm"
    ]  # fmt: skip
    assert len(found) == 10
    for ct in cts:
        values = [float(row["probability"]) for row in found if row["seriesuid"] == ct.stem]
        assert values == sorted(values, reverse=True)
    assert detect(cts, tmp_path / "b.csv", weights, "--max", 5) == 0
    key = ("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm")
    detected = {tuple(row[k] for k in key): row["probability"] for row in rows(tmp_path / "b.csv")}
    assert {tuple(row[k] for k in key): row["detection_probability"] for row in found} == detected


def test_predict_refuses_the_detectors_options_beside_a_list(cts, tmp_path, capsys):
    call = ["predict", "--ct", str(cts[0]), "--candidates", "x.csv", "--output", str(tmp_path / "a.csv")]
    assert main([*call, "--no-lung-mask"]) == 2
    assert "--candidates with an option of the detector" in capsys.readouterr().err


@pytest.fixture
def series(tmp_path):
    """A DICOM series of four slices of 64 x 64 pixels, 32 x 48 mm, with all that a report needs."""
    rng = np.random.default_rng(0)

    def identify(k, slice_):
        slice_.FrameOfReferenceUID, slice_.StudyInstanceUID = f"{UID}.2", f"{UID}.3"
        slice_.Rows = slice_.Columns = 64
        slice_.PixelData = rng.integers(0, 1500, (64, 64)).astype(np.uint16).tobytes()

    return write_dicom(tmp_path / "series", identify)


def two_stages(series, weights, output, *more):
    call = ["predict", "--ct", series, "--output", output, "--detector-weights", weights, "--no-lung-mask"]
    return main([*map(str, call), "--max", "3", "--views", "1", *map(str, more)])


def test_predict_without_a_list_writes_all_that_one_with_a_list_does(series, weights, tmp_path, capsys):
    srread = pytest.importorskip("highdicom.sr", reason="the report needs the extra 'dicom'").srread
    more = ["--dicom-sr", tmp_path / "a.dcm", "--threshold", 0, "--malignancy", "--explain", tmp_path / "explained"]
    assert two_stages(series, weights, tmp_path / "a.csv", *more, "--explain-top", 1, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    found = rows(tmp_path / "a.csv")
    assert [*found[0]][4:] == ["probability", "detection_probability", "diameter_mm", "malignancy"]
    assert {"candidates": 3, "series": 1, "without": [], "reported": 3, "explained": 1}.items() <= result.items()
    report = srread(tmp_path / "a.dcm")
    groups = report.content.get_planar_roi_measurement_groups()
    told = {one.name.meaning: one.value for one in groups[0].get_measurements()}
    assert told["Diameter"] == pytest.approx(float(found[0]["diameter_mm"]), abs=0.006)
    assert told["Certainty of Finding"] == pytest.approx(100 * float(found[0]["probability"]), abs=1e-3)
    text = (tmp_path / "a.dcm").read_bytes()
    assert b"by detection and classification, the latter with 0.3 of its logit" in text
    assert sha256(weights).encode() in text
    (explained,) = rows(tmp_path / "explained" / "explanations.csv")
    assert [explained[key] for key in ("coordX", "coordY", "coordZ")] == [
        found[0][key] for key in ("coordX", "coordY", "coordZ")
    ]


def test_predict_without_a_list_writes_other_formats(series, weights, tmp_path, capsys):
    assert two_stages(series, weights, tmp_path / "a.csv") == 0
    assert two_stages(series, weights, tmp_path / "a.mrk.json") == 0
    assert "detection_probability left out" in capsys.readouterr().err
    (marks,) = json.loads((tmp_path / "a.mrk.json").read_text())["markups"]
    points = [[float(row[f"coord{axis}"]) for axis in "XYZ"] for row in rows(tmp_path / "a.csv")]
    np.testing.assert_allclose([mark["position"] for mark in marks["controlPoints"]], points, atol=1e-6)
    assert two_stages(series, weights, tmp_path / "a.json", "--format", "monai") == 0
    (boxes,) = next(iter(json.loads((tmp_path / "a.json").read_text()).values()))
    assert len(boxes["box"]) == 3


def test_predict_without_a_list_takes_its_share_from_the_bundle(series, weights, tmp_path):
    bundle = tmp_path / "mine"
    shutil.copytree("bundles/nodule_detection", bundle)
    file = bundle / "configs" / "inference.yaml"
    file.write_text(file.read_text().replace("classifier_weight: 0.3", "classifier_weight: 0.0"))
    assert two_stages(series, weights, tmp_path / "a.csv", "--detector", bundle, "--trust-bundle") == 0
    for row in rows(tmp_path / "a.csv"):
        assert float(row["probability"]) == pytest.approx(float(row["detection_probability"]), rel=1e-5)


@pytest.mark.parametrize(
    ("more", "threshold"),
    [([], 0.125), (["--threshold", 0.25], 0.25), (["--detector-weights", "ANOTHER"], 0.5)],
)
def test_predict_without_a_list_reports_from_the_bundles_threshold(
    series, weights, tmp_path, monkeypatch, more, threshold
):
    """Its own weights' alone: of others it is not known what they find from there on."""
    bundle = tmp_path / "mine"
    shutil.copytree("bundles/nodule_detection", bundle)
    file = bundle / "configs" / "inference.yaml"
    file.write_text(re.sub("report_threshold: .*", "report_threshold: 0.125", file.read_text()))
    seen = []
    monkeypatch.setattr(
        "luna16_monai.inference.predict.predict", lambda *given, **named: seen.append(given[5]) or {"candidates": 0}
    )
    call = ["predict", "--ct", series, "--output", tmp_path / "a.csv", "--detector", bundle, "--trust-bundle"]
    call += ["--no-lung-mask"]
    main([str(weights if word == "ANOTHER" else word) for word in [*call, "--device", "cpu", "--max", 3, *more]])
    assert [wanted.threshold for wanted in seen] == [threshold]


def test_report_threshold_is_a_probability(tmp_path):
    bundle = tmp_path / "mine"
    shutil.copytree("bundles/nodule_detection", bundle)
    file = bundle / "configs" / "inference.yaml"
    said = file.read_text()
    for value, told in (("null", None), ("0.3", 0.3), ("1", 1)):
        file.write_text(re.sub("report_threshold: .*", f"report_threshold: {value}", said))
        assert report_threshold(bundle) == told
    for value in ("2", "-0.1", "high"):
        file.write_text(re.sub("report_threshold: .*", f"report_threshold: {value}", said))
        with pytest.raises(ValueError, match=f"report_threshold {value} in mine: give a probability from 0 to 1"):
            report_threshold(bundle)


@pytest.fixture
def no_detection(monkeypatch):
    monkeypatch.setattr("luna16_monai.inference.detect.Detector.find", None)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--ras"], "--ras is about a table of candidates"),
        (["--dicom-sr", "no.dcm", "--threshold", "2"], "threshold 2"),
        (["--format", "luna"], "--format luna: name one of"),
    ],
)
def test_predict_without_a_list_refuses_before_it_detects(
    series, weights, tmp_path, capsys, monkeypatch, more, message
):
    monkeypatch.setattr("luna16_monai.inference.detect.Detector.find", None)
    assert two_stages(series, weights, tmp_path / "a.csv", *more) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "a.csv").exists()


def test_predict_without_a_list_opens_and_prepares_a_ct_once(series, weights, tmp_path, monkeypatch):
    prepared = []

    def prepare(ct, *rest):
        prepared.append(ct.path)
        return prepare_volume(ct, *rest)

    monkeypatch.setattr("luna16_monai.store.in_memory.prepare_volume", prepare)
    assert two_stages(series, weights, tmp_path / "a.csv", "--malignancy") == 0
    assert prepared == [series]


def test_detect_goes_on_where_it_was_stopped(cts, weights, tmp_path, monkeypatch, capsys):
    assert detect(cts, tmp_path / "whole.csv", weights, "--max", 3) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["whole.csv"]
    find, calls = Detector.find, []

    def stopped(one, volume, lungs, limit):
        calls.append(1)
        if len(calls) == 2:
            raise ValueError("the power fails")
        return find(one, volume, lungs, limit)

    monkeypatch.setattr(Detector, "find", stopped)
    assert detect(cts, tmp_path / "a.csv", weights, "--max", 3) == 2
    parts = tmp_path / "a.csv.parts"
    assert sorted(path.name for path in parts.iterdir()) == sorted(["detect.json", f"{cts[0].stem}.json"])
    assert not (tmp_path / "a.csv").exists()
    assert detect(cts, tmp_path / "a.csv", weights, "--max", 4) == 2
    assert "holds a search of other settings (max 3 instead of 4)" in capsys.readouterr().err.splitlines()[-1]
    assert detect(cts, tmp_path / "a.csv", weights, "--max", 3) == 0
    assert len(calls) == 3  # the first, the one that failed, and that one again
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "whole.csv").read_text()
    assert not parts.exists()


def test_detect_gives_the_same_in_several_processes(cts, weights, tmp_path):
    assert detect(cts, tmp_path / "a.csv", weights, "--max", 3, "--backend", "torch") == 0
    assert detect(cts, tmp_path / "b.csv", weights, "--max", 3, "--backend", "torch", "--workers", 2) == 0
    one, other = rows(tmp_path / "a.csv"), rows(tmp_path / "b.csv")
    assert [row["seriesuid"] for row in one] == [row["seriesuid"] for row in other]
    for key in ("coordX", "coordY", "coordZ", "probability", "diameter_mm"):
        np.testing.assert_allclose([float(row[key]) for row in other], [float(row[key]) for row in one], rtol=1e-4)


def test_detect_refuses_voxels_that_no_nodule_can_be_seen_in(weights, tmp_path, capsys):
    image = sitk.GetImageFromArray(np.full((10, 20, 20), -850, np.int16))
    image.SetSpacing([20.0, 20.0, 5.0])
    sitk.WriteImage(image, str(tmp_path / "wide.mha"))
    assert detect([tmp_path / "wide.mha"], tmp_path / "a.csv", weights, "--no-lung-mask") == 2
    assert "series wide has voxels of 5 x 20 x 20 mm: the detector takes 0.1 to 10 mm" in capsys.readouterr().err


def test_detect_refuses_a_mask_that_lies_beside_the_ct(cts, weights, tmp_path, capsys):
    mask = sitk.GetImageFromArray(np.ones((8, 8, 8), np.uint8))
    mask.SetOrigin([5000.0, 0.0, 0.0])
    sitk.WriteImage(mask, str(tmp_path / "mask.mha"))
    assert detect(cts[:1], tmp_path / "a.csv", weights, "--lung-mask", tmp_path / "mask.mha") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"lies beside series {cts[0].stem}" in line
    assert "does it belong to this CT?" in line
    assert [path.name for path in tmp_path.iterdir()] == ["mask.mha"]


def test_detect_refuses_the_weights_of_another_bundle(cts, tmp_path, capsys):
    other = bundle_dir("nodule_classification") / "models" / "model.pt"
    assert detect(cts[:1], tmp_path / "a.csv", other) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"the weights {other}" in line
    assert list(tmp_path.iterdir()) == []


def test_detect_refuses_a_ct_that_is_too_large_for_memory(cts, weights, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(memory, "left", lambda: (1000, 2 * 10**9, None))
    assert detect(cts[:1], tmp_path / "a.csv", weights) == 2
    (line,) = capsys.readouterr().err.splitlines()
    x, y, z = sitk.ReadImage(str(cts[0])).GetSize()
    # int16: two bytes a voxel
    assert f"has {z} x {y} x {x} voxels of " in line
    assert f"which take {x * y * z * 2 / 1e9:.1f} GB, and 0.0 GB of memory are left" in line
    assert list(tmp_path.iterdir()) == []


def test_detect_refuses_a_grid_that_is_too_large_for_memory(weights, tmp_path, monkeypatch, capsys):
    """Voxels of 8 mm become 8 / 1.25 times 8 / 0.7 times 8 / 0.7 as many: 20 x 20 x 20 some six millions."""
    image = sitk.GetImageFromArray(np.full((20, 20, 20), -850, np.int16))
    image.SetSpacing([8.0, 8.0, 8.0])
    sitk.WriteImage(image, str(tmp_path / "wide.mha"))
    monkeypatch.setattr(memory, "left", lambda: (10**6, 10**9, None))
    assert detect([tmp_path / "wide.mha"], tmp_path / "a.csv", weights, "--no-lung-mask") == 2
    assert "voxels of 1.25 x 0.7 x 0.7 mm" in capsys.readouterr().err
    assert not (tmp_path / "a.csv").exists()


def test_views_change_probabilities_a_little_and_stand_in_the_record(cts, weights, tmp_path, capsys):
    call = (cts[:1], tmp_path / "a.csv", weights, "--max", 5, "--no-lung-mask", "--backend", "torch")
    assert detect(*call) == 0
    one = rows(tmp_path / "a.csv")
    assert detect(*call, "--views", 2) == 0
    two = rows(tmp_path / "a.csv")
    assert [row["probability"] for row in one] != [row["probability"] for row in two]
    assert detect(*call, "--views", 3) == 2
    assert "views 3: give one of 1, 2, 4, 8, 16" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["torchscript", "pt2", "onnx", "openvino"])
def test_export_writes_a_detector_for_volumes_of_any_size(weights, tmp_path, kind):
    output = tmp_path / ("model.xml" if kind == "openvino" else f"model.{kind}")
    call = ["export", "--bundle", "bundles/nodule_detection", "--weights", weights, "--format", kind]
    assert main([*map(str, call), "--output", str(output)]) == 0
    network = NoduleDetector().eval()
    network.load_state_dict(torch.load(weights, weights_only=True))
    image = torch.rand(1, 1, 24, 40, 16, generator=torch.Generator().manual_seed(0)) * 1400 - 1000
    with torch.no_grad():
        expected = network(image)
        if kind == "torchscript":
            maps = torch.jit.load(output)(image)
        elif kind == "pt2":
            maps = torch.export.load(output).module()(image)
        elif kind == "onnx":
            runtime = pytest.importorskip("onnxruntime")
            maps = torch.from_numpy(runtime.InferenceSession(output).run(["maps"], {"image": image.numpy()})[0])
        else:
            pytest.importorskip("openvino")
            compiled = core().compile_model(output, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
            maps = torch.from_numpy(compiled({"image": image.numpy()})["maps"])
    torch.testing.assert_close(maps, expected, atol=1e-4, rtol=0)


def test_challenge_without_a_list_answers_the_detectors_candidates(cts, tmp_path, capsys):
    """By the bundle's own weights: a new network's hottest cells may all lie outside the lungs."""
    (tmp_path / "in" / "images" / "ct").mkdir(parents=True)
    sitk.WriteImage(sitk.ReadImage(str(cts[0])), str(tmp_path / "in" / "images" / "ct" / "a.mha"))
    call = ["challenge", "--input", tmp_path / "in", "--output", tmp_path / "out", "--device", "cpu", "--json"]
    assert main([*map(str, call), "--max", "3"]) == 0
    assert json.loads(capsys.readouterr().out)["points"] == 3
    answer = json.loads((tmp_path / "out" / "lung-nodule-malginancy-likelihoods.json").read_text())
    assert [one["name"] for one in answer["points"]] == ["candidate 1", "candidate 2", "candidate 3"]
