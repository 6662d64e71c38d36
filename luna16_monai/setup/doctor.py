"""Looking a machine over before the long work: versions, devices, memory, disk, data and store, each with its cure.

Nothing is changed and no voxel is read. A check that fails in itself is a finding like any other, so that one broken
package does not hide what else is wrong; hence packages are imported inside the checks, MONAI not at all (it takes
seconds). What merely could be better is reported and counts as no problem: no GPU, no data yet, no store yet.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from luna16_monai.machine import memory
from luna16_monai.machine.errors import one_line
from luna16_monai.machine.folder_lists import Folders, folder_list, folder_names
from luna16_monai.machine.platforms import total_memory, usable_cores
from luna16_monai.setup.data_checks import GB, Check
from luna16_monai.setup.data_checks import check as _check
from luna16_monai.setup.data_checks import data_folder as _data
from luna16_monai.setup.data_checks import data_sets as _data_sets
from luna16_monai.setup.data_checks import gb as _gb
from luna16_monai.setup.data_checks import name_data_sets as _name_data_sets
from luna16_monai.setup.data_checks import store_folder as _store
from luna16_monai.setup.data_checks import units as _units

PACKAGE = "luna16_monai"
EXTRAS = ("baselines", "dicom", "export", "report", "ray", "tune", "mlflow", "idc")
CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
PROC, SHARED_MEMORY = Path("/proc"), Path("/dev/shm")
GPU_DEVICE = Path("/dev/nvidia0")
LEAST_MEMORY, ENOUGH_MEMORY = 1 * GB, 4 * GB
"""LUNA16's largest CT, 764 slices, takes 0.8 GB in float32, and resampling holds more than one copy of it."""
BATCH, DEFAULT_WORKERS = 64 * 32 * 48 * 48 * 4, 2
"""Bytes of a loader's batch, 64 cutouts in float32, and the loader's workers, as the nodule bundle sets them."""
LEAST_DISK = 1 * GB
LUNA16_DISK = 140 * GB
"""The room that fetching LUNA16 takes: 120 GB unpacked and one archive."""
BUNDLE_WEIGHTS = "models/model.pt"
BUNDLE_FILES = ("configs/metadata.json", "configs/train.yaml", "configs/inference.yaml", BUNDLE_WEIGHTS)


def examine(data: Folders, store: Folders, runs: Path) -> dict[str, Any]:
    """Look over the machine and the folders.

    Args:
        data: LUNA16's layout; of several folders each is looked over, and named in brackets behind the checks' names.
        store: the prepared volumes, of each data folder.
        runs: results.

    Returns:
        JSON-ready: ``ok``, false where a check found a problem, and ``checks``, each with ``name``, ``ok`` (null where
        it is reported but no problem), ``found``, ``problem`` and ``cure`` (null where there is none).
    """
    examinations: list[tuple[str, Callable[[], Iterator[Check]]]] = [
        ("python", _python),
        ("packages", _packages),
        ("gpu", _gpu),
        ("cores", _cores),
        ("memory", _memory),
        ("shared memory", _shared_memory),
        ("bundles", _bundles),
    ]
    folders, stores = folder_list(data), folder_list(store)
    if len(folders) != len(stores) or len(folders) > 1:
        examinations.append(("data sets", lambda: _data_sets(folders, stores)))
    for one, own in zip(folders, stores, strict=False):
        examinations += [
            ("disk", partial(_disk, one, own, runs)),
            ("data", partial(_data, one)),
            ("units", partial(_units, one)),
            ("store", partial(_store, own, one)),
        ]
    checks = [check for name, examination in examinations for check in _guarded(name, examination)]
    if len(folders) > 1:
        _name_data_sets(checks, folder_names(folders))
    return {"ok": all(check["ok"] is not False for check in checks), "checks": checks}


def told(result: dict[str, Any]) -> str:
    """Return the result of `examine` as a table for the terminal, each problem with its cure below it."""
    checks = result["checks"]
    wrong = sum(check["ok"] is False for check in checks)
    lines = ["doctor: all is well" if not wrong else f"doctor: {wrong} problem{'s' if wrong > 1 else ''}"]
    width = max((len(check["name"]) for check in checks), default=0)
    for check in checks:
        mark = {True: "ok", None: "note", False: "PROBLEM"}[check["ok"]]
        texts = [_words(check["found"]), check["problem"], check["cure"] and f"cure: {check['cure']}"]
        first, *more = [text for text in texts if text] or [""]
        lines.append(f"  {check['name']:<{width}}  {mark:<7}  {first}".rstrip())
        lines += [" " * (width + 13) + text for text in more]
    return "\n".join(lines)


