"""MetaImage headers and data files: good ones read as SimpleITK reads them, bad ones refused with a cure."""

from __future__ import annotations

import os
import re
import tempfile
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from luna16_monai.ct.metaimage import MAX_HEADER_BYTES, open_metaimage

# 2 x 3 x 4 voxels (z, y, x), 48 bytes as int16.
VOXELS = np.arange(-1000, -976, dtype=np.int16).reshape(2, 3, 4)
HEADER = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1",
    "Offset": "-198.100006 -195 -335.209991",
    "CenterOfRotation": "0 0 0",
    "AnatomicalOrientation": "RAI",
    "ElementSpacing": "0.7617 0.7617 2.5",
    "DimSize": "4 3 2",
    "ElementType": "MET_SHORT",
    "ElementDataFile": "scan.raw",
}


def header_text(**changes: str | None) -> str:
    """LUNA16's header with some values changed, or left out where None."""
    values = {key: value for key, value in (HEADER | changes).items() if value is not None}
    data_file = values.pop("ElementDataFile", None)  # which ends a header
    lines = [f"{key} = {value}\n" for key, value in values.items()]
    return "".join(lines + ([] if data_file is None else [f"ElementDataFile = {data_file}\n"]))


def write_mhd(folder: Path, data: bytes = VOXELS.tobytes(), **changes: str | None) -> Path:
    """A scan in a folder: scan.mhd, and scan.raw or scan.zraw."""
    path = folder / "scan.mhd"
    path.write_text(header_text(**changes), encoding="utf-8")
    (folder / (changes.get("ElementDataFile") or "scan.raw")).write_bytes(data)
    return path


def write_zraw(folder: Path, data: bytes, **changes: str | None) -> Path:
    return write_mhd(folder, data, **{"CompressedData": "True", "ElementDataFile": "scan.zraw"} | changes)


def refused(path: Path, message: str, error: type[Exception] = ValueError) -> None:
    with pytest.raises(error, match=re.escape(message)) as caught:
        open_metaimage(path).read()
    assert "\n" not in str(caught.value)
    assert str(path.parent) not in str(caught.value)


