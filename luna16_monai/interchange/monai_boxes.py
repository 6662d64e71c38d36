"""The data list of MONAI's detection bundle: boxes, in world mm, of each image.

    {"training": [{"image": "1.3.6.nii.gz", "box": [[cx, cy, cz, w, h, d], ...], "label": [0, ...], "score": [...]}]}

Boxes are in MONAI's mode ``cccwhd``: the middle, and the sides along world x, y and z. Which world that is stands in
the bundle's config: LPS where ``affine_lps_to_ras`` of its ``AffineBoxToImageCoordinated`` is true, as in MONAI's
bundle for LUNA16, else RAS. We write LPS, and read RAS where that is said. Sides are lengths, the same in both.

Its result files are read too: a list of such entries, or one alone; scores are called ``score``, ``scores`` or
``label_scores`` there. Label 0 is a nodule, the only foreground class of that bundle.

A nodule's box is a cube with its diameter as side; a box's diameter is the side of the cube of the same volume.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from luna16_monai.geometry.grid import lps_from_ras
from luna16_monai.interchange.files import Format, member, number, numbers, read_json, shown
from luna16_monai.interchange.points import CLASS, DIAMETER, PROBABILITY, Points
from luna16_monai.interchange.scans import Scans

SECTIONS = ("training", "validation", "testing", "test")
SCORES = ("score", "scores", "label_scores")
NODULE = 0
"""The label of MONAI's bundle for LUNA16."""


def is_data_list(document: Any) -> bool:
    """Return whether a JSON document looks like a list of boxes, right or wrong in all else."""
    if isinstance(document, dict):
        return "box" in document or any(section in document for section in SECTIONS)
    return isinstance(document, list) and bool(document) and isinstance(document[0], dict) and "box" in document[0]


def read_boxes(path: Path, scans: Scans, ras: bool = False) -> Points:
    """Read boxes as points with diameters; of a data list without scores each is a nodule, class 1.

    Args:
        path: the JSON file.
        scans: the CTs that were named; an image is known by its file's name.
        ras: the boxes are RAS, not LPS.

    Raises:
        ValueError: the file is malformed, a box has no volume, or an image is none of the CTs.
    """
    series, boxes, scores, rows = [], [], [], []
    for where, entry in _entries(read_json(path), str(path)):
        image = member(entry, "image", str, where)
        found = member(entry, "box", list, where)
        labels = member({"label": [NODULE] * len(found), **entry}, "label", list, where)
        key = next((key for key in SCORES if key in entry), None)
        scored = [None] * len(found) if key is None else member(entry, key, list, where)
        if not len(found) == len(labels) == len(scored):
            raise ValueError(
                f"{where}: {len(found)} boxes, {len(labels)} labels and {len(scored)} scores: give one of each a box"
            )
        uid = scans.series_of_image(image, where)
        for place, (box, label, score) in enumerate(zip(found, labels, scored, strict=True), start=1):
            here = f"{where}, box {place}"
            boxes.append(_checked_box(box, label, here))
            series.append(uid)
            rows.append(place)
            scores.append(np.nan if score is None else number(score, here, "score"))
    cccwhd = np.array(boxes, np.float64).reshape(-1, 6)
    centres = lps_from_ras(cccwhd[:, :3]) + 0.0 if ras else cccwhd[:, :3]
    values = {DIAMETER: np.cbrt(cccwhd[:, 3:].prod(axis=1))}
    scored_any = bool(np.isfinite(scores).any())
    values |= {PROBABILITY: np.array(scores)} if scored_any else {CLASS: np.ones(len(series))}
    return Points(str(path), tuple(series), centres, values, rows=np.array(rows, np.int64), row_name="box")


def as_data_list(points: Points) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the data list of points with diameters, ready for JSON, and notes on what it leaves out.

    A point of class 0 has no place in the list, nor has one without a diameter a box.

    Raises:
        ValueError: no point has a diameter.
    """
    diameter = points.value(DIAMETER)
    negative, sizeless = points.value(CLASS) == 0, np.isnan(diameter)
    if len(points) and (sizeless | negative).all():
        raise ValueError(
            f"{points.source}: no nodule in it has a diameter, so there is no box: name a table that has some"
        )
    notes = []
    if negative.any():
        notes.append(f"{int(negative.sum())} points of class 0 left out: a data list holds nodules alone")
    if (sizeless & ~negative).any():
        notes.append(f"{int((sizeless & ~negative).sum())} points without a diameter left out: they have no box")
    kept = points.select(~(negative | sizeless))
    entries = []
    for uid in kept.series_uids:
        part = kept.of_series(uid)
        sides = part.value(DIAMETER)
        entry: dict[str, Any] = {
            "image": f"{uid}.nii.gz",
            "box": np.c_[part.points_xyz, sides, sides, sides].tolist(),
            "label": [NODULE] * len(part),
        }
        if part.knows(PROBABILITY):
            entry["score"] = [None if np.isnan(p) else p for p in part.value(PROBABILITY).tolist()]
        entries.append(entry)
    return {"validation": entries}, tuple(notes)


def _entries(document: Any, source: str) -> Iterator[tuple[str, Any]]:
    """Give each image's entry, and where it stands."""
    if isinstance(document, dict) and "box" not in document:
        sections = [name for name in SECTIONS if name in document]
        if not sections:
            raise ValueError(f"{source}: none of {', '.join(SECTIONS)} is there: is this a data list of MONAI's?")
        for section in sections:
            for place, entry in enumerate(member(document, section, list, source), start=1):
                yield f"{source}, {section} {place}", entry
    else:
        for place, entry in enumerate(document if isinstance(document, list) else [document], start=1):
            yield f"{source}, entry {place}", entry


def _checked_box(box: Any, label: Any, where: str) -> list[float]:
    """Return a box that has a volume."""
    found = numbers(box, 6, where, "box")
    if not min(found[3:]) > 0:
        raise ValueError(
            f"{where}: sides {shown(found[3:])} mm make no volume: mend or remove it (a box is cx, cy, cz, w, h, d)"
        )
    if label != NODULE or isinstance(label, bool):
        raise ValueError(f"{where}: label {shown(label)} is not {NODULE}, a nodule: remove boxes of other classes")
    return found


FORMAT = Format(
    "monai",
    recognises=lambda _, document: is_data_list(document),
    read=read_boxes,
    document=as_data_list,
    holds_names=False,
    may_be_ras=True,
)
