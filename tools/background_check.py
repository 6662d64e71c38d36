"""Measure whether nodules put into a real CT look like what that CT shows of its own: a table, and a picture.

    luna16 phantom --background CT --output data/background
    python tools/background_check.py --phantom data/background --ct CT --output background.png

CT is the CT file or folder of DICOM files that the phantom was made from. Measured are local contrast, rise of the
edges in the plane and along z, and noise: in the nodules, and in the blobs (vessels, mostly) of the untouched CT. The
picture shows both, and falls under the licence of the CT. Needs the extra `report`.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from montage import CUTOUT_MM, Picture, axial, draw
from numpy.typing import NDArray
from scipy import ndimage

from luna16_monai.ct.opening import open_ct
from luna16_monai.geometry.slices import slices_through
from luna16_monai.geometry.volume import Volume
from luna16_monai.phantom.background import read_background
from luna16_monai.phantom.candidates import propose_blobs
from luna16_monai.tables.points import read_points

Floats = NDArray[np.floating]

REACH_MM = 14.0
FINE = 3
"""Grid points a voxel, on which a contour is found."""
DISTANCE_EDGES_MM = np.arange(-3, 3.05, 0.3)
DISTANCES_MM = (DISTANCE_EDGES_MM[1:] + DISTANCE_EDGES_MM[:-1]) / 2
RADII_MM = (1.0, 1.7, 2.4, 3.4, 5.0, 9.0)
"""Classes of size: contrast and edges depend on it."""
LARGE_MM = 12.0
TILT = 0.3
"""Of an edge across z against a level one, at most."""
BLOBS = 3000
TISSUE_HU, AIR_HU = (-150, 150), (-980, -650)


@dataclass(frozen=True)
class Section:
    """A blob in one axial slice.

    Attributes:
        radius_mm: of the disc of equal area, at half the contrast.
        contrast_hu: HU inside less HU around.
        edge: mean HU at `DISTANCES_MM` from the contour (inwards is positive), 0 around to 1 inside; NaN where no
            voxel lies.
        noise_hu: second differences across a 2 x 2 square in the core, (n,); see `second_difference`.
    """

    radius_mm: float
    contrast_hu: float
    edge: Floats
    noise_hu: Floats


def section(hu: NDArray[np.integer], point_yx: Floats, step_mm: float) -> Section | None:
    """Measure the blob at a point (voxels) of a slice; None where none is, or one that is long or not apart."""
    half = round(REACH_MM / step_mm)
    y, x = np.rint(point_yx).astype(int)
    if min(y, x, hu.shape[0] - 1 - y, hu.shape[1] - 1 - x) < half:
        return None
    patch = hu[y - half : y + half + 1, x - half : x + half + 1].astype(np.float32)
    distance = np.hypot(*np.indices(patch.shape) - half) * step_mm
    smooth = ndimage.gaussian_filter(patch, 0.5 / step_mm)
    peak = np.unravel_index(np.argmax(np.where(distance < 2, smooth, -np.inf)), patch.shape)
    around = np.percentile(patch[(distance > 6) & (distance < 12)], 25)
    inside = smooth[peak]
    fine = ndimage.zoom(smooth, FINE, order=1, grid_mode=True, mode="nearest")
    start = tuple(FINE * p + FINE // 2 for p in peak)
    for _ in range(3):
        parts, _ = ndimage.label(fine > (inside + around) / 2)
        if not parts[start]:
            return None
        blob = parts == parts[start]
        depth = ndimage.distance_transform_edt(blob) * step_mm / FINE
        core = (depth > 0.5 * depth.max())[FINE // 2 :: FINE, FINE // 2 :: FINE]
        if not core.any():
            return None
        inside = np.median(patch[core])
    radius = float(np.sqrt(blob.sum() / np.pi) * step_mm / FINE)
    spread = np.argwhere(blob) * step_mm / FINE
    reach = np.linalg.norm(spread - spread.mean(0), axis=1).max()
    if inside - around < 200 or reach > 1.7 * radius or radius > RADII_MM[-1]:
        return None

    signed = np.where(blob, depth, -ndimage.distance_transform_edt(~blob) * step_mm / FINE)
    signed -= np.sign(signed) * step_mm / FINE / 2
    others = ndimage.binary_dilation((parts > 0) & ~blob, iterations=round(1.5 * FINE / step_mm))
    signed[others] = -np.inf
    signed = signed[FINE // 2 :: FINE, FINE // 2 :: FINE]
    share = (patch - around) / (inside - around)
    bins = np.digitize(signed, DISTANCE_EDGES_MM) - 1
    edge = [share[bins == i].mean() if (bins == i).any() else np.nan for i in range(len(DISTANCES_MM))]
    noise = second_difference(patch)[(signed > 1.2)[1:, 1:] & (signed > 1.2)[:-1, :-1]]
    return Section(radius, float(inside - around), np.array(edge), noise)


def second_difference(hu: Floats) -> Floats:
    """Difference of the diagonals of each 2 x 2 square over 2: slopes vanish, and white noise keeps its deviation."""
    return (hu[..., 1:, 1:] - hu[..., 1:, :-1] - hu[..., :-1, 1:] + hu[..., :-1, :-1]) / 2


def rise_mm(edges: Iterable[Floats]) -> float:
    """Distance over which the mean of edges rises from 20 to 80 %: 1.68 deviations of a Gaussian blur."""
    edges = np.array(list(edges))
    seen = np.isfinite(edges).sum(0) > 2
    mean = np.nanmean(edges[:, seen], 0)
    share = np.maximum.accumulate((mean - mean[:4].mean()) / (1 - mean[:4].mean()))
    low, high = np.interp([0.2, 0.8], share, DISTANCES_MM[seen])
    return float(high - low)


def steps_along_z(hu: NDArray[np.integer], spacing_zyx: Floats, near: NDArray[np.bool_]) -> Floats:
    """Level edges between air and tissue, where HU crosses the middle between four slices' ends in between.

    Args:
        hu, near: the image and where edges count, (z, y, x).
        spacing_zyx: mm.

    Returns:
        (n, 2): the rise between the middle two of the four slices, and that between the outer two.
    """
    smooth = ndimage.gaussian_filter(hu.astype(np.float32), (0, 1 / spacing_zyx[1], 1 / spacing_zyx[2]))
    first, second, third, fourth = (smooth[i : len(smooth) - 3 + i] for i in range(4))
    low, high = np.minimum(first, fourth), np.maximum(first, fourth)
    middle = (first + fourth) / 2
    slope = np.hypot(*np.gradient(smooth, *spacing_zyx[1:], axis=(1, 2)))
    moves = sum(slope[i : len(smooth) - 3 + i] for i in range(4)) * spacing_zyx[0]
    level = moves < TILT * (high - low)
    ends = (low > AIR_HU[0]) & (low < AIR_HU[1]) & (high > TISSUE_HU[0]) & (high < TISSUE_HU[1])
    edges = near[1:-2] & level & ends & ((second - middle) * (third - middle) <= 0)
    return np.stack([np.abs(third - second)[edges], (high - low)[edges]], 1)


@dataclass
class Found:
    """What is measured in one kind of blobs: sections, and along z pairs of the inner and the whole rise of edges."""

    sections: list[Section]
    rises: list[Floats]
    pictures: list[Picture]


def measure_blobs(hu: NDArray[np.integer], points_zyx: Floats, spacing_zyx: Floats) -> list[Section]:
    """The sections through points (voxels) that are blobs."""
    sections = [section(hu[round(z)], np.array([y, x]), float(spacing_zyx[1])) for z, y, x in points_zyx]
    return [s for s in sections if s is not None]


def nodules(phantom: Path, rng: np.random.Generator) -> Found:
    """What a phantom's nodules are like, ground-glass ones left out; edges along z from those of 12 mm and more."""
    with (phantom / "nodules.csv").open(encoding="utf-8", newline="") as stream:
        solid = np.array([row["kind"] in ("solid", "calcified") for row in csv.DictReader(stream)])
    table = read_points(phantom / "nodules.csv", "diameter_mm")
    found = Found([], [], [])
    for series, uid in enumerate(table.series_uids):
        rows = np.flatnonzero((table.series == series) & solid)
        ct = open_ct(next(phantom.glob(f"subset?/{uid}.mhd")))
        hu, spacing = ct.read(), np.array(ct.geometry.spacing_zyx)
        points = ct.geometry.voxel_from_world(table.points_xyz[rows])
        found.sections += measure_blobs(hu, points, spacing)
        for point, diameter in zip(points, table.values[rows], strict=True):
            if diameter >= LARGE_MM:  # the middle of it, with two slices more at both ends
                half = (diameter / 2 * np.array([1, 0.5, 0.5]) / spacing + [2, 0, 0]).astype(int)
                corner = np.maximum(np.rint(point).astype(int) - half, 0)
                box = tuple(slice(a, a + 2 * h + 1) for a, h in zip(corner.tolist(), half.tolist(), strict=True))
                found.rises.append(steps_along_z(hu[box], spacing, np.ones(hu[box].shape, bool)))
    for row in rng.permutation(np.flatnonzero(solid)).tolist():
        picture = axial(phantom, table.series_uids[table.series[row]], table.points_xyz[row], CUTOUT_MM)
        found.pictures.append((picture, f"{table.values[row]:.1f} mm"))
    return found


