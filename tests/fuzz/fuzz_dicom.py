"""Fuzz the reading of DICOM slices with atheris; not a test of pytest, see README.md beside it.

An input is one file of a folder; the other is a whole slice, 2 mm above where the seed lies. Whatever the input holds,
the check may only refuse it, in one line that names no folder, leave it out, or give two slices; what it gives has as
many voxels as the bytes can hold, and a slice that is not compressed holds what pydicom reads from the same file.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["luna16_monai", "pydicom"]):
    import pydicom

    from luna16_monai.ct.dicom_pixels import read_slice
    from luna16_monai.ct.dicom_slice import as_slice, is_plain, read_file
    from luna16_monai.ct.opening import open_ct

import numpy as np

SEED = Path(__file__).parent / "corpus" / "dicom" / "slice.dcm"
FOLDER = Path(tempfile.mkdtemp(prefix="fuzz"))
warnings.simplefilter("ignore")


def other_slice() -> None:
    """The second file of the folder, which stays as it is."""
    slice_ = pydicom.dcmread(SEED)
    x, y, z = slice_.ImagePositionPatient
    slice_.ImagePositionPatient = [x, y, z + 2]
    slice_.save_as(FOLDER / "other.dcm")


def check(data: bytes) -> None:
    """Offer one input as a slice."""
    path = FOLDER / "slice.dcm"
    path.write_bytes(data)
    try:
        file = read_file(path)
        if file is None:
            return
        one = as_slice(file)
        hu = read_slice(one)
    except ValueError as error:
        refused(error)
    else:
        assert hu.shape == one.shape_yx
        if is_plain(file):
            assert hu.size <= len(data)
            compare(path, one.rescale, hu)
    try:
        ct = open_ct(FOLDER)
        assert ct.read().shape == ct.geometry.shape_zyx
    except ValueError as error:
        refused(error)


def refused(error: ValueError) -> None:
    """A refusal is one line, and names no folder."""
    message = str(error)
    assert "\n" not in message and str(FOLDER) not in message, message


def compare(path: Path, rescale: tuple[float, float], hu: np.ndarray) -> None:
    """The same HU as pydicom's own decoder gives, where it gives any."""
    try:
        slice_ = pydicom.dcmread(path, force=True)
        stored = slice_.pixel_array
        if slice_.BitsStored != slice_.BitsAllocated or "PixelPaddingValue" in slice_:
            return
    except Exception:  # whatever pydicom refuses
        return
    assert np.allclose(hu, stored * rescale[0] + rescale[1], rtol=1e-6)


if __name__ == "__main__":
    other_slice()
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
