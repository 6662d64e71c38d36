"""Fuzz the check of MetaImage headers with atheris; not a test of pytest, see README.md beside it.

An input is one file: a header and, after the line of ElementDataFile, the voxels. It is offered as a .mha, and cut in
two as a .mhd with its data file. Whatever it holds, the check may only refuse it, in one line that names no folder,
or give as many voxels as the bytes can hold; and what it gives must be what SimpleITK reads from the same files.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["luna16_monai"]):
    from luna16_monai.ct.checks import MAX_INFLATION
    from luna16_monai.ct.metaimage import MetaImage, open_metaimage

import numpy as np
import SimpleITK as sitk

FOLDER = Path(tempfile.mkdtemp(prefix="fuzz"))
LAST_LINE = re.compile(rb"^ElementDataFile[ \t]*=[^\r\n]*\r?\n", re.MULTILINE)
SIZE = re.compile(rb"^[ \t]*CompressedDataSize[ \t]*=", re.MULTILINE)


def check(data: bytes) -> None:
    """Offer one input in both forms."""
    found = LAST_LINE.search(data)
    end = found.end() if found else len(data)
    write("scan.mha", data)
    write("scan.mhd", data[:end])
    write("scan.raw", data[end:])
    for name, held in (("scan.mha", len(data)), ("scan.mhd", len(data) - end)):
        try:
            image = open_metaimage(FOLDER / name)
            voxels = image.read()
        except (ValueError, FileNotFoundError) as error:
            message = str(error)
            assert "\n" not in message and str(FOLDER) not in message, message
            continue
        assert voxels.nbytes <= held * MAX_INFLATION
        # without that key ITK reads a compressed .mha wrong, and says so on its error output only
        if not image.compressed or SIZE.search(data[:end]):
            compare(image, voxels)


def write(name: str, content: bytes) -> None:
    """A plain write: nothing is left over from the input before."""
    (FOLDER / name).write_bytes(content)


def compare(image: MetaImage, voxels: np.ndarray) -> None:
    """The same voxels at the same place as SimpleITK reads, where it reads anything."""
    try:
        theirs = sitk.ReadImage(str(image.path), imageIO="MetaImageIO")
    except RuntimeError:
        return
    array = sitk.GetArrayViewFromImage(theirs)
    assert array.shape == voxels.shape
    assert np.array_equal(array, voxels, equal_nan=voxels.dtype.kind == "f")
    shape = np.array(voxels.shape)
    for index_zyx in (np.zeros(3), shape - 1):
        place = theirs.TransformContinuousIndexToPhysicalPoint(index_zyx[::-1].tolist())
        size = 1 + np.abs(theirs.GetOrigin()).max() + np.abs(shape[::-1] * theirs.GetSpacing()).max()
        assert np.allclose(image.geometry.world_from_voxel(index_zyx), place, rtol=0, atol=1e-3 * size)


if __name__ == "__main__":
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
