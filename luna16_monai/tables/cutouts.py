"""Labelled cutouts of CTs: ``NAME.npz`` with the voxels, ``NAME.csv`` with a row for each.

The archive holds ``vox`` (int16 HU, all cutouts one after the other), ``shape`` (n, 3), ``spacing`` (n, 3) mm and
``center`` (n, 3), the fractional voxel at which the candidate lies; all of them (z, y, x). Row k of the table is about
cutout k. Its columns: ``label`` (0 no nodule, 1 nodule, anything else is not scored), ``patient``, and where known
``series``, ``diameter_mm`` and ``use``.
"""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from luna16_monai.tables.text import open_table, require_columns

FloatArray = NDArray[np.float64]

ARRAYS = ("vox", "shape", "spacing", "center")
LARGEST_SIDE = 1024


@dataclass(frozen=True, eq=False)
class Cutouts:
    """Labelled cutouts.

    Attributes:
        source: the table, for messages.
        voxels: (z, y, x) int16 HU of each.
        spacing_zyx: (n, 3) mm.
        center_zyx: (n, 3) fractional voxel of the candidate.
        label: (n,) 0 no nodule, 1 nodule, else not scored.
        patient: of each.
        series: of each; empty where it is not known.
        diameter_mm: (n,), NaN where it is not known.
        use: of each; empty where the table has no such column.
    """

    source: str
    voxels: list[NDArray[np.int16]]
    spacing_zyx: FloatArray
    center_zyx: FloatArray
    label: NDArray[np.int64]
    patient: list[str]
    series: list[str]
    diameter_mm: FloatArray
    use: list[str]

    def __len__(self) -> int:
        return len(self.voxels)

    def select(self, rows: NDArray[np.intp]) -> Cutouts:
        """Return the same with only these rows."""
        return Cutouts(
            self.source,
            [self.voxels[row] for row in rows],
            self.spacing_zyx[rows],
            self.center_zyx[rows],
            self.label[rows],
            [self.patient[row] for row in rows],
            [self.series[row] for row in rows],
            self.diameter_mm[rows],
            [self.use[row] for row in rows],
        )

    def to_score(self, use: str | None = None) -> Cutouts:
        """Return those with label 0 or 1, and of this use.

        Raises:
            ValueError: there is none of this use.
        """
        if use is not None and use not in self.use:
            known = ", ".join(sorted(set(self.use) - {""})) or "the table has no column use"
            raise ValueError(f"{self.source}: no row has use {use!r} (found: {known}): name another, or leave it out")
        wanted = np.array([use in (None, one) for one in self.use], bool)
        return self.select(np.flatnonzero(wanted & np.isin(self.label, (0, 1))))


def read_cutouts(folder: Path) -> Cutouts:
    """Read the cutouts of a folder, the only ``.npz`` in it and the table of the same name.

    Raises:
        FileNotFoundError: there is no such folder, archive or table.
        ValueError: several archives, or files that are damaged or do not fit together.
    """
    archives = sorted(folder.glob("*.npz"))
    if len(archives) != 1:
        error = ValueError if archives else FileNotFoundError
        raise error(f"{folder} holds {len(archives)} .npz files: name a folder with one, and a .csv of the same name")
    archive, table = archives[0], archives[0].with_suffix(".csv")
    if not table.is_file():
        raise FileNotFoundError(f"no {table.name} beside {archive}: the table says which cutouts are nodules")
    arrays = read_arrays(archive, ARRAYS)
    voxels = split_boxes(arrays["vox"], arrays["shape"], archive)
    spacing, center = (_triples(arrays[name], name, len(voxels), archive) for name in ("spacing", "center"))
    if not (spacing > 0).all():
        raise ValueError(f"{archive}: spacing {spacing.min():g} mm: every one must be above 0")
    sizes = np.array([one.shape for one in voxels])
    outside = np.flatnonzero(((center < -0.5) | (center > sizes - 0.5)).any(axis=1))
    if outside.size:
        at = center[outside[0]].tolist()
        raise ValueError(f"{archive}: center {at} of cutout {outside[0]} lies outside it, {sizes[outside[0]].tolist()}")
    return _with_table(table, voxels, spacing, center)