@pytest.mark.parametrize("suffix", [".mhd", ".mha"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("angles", [(0, 0, 0), (0, 0, 180), (10, 20, 30)])
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_open_metaimage_reads_what_simpleitk_writes(tmp_path, suffix, compressed, angles, dtype):
    image = sitk.GetImageFromArray(np.arange(24).reshape(2, 3, 4).astype(dtype))
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((-198.100006, -195, -335.209991))
    image.SetDirection(Rotation.from_euler("xyz", angles, degrees=True).as_matrix().ravel())
    path = tmp_path / f"ä scan #1{suffix}"
    sitk.WriteImage(image, str(path), compressed)
    ours = open_metaimage(path)
    voxels = ours.read()
    assert voxels.dtype == dtype
    assert voxels.flags.writeable
    np.testing.assert_array_equal(voxels, np.arange(24).reshape(2, 3, 4))
    expected = [image.TransformContinuousIndexToPhysicalPoint(p) for p in ((0, 0, 0), (3, 2, 1), (1.5, 0.25, -4))]
    np.testing.assert_allclose(
        ours.geometry.world_from_voxel([(0, 0, 0), (1, 2, 3), (-4, 0.25, 1.5)]), expected, atol=1e-9
    )


def test_open_metaimage_reads_what_simpleitk_has_rewritten_twice(tmp_path):
    path = write_mhd(tmp_path)
    for _ in range(2):
        sitk.WriteImage(sitk.ReadImage(str(path)), str(path))
    assert "ITK_original_spacing" in path.read_text(encoding="utf-8")
    np.testing.assert_array_equal(open_metaimage(path).read(), VOXELS)


def test_open_metaimage_places_a_flipped_scan(tmp_path):
    path = write_mhd(tmp_path, TransformMatrix="-1 0 0 0 -1 0 0 0 1", Offset="100 50 -300", ElementSpacing="0.5 0.5 2")
    geometry = open_metaimage(path).geometry
    assert geometry.shape_zyx == (2, 3, 4)
    # Index (z, y, x) = (1, 2, 3): x = 100 - 3 * 0.5, y = 50 - 2 * 0.5, z = -300 + 2.
    np.testing.assert_array_equal(geometry.world_from_voxel((1, 2, 3)), (98.5, 49, -298))


def test_open_metaimage_lists_the_axes_one_after_the_other(tmp_path):
    # The array's x axis points to world +y, its y axis to world -x.
    path = write_mhd(tmp_path, TransformMatrix="0 1 0 -1 0 0 0 0 1", Offset="10 20 30", ElementSpacing="0.5 0.75 2")
    # x = 10 - 2 * 0.75, y = 20 + 3 * 0.5, z = 30 + 2.
    np.testing.assert_array_equal(open_metaimage(path).geometry.world_from_voxel((1, 2, 3)), (8.5, 21.5, 32))
    assert sitk.ReadImage(str(path)).TransformIndexToPhysicalPoint((3, 2, 1)) == (8.5, 21.5, 32)


def test_open_metaimage_without_a_matrix_is_not_turned(tmp_path):
    path = write_mhd(tmp_path, TransformMatrix=None, Offset="10 20 30", ElementSpacing="0.5 0.75 2")
    np.testing.assert_array_equal(open_metaimage(path).geometry.world_from_voxel((1, 2, 3)), (11.5, 21.5, 32))


@pytest.mark.parametrize("key", ["BinaryDataByteOrderMSB", "ElementByteOrderMSB"])
def test_open_metaimage_turns_big_endian_voxels_round(tmp_path, key):
    path = write_mhd(tmp_path, VOXELS.astype(">i2").tobytes(), **{"BinaryDataByteOrderMSB": None, key: "True"})
    voxels = open_metaimage(path).read()
    np.testing.assert_array_equal(voxels, VOXELS)
    assert voxels.dtype.isnative


def test_open_metaimage_reads_windows_line_ends(tmp_path):
    path = write_mhd(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    np.testing.assert_array_equal(open_metaimage(path).read(), VOXELS)
    local = tmp_path / "scan.mha"
    local.write_bytes(header_text(ElementDataFile="LOCAL").replace("\n", "\r\n").encode() + VOXELS.tobytes())
    np.testing.assert_array_equal(open_metaimage(local).read(), VOXELS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ObjectType": "Tube"}, "scan.mhd line 1: ObjectType 'Tube' is not supported: expected Image"),
        ({"NDims": "4"}, "scan.mhd line 2: NDims '4' is not supported: expected 3"),
        ({"BinaryData": "False"}, "scan.mhd line 3: BinaryData 'False' is not supported: expected True"),
        ({"CompressedData": "perhaps"}, "scan.mhd line 5: CompressedData 'perhaps' is neither True nor False"),
        ({"TransformMatrix": "1 0 0 0 1 0 0 0"}, "line 6: TransformMatrix '1 0 0 0 1 0 0 0' is not 9 finite numbers"),
        ({"TransformMatrix": "1 0 0 0 1 0 0 0 0"}, "is no rotation or flip"),
        ({"TransformMatrix": "1 0 0 1 0 0 0 0 1"}, "is no rotation or flip"),
        ({"TransformMatrix": "2 0 0 0 1 0 0 0 1"}, "is no rotation or flip"),
        ({"TransformMatrix": "1 0.1 0 0 1 0 0 0 1"}, "is no rotation or flip"),
        ({"TransformMatrix": "1e300 0 0 0 1 0 0 0 1"}, "is no rotation or flip"),
        ({"TransformMatrix": "nan 0 0 0 1 0 0 0 1"}, "TransformMatrix 'nan 0 0 0 1 0 0 0 1' is not 9 finite numbers"),
        ({"Offset": "0 inf 0"}, "Offset '0 inf 0' is not 3 finite numbers"),
        ({"Offset": "0 1_0 0"}, "Offset '0 1_0 0' is not 3 finite numbers"),
        ({"Offset": "0 1e999 0"}, "Offset '0 1e999 0' is not 3 finite numbers"),
        ({"Offset": None}, "scan.mhd: Offset is missing: this is no complete MetaImage header"),
        ({"ElementSpacing": "nan 1 1"}, "scan.mhd line 10: ElementSpacing 'nan 1 1' is not 3 finite numbers"),
        ({"ElementSpacing": "0.7 0 2"}, "scan.mhd: ElementSpacing [0.7, 0.0, 2.0] mm must not be 0"),
        ({"ElementSpacing": "1e-320 1 1"}, "scan.mhd: spacing [1.0, 1.0, 0.0] mm (z, y, x): it must be above 0"),
        ({"ElementSpacing": None}, "scan.mhd: ElementSpacing is missing"),
        ({"DimSize": "4 3"}, "scan.mhd line 11: DimSize '4 3' is not 3 positive whole numbers"),
        ({"DimSize": "4 3 0"}, "DimSize '4 3 0' is not 3 positive whole numbers"),
        ({"DimSize": "4 -3 2"}, "DimSize '4 -3 2' is not 3 positive whole numbers"),
        ({"DimSize": "4 3 ٢"}, "is not 3 positive whole numbers"),
        ({"DimSize": "4 3 2.0"}, "is not 3 positive whole numbers"),
        ({"DimSize": "4 3 " + "9" * 5000}, "is not 3 positive whole numbers"),
        ({"DimSize": "4 3 3"}, "scan.raw is too short: 48 bytes, its header says 72 (DimSize 4 3 3, MET_SHORT)"),
        ({"DimSize": "4 3 1"}, "scan.raw is too long: 48 bytes, its header says 24 (DimSize 4 3 1, MET_SHORT)"),
        ({"DimSize": "10000 10000 10000"}, "scan.mhd asks for 1000000000000 voxels, the limit is 2147483648"),
        ({"ElementType": "MET_STRING"}, "line 12: ElementType 'MET_STRING' is not supported: expected MET_CHAR or"),
        ({"ElementType": "MET_LONG_LONG"}, "scan.raw is too short: 48 bytes, its header says 192"),
        ({"BinaryData": "false"}, "BinaryData 'false' is not supported: expected True"),
        ({"ElementType": "MET_FLOAT"}, "scan.raw is too short: 48 bytes, its header says 96"),
        ({"ElementNumberOfChannels": "3"}, "ElementNumberOfChannels '3' is not supported: expected 1"),
        ({"HeaderSize": "12"}, "HeaderSize '12' is not supported: expected 0 or -1"),
        ({"DistanceUnits": "cm"}, "DistanceUnits 'cm' is not supported: expected mm"),
        ({"Orientation": "0 1 0 1 0 0 0 0 1"}, "scan.mhd line 13: key 'Orientation' is not read, and would change"),
        ({"ElementToIntensityFunctionOffset": "-1024"}, "key 'ElementToIntensityFunctionOffset' is not read"),
        ({"offset": "0 0 0"}, "key 'offset' is not read, and would change the voxels or their place"),
        # ITK takes the colon for the equals sign, and so reads a key that seems to be another one
        ({"CompressedData :": "True"}, "key 'CompressedData :' is not read, and would change the voxels"),
        ({"PatientName\x07": "x"}, "scan.mhd line 13 is not of the form 'Key = Value'"),
        ({"Comment": "a\x00b"}, "scan.mhd line 13 is not of the form 'Key = Value'"),
        ({"Comment": "a\tb\x07"}, "scan.mhd line 13 is not of the form 'Key = Value'"),
    ],
)
def test_open_metaimage_refuses_a_header_that_lies(tmp_path, changes, message):
    refused(write_mhd(tmp_path, **changes), message)


@pytest.mark.parametrize(
    "name",
    [
        "../scan.raw",
        "/etc/passwd",
        "sub/scan.raw",
        "..\\scan.raw",
        "C:scan.raw",
        "..",
        ".",
        "",
        "LIST",
        "./../scan.raw",
    ],
)
def test_open_metaimage_refuses_a_data_file_that_is_no_plain_name(tmp_path, name):
    path = tmp_path / "scan.mhd"
    path.write_text(header_text(ElementDataFile=name))
    refused(path, f"scan.mhd: ElementDataFile {name!r} must be the plain name of one file beside the header")


def test_open_metaimage_refuses_a_mha_that_names_another_file(tmp_path):
    path = tmp_path / "scan.mha"
    path.write_text(header_text(ElementDataFile="scan.raw"))
    refused(path, "ElementDataFile 'scan.raw': a .mha holds its voxels itself (LOCAL), a .mhd names one file")


def test_open_metaimage_reads_a_mhd_that_holds_its_voxels_itself(tmp_path):
    path = tmp_path / "scan.mhd"
    path.write_bytes(header_text(ElementDataFile="LOCAL").encode() + VOXELS.tobytes())
    np.testing.assert_array_equal(open_metaimage(path).read(), VOXELS)


@pytest.mark.parametrize("size", ["-1", "0"])
def test_open_metaimage_takes_no_header_for_voxels(tmp_path, size):
    path = tmp_path / "scan.mhd"
    # ITK takes the header's own last 48 bytes for the voxels, with -1
    path.write_text(header_text(HeaderSize=size, ElementDataFile="LOCAL").rstrip("\n"))
    refused(path, "scan.mhd ends with its header, without voxels: ")


@pytest.mark.parametrize("name", ["./scan.raw", "50%.raw", "s%03d.raw"])
def test_open_metaimage_reads_a_data_file_of_any_plain_name(tmp_path, name):
    path = tmp_path / "scan.mhd"
    path.write_text(header_text(ElementDataFile=name))
    (tmp_path / name).write_bytes(VOXELS.tobytes())
    np.testing.assert_array_equal(open_metaimage(path).read(), VOXELS)


@pytest.mark.parametrize(
    ("kind", "dtype"), [("MET_UINT", "u4"), ("MET_LONG", "i4"), ("MET_ULONG", "u4"), ("MET_LONG_LONG", "i8"),
                        ("MET_ULONG_LONG", "u8")],
)  # fmt: skip
def test_open_metaimage_reads_whole_numbers_of_every_width_as_itk_does(tmp_path, kind, dtype):
    voxels = np.arange(24).reshape(2, 3, 4).astype(dtype)
    path = write_mhd(tmp_path, ElementType=kind)
    (tmp_path / "scan.raw").write_bytes(voxels.tobytes())
    np.testing.assert_array_equal(open_metaimage(path).read(), voxels)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), voxels)


