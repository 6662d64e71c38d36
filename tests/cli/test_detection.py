"""``luna16 detect`` and ``luna16 predict`` without a list, with a new network's weights."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from luna16_monai.cli.main import main
from luna16_monai.networks.nodule_detector import NoduleDetector


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    network = NoduleDetector()
    torch.nn.init.normal_(network.head.weight, std=0.5)
    path = tmp_path_factory.mktemp("detector") / "model.pt"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def cts(phantom_dir):
    return sorted(phantom_dir.glob("subset*/*.mhd"))[:2]


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
