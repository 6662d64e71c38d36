"""The DICOM report: what it says, about whom, and that other programs can read it."""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from ct_files import CANARY, UID, write_dicom
from point_tables import point_table
from pydicom.dataset import FileDataset
from pydicom.uid import Comprehensive3DSRStorage

from luna16_monai import __version__
from luna16_monai.cli.main import main
from luna16_monai.networks.nodule_net import NoduleNet
from luna16_monai.tables.points import read_points

pytest.importorskip("highdicom", reason="the report needs the extra 'dicom'")
from highdicom.sr import srread

from luna16_monai.inference.structured_report import Algorithm, make_structured_report, read_source

FRAME, STUDY = f"{UID}.2", f"{UID}.3"
ALGORITHM = Algorithm("Network", "1.0", ("weights sha256 00",))
POINTS = [(UID, 11.0, 22.0, 33.0, 0.25), (UID, 11.5, 21.25, 32.0, 0.9), (UID, 12.0, 23.0, 36.0, 0.5)]


def write_structured_report(output: Path, *what: Any) -> int:
    """Write a report; return how many candidates are in it."""
    report, count = make_structured_report(*what)
    output.write_bytes(report)
    return count


def identify(k: int, slice_: FileDataset) -> None:
    slice_.FrameOfReferenceUID, slice_.StudyInstanceUID = FRAME, STUDY
    slice_.SpecificCharacterSet = "ISO_IR 100"
    slice_.PatientName, slice_.PatientID, slice_.PatientSex = "Müller^Zoë", "P-17", "F"
    slice_.PatientBirthDate, slice_.StudyDate, slice_.StudyTime = "19500607", "20200102", "101112.5"
    slice_.StudyID, slice_.AccessionNumber, slice_.ReferringPhysicianName = "S1", "A1", ""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_dicom(tmp_path / "series", identify)


def changed(name: str, value: object, at: int = 2) -> Callable[[int, FileDataset], None]:
    """One tag of one slice is another one, or missing."""

    def change(k: int, slice_: FileDataset) -> None:
        identify(k, slice_)
        if k == at and value is None:
            delattr(slice_, name)
        elif k == at:
            setattr(slice_, name, value)

    return change


@pytest.fixture
def report(folder: Path, tmp_path: Path) -> Path:
    output = tmp_path / "report.dcm"
    assert write_structured_report(output, read_source(folder), point_table(POINTS), 0.5, ALGORITHM) == 2
    return output


def test_report_has_a_group_for_each_candidate_at_or_above_the_threshold(report):
    groups = srread(report).content.get_planar_roi_measurement_groups()
    seen = []
    for group in groups:
        (measurement,) = group.get_measurements()
        assert group.roi.graphic_type.value == "POINT"
        assert group.roi.frame_of_reference_uid == FRAME
        assert (measurement.name.meaning, measurement.unit.value) == ("Certainty of Finding", "%")
        assert (group.finding_type.meaning, group.finding_sites[0].topographical_modifier) == ("Nodule", None)
        seen.append((*group.roi.value.ravel().tolist(), measurement.value))
    # the most certain one first
    assert seen == [(11.5, 21.25, 32.0, 90.0), (12.0, 23.0, 36.0, 50.0)]


def test_report_tells_the_diameter_where_it_is_known(folder, tmp_path):
    output, table = tmp_path / "report.dcm", point_table(POINTS)
    diameters = np.array([7.0, 5.127, np.nan])
    assert write_structured_report(output, read_source(folder), table, 0.5, ALGORITHM, diameters) == 2
    seen = [
        [
            (one.name.meaning, one.name.scheme_designator, one.name.value, one.value, one.unit.value)
            for one in group.get_measurements()
        ]
        for group in srread(output).content.get_planar_roi_measurement_groups()
    ]
    certainty = ("Certainty of Finding", "DCM", "111012")
    assert seen == [
        [(*certainty, 90.0, "%"), ("Diameter", "SCT", "81827009", 5.13, "mm")],
        [(*certainty, 50.0, "%")],
    ]


