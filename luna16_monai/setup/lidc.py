"""Fetch LIDC-IDRI's CTs as DICOM, from NCI's Imaging Data Commons, by the package idc-index; no account is needed.

The package knows which series there are, and copies their files; what came is counted. idc-index 0.13.4 was asked (it
knows 1,018 series of 1,010 patients, 128 GB); no file was ever fetched by it here, for want of a way to the archive.

The readers' XML is not there: it is one zip file on the collection's page at The Cancer Imaging Archive
(LIDC-XML-only.zip), to be unpacked into the same folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luna16_monai.machine.extras import require
from luna16_monai.setup.archives import in_gb

QUERY = (
    "SELECT PatientID, StudyInstanceUID, SeriesInstanceUID, instanceCount, series_size_MB FROM index "
    "WHERE collection_id = 'lidc_idri' AND Modality = 'CT' ORDER BY PatientID, SeriesInstanceUID"
)
LAYOUT = "%PatientID/%StudyInstanceUID/%SeriesInstanceUID"
"""Folders below the output, in the words of idc-index."""
MB = 10**6


def download_lidc(output: Path, patients: Sequence[str] | None = None, progress: bool = True) -> dict[str, Any]:
    """Fetch LIDC-IDRI's CT series; those that are there already are not fetched again.

    Args:
        output: the folder; made if need be.
        patients: their identifiers, LIDC-IDRI-0001 to LIDC-IDRI-1012; None fetches all.
        progress: whether to show a bar.

    Returns:
        JSON-ready: ``output``, ``series``, ``fetched`` (series), ``bytes`` (of those fetched, by the index).

    Raises:
        ModuleNotFoundError: idc-index is missing.
        ValueError: a patient that the collection lacks.
        RuntimeError: the disk has too little room, or a series came without all of its files.
    """
    require("idc", "--lidc", "idc_index")
    from idc_index import IDCClient

    client = IDCClient.client()
    series = client.sql_query(QUERY).to_dict("records")
    if patients is not None:
        known = {one["PatientID"] for one in series}
        if unknown := [patient for patient in patients if patient not in known]:
            raise ValueError(f"patient {unknown[0]!r} is none of LIDC-IDRI's {len(known)}: name one as LIDC-IDRI-0001")
        series = [one for one in series if one["PatientID"] in patients]
    todo = [one for one in series if _count(output, one) != int(one["instanceCount"])]
    size = int(sum(float(one["series_size_MB"]) for one in todo) * MB)
    output.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(output).free) < size:
        raise RuntimeError(
            f"{output} has {in_gb(free)} free, but {in_gb(size)} are needed: free some space, name another --output, "
            "or fetch a part with --patient"
        )
    if todo:
        uids = [one["SeriesInstanceUID"] for one in todo]
        client.download_from_selection(
            downloadDir=str(output), seriesInstanceUID=uids, dirTemplate=LAYOUT, show_progress_bar=progress
        )
    for one in todo:
        if (count := _count(output, one)) != int(one["instanceCount"]):
            raise RuntimeError(
                f"series {one['SeriesInstanceUID']} of {one['PatientID']} has {count} of {one['instanceCount']} files: "
                "repeat the command"
            )
    return {"output": str(output), "series": len(series), "fetched": len(todo), "bytes": size}


def _count(output: Path, series: dict[str, Any]) -> int:
    """Return how many DICOM files of a series are there."""
    folder = output.joinpath(*(str(series[name.removeprefix("%")]) for name in LAYOUT.split("/")))
    return sum(1 for _ in folder.glob("*.dcm"))
