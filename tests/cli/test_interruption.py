"""Ctrl-C and SIGTERM at a random moment: exit code, one line, no process left, nothing half-written; and going on."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from mirror import Mirror, scan, send, zipped
from small_crossval import TINY
from verb_calls import Call, is_alive, require_nobody_left

from luna16_monai.bundle.folders import bundle_dir
from luna16_monai.ct.folders import find_cts
from luna16_monai.tables.luna16 import read_annotations, read_candidates
from luna16_monai.tables.points import write_points

ROOT = Path(__file__).parents[2]
SIGTERM_IS_CAUGHT = 1 << (signal.SIGTERM - 1)
ENDS = {
    signal.SIGINT: (130, "luna16: interrupted; the same command goes on where it stopped"),
    signal.SIGTERM: (143, "luna16: ended by SIGTERM; the same command goes on where it stopped"),
}

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.parametrize("number", ENDS, ids=lambda number: number.name),
]


def stop(words: list[object], number: signal.Signals, within_s: float, seed: int) -> tuple[int, str, str, float]:
    """Start the command, and send it a signal at a random moment after it has begun with the verb.

    SIGINT goes to all processes of the command, as Ctrl-C in a terminal sends it; SIGTERM to the first one alone.

    Returns:
        exit code, standard output, standard error, and the moment in seconds.
    """
    process = subprocess.Popen(
        # what a shell starts in the background ignores SIGINT
        ["env", "--default-signal=INT", sys.executable, "-W", "ignore", "-m", "luna16_monai", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        cwd=ROOT,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        while not catches_sigterm(process.pid):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        moment = random.Random(f"{words[0]} {number} {seed}").uniform(0, within_s)
        time.sleep(moment)
        assert process.poll() is None, f"it has ended within {moment:.2f} s: {process.communicate()}"
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        out, err = process.communicate(timeout=60)
        require_nobody_left(process.pid)
    finally:
        if is_alive(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return process.returncode, out, err, moment


def catches_sigterm(process: int) -> bool:
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) & SIGTERM_IS_CAUGHT)


def require_stopped(result: tuple[int, str, str, float], number: signal.Signals, lines: int | None = 1) -> None:
    """Check the exit code, and that the line alone was printed; with ``lines`` None after others of the log."""
    code, out, err, moment = result
    expected, line = ENDS[number]
    assert (code, out) == (expected, ""), (err, moment)
    assert "Traceback" not in err, moment
    assert err.splitlines()[-1] == line, (err, moment)
    assert lines is None or len(err.splitlines()) == lines, (err, moment)


def names(folder: Path) -> set[str]:
    """The files that stand in a folder under final names: not those aside, nor in hidden folders."""
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return {str(path) for path in paths if not any(part.startswith(".") for part in path.parts)}


def content(folder: Path, leave_out: tuple[str, ...] = ()) -> dict[str, str]:
    paths = {name: folder / name for name in names(folder) if not name.startswith(leave_out)}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items()}


# --- verbs that go on where they stopped ----------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_phantom_is_stopped_and_goes_on(call: Call, tmp_path: Path, number: signal.Signals, workers: int) -> None:
    words = ["phantom", "--scans", 2, "--workers", workers]
    require_stopped(stop([*words, "--output", tmp_path / "stopped"], number, 2.5, workers), number)
    for name in names(tmp_path / "stopped"):
        header = (tmp_path / "stopped" / name).with_suffix(".mhd")
        # a header is written after its voxels
        if header.is_file():
            x, y, z = next(
                map(int, line.split("=")[1].split())
                for line in header.read_text().splitlines()
                if line.startswith("DimSize")
            )
            assert header.with_suffix(".raw").stat().st_size == 2 * x * y * z
    assert not (tmp_path / "stopped" / "annotations.csv").exists()
    assert call(*words, "--output", tmp_path / "stopped")[0] == 0
    assert call(*words, "--output", tmp_path / "straight")[0] == 0
    assert content(tmp_path / "stopped") == content(tmp_path / "straight")


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_prepare_is_stopped_and_goes_on(
    call: Call, phantom_dir: Path, store_dir: Path, tmp_path: Path, number: signal.Signals, workers: int
) -> None:
    store = tmp_path / "store"
    words = ["prepare", "--data", phantom_dir, "--store", store, "--workers", workers]
    require_stopped(stop(words, number, 3.0, workers), number)
    for name in names(store):
        if name.endswith(".json"):
            json.loads((store / name).read_text())
    assert call(*words)[0] == 0
    assert call("verify", "--store", store) == (0, f"verify: nothing wrong in {store}\n", "")
    volumes = {name: digest for name, digest in content(store, ("logs",)).items() if name.endswith(".b2nd")}
    assert volumes == {name: digest for name, digest in content(store_dir).items() if name.endswith(".b2nd")}


@pytest.fixture
def mirror(tmp_path: Path) -> Mirror:
    """All tables, and a subset of one scan and a million bytes."""
    points = "seriesuid,coordX,coordY,coordZ"
    annotations = "evaluationScript/annotations"
    tables = {
        f"{annotations}/annotations_excluded.csv": f"{points},diameter_mm\n",
        f"{annotations}/seriesuids.csv": "1.1\n",
    }
    members = {**scan(tmp_path / "made" / "subset0", "1.1"), "subset0/1.2.raw": random.Random(0).randbytes(1_000_000)}
    return Mirror(
        {
            "annotations.csv": f"{points},diameter_mm\n1.1,0,0,0,5.5\n".encode(),
            "candidates_V2.zip": zipped({"candidates_V2.csv": f"{points},class\n1.1,0,0,0,1\n"}),
            "evaluationScript.zip": zipped(tables),
            "subset0.zip": zipped(members, zipfile.ZIP_STORED),
        }
    )


def test_download_is_stopped_and_goes_on(call: Call, mirror: Mirror, tmp_path: Path, number: signal.Signals) -> None:
    ended = threading.Event()

    def half(request: Any, body: bytes, start: int) -> None:
        """Send half of a file, and nothing more until the command has ended."""
        send(request, body, start, announce=0, upto=600_000)
        request.wfile.flush()
        ended.wait(60)

    mirror.faults["subset0.zip"] = [half]
    words = ["download", "--output", tmp_path / "luna16", "--subset", 0, "--base-url", mirror.url]
    try:
        result = stop(words, number, 1.5, 0)
    finally:
        ended.set()
    require_stopped(result, number)
    assert not any(name.startswith("subset0/") for name in names(tmp_path / "luna16"))
    mirror.faults.clear()
    assert call(*words)[0] == 0
    assert {"subset0/1.1.mhd", "subset0/1.1.raw"} <= names(tmp_path / "luna16")


# --- verbs that begin anew ------------------------------------------------------------------------------------------


@pytest.fixture
def scored(phantom_dir: Path, tmp_path: Path) -> list[object]:
    """The words that name a submission of all candidates, and its reference standard."""
    table = read_candidates(phantom_dir)
    submission = tmp_path / "submission.csv"
    uids = [table.series_uids[code] for code in table.series]
    write_points(submission, uids, table.points_xyz, np.linspace(0, 1, len(table)), "probability")
    files = {"annotations": "annotations", "excluded": "annotations_excluded", "seriesuids": "seriesuids"}
    named = [f"--{option}={phantom_dir / name}.csv" for option, name in files.items()]
    return [*named, "--submission", submission]


@pytest.mark.parametrize("verb", ["evaluate", pytest.param("compare", marks=pytest.mark.slow)])
def test_scoring_is_stopped_and_writes_nothing(
    scored: list[object], tmp_path: Path, number: signal.Signals, verb: str
) -> None:
    again = scored[-2:] if verb == "compare" else []
    words = [verb, *scored, *again, "--bootstrap", 2_000_000, "--output", tmp_path / "run"]
    require_stopped(stop(words, number, 2.0, 0), number)
    assert not (tmp_path / "run").exists()


def test_report_is_stopped_and_writes_nothing(
    call: Call, scored: list[object], store_dir: Path, tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    assert call("evaluate", *scored, "--bootstrap", 0, "--output", run)[0] == 0
    words = ["report", "--run", run, "--store", store_dir]
    before = names(run)
    require_stopped(stop(words, number, 0.6, 0), number)
    assert names(run) == before


@pytest.fixture
def points(phantom_dir: Path, tmp_path: Path) -> list[object]:
    """The words of a prediction of all candidates of the first CT."""
    table = read_candidates(phantom_dir)
    rows = table.select(table.series == 0)
    ct = next(ct.path for ct in find_cts(phantom_dir) if ct.series_uid == table.series_uids[0])
    path = tmp_path / "points.csv"
    write_points(path, [table.series_uids[0]] * len(rows), rows.points_xyz, np.zeros(len(rows)), "class")
    return ["predict", "--ct", ct, "--candidates", path, "--output", tmp_path / "out.csv", "--device", "cpu"]


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))])
def test_predict_is_stopped_and_writes_nothing(
    points: list[object], tmp_path: Path, number: signal.Signals, seed: int
) -> None:
    require_stopped(stop(points, number, 2.5, seed), number)
    assert names(tmp_path) == {"points.csv"}


@pytest.mark.parametrize("verb", ["detect", pytest.param("benchmark", marks=pytest.mark.slow)])
def test_networks_on_a_ct_are_stopped_and_write_nothing(
    points: list[object], phantom_dir: Path, tmp_path: Path, number: signal.Signals, verb: str
) -> None:
    ct = points[2]
    words: list[object] = ["detect", "--ct", ct, "--output", tmp_path / "found.csv", "--device", "cpu"]
    if verb == "benchmark":
        nodules = tmp_path / "nodules.csv"
        rows = read_annotations(phantom_dir)
        own = rows.select(rows.series == rows.series_uids.index(Path(str(ct)).stem))
        write_points(nodules, own.row_series(), own.points_xyz, own.values, "diameter_mm")
        words = ["benchmark", "--ct", ct, "--nodules", nodules, "--output", tmp_path / "out", "--device", "cpu"]
    before = names(tmp_path)
    require_stopped(stop(words, number, 2.5, 0), number)
    assert names(tmp_path) == before


@pytest.mark.slow
def test_detect_of_several_is_stopped_and_goes_on(
    call: Call, phantom_dir: Path, tmp_path: Path, number: signal.Signals
) -> None:
    cts = sorted(phantom_dir.glob("subset*/*.mhd"))[:3]
    words = ["detect", "--ct", *cts, "--output", tmp_path / "found.csv", "--device", "cpu"]
    require_stopped(stop(words, number, 4.0, 0), number)
    # what is finished is whole, and the table is not there
    assert all(name.startswith("found.csv.parts") for name in names(tmp_path))
    assert call(*words)[0] == 0
    assert names(tmp_path) == {"found.csv", "found.csv.seen.json"}


def test_convert_is_stopped_and_writes_nothing(tmp_path: Path, number: signal.Signals) -> None:
    rows = np.random.default_rng(0).uniform(-100, 100, (100_000, 3))
    write_points(tmp_path / "many.csv", ["1.1"] * len(rows), rows, np.zeros(len(rows)), "probability")
    words = ["convert", "--input", tmp_path / "many.csv", "--output", tmp_path / "many.mrk.json"]
    require_stopped(stop(words, number, 0.8, 0), number)
    assert names(tmp_path) == {"many.csv"}


@pytest.mark.slow
def test_export_is_stopped_and_writes_nothing(tmp_path: Path, number: signal.Signals) -> None:
    words = ["export", "--format", "torchscript", "--output", tmp_path / "out" / "network.ts"]
    require_stopped(stop(words, number, 2.0, 0), number)
    assert not names(tmp_path)


@pytest.mark.slow
def test_verify_is_stopped_and_changes_nothing(store_dir: Path, tmp_path: Path, number: signal.Signals) -> None:
    store = tmp_path / "store"
    shutil.copytree(store_dir, store)
    index = json.loads((store / "store.json").read_text())
    for uid in list(index["series"]):
        for copy in range(60):
            for path in store_dir.glob(f"{uid}.*"):
                (store / f"{uid}.{copy}{path.suffix}").hardlink_to(path)
            index["series"][f"{uid}.{copy}"] = index["series"][uid]
    (store / "store.json").write_text(json.dumps(index))
    before = content(store)
    require_stopped(stop(["verify", "--store", store], number, 0.5, 0), number)
    assert content(store) == before


@pytest.mark.slow
def test_bank_is_stopped_and_writes_nothing(tmp_path: Path, number: signal.Signals) -> None:
    voxels = np.random.default_rng(0).normal(-800, 50, (200, 300, 300)).astype(np.int16)
    mask = np.zeros(voxels.shape, np.uint8)
    for z, y, x in np.ndindex(6, 8, 8):
        mask[z * 30 + 20 :, y * 35 + 20 :, x * 35 + 20 :][:5, :6, :6] = 1
    for name, array in (("ct", voxels), ("mask", mask)):
        sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / f"{name}.mha"))
    before = names(tmp_path)
    words = ["bank", "--ct", tmp_path / "ct.mha", "--masks", tmp_path / "mask.mha", "--output", tmp_path / "bank.npz"]
    require_stopped(stop(words, number, 1.0, 0), number)
    assert names(tmp_path) == before


@pytest.mark.slow
def test_calibrate_is_stopped_and_writes_nothing(phantom_dir: Path, tmp_path: Path, number: signal.Signals) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(bundle_dir() / "models" / "model.pt", run)
    words = ["calibrate", "--run", run, "--data", phantom_dir, "--device", "cpu", "--bootstrap", 2_000_000]
    require_stopped(stop(words, number, 6.0, 0), number, lines=None)
    assert names(run) == {"model.pt"}


@pytest.mark.slow
def test_demo_is_stopped_and_leaves_whole_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setenv("LUNA16_DATA", str(tmp_path / "phantom"))
    monkeypatch.setenv("LUNA16_STORE", str(tmp_path / "store"))
    code, out, err, moment = stop(["demo", "--output", tmp_path / "demo"], number, 20.0, 0)
    expected, line = ENDS[number]
    # the step says so, then the demo
    assert (code, err.splitlines()) == (expected, [line, line]), moment
    assert out.startswith("1/5  synthetic CTs")
    for name in names(tmp_path):
        if name.endswith(".json"):
            json.loads((tmp_path / name).read_text())


# --- trainings ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_crossval_is_stopped_with_its_trainings(
    phantom_dir: Path, store_dir: Path, tmp_path: Path, number: signal.Signals, workers: int
) -> None:
    settings = {**TINY, "max_epochs": "1000"}
    words = ["crossval", "--folds", 0, 1, "--data", phantom_dir, "--store", store_dir, "--output", tmp_path / "cv"]
    words += ["--workers", workers, "--set", *(f"{key}={value}" for key, value in settings.items())]
    require_stopped(stop(words, number, 12.0, workers), number, lines=None)
    for name in names(tmp_path / "cv"):
        path = tmp_path / "cv" / name
        if path.suffix == ".json":
            json.loads(path.read_text())
        if path.suffix == ".csv":
            with path.open(newline="") as stream:
                assert len({len(row) for row in csv.reader(stream)}) == 1
    assert not (tmp_path / "cv" / "metrics.json").exists()


@pytest.mark.slow
def test_tune_is_stopped_with_its_trials(
    phantom_dir: Path, store_dir: Path, tmp_path: Path, number: signal.Signals
) -> None:
    settings = {**TINY, "max_epochs": "1000"}
    words = ["tune", "--trials", 2, "--data", phantom_dir, "--store", store_dir, "--output", tmp_path / "search"]
    words += ["--set", *(f"{key}={value}" for key, value in settings.items())]
    require_stopped(stop(words, number, 12.0, 0), number, lines=None)
    for name in names(tmp_path / "search"):
        if name.endswith(".json"):
            json.loads((tmp_path / "search" / name).read_text())
    assert not (tmp_path / "search" / "best.yaml").exists()