REQUIRED = {
    "Patient": {"(0010,0010)": "2", "(0010,0020)": "2", "(0010,0030)": "2", "(0010,0040)": "2"},
    "General Study": {
        "(0020,000D)": "1", "(0008,0020)": "2", "(0008,0030)": "2", "(0008,0090)": "2", "(0020,0010)": "2",
        "(0008,0050)": "2",
    },
    "SR Document Series": {"(0008,0060)": "1", "(0020,000E)": "1", "(0020,0011)": "1", "(0008,1111)": "2"},
    "Enhanced General Equipment": {
        "(0008,0070)": "1", "(0008,1090)": "1", "(0018,1000)": "1", "(0018,1020)": "1",
    },
    "SR Document General": {
        "(0020,0013)": "1", "(0040,A491)": "1", "(0040,A493)": "1", "(0008,0023)": "1", "(0008,0033)": "1",
        "(0040,A372)": "2",
    },
    "SR Document Content": {"(0040,A040)": "1", "(0040,A043)": "1", "(0040,A050)": "1", "(0040,A730)": "1"},
    "SOP Common": {"(0008,0016)": "1", "(0008,0018)": "1"},
}  # fmt: skip
"""What DICOM PS3.3 (A.35.13, C.7 and C.17) demands of a Comprehensive 3D SR whatever stands in it: written down from
there by hand, since dicom-validator fetches the standard over the network."""
ENUMERATED = {
    "(0008,0060)": ["SR"], "(0040,A491)": ["PARTIAL", "COMPLETE"], "(0040,A493)": ["UNVERIFIED", "VERIFIED"],
    "(0040,A040)": ["CONTAINER"], "(0040,A050)": ["SEPARATE", "CONTINUOUS"],
}  # fmt: skip


def wrong_tags(report: pydicom.Dataset) -> list[str]:
    """What dicom-validator finds in the report's modules; which further tags are allowed is not asked."""
    validator = pytest.importorskip("dicom_validator.validator.iod_validator")
    info = pytest.importorskip("dicom_validator.validator.dicom_info")
    modules = {
        name: {
            tag: {"name": tag, "type": kind, **({"enums": [{"val": ENUMERATED[tag]}]} if tag in ENUMERATED else {})}
            for tag, kind in tags.items()
        }
        for name, tags in REQUIRED.items()
    }
    iod = {"title": "SR", "modules": {name: {"ref": name, "use": "M"} for name in modules}, "group_macros": {}}
    found = validator.IODValidator(report, info.DicomInfo({}, {Comprehensive3DSRStorage: iod}, modules)).validate()
    return [
        f"{tag}: {error.code.name}"
        for module, errors in found.module_errors.items()
        for tag, error in errors.items()
        if module != "General"
    ]


def test_report_passes_dicom_validator(folder, tmp_path):
    output = tmp_path / "report.dcm"
    write_structured_report(
        output, read_source(folder), point_table(POINTS), 0.5, ALGORITHM, np.array([7.0, 5.127, np.nan])
    )
    report = pydicom.dcmread(output)
    assert wrong_tags(report) == []
    # and it does find what is wrong
    del report.CompletionFlag
    report.Manufacturer, report.VerificationFlag = "", "PERHAPS"
    assert sorted(error.split(": ")[1] for error in wrong_tags(report)) == [
        "EnumValueNotAllowed", "TagEmpty", "TagMissing",
    ]  # fmt: skip


def texts(report: Path, meaning: str) -> list[str]:
    """The text items of this name, in the report's order."""
    return [
        item.TextValue
        for item in items(pydicom.dcmread(report))
        if item.ValueType == "TEXT" and item.ConceptNameCodeSequence[0].CodeMeaning == meaning
    ]


def items(item: pydicom.Dataset) -> list[pydicom.Dataset]:
    inner = item.get("ContentSequence", [])
    return [item, *(deeper for one in inner for deeper in items(one))]


