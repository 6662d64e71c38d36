"""LIDC-IDRI's CTs by idc-index: a stand-in for that package writes the files, as idc-index 0.13 lays them out."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from luna16_monai.cli.main import main
from luna16_monai.setup import lidc
from luna16_monai.setup.lidc import download_lidc

SERIES = [
    {"PatientID": f"LIDC-IDRI-000{k}", "StudyInstanceUID": f"1.{k}", "SeriesInstanceUID": f"1.{k}.1",
     "instanceCount": 2, "series_size_MB": 3.5}
    for k in (1, 2)
]  # fmt: skip


class Client:
    """Answers as idc_index.IDCClient."""

    lost = 0

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def sql_query(self, query: str) -> Any:
        assert re.fullmatch(
            r"SELECT [\w, ]+ FROM index WHERE collection_id = 'lidc_idri' AND Modality = 'CT' .*", query
        )
        return SimpleNamespace(to_dict=lambda kind: [dict(one) for one in SERIES] if kind == "records" else None)

    def download_from_selection(
        self, downloadDir: str, seriesInstanceUID: list[str], dirTemplate: str, show_progress_bar: bool
    ) -> None:
        self.calls.append({"series": seriesInstanceUID, "bar": show_progress_bar})
        for one in SERIES:
            if one["SeriesInstanceUID"] in seriesInstanceUID:
                place = re.sub(r"%(\w+)", lambda name, one=one: str(one[name[1]]), dirTemplate)
                folder = Path(downloadDir) / place
                folder.mkdir(parents=True, exist_ok=True)
                for k in range(2 - self.lost):
                    (folder / f"{k}.dcm").write_bytes(b"")


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    made, module = Client(), ModuleType("idc_index")
    module.IDCClient = SimpleNamespace(client=lambda: made)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "idc_index", module)
    monkeypatch.setattr(lidc, "require", lambda *_: None)
    return made


def test_download_lidc_fetches_what_is_not_there(client, tmp_path):
    told = download_lidc(tmp_path, ["LIDC-IDRI-0001"], progress=False)
    assert told == {"output": str(tmp_path), "series": 1, "fetched": 1, "bytes": 3_500_000}
    assert len(list((tmp_path / "LIDC-IDRI-0001" / "1.1" / "1.1.1").iterdir())) == 2
    told = download_lidc(tmp_path, progress=False)
    assert (told["series"], told["fetched"]) == (2, 1)
    assert download_lidc(tmp_path)["fetched"] == 0
    assert client.calls == [{"series": ["1.1.1"], "bar": False}, {"series": ["1.2.1"], "bar": False}]


def test_download_lidc_refuses_a_patient_that_is_none(client, tmp_path):
    with pytest.raises(ValueError, match="patient 'LIDC-IDRI-9999' is none of LIDC-IDRI's 2"):
        download_lidc(tmp_path / "new", ["LIDC-IDRI-9999"])
    assert not (tmp_path / "new").exists()


def test_download_lidc_fails_where_files_are_lost(client, tmp_path, capsys):
    client.lost = 1
    assert main(["download", "--lidc", "--output", str(tmp_path), "--patient", "LIDC-IDRI-0002"]) == 1
    assert "series 1.2.1 of LIDC-IDRI-0002 has 1 of 2 files: repeat the command" in capsys.readouterr().err


def test_download_lidc_fails_where_the_disk_is_too_small(client, tmp_path, monkeypatch):
    monkeypatch.setattr(lidc.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(RuntimeError, match="fetch a part with --patient"):
        download_lidc(tmp_path)
    assert not client.calls


def test_download_lidc_names_the_extra(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "idc_index", None)
    assert main(["download", "--lidc", "--output", str(tmp_path)]) == 1
    assert "idc-index is not installed, and --lidc needs it: pip install 'luna16_monai[idc]'" in capsys.readouterr().err
