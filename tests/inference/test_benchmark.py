"""Cutouts in the place of CTs: where the candidate lies, what is interpolated, CTs cut up, and several weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from luna16_monai.bundle.folders import bundle_dir
from luna16_monai.cli import main as cli
from luna16_monai.inference.benchmark import CutoutSource, cutouts_of_cts, resampled
from luna16_monai.tables.cutouts import Cutouts
from luna16_monai.tables.points import read_points, write_points

RECIPE = bundle_dir() / "configs" / "prepare.yaml"


def ramp(spacing: tuple[float, float, float], center: tuple[float, float, float]) -> Cutouts:
    """One cutout whose HU are 100 z + 10 y + x in mm from the candidate."""
    z, y, x = (np.arange(41) - c for c in center)
    mm = 10 * z[:, None, None] * spacing[0] + 3 * y[:, None] * spacing[1] + x * spacing[2]
    voxels = np.round(10 * mm).astype(np.int16)
    return Cutouts(
        "set.csv", [voxels], np.array([spacing]), np.array([center]), np.array([1]), ["A"], [""], np.array([7.0]), [""]
    )


def test_resampled_puts_the_candidate_on_a_voxel():
    voxels = (100 * np.arange(5, dtype=np.int16))[:, None, None] * np.ones((1, 5, 5), np.int16)
    out, center = resampled(voxels, (2.0, 1, 1), (1.75, 2, 2), (1.0, 1, 1))
    # 1 mm is half a voxel: from 1.75 down to -0.25, below which the box ends at -0.5, and up to 4.25
    assert center.tolist() == [4, 2, 2]
    assert out[:, 0, 0].tolist() == [0, 25, 75, 125, 175, 225, 275, 325, 375, 400]


def test_volume_keeps_values_where_they_were():
    cutouts = ramp((1.0, 0.7, 0.8), (20.25, 19.5, 20.0))
    volume = CutoutSource(cutouts, (1.25, 0.7, 0.7)).volume("00000000")
    box = volume.cutout((0, 0, 0), (3, 3, 3))
    expected = [
        [[10 * (10 * 1.25 * z + 3 * 0.7 * y + 0.7 * x) for x in (-1, 0, 1)] for y in (-1, 0, 1)] for z in (-1, 0, 1)
    ]
    np.testing.assert_allclose(box, expected, atol=1.01)


def test_matched_ends_values_at_400_hu_and_keeps_the_candidate():
    cutouts = ramp((2.5, 0.7, 0.7), (20, 20, 20))
    plain = CutoutSource(cutouts, (1.25, 0.7, 0.7)).volume("00000000").cutout((0, 0, 0), (9, 3, 3))
    matched = CutoutSource(cutouts, (1.25, 0.7, 0.7), matched=True).volume("00000000").cutout((0, 0, 0), (9, 3, 3))
    assert plain.max() == 528  # 500 of z, 21 of y, 7 of x
    assert matched.max() == 400
    np.testing.assert_allclose(matched[:7], np.minimum(plain, 400)[:7], atol=1.01)


def test_table_names_each_cutout_by_its_row():
    table = CutoutSource(ramp((1, 1, 1), (20, 20, 20)), None).table()
    assert table.series_uids == ("00000000",)
    assert table.points_xyz.tolist() == [[0, 0, 0]]
    assert table.place(0) == "set.csv, line 2"


def test_resampled_of_a_single_slice_repeats_it():
    out, center = resampled(np.full((1, 4, 4), 7, np.int16), (3.0, 1, 1), (0, 1, 1), (1.0, 1, 1))
    assert (out == 7).all()
    assert center[0] == pytest.approx(1)


@pytest.fixture(scope="module")
def listed(phantom_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], Path]:
    """Two drawn CTs and the table of their nodules."""
    cts = sorted(phantom_dir.glob("subset*/*.mhd"))[:2]
    table = read_points(phantom_dir / "annotations.csv", "diameter_mm")
    own = table.select(table.series_codes([path.stem for path in cts]) >= 0)
    path = tmp_path_factory.mktemp("nodules") / "nodules.csv"
    write_points(path, own.row_series(), own.points_xyz, own.values, "diameter_mm")
    return cts, path


def test_cutouts_of_cts_are_the_nodules_and_spots_away_from_them(listed):
    cts, nodules = listed
    found, table = cutouts_of_cts(cts, nodules, RECIPE, 3), read_points(nodules, "diameter_mm")
    assert (found.label == 1).sum() == len(table)
    assert (found.label == 0).sum() <= 6
    for path in cts:
        rows = [row for row, uid in enumerate(found.series) if uid == path.stem]
        own = table.select(table.series_codes([path.stem]) == 0)
        assert found.diameter_mm[rows][: len(own)].tolist() == own.values.tolist()
        # the nodules first, then the spots, whose size is not known
        assert found.label[rows].tolist() == [1] * len(own) + [0] * (len(rows) - len(own))
        assert np.isnan(found.diameter_mm[rows][len(own) :]).all()
        # a drawn solid nodule is brighter than the lung around it, at the voxel where it is said to lie
        z, y, x = np.round(found.center_zyx[rows[0]]).astype(int)
        assert found.voxels[rows[0]][z, y, x] > -850


def test_cutouts_of_cts_refuse_a_nodule_of_another_ct(listed):
    cts, nodules = listed
    with pytest.raises(ValueError, match="is not in the CTs that were named"):
        cutouts_of_cts(cts[:1], nodules, RECIPE, 3)


@pytest.fixture(scope="module")
def result(listed: tuple[list[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The bundle's weights, and the same with both classes exchanged: each probability is 1 minus the other's."""
    cts, nodules = listed
    folder = tmp_path_factory.mktemp("weights")
    state = torch.load(bundle_dir() / "models" / "model.pt", weights_only=True)
    torch.save(state, folder / "one.pt")
    torch.save({**state, **{name: state[name].flip(0) for name in ("head.weight", "head.bias")}}, folder / "other.pt")
    words = ["benchmark", "--ct", *cts, "--nodules", nodules, "--negatives", 4, "--views", 1, "--device", "cpu"]
    words += ["--weights", folder / "one.pt", folder / "other.pt", "--bootstrap", 50, "--output", folder]
    assert cli.main([str(word) for word in words]) == 0
    return json.loads((folder / "benchmark.json").read_text(encoding="utf-8"))


def test_benchmark_of_cts_counts_what_was_cut_out(listed, result):
    assert result["nodules"] == len(read_points(listed[1], None))
    assert result["patients"] == 2
    assert [Path(one["file"]).name for one in result["weights"]] == ["one.pt", "other.pt"]


def test_benchmark_tells_the_paired_difference_of_weights(result):
    one, other = (row["roc_auc"] for row in result["weights"])
    # exchanged classes turn the ranking round
    assert other == pytest.approx(1 - one)
    (difference,) = result["differences"]
    assert (Path(difference["from"]).name, Path(difference["name"]).name) == ("one.pt", "other.pt")
    assert difference["roc_auc"] == pytest.approx(1 - 2 * one)
    # of the same draws: 1 - 2 x the AUC of each draw, so the bounds of the first, turned round
    low, high = difference["roc_auc_ci95"]
    assert low <= difference["roc_auc"] <= high
    bounds = result["weights"][0]["roc_auc_ci95"]
    assert low >= 1 - 2 * bounds[1] - 1e-9
    assert low == pytest.approx(1 - 2 * bounds[1], abs=0.1)
