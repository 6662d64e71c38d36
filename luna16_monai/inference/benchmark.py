"""``luna16 benchmark``: weights on labelled cutouts, or on CTs whose nodules are listed.

A cutout stands in for a CT: it is brought to the network's spacing with the candidate on a voxel, and the bundle's own
transforms take it from there. So every cutout has to lie as LUNA16's CTs do: axes towards left, posterior, superior.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from luna16_monai.ct.lungs import lung_mask
from luna16_monai.ct.spots import brightest_spots
from luna16_monai.evaluation.benchmark import benchmark
from luna16_monai.geometry.grid import Geometry
from luna16_monai.geometry.volume import Volume
from luna16_monai.inference.classifier import Classifier
from luna16_monai.machine.progress import bar, counted
from luna16_monai.store.in_memory import InMemoryStore
from luna16_monai.store.resampling import as_int16, interpolate_axes
from luna16_monai.tables.cutouts import Cutouts
from luna16_monai.tables.points import PointTable, has_column, read_points

MATCHED_MM = 1.0
MATCHED_HU = 400
WIDE_MM = 56.0
"""The side of the cutouts that are taken from CTs."""
LARGEST_MM = 30.0
"""What is larger is a mass, and not scored."""


class CutoutSource:
    """Cutouts in the place of CTs: volumes in which the candidate lies at (0, 0, 0) mm.

    Args:
        cutouts: the cutouts.
        spacing_zyx: mm of the volumes; None for each cutout's own.
        matched: first bring all to 1 mm and end them at 400 HU, so that sources cannot be known by their form.
    """

    def __init__(self, cutouts: Cutouts, spacing_zyx: Sequence[float] | None, matched: bool = False) -> None:
        self.cutouts, self.spacing_zyx, self.matched = cutouts, spacing_zyx, matched

    def table(self) -> PointTable:
        """Return the candidates, one a series that is named by its row."""
        n = len(self.cutouts)
        names = tuple(f"{row:08d}" for row in range(n))
        rows = np.arange(n, dtype=np.int32)
        return PointTable(self.cutouts.source, names, rows, np.zeros((n, 3)), np.zeros(n), rows + 2)

    def volume(self, series_uid: str, /) -> Volume:
        """Return a cutout on the grid that is wanted."""
        row = int(series_uid)
        voxels = self.cutouts.voxels[row]
        spacing, center = self.cutouts.spacing_zyx[row], self.cutouts.center_zyx[row]
        if self.matched:
            voxels, center = resampled(voxels, spacing, center, (MATCHED_MM,) * 3)
            voxels, spacing = np.minimum(voxels, MATCHED_HU).astype(np.int16), np.full(3, MATCHED_MM)
        wanted = spacing if self.spacing_zyx is None else np.asarray(self.spacing_zyx, np.float64)
        voxels, center = resampled(voxels, spacing, center, wanted)
        affine = np.eye(4)
        affine[:3, :3] = np.fliplr(np.diag(wanted[::-1]))
        affine[:3, 3] = -(affine[:3, :3] @ center)
        z, y, x = voxels.shape
        geometry = Geometry((z, y, x), affine)
        return Volume(voxels, geometry, geometry)


def resampled(
    voxels: NDArray[np.int16], spacing_zyx: ArrayLike, center_zyx: ArrayLike, wanted_zyx: ArrayLike
) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """Return a cutout at another spacing, interpolated linearly, and the voxel of its candidate, a whole number.

    Args:
        voxels: (z, y, x).
        spacing_zyx: (3,) mm.
        center_zyx: (3,) fractional voxel of the candidate.
        wanted_zyx: (3,) mm.
    """
    center, step = np.asarray(center_zyx, np.float64), np.asarray(wanted_zyx) / np.asarray(spacing_zyx)
    # whole steps from the candidate, as far as the outermost voxels reach: half a voxel beyond their centres
    before = np.floor((center + 0.5) / step + 1e-6).astype(int)
    behind = np.floor((np.array(voxels.shape) - 0.5 - center) / step + 1e-6).astype(int)
    places = [c + s * np.arange(-b, a + 1) for c, s, b, a in zip(center, step, before, behind, strict=True)]
    # (channel, x, y, z), as `interpolate_axes` takes it; two voxels at least, for it to have a neighbour
    padded = np.pad(voxels, [(0, int(side < 2)) for side in voxels.shape], mode="edge")
    source = torch.from_numpy(np.ascontiguousarray(padded)).permute(2, 1, 0)[None]
    return as_int16(interpolate_axes(source, places[::-1])), before.astype(np.float64)


def cutouts_of_cts(
    cts: Sequence[Path], nodules: Path, recipe: Path, negatives: int, allow_symlinks: bool = False
) -> Cutouts:
    """Cut the listed nodules out of CTs, and as others the brightest spots of their lungs away from all nodules.

    Args:
        cts: CT files, folders of DICOM files, or one data folder.
        nodules: a table of seriesuid, coordX, coordY, coordZ and, where known, diameter_mm; all nodules of these CTs.
        recipe: a bundle's ``prepare.yaml``.
        negatives: how many spots of each CT.
        allow_symlinks: take CTs that are linked into place.

    Raises:
        FileNotFoundError: a CT or the table is missing.
        ValueError: a point of the table lies outside its CT, or a CT has no lungs to look for spots in.
    """
    if negatives < 1:
        raise ValueError(f"--negatives {negatives}: at least 1 of each CT is needed to measure false calls")
    volumes = InMemoryStore(cts, recipe, None, allow_symlinks=allow_symlinks)
    table = read_points(nodules, "diameter_mm" if has_column(nodules, "diameter_mm") else None)
    volumes.require_inside(table)
    diameter = np.where(table.values > 0, table.values, np.nan)
    parts: dict[str, list[Any]] = {"voxels": [], "spacing": [], "center": [], "label": [], "series": [], "diameter": []}
    uids = np.array(table.row_series(), dtype=object)
    for uid in counted(volumes.series_uids, "cut out", "CT"):
        volume, own = volumes.volume(uid), np.flatnonzero(uids == uid)
        hu = np.asarray(volume.voxels[:, :, :], np.int16)
        lungs = lung_mask(hu, volume.geometry)
        radii = np.nan_to_num(diameter[own], nan=LARGEST_MM) / 2
        spots = brightest_spots(hu, volume.geometry, lungs, negatives, table.points_xyz[own], radii)
        if not len(spots):
            raise ValueError(f"series {uid}: no lungs were found, so no spots to compare nodules with: leave it out")
        shape = 2 * np.ceil(WIDE_MM / 2 / np.array(volume.geometry.spacing_zyx)).astype(int) + 1
        spacing = np.array(volume.geometry.spacing_zyx)
        for number, point in enumerate(np.concatenate([table.points_xyz[own], spots])):
            mm = diameter[own[number]] if number < len(own) else np.nan
            at = volume.geometry.voxel_from_world(point)
            parts["voxels"].append(volume.cutout(point, shape.tolist()))
            parts["center"].append(at - np.floor(at + 0.5) + shape // 2)
            parts["label"].append(0 if number >= len(own) else 3 if mm > LARGEST_MM else 1)
            parts["spacing"].append(spacing)
            parts["series"].append(uid)
            parts["diameter"].append(mm)
    return Cutouts(
        str(nodules), parts["voxels"], np.array(parts["spacing"]), np.array(parts["center"]), np.array(parts["label"]),
        parts["series"], parts["series"], np.array(parts["diameter"]), [""] * len(parts["series"]),
    )  # fmt: skip


def run_benchmark(
    classifiers: Sequence[tuple[str, Classifier]],
    cutouts: Cutouts,
    views: int | None = None,
    matched: bool = False,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Score cutouts by the weights of several classifiers, see `evaluation.benchmark.benchmark`.

    Args:
        classifiers: their names and networks.
        cutouts: those to score, label 0 and 1.
        views: flips and turns that are averaged; None takes each bundle's setting.
        matched: as `CutoutSource`.
        draws: of the bootstrap.
        seed: of the draws.

    Raises:
        ValueError: one class alone; or the bundle's spacing is no spacing.
    """
    scored = {}
    with bar(len(classifiers) * len(cutouts), "benchmark", "cutout") as shown:
        for name, one in classifiers:
            spacing = one.config["spacing_zyx"]
            source = CutoutSource(cutouts, spacing, matched)
            rows = np.arange(len(cutouts))
            scored[name] = one.score_rows(source.table(), rows, one.preprocessing(source), views, done=shown.update)
    result = benchmark(scored, cutouts.label, cutouts.patient, cutouts.diameter_mm, draws, seed)
    for row, (_, one) in zip(result["weights"], classifiers, strict=True):
        row |= {"file": str(one.weights[0]), "views": one.views if views is None else views}
    return {"matched": matched, **result}
