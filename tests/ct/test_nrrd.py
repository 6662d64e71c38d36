"""NRRD: the values and places that SimpleITK gives, and what is refused."""

from __future__ import annotations

import gzip
import pickle
import re

import numpy as np
import pytest
import SimpleITK as sitk

from luna16_monai.ct.folders import find_cts
from luna16_monai.ct.nrrd import open_nrrd
from luna16_monai.ct.opening import open_ct, series_uid

VOXELS = np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4) * 100 - 1000
HEADER = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "4 3 2",
    "space directions": "(0.5,0,0) (0,0.75,0) (0,0,2)",
    "kinds": "domain domain domain",
    "endian": "little",
    "encoding": "raw",
    "space origin": "(-10,20,30.5)",
}


def write(folder, content=None, name="scan.nrrd", **changes):
    """The header with other fields, without those that are None, and the voxels."""
    fields = {**HEADER, **{key.replace("_", " "): value for key, value in changes.items()}}
    lines = ["NRRD0004", "# by hand", *(f"{key}: {value}" for key, value in fields.items() if value is not None)]
    path = folder / name
    path.write_bytes(
        "\n".join([*lines, "note:=any", "", ""]).encode() + (VOXELS.tobytes() if content is None else content)
    )
    return path


def refused(path, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        open_ct(path).read()
    assert "\n" not in str(caught.value)
    assert str(path.parent) not in str(caught.value)


def test_open_nrrd_reads_values_and_place(tmp_path):
    ct = open_ct(write(tmp_path))
    np.testing.assert_array_equal(ct.read(), VOXELS)
    # voxel (1, 2, 3): -10 + 3 * 0.5, 20 + 2 * 0.75, 30.5 + 1 * 2
    assert ct.geometry.world_from_voxel([1, 2, 3]).tolist() == [-8.5, 21.5, 32.5]
    assert pickle.loads(pickle.dumps(ct)).read().dtype == np.int16
    assert series_uid(write(tmp_path, name="1.3.6.nrrd")) == "1.3.6"


@pytest.mark.parametrize("note", ["space origin::= (0,0,0)", "sizes:=1 1 1", "a:=type: float", "b:=\tc"])
def test_open_nrrd_takes_a_note_for_no_field(tmp_path, note):
    path = write(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"note:=any", note.encode()))
    ct = open_ct(path)
    np.testing.assert_array_equal(ct.read(), VOXELS)
    assert ct.geometry.world_from_voxel([0, 0, 0]).tolist() == [-10, 20, 30.5]
    assert sitk.ReadImage(str(path)).GetOrigin() == (-10, 20, 30.5)


