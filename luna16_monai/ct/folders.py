"""Find the CTs of a LUNA16 data folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from luna16_monai.ct.opening import CT, SUFFIXES, ct_suffix, find_series, open_ct, series_uid

# LUNA16's lung masks bear the names of the CTs.
_MASKS = "seg-lungs"


SUBSETS = range(10)
"""The numbers of LUNA16's official subsets."""


def subset_folder(number: int) -> str:
    """Return the name of the folder that holds one of LUNA16's subsets; its zip bears the same."""
    return f"subset{number}"


@dataclass(frozen=True)
class CTFile:
    """A scan found on the disk.

    Attributes:
        series_uid: its series.
        path: its file.
        subset: LUNA16's subset, None outside subset0 to subset9.
        ct: the scan as it was opened, so that it need not be opened again; it counts in no comparison.
    """

    series_uid: str
    path: Path
    subset: int | None
    ct: CT = field(compare=False, repr=False)


def find_cts(data_dir: Path, allow_symlinks: bool = False) -> list[CTFile]:
    """List the CTs of a data folder, sorted by series, each with its header and file sizes checked.

    They lie in LUNA16's subset0 to subset9 (or, as some archives unpack, in subset0/subset0), or in the folder itself.
    LUNA16's lung masks (seg-lungs-LUNA16), which bear the names of the CTs, are never taken; nor are files whose name
    starts with a dot.

    Args:
        data_dir: the data folder.
        allow_symlinks: whether symbolic links may leave it.

    Raises:
        FileNotFoundError: no such folder, no CT in it, or a .mhd whose data file is missing.
        ValueError: a series found twice, a link that leaves the folder, or a header that can't be trusted.
    """
    if not data_dir.is_dir():
        raise FileNotFoundError(f"data folder {str(data_dir)!r} does not exist: give the folder that holds the CTs")
    if data_dir.resolve().name.lower().startswith(_MASKS):
        raise ValueError(f"{data_dir.name} holds LUNA16's lung masks, not CTs: give the folder above it")
    found: dict[str, CTFile] = {}
    for folder, subset in places(data_dir):
        for path in sorted(folder.iterdir()):
            if not ct_suffix(path) or path.name.startswith("."):
                continue
            uid = series_uid(path, allow_symlinks)
            if uid in found:
                a, b = (p.relative_to(data_dir).as_posix() for p in (found[uid].path, path))
                raise ValueError(f"series {uid} is there twice, as {a} and {b}: remove one of them")
            found[uid] = CTFile(uid, path, subset, open_ct(path, data_dir, allow_symlinks))
    if not found:
        raise FileNotFoundError(_nothing_found(data_dir))
    return [found[uid] for uid in sorted(found)]


def refuse_shared_series(data_dirs: Sequence[Path], allow_symlinks: bool = False) -> None:
    """Check that no series has a CT in two data folders.

    Raises:
        ValueError: names the series and both of its files; or as `find_cts`.
    """
    found: dict[str, CTFile] = {}
    for data_dir in data_dirs:
        for one in find_cts(data_dir, allow_symlinks):
            if one.series_uid in found:
                raise ValueError(
                    f"series {one.series_uid} is in two data folders, as {found[one.series_uid].path} and {one.path}: "
                    "take it out of one of them, or leave that folder out"
                )
            found[one.series_uid] = one


def holds_ct_files(folder: Path) -> bool:
    """Return whether a folder holds files that are CTs by their names, or LUNA16's subsets."""
    return any(
        (ct_suffix(path) and not path.name.startswith(".")) or path.name in map(subset_folder, SUBSETS)
        for path in folder.iterdir()
    )


def cts_at(path: Path, allow_symlinks: bool) -> tuple[list[tuple[str, CT]], dict[str, ValueError]]:
    """Open the series at a path: a file, folders of DICOM files, a folder of CT files, or LUNA16's layout.

    Args:
        path: the file or folder.
        allow_symlinks: whether symbolic links may leave it.

    Returns:
        Each series with its CT; and of several DICOM series below a folder those that cannot be read, by their error:
        it may be that nobody asks for them.

    Raises:
        FileNotFoundError: the path does not exist, or a folder holds no CT.
        ValueError: a header that cannot be trusted.
    """
    if not path.exists():
        raise FileNotFoundError(f"no CT {path}: name an .mhd, .mha, .nii(.gz) or .nrrd file, or a folder")
    if path.is_dir() and holds_ct_files(path):
        return [(ct.series_uid, ct.ct) for ct in find_cts(path, allow_symlinks)], {}
    if not path.is_dir():
        return [(series_uid(path), open_ct(path, allow_symlinks=allow_symlinks))], {}
    found, wrong = [], {}
    folders = find_series(path, allow_symlinks)
    for uid, folder in folders.items():
        try:
            found.append((uid, open_ct(folder, allow_symlinks=allow_symlinks)))
        except ValueError as error:
            if len(folders) == 1:
                raise
            wrong[uid] = error
    return found, wrong


def places(data_dir: Path) -> list[tuple[Path, int | None]]:
    """Return the folders in which CTs may lie, and the subset of each; a subset may lie in a folder of its own name."""
    places: list[tuple[Path, int | None]] = [(data_dir, None)]
    for k in SUBSETS:
        name = subset_folder(k)
        places += [(path, k) for path in (data_dir / name, data_dir / name / name) if path.is_dir()]
    return places


def _nothing_found(data_dir: Path) -> str:
    if any(data_dir.glob("subset[0-9].zip")):
        return f"no CT in {data_dir.name!r}, but zip files: unzip subset0.zip to subset9.zip there"
    return (
        f"no CT in {data_dir.name!r}: expected subset0 to subset9 with <series_uid>.mhd and its .raw or .zraw, or CTs "
        f"({', '.join(SUFFIXES)}) in the folder itself"
    )
