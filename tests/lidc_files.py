"""LIDC-IDRI in small: a DICOM series, and readers' XML in the archive's schema."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from ct_files import UID, write_dicom
from pydicom.dataset import FileDataset

ROWS, COLUMNS = 12, 14
PATIENT = "LIDC-IDRI-0001"


def write_series(folder: Path) -> Path:
    """Four slices of 12 x 14 pixels; see ct_files.write_dicom for where they lie. Slice k has the UID ...k + 1."""

    def change(k: int, slice_: FileDataset) -> None:
        slice_.Rows, slice_.Columns, slice_.PatientID = ROWS, COLUMNS, PATIENT
        # in HU: -1000, and soft tissue below row 6
        hu = np.where(np.arange(ROWS)[:, None] < 6, -1000, 40) + np.zeros(COLUMNS, int)
        slice_.PixelData = (hu + 1024).astype(np.uint16).tobytes()

    folder.mkdir(parents=True, exist_ok=True)
    return write_dicom(folder, change)


def ring(columns: tuple[int, int], rows: tuple[int, int]) -> list[tuple[int, int]]:
    """The pixels (column, row) around a rectangle, in order; both ends belong to the line."""
    (left, right), (top, bottom) = columns, rows
    across, down = range(left, right), range(top, bottom)
    return [
        *((column, top) for column in across),
        *((right, row) for row in down),
        *((column, bottom) for column in reversed(range(left + 1, right + 1))),
        *((left, row) for row in reversed(range(top + 1, bottom + 1))),
    ]


def roi(k: int, pixels: Iterable[tuple[int, int]], included: bool = True, sop_uid: str | None = None) -> str:
    """An outline in slice k."""
    points = "".join(f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in pixels)
    return (
        f"<roi><imageZposition>{30 + 2 * k}.0</imageZposition>"
        f"<imageSOP_UID>{f'{UID}.{k + 1}' if sop_uid is None else sop_uid}</imageSOP_UID>"
        f"<inclusion>{'TRUE' if included else 'FALSE'}</inclusion>{points}</roi>"
    )


def nodule(*rois: str, malignancy: int | None = None) -> str:
    """One reader's nodule; without a rating it is one of less than 3 mm."""
    rated = "" if malignancy is None else f"<malignancy>{malignancy}</malignancy>"
    ratings = f"<characteristics><subtlety>4</subtlety>{rated}</characteristics>" if rated else ""
    return f"<unblindedReadNodule><noduleID>1</noduleID>{ratings}{''.join(rois)}</unblindedReadNodule>"


def non_nodule(k: int, pixel: tuple[int, int]) -> str:
    return (
        f"<nonNodule><nonNoduleID>9</nonNoduleID><imageZposition>{30 + 2 * k}.0</imageZposition>"
        f"<imageSOP_UID>{UID}.{k + 1}</imageSOP_UID>"
        f"<locus><xCoord>{pixel[0]}</xCoord><yCoord>{pixel[1]}</yCoord></locus></nonNodule>"
    )


def write_reads(path: Path, sessions: Sequence[str], series_uid: str = UID) -> Path:
    """The XML of one CT, a session a reader."""
    path.parent.mkdir(parents=True, exist_ok=True)
    who = "<servicingRadiologistID>x</servicingRadiologistID>"
    readers = "".join(f"<readingSession>{who}{session}</readingSession>" for session in sessions)
    path.write_text(
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<LidcReadMessage uid="1.3.6" xmlns="http://www.nih.gov" '
        'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">'
        "<ResponseHeader><Version>1.8.1</Version><TaskDescription>Second unblinded read</TaskDescription>"
        f"<SeriesInstanceUid>{series_uid}</SeriesInstanceUid></ResponseHeader>{readers}</LidcReadMessage>",
        encoding="utf-8",
    )
    return path