@pytest.mark.parametrize(
    ("space", "place"),
    [("LPS", [-8.5, 21.5, 32.5]), ("right-anterior-superior", [8.5, -21.5, 32.5]), ("LAS", [-8.5, -21.5, 32.5])],
)
def test_open_nrrd_turns_each_frame_into_lps(tmp_path, space, place):
    assert open_ct(write(tmp_path, space=space)).geometry.world_from_voxel([1, 2, 3]).tolist() == place


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("kind", [sitk.sitkInt16, sitk.sitkUInt16, sitk.sitkInt32, sitk.sitkFloat32, sitk.sitkUInt8])
def test_open_nrrd_gives_what_simpleitk_writes(tmp_path, compress, kind):
    image = sitk.Cast(sitk.GetImageFromArray(VOXELS // 100 + 10), kind)
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((-100.25, 50, -300))
    angle = np.deg2rad(10)
    turn = [np.cos(angle), -np.sin(angle), 0, np.sin(angle), np.cos(angle), 0, 0, 0, -1]
    image.SetDirection(turn)
    path = tmp_path / "scan.nrrd"
    sitk.WriteImage(image, str(path), compress)
    geometry, load = open_nrrd(path)
    np.testing.assert_array_equal(load(), sitk.GetArrayFromImage(image))
    for index in ([0, 0, 0], [1, 2, 3]):
        expected = image.TransformIndexToPhysicalPoint(index[::-1])
        np.testing.assert_allclose(geometry.world_from_voxel(index), expected, atol=1e-9)


def test_open_nrrd_reads_big_endian_gzip_of_several_members(tmp_path):
    content = VOXELS.astype(">i2").tobytes()
    packed = gzip.compress(content[:20]) + gzip.compress(content[20:])
    np.testing.assert_array_equal(open_ct(write(tmp_path, packed, endian="big", encoding="gzip")).read(), VOXELS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_file": "other.raw"}, "scan.nrrd: data file is not read: save it with the voxels in the file itself"),
        ({"byte_skip": "-1"}, "byte skip is not read"),
        ({"line_skip": "3"}, "line skip is not read"),
        ({"space": None}, "space is missing, so its voxels or their place are unknown"),
        ({"space_directions": None}, "space directions is missing"),
        ({"space": "scanner-xyz"}, "space 'scanner-xyz' is not read"),
        ({"space_units": '"cm" "cm" "cm"'}, "are not mm"),
        ({"dimension": "4"}, "scan.nrrd has 4 dimensions"),
        ({"type": "block"}, "type 'block' is not read"),
        ({"encoding": "hex"}, "encoding 'hex' is not read"),
        ({"endian": None}, "endian '' is neither little nor big"),
        ({"sizes": "4 3"}, "sizes '4 3' are not three whole numbers"),
        ({"sizes": "4 -3 2"}, "are not three whole numbers"),
        ({"sizes": "4 3 3"}, "scan.nrrd is too short: 48 bytes of voxels, its header says 72"),
        ({"sizes": "4 3 1"}, "scan.nrrd is too long: 48 bytes of voxels, its header says 24"),
        ({"sizes": "99999 99999 999"}, "asks for 9989800200999 voxels, the limit is"),
        ({"space_directions": "(0.5,0,0) (0,0.75,0)"}, "are not 3 times three numbers"),
        ({"space_directions": "(0.5,0,0) (0,nan,0) (0,0,2)"}, "are not 3 times three numbers"),
        ({"space_directions": "(0.5,0.1,0) (0,0.75,0) (0,0,2)"}, "scan.nrrd is sheared"),
        ({"space_directions": "(0.5,0,0) (0,0,0) (0,0,2)"}, "a space direction has no length"),
        ({"space_origin": "(a,b,c)"}, "space origin '(a,b,c)' are not 1 times three numbers"),
        ({"TYPE": "short"}, "line 12: type appears twice"),
        ({"encoding": "gzip"}, "can't be inflated"),
    ],
)
def test_open_nrrd_refuses(tmp_path, changes, message):
    refused(write(tmp_path, **changes), message)


def test_open_nrrd_refuses_damaged_files(tmp_path):
    packed = gzip.compress(VOXELS.tobytes())
    refused(write(tmp_path, packed[:-9], encoding="gzip"), "scan.nrrd is too short")
    refused(write(tmp_path, packed + b"rubbish", encoding="gzip"), "scan.nrrd is too long")
    flipped = bytearray(packed)
    flipped[-5] ^= 1
    refused(write(tmp_path, bytes(flipped), encoding="gzip"), "can't be inflated")
    path = tmp_path / "scan.nrrd"
    path.write_bytes(b"NRRD0004\ntype: short\n")
    refused(path, "no empty line ends the header")
    path.write_bytes(b"RIFF")
    refused(path, "scan.nrrd is no NRRD file")
    path.write_bytes(b"NRRD0004\nnothing\n\n")
    refused(path, "scan.nrrd line 2 is not of the form 'field: value'")
    # as ITK, which wants the blank
    path.write_bytes(write(tmp_path).read_bytes().replace(b"endian: little", b"endian:little"))
    refused(path, "scan.nrrd line 9 is not of the form 'field: value'")


def test_find_cts_takes_nrrd_and_leaves_slicers_segmentations(tmp_path):
    write(tmp_path, name="a.nrrd")
    (tmp_path / "a.seg.nrrd").write_bytes(b"NRRD0005\n")
    (tmp_path / "a-label.nrrd").write_bytes(b"NRRD0005\n")
    assert [ct.series_uid for ct in find_cts(tmp_path)] == ["a"]
