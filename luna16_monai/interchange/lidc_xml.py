"""Read the readers' XML of LIDC-IDRI, as The Cancer Imaging Archive gives it.

    LidcReadMessage: ResponseHeader (SeriesInstanceUid), readingSession (one a reader):
      unblindedReadNodule: noduleID, characteristics (ratings), roi: imageZposition, imageSOP_UID, inclusion, edgeMap
      nonNodule: nonNoduleID, imageZposition, imageSOP_UID, locus

A nodule of less than 3 mm is one roi with a single point. Points are pixels, ``xCoord`` the column and ``yCoord`` the
row, from 0 on. The same archive holds reads of chest X-rays under another root, ``IdriReadMessage``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from luna16_monai.interchange.files import Format

ROOT, OTHER_ROOT = "LidcReadMessage", "IdriReadMessage"
LARGEST_BYTES = 1 << 27


@dataclass(frozen=True, eq=False)
class SlicePoints:
    """Pixels in one slice.

    Attributes:
        sop_uid: the slice's SOPInstanceUID; empty where the file has none.
        z_mm: its height, None where the file has none.
        pixels: (n, 2) as (column, row).
        included: what they enclose belongs to the nodule.
        where: in the file, for messages.
    """

    sop_uid: str
    z_mm: float | None
    pixels: NDArray[np.int64]
    included: bool
    where: str


@dataclass(frozen=True, eq=False)
class NoduleRead:
    """One nodule of one reader; one of less than 3 mm is a single point."""

    rois: list[SlicePoints]
    ratings: dict[str, int]
    reader: int

    @property
    def is_small(self) -> bool:
        """Whether it is marked and not outlined."""
        return all(len(roi.pixels) == 1 for roi in self.rois)


@dataclass(frozen=True, eq=False)
class Reads:
    """What the readers saw in one series.

    Attributes:
        path: the file.
        series_uid: the series.
        nodules: of all readers, in the order of the file.
        others: what readers marked as no nodule.
    """

    path: Path
    series_uid: str
    nodules: list[NoduleRead]
    others: list[SlicePoints]


def read_reads(path: Path) -> Reads | None:
    """Read one file; None where it is about a chest X-ray, or is XML of another kind.

    Raises:
        ValueError: it is damaged, or lacks what the schema demands; the message names file and place.
    """
    if path.stat().st_size > LARGEST_BYTES:
        raise ValueError(f"{path} has more than {LARGEST_BYTES} bytes: is this a reading of one CT?")
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise ValueError(f"{path} is no XML that can be read ({error}): fetch it again") from error
    if _name(root) != ROOT:
        return None
    header = _only(root, "ResponseHeader", str(path))
    uid = _text(header, "SeriesInstanceUid", f"{path}, ResponseHeader")
    nodules: list[NoduleRead] = []
    others: list[SlicePoints] = []
    for reader, session in enumerate(_children(root, "readingSession")):
        for number, nodule in enumerate(_children(session, "unblindedReadNodule"), start=1):
            where = f"{path}, reader {reader + 1}, nodule {number}"
            rois = [_slice_points(roi, "edgeMap", where) for roi in _children(nodule, "roi")]
            if not rois:
                raise ValueError(f"{where}: there is no roi: fetch the file again")
            nodules.append(NoduleRead(rois, _ratings(nodule, where), reader))
        for number, other in enumerate(_children(session, "nonNodule"), start=1):
            others.append(_slice_points(other, "locus", f"{path}, reader {reader + 1}, non-nodule {number}"))
    return Reads(path, uid, nodules, others)


def _slice_points(element: ElementTree.Element, tag: str, where: str) -> SlicePoints:
    pixels = [[_whole(point, axis, where) for axis in ("xCoord", "yCoord")] for point in _children(element, tag)]
    if not pixels:
        raise ValueError(f"{where}: there is no {tag}: fetch the file again")
    height = _optional(element, "imageZposition")
    try:
        z_mm = float(height) if height else None
    except ValueError as error:
        raise ValueError(f"{where}: imageZposition is {height[:40]!r}, no number: fetch the file again") from error
    if z_mm is not None and not np.isfinite(z_mm):
        raise ValueError(f"{where}: imageZposition is {height[:40]!r}, not finite: fetch the file again")
    sop_uid = _optional(element, "imageSOP_UID")
    if not sop_uid and z_mm is None:
        raise ValueError(f"{where}: neither imageSOP_UID nor imageZposition says which slice it is in: mend the file")
    included = _optional(element, "inclusion").upper() != "FALSE"
    return SlicePoints(sop_uid, z_mm, np.array(pixels, np.int64), included, where)


def _ratings(nodule: ElementTree.Element, where: str) -> dict[str, int]:
    """Return the ratings of a nodule; readers gave none of small ones."""
    found = {}
    for characteristics in _children(nodule, "characteristics"):
        for one in characteristics:
            if (one.text or "").strip():
                found[_name(one)] = _whole(characteristics, _name(one), where)
    return found


def _children(element: ElementTree.Element, name: str) -> Iterator[ElementTree.Element]:
    """The children of this name, whatever their namespace."""
    return (child for child in element if _name(child) == name)


def _only(element: ElementTree.Element, name: str, where: str) -> ElementTree.Element:
    child = next(_children(element, name), None)
    if child is None:
        raise ValueError(f"{where}: {name} is missing: fetch the file again")
    return child


def _optional(element: ElementTree.Element, name: str) -> str:
    child = next(_children(element, name), None)
    return "" if child is None else (child.text or "").strip()


def _text(element: ElementTree.Element, name: str, where: str) -> str:
    if not (text := _optional(element, name)):
        raise ValueError(f"{where}: {name} is missing or empty: fetch the file again")
    return text


def _whole(element: ElementTree.Element, name: str, where: str) -> int:
    text = _text(element, name, where)
    if not (text.isascii() and text.removeprefix("-").isdigit() and len(text) < 10):
        raise ValueError(f"{where}: {name} is {text[:40]!r}, no whole number: fetch the file again")
    return int(text)


def _name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


FORMAT = Format("lidc", recognises=lambda path, _: path.is_dir() and next(path.rglob("*.xml"), None) is not None)
