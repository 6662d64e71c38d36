"""What is wrong with a machine, its folders and its packages is told, each with its cure."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from luna16_monai.bundle import folders
from luna16_monai.machine import memory
from luna16_monai.setup import data_checks, doctor
from luna16_monai.setup.doctor import examine, told

KEYS = ["name", "ok", "found", "problem", "cure"]


def only(checks: Any) -> dict[str, Any]:
    (check,) = checks
    return check


def named(checks: Any, name: str) -> dict[str, Any]:
    return only(check for check in checks if check["name"] == name)


def free(monkeypatch, free: int = 0, total: int = 0) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=free, total=total))


# --- the whole ------------------------------------------------------------------------------------------------------


def test_examine_finds_nothing_wrong_where_nothing_is(phantom_dir, store_dir, tmp_path, monkeypatch, kernel):
    # memory and disks of a machine with room, as others may be full for a moment
    free(monkeypatch, free=2 * 10**11, total=2 * 10**11)
    result = examine(phantom_dir, store_dir, tmp_path / "runs")
    assert [check for check in result["checks"] if check["ok"] is False] == []
    assert result["ok"] is True
    assert json.loads(json.dumps(result)) == result
    assert all(list(check) == KEYS for check in result["checks"])
    data, store = (named(result["checks"], name) for name in ("data", "store"))
    assert (data["ok"], data["found"]) == (True, {"series": 8, "listed": 8, "subsets": list("01234567")})
    assert data["problem"].startswith("LUNA16 has 888 series")
    assert (store["ok"], store["found"]) == (True, {"series": 8, "missing": 0, "spacing_zyx": [1.25, 0.7, 0.7]})
    assert named(result["checks"], "torch")["found"] == importlib.metadata.version("torch")


def test_examine_tells_of_empty_folders_without_calling_it_a_problem(tmp_path):
    folders = [tmp_path / name for name in ("data", "store", "runs")]
    checks = examine(*folders)["checks"]
    for name in ("data", "store"):
        check = named(checks, name)
        assert check["ok"] is None
        assert check["cure"].startswith("luna16 ")
    assert [path.exists() for path in folders] == [False] * 3, "it changes nothing"


def test_examine_goes_on_after_a_check_that_fails(tmp_path, monkeypatch):
    def broken() -> Any:
        raise ModuleNotFoundError("No module named 'torch'")

    def damaged(data: Path) -> Any:
        raise ValueError("a.mhd: its data file is too short: fetch it again")

    monkeypatch.setattr(doctor, "_gpu", broken)
    monkeypatch.setattr(doctor, "_data", damaged)
    result = examine(tmp_path, tmp_path, tmp_path)
    assert result["ok"] is False
    gpu, data = named(result["checks"], "gpu"), named(result["checks"], "data")
    assert (gpu["ok"], gpu["problem"]) == (False, "cannot be looked at: No module named 'torch'")
    assert "pip install" in gpu["cure"]
    assert (data["problem"], data["cure"]) == ("a.mhd: its data file is too short", "fetch it again")
    assert named(result["checks"], "cores")["ok"] is True


def test_told_shows_each_problem_with_its_cure():
    checks = [
        doctor._check("python", True, "3.11.9"),
        doctor._check("gpu", None, {"driver": None, "devices": []}, "no GPU"),
        doctor._check("store", False, {"series": 2, "spacing_zyx": [1.0, 2.0]}, "cut off", "prepare again"),
    ]
    assert told({"ok": False, "checks": checks}).splitlines() == [
        "doctor: 1 problem",
        "  python  ok       3.11.9",
        "  gpu     note     no GPU",
        "  store   PROBLEM  series 2, spacing_zyx 1.0, 2.0",
        "                   cut off",
        "                   cure: prepare again",
    ]
    assert told({"ok": True, "checks": checks[:1]}).startswith("doctor: all is well\n")


# --- the installation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "ok"), [("3.10.14", False), ("3.11.0", True), ("3.14.0rc1", True)])
def test_python_is_compared_with_what_the_package_asks_for(monkeypatch, version, ok):
    monkeypatch.setattr(doctor.platform, "python_version", lambda: version)
    check = only(doctor._python())
    assert (check["ok"], check["found"]) == (ok, version)
    assert ok or ">=3.11" in check["problem"]


@pytest.fixture
def packages(monkeypatch, tmp_path) -> Callable[..., list[dict[str, Any]]]:
    """Check made-up requirements, installed packages and pins."""

    def run(requires: list[str], installed: dict[str, str], pins: str | None = None) -> list[dict[str, Any]]:
        def version(name: str) -> str:
            if name not in installed:
                raise importlib.metadata.PackageNotFoundError(name)
            return installed[name]

        monkeypatch.setattr(importlib.metadata, "requires", lambda name: requires)
        monkeypatch.setattr(importlib.metadata, "version", version)
        monkeypatch.setattr(doctor, "CONSTRAINTS", tmp_path / "constraints.txt")
        if pins is not None:
            (tmp_path / "constraints.txt").write_text(pins)
        return list(doctor._packages())

    return run


@pytest.mark.parametrize(
    ("installed", "pins", "ok", "problem"),
    [
        ({"torch": "2.13.0+cpu"}, "torch==2.13.0\n", True, None),
        ({"torch": "2.13.1"}, "# tested\nTorch==2.13.0  # this\n", None, "2.13.0 is what was tested"),
        ({"torch": "2.13.1"}, None, True, None),
        ({"torch": "2.12.0"}, "torch==2.12.0\n", False, "torch<3,>=2.13 is needed"),
        ({"torch": "3.0.0"}, None, False, "torch<3,>=2.13 is needed"),
        ({}, None, False, "not installed, torch<3,>=2.13 is needed"),
    ],
)
def test_packages_are_compared_with_requirement_and_pin(packages, installed, pins, ok, problem):
    check = only(packages(["torch<3,>=2.13"], installed, pins))
    assert (check["name"], check["ok"], check["found"]) == ("torch", ok, installed.get("torch"))
    assert check["problem"] == problem
    if problem is not None:
        assert check["cure"].startswith("python -m pip install ")
        assert ("--constraint" in check["cure"]) == (pins is not None)


def test_packages_of_an_extra_may_be_absent_but_not_too_old(packages):
    requires = [
        "numpy>=2",
        'onnx>=1.18; extra == "export"',
        'openvino>=2025; extra == "export"',
        'atheris; extra == "fuzz"',
    ]
    checks = packages([*requires, 'colorama; sys_platform == "win32"'], {"numpy": "2.4.6", "onnx": "1.0"})
    assert [(check["name"], check["ok"]) for check in checks] == [
        ("numpy", True),
        ("onnx", False),
        ("extra export", None),
    ]
    assert checks[-1]["problem"] == "not installed: openvino"
    assert checks[-1]["cure"] == "python -m pip install 'luna16_monai[export]'"


def test_pins_are_those_of_the_source_tree():
    assert doctor._pins()["monai"] == "1.6.1"
    assert doctor._pins()["simpleitk"] == "2.5.7"


# --- the machine ----------------------------------------------------------------------------------------------------

DRIVER = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Fri Jan 24 00:00:00 UTC 2025\n"


@pytest.mark.parametrize(
    ("driver", "cuda", "device", "ok", "problem"),
    [
        (None, None, False, None, "no GPU: all works without"),
        (None, "13.0", False, None, "no GPU: all works without"),
        (DRIVER, None, True, None, "built without CUDA"),
        (DRIVER, "13.0", False, None, "no GPU is passed in"),
        (DRIVER, "13.0", True, False, "torch cannot use the GPU"),
    ],
)
def test_gpu_that_is_not_used_is_explained(monkeypatch, tmp_path, driver, cuda, device, ok, problem):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(doctor, "PROC", tmp_path)
    monkeypatch.setattr(doctor, "GPU_DEVICE", tmp_path / "nvidia0")
    if driver:
        (tmp_path / "driver" / "nvidia").mkdir(parents=True)
        (tmp_path / "driver" / "nvidia" / "version").write_text(driver)
    if device:
        (tmp_path / "nvidia0").touch()
    check = only(doctor._gpu())
    assert check["ok"] is ok
    assert problem in check["problem"]
    assert check["found"] == {"torch's CUDA": cuda or "none", "driver": "570.86.15" if driver else None}


@pytest.mark.parametrize("works", [True, False])
def test_gpu_is_tried_before_it_is_called_good(monkeypatch, works):
    ones = torch.ones

    def on_gpu(size: int, device: str) -> torch.Tensor:
        assert device == "cuda"
        if not works:
            raise RuntimeError("CUDA error: no kernel image is available")
        return ones(size)

    properties = SimpleNamespace(name="H100", total_memory=85 * 10**9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: properties)
    monkeypatch.setattr(torch, "ones", on_gpu)
    check = only(doctor._gpu())
    assert (check["ok"], check["found"]["devices"]) == (works, ["H100 (85.0 GB)"])
    assert works or "no kernel image" in check["problem"]


def test_gpu_is_found_on_cuda():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    check = only(doctor._gpu())
    assert check["ok"] is True
    assert check["found"]["driver"]


def test_cores_are_those_that_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 3, 5}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert only(doctor._cores())["found"] == {"usable": 3, "of": 8}


def test_memory_without_proc_is_the_machines(monkeypatch, tmp_path):
    """As on macOS."""
    monkeypatch.setattr(doctor, "PROC", tmp_path / "proc")
    monkeypatch.setattr(doctor, "total_memory", lambda: 16 * 10**9)
    check = only(doctor._memory())
    assert (check["ok"], check["found"]) == (None, {"of": "16.0 GB"})
    assert check["problem"] == f"what is free is not told here: no {tmp_path / 'proc'}"


@pytest.fixture
def kernel(monkeypatch, tmp_path) -> Path:
    """A machine of 16 GB with 8 GB available, in a control group without limits."""
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 16000000 kB\nMemFree: 1 kB\nMemAvailable: 8000000 kB\n")
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/a/b\n")
    return tmp_path / "cgroup"


def limit(folder: Path, limit: object, used: int, names: tuple[str, str] = ("memory.max", "memory.current")) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip(names, (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n")


def test_memory_is_what_the_machine_has_left(kernel):
    check = only(doctor._memory())
    assert (check["ok"], check["found"]) == (True, {"available": "8.2 GB", "of": "16.4 GB"})


@pytest.mark.parametrize(
    ("gigabytes", "ok", "problem"),
    [(10, True, None), (4, None, "the largest CTs may not fit"), (2, False, "less than 1.0 GB is available")],
)
def test_memory_is_what_the_container_leaves(kernel, gigabytes, ok, problem):
    limit(kernel / "a", gigabytes * 10**9, 15 * 10**8)
    limit(kernel / "a" / "b", "max", 0)
    check = only(doctor._memory())
    assert check["ok"] is ok
    assert check["found"]["available"] == f"{min(gigabytes - 1.5, 8.192):.1f} GB"
    assert check["found"]["container's limit"] == f"{gigabytes}.0 GB"
    assert problem is None or (problem in check["problem"] and "--memory" in check["cure"])


def test_memory_reads_limits_of_the_first_kind_of_control_groups(kernel, tmp_path):
    (tmp_path / "proc" / "self" / "cgroup").write_text("5:cpu,cpuacct:/x\n4:memory:/docker/c\n0::/\n")
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    limit(kernel / "memory", 2**63 - 4096, 10**9, names)
    limit(kernel / "memory" / "docker" / "c", 6 * 10**9, 10**9, names)
    assert only(doctor._memory())["found"]["available"] == "5.0 GB"


def test_bundles_are_whole_or_what_they_lack_is_told(monkeypatch, tmp_path):
    checks = list(doctor._bundles())
    names = ["nodule_classification", "malignancy_classification", "nodule_detection"]
    assert [(check["name"], check["ok"]) for check in checks] == [(f"bundle {name}", True) for name in names]
    assert re.fullmatch(r"\d+\.\d MB", checks[2]["found"]["weights"])
    folder = tmp_path / "bundle"
    shutil.copytree(folders.bundle_dir("nodule_detection"), folder)
    (folder / "models" / "model.pt").unlink()
    monkeypatch.setattr(folders, "bundle_dir", lambda name: folder)
    assert [check["problem"] for check in doctor._bundles()] == ["no models/model.pt"] * 3


def test_shared_memory_of_docker_is_too_little(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "SHARED_MEMORY", tmp_path)
    # a batch takes 18.9 MB: 3 of them fit into 67.1 MB, 7 into 134.2 MB, 56 into 1.07 GB
    for mebibytes, gigabytes, workers in ((64, "0.1 GB", 0), (128, "0.1 GB", 2), (1024, "1.1 GB", 27)):
        free(monkeypatch, total=mebibytes * 2**20)
        check = only(doctor._shared_memory())
        assert check["ok"] is (workers >= 2)
        assert check["found"] == {"size": gigabytes, "loader workers that it is enough for": workers}
        assert check["ok"] or "--shm-size" in check["cure"]
    monkeypatch.setattr(doctor, "SHARED_MEMORY", tmp_path / "none")
    assert only(doctor._shared_memory())["ok"] is None


def test_disk_is_looked_at_where_the_folder_will_be(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: seen.append(path) or SimpleNamespace(free=2 * 10**9))
    checks = list(doctor._disk(tmp_path / "a" / "b", tmp_path, tmp_path / "c"))
    assert seen == [tmp_path] * 3
    assert [check["ok"] for check in checks] == [None, True, True]
    assert "fetching all of LUNA16 takes 140.0 GB" in checks[0]["problem"]
    assert "--subset" in checks[0]["cure"]


def test_disk_that_is_full_or_closed_is_a_problem_where_something_is_written(tmp_path, monkeypatch):
    free(monkeypatch, free=9 * 10**8)
    assert [check["ok"] for check in doctor._disk(tmp_path, tmp_path, tmp_path)] == [True, False, False]
    free(monkeypatch, free=10**12)
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    checks = list(doctor._disk(tmp_path, tmp_path, tmp_path))
    assert [check["ok"] for check in checks] == [True, False, False]
    assert "cannot be written to" in checks[1]["problem"]


def test_disk_names_a_file_in_a_folders_place(tmp_path):
    (tmp_path / "runs").touch()
    check = named(doctor._disk(tmp_path, tmp_path, tmp_path / "runs"), "disk for runs")
    assert (check["ok"], check["cure"]) == (False, "name a folder for the runs")


# --- data and store -------------------------------------------------------------------------------------------------


@pytest.fixture
def data(phantom_dir, tmp_path) -> Path:
    """The phantom, to be changed; of its tables only those that count."""
    shutil.copytree(phantom_dir, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def store(store_dir, tmp_path) -> Path:
    shutil.copytree(store_dir, tmp_path / "store")
    return tmp_path / "store"


def header(data: Path, subset: int) -> Path:
    return next((data / f"subset{subset}").glob("*.mhd"))


def test_data_names_the_series_that_are_missing(data):
    gone = header(data, 3)
    gone.unlink()
    check = named(doctor._data(data), "data")
    assert (check["ok"], check["found"]["series"], check["found"]["listed"]) == (None, 7, 8)
    assert check["problem"] == f"1 listed series have no CT, the first is {gone.stem}"
    assert "luna16 download" in check["cure"]
    assert "--allow-missing" in check["cure"]


def test_data_that_is_damaged_is_a_problem(data, store, tmp_path):
    raw = next(path for path in (data / "subset2").iterdir() if path.suffix != ".mhd")
    raw.unlink()
    result = examine(data, store, tmp_path)
    check = named(result["checks"], "data")
    assert (result["ok"], check["ok"]) == (False, False)
    assert raw.stem in check["problem"]


def test_data_without_cts_is_told(tmp_path):
    data, tables = doctor._data(tmp_path)
    assert (data["ok"], data["problem"]) == (None, f"no CT in {tmp_path}")
    assert (tables["ok"], tables["found"]) == (None, [])


@pytest.mark.parametrize(
    ("table", "ok"),
    [("candidates_V2", False), ("annotations", None), ("annotations_excluded", None), ("seriesuids", None)],
)
def test_tables_that_are_missing_are_named_with_what_they_are_for(data, table, ok):
    (data / f"{table}.csv").unlink()
    check = named(doctor._data(data), "tables")
    assert check["ok"] is ok
    assert check["problem"] == f"no {table}.csv, so {data_checks.TABLES[table]}"
    assert len(check["found"]) == 3


def test_tables_of_the_first_version_will_do(data):
    (data / "candidates_V2.csv").rename(data / "candidates.csv")
    check = named(doctor._data(data), "tables")
    assert (check["ok"], check["found"][0]) == (True, "candidates.csv")


def change_index(store: Path, **changes: Any) -> None:
    path = store / "store.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_store_that_lost_a_volume_is_a_problem(data, store):
    path = sorted(store.glob("*.b2nd"))[0]
    path.write_bytes(path.read_bytes()[:-1])
    check = only(doctor._store(store, data))
    assert (check["ok"], check["problem"]) == (False, f"1 files are missing or cut off, the first is {path.name}")
    assert check["cure"] == f"luna16 prepare --data {data} --store {store}"


def test_store_that_is_not_finished_is_told(data, store):
    change_index(store, complete=False, series={})
    check = only(doctor._store(store, data))
    assert (check["ok"], check["problem"]) == (None, "it is not finished")


def test_store_tells_for_which_spacing_it_is(data, store):
    change_index(store, spacing_zyx=None)
    assert only(doctor._store(store, data))["found"]["spacing_zyx"] == "native"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 1, "series": 5}'])
def test_store_whose_index_is_damaged_is_a_problem(data, store, text):
    (store / "store.json").write_text(text)
    check = only(doctor._store(store, data))
    assert check["ok"] is False
    assert "is damaged, or of another version" in check["problem"]


def test_store_of_another_version_is_a_problem(data, store):
    change_index(store, format=99)
    assert only(doctor._store(store, data))["problem"] == "it is of format 99, this version reads 1"


def test_store_is_compared_with_the_data(data, store):
    for path in list((data / "subset1").iterdir()):
        path.rename(path.with_name("9.9" + path.suffix))
    check = only(doctor._store(store, data))
    assert (check["ok"], check["problem"]) == (None, f"1 CTs of {data} are not in it, the first is 9.9")
