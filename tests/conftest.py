"""One small phantom and its store for all tests, and the way to the shared data, which not everyone has."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browser import Browser

# Of tests that run side by side each has its share of the cores: with torch's thread for every core in each of them,
# they wait for each other. To be set before torch is imported.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "bundles" / "nodule_classification"


@pytest.fixture(scope="session")
def phantom_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight scans in LUNA16's layout, subset0 to subset7, 4 negatives to each positive. Not to be changed."""
    from luna16_monai.phantom.data_set import write_phantom
    from luna16_monai.phantom.nodules import ScanSettings

    output = tmp_path_factory.mktemp("data") / "phantom"
    settings = ScanSettings(slices=(32, 40), rows=96, nodules=(2, 3), negatives_per_positive=4.0)
    write_phantom(output, scans=8, seed=3, workers=1, progress=False, settings=settings)
    return output


@pytest.fixture(scope="session")
def store_dir(phantom_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantom, prepared at the bundle's spacing of 1.25 x 0.7 x 0.7 mm. Not to be changed."""
    from luna16_monai.store.preparation import Preparation
    from luna16_monai.store.prepare import prepare

    output = tmp_path_factory.mktemp("store") / "store"
    prepare(phantom_dir, output, Preparation.read(BUNDLE / "configs" / "prepare.yaml"), workers=1, progress=False)
    return output


@pytest.fixture(scope="session")
def two_sets(
    phantom_dir: Path, store_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Path], list[Path]]:
    """The phantom as two data folders of four scans each, without CTs, and their stores. Not to be changed."""
    index = json.loads((store_dir / "store.json").read_text(encoding="utf-8"))
    uids, root = sorted(index["series"]), tmp_path_factory.mktemp("two")
    data, stores = [root / "luna16", root / "own"], [root / "store_luna16", root / "store_own"]
    for number, (folder, store) in enumerate(zip(data, stores, strict=True)):
        folder.mkdir()
        store.mkdir()
        mine = uids[4 * number :][:4]
        for path in phantom_dir.glob("*.csv"):
            header, *rows = path.read_text(encoding="utf-8").splitlines()
            if path.name == "seriesuids.csv":
                header, rows = "", [header, *rows]
            kept = [row for row in rows if row.split(",")[0] in mine]
            (folder / path.name).write_text("\n".join([*([header] if header else []), *kept]) + "\n", encoding="utf-8")
        for uid in mine:
            for path in store_dir.glob(f"{uid}.*"):
                shutil.copy(path, store)
        part = {**index, "series": {uid: index["series"][uid] for uid in mine}}
        (store / "store.json").write_text(json.dumps(part), encoding="utf-8")
    return data, stores


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """The path of something in the shared folder; the test is skipped where it is absent."""
    folder = ROOT / os.environ.get("LUNA16_SHARED", "../shared")

    def find(name: str) -> Path:
        if not (folder / name).exists():
            pytest.skip(f"no {name} in {folder}: set LUNA16_SHARED to the folder that holds it")
        return folder / name

    return find


@pytest.fixture
def lint() -> Callable[[str, Path], subprocess.CompletedProcess[str]]:
    """Runs a linter of the extra dev on a file; the test is skipped where it is not installed."""

    def run(linter: str, path: Path) -> subprocess.CompletedProcess[str]:
        beside = Path(sys.executable).with_name(linter)
        program = str(beside) if beside.exists() else shutil.which(linter)
        if program is None:
            pytest.skip(f"no {linter}: make setup installs it")
        return subprocess.run([program, str(path)], capture_output=True, encoding="utf-8", check=False)

    return run


@pytest.fixture(scope="class")
def browser() -> Iterator[Browser]:
    """A headless Chromium, for the tests of a class."""
    with Browser() as opened:
        yield opened


@pytest.fixture(autouse=True)
def track_meta() -> Iterator[None]:
    """MONAI's tracking of affines as it is by default, whatever a test before has switched off."""
    from monai.data import set_track_meta

    set_track_meta(True)
    yield
    set_track_meta(True)
