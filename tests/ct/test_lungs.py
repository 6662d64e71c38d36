"""Lungs of the phantom, of what scanners leave in view, and masks from files."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from luna16_monai.ct.lungs import LungMask, find_cut_lungs, find_lungs, grown, lung_mask, read_lung_mask, whole_scan
from luna16_monai.geometry.grid import Geometry
from luna16_monai.store.reading import Store
from luna16_monai.tables.luna16 import read_annotations

SPACING = 2.0


def grid(shape, spacing=SPACING, origin=(0.0, 0.0, 0.0)):
    return Geometry.from_axes(shape[::-1], [spacing] * 3, origin, np.eye(3))


def chest(shape=(40, 120, 160)):
    """A body of 200 x 280 mm in open air; two lungs of 120 x 80 mm, centres 45 mm left and right of the middle."""
    hu = np.full(shape, -1000, np.int16)
    _, y, x = np.indices(shape) * SPACING
    hu[((y - 120) / 100) ** 2 + ((x - 160) / 140) ** 2 < 1] = 40
    for middle in (115, 205):
        hu[((y - 120) / 60) ** 2 + ((x - middle) / 38) ** 2 < 1] = -850
    return hu


def point(z, y, x):
    return np.array([[x, y, z]], float)


def test_lung_mask_takes_both_lungs_and_nothing_outside():
    hu = chest()
    mask = lung_mask(hu, grid(hu.shape))
    for middle in (115, 205):
        assert mask.contains(point(40, 120, middle)).all()
    for outside in (point(40, 120, 2), point(40, 5, 160), point(40, 120, 40)):
        assert not mask.contains(outside).any()
    air = int((hu == -850).sum())
    assert air <= mask.voxels.sum() <= 1.35 * air


def test_lung_mask_fills_a_mass_and_keeps_a_nodule_at_the_wall():
    hu = chest()
    z, y, x = np.indices(hu.shape) * SPACING
    hu[(z - 40) ** 2 + (y - 120) ** 2 + (x - 205) ** 2 < 15**2] = 40
    # its middle lies 3 mm inside the outline, which is at x = 243
    hu[(z - 40) ** 2 + (y - 120) ** 2 + (x - 240) ** 2 < 6**2] = 40
    mask = lung_mask(hu, grid(hu.shape))
    assert mask.contains(point(40, 120, 205)).all()
    assert mask.contains(point(40, 120, 240)).all()


def test_lung_mask_leaves_out_a_table_and_its_mattress():
    hu = chest((40, 150, 160))
    hu[:, 118:120, 20:140] = 60  # the table's upper shell
    hu[:, 120:135, 20:140] = -900
    hu[:, 135:137, 20:140] = 60
    mask = lung_mask(hu, grid(hu.shape))
    assert mask.contains(point(40, 120, 115)).all()
    assert not mask.contains(point(40, 254, 160)).any()


def test_lung_mask_leaves_out_air_between_arm_and_body():
    hu = chest()
    hu[:, 50:70, 2:5] = 40  # an arm; between it and the body is open air
    assert not lung_mask(hu, grid(hu.shape)).contains(point(40, 120, 14)).any()


def test_lung_mask_in_a_circular_field_of_view():
    hu = chest()
    _, y, x = np.indices(hu.shape) * SPACING
    hu[(y - 120) ** 2 + (x - 160) ** 2 > 118**2] = -3024
    mask = lung_mask(hu, grid(hu.shape))
    for middle in (115, 205):
        assert mask.contains(point(40, 120, middle)).all()
    assert not mask.contains(point(40, 10, 10)).any()


def test_lung_mask_of_half_a_chest_that_the_border_cuts():
    hu = np.ascontiguousarray(chest()[:, 20:100, 30:57])  # up to x = 112: through the middle of a lung
    mask = lung_mask(hu, grid(hu.shape))
    assert mask.contains(point(40, 80, 46)).all()


@pytest.mark.parametrize("slices", [1, 2, 6])
def test_lung_mask_of_a_few_slices(slices):
    hu = np.repeat(chest()[20:21], slices, 0)
    mask = lung_mask(hu, grid(hu.shape))
    assert mask.voxels.shape == hu.shape
    # 1 slice of 2 mm holds 2 x 14 ml, below the smallest piece, and is eroded away
    assert mask.contains(point(0, 120, 115)).all() == (slices > 2)


@pytest.mark.parametrize("hu", [-1000, 40, -3024, -850])
def test_lung_mask_of_no_lungs_is_empty_or_of_air_alone(hu):
    flat = np.full((20, 60, 60), hu, np.int16)
    mask = lung_mask(flat, grid(flat.shape))
    assert mask.voxels.any() == (hu == -850)  # a box inside a lung is lung


def test_lung_mask_holds_every_nodule_of_the_phantom(phantom_dir, store_dir):
    nodules, store = read_annotations(phantom_dir), Store(store_dir)
    seen = 0
    for uid in store.series_uids:
        volume = store.volume(uid)
        mask = lung_mask(np.asarray(volume.voxels[:]), volume.geometry)
        rows = nodules.select(nodules.series_codes([uid]) == 0)
        # these scans are 70 mm wide: a mass of 27 mm in a corner, whose middle is left out by 2.5 mm, is no test of it
        points = rows.points_xyz[rows.values < 20]
        assert mask.contains(points).all()
        assert mask.voxels.mean() < 0.7
        seen += len(points)
    assert seen == (nodules.values < 20).sum() > 15


def test_box_of_a_mask_on_a_finer_flipped_grid():
    voxels = np.zeros((10, 10, 10), bool)
    voxels[2:4, 3:5, 6] = True  # from 3 to 7, 5 to 9 and 11 to 13 mm along z, y, x
    mask = LungMask(voxels, grid(voxels.shape))
    # 1 mm voxels whose x axis runs the other way, from 20 mm down: index x = 20 - mm
    fine = Geometry.from_axes((40, 20, 20), [1, 1, 1], (20, 0, 0), np.diag([-1.0, 1.0, 1.0]))
    low, high = mask.box(fine, 0.0)
    assert low.tolist() == [3, 5, 7]
    assert high.tolist() == [8, 10, 10]
    low, high = mask.box(fine, 4.0)
    assert low.tolist() == [0, 1, 3]
    assert high.tolist() == [12, 14, 14]


def write(path, array, spacing=SPACING, origin=(0.0, 0.0, 0.0)):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([spacing] * 3)
    image.SetOrigin(origin)
    sitk.WriteImage(image, str(path))


@pytest.mark.parametrize("suffix", [".mhd", ".mha", ".nii.gz"])
def test_read_lung_mask_by_file_and_by_folder_of_another_grid(tmp_path, suffix):
    values = np.zeros((4, 6, 8), np.uint8)
    values[1, 2, 3] = 1  # covers 4 to 12, 8... of 8 mm voxels: middle at (8, 16, 24) mm
    write(tmp_path / f"1.2.3{suffix}", values, 8.0)
    ct = grid((20, 30, 40))
    for path in (tmp_path, tmp_path / f"1.2.3{suffix}"):
        mask = read_lung_mask(path, ct, "1.2.3")
        inside = [point(8, 16, 24), point(11, 19, 27), point(5, 13, 21)]
        assert all(mask.contains(one).all() for one in inside)
        assert not mask.contains(point(13, 16, 24)).any()


def test_read_lung_mask_leaves_out_the_trachea_of_luna16(tmp_path):
    values = np.zeros((2, 2, 4), np.uint8)
    values[..., 1], values[..., 2], values[..., 3] = 3, 4, 5
    write(tmp_path / "a.mha", values)
    assert read_lung_mask(tmp_path / "a.mha", grid((2, 2, 4)), "a").voxels[0, 0].tolist() == [False, True, True, False]


def test_read_lung_mask_refuses_what_does_not_fit(tmp_path):
    ct = grid((10, 10, 10))
    write(tmp_path / "empty.mha", np.zeros((10, 10, 10), np.uint8))
    write(tmp_path / "beside.mha", np.ones((10, 10, 10), np.uint8), origin=(500.0, 0.0, 0.0))
    with pytest.raises(ValueError, match=r"empty\.mha is empty"):
        read_lung_mask(tmp_path / "empty.mha", ct, "a")
    with pytest.raises(ValueError, match="lies beside series a"):
        read_lung_mask(tmp_path / "beside.mha", ct, "a")
    with pytest.raises(FileNotFoundError, match="no lung mask"):
        read_lung_mask(tmp_path, ct, "a")


def test_whole_scan_leaves_nothing_out():
    mask = whole_scan(grid((3, 4, 5)))
    assert mask.contains([[0, 0, 0], [8, 6, 4]]).all()
    assert not mask.contains([[40, 0, 0]]).any()


def test_find_lungs_takes_enclosed_air_with_its_vessels():
    hu = np.full((20, 60, 60), -1000.0)
    hu[:, 5:55, 5:55] = 40  # a body in air
    hu[:, 10:50, 10:24] = hu[:, 10:50, 36:50] = -850  # two lungs
    hu[:, 20:23, 15:18] = 40  # a vessel through all slices
    hu[3:5, 12:14, 29:31] = -900  # a bubble between them, too small
    lungs = find_lungs(hu, np.ones(3))
    expected = np.zeros(hu.shape, bool)
    expected[:, 10:50, 10:24] = expected[:, 10:50, 36:50] = True
    assert lungs[2:-2][expected[2:-2]].all()
    assert not lungs[:, :9].any()
    assert (lungs & ~expected).sum() < 0.02 * expected.sum()


def test_find_lungs_is_empty_where_the_body_encloses_no_air():
    hu = np.full((4, 30, 30), 40.0)
    assert not find_lungs(hu, np.ones(3)).any()
    hu[:, :, :10] = -1000  # air that reaches the picture's edge
    assert not find_lungs(hu, np.ones(3)).any()


def test_a_grown_mask_holds_what_lies_nearer_than_the_radius():
    mask = np.zeros((9, 9, 9), bool)
    mask[4, 4, 4] = True
    # voxels of 2 x 1 x 1 mm; squared distances in mm² of 4, 4 + 4 and 4 + 4, against those of 9, 16 and 4 + 4 + 4
    near = grown(mask, np.array([2.0, 1.0, 1.0]), 3.0)
    assert near[3, 4, 4] and near[3, 4, 6] and near[4, 2, 2]
    assert not near[4, 4, 7] and not near[2, 4, 4] and not near[3, 2, 2]


@pytest.mark.parametrize("spacing", [(2.5, 2.1, 2.1), (2.0, 2.0, 2.0)])
def test_a_grown_mask_is_that_of_the_distance_transform(spacing):
    mask = np.random.default_rng(0).random((20, 30, 25)) < 0.002
    distance = ndimage.distance_transform_edt(~mask, sampling=spacing)
    assert 0.05 < (distance < 10).mean() < 0.95
    assert np.array_equal(grown(mask, np.array(spacing), 10.0), distance < 10)


def test_find_cut_lungs_finds_the_part_of_a_lung_that_the_border_cuts():
    # tissue around air that goes on beyond the right side, with a vessel of 6 mm in it
    hu = np.full((10, 60, 60), 40.0)
    hu[:, 15:45, 20:] = -850
    hu[:, 27:33, 35:41] = 40
    affine = np.eye(4)
    affine[:3, :3] = np.diag([2.0, 1.0, 1.0])[::-1]
    voxels = Geometry((10, 60, 60), affine)
    assert not find_lungs(hu, np.array([2.0, 1, 1])).any()
    lungs = find_cut_lungs(hu, np.array([2.0, 1, 1]), whole_scan(voxels), voxels)
    assert lungs[:, 15:45, 20:56].all()
    assert not lungs[:, :14].any()
    assert not lungs[:, :, :19].any()
