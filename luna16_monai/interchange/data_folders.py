"""Data folders in LUNA16's layout, from LIDC-IDRI as it is published, and from LUNA25's training table.

All is read and checked before anything is written, and tables that are there already are not touched. Series without
readers' XML, and XML without its series, are notes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luna16_monai.ct.dicom import slice_files
from luna16_monai.ct.metaimage import write_mhd
from luna16_monai.ct.opening import CT, find_series, open_ct
from luna16_monai.geometry.grid import Geometry
from luna16_monai.interchange.lidc import Nodule, Outline, Reading, consensus, nodules_of
from luna16_monai.interchange.lidc_xml import Reads, SlicePoints, read_reads
from luna16_monai.interchange.luna25 import MALIGNANT, RATINGS, read_training_table
from luna16_monai.interchange.points import CLASS, DIAMETER, Points
from luna16_monai.interchange.scans import Scans
from luna16_monai.machine.files import write_csv
from luna16_monai.machine.progress import counted
from luna16_monai.tables.lidc import PATIENT_COLUMNS, READINGS, write_readings
from luna16_monai.tables.points import write_points

ANNOTATIONS, EXCLUDED, CANDIDATES = "annotations.csv", "annotations_excluded.csv", "candidates_V2.csv"
SERIES, PATIENTS = "seriesuids.csv", "patients.csv"
TABLES = (ANNOTATIONS, EXCLUDED, CANDIDATES, SERIES, PATIENTS, READINGS)
MASKS = "nodule_masks"
"""The folder of the consensus masks, which is none in which CTs are looked for."""
UNKNOWN_MM = -1.0
_TAGS = ["SOPInstanceUID", "ImagePositionPatient", "PatientID"]
_Row = tuple[str, NDArray[np.float64], float]


@dataclass(frozen=True, eq=False)
class LidcScan:
    """One series of LIDC-IDRI in world LPS mm.

    Attributes:
        ct: the opened CT.
        patient: its patient's identifier, as the DICOM files have it.
        nodules: of any number of readers.
        marks_xyz: (n, 3) small nodules, and what readers marked as no nodule.
    """

    ct: CT
    patient: str
    nodules: list[Nodule]
    marks_xyz: NDArray[np.float64]


def require_new(output: Path) -> None:
    """Refuse a folder that holds one of the tables.

    Raises:
        FileExistsError: it does, or it is a file.
    """
    if output.exists() and not output.is_dir():
        raise FileExistsError(f"{output} is a file: name a folder as --output")
    there = [name for name in (*TABLES, MASKS) if (output / name).exists()]
    if there:
        raise FileExistsError(f"{output / there[0]} is there already: name another --output, or move it away")


def read_lidc(folder: Path, allow_symlinks: bool = False) -> tuple[dict[str, LidcScan], tuple[str, ...]]:
    """Read LIDC-IDRI's DICOM series and readers' XML below a folder.

    Args:
        folder: as the archive gives it, or any part of it.
        allow_symlinks: whether symbolic links may leave it.

    Returns:
        Each series that has readings, and notes on what was left out.

    Raises:
        ValueError: a file is damaged, two files are about one series, no series has readings, or an outline lies in no
            slice of its series.
    """
    reads: dict[str, Reads] = {}
    for path in sorted(folder.rglob("*.xml")):
        if (one := read_reads(path)) is None:
            continue
        if one.series_uid in reads:
            raise ValueError(f"{path} and {reads[one.series_uid].path} are about one series: remove one of them")
        reads[one.series_uid] = one
    folders = find_series(folder, allow_symlinks)
    found = {uid: place for uid, place in folders.items() if uid in reads}
    if not found:
        raise ValueError(f"{folder}: none of {len(folders)} CTs has readings among {len(reads)} XML files: add its XML")
    notes = []
    if len(folders) > len(found):
        notes.append(f"{len(folders) - len(found)} CTs without readers' XML left out")
    if len(reads) > len(found):
        notes.append(f"{len(reads) - len(found)} XML files about CTs that are not there left out")
    wanted = counted(sorted(found.items()), "read", "CT")
    return {uid: _scan(place, reads[uid], allow_symlinks) for uid, place in wanted}, tuple(notes)


def write_lidc(output: Path, scans: dict[str, LidcScan], masks: bool = False) -> dict[str, Any]:
    """Write a data folder in LUNA16's layout: CTs, nodules, excluded findings, series, patients, readings.

    Args:
        output: the folder; none of the tables may be there.
        scans: what `read_lidc` gave.
        masks: also write the voxels that half of a nodule's readers or more included, 0 or 1, as ``nodule_masks``.

    Returns:
        JSON-ready: ``output``, ``series``, ``nodules``, ``excluded``, ``readings``.

    Raises:
        FileExistsError: a table is there already.
        ValueError: voxels that cannot be trusted, or are no int16.
    """
    require_new(output)
    nodules: list[_Row] = []
    excluded: list[_Row] = []
    ratings: list[tuple[int, ...]] = []
    for uid, scan in scans.items():
        for nodule in scan.nodules:
            xyz = scan.ct.geometry.world_from_voxel(nodule.index_zyx)
            (nodules if nodule.is_luna16 else excluded).append((uid, xyz, nodule.diameter_mm))
            ratings += [nodule.ratings()] if nodule.is_luna16 else []
        excluded += [(uid, xyz, UNKNOWN_MM) for xyz in scan.marks_xyz]
    for uid, scan in counted([*scans.items()], "write", "CT"):
        voxels = scan.ct.read()
        if voxels.dtype != np.int16:
            raise ValueError(f"series {uid} has HU beyond int16, which LUNA16's layout cannot hold: leave it out")
        write_mhd(output / f"{uid}.mhd", voxels, scan.ct.geometry)
        if masks:
            write_mhd(output / MASKS / f"{uid}.mhd", _masks(scan), scan.ct.geometry)
    _write_nodules(output / ANNOTATIONS, nodules)
    _write_nodules(output / EXCLUDED, excluded)
    rated = [(*row, told) for row, told in zip(nodules, ratings, strict=True) if told]
    write_readings(
        output / READINGS,
        [uid for uid, *_ in rated],
        [float(xyz[2]) for _, xyz, *_ in rated],
        [diameter for *_, diameter, _ in rated],
        [told for *_, told in rated],
    )
    patients = [(uid, scan.patient) for uid, scan in scans.items() if scan.patient]
    write_csv(output / PATIENTS, PATIENT_COLUMNS, patients)
    write_csv(output / SERIES, None, [[uid] for uid in scans])
    return {
        "output": str(output), "series": len(scans), "nodules": len(nodules), "excluded": len(excluded),
        "readings": len(rated),
    }  # fmt: skip


def write_luna25(output: Path, table: Path, scans: Scans) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Write the tables of a data folder for the malignancy bundle from LUNA25's training table.

    The CTs stay where they are: LUNA25's ``<series>.mha`` are read in the data folder itself.

    Args:
        output: the folder; none of the tables may be there.
        table: LUNA25's CSV.
        scans: the CTs that were named; the points are checked against them.

    Returns:
        JSON-ready: ``output``, ``series``, ``nodules``, ``malignant``; and notes.

    Raises:
        FileExistsError: a table is there already.
        ValueError: the table is malformed, or a point lies outside its CT.
    """
    require_new(output)
    read = read_training_table(table)
    points: Points = read.points
    scans.require(points)
    labels, diameters = points.value(MALIGNANT), points.value(DIAMETER)
    uids, xyz = points.series, points.points_xyz
    write_points(output / ANNOTATIONS, uids, xyz, diameters, "diameter_mm")
    write_points(output / CANDIDATES, uids, xyz, points.value(CLASS).astype(int), "class")
    ratings = [RATINGS[int(label)] for label in labels]
    write_readings(output / READINGS, uids, xyz[:, 2].tolist(), diameters.tolist(), ratings)
    write_csv(output / PATIENTS, PATIENT_COLUMNS, sorted(read.patients.items()))
    write_csv(output / SERIES, None, [[uid] for uid in points.series_uids])
    counts = {"series": len(points.series_uids), "nodules": len(points), "malignant": int(labels.sum())}
    return {"output": str(output), **counts}, points.notes


