"""Small CTs in every format that is read, whose voxels and free texts are known."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from scipy.spatial.transform import Rotation

from luna16_monai.ct.opening import open_ct

VOXELS = (np.arange(120, dtype=np.int16) * 17 - 1024).reshape(4, 5, 6)
ROTATED = Rotation.from_euler("xyz", (10, 20, 30), degrees=True).as_matrix()
UID = "1.2.826.0.1.3680043.8.498.1"
CANARY = "CANARY"


def write_ct(path: Path, voxels: np.ndarray = VOXELS, direction: Any = None) -> Path:
    """A small CT at (10, 20, 30) mm with spacing (0.5, 0.75, 2) mm in (x, y, z), written by SimpleITK."""
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing((0.5, 0.75, 2))
    image.SetOrigin((10, 20, 30))
    image.SetDirection(np.ravel(np.eye(3) if direction is None else direction).astype(float))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


def write_nifti(path: Path, data: np.ndarray | None = None, affine: Any = None, **header: Any) -> Path:
    """A .nii file by nibabel, whose data and affine are in (x, y, z) and RAS; fields of its header are set afterwards.

    (nibabel itself would put right what a test wants wrong.)
    """
    image = nib.Nifti1Image(
        VOXELS.T if data is None else data, np.diag([0.5, 0.75, 2, 1]) if affine is None else affine
    )
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    if header:
        content = path.read_bytes()
        changed = nib.Nifti1Header(content[:348], check=False)
        for key, value in header.items():
            changed[key] = value
        path.write_bytes(changed.binaryblock + content[348:])
    return path


def write_dicom(folder: Path, change: Callable[[int, FileDataset], object] = lambda k, slice_: None) -> Path:
    """A series of four slices, 2 mm apart, written in scrambled order of names; `change` gets at each slice.

    Every free text of the header holds the canary.
    """
    folder.mkdir(exist_ok=True)
    for k, name in enumerate(("c.dcm", "a.dcm", "d.dcm", "b.dcm")):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = (
            CTImageStorage,
            pydicom.uid.UID(f"{UID}.{k + 1}"),
        )
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_ = FileDataset(str(folder / name), {}, file_meta=meta, preamble=b"\0" * 128)
        slice_.SOPClassUID, slice_.SOPInstanceUID, slice_.SeriesInstanceUID = CTImageStorage, f"{UID}.{k + 1}", UID
        slice_.Modality = "CT"
        for key in ("PatientName", "PatientID", "InstitutionName", "StudyDescription", "SeriesDescription", "StudyID"):
            setattr(slice_, key, CANARY)
        slice_.ImagePositionPatient, slice_.ImageOrientationPatient = [10, 20, 30 + 2 * k], [1, 0, 0, 0, 1, 0]
        slice_.PixelSpacing = [0.75, 0.5]  # between rows (y), then between columns (x)
        slice_.RescaleSlope, slice_.RescaleIntercept = 1, -1024
        slice_.Rows, slice_.Columns, slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 5, 6, 1, "MONOCHROME2"
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 12, 11, 0
        slice_.PixelData = (VOXELS[k] + 1024).astype(np.uint16).tobytes()
        change(k, slice_)
        slice_.save_as(folder / name)
    return folder


def refused(path: Path, message: str, error: type[Exception] = ValueError) -> None:
    """The CT is refused with one line, which holds the message, no absolute path and no patient's name."""
    with pytest.raises(error, match=re.escape(message)) as caught:
        open_ct(path).read()
    text = str(caught.value)
    assert "\n" not in text
    assert str(path.parent) not in text
    assert CANARY not in text


def place(*z_mm: float) -> Callable[[int, FileDataset], object]:
    return lambda k, slice_: setattr(slice_, "ImagePositionPatient", [10, 20, z_mm[k]])
