"""What may go wrong around the program, end to end: broken stores, full and read-only disks, odd names, foreign code.

The formats' own faults stand in test_metaimage, test_ct and test_candidates, those of a training in test_checkpoint.
"""

from __future__ import annotations

import ast
import contextlib
import gzip
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_run
import torch
from drawn_scans import random_hu, write_scan
from monai.bundle import ConfigParser
from monai.data import set_track_meta

from luna16_monai.bundle.folders import called_names, is_packaged
from luna16_monai.cli.main import main
from luna16_monai.machine.errors import is_dead_worker, one_line
from luna16_monai.networks.nodule_net import NoduleNet
from luna16_monai.networks.weights import load_initial_weights, read_weights
from luna16_monai.store.reading import verify

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "luna16_monai"
PREPARE_YAML = ROOT / "bundles" / "nodule_classification" / "configs" / "prepare.yaml"
ODD_NAME = "ä scan #1 (it's)"


@pytest.fixture(autouse=True)
def tracked_meta() -> Iterator[None]:
    """A training switches MONAI's metadata off, for the whole process."""
    yield
    set_track_meta(True)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four CTs of noise, 64 kB each, that hardly get smaller in the store; (0, 0, 0) mm is the first voxel."""
    for seed, uid in enumerate("abcd"):
        write_scan(tmp_path / "data" / f"subset{seed}", uid, random_hu(seed, (20, 40, 40)), None, (0, 0, 0), (1, 1, 1))
    return tmp_path / "data"


def prepare(data: Path, store: Path, *more: str) -> int:
    return main(["prepare", "--data", str(data), "--store", str(store), "--native", "--workers", "1", *more])


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts something on a folder; the test is skipped where that is not permitted."""
    mounted = []

    def on(place: Path, *options: str) -> Path:
        place.mkdir(exist_ok=True)
        if shutil.which("mount") is None or subprocess.run(["mount", *options, place], capture_output=True).returncode:
            pytest.skip("this user may not mount anything")
        if "remount" not in "".join(options):
            mounted.append(place)
        return place

    yield on
    for place in reversed(mounted):
        subprocess.run(["umount", "--lazy", place], check=True)


@pytest.fixture
def read_only(mount: Callable[..., Path]) -> Iterator[Callable[[Path], None]]:
    """Makes a folder read-only, for root too."""
    changed = []

    def make(folder: Path) -> None:
        if os.geteuid() == 0:
            mount(folder, "--bind", str(folder))
            mount(folder, "-o", "remount,bind,ro")
        else:
            changed.append(folder)
            folder.chmod(0o555)

    yield make
    for folder in changed:
        folder.chmod(0o755)


def assert_whole(folder: Path) -> None:
    """Whatever bears a final name is whole, and nothing is left aside."""
    assert not list(folder.rglob("*.tmp"))
    for sidecar in folder.glob("*.json"):
        entry = json.loads(sidecar.read_text(encoding="utf-8"))
        if sidecar.name != "store.json":
            assert hashlib.sha256((folder / f"{sidecar.stem}.b2nd").read_bytes()).hexdigest() == entry["sha256"]


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


# --- files that ask for more than they hold -------------------------------------------------------------------------

# Reads a file with little memory to spare; says the refusal and how long it took.
LIMITED = """
import resource, sys, time, zipfile
from pathlib import Path
from luna16_monai.tables.points import read_points
from luna16_monai.tables.luna16 import read_series_uids
from luna16_monai.ct.metaimage import open_metaimage
read = {
    "ct": lambda path: open_metaimage(path).read(),
    "points": lambda path: read_points(path, "class"),
    "series": read_series_uids,
}[sys.argv[1]]
pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
limit = pages * resource.getpagesize() + (64 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
started = time.monotonic()
try:
    path = Path(sys.argv[2])
    read(zipfile.Path(path, "candidates_V2.csv") if path.suffix == ".zip" else path)
except ValueError as error:
    print(error)
print(time.monotonic() - started)
"""


