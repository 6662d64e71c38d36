"""3D Slicer's markups: fiducials in ``.mrk.json``, and the older ``.fcsv``, which is only read.

Each file says in ``coordinateSystem`` whether it is LPS or RAS; we write LPS. A point's description holds what is known
of it (``probability=0.93 diameter_mm=6.2``), so that this comes back after a reader has moved points, and added others.
The volume stands not in the file, so a file is about the CT that is named beside it, or after which it is named; Slicer
loads the first list of a file alone, so each CT gets a file of its own.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np

from luna16_monai.geometry.grid import lps_from_ras
from luna16_monai.interchange.files import Format, member, numbers, read_json, shown
from luna16_monai.interchange.points import DIAMETER, KNOWN, PROBABILITY, FloatArray, Points
from luna16_monai.interchange.scans import Scans
from luna16_monai.tables.text import open_table

SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)
SUFFIX, OLD_SUFFIX = ".mrk.json", ".fcsv"
FRAMES = {"LPS": False, "1": False, "RAS": True, "0": True}
"""What a file may say its frame is; whether that is RAS. The numbers are those of older files."""
OLD_COLUMNS = "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID"
_TOLD = re.compile(r"(?:^|\s)(class|probability|diameter_mm)=(\S+)")
_OUR_LABEL = re.compile(r"p=[\d.]+|d=[\d.]+ mm|p=[\d.]+ d=[\d.]+ mm")


def is_markups(document: Any) -> bool:
    """Return whether a JSON document is a file of markups, right or wrong in all else."""
    return isinstance(document, dict) and "markups" in document


def read_markups(path: Path, scans: Scans) -> Points:
    """Read all points of all fiducial lists of a file.

    Args:
        path: ``.mrk.json``.
        scans: the CTs that were named.

    Raises:
        ValueError: the file is malformed, holds lists in both frames or no fiducials, or it is not known which CT it is
            about.
    """
    lists = member(read_json(path), "markups", list, str(path))
    frames: set[bool] = set()
    xyz: list[list[float]] = []
    told: list[tuple[str, str]] = []
    placeless = others = 0
    for place, markup in enumerate(lists, start=1):
        where = f"{path}, list {place}"
        if member(markup, "type", str, where) not in ("Fiducial", "PointSet"):
            others += 1
            continue
        frames.add(_is_ras(member({"coordinateSystem": "LPS", **markup}, "coordinateSystem", (str, int), where), where))
        for number, point in enumerate(member(markup, "controlPoints", list, where), start=1):
            here = f"{where}, point {number}"
            if member({"positionStatus": "defined", **_object(point, here)}, "positionStatus", str, here) != "defined":
                placeless += 1
                continue
            xyz.append(numbers(member(point, "position", list, here), 3, here, "position"))
            texts = {"label": "", "description": "", **point}
            told.append((member(texts, "label", str, here), member(texts, "description", str, here)))
    if lists and others == len(lists):
        raise ValueError(f"{path}: none of its {others} lists holds fiducials: save the points as a fiducial list")
    if len(frames) > 1:
        raise ValueError(f"{path}: one list is LPS, another RAS: save each in a file of its own")
    notes = [f"{others} lists that hold no fiducials left out"] if others else []
    notes += [f"{placeless} points without a position left out"] if placeless else []
    return _points(path, path.name.removesuffix(".json").removesuffix(".mrk"), xyz, True in frames, told, scans, notes)


def read_old_markups(path: Path, scans: Scans) -> Points:
    """Read a ``.fcsv`` file; without a word about its frame it is RAS, as Slicer wrote it then.

    Raises:
        ValueError: the file is malformed, in voxels, or it is not known which CT it is about.
    """
    ras, columns = True, OLD_COLUMNS.split(",")
    xyz: list[list[float]] = []
    told: list[tuple[str, str]] = []
    with open_table(path) as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{path}, line {number}"
            key, equals, value = line.lstrip("#").partition("=")
            if line.startswith("#"):
                if equals and key.strip() == "CoordinateSystem":
                    ras = _is_ras(value.strip(), where)
                elif equals and key.strip() == "columns":
                    columns = [name.strip() for name in value.split(",")]
            elif line.strip():
                (cells,) = csv.reader([line])
                row = dict(zip(columns, cells, strict=False))
                xyz.append(numbers([_number(row.get(axis, "")) for axis in "xyz"], 3, where, "position"))
                told.append((row.get("label", ""), row.get("desc", "")))
    return _points(path, path.name[: -len(OLD_SUFFIX)], xyz, ras, told, scans, [])


def as_markups(points: Points) -> dict[str, Any]:
    """Return the document of one CT's points, ready for JSON, in LPS.

    A point without a name is labelled with its probability and diameter.
    """
    known = [name for name in KNOWN if name in points.values]
    values = np.column_stack([points.value(name) for name in known]) if known else np.zeros((len(points), 0))
    told = [{name: v for name, v in zip(known, row, strict=True) if not np.isnan(v)} for row in values.tolist()]
    rows = zip(points.names, points.points_xyz.tolist(), told, strict=True)
    return {
        "@schema": SCHEMA,
        "markups": [
            {
                "type": "Fiducial",
                "coordinateSystem": "LPS",
                "coordinateUnits": "mm",
                "controlPoints": [
                    {
                        "id": str(number),
                        "label": name or _label(known_here),
                        "description": " ".join(f"{key}={value!r}" for key, value in known_here.items()),
                        "position": point,
                        "positionStatus": "defined",
                    }
                    for number, (name, point, known_here) in enumerate(rows, start=1)
                ],
            }
        ],
    }


def _points(
    path: Path,
    name: str,
    xyz: list[list[float]],
    ras: bool,
    told: list[tuple[str, str]],
    scans: Scans,
    notes: list[str],
) -> Points:
    """Return points of one CT from what stands in a file."""
    positions = np.array(xyz, np.float64).reshape(-1, 3)
    values: dict[str, FloatArray] = {key: np.full(len(xyz), np.nan) for key in KNOWN}
    for row, (_, description) in enumerate(told):
        for key, text in _TOLD.findall(description):
            values[key][row] = _known(text, f"{path}, point {row + 1}", key)
    labels = tuple("" if _OUR_LABEL.fullmatch(label) else label for label, _ in told)
    return Points(
        str(path),
        (scans.series_of_file(path, name),) * len(xyz),
        lps_from_ras(positions) + 0.0 if ras else positions,
        {key: value for key, value in values.items() if not np.isnan(value).all()},
        labels,
        notes=tuple(notes),
    )


def _is_ras(frame: str | int, where: str) -> bool:
    """Return whether a file's word for its frame means RAS."""
    if str(frame) not in FRAMES:
        raise ValueError(f"{where}: coordinate system {shown(frame)} is neither LPS nor RAS: save it in one of them")
    return FRAMES[str(frame)]