def own_blobs(path: Path, rng: np.random.Generator) -> Found:
    """The same of the CT's own blobs, and of all edges along z in and around its lungs."""
    scene = read_background(path)
    inside = np.zeros(scene.hu.shape, bool)
    z, y, x = (scene.lung_zyx / scene.spacing_zyx).astype(int).T
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):  # a lung point stands for 2 x 2 voxels, its place their middle
        inside[z, y - row, x - column] = True
    points = propose_blobs(scene.hu, scene.spacing_zyx, inside, BLOBS) / scene.spacing_zyx - 0.5
    steps = steps_along_z(scene.hu, scene.spacing_zyx, ndimage.maximum_filter(inside, (3, 7, 7)))
    found = Found(measure_blobs(scene.hu, points, scene.spacing_zyx), [steps], [])
    volume = Volume(scene.hu, scene.geometry, scene.geometry)
    for point in rng.permutation(points):
        if measure_blobs(scene.hu, point[None], scene.spacing_zyx):
            world = scene.geometry.world_from_voxel(point)
            found.pictures.append((slices_through(volume, world, CUTOUT_MM, round(CUTOUT_MM / 0.6) | 1)["axial"], ""))
    return found


def table(own: Found, inserted: Found) -> str:
    """The comparison as a Markdown table: means, with the deviation over blobs for the contrast."""
    rows = [("", "the CT's own blobs", "nodules put in"), ("---", "---", "---")]
    for low, high in pairwise(RADII_MM):
        of_size = [[s for s in found.sections if low <= s.radius_mm < high] for found in (own, inserted)]
        if min(map(len, of_size)) < 5:
            continue
        name = f"radius {low:g} to {high:g} mm"
        rows.append((f"{name}: sections", *(str(len(s)) for s in of_size)))
        contrasts = [[s.contrast_hu for s in sections] for sections in of_size]
        rows.append((f"{name}: contrast, HU", *(f"{np.mean(c):.0f} ± {np.std(c):.0f}" for c in contrasts)))
        rises = [rise_mm(s.edge for s in sections) for sections in of_size]
        rows.append((f"{name}: edge in the plane, 20 to 80 %, mm", *(f"{r:.2f}" for r in rises)))
    steps = [np.concatenate(found.rises).astype(float) for found in (own, inserted)]
    shares = [100 * s[:, 0].sum() / s[:, 1].sum() for s in steps]
    rows.append(("edge along z: rise from slice to slice, % of the whole", *(f"{s:.0f}" for s in shares)))
    rows.append(("edges along z", *(str(len(s)) for s in steps)))
    noise = [np.concatenate([s.noise_hu for s in found.sections]) for found in (own, inserted)]
    rows.append(("noise in the core, HU", *(f"{np.median(np.abs(n)) / 0.6745:.0f}" for n in noise)))
    rows.append(("voxels in cores", *(str(len(n)) for n in noise)))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--phantom", type=Path, required=True, metavar="DIR")
    parser.add_argument("--ct", type=Path, required=True, metavar="PATH", help="the CT it was made from")
    parser.add_argument("--output", type=Path, metavar="FILE.png", help="draw nodules and blobs")
    parser.add_argument("--columns", type=int, default=10, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="chooses what is shown")
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    own, inserted = own_blobs(options.ct, rng), nodules(options.phantom, rng)
    print(table(own, inserted))
    if options.output:
        n = options.columns
        rows = [inserted.pictures[:n], inserted.pictures[n : 2 * n], own.pictures[:n], own.pictures[n : 2 * n]]
        draw(rows, ["nodules put in", "", "the CT's own blobs", ""], options.output, n)


if __name__ == "__main__":
    main()