def read_with_64_mb(kind: str, path: Path) -> tuple[str, float]:
    done = subprocess.run([sys.executable, "-c", LIMITED, kind, path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    message, seconds = done.stdout.splitlines()
    return message, float(seconds)


@pytest.mark.parametrize("name", ["a.mhd", "a.mha", "z.mhd"])
def test_header_of_a_hundred_bytes_that_asks_for_a_million_million_voxels_fails_at_once(tmp_path, name):
    data_file = {"a.mhd": "a.raw", "a.mha": "LOCAL", "z.mhd": "a.raw\nCompressedData=True"}[name].split("\n")
    lines = ["NDims=3", "DimSize=10000 10000 10000", "ElementSpacing=1 1 1", "Offset=0 0 0", "ElementType=MET_CHAR"]
    header = "\n".join([*lines, *data_file[1:], f"ElementDataFile={data_file[0]}\n"])
    assert len(header) < 140
    (tmp_path / name).write_text(header)
    (tmp_path / "a.raw").write_bytes(b"x" * 100)
    message, seconds = read_with_64_mb("ct", tmp_path / name)
    assert message.startswith(f"{name} asks for 1000000000000 voxels, the limit is 2147483648")
    assert seconds < 1


@pytest.mark.parametrize(
    ("kind", "form"),
    [("points", "one line"), ("points", "after a header"), ("points", "in a zip"), ("series", "one line")],
)
def test_table_with_a_line_of_100_mb_is_refused_without_being_held(tmp_path, kind, form):
    header = "seriesuid,coordX,coordY,coordZ,class\n1.3.6,1,2,3,0\n" if form == "after a header" else ""
    path = tmp_path / "table.csv"
    with path.open("w") as stream:
        stream.write(header)
        for _ in range(100):
            stream.write("1," * 500_000)
    if form == "in a zip":
        with zipfile.ZipFile(tmp_path / "candidates_V2.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.write(path, "candidates_V2.csv")
        path = tmp_path / "candidates_V2.zip"
    message, seconds = read_with_64_mb(kind, path)
    told = f"line {3 if header else 1} has more than 1048576 characters: is this a CSV table?"
    assert re.fullmatch(rf"{path}.*, {re.escape(told)}", message)
    assert seconds < 5


@pytest.mark.parametrize("kind", ["points", "series"])
def test_table_with_nul_bytes_is_refused(tmp_path, kind):
    path = tmp_path / "table.csv"
    path.write_bytes(b"\0" * 1000)
    message, _ = read_with_64_mb(kind, path)
    assert "\0" not in message
    assert re.search(r"line 1: column seriesuid is missing|is no series identifier", message)


# --- a damaged store ------------------------------------------------------------------------------------------------


def test_verify_finds_a_flipped_bit_in_every_byte_of_a_volume(tmp_path, capsys):
    write_scan(tmp_path / "data", "a", random_hu(0, (4, 4, 4)), None, (0, 0, 0), (1, 1, 1))
    store = tmp_path / "store"
    assert prepare(tmp_path / "data", store) == 0
    path = store / "a.b2nd"
    content = path.read_bytes()
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        (line,) = verify(store, progress=False)
        assert "its checksum differs" in line
    capsys.readouterr()
    assert main(["verify", "--store", str(store)]) == 1
    assert told(capsys).startswith(f"luna16: {path}: its checksum differs, so its voxels have changed: remove it")


# --- disks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kilobytes", [4, 8, 16, 48, 64, 80, 112, 128, 160, 192])
def test_prepare_on_a_full_disk_leaves_nothing_half_written_and_goes_on(data, tmp_path, mount, capsys, kilobytes):
    disk = mount(tmp_path / "disk", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs")
    assert prepare(data, disk / "store") == 1
    assert re.fullmatch(
        r"luna16: .*: No space left on device: free some space, or name a folder on another disk", told(capsys)
    )
    assert_whole(disk / "store")
    mount(disk, "-o", "remount,size=4m")
    assert prepare(data, disk / "store") == 0
    assert verify(disk / "store", progress=False) == []


@pytest.mark.slow
def test_prepare_on_a_full_disk_tells_so_from_a_worker_process(data, tmp_path, mount, capsys):
    disk = mount(tmp_path / "disk", "-t", "tmpfs", "-o", "size=64k", "tmpfs")
    assert main(["prepare", "--data", str(data), "--store", str(disk / "store"), "--native", "--workers", "2"]) == 1
    assert re.search(r"\.(b2nd|json): No space left on device: free some space", told(capsys))
    assert_whole(disk / "store")


def test_phantom_on_a_full_disk_leaves_nothing_half_written(tmp_path, mount, capsys):
    disk = mount(tmp_path / "disk", "-t", "tmpfs", "-o", "size=1m", "tmpfs")
    assert main(["phantom", "--output", str(disk / "data"), "--scans", "1", "--workers", "1"]) == 1
    assert re.search(r"\.raw: No space left on device: free some space", told(capsys))
    # what tells the next call where to go on
    assert [path.parent.name for path in disk.rglob("*") if path.is_file()] == [".unfinished"]


def test_checkpoint_on_a_full_disk_keeps_the_one_before(tmp_path, mount):
    disk = mount(tmp_path / "disk", "-t", "tmpfs", "-o", "size=1m", "tmpfs")
    run = small_run.build(disk / "run")
    run.trainer.state.iteration = 1
    run.save()
    with contextlib.suppress(OSError), (disk / "filler").open("wb") as filler:
        while True:
            filler.write(bytes(4096))
            filler.flush()
    run.trainer.state.iteration = 2
    with pytest.raises(OSError, match="No space left on device") as caught:
        run.save()
    assert re.fullmatch(
        r".*/iteration_000000002_\w+\.pt: No space left on device: free some space, or .*", one_line(caught.value)
    )
    assert_whole(disk / "run")
    state = run.load_newest()
    assert state is not None
    assert state["iteration"] == 1


def test_prepare_reads_a_read_only_data_folder(data, tmp_path, read_only):
    before = sorted(data.rglob("*"))
    read_only(data)
    assert prepare(data, tmp_path / "store") == 0
    assert sorted(data.rglob("*")) == before


def test_prepare_into_a_read_only_folder_is_told_in_one_line(data, tmp_path, read_only, capsys):
    folder = tmp_path / "folder"
    folder.mkdir()
    read_only(folder)
    for store in (folder, folder / "new"):
        assert prepare(data, store) == 1
        assert re.fullmatch(
            rf"luna16: {store}(/store\.json)?: (Read-only file system|Permission denied): name another folder, or .*",
            told(capsys),
        )


# --- odd names ------------------------------------------------------------------------------------------------------


def test_luna16_works_in_folders_with_spaces_umlauts_and_number_signs(data, tmp_path, capsys):
    home = tmp_path / ODD_NAME
    home.mkdir()
    data = data.rename(home / "my #data")
    # linked into place, but from inside
    (data / "subset0").rename(data / "the #CTs")
    (data / "subset0").symlink_to(data / "the #CTs")
    assert prepare(data, home / "the #store") == 0
    assert main(["verify", "--store", str(home / "the #store")]) == 0
    (home / "nodules.csv").write_text("seriesuid,coordX,coordY,coordZ,diameter_mm\na,5,5,5,6\n")
    (home / "submission.csv").write_text("seriesuid,coordX,coordY,coordZ,probability\na,5,5,5,0.9\n")
    (home / "series.csv").write_text("a\nb\n")
    words = ["evaluate", "--submission", home / "submission.csv", "--annotations", home / "nodules.csv"]
    words += ["--no-excluded", "--seriesuids", home / "series.csv", "--bootstrap", 0, "--output", home / "#1 result"]
    assert main([str(word) for word in words]) == 0
    assert json.loads((home / "#1 result" / "metrics.json").read_text(encoding="utf-8"))["cpm"] == 1
    assert "ERROR" not in capsys.readouterr().err


def test_bundle_refuses_a_number_sign_that_monai_cannot_hold():
    config = {
        "imports": ["$import luna16_monai.bundle.config as bundle"],
        "initialize": ["$bundle.check_settings()"],
        "dataset_dir": f"/data/{ODD_NAME}",
        "train": {"data": "@dataset_dir"},
    }
    with pytest.raises(RuntimeError) as caught:
        ConfigParser(config).get_parsed_content("initialize")
    assert one_line(caught.value) == (
        "dataset_dir is /data/ä scan ::1 (it's), where MONAI turns every # into ::, so that no setting can hold one: "
        "give a folder by LUNA16_DATA, LUNA16_STORE or LUNA16_RUNS instead, or rename it"
    )


# --- foreign code ---------------------------------------------------------------------------------------------------


def test_called_names_lists_everything_that_a_config_can_run():
    config = {
        "imports": ["$import os"],
        "spacing_zyx": [1.25, 0.7, 0.7],
        "transforms": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image", "reader": "somewhere.Reader", "file": "scan one.mhd"},
                {"_target_": "Compose", "_disabled_": "$os.remove('x')"},
                "%other.yaml::transform",
                "@spacing_zyx",
            ],
        },
    }
    assert called_names(config) == [
        "$import os",
        "Compose",
        "LoadImaged",
        "somewhere.Reader",
        "$os.remove('x')",
        "%other.yaml::transform",
    ]


def test_prepare_runs_a_config_from_elsewhere_only_on_request(data, tmp_path, capsys):
    harm = tmp_path / "harm"
    own = tmp_path / "own.yaml"
    own.write_text(
        PREPARE_YAML.read_text(encoding="utf-8").replace(
            "$import numpy", f"$__import__('pathlib').Path('{harm}').touch()"
        )
        + f"- $__import__('pathlib').Path('{harm}').touch()\n"
    )
    assert prepare(data, tmp_path / "store", "--config", str(own)) == 2
    line = told(capsys)
    assert line.startswith(f"luna16: {own} does not come with luna16_monai and may run any code (it calls Compose, ")
    for name in (
        "LoadImaged",
        "luna16_monai.store.reader.CTReader",
        "luna16_monai.store.resampling.SeparableSpacingd",
        "__import__('pathlib')",
    ):
        assert name in line
    assert line.endswith("add --trust-bundle if you trust it")
    assert not harm.exists()
    assert not (tmp_path / "store").exists()
    own.write_text(PREPARE_YAML.read_text(encoding="utf-8"))
    assert prepare(data, tmp_path / "store", "--config", str(own), "--trust-bundle") == 0
    assert f"luna16: {own} calls Compose, LoadImaged" in capsys.readouterr().err
    # the package's own list by any way to it
    (tmp_path / "link.yaml").symlink_to(PREPARE_YAML)
    assert is_packaged(tmp_path / "link.yaml")
    assert prepare(data, tmp_path / "store", "--config", str(PREPARE_YAML)) == 0
    assert "calls" not in capsys.readouterr().err


def test_predict_runs_a_bundle_from_elsewhere_only_on_request(data, tmp_path, capsys):
    bundle = shutil.copytree(PREPARE_YAML.parents[1], tmp_path / "bundle")
    words = ["predict", "--bundle", bundle, "--ct", data, "--candidates", tmp_path / "x.csv", "--output", "y.csv"]
    assert main([str(word) for word in words]) == 2
    line = told(capsys)
    assert "does not come with luna16_monai and may run any code" in line
    assert "luna16_monai.networks.nodule_net.NoduleNet" in line
    assert main([*map(str, words), "--trust-bundle"]) == 2
    assert "no file" in capsys.readouterr().err


class Harm:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_weights_that_carry_code_are_refused_and_not_run(tmp_path):
    harm, path = tmp_path / "harm", tmp_path / "model.pt"
    torch.save({"weight": torch.zeros(1), "more": Harm(harm)}, path)
    message = (
        r"model\.pt holds no plain weights, or is damaged \(UnpicklingError\): name a file that this program wrote"
    )
    for read in (lambda: read_weights(path), lambda: load_initial_weights(NoduleNet(), str(path))):
        with pytest.raises(ValueError, match=message):
            read()
    # as a checkpoint, with the right hash in its name
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    path.rename(folder / f"iteration_000000009_{digest}.pt")
    with pytest.raises(ValueError, match="holds no plain weights"):
        small_run.build(tmp_path / "run", resume=True).run()
    assert not harm.exists()


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04" + bytes(100), gzip.compress(b"x", mtime=0)])
def test_weights_that_are_damaged_are_refused(tmp_path, content):
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(ValueError, match="holds no plain weights, or is damaged") as caught:
        read_weights(tmp_path / "model.pt")
    assert "\n" not in str(caught.value)


def loading_calls(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Calls of the form module.load(...) or module.loads(...): their name and their constant keywords."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("load", "loads"):
            constants = {word.arg or "": getattr(word.value, "value", None) for word in node.keywords}
            yield ast.unparse(node.func), constants


def test_package_loads_weights_as_weights_only_and_unpickles_nothing():
    calls = [call for path in sorted(PACKAGE.rglob("*.py")) for call in loading_calls(path.read_text(encoding="utf-8"))]
    loads = [words for name, words in calls if name == "torch.load"]
    assert loads
    assert all(words.get("weights_only") is True for words in loads)
    assert not {name.split(".")[0] for name, _ in calls} & {"pickle", "joblib", "dill", "marshal", "yaml"}
    assert not any(words.get("allow_pickle") for _, words in calls)
    for config in (ROOT / "bundles").rglob("*.yaml"):
        assert not re.search(r"torch\.load|CheckpointLoader|pickle", config.read_text(encoding="utf-8")), config


# --- what is told ---------------------------------------------------------------------------------------------------


def test_one_line_names_file_and_cure_of_what_the_system_refuses():
    assert one_line(OSError(28, "No space left on device", "/x/a.pt")) == (
        "/x/a.pt: No space left on device: free some space, or name a folder on another disk"
    )
    assert one_line(OSError(30, "Read-only file system", "/x")) == (
        "/x: Read-only file system: name another folder, or change its permissions"
    )
    with pytest.raises(MemoryError) as caught:
        np.empty(1 << 60, np.uint8)
    assert one_line(caught.value).endswith("give the process more memory, or use fewer workers")


def test_is_dead_worker_knows_a_broken_connection_from_other_errors():
    mine, theirs = multiprocessing.Pipe()
    theirs.close()
    with pytest.raises(EOFError) as broken:
        mine.recv()
    assert is_dead_worker(broken.value)
    assert is_dead_worker(RuntimeError("DataLoader worker (pid 766) is killed by signal: Killed. "))
    assert is_dead_worker(RuntimeError("DataLoader worker (pid(s) 766) exited unexpectedly"))
    assert not is_dead_worker(RuntimeError("Caught ValueError in DataLoader worker process 0."))
    assert not is_dead_worker(ConnectionResetError("of some other connection"))