def test_open_metaimage_flips_an_axis_of_negative_spacing_as_itk_does(tmp_path):
    path = write_mhd(tmp_path, ElementSpacing="0.7 -0.7 2", Offset="1 2 3")
    geometry, itk = open_metaimage(path).geometry, sitk.ReadImage(str(path))
    # index (z, y, x) = (1, 2, 3): 3 * 0.7 along x, 2 * 0.7 back along y, 2 along z
    np.testing.assert_allclose(geometry.world_from_voxel((1, 2, 3)), (3.1, 0.6, 5))
    np.testing.assert_allclose(itk.TransformIndexToPhysicalPoint((3, 2, 1)), (3.1, 0.6, 5))


def test_open_metaimage_skips_what_lies_before_the_voxels_where_the_header_says_so(tmp_path):
    path = write_mhd(tmp_path, HeaderSize="-1")
    (tmp_path / "scan.raw").write_bytes(b"junk" * 5 + VOXELS.tobytes())
    np.testing.assert_array_equal(open_metaimage(path).read(), VOXELS)
    (tmp_path / "scan.raw").write_bytes(VOXELS.tobytes()[:-2])
    refused(path, "scan.raw is too short: 46 bytes, its header says 48")


def test_open_metaimage_puts_directions_of_three_digits_at_right_angles(tmp_path):
    # 10 degrees about z: cos 0.985, sin 0.174 rounded, whose squares sum to 1.0005
    path = write_mhd(tmp_path, TransformMatrix="0.985 0.174 0 -0.174 0.985 0 0 0 1")
    direction = open_metaimage(path).geometry.affine[:3, 2::-1] / (0.7617, 0.7617, 2.5)
    np.testing.assert_allclose(direction.T @ direction, np.eye(3), atol=1e-12)
    # the nearest: both divided by sqrt(0.985 ** 2 + 0.174 ** 2) = 1.000250
    np.testing.assert_allclose(direction[:2, 0], (0.984753, 0.173956), atol=1e-6)