def _words(found: Any) -> str:
    if isinstance(found, dict):
        return ", ".join(f"{name} {_words(value)}" for name, value in found.items() if value not in (None, []))
    return ", ".join(map(str, found)) if isinstance(found, list) else "" if found is None else str(found)


def _guarded(name: str, examination: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    try:
        yield from examination()
    except ImportError as error:
        yield _check(name, False, None, f"cannot be looked at: {one_line(error)}", _install(PACKAGE))
    except Exception as error:  # whatever a broken installation, disk or file raises
        problem, colon, cure = one_line(error).rpartition(": ")
        yield _check(name, False, None, *((problem, cure) if colon else (cure, None)))


# --- the installation -----------------------------------------------------------------------------------------------


def _python() -> Iterator[Check]:
    from packaging.specifiers import SpecifierSet

    found, wanted = platform.python_version(), importlib.metadata.metadata(PACKAGE)["Requires-Python"]
    if SpecifierSet(wanted).contains(found, prereleases=True):
        yield _check("python", True, found)
    else:
        yield _check("python", False, found, f"{wanted} is needed", "make a new environment with such a Python")


def _packages() -> Iterator[Check]:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    pins = _pins()
    requirements = [Requirement(line) for line in importlib.metadata.requires(PACKAGE) or ()]
    for extra in ("", *EXTRAS):
        absent = []
        for requirement in requirements:
            marker = requirement.marker
            if (extra and marker is None) or not (marker is None or marker.evaluate({"extra": extra})):
                continue
            check = _package(requirement, pins.get(canonicalize_name(requirement.name)))
            if extra and check["found"] is None:
                absent.append(requirement.name)
            else:
                yield check
        if absent:
            without = f"not installed: {', '.join(absent)}"
            yield _check(f"extra {extra}", None, None, without, _install(f"'{PACKAGE}[{extra}]'"))


def _package(requirement: Any, pin: str | None) -> Check:
    from packaging.version import Version

    name, needed = requirement.name, f"{requirement.name}{requirement.specifier}"
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return _check(name, False, None, f"not installed, {needed} is needed", _install(f"'{needed}'"))
    if not requirement.specifier.contains(found, prereleases=True):
        return _check(name, False, found, f"{needed} is needed", _install(f"'{needed}'"))
    if pin is not None and Version(found).public != Version(pin).public:
        return _check(name, None, found, f"{pin} is what was tested", _install(name))
    return _check(name, True, found)


def _install(what: str) -> str:
    return f"python -m pip install {'--constraint constraints.txt ' if CONSTRAINTS.is_file() else ''}{what}"


def _pins() -> dict[str, str]:
    """Return the tested versions by package; none where the source tree is not there."""
    from packaging.utils import canonicalize_name

    if not CONSTRAINTS.is_file():
        return {}
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    pairs = [line.partition("#")[0].strip().split("==") for line in lines]
    return {canonicalize_name(pair[0]): pair[1] for pair in pairs if len(pair) == 2}


# --- the machine ----------------------------------------------------------------------------------------------------


def _gpu() -> Iterator[Check]:
    import torch

    version_file = PROC / "driver" / "nvidia" / "version"
    match = re.search(r"\s(\d+\.\d[\d.]*)\s", version_file.read_text()) if version_file.is_file() else None
    found = {"torch's CUDA": torch.version.cuda or "none", "driver": match[1] if match else None}
    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
        names = [f"{device.name} ({_gb(device.total_memory)})" for device in devices]
        try:
            torch.ones(1, device="cuda").add(1).item()
        except RuntimeError as error:
            cure = "install a torch that is built for this GPU: https://pytorch.org/get-started"
            yield _check("gpu", False, {"devices": names, **found}, one_line(error), cure)
        else:
            yield _check("gpu", True, {"devices": names, **found})
    elif match is None:
        yield _check("gpu", None, found, "no GPU: all works without, training takes longer")
    elif torch.version.cuda is None:
        cure = "install the CUDA build of torch: https://pytorch.org/get-started"
        yield _check("gpu", None, found, "the machine has a driver, but this torch is built without CUDA", cure)
    elif not GPU_DEVICE.exists():
        yield _check("gpu", None, found, "the machine has a driver, but no GPU is passed in", "docker run --gpus all")
    else:
        cure = f"update the driver to one for CUDA {torch.version.cuda}, and look at CUDA_VISIBLE_DEVICES"
        yield _check("gpu", False, found, "torch cannot use the GPU", cure)


def _cores() -> Iterator[Check]:
    yield _check("cores", True, {"usable": usable_cores(), "of": os.cpu_count()})


def _memory() -> Iterator[Check]:
    if not (PROC / "meminfo").is_file():  # macOS
        yield _check("memory", None, {"of": _gb(total_memory())}, f"what is free is not told here: no {PROC}")
        return
    available, total, limit = memory.left()
    found = {"available": _gb(available), "of": _gb(total)}
    if limit is not None and limit < total:
        found["container's limit"] = _gb(limit)
    cure = "close other programs or raise the container's limit (docker run --memory); prepare with --workers 1, train "
    cure += "with --cache_gb 0 --num_workers 0"
    if available < LEAST_MEMORY:
        yield _check("memory", False, found, f"less than {_gb(LEAST_MEMORY)} is available", cure)
    elif available < ENOUGH_MEMORY:
        yield _check("memory", None, found, "the largest CTs may not fit, nor the default cache of 4 GB", cure)
    else:
        yield _check("memory", True, found)


def _shared_memory() -> Iterator[Check]:
    if not SHARED_MEMORY.is_dir():
        yield _check("shared memory", None, None, f"there is no {SHARED_MEMORY}", "train with --num_workers 0")
        return
    size = shutil.disk_usage(SHARED_MEMORY).total
    # each worker has two batches on the way, and the trainer holds two at most
    fitting = max(size // BATCH - 2, 0) // 2
    found = {"size": _gb(size), "loader workers that it is enough for": fitting}
    if fitting < DEFAULT_WORKERS:
        problem = f"too little for a loader's {DEFAULT_WORKERS} workers, which hand their batches over in it"
        cure = "docker run --shm-size=1g (or --ipc=host), or train with --num_workers 0"
        yield _check("shared memory", False, found, problem, cure)
    else:
        yield _check("shared memory", True, found)


def _disk(data: Path, store: Path, runs: Path) -> Iterator[Check]:
    for what, folder in (("data", data), ("store", store), ("runs", runs)):
        name = f"disk for {what}"
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
        free = shutil.disk_usage(there).free
        found = f"{_gb(free)} free"
        if folder.exists() and not folder.is_dir():
            yield _check(name, False, found, f"{folder} is a file", f"name a folder for the {what}")
        elif what != "data" and not os.access(there, os.W_OK):
            cure = f"name another folder, or change its permissions (in Docker, those of the {what} folder's owner)"
            yield _check(name, False, found, f"{there} cannot be written to", cure)
        elif what != "data" and free < LEAST_DISK:
            yield _check(name, False, found, f"less than {_gb(LEAST_DISK)}", "free some space, or name another disk's")
        elif what == "data" and not folder.exists() and free < LUNA16_DISK:
            cure = "name a folder on a larger disk, or fetch a part with luna16 download --subset"
            yield _check(name, None, found, f"fetching all of LUNA16 takes {_gb(LUNA16_DISK)}", cure)
        else:
            yield _check(name, True, found)


def _bundles() -> Iterator[Check]:
    from luna16_monai.bundle.folders import BUNDLES, bundle_dir

    for name in BUNDLES:
        folder = bundle_dir(name)
        missing = [file for file in BUNDLE_FILES if not (folder / file).is_file()]
        if missing:
            yield _check(f"bundle {name}", False, None, f"no {', '.join(missing)}", _install(PACKAGE))
            continue
        metadata = json.loads((folder / "configs" / "metadata.json").read_text(encoding="utf-8"))
        weights = (folder / BUNDLE_WEIGHTS).stat().st_size
        yield _check(f"bundle {name}", True, {"version": metadata["version"], "weights": f"{weights / 1e6:.1f} MB"})
