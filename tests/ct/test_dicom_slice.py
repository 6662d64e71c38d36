"""DICOM series as scanners, archives and anonymisers write them: right HU, or a refusal that says what is wrong."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from ct_files import CANARY, UID, VOXELS
from dicom_changes import everywhere, on, refused, write
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from luna16_monai.ct.dicom import series_uid, slice_files
from luna16_monai.ct.dicom_slice import TAGS, read_file
from luna16_monai.ct.opening import open_ct
from luna16_monai.ct.opening import series_uid as opened_uid

# --- HU -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (everywhere(RescaleSlope=None, RescaleIntercept=None), "a.dcm: RescaleSlope is missing, so its HU are unknown"),
        (on([2], RescaleIntercept=None), "d.dcm: RescaleIntercept is missing, so its HU are unknown"),
        (on([2], RescaleSlope=""), "d.dcm: RescaleSlope is missing"),
        (on([2], RescaleSlope="1\\1"), "d.dcm: RescaleSlope makes no sense"),
        (on([2], RescaleIntercept="none"), "d.dcm: RescaleIntercept makes no sense"),
        (on([2], RescaleIntercept="-1,024"), "d.dcm: RescaleIntercept makes no sense"),
        (on([2], RescaleIntercept="-1.024"), "d.dcm: RescaleIntercept is a number below 10 with three decimals"),
        (on([2], RescaleSlope="0"), "d.dcm: RescaleSlope is not above 0"),
        (on([2], RescaleSlope="-1"), "d.dcm: RescaleSlope is not above 0"),
        (everywhere(RescaleType="MGML"), "a.dcm: RescaleType is not HU"),
        (on([2], BitsStored=0), "d.dcm: BitsAllocated, BitsStored and HighBit make no sense together"),
        (on([2], HighBit=15), "d.dcm: BitsAllocated, BitsStored and HighBit make no sense together"),
        (everywhere(BitsStored=8, HighBit=7), "c.dcm: its voxels take more bits than BitsStored 8"),
        (on([2], PhotometricInterpretation="RGB"), "d.dcm is no single grey slice"),
        (
            on([0], NumberOfFrames="4"),
            "c.dcm is a multi-frame (Enhanced) CT, which is not read: convert it to one file",
        ),
    ],
)
def test_open_ct_refuses_a_slice_whose_hu_are_unknown(tmp_path, change, message):
    refused(write(tmp_path / "series", change), message)


@pytest.mark.parametrize(
    "change",
    [
        everywhere(RescaleType="HU"),
        everywhere(PhotometricInterpretation="MONOCHROME1"),
        everywhere(SOPClassUID="2.25.1600319"),
        on([1, 2], SOPClassUID="1.2.840.10008.5.1.4.1.1.7"),
        everywhere(RescaleIntercept="-1024.0 "),
    ],
)
def test_open_ct_takes_hu_from_values_and_rescale_alone(tmp_path, change):
    # MONOCHROME1 says how to show a value, and the SOP class what the object is for; neither changes what is stored
    np.testing.assert_array_equal(open_ct(write(tmp_path / "series", change)).read(), VOXELS)


# --- what lies in the folder ----------------------------------------------------------------------------------------


def test_open_ct_leaves_out_what_is_no_ct_slice_and_counts_it(tmp_path, caplog):
    folder = write(tmp_path / "series", lambda k, slice_: None)
    (folder / "069.xml").write_text("<LidcReadMessage/>" * 20)
    (folder / "LICENSE").write_text("Creative Commons\n")
    (folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600)
    other = pydicom.dcmread(folder / "a.dcm")
    other.Modality, other.SeriesInstanceUID = "SR", f"{UID}.7"
    for keyword in ("PixelData", "ImagePositionPatient", "Rows"):
        delattr(other, keyword)
    other.save_as(folder / "report.dcm")
    scout = pydicom.dcmread(folder / "a.dcm")
    scout.ImageType, scout.Rows = ["ORIGINAL", "PRIMARY", "LOCALIZER"], 3
    scout.save_as(folder / "0scout.dcm")
    with caplog.at_level(logging.INFO):
        np.testing.assert_array_equal(open_ct(folder).read(), VOXELS)
    assert "series: 5 files that are no CT slices are left out" in caplog.text
    assert [path.name for path in slice_files(folder)] == ["a.dcm", "b.dcm", "c.dcm", "d.dcm"]
    assert series_uid(folder) == UID


def test_open_ct_refuses_a_series_that_is_there_twice(tmp_path):
    folder = write(tmp_path / "series", lambda k, slice_: None)
    for file in list(folder.iterdir()):
        shutil.copy(file, folder / f"copy_{file.name}")
    refused(folder, "lie at the same place, and so do 4 pairs: the series is there twice, keep one copy in the folder")


@pytest.mark.parametrize("keyword", ["AcquisitionNumber", "EchoNumbers", "ImageType", "ContentTime"])
def test_open_ct_refuses_two_stacks_that_lie_between_each_other(tmp_path, keyword):
    values = {"ImageType": (["ORIGINAL", "PRIMARY", "AXIAL"], ["DERIVED", "PRIMARY", "AXIAL"])}
    one, two = values.get(keyword, ("1", "2"))
    change = lambda k, s: (on([0, 2], **{keyword: one})(k, s), on([1, 3], **{keyword: two})(k, s))  # noqa: E731
    refused(
        write(tmp_path / "series", change),
        f"c.dcm and a.dcm are of two stacks that lie between each other, their {keyword}",
    )


@pytest.mark.parametrize(
    "change",
    [
        # a step-and-shoot scan, times that grow, and slices that two engines reconstructed
        lambda k, s: setattr(s, "AcquisitionNumber", 1 + k // 2),
        lambda k, s: setattr(s, "AcquisitionNumber", 1 + k),
        lambda k, s: setattr(s, "ContentTime", f"10111{k}"),
        lambda k, s: setattr(s, "ContentTime", ("101110", "101111", "101111", "101110")[k]),
    ],
)
def test_open_ct_stacks_a_scan_made_in_steps(tmp_path, change):
    np.testing.assert_array_equal(open_ct(write(tmp_path / "series", change)).read(), VOXELS)


def test_open_ct_finds_the_one_series_below_a_folder_and_lists_several(tmp_path):
    study = tmp_path / "LIDC-IDRI-0001" / "study"
    study.mkdir(parents=True)
    write(study / "one", lambda k, slice_: None)
    (study / "one" / "069.xml").write_text("<LidcReadMessage/>" * 20)
    (study / "LICENSE").write_text("Creative Commons\n")
    np.testing.assert_array_equal(open_ct(tmp_path / "LIDC-IDRI-0001").read(), VOXELS)
    assert opened_uid(tmp_path / "LIDC-IDRI-0001") == UID
    write(study / "two", everywhere(SeriesInstanceUID=f"{UID}.9"))
    refused(study, f"2 series lie below 'study': {UID} (4 slices), {UID}.9 (4 slices): name the folder of one")
    shutil.copytree(study / "one", study / "three")
    refused(study, f"series {UID} is there twice, in one and three: remove one of them")


def test_open_ct_says_to_give_the_folder_of_a_single_dicom_file(tmp_path):
    path = write(tmp_path / "series", lambda k, slice_: None) / "a.dcm"
    refused(path, "a.dcm is one DICOM file of a CT: give the folder of its series")


# --- how files are written ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implicit", [True, False])
def test_open_ct_reads_files_without_preamble(tmp_path, implicit):
    folder = write(tmp_path / "series", lambda k, slice_: None)
    for file in folder.iterdir():
        bare = Dataset(pydicom.dcmread(file))
        pydicom.dcmwrite(file, bare, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
    np.testing.assert_array_equal(open_ct(folder).read(), VOXELS)


def insert(folder: Path, element: bytes) -> Path:
    """Put an element before the pixel data of every file."""
    for file in folder.iterdir():
        content = file.read_bytes()
        at = content.rindex(b"\xe0\x7f\x10\x00")
        file.write_bytes(content[:at] + element + content[at:])
    return folder


ITEM, ITEM_END, END = b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0\0\0\0\0", b"\xfe\xff\xdd\xe0\0\0\0\0"
UNDEFINED = b"\xff\xff\xff\xff"


def test_open_ct_walks_over_an_unknown_element_of_undefined_length(tmp_path):
    # its inside is implicit VR (CP-246)
    inner = b"\x29\x00\x11\x10" + (8).to_bytes(4, "little") + b"ABCDEFGH"
    element = b"\x29\x00\x10\x10UN\0\0" + UNDEFINED + ITEM + UNDEFINED + inner + ITEM_END + END
    folder = insert(write(tmp_path / "series", lambda k, slice_: None), element)
    np.testing.assert_array_equal(open_ct(folder).read(), VOXELS)


def test_open_ct_walks_over_an_icon_of_encapsulated_fragments(tmp_path):
    jpeg = bytes(range(256)) * 2
    fragments = ITEM + b"\0\0\0\0" + ITEM + len(jpeg).to_bytes(4, "little") + jpeg
    pixels = b"\xe0\x7f\x10\x00OB\0\0" + UNDEFINED + fragments + END
    element = b"\x88\x00\x00\x02SQ\0\0" + UNDEFINED + ITEM + UNDEFINED + pixels + ITEM_END + END
    folder = write(tmp_path / "series", lambda k, slice_: None)
    np.testing.assert_array_equal(open_ct(insert(folder, element)).read(), VOXELS)


def test_open_ct_refuses_a_deflated_slice(tmp_path):
    folder = write(tmp_path / "series", lambda k, slice_: None)
    for file in folder.iterdir():
        slice_ = pydicom.dcmread(file)
        slice_.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        slice_.save_as(file)
    refused(folder, "a.dcm is deflated as a whole: export the scan anew, without deflating it")


def test_open_ct_repeats_no_value_that_pydicom_does_not_know(tmp_path, caplog, capfd):
    folder = write(tmp_path / "series", everywhere(SpecificCharacterSet=CANARY, StudyDate=CANARY))
    caplog.clear()
    capfd.readouterr()
    np.testing.assert_array_equal(open_ct(folder).read(), VOXELS)
    assert CANARY not in caplog.text
    assert CANARY not in "".join(capfd.readouterr())


def test_read_file_keeps_the_named_tags_alone(tmp_path):
    file = read_file(write(tmp_path / "series", lambda k, slice_: None) / "a.dcm")
    assert file is not None
    assert set(file.values) <= set(TAGS)
    assert CANARY not in repr(file)


# --- rounded geometry -----------------------------------------------------------------------------------------------


def test_open_ct_tolerates_positions_rounded_to_one_decimal(tmp_path):
    # 0.625 mm apart from 30.0 on: 30.625 is 30.6, 31.25 is 31.2, 31.875 is 31.9
    z = (30, 30.6, 31.2, 31.9)
    ct = open_ct(write(tmp_path / "series", lambda k, s: setattr(s, "ImagePositionPatient", [10, 20, z[k]])))
    np.testing.assert_allclose(ct.geometry.spacing_zyx, (1.9 / 3, 0.75, 0.5), atol=1e-9)


def test_open_ct_tolerates_direction_cosines_of_three_digits(tmp_path):
    # 10 degrees about z
    change = everywhere(ImageOrientationPatient=["0.985", "0.174", "0", "-0.174", "0.985", "0"])
    geometry = open_ct(write(tmp_path / "series", change)).geometry
    axes = geometry.affine[:3, :3] / geometry.spacing_zyx
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(geometry.spacing_zyx, (2, 0.75, 0.5), atol=1e-12)