def test_open_metaimage_takes_a_byte_order_mark_and_metadata_of_any_name(tmp_path):
    path = write_mhd(tmp_path, bitpix="16", BinaryData="true")
    text = "\ufeff0010|0010 = CANARY\nmy note = a b = c\n" + path.read_text(encoding="utf-8")
    path.write_text(text, encoding="utf-8")
    image = open_metaimage(path)
    np.testing.assert_array_equal(image.read(), VOXELS)
    assert "CANARY" not in repr(image)


def test_open_metaimage_refuses_a_key_that_appears_twice(tmp_path):
    path = write_mhd(tmp_path)
    path.write_text("DimSize = 4 3 2\n" + path.read_text(encoding="utf-8"))
    refused(path, "scan.mhd line 12: DimSize appears twice")


def test_open_metaimage_refuses_lines_after_the_last(tmp_path):
    path = write_mhd(tmp_path)
    path.write_text(path.read_text(encoding="utf-8") + "Name = x\n")
    refused(path, "scan.mhd line 14: Name after ElementDataFile, which ends a header")


def test_open_metaimage_does_not_repeat_a_line_that_it_does_not_know(tmp_path):
    path = write_mhd(tmp_path)
    path.write_text("CANARY\n" + path.read_text(encoding="utf-8"))
    with pytest.raises(ValueError, match=r"scan\.mhd line 1 is not of the form") as caught:
        open_metaimage(path)
    assert "CANARY" not in str(caught.value)