def test_report_names_its_algorithm_in_each_group(report):
    assert texts(report, "Algorithm Name") == ["Network"] * 2
    assert texts(report, "Algorithm Version") == ["1.0"] * 2
    assert texts(report, "Algorithm Parameters") == ["weights sha256 00"] * 2


def test_report_belongs_to_the_patient_and_the_study_and_refers_to_every_slice(report):
    told = pydicom.dcmread(report)
    assert (told.SOPClassUID, told.Modality, told.StudyInstanceUID) == (Comprehensive3DSRStorage, "SR", STUDY)
    assert (str(told.PatientName), told.PatientID, told.PatientSex, told.PatientBirthDate) == (
        "Müller^Zoë", "P-17", "F", "19500607",
    )  # fmt: skip
    assert (told.StudyDate, told.StudyTime, told.StudyID, told.AccessionNumber) == ("20200102", "101112.5", "S1", "A1")
    assert (told.CompletionFlag, told.VerificationFlag, told.PreliminaryFlag) == (
        "COMPLETE", "UNVERIFIED", "PRELIMINARY",
    )  # fmt: skip
    (study,) = [*told.get("CurrentRequestedProcedureEvidenceSequence", []),
                *told.get("PertinentOtherEvidenceSequence", [])]  # fmt: skip
    (series,) = study.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == UID
    assert told.SeriesInstanceUID != UID
    assert sorted(one.ReferencedSOPInstanceUID for one in series.ReferencedSOPSequence) == [
        f"{UID}.{k}" for k in (1, 2, 3, 4)
    ]
    assert CANARY not in str(told)


def test_report_tracks_the_same_point_under_the_same_uid(report, folder, tmp_path):
    write_structured_report(tmp_path / "again.dcm", read_source(folder), point_table(POINTS), 0.6, ALGORITHM)
    first, again = (srread(path) for path in (report, tmp_path / "again.dcm"))
    assert first.SOPInstanceUID != again.SOPInstanceUID
    uids = [[group.tracking_uid for group in one.content.get_planar_roi_measurement_groups()] for one in (first, again)]
    assert uids[0][:1] == uids[1]
    assert len(set(uids[0])) == 2


def test_report_without_a_finding_says_so(folder, tmp_path):
    output = tmp_path / "report.dcm"
    assert write_structured_report(output, read_source(folder), point_table(POINTS), 0.95, ALGORITHM) == 0
    content = srread(output).content
    assert content.get_planar_roi_measurement_groups() == []
    (group,) = content.get_image_measurement_groups()
    (evaluation,) = group.get_qualitative_evaluations()
    assert evaluation.value.meaning == "All algorithms succeeded; without findings"


@pytest.mark.skipif(shutil.which("dsrdump") is None, reason="no dsrdump on this machine: install Debian's dcmtk")
def test_dcmtk_reads_the_report_without_a_complaint(report, folder, tmp_path):
    empty = tmp_path / "empty.dcm"
    write_structured_report(empty, read_source(folder), point_table(POINTS), 0.95, ALGORITHM)
    for path, groups in ((report, 2), (empty, 1)):
        done = subprocess.run(["dsrdump", path], capture_output=True, encoding="utf-8")
        assert done.returncode == 0
        # dcmtk 3.6.7 can't check values in UTF-8, and says so
        complaints = [line for line in done.stderr.splitlines() if "Specific Character Set" not in line]
        assert complaints == []
        assert done.stdout.startswith("Comprehensive 3D SR Document")
        assert done.stdout.count('"Measurement Group"') == groups
    assert (
        '"Certainty of Finding")="90'
        in subprocess.run(["dsrdump", report], capture_output=True, encoding="utf-8").stdout
    )


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("FrameOfReferenceUID", None, "d.dcm: no valid FrameOfReferenceUID"),
        ("FrameOfReferenceUID", f"{UID}.77", "d.dcm has another FrameOfReferenceUID than the first slice"),
        ("StudyInstanceUID", "CANARY", "d.dcm: no valid StudyInstanceUID"),
        ("PatientID", "CANARY", "d.dcm has another PatientID than the first slice"),
    ],
)
def test_read_source_refuses_a_series_that_is_not_one(tmp_path, name, value, message):
    with pydicom.config.disable_value_validation():
        folder = write_dicom(tmp_path / "series", changed(name, value))
    with pytest.raises(ValueError, match=message) as caught:
        read_source(folder)
    assert "CANARY" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("PatientSex", "CANARY"), ("PatientBirthDate", "CANARY"), ("StudyTime", "CANARY"), ("StudyDate", "CANARY"),
     ("PatientID", "CANARY" * 20), ("SpecificCharacterSet", "CANARY")],
)  # fmt: skip
def test_report_leaves_empty_what_is_not_as_dicom_wants_it(tmp_path, name, value, capfd, caplog, recwarn):
    with pydicom.config.disable_value_validation():
        folder = write_dicom(tmp_path / "series", lambda k, s: changed(name, value, at=k)(k, s))
    # what writing such files has said
    recwarn.clear()
    caplog.clear()
    capfd.readouterr()
    with caplog.at_level(logging.DEBUG):
        output = tmp_path / "report.dcm"
        write_structured_report(output, read_source(folder), point_table(POINTS), 0.5, ALGORITHM)
    said = "".join([*capfd.readouterr(), caplog.text, *(str(one.message) for one in recwarn)])
    assert "CANARY" not in said
    assert b"CANARY" not in output.read_bytes()
    assert pydicom.dcmread(output).StudyInstanceUID == STUDY


