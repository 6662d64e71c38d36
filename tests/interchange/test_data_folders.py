"""LIDC-IDRI and LUNA25 into LUNA16's layout, as the rest of the package then reads it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ct_files import UID, write_ct
from lidc_files import PATIENT, nodule, non_nodule, ring, roi, write_reads, write_series

from luna16_monai.ct.folders import find_cts
from luna16_monai.ct.opening import open_ct
from luna16_monai.interchange.data_folders import read_lidc, write_lidc, write_luna25
from luna16_monai.interchange.scans import Scans
from luna16_monai.malignancy.labels import BENIGN, MALIGNANT, MalignancyKinds
from luna16_monai.tables.lidc import read_patients, readings_for
from luna16_monai.tables.luna16 import read_annotations, read_candidates, read_excluded, read_series_list

RING = ring((3, 7), (2, 6))
SESSIONS = [
    nodule(roi(1, RING), roi(2, RING), malignancy=4) + non_nodule(3, (7, 8)),
    nodule(roi(1, RING), roi(2, RING), malignancy=5),
    nodule(roi(1, RING), roi(2, RING), malignancy=5) + nodule(roi(0, [(1, 2)])),
    nodule(roi(3, ring((9, 12), (7, 10))), malignancy=1),
]


@pytest.fixture
def lidc(tmp_path: Path) -> Path:
    """As the archive gives it: patient, study, series; the XML beside the slices."""
    series = write_series(tmp_path / "lidc" / PATIENT / "study" / "series")
    write_reads(series / "068.xml", SESSIONS)
    return tmp_path / "lidc"


def test_lidc_becomes_a_data_folder(lidc, tmp_path):
    """The nodule of three readers lies at slice 1.5, row 4, column 5: see ct_files.write_dicom for the geometry."""
    scans, notes = read_lidc(lidc)
    assert notes == ()
    output = tmp_path / "data"
    told = write_lidc(output, scans, masks=True)
    assert told == {"output": str(output), "series": 1, "nodules": 1, "excluded": 3, "readings": 1}
    nodules = read_annotations(output)
    assert nodules.row_series() == [UID]
    np.testing.assert_allclose(nodules.points_xyz, [[10 + 5 * 0.5, 20 + 4 * 0.75, 30 + 1.5 * 2]])
    np.testing.assert_allclose(nodules.values, [np.cbrt(6 * 18 * 0.75 / np.pi)])
    excluded = read_excluded(output)
    # a reader's nodule of 2 x 2 voxels, a small nodule, and what is no nodule
    np.testing.assert_allclose(excluded.values, [np.cbrt(6 * 4 * 0.75 / np.pi), -1, -1])
    np.testing.assert_allclose(
        excluded.points_xyz,
        [[10 + 10.5 * 0.5, 20 + 8.5 * 0.75, 36], [10 + 1 * 0.5, 20 + 2 * 0.75, 30], [10 + 7 * 0.5, 20 + 8 * 0.75, 36]],
    )
    assert read_series_list(output) == (UID,)
    assert read_patients(output)[UID] == PATIENT
    readings = readings_for(output)
    assert (readings.z_mm.tolist(), readings.ratings) == ([33.0], ((4, 5, 5),))
    (ct,) = find_cts(output)
    assert ct.series_uid == UID
    original = open_ct(lidc / PATIENT / "study" / "series")
    assert np.array_equal(ct.ct.read(), original.read())
    np.testing.assert_allclose(ct.ct.geometry.affine, original.geometry.affine)
    masks = open_ct(output / "nodule_masks" / f"{UID}.mhd").load()
    assert masks.sum() == 18 + 4
    assert np.argwhere(masks[1]).min(0).tolist() == [3, 4]


def test_lidc_is_refused_where_tables_are_there(lidc, tmp_path):
    scans, _ = read_lidc(lidc)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "annotations.csv").write_text("")
    with pytest.raises(FileExistsError, match=r"annotations.csv is there already: name another --output"):
        write_lidc(tmp_path / "data", scans)
    assert len(list((tmp_path / "data").iterdir())) == 1


def test_lidc_notes_what_has_no_partner(lidc):
    write_reads(lidc / "other.xml", SESSIONS, "1.2.3")
    (lidc / "xray.xml").write_text('<IdriReadMessage xmlns="http://www.nih.gov/idri"/>')
    scans, notes = read_lidc(lidc)
    assert (list(scans), notes) == ([UID], ("1 XML files about CTs that are not there left out",))


def test_slices_without_uid_are_found_by_height(lidc):
    path = lidc / PATIENT / "study" / "series" / "068.xml"
    write_reads(path, [nodule(roi(1, RING, sop_uid=""), roi(2, RING, sop_uid="1.2.3"), malignancy=4)])
    (nodule_,) = read_lidc(lidc)[0][UID].nodules
    assert nodule_.index_zyx.tolist() == [1.5, 4, 5]


@pytest.mark.parametrize(
    ("session", "message"),
    [
        (
            nodule(roi(9, RING), malignancy=4),
            "reader 1, nodule 1: slice 1.2.826.0.1.3680043.8.498.1.10 is none of its CT's",
        ),
        (
            nodule(roi(1, ring((3, 14), (2, 6))), malignancy=4),
            "pixels lie outside the slice of 14 x 12: is this its CT?",
        ),
        (nodule(roi(1, RING, included=False), malignancy=4), "all of its outlines are holes"),
    ],
)
def test_lidc_refuses(lidc, session, message):
    write_reads(lidc / PATIENT / "study" / "series" / "068.xml", [session])
    with pytest.raises(ValueError, match=r"068\.xml") as caught:
        read_lidc(lidc)
    assert message in str(caught.value)


def test_lidc_refuses_two_files_about_one_series_and_none_at_all(lidc):
    write_reads(lidc / "again.xml", SESSIONS)
    with pytest.raises(ValueError, match="are about one series: remove one of them"):
        read_lidc(lidc)
    for path in lidc.rglob("*.xml"):
        path.unlink()
    with pytest.raises(ValueError, match="none of 1 CTs has readings among 0 XML files: add its XML"):
        read_lidc(lidc)


TABLE = """SeriesInstanceUID,StudyDate,CoordX,CoordY,CoordZ,PatientID,NoduleID,AnnotationID,label
a,19990102,11,21,32,100570,1,100570_1_19990102,1
a,19990102,12,23,32,100570,2,100570_2_19990102,0
b,19990102,11,21,34,100571,1,100571_1_19990102,0
"""


@pytest.fixture
def luna25(tmp_path: Path) -> Path:
    path = tmp_path / "LUNA25.csv"
    path.write_text(TABLE)
    return path


def test_luna25_becomes_tables_of_which_the_malignancy_bundle_makes_its_labels(luna25, tmp_path):
    """The first two nodules lie in one slice, so only their assumed diameters tell them apart."""
    output = tmp_path / "data"
    told, notes = write_luna25(output, luna25, Scans())
    assert told == {"output": str(output), "series": 2, "nodules": 3, "malignant": 1}
    assert notes == ("LUNA25 measures no nodule: a diameter of 10 mm is assumed for each",)
    nodules = read_annotations(output)
    np.testing.assert_allclose(nodules.values, [10, 10.01, 10])
    kinds = MalignancyKinds(output)
    assert kinds.kind.tolist() == [MALIGNANT, BENIGN, BENIGN]
    assert kinds(read_candidates(output)).values.tolist() == [MALIGNANT, BENIGN, BENIGN]
    assert read_patients(output).of_all(["a", "b"]) == {"100570", "100571"}
    assert read_series_list(output) == ("a", "b")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("label\n", "labels\n", "line 1: column label is missing"),
        ("19990102,1\n", "19990102,2\n", "line 2: label is '2', 0 (benign) or 1 (malignant) is meant"),
        (",12,23", ",nan,23", "line 3: CoordX is 'nan', not a finite number"),
        ("100570,2", ",2", "line 3: PatientID is empty"),
        ("100570,2", "100572,2", "line 3: series a is of patients 100570 and 100572"),
    ],
)
def test_luna25_refuses(luna25, tmp_path, before, after, message):
    assert before in TABLE
    luna25.write_text(TABLE.replace(before, after, 1))
    with pytest.raises(ValueError, match=r"LUNA25\.csv") as caught:
        write_luna25(tmp_path / "data", luna25, Scans())
    assert message in str(caught.value)
    assert not (tmp_path / "data").exists()


def test_luna25_is_checked_against_the_cts(luna25, tmp_path):
    scans = Scans.open([write_ct(tmp_path / "cts" / "a.mha")])
    with pytest.raises(ValueError, match=r"line 4: b is none of the CTs \(a\)"):
        write_luna25(tmp_path / "data", luna25, scans)