def read_arrays(path: Path, names: tuple[str, ...]) -> dict[str, NDArray[np.generic]]:
    """Read arrays of an archive of numpy's; objects, which may run code, are refused.

    Raises:
        ValueError: it is damaged, or lacks one of them.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            absent = [name for name in names if name not in archive.files]
            if absent:
                raise KeyError(absent[0])
            return {name: archive[name] for name in archive.files}
    except KeyError as error:
        raise ValueError(f"{path} holds no array {error}: it needs {', '.join(names)}") from error
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, NotImplementedError) as error:
        raise ValueError(f"{path} is no archive of numpy's, or damaged ({error}): make it anew") from error


def split_boxes(
    flat: NDArray[np.generic], shape: NDArray[np.generic], path: Path, name: str = "vox"
) -> list[NDArray[np.int16]]:
    """Return the boxes that stand one after the other in an array.

    Raises:
        ValueError: the shapes do not fit the voxels, or these are no whole numbers.
    """
    whole = np.issubdtype(shape.dtype, np.integer) and np.issubdtype(flat.dtype, np.integer)
    if not whole or shape.ndim != 2 or shape.shape[1:] != (3,) or flat.ndim != 1 or not len(shape):
        raise ValueError(
            f"{path}: {name} {flat.dtype} {flat.shape} and shape {shape.dtype} {shape.shape}: give whole numbers, "
            "(voxels,) and (n, 3)"
        )
    sides = shape.astype(np.int64)
    if sides.min() < 1 or sides.max() > LARGEST_SIDE or sides.prod(1).sum() != len(flat):
        raise ValueError(
            f"{path}: the shapes, {sides.min()} to {sides.max()} a side, hold {sides.prod(1).sum()} voxels, and "
            f"{name} has {len(flat)}: make the file anew"
        )
    ends = np.cumsum(sides.prod(1))
    parts = np.split(flat.astype(np.int16, copy=False), ends[:-1])
    return [part.reshape(tuple(side)) for part, side in zip(parts, sides.tolist(), strict=True)]


def _triples(values: NDArray[np.generic], name: str, n: int, path: Path) -> FloatArray:
    numbers = np.asarray(values, np.float64)
    if numbers.shape != (n, 3) or not np.isfinite(numbers).all():
        raise ValueError(f"{path}: {name} has shape {numbers.shape}, or a number that is not finite: give ({n}, 3)")
    return numbers


def _with_table(path: Path, voxels: list[NDArray[np.int16]], spacing: FloatArray, center: FloatArray) -> Cutouts:
    with open_table(path) as lines:
        rows = list(csv.reader(lines))
    header = [name.strip() for name in rows[0]] if rows else []
    require_columns(header, ("label", "patient"), path)
    if len(rows) - 1 != len(voxels):
        raise ValueError(f"{path} has {len(rows) - 1} rows, and the archive {len(voxels)} cutouts: one a row is needed")
    wrong = next((line for line, row in enumerate(rows[1:], 2) if len(row) != len(header)), None)
    if wrong is not None:
        raise ValueError(f"{path}, line {wrong}: {len(rows[wrong - 1])} values, but the header names {len(header)}")
    columns = {name: [row[place].strip() for row in rows[1:]] for place, name in enumerate(header)}
    empty = [""] * len(voxels)
    patient = columns["patient"]
    if "" in patient:
        raise ValueError(f"{path}, line {patient.index('') + 2}: patient is empty: name the patient of each row")
    return Cutouts(
        str(path), voxels, spacing, center,
        np.array(_parse(columns["label"], int, "label", path), np.int64),
        patient,
        columns.get("series", empty),
        np.array(_parse([one or "nan" for one in columns.get("diameter_mm", empty)], float, "diameter_mm", path)),
        columns.get("use", empty),
    )  # fmt: skip


def _parse(texts: list[str], kind: Callable[[str], float], name: str, path: Path) -> list[float]:
    numbers = []
    for line, text in enumerate(texts, 2):
        try:
            numbers.append(kind(text))
        except ValueError:
            raise ValueError(f"{path}, line {line}: {name} is {text[:40]!r}, no number: mend the line") from None
    return numbers
