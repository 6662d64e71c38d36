"""The bank of real nodules: voxels and readers' masks of each, in one ``.npz`` file.

| array | content |
|---|---|
| ``vox`` | all boxes one after the other, (z, y, x), HU, int16 |
| ``mask`` | likewise how many of 4 readers call the voxel nodule, uint8 |
| ``shape`` | (n, 3), voxels of each box |
| ``spacing`` | (n, 3), mm in (z, y, x) |
| ``diam`` | (n,), mm of the sphere of equal volume |
| ``patient`` | (n,), text: whose nodule it is |
| ``blur`` | (n, 3), standard deviation of the CT's blur along (z, y, x), mm; may be absent, or nan where unknown |
| ``texture calcification malignancy`` | (n,), mean ratings of the readers; may be absent, or nan where unknown |
| ``use`` | (n,), text; may be absent. Boxes whose ``use`` is not ``train`` are left out when the file is read |

Other arrays are allowed, and not read.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luna16_monai.machine.files import atomic_write

Floats = NDArray[np.floating]

READERS = 4
"""The mask's value where every reader calls the voxel nodule."""
TRAIN = "train"
_NEEDED = ("vox", "mask", "shape", "spacing", "diam", "patient")
_RATINGS = ("texture", "calcification", "malignancy")
_SPACING_MM = (0.2, 6.0)
_HU = (-32768, 32767)


@dataclass(frozen=True, eq=False)
class RealNodule:
    """One nodule in its box.

    Attributes:
        hu: int16 (z, y, x).
        share: share of the readers who call the voxel nodule, float32 (z, y, x), 0 on the outermost voxels.
        spacing_zyx: mm, (3,).
        diameter_mm: of the sphere of equal volume.
        patient: whose it is.
        blur_zyx_mm: standard deviation of the CT's blur, (3,); nan where unknown.
        texture, calcification, malignancy: mean ratings of the readers; nan where there is none.
    """

    hu: NDArray[np.int16]
    share: NDArray[np.float32]
    spacing_zyx: Floats
    diameter_mm: float
    patient: str
    blur_zyx_mm: Floats
    texture: float = float("nan")
    calcification: float = float("nan")
    malignancy: float = float("nan")

    @property
    def kind(self) -> str:
        """What it looks like, as far as the ratings say: texture 1 is ground glass, 5 solid; calcification 6 none."""
        if self.texture < 2.5:
            return "ground-glass"
        if self.texture < 4.2:
            return "part-solid"
        return "calcified" if self.calcification < 5.2 else "solid"


@dataclass(frozen=True, eq=False)
class NoduleBank:
    """Nodules that may be trained on.

    Attributes:
        nodules: in the order of the file.
        number: of each one in the file, (n,).
        sha256: of the file.
    """

    nodules: tuple[RealNodule, ...]
    number: NDArray[np.intp]
    sha256: str

    @property
    def patient(self) -> NDArray[np.str_]:
        """The patient of each nodule, (n,)."""
        return np.array([nodule.patient for nodule in self.nodules])

    def ratings(self) -> dict[int, tuple[int, ...]]:
        """Return the mean rating of malignancy, rounded, as the one rating of each nodule that has one, by number."""
        rated = ((i, nodule.malignancy) for i, nodule in enumerate(self.nodules))
        return {i: (int(np.clip(round(mean), 1, 5)),) for i, mean in rated if np.isfinite(mean)}


