"""grand-challenge's "Multiple points": the points of one image, in world mm of the image's frame, which is LPS.

Their schema (``components/schemas.py`` of grand-challenge.org) allows ``name``, ``point`` and ``probability`` of a
point and nothing else. The image stands not in the file, so a file is about the CT that is named beside it, or after
which it is named.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from luna16_monai.interchange.files import Format, member, number, numbers, read_json, shown
from luna16_monai.interchange.points import PROBABILITY, Points
from luna16_monai.interchange.scans import Scans

TYPE = "Multiple points"
NAME = "Points of interest"
ALLOWED = {"name", "type", "points", "version"}
ALLOWED_OF_POINT = {"name", "type", "point", "probability"}


def is_multiple_points(document: Any) -> bool:
    """Return whether a JSON document says that it is of this type, right or wrong in all else."""
    return isinstance(document, dict) and document.get("type") == TYPE


def read_multiple_points(path: Path, scans: Scans) -> Points:
    """Read the points of one image.

    Args:
        path: the JSON file.
        scans: the CTs that were named.

    Raises:
        ValueError: it is not as the schema demands, or it is not known which CT it is about.
    """
    document = read_json(path)
    if member(document, "type", str, str(path)) != TYPE:
        raise ValueError(f"{path}: 'type' is {shown(document['type'])}, {TYPE!r} was expected: is this the right file?")
    _only(document, ALLOWED, str(path))
    version = member(document, "version", dict, str(path))
    for part in ("major", "minor"):
        member(version, part, (int, float), f"{path}, version")
    if version["major"] != 1:
        raise ValueError(f"{path}: version {shown(version)} is not known: save it in version 1.0")
    items = member(document, "points", list, str(path))
    xyz, probability, names = [], [], []
    for place, item in enumerate(items, start=1):
        where = f"{path}, point {place}"
        xyz.append(numbers(member(item, "point", list, where), 3, where, "'point'"))
        _only(item, ALLOWED_OF_POINT, where)
        names.append(member({"name": "", **item}, "name", str, where))
        probability.append(number(item["probability"], where, "'probability'") if "probability" in item else np.nan)
    series = scans.series_of_file(path, path.name.removesuffix(".json"))
    values = {PROBABILITY: np.array(probability)} if not np.isnan(probability).all() else {}
    return Points(str(path), (series,) * len(xyz), np.array(xyz), values, tuple(names))


def as_multiple_points(points: Points) -> dict[str, Any]:
    """Return the document of one image's points, ready for JSON; see `FORMAT` for what it keeps.

    A point without a name gets its number.
    """
    rows = zip(points.names, points.points_xyz.tolist(), points.value(PROBABILITY).tolist(), strict=True)
    return {
        "name": NAME,
        "type": TYPE,
        "points": [
            {
                "name": name or f"Point {number_}",
                "point": point,
                **({} if np.isnan(probability) else {"probability": probability}),
            }
            for number_, (name, point, probability) in enumerate(rows, start=1)
        ],
        "version": {"major": 1, "minor": 0},
    }


def _only(document: dict[str, Any], allowed: set[str], where: str) -> None:
    """Refuse properties that the schema does not know."""
    if more := sorted(set(document) - allowed):
        raise ValueError(
            f"{where}: {more[0]!r} is no property of {TYPE!r}: remove it (known: {', '.join(sorted(allowed))})"
        )


FORMAT: Format = Format(
    "grand-challenge",
    recognises=lambda path, document: is_multiple_points(document) or (path.is_dir() and bool(FORMAT.files_in(path))),
    read=lambda path, scans, _: read_multiple_points(path, scans),
    document=lambda points: (as_multiple_points(points), ()),
    suffixes=(".json",),
    new_names=(".json",),
    holds=(PROBABILITY,),
)
