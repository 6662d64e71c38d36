"""What ``luna16 doctor`` looks at in data folders and stores.

No voxel is read but of one CT. MONAI is not imported, for which one would wait for seconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

Check = dict[str, Any]
GB = 10**9
LUNA16_SERIES = 888
"""LUNA16's scans."""
TABLES = {
    "candidates_V2": "there is nothing to train on",
    "annotations": "nothing can be scored",
    "annotations_excluded": "scores are not comparable with LUNA16's",
    "seriesuids": "CTs that are missing cannot be told",
}


def check(name: str, ok: bool | None, found: Any, problem: str | None = None, cure: str | None = None) -> Check:
    """Return a check as `doctor.examine` lists it."""
    return {"name": name, "ok": ok, "found": found, "problem": problem, "cure": cure}


def data_sets(folders: Sequence[Path], stores: Sequence[Path]) -> Iterator[Check]:
    """Look whether each data folder has a store, and each series one data folder."""
    found = {"data folders": len(folders), "stores": len(stores)}
    if len(folders) != len(stores):
        cure = "name one store for each data folder, in the same order (LUNA16_DATA and LUNA16_STORE)"
        yield check("data sets", False, found, "not as many stores as data folders", cure)
        return
    owner: dict[str, Path] = {}
    for folder in folders:
        for uid, path in series_of(folder).items():
            if uid in owner:
                problem = f"series {uid} is in two of them, as {owner[uid]} and {path}"
                yield check("data sets", False, found, problem, "take it out of one of them")
                return
            owner[uid] = path
    yield check("data sets", True, found)


def name_data_sets(checks: Sequence[Check], names: Sequence[str]) -> None:
    """Put the name of its data set behind the name of each check that is made of every one."""
    begun = -1
    for one in checks:
        if one["name"] == "disk for data":
            begun += 1
        if begun >= 0:
            one["name"] = f"{one['name']} ({names[begun]})"


def data_folder(data: Path) -> Iterator[Check]:
    """Look at the CTs and tables of a data folder."""
    from luna16_monai.ct.folders import SUBSETS, subset_folder
    from luna16_monai.ct.metaimage import open_metaimage
    from luna16_monai.tables.luna16 import find_table, read_series_list

    if not data.is_dir():
        cure = "luna16 phantom; or luna16 download, and set LUNA16_DATA to its folder"
        yield check("data", None, None, f"there is no {data}", cure)
        return
    found = series_of(data)
    listed = read_series_list(data)
    missing = sorted(set(listed or ()) - set(found))
    subsets = sorted({path.parent.name for path in found.values()} & set(map(subset_folder, SUBSETS)))
    summary = {
        "series": len(found),
        "listed": None if listed is None else len(listed),
        "subsets": [name.removeprefix("subset") for name in subsets],
    }
    for path in found.values():
        if path.suffix.lower() in (".mhd", ".mha"):
            open_metaimage(path, data, allow_symlinks=True)
    fetch = f"luna16 download --output {data}, which fetches what is missing"
    if not found:
        yield check("data", None, summary, f"no CT in {data}", f"{fetch}; or luna16 phantom")
    elif missing:
        problem = f"{len(missing)} listed series have no CT, the first is {missing[0]}"
        yield check("data", None, summary, problem, f"{fetch}; or luna16 prepare --allow-missing")
    else:
        hint = (
            None if len(found) == LUNA16_SERIES else f"LUNA16 has {LUNA16_SERIES} series: this is a part, or other data"
        )
        yield check("data", True, summary, hint)
    there = {name: find_table(data, name) for name in TABLES}
    there["candidates_V2"] = there["candidates_V2"] or find_table(data, "candidates")
    names = [path.name for path in there.values() if path is not None]
    absent = [name for name, path in there.items() if path is None]
    if not absent:
        yield check("tables", True, names)
    else:
        # without candidates nothing goes on; without the others something does
        ok = False if found and "candidates_V2" in absent else None
        problem = "; ".join(f"no {name}.csv, so {TABLES[name]}" for name in absent)
        yield check("tables", ok, names, problem, f"luna16 download --output {data}")


def units(data: Path) -> Iterator[Check]:
    """Read one CT, the first, and tell whether it can be in HU."""
    from luna16_monai.ct.opening import open_ct
    from luna16_monai.ct.units import doubt_of_units

    for path in list(series_of(data).values())[:1]:
        ct = open_ct(path, data, allow_symlinks=True)
        doubt = doubt_of_units(ct.read(), ct.name)
        yield check("units", None if doubt else True, ct.name, doubt)


def series_of(data: Path) -> dict[str, Path]:
    """Return the CTs of a data folder by series, by their names."""
    from luna16_monai.ct.folders import SUBSETS, subset_folder
    from luna16_monai.ct.opening import has_ct_suffix, series_uid

    found = {}
    for folder in (data, *(data / subset_folder(number) for number in SUBSETS)):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if has_ct_suffix(path) and not path.name.startswith("."):
                found[series_uid(path)] = path
    return found


def store_folder(store: Path, data: Path) -> Iterator[Check]:
    """Look at a store, and whether it holds what the data folder does."""
    from luna16_monai.store.index import FORMAT, INDEX

    again = f"luna16 prepare --data {data} --store {store}"
    if not (store / INDEX).is_file():
        yield check("store", None, None, f"no store in {store}", again)
        return
    try:
        index = json.loads((store / INDEX).read_text(encoding="utf-8"))
        same, complete, spacing = index["format"] == FORMAT, index["complete"], index["spacing_zyx"]
        sizes = {uid: int(entry["bytes"]) for uid, entry in index["series"].items()}
        missing = list(index["missing"])
    except (ValueError, LookupError, TypeError, AttributeError):
        problem = f"{store / INDEX} is damaged, or of another version"
        yield check("store", False, None, problem, f"remove it, then {again}")
        return
    found = {"series": len(sizes), "missing": len(missing), "spacing_zyx": spacing or "native"}
    paths = {uid: store / f"{uid}.b2nd" for uid in sizes}
    wrong = [path for uid, path in paths.items() if not path.is_file() or path.stat().st_size != sizes[uid]]
    new = sorted(set(series_of(data)) - set(sizes)) if data.is_dir() else []
    if not same:
        problem = f"it is of format {index['format']}, this version reads {FORMAT}"
        yield check("store", False, found, problem, f"name another --store and make it anew: {again}")
    elif wrong:
        problem = f"{len(wrong)} files are missing or cut off, the first is {wrong[0].name}"
        yield check("store", False, found, problem, again)
    elif not complete:
        yield check("store", None, found, "it is not finished", f"{again}, which goes on where it stopped")
    elif new:
        yield check("store", None, found, f"{len(new)} CTs of {data} are not in it, the first is {new[0]}", again)
    else:
        yield check("store", True, found)


def gb(size: float) -> str:
    """Return a size in bytes as text."""
    return f"{size / GB:.1f} GB"