def read_bank(path: Path) -> NoduleBank:
    """Read a bank, and check it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no such file, an array is missing or does not fit, a value is out of range, a mask is empty or
            reaches the edge of its box, or no nodule may be trained on.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no bank of nodules {path}: make one with luna16 bank")
    try:
        with np.load(path, allow_pickle=False) as file:
            if missing := [name for name in _NEEDED if name not in file.files]:
                raise ValueError(f"it lacks {', '.join(missing)}")
            arrays = {name: file[name] for name in (*_NEEDED, "blur", "use", *_RATINGS) if name in file.files}
        nodules, number = _nodules(arrays)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"bank of nodules {path}: {error}: make it anew with luna16 bank") from error
    if not nodules:
        raise ValueError(f"bank of nodules {path}: none of its nodules has use = {TRAIN}: name another bank")
    return NoduleBank(tuple(nodules), np.array(number, np.intp), hashlib.sha256(path.read_bytes()).hexdigest())


def _nodules(arrays: dict[str, NDArray[Any]]) -> tuple[list[RealNodule], list[int]]:
    """Return the nodules that may be trained on, and their numbers, of checked arrays."""
    shape = arrays["shape"]
    if shape.ndim != 2 or shape.shape[1:] != (3,) or shape.dtype.kind not in "iu" or (shape < 3).any():
        raise ValueError(f"shape is {shape.dtype} {shape.shape}, where (n, 3) whole numbers from 3 on are needed")
    count, ends = len(shape), np.cumsum(shape.astype(np.int64).prod(1))
    total = int(ends[-1]) if count else 0
    for name in ("vox", "mask"):
        if arrays[name].shape != (total,) or arrays[name].dtype.kind not in "iu":
            raise ValueError(
                f"{name} is {arrays[name].dtype} {arrays[name].shape}, where the shapes need whole numbers ({total},)"
            )
    wanted = {"spacing": (count, 3), "blur": (count, 3), "diam": (count,), "patient": (count,), "use": (count,)}
    for name, size in (wanted | dict.fromkeys(_RATINGS, (count,))).items():
        if name in arrays and arrays[name].shape != size:
            raise ValueError(f"{name} has the shape {arrays[name].shape}, where {size} fits the {count} boxes")
    use = arrays.get("use", np.full(count, TRAIN))
    starts = ends - shape.astype(np.int64).prod(1)
    kept = np.flatnonzero(use == TRAIN).tolist()
    return [_nodule(arrays, row, slice(int(starts[row]), int(ends[row]))) for row in kept], kept


def _nodule(arrays: dict[str, NDArray[Any]], row: int, part: slice) -> RealNodule:
    size = tuple(arrays["shape"][row].tolist())
    mask, hu = arrays["mask"][part].reshape(size), arrays["vox"][part].reshape(size)
    spacing, diameter = arrays["spacing"][row].astype(float), float(arrays["diam"][row])
    low, high = _SPACING_MM
    if not ((spacing >= low) & (spacing <= high)).all():
        raise ValueError(f"box {row}: spacing {spacing.tolist()} mm, where {low} to {high} are needed")
    if not 0 < diameter < 200:
        raise ValueError(f"box {row}: diam {diameter} mm, where a number above 0 and below 200 is needed")
    if hu.min() < _HU[0] or hu.max() > _HU[1]:
        raise ValueError(f"box {row}: {hu.min()} to {hu.max()} HU, where {_HU[0]} to {_HU[1]} are needed")
    if mask.max() > READERS or mask.max() < READERS / 2:
        raise ValueError(f"box {row}: mask reaches {mask.max()}, where {READERS} is every reader, and 2 the least")
    if leaves_box(mask):
        raise ValueError(f"box {row}: the mask reaches the edge of its box of {size} voxels: cut a larger box")
    ratings = {name: float(arrays[name][row]) for name in _RATINGS if name in arrays}
    return RealNodule(
        hu=hu.astype(np.int16),
        share=(mask / READERS).astype(np.float32),
        spacing_zyx=spacing,
        diameter_mm=diameter,
        patient=str(arrays["patient"][row]),
        blur_zyx_mm=arrays["blur"][row].astype(float) if "blur" in arrays else np.full(3, np.nan),
        **ratings,
    )


def leaves_box(mask: NDArray[Any]) -> bool:
    """Return whether a mask has a voxel on a face of its box."""
    return any(mask.take(end, axis).any() for axis in range(3) for end in (0, -1))


def write_bank(path: Path, nodules: Sequence[RealNodule]) -> None:
    """Write a bank that `read_bank` reads; the file is whole or absent.

    Raises:
        ValueError: there is no nodule.
    """
    if not nodules:
        raise ValueError(f"{path}: there is no nodule to write: name CTs with nodules")
    arrays: dict[str, Any] = {
        "vox": np.concatenate([n.hu.ravel() for n in nodules]),
        "mask": np.concatenate([np.rint(n.share * READERS).astype(np.uint8).ravel() for n in nodules]),
        "shape": np.array([n.hu.shape for n in nodules], np.int32),
        "spacing": np.array([n.spacing_zyx for n in nodules], np.float32),
        "diam": np.array([n.diameter_mm for n in nodules], np.float32),
        "patient": np.array([n.patient for n in nodules]),
        "blur": np.array([n.blur_zyx_mm for n in nodules], np.float32),
        **{name: np.array([getattr(n, name) for n in nodules], np.float32) for name in _RATINGS},
    }
    with atomic_write(path) as stream:
        np.savez_compressed(stream, **arrays)