def _scan(folder: Path, reads: Reads, allow_symlinks: bool) -> LidcScan:
    """Return one series with its readings, in the order of the file."""
    from pydicom import dcmread

    ct = open_ct(folder, allow_symlinks=allow_symlinks)
    places, patient = {}, ""
    for path in slice_files(folder):
        header = dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
        index = ct.geometry.voxel_from_world([float(value) for value in header.ImagePositionPatient])
        places[str(header.SOPInstanceUID)] = round(float(index[0]))
        patient = patient or str(header.get("PatientID", "")).strip()
    outlined, small = [], []
    for nodule in reads.nodules:
        if nodule.is_small:
            small.append(nodule.rois[0])
            continue
        outlines = [Outline(_slice_of(roi, places, ct.geometry), roi.pixels, roi.included) for roi in nodule.rois]
        if not any(outline.included for outline in outlines):
            raise ValueError(f"{nodule.rois[0].where}: all of its outlines are holes: fetch the file again")
        outlined.append(Reading(outlines, nodule.ratings, nodule.reader))
    marks = [(_slice_of(one, places, ct.geometry), *one.pixels[0, ::-1]) for one in (*small, *reads.others)]
    marks_zyx = np.array(marks, np.float64).reshape(-1, 3)
    return LidcScan(ct, patient, nodules_of(outlined, ct.geometry.spacing_zyx), ct.geometry.world_from_voxel(marks_zyx))


def _slice_of(points: SlicePoints, places: dict[str, int], geometry: Geometry) -> int:
    """Return the slice that a reader drew in: by its UID, else by its height."""
    (columns, rows), shape = points.pixels.T, geometry.shape_zyx
    if not (rows.min() >= 0 and columns.min() >= 0 and rows.max() < shape[1] and columns.max() < shape[2]):
        raise ValueError(f"{points.where}: pixels lie outside the slice of {shape[2]} x {shape[1]}: is this its CT?")
    if points.sop_uid in places:
        return places[points.sop_uid]
    if points.z_mm is not None:
        origin = geometry.affine[:3, 3]
        index = float(geometry.voxel_from_world([origin[0], origin[1], points.z_mm])[0])
        if abs(index - round(index)) < 0.5 and 0 <= round(index) < shape[0]:
            return round(index)
    raise ValueError(
        f"{points.where}: slice {points.sop_uid or points.z_mm} is none of its CT's: fetch the series again"
    )


def _masks(scan: LidcScan) -> NDArray[np.int16]:
    """Return the consensus of all nodules of a scan."""
    whole = np.zeros(scan.ct.geometry.shape_zyx, np.int16)
    for nodule in scan.nodules:
        box, mask = consensus(nodule, whole.shape)
        whole[box] |= mask
    return whole


def _write_nodules(path: Path, rows: Sequence[_Row]) -> None:
    uids, xyz, diameters = zip(*rows, strict=True) if rows else ((), (), ())
    write_points(path, uids, np.array(xyz).reshape(-1, 3), np.array(diameters), "diameter_mm")