def _label(known: dict[str, float]) -> str:
    texts = [f"p={known[PROBABILITY]:.2f}"] if PROBABILITY in known else []
    texts += [f"d={known[DIAMETER]:.1f} mm"] if DIAMETER in known else []
    return " ".join(texts)


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: {shown(value)} is no JSON object: is this the right file?")
    return value


def _number(text: str) -> Any:
    """Return a number where the text is one, else the text, which the check of numbers then refuses."""
    try:
        return float(text)
    except ValueError:
        return text


def _known(text: str, where: str, key: str) -> float:
    value = _number(text)
    if not isinstance(value, float) or not np.isfinite(value):
        raise ValueError(f"{where}: its description says {key}={text[:40]}, which is no number: mend or remove it")
    return value


def _recognises(path: Path, document: Any) -> bool:
    if path.is_dir():
        return bool(FORMAT.files_in(path))
    return is_markups(document) or path.name.lower().endswith(OLD_SUFFIX)


def _read(path: Path, scans: Scans, _: bool) -> Points:
    return (read_old_markups if path.name.lower().endswith(OLD_SUFFIX) else read_markups)(path, scans)


FORMAT: Format = Format(
    "slicer",
    recognises=_recognises,
    read=_read,
    document=lambda points: (as_markups(points), ()),
    suffixes=(SUFFIX, OLD_SUFFIX),
    new_names=(SUFFIX,),
)
