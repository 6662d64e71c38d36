"""Explanations: the place that makes the network say nodule is found, and drawn where it lies."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_scans import write_scan
from PIL import Image
from point_tables import point_table
from scipy.special import logit
from torch import nn

from luna16_monai.bundle.folders import bundle_dir
from luna16_monai.cli.main import main
from luna16_monai.geometry.grid import Geometry
from luna16_monai.geometry.volume import Volume
from luna16_monai.inference.classifier import Classifier
from luna16_monai.inference.occlusion import (
    AGAINST,
    FOR,
    STRONGEST,
    Explanation,
    draw,
    explain,
    full_colour,
    write_explanations,
)
from luna16_monai.networks.nodule_net import NoduleNet
from luna16_monai.tables.points import write_points

UID = "1.2.3"
POINT = (0.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save(NoduleNet(two_scales=True, return_probabilities=False).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lung at the bundle's own spacing, the world's origin in its middle; tissue to the patient's left of it."""
    voxels = np.full((48, 72, 72), -850, np.int16)
    # 8.4 to 14 mm to the left, 4 slices up
    voxels[26:30, 33:40, 48:56] = 100
    spacing = (0.7, 0.7, 1.25)
    return write_scan(
        tmp_path_factory.mktemp("ct"), UID, voxels, origin_xyz=(-36 * 0.7, -36 * 0.7, -24 * 1.25), spacing_xyz=spacing
    )


