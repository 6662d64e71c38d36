"""Let networks that were trained on the phantom score real cutouts: the probability of each, network by network.

    python tools/real_cutouts.py --cutouts CUTOUTS --weights runs/a/model.pt runs/b/model.pt

CUTOUTS holds .npy files (z, y, x) in HU, the candidate at voxel n // 2 of each axis, and a cutouts.csv (file, label,
diameter_mm, spacing_z, spacing_y, spacing_x). Each is taken for a CT of its own and goes the way of `luna16 predict`:
to the training's spacing, and filled up with air where the training's box is larger.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from pathlib import Path

import numpy as np

from luna16_monai.bundle.folders import bundle_dir
from luna16_monai.ct.metaimage import write_mhd
from luna16_monai.geometry.grid import Geometry
from luna16_monai.inference.classifier import Classifier
from luna16_monai.tables.points import read_points, write_points


def write_as_cts(cutouts: Path, folder: Path) -> tuple[list[Path], list[str]]:
    """Write each cutout as a CT with a table of its candidate beside it; gives the CTs, and what each shows."""
    paths, names, points = [], [], []
    with (cutouts / "cutouts.csv").open(encoding="utf-8", newline="") as stream:
        for number, row in enumerate(csv.DictReader(stream)):
            hu = np.load(cutouts / row["file"]).astype(np.int16)
            spacing_xyz = [float(row[f"spacing_{axis}"]) for axis in "xyz"]
            geometry = Geometry.from_axes(hu.shape[::-1], spacing_xyz, np.zeros(3), np.eye(3))
            paths.append(folder / f"cutout{number}.mhd")
            write_mhd(paths[-1], hu, geometry)
            points.append(geometry.world_from_voxel(np.array(hu.shape) // 2))
            names.append(f"nodule, {float(row['diameter_mm']):.1f} mm" if row["label"] == "1" else "class 0")
    write_points(folder / "points.csv", [p.stem for p in paths], points, [0] * len(paths), "class")
    return paths, names


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--cutouts", type=Path, required=True, metavar="DIR")
    parser.add_argument("--weights", type=Path, nargs="+", required=True, metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths, names = write_as_cts(options.cutouts, Path(folder))
        points = read_points(Path(folder) / "points.csv", "class")
        scores = []
        for weights in options.weights:
            network = Classifier(bundle_dir(), weights=[weights])
            scores.append(network.probabilities(points, network.volumes(paths)))
    print("| real cutout |", " | ".join(str(w.parent.name) for w in options.weights), "|")
    print("|---|" + "---|" * len(scores))
    for row, name in enumerate(names):
        print(f"| {name} |", " | ".join(f"{one[row]:.2f}" for one in scores), "|")


if __name__ == "__main__":
    main()