@pytest.mark.parametrize(
    ("name", "value"),
    [("PatientBirthDate", "19500000"), ("PatientBirthDate", "00000000"), ("StudyDate", "20200231"),
     ("StudyDate", "20201301"), ("StudyTime", "240000"), ("StudyTime", "126000"), ("StudyTime", "99"),
     ("StudyTime", "12000000"), ("PatientName", ["A^B", "C^D"])],
)  # fmt: skip
def test_report_leaves_dates_and_times_empty_that_do_not_exist(tmp_path, name, value):
    with pydicom.config.disable_value_validation():
        folder = write_dicom(tmp_path / "series", lambda k, s: changed(name, value, at=k)(k, s))
    output = tmp_path / "report.dcm"
    assert write_structured_report(output, read_source(folder), point_table(POINTS), 0.5, ALGORITHM) == 2
    written = pydicom.dcmread(output)
    assert not written[name].value
    others = {"PatientBirthDate": "19500607", "StudyDate": "20200102", "StudyTime": "101112.5"}
    assert {one: written[one].value for one in others if one != name} == {
        one: text for one, text in others.items() if one != name
    }


def test_report_keeps_dates_and_times_that_exist(tmp_path):
    for name, value in {"PatientBirthDate": "20000229", "StudyTime": "235959.999999", "StudyDate": "19991231"}.items():
        folder = write_dicom(tmp_path / name, lambda k, s, n=name, v=value: changed(n, v, at=k)(k, s))
        output = tmp_path / "report.dcm"
        write_structured_report(output, read_source(folder), point_table(POINTS), 0.5, ALGORITHM)
        assert pydicom.dcmread(output)[name].value == value


def test_report_refuses_other_series_and_thresholds(folder, tmp_path):
    source, output = read_source(folder), tmp_path / "report.dcm"
    with pytest.raises(ValueError, match=r"series 9\.9 \(rows, line 2\) is not in the series of --dicom-sr"):
        write_structured_report(output, source, point_table([("9.9", 1, 2, 3, 0.5)]), 0.5, ALGORITHM)
    for threshold in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="give a probability between 0 and 1"):
            write_structured_report(output, source, point_table(POINTS), threshold, ALGORITHM)
    assert not output.exists()


# --- luna16 predict --dicom-sr --------------------------------------------------------------------------------------