def test_open_metaimage_caps_the_header(tmp_path):
    path = write_mhd(tmp_path, Comment="x" * MAX_HEADER_BYTES)
    refused(path, "scan.mhd: a header of more than 16384 bytes: this is no MetaImage header")
    local = tmp_path / "scan.mha"
    local.write_text(header_text(Comment="x" * MAX_HEADER_BYTES, ElementDataFile="LOCAL"))
    refused(local, "scan.mha: no ElementDataFile in the first 16384 bytes: this is no MetaImage file")


def test_open_metaimage_refuses_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "scan.mhd"
    path.write_bytes(b"ObjectType = \xff\xfe")
    refused(path, "scan.mhd: byte 13 is no text: this is no MetaImage header")


def test_open_metaimage_names_what_is_missing(tmp_path):
    refused(tmp_path / "none.mhd", "none.mhd is missing (No such file or directory): check the path", FileNotFoundError)
    path = write_mhd(tmp_path)
    (tmp_path / "scan.raw").unlink()
    message = "scan.raw, the data file of scan.mhd, is missing (No such file or directory): check the path, or fetch it"
    refused(path, message, FileNotFoundError)
    path.write_text(header_text(ElementDataFile="x" * 300))
    refused(path, "is missing (File name too long)", FileNotFoundError)


def test_open_metaimage_refuses_what_is_no_regular_file(tmp_path):
    path = write_mhd(tmp_path)
    (tmp_path / "scan.raw").unlink()
    os.mkfifo(tmp_path / "scan.raw")  # opening a pipe would wait for ever
    refused(path, "scan.raw, the data file of scan.mhd, is no regular file")
    path.unlink()
    path.mkdir()
    refused(path, "scan.mhd is no regular file: give the file of a CT")


def test_open_metaimage_refuses_a_link_out_of_the_data_folder(tmp_path):
    data_dir, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    data_dir.mkdir()
    elsewhere.mkdir()
    (elsewhere / "scan.raw").write_bytes(VOXELS.tobytes())
    path = data_dir / "scan.mhd"
    path.write_text(header_text())
    (data_dir / "scan.raw").symlink_to(elsewhere / "scan.raw")
    message = (
        "scan.raw, the data file of scan.mhd, is reached through a symbolic link that leaves the data folder 'data': "
        "pass --allow-symlinks (allow_symlinks=True) if you trust it"
    )
    refused(path, message)
    np.testing.assert_array_equal(open_metaimage(path, allow_symlinks=True).read(), VOXELS)
    # Both folders in one data folder: nothing leaves it.
    np.testing.assert_array_equal(open_metaimage(path, data_dir=tmp_path).read(), VOXELS)


def test_open_metaimage_refuses_a_header_that_is_a_link_out(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    write_mhd(elsewhere)
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    (data_dir / "scan.mhd").symlink_to(elsewhere / "scan.mhd")
    refused(data_dir / "scan.mhd", "scan.mhd is reached through a symbolic link that leaves the data folder 'data'")


def test_open_metaimage_names_a_file_that_shrank_after_the_check(tmp_path):
    image = open_metaimage(write_mhd(tmp_path))
    (tmp_path / "scan.raw").write_bytes(VOXELS.tobytes()[:-2])
    with pytest.raises(ValueError, match=r"scan\.raw shrank to 23 of 24 voxels: is it in use\?"):
        image.read()


@pytest.mark.parametrize("cut", range(48))
def test_open_metaimage_refuses_every_truncated_raw(tmp_path, cut):
    refused(write_mhd(tmp_path, VOXELS.tobytes()[:cut]), f"scan.raw is too short: {cut} bytes, its header says 48")


def test_open_metaimage_refuses_every_truncated_zraw(tmp_path):
    packed = zlib.compress(VOXELS.tobytes())
    for cut in range(1, len(packed)):
        refused(write_zraw(tmp_path, packed[:cut]), "scan.zraw is too short: it inflates to ")
    refused(write_zraw(tmp_path, b""), "scan.mhd asks for 48 bytes, more than 0 compressed bytes can hold")


def test_open_metaimage_finds_every_flipped_bit_of_a_zraw_that_changes_a_voxel(tmp_path):
    packed = zlib.compress(VOXELS.tobytes())
    unchanged = 0
    for bit in range(8 * len(packed)):
        flipped = bytearray(packed)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            voxels = open_metaimage(write_zraw(tmp_path, bytes(flipped))).read()
        except ValueError:
            continue
        np.testing.assert_array_equal(voxels, VOXELS)
        unchanged += 1
    # Such as the bits of the stream's header that name a window size; nearly every flip is found.
    assert unchanged < 20


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (zlib.compress(VOXELS.tobytes()) + b"x", "scan.zraw is too long: bytes follow the end of the compressed"),
        (zlib.compress(VOXELS.tobytes() + b"x"), "scan.zraw is too long: it inflates to more than the 48 bytes"),
        (zlib.compress(VOXELS.tobytes()[:-1]), "scan.zraw is too short: it inflates to 47 bytes, its header says 48"),
        (VOXELS.tobytes(), "scan.zraw can't be inflated (Error -3"),
        (zlib.compress(VOXELS.tobytes())[:-4] + b"\0\0\0\0", "incorrect data check"),
    ],
)
def test_open_metaimage_refuses_a_zraw_of_another_content(tmp_path, data, message):
    refused(write_zraw(tmp_path, data), message)


