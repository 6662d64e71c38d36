"""Fuzz the reading of NRRD with atheris; not a test of pytest, see README.md beside it.

Whatever an input holds, `open_ct` may only refuse it, in one line that names no folder, or give as many voxels as its
bytes can hold: those that SimpleITK reads, at SimpleITK's place.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["luna16_monai"]):
    from luna16_monai.ct.opening import CT, open_ct

import numpy as np
import SimpleITK as sitk

FOLDER = Path(tempfile.mkdtemp(prefix="fuzz"))
MOST_VOXELS = 1 << 20
INFLATED = 1100
"""How many times its own size gzip can at most inflate to, with something to spare."""


def check(data: bytes) -> None:
    """Offer one input as a CT."""
    path = FOLDER / "scan.nrrd"
    path.write_bytes(data)
    try:
        ct = open_ct(path)
        if np.prod(ct.geometry.shape_zyx) > MOST_VOXELS:
            return
        voxels = ct.read()
    except ValueError as error:
        message = str(error)
        assert "\n" not in message and str(FOLDER) not in message, message
        return
    assert voxels.shape == ct.geometry.shape_zyx
    assert voxels.size <= INFLATED * len(data)
    compare(path, ct, voxels)


def compare(path: Path, ct: CT, voxels: np.ndarray) -> None:
    """The same voxels at the same place as SimpleITK gives, where it gives any."""
    try:
        image = sitk.ReadImage(str(path), imageIO="NrrdImageIO")
        stored = sitk.GetArrayFromImage(image)
    except RuntimeError:
        return  # a file that ITK refuses
    assert stored.shape == voxels.shape
    assert np.array_equal(stored.astype(np.float64), voxels.astype(np.float64))
    sides = np.array(image.GetSize()) - 1
    last = np.array(image.TransformIndexToPhysicalPoint(sides.tolist()))
    size = float(np.abs(np.array(image.GetSpacing()) * (sides + 1)).max())
    ours = ct.geometry.world_from_voxel(sides[::-1])
    # rounded directions are put right, by half a voxel at the most
    assert np.abs(ours - last).max() <= max(image.GetSpacing()) + 1e-6 * (size + np.abs(last).max()), (ours, last)


if __name__ == "__main__":
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