@pytest.fixture
def call(folder: Path, tmp_path: Path) -> Callable[..., int]:
    torch.manual_seed(0)
    torch.save(NoduleNet(two_scales=True, return_probabilities=False).state_dict(), tmp_path / "model.pt")
    lines = [f"{uid},{x},{y},{z}" for uid, x, y, z, _ in POINTS]
    (tmp_path / "points.csv").write_text("\n".join(["seriesuid,coordX,coordY,coordZ", *lines]) + "\n")

    def predict(*more: object) -> int:
        words = ["predict", "--candidates", tmp_path / "points.csv", "--output", tmp_path / "predictions.csv"]
        words += ["--weights", tmp_path / "model.pt", "--device", "cpu", *more]
        return main([str(word) for word in words])

    return predict


def test_predict_writes_the_probabilities_into_the_report(call, folder, tmp_path, capsys):
    output = tmp_path / "report.dcm"
    assert call("--ct", folder, "--dicom-sr", output, "--threshold", 0) == 0
    table = read_points(tmp_path / "predictions.csv", "probability")
    told = {
        tuple(group.roi.value.ravel().tolist()): group.get_measurements()[0].value / 100
        for group in srread(output).content.get_planar_roi_measurement_groups()
    }
    assert len(told) == 3
    for point, probability in zip(table.points_xyz.tolist(), table.values.tolist(), strict=True):
        assert told[tuple(np.float32(point).tolist())] == pytest.approx(probability, abs=1e-6)
    assert f"3 candidates from 0 on in {output}" in capsys.readouterr().out
    assert texts(output, "Algorithm Name") == ["Lung nodule classification"] * 3
    assert f"luna16_monai {__version__}, bundle 0.2.0" in texts(output, "Algorithm Version")
    assert "certainty is the raw probability of a nodule" in texts(output, "Algorithm Parameters")
    assert str(tmp_path) not in output.read_bytes().decode("latin-1")


def test_predict_puts_ras_points_where_they_are(call, folder, tmp_path):
    (tmp_path / "points.csv").write_text(f"seriesuid,coordX,coordY,coordZ\n{UID},-11,-22,33\n")
    assert call("--ct", folder, "--dicom-sr", tmp_path / "report.dcm", "--threshold", 0, "--ras") == 0
    (group,) = srread(tmp_path / "report.dcm").content.get_planar_roi_measurement_groups()
    assert group.roi.value.tolist() == [[11, 22, 33]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--threshold", "2"], "threshold 2.0: give a probability between 0 and 1"),
        (["--ct", "{folder}"], "--dicom-sr is about one series, and --ct names 2 CTs"),
    ],
)
def test_predict_refuses_a_report_before_anything_is_written(call, folder, tmp_path, words, message, capsys):
    output = tmp_path / "report.dcm"
    assert call("--ct", folder, "--dicom-sr", output, *(word.format(folder=folder) for word in words)) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()
    assert not (tmp_path / "predictions.csv").exists()


def test_predict_writes_neither_table_nor_report_where_the_report_cannot_be_made(call, folder, tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise ValueError("no report")

    monkeypatch.setattr("luna16_monai.inference.structured_report._report", fail)
    assert call("--ct", folder, "--dicom-sr", tmp_path / "report.dcm") == 2
    assert not (tmp_path / "report.dcm").exists()
    assert not (tmp_path / "predictions.csv").exists()


def test_predict_reports_on_a_series_below_the_folder(call, folder, tmp_path):
    patient = tmp_path / "patient"
    shutil.copytree(folder, patient / "study" / "series")
    other = write_dicom(patient / "study" / "other", lambda k, s: setattr(s, "SeriesInstanceUID", "1.2.9"))
    assert other.is_dir()
    output = tmp_path / "report.dcm"
    assert call("--ct", patient, "--dicom-sr", output, "--threshold", "0") == 0
    assert pydicom.dcmread(output).CurrentRequestedProcedureEvidenceSequence[0].StudyInstanceUID == STUDY


def test_predict_refuses_a_report_about_a_file_that_is_not_dicom(call, tmp_path, capsys):
    from ct_files import write_ct

    path = write_ct(tmp_path / f"{UID}.mhd")
    assert call("--ct", path, "--dicom-sr", tmp_path / "report.dcm") == 2
    assert f"{UID}.mhd is no folder of DICOM files" in capsys.readouterr().err