def test_open_metaimage_compares_the_compressed_size(tmp_path):
    packed = zlib.compress(VOXELS.tobytes())
    path = write_zraw(tmp_path, packed, CompressedDataSize="1000")
    refused(path, f"scan.zraw is too short: {len(packed)} bytes, its header says 1000")
    # ITK reads so many bytes and no more; what it would leave out must be nothing
    path = write_zraw(tmp_path, packed, CompressedDataSize="12")
    refused(path, f"scan.zraw is too long: {len(packed)} bytes, its header says 12")
    padded = write_zraw(tmp_path, packed + bytes(7), CompressedDataSize=str(len(packed)))
    np.testing.assert_array_equal(open_metaimage(padded).read(), VOXELS)


def test_open_metaimage_allocates_nothing_for_a_header_that_lies(tmp_path):
    # 10^12 voxels; 2^31 voxels in a raw file of 48 bytes; the same out of a zlib stream of 48 bytes.
    hostile = [
        write_mhd(tmp_path, DimSize="10000 10000 10000"),
        write_mhd(tmp_path, DimSize="2048 1024 1024"),
        write_zraw(tmp_path, VOXELS.tobytes(), DimSize="2048 1024 1024"),
    ]
    tracemalloc.start()
    try:
        for path in hostile:
            with pytest.raises(ValueError, match=r"scan\.mhd asks for|scan\.raw is too short"):
                open_metaimage(path).read()
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


# Values near the good ones, so that many headers get past the first check.
_values = st.one_of(
    st.sampled_from([*HEADER.values(), "LOCAL", "MET_UCHAR", "MET_DOUBLE", "True", "0", "-1", "1e300 1 1", "2 2 2"]),
    st.text(max_size=20),
    st.lists(st.floats() | st.integers(), max_size=10).map(lambda numbers: " ".join(map(str, numbers))),
)
_changes = st.dictionaries(st.sampled_from([*HEADER, "HeaderSize", "CompressedDataSize", "Name"]), _values | st.none())


@given(_changes, st.just(VOXELS.tobytes()) | st.binary(max_size=100), st.sampled_from([".mhd", ".mha"]))
@settings(max_examples=300, deadline=None)
def test_open_metaimage_survives_any_header(changes: dict, data: bytes, suffix: str):
    _survives(header_text(**changes).encode("utf-8", "surrogatepass"), data, suffix)


@given(st.binary(max_size=300), st.binary(max_size=100), st.sampled_from([".mhd", ".mha"]))
@settings(deadline=None)
def test_open_metaimage_survives_any_bytes(header: bytes, data: bytes, suffix: str):
    _survives(header, data, suffix)


def _survives(header: bytes, data: bytes, suffix: str) -> None:
    """It reads, or refuses with one line; and what it reads fits into what was given."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"scan{suffix}")
        path.write_bytes(header + (data if suffix == ".mha" else b""))
        Path(folder, "scan.raw").write_bytes(data)
        message, read = "", 0
        try:
            read = open_metaimage(path).read().nbytes
        except (ValueError, FileNotFoundError) as error:
            message = str(error)
        assert "\n" not in message
        assert read <= 1032 * len(data)
