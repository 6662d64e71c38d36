"""CTs through MONAI's LoadImage."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from ct_files import CANARY, ROTATED, VOXELS, write_ct, write_dicom, write_nifti
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, LoadImage, LoadImaged, Spacingd

from luna16_monai.store.reader import CTReader


def test_ct_reader_passes_on_no_dicom_tag(tmp_path):
    image = LoadImage(CTReader)(write_dicom(tmp_path / "series"))
    assert CANARY not in repr(image.meta)
    assert CANARY.encode() not in pickle.dumps(image.meta)


@pytest.mark.parametrize("reader", [CTReader, CTReader(), "luna16_monai.store.reader.CTReader"])
@pytest.mark.parametrize("name", ["scan.mhd", "scan.nii.gz", "series"])
def test_ct_reader_gives_monai_axes_and_a_ras_affine(tmp_path, reader, name):
    path = write_dicom(tmp_path / name) if name == "series" else write_ct(tmp_path / name)
    image = LoadImaged("image", reader=reader)({"image": path})["image"]
    assert isinstance(image, MetaTensor)
    assert image.dtype == torch.float32
    np.testing.assert_array_equal(image.numpy(), VOXELS.T)
    # LPS (10 + 0.5 i, 20 + 0.75 j, 30 + 2 k) is RAS (-10 - 0.5 i, -20 - 0.75 j, 30 + 2 k).
    expected = [[-0.5, 0, 0, -10], [0, -0.75, 0, -20], [0, 0, 2, 30], [0, 0, 0, 1]]
    np.testing.assert_allclose(image.affine.numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(image.meta["original_affine"], expected, atol=1e-6)
    assert image.meta["space"] == "RAS"
    assert tuple(image.meta["spatial_shape"]) == (6, 5, 4)
    assert np.isnan(image.meta["original_channel_dim"])
    assert image.meta["filename_or_obj"] == str(path)


def test_ct_reader_keeps_int16_where_asked(tmp_path):
    image = LoadImage(CTReader, dtype=None)(write_ct(tmp_path / "scan.mhd"))
    assert image.dtype == torch.int16


def test_ct_reader_agrees_with_monais_reader_of_nifti(tmp_path):
    path = write_ct(tmp_path / "scan.nii.gz", direction=ROTATED)
    ours, theirs = LoadImage(CTReader)(path), LoadImage("NibabelReader")(path)
    torch.testing.assert_close(ours.as_tensor(), theirs.as_tensor())
    torch.testing.assert_close(ours.affine, theirs.affine, rtol=0, atol=1e-6)
    assert tuple(ours.meta["spatial_shape"]) == tuple(theirs.meta["spatial_shape"])
    assert np.isnan(theirs.meta["original_channel_dim"])


def test_ct_reader_feeds_a_pipeline(tmp_path):
    # A ramp along x, 1 HU a voxel of 0.5 mm, which runs backwards in the world.
    voxels = np.broadcast_to(np.arange(6, dtype=np.int16), (4, 5, 6)).copy()
    path = write_ct(tmp_path / "scan.mhd", voxels, np.diag([-1, -1, 1]))
    pipeline = Compose(
        [LoadImaged("image", reader=CTReader), EnsureChannelFirstd("image"), Spacingd("image", (0.25, 0.75, 2.0))]
    )
    image = pipeline({"image": path})["image"]
    # 6 voxels of 0.5 mm span 2.5 mm from centre to centre: 11 of 0.25 mm, half a HU apart.
    assert image.shape == (1, 11, 5, 4)
    np.testing.assert_allclose(image[0, :, 2, 2].numpy(), np.arange(11) / 2, atol=1e-3)
    np.testing.assert_allclose(
        image.affine.numpy(), [[0.25, 0, 0, -10], [0, 0.75, 0, -20], [0, 0, 2, 30], [0, 0, 0, 1]]
    )


def test_ct_reader_leaves_no_refused_file_to_the_next_reader(tmp_path):
    shear = [[1, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    path = write_nifti(tmp_path / "scan.nii", affine=shear)
    assert LoadImage("NibabelReader")(path).shape == (6, 5, 4)  # which would have taken it
    with pytest.raises(ValueError, match=r"scan\.nii is sheared"):
        LoadImaged("image", reader=CTReader)({"image": path})


def test_ct_reader_refuses_several_files(tmp_path):
    path = write_ct(tmp_path / "scan.mhd")
    with pytest.raises(ValueError, match="2 paths for one CT: give one file, or one folder of DICOM files"):
        LoadImage(CTReader)([path, path])


def test_ct_reader_passes_on_the_rule_for_links(tmp_path):
    write_ct(tmp_path / "disk" / "scan.mha")
    link = tmp_path / "data" / "scan.mha"
    link.parent.mkdir()
    link.symlink_to(tmp_path / "disk" / "scan.mha")
    with pytest.raises(ValueError, match="leaves the data folder 'data'"):
        LoadImage(CTReader)(link)
    assert LoadImage(CTReader(allow_symlinks=True))(link).shape == (6, 5, 4)
    assert LoadImage(CTReader(data_dir=tmp_path))(link).shape == (6, 5, 4)


def test_ct_reader_knows_its_suffixes(tmp_path):
    reader = CTReader()
    assert reader.verify_suffix("a/scan.mhd")
    assert reader.verify_suffix([tmp_path, "scan.NII.gz"])
    assert not reader.verify_suffix(["scan.mhd", "scan.png"])
