"""A DICOM structured report (TID 1500) of the candidates that reach a threshold, made with highdicom.

The one place that reads a patient's name: a report belongs to a patient and a study, or no archive can file it. Of the
series it takes the tags named in `PATIENT` and `REFERENCES`, the first ones into the report alone; whatever is not as
DICOM wants it is left empty, since neither the libraries' warnings nor their errors about it may repeat it. Points
stay what they are, world LPS mm: that is DICOM's frame of reference.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_OID, uuid5

import numpy as np
from numpy.typing import NDArray

from luna16_monai import __version__
from luna16_monai.ct.dicom import slice_files
from luna16_monai.machine.extras import require
from luna16_monai.tables.points import PointTable

if TYPE_CHECKING:
    from pydicom import Dataset

_UID = "[0-9.]{1,64}"

THRESHOLD = 0.5
# what the modules Patient and General Study of every DICOM object need, and what their values look like
PATIENT = {
    "PatientName": r".{0,324}",
    "PatientID": r".{0,64}",
    "PatientBirthDate": r"\d{8}",
    "PatientSex": r"[MFO]",
    "StudyDate": r"\d{8}",
    "StudyTime": r"\d{2,6}(\.\d{1,6})?",
    "ReferringPhysicianName": r".{0,324}",
    "StudyID": r".{0,16}",
    "AccessionNumber": r".{0,16}",
}
REFERENCES = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")
SAME_IN_ALL = ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "PatientID")


@dataclass(frozen=True)
class Source:
    """What a report takes over from the series that it is about.

    Attributes:
        slices: of each slice its references; of the first one the patient and the study too.
        series_uid: the series.
        frame_of_reference_uid: in which the points lie.
    """

    slices: list[Dataset]
    series_uid: str
    frame_of_reference_uid: str


@dataclass(frozen=True)
class Algorithm:
    """What says so.

    Attributes:
        name: of the bundle.
        version: of the package and the bundle.
        parameters: one text each: weights, calibration, threshold.
    """

    name: str
    version: str
    parameters: tuple[str, ...]


def require_highdicom() -> ModuleType:
    """Give highdicom.

    Raises:
        ModuleNotFoundError: it is missing.
    """
    require("dicom", "--dicom-sr", "highdicom")
    import highdicom.sr

    return highdicom.sr


def read_source(folder: Path) -> Source:
    """Read what a report needs of a DICOM series; the series itself is checked by ``open_ct``.

    A date or time that does not exist, as 19500000 or 240000, is left empty.

    Raises:
        ValueError: it is no folder of DICOM files, or a UID is missing or differs between slices.
        ModuleNotFoundError: highdicom is missing.
    """
    require_highdicom()
    from pydicom import Dataset, dcmread

    if not folder.is_dir():
        raise ValueError(f"{folder.name} is no folder of DICOM files: --dicom-sr needs one series as --ct")
    slices: list[Dataset] = []
    for path in slice_files(folder):
        with _silence():
            header = dcmread(path, stop_before_pixels=True, force=True, specific_tags=[*REFERENCES, *PATIENT])
            known = Dataset()
            for name in REFERENCES:
                value = _text(header, name)
                if not re.fullmatch(_UID, value, re.ASCII):
                    raise ValueError(f"{path.name}: no valid {name}: export the scan anew")
                setattr(known, name, value)
            for name, pattern in PATIENT.items():
                value = _text(header, name)
                fits = re.fullmatch(pattern, value) is not None and _exists(name, value)
                setattr(known, name, value if fits else "")
        slices.append(known)
        odd = next((name for name in SAME_IN_ALL if known[name].value != slices[0][name].value), None)
        if odd is not None:
            raise ValueError(f"{path.name} has another {odd} than the first slice: keep one series a folder")
    return Source(slices, slices[0].SeriesInstanceUID, slices[0].FrameOfReferenceUID)


def make_structured_report(
    source: Source,
    table: PointTable,
    threshold: float,
    algorithm: Algorithm,
    diameter_mm: NDArray[np.float64] | None = None,
) -> tuple[bytes, int]:
    """Make a Comprehensive 3D SR by TID 1500.

    Each candidate at or above the threshold gets a measurement group (TID 1410) with its point in the frame of
    reference, the finding "nodule", the certainty of it in percent, and its diameter in mm where that is known. Without
    any, one group (TID 1501) about the whole series says that there is none.

    Args:
        source: the series.
        table: its candidates, their values the probabilities that the report states.
        threshold: between 0 and 1.
        algorithm: what found them.
        diameter_mm: (n,) of each candidate, NaN where it is not known; None: of none.

    Returns:
        The DICOM file, and how many candidates are in it.

    Raises:
        ValueError: a threshold out of range, or candidates of another series.
        ModuleNotFoundError: highdicom is missing.
    """
    require_threshold(threshold)
    table.require_series([source.series_uid], "the series of --dicom-sr")
    sr = require_highdicom()
    from pydicom.sr.codedict import codes

    rows = [row for row in (-table.values).argsort(kind="stable").tolist() if table.values[row] >= threshold]
    known = np.full(len(table), np.nan) if diameter_mm is None else diameter_mm
    groups = [_group(sr, codes, source, table, row, algorithm, float(known[row])) for row in rows]
    found = groups or [_nothing_found(sr, codes, source, algorithm)]
    return _report(sr, source, _content(sr, codes, found, algorithm), algorithm), len(rows)


def _content(sr: Any, codes: Any, groups: list[Any], algorithm: Algorithm) -> Any:
    """The report's tree: who says so, and the groups."""
    context = sr.ObservationContext(
        observer_device_context=sr.ObserverContext(
            observer_type=codes.DCM.Device,
            observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
                uid=_stable_uid("luna16_monai", __version__),
                name="luna16_monai",
                manufacturer_name="luna16_monai",
                model_name=algorithm.name,
            ),
        )
    )
    return sr.MeasurementReport(
        observation_context=context,
        procedure_reported=codes.LN.CTUnspecifiedBodyRegion,
        imaging_measurements=groups,
    )


