"""Draw phantom cutouts and slices as one picture, beside real ones where some are at hand, for the eye to compare.

    python tools/montage.py --phantom data/phantom --output montage.png
    python tools/montage.py --phantom data/phantom --real CUTOUTS --ct CT --output montage.png

CUTOUTS holds .npy files (z, y, x) in HU and a cutouts.csv (file, label, diameter_mm, spacing_y); CT is a CT file or a
folder of DICOM files. A picture with real slices falls under the licence of those. Needs the extra `report`.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from luna16_monai.ct.folders import find_cts
from luna16_monai.ct.opening import open_ct
from luna16_monai.geometry.slices import LUNG_WINDOW_HU, slices_through
from luna16_monai.geometry.volume import Volume
from luna16_monai.phantom.background import read_background
from luna16_monai.tables.luna16 import read_candidates
from luna16_monai.tables.points import read_points

CUTOUT_MM = 30.0
SLICE_MM = 134.0
"""Half a chest: what 192 voxels of 0.7 mm span."""
PIXELS = 223

Picture = tuple[NDArray[np.uint8], str]


def phantom_cutouts(phantom: Path, columns: int, rng: np.random.Generator) -> tuple[list[Picture], list[Picture]]:
    """Axial slices through nodules of every kind, and through other candidates, each with its title."""
    with (phantom / "nodules.csv").open(encoding="utf-8", newline="") as stream:
        kinds = [f"{row['kind']}, {row['location']}" for row in csv.DictReader(stream)]
    nodules, candidates = read_points(phantom / "nodules.csv", "diameter_mm"), read_candidates(phantom)
    of_kind: dict[str, list[int]] = {}
    for row in rng.permutation(len(nodules)).tolist():
        of_kind.setdefault(kinds[row].split(",")[0], []).append(row)
    # in turn, so that rare kinds are seen too
    chosen = [rows[i] for i in range(columns) for rows in of_kind.values() if i < len(rows)][:columns]
    first = [
        (
            axial(phantom, nodules.series_uids[nodules.series[row]], nodules.points_xyz[row], CUTOUT_MM),
            f"{kinds[row]}\n{nodules.values[row]:.1f} mm",
        )
        for row in chosen
    ]
    others = rng.choice(np.flatnonzero(candidates.values == 0), columns, replace=False).tolist()
    second = [
        (axial(phantom, candidates.series_uids[candidates.series[r]], candidates.points_xyz[r], CUTOUT_MM), "class 0")
        for r in others
    ]
    return first, second


def real_cutouts(folder: Path) -> list[Picture]:
    """The middle slice of each cutout that cutouts.csv lists."""
    pictures = []
    with (folder / "cutouts.csv").open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            voxels = np.load(folder / row["file"])
            half = min(round(CUTOUT_MM / 2 / float(row["spacing_y"])), voxels.shape[1] // 2)
            middle = slice(voxels.shape[1] // 2 - half, voxels.shape[1] // 2 + half)
            title = f"nodule\n{float(row['diameter_mm']):.1f} mm" if row["label"] == "1" else "class 0"
            pictures.append((windowed(voxels[len(voxels) // 2, middle, middle]), title))
    return pictures


def windowed(hu: NDArray[np.integer]) -> NDArray[np.uint8]:
    """HU as grey values of the lung window."""
    low, high = LUNG_WINDOW_HU
    return (np.clip((hu - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def axial(phantom: Path, series_uid: str, point_xyz: NDArray[np.floating], side_mm: float) -> NDArray[np.uint8]:
    """The axial slice through a point of a phantom scan."""
    ct = open_ct(next(phantom.glob(f"subset?/{series_uid}.mhd")))
    volume = Volume(ct.read(), ct.geometry, ct.geometry)
    return slices_through(volume, point_xyz, side_mm, round(side_mm / 0.6) | 1)["axial"]


def middle_slice(path: Path) -> Picture:
    """The middle axial slice of a phantom scan."""
    ct = open_ct(path)
    middle = ct.geometry.world_from_voxel((np.array(ct.geometry.shape_zyx) - 1) / 2)
    picture = slices_through(Volume(ct.read(), ct.geometry, ct.geometry), middle, SLICE_MM, PIXELS)["axial"]
    return picture, f"{ct.geometry.spacing_zyx[0]:g} mm slices"


def lung_slices(path: Path, heights: NDArray[np.floating]) -> list[Picture]:
    """Axial slices of a real CT around the lung at its lower indices, at heights from 0 (the lung's foot) to 1."""
    scene = read_background(path)
    points = scene.lung_zyx[scene.lung_zyx[:, 2] < np.median(scene.lung_zyx[:, 2])]
    volume = Volume(scene.hu, scene.geometry, scene.geometry)
    pictures = []
    for height in heights:
        middle = np.array([np.quantile(points[:, 0], height), *np.median(points[:, 1:], axis=0)])
        world = scene.geometry.world_from_voxel(middle / scene.spacing_zyx - 0.5)
        picture = slices_through(volume, world, SLICE_MM, PIXELS)["axial"]
        pictures.append((picture, f"{scene.spacing_zyx[0]:g} mm slices"))
    return pictures


def draw(rows: list[list[Picture]], names: list[str], output: Path, columns: int) -> None:
    """Lay rows of pictures out as one PNG."""
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(1.5 * columns, 1.75 * len(rows)), squeeze=False, layout="constrained"
    )
    for line, pictures, name in zip(axes, rows, names, strict=True):
        for axis in line:
            axis.axis("off")
        for axis, (picture, title) in zip(line, pictures, strict=False):
            axis.imshow(picture, cmap="gray", vmin=0, vmax=255)
            axis.set_title(title, fontsize=6)
        line[0].text(-0.08, 0.5, name, rotation=90, va="center", ha="right", fontsize=7, transform=line[0].transAxes)
    figure.savefig(output, dpi=110, pil_kwargs={"optimize": True})
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--phantom", type=Path, required=True, metavar="DIR")
    parser.add_argument("--real", type=Path, metavar="DIR", help="cutouts of real scans")
    parser.add_argument("--ct", type=Path, metavar="PATH", help="a real chest CT")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.png")
    parser.add_argument("--columns", type=int, default=6, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="chooses what is shown")
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    rows = list(phantom_cutouts(options.phantom, options.columns, rng))
    names = ["phantom: nodules", "phantom: others"]
    if options.real:
        rows.append(real_cutouts(options.real))
        names.append("real cutouts")
    cts = find_cts(options.phantom)
    shown = [cts[i] for i in rng.choice(len(cts), min(options.columns, len(cts)), replace=False)]
    rows.append([middle_slice(ct.path) for ct in shown])
    names.append("phantom: slices")
    if options.ct:
        rows.append(lung_slices(options.ct, np.linspace(0.2, 0.8, options.columns)))
        names.append("real: slices")
    draw(rows, names, options.output, options.columns)
    print(f"{options.output}: {options.output.stat().st_size // 1024} kB")


if __name__ == "__main__":
    main()