class BrightLeft(nn.Module):
    """Says nodule for tissue in one corner of the cutout, and the opposite for tissue in another."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        tissue = ((image[:, 0] + 850) / 950).clamp(0, 1)
        left, right = tissue[:, :, :, 30:].mean((1, 2, 3)), tissue[:, :, :, :18].mean((1, 2, 3))
        return torch.stack([torch.zeros_like(left), 400 * (left - right) - 2], 1)


@pytest.fixture
def classifier(weights: Path) -> Classifier:
    made = Classifier(bundle_dir(), weights=[weights], backend="torch")
    made.networks, made.views = [BrightLeft()], 1  # it tells left from right, which flips would average out
    return made


def test_explain_finds_what_speaks_for_a_nodule(classifier, ct):
    (found,) = explain(classifier, point_table([(UID, *POINT, 0.0)]), classifier.volumes([ct]))
    # 4 x 7 x 8 voxels of tissue in 32 x 48 x 18
    expected = 400 * 4 * 7 * 8 / (32 * 48 * 18) - 2
    assert logit(found.probability) == pytest.approx(expected, abs=1e-4)
    assert found.fall.voxels.shape == (32, 48, 48)
    z, y, x = np.unravel_index(found.fall.voxels.argmax(), found.fall.voxels.shape)
    # the cutout's middle is voxel (16, 24, 24); the tissue's is 4 slices up, and 15.5 voxels to the left
    assert abs(z - 19.5) <= 4
    assert abs(y - 24) <= 6
    assert abs(x - 39.5) <= 6
    # hidden, most of it is gone, and hiding lung with lung changes nothing
    assert found.fall.voxels.max() > 0.4 * (expected + 2)
    assert np.abs(found.fall.voxels[:, :, :14]).max() < 1e-3


def test_explain_finds_what_speaks_against_it(classifier, ct):
    # seen from 23 mm further left, the tissue lies on the right
    (found,) = explain(classifier, point_table([(UID, 23.0, 0.0, 0.0, 0.0)]), classifier.volumes([ct]))
    assert found.fall.voxels.min() < -1
    assert found.fall.voxels.max() < 0.01


def test_draw_puts_the_colour_where_the_fall_is():
    geometry = Geometry.from_axes((101, 101, 101), (1, 1, 1), (-50, -50, -50), np.eye(3))
    volume = Volume(np.full((101, 101, 101), -300, np.int16), geometry, geometry)
    fall = np.zeros((101, 101, 101), np.float32)
    # 12 mm to the left it falls by 4, 12 mm to the right it rises by 2
    fall[40:61, 40:61, 56:69], fall[40:61, 40:61, 32:45] = 4, -2
    pictures = draw(volume, Volume(fall, geometry, geometry), (0, 0, 0))
    # 401 pixels of 50 mm; -300 HU is grey 128
    assert pictures.shape == (802, 1203, 3)
    assert np.unique(pictures[:401]).tolist() == [128]
    left, right = 200 + round(12 * 401 / 50), 200 - round(12 * 401 / 50)
    below = pictures[401 + 200]
    assert below[left] == pytest.approx(128 * (1 - STRONGEST) + np.array(FOR) * STRONGEST, abs=4)
    assert below[right] == pytest.approx(128 * (1 - STRONGEST / 2) + np.array(AGAINST) * STRONGEST / 2, abs=4)
    assert below[200].tolist() == [128] * 3


def test_full_colour_does_not_make_much_of_nothing():
    geometry = Geometry.from_axes((2, 2, 2), (1, 1, 1), (0, 0, 0), np.eye(3))
    for change, scale in ((0.001, 1.0), (-5.0, 5.0)):
        assert full_colour(Volume(np.full((2, 2, 2), change, np.float32), geometry, geometry)) == scale


def test_write_explanations_names_each_picture_in_the_table(tmp_path):
    geometry = Geometry.from_axes((2, 2, 2), (1, 1, 1), (0, 0, 0), np.eye(3))
    fall = Volume(np.full((2, 2, 2), np.log(4), np.float32), geometry, geometry)
    one = Explanation(UID, (1.0, 2.0, 3.0), 0.8, fall, np.zeros((802, 1203, 3), np.uint8))
    write_explanations(tmp_path / "why", [one, one])
    with (tmp_path / "why" / "explanations.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    # odds of 4 to 1 become 1 to 1
    assert [(row["picture"], float(row["probability"])) for row in rows] == [("001.png", 0.8), ("002.png", 0.8)]
    assert float(rows[0]["lowest_hidden"]) == pytest.approx(0.5, abs=1e-6)
    assert Image.open(tmp_path / "why" / "002.png").size == (1203, 846)


def test_predict_explains_the_most_probable(ct, weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("luna16_monai.inference.occlusion.OVERLAP", 0.0)
    points = [(0.0, 0.0, 0.0), (5.0, 0.0, 0.0), (10.0, 0.0, 5.0)]
    write_points(tmp_path / "points.csv", [UID] * 3, points, np.zeros(3), "class")
    words = ["predict", "--ct", ct, "--candidates", tmp_path / "points.csv", "--output", tmp_path / "p.csv"]
    words += [
        "--weights",
        weights,
        "--device",
        "cpu",
        "--backend",
        "torch",
        "--explain",
        tmp_path / "why",
        "--explain-top",
        2,
    ]
    assert main([str(word) for word in words]) == 0
    assert "2 explanations in" in capsys.readouterr().out
    with (tmp_path / "p.csv").open(newline="") as stream:
        best = sorted(csv.DictReader(stream), key=lambda row: -float(row["probability"]))[:2]
    with (tmp_path / "why" / "explanations.csv").open(newline="") as stream:
        explained = list(csv.DictReader(stream))
    assert [row["coordX"] for row in explained] == [row["coordX"] for row in best]
    assert [float(row["probability"]) for row in explained] == pytest.approx(
        [float(row["probability"]) for row in best], abs=1e-5
    )
    assert main([str(word) for word in words]) == 2
    told = capsys.readouterr().err
    assert "why is not empty (it holds " in told
    assert "): name a new folder for --explain" in told
    words[-3:] = [tmp_path / "other", "--explain-top", 0]
    assert main([str(word) for word in words]) == 2
    assert "--explain of 0 candidates by 1 bundles" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