def _report(sr: Any, source: Source, content: Any, algorithm: Algorithm) -> bytes:
    """The report as a DICOM file."""
    from highdicom import UID

    with _silence():
        report = sr.Comprehensive3DSR(
            evidence=source.slices,
            content=content[0],
            series_instance_uid=UID(),
            series_number=1,
            sop_instance_uid=UID(),
            instance_number=1,
            manufacturer="luna16_monai",
            manufacturer_model_name=algorithm.name,
            software_versions=algorithm.version,
            # DICOM wants one of every device that writes a Comprehensive 3D SR
            device_serial_number=__version__,
            series_description="nodule candidates, not for clinical use",
            is_complete=True,
            is_verified=False,
            specific_character_set="ISO_IR 192",
        )
        written = io.BytesIO()
        report.save_as(written)
    return written.getvalue()


def require_threshold(threshold: float) -> None:
    """Refuse what is no probability.

    Raises:
        ValueError: it is not between 0 and 1.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold {threshold}: give a probability between 0 and 1")


def _group(
    sr: Any, codes: Any, source: Source, table: PointTable, row: int, algorithm: Algorithm, diameter_mm: float
) -> Any:
    point = table.points_xyz[row]
    # not the code for "probability of cancer": the network separates nodules from what is none
    certainty = round(100 * float(table.values[row]), 4)
    measured = [(codes.DCM.CertaintyOfFinding, certainty, codes.UCUM.Percent)]
    if not np.isnan(diameter_mm):
        measured.append((codes.SCT.Diameter, round(diameter_mm, 2), codes.UCUM.Millimeter))
    place = ",".join(table.row_key(row)[1:])
    identification = sr.AlgorithmIdentification(algorithm.name, algorithm.version, list(algorithm.parameters))
    return sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        # the same point of the same series is the same thing, whenever a report is made of it
        tracking_identifier=sr.TrackingIdentifier(
            uid=_stable_uid(source.series_uid, place), identifier=f"candidate at {place} mm"
        ),
        referenced_region=sr.ImageRegion3D(
            graphic_type=sr.GraphicTypeValues3D.POINT,
            graphic_data=point[None],
            frame_of_reference_uid=source.frame_of_reference_uid,
        ),
        finding_type=codes.SCT.Nodule,
        finding_sites=[sr.FindingSite(anatomic_location=codes.SCT.Lung)],
        measurements=[sr.Measurement(name=name, value=value, unit=unit) for name, value, unit in measured],
        algorithm_id=identification,
    )


def _nothing_found(sr: Any, codes: Any, source: Source, algorithm: Algorithm) -> Any:
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=_stable_uid(source.series_uid, "all candidates"), identifier="all candidates"
        ),
        finding_type=codes.SCT.Nodule,
        algorithm_id=sr.AlgorithmIdentification(algorithm.name, algorithm.version, list(algorithm.parameters)),
        qualitative_evaluations=[
            sr.QualitativeEvaluation(
                name=codes.DCM.CADProcessingAndFindingsSummary,
                value=codes.DCM.AllAlgorithmsSucceededWithoutFindings,
            )
        ],
    )


@contextmanager
def _silence() -> Iterator[None]:
    """Keep both libraries from repeating values that they find odd, as warnings and in their logs."""
    from pydicom.config import disable_value_validation

    loggers = [logging.getLogger(name) for name in ("pydicom", "highdicom")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with disable_value_validation(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _text(header: Dataset, name: str) -> str:
    """A tag as text without the padding; empty where it is missing or can't be decoded."""
    try:
        from pydicom.multival import MultiValue

        value = header.get(name)
    except (ValueError, LookupError, NotImplementedError):
        return ""
    several = isinstance(value, list | MultiValue)
    return "" if value is None or several else str(value).strip(" \0")


def _exists(name: str, value: str) -> bool:
    """Whether a date or a time of this tag's pattern exists; of another tag, True."""
    from pydicom.datadict import dictionary_VR
    from pydicom.valuerep import DA, TM

    kind = {"DA": DA, "TM": TM}.get(dictionary_VR(name))
    if kind is None or not value:
        return True
    try:
        kind(value)
    except ValueError:
        return False
    return True


def _stable_uid(*of: str) -> str:
    """A UID that is the same for the same texts (ITU-T X.667: 2.25 and a UUID as a number)."""
    return f"2.25.{uuid5(NAMESPACE_OID, '/'.join(of)).int}"
