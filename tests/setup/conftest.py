"""A mirror of LUNA16 that answers at once."""

from __future__ import annotations

import random
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from mirror import CONTENT, Mirror, scan, zipped

from luna16_monai.setup import fetching as module_fetching


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    """The pauses between attempts, in seconds; none is made."""
    made: list[float] = []
    monkeypatch.setattr(module_fetching, "time", SimpleNamespace(sleep=made.append))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return made


@pytest.fixture
def mirror(tmp_path, pauses) -> Iterator[Mirror]:
    """All tables, subset 0 with two scans and subset 7 with one."""
    script = {
        f"evaluationScript/annotations/{name}.csv": CONTENT[f"{name}.csv"]
        for name in ("annotations_excluded", "seriesuids")
    }
    script |= {"evaluationScript/evaluate.py": "print(1)", "evaluationScript/exampleFiles/seriesuids.csv": "other\n"}
    made = tmp_path / "made"
    server = Mirror(
        {
            "annotations.csv": CONTENT["annotations.csv"].encode(),
            "candidates_V2.zip": zipped({"candidates_V2.csv": CONTENT["candidates_V2.csv"]}),
            "evaluationScript.zip": zipped(script),
            "subset0.zip": zipped({**scan(made / "subset0", "1.1"), **scan(made / "subset0", "1.2")}),
            "subset7.zip": zipped(scan(made / "subset7", "1.7")),
        }
    )
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture
def output(tmp_path) -> Path:
    return tmp_path / "luna16"


@pytest.fixture
def large(mirror) -> bytes:
    """Subset 0 with a scan that does not compress: 1,000,000 bytes and a little."""
    noise = random.Random(0).randbytes(1_000_000)
    mirror.files["subset0.zip"] = zipped({"subset0/1.1.mhd": "header", "subset0/1.1.raw": noise}, zipfile.ZIP_STORED)
    return mirror.files["subset0.zip"]
