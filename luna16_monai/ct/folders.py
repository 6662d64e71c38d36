"""Find the CTs of a LUNA16 data folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from luna16_monai.ct.opening import CT, SUFFIXES, _suffix, open_ct, series_uid

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

    They lie in LUNA16's subset0 to subset9, or in the folder itself. LUNA16's lung masks (seg-lungs-LUNA16), which
    bear the names of the CTs, are never taken; nor are files whose name starts with a dot.

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
    folders: list[tuple[Path, int | None]] = [(data_dir, None)]
    folders += [(path, k) for k in SUBSETS if (path := data_dir / subset_folder(k)).is_dir()]
    found: dict[str, CTFile] = {}
    for folder, subset in folders:
        for path in sorted(folder.iterdir()):
            if not _suffix(path) or path.name.startswith("."):
                continue
            uid = series_uid(path, allow_symlinks)
            if uid in found:
                a, b = (p.relative_to(data_dir).as_posix() for p in (found[uid].path, path))
                raise ValueError(f"series {uid} is there twice, as {a} and {b}: remove one of them")
            found[uid] = CTFile(uid, path, subset, open_ct(path, data_dir, allow_symlinks))
    if not found:
        raise FileNotFoundError(_nothing_found(data_dir))
    return [found[uid] for uid in sorted(found)]


def _nothing_found(data_dir: Path) -> str:
    if any(data_dir.glob("subset[0-9].zip")):
        return f"no CT in {data_dir.name!r}, but zip files: unzip subset0.zip to subset9.zip there"
    return (
        f"no CT in {data_dir.name!r}: expected subset0 to subset9 with <series_uid>.mhd and its .raw or .zraw, or CTs "
        f"({', '.join(SUFFIXES)}) in the folder itself"
    )
