"""Fetching LUNA16 from a server of our own that drops connections, lies and sends what nobody asked for."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from mirror import CONTENT, TREE, TWO, fetch, send, tree, zipped

from luna16_monai.ct.folders import find_cts
from luna16_monai.setup import archives
from luna16_monai.setup import download as module
from luna16_monai.setup.download import download
from luna16_monai.tables.luna16 import read_annotations, read_candidates, read_excluded, read_series_list

KEYS = ["annotations.csv", "candidates_V2.zip", "evaluationScript.zip", "subset0.zip"]


# --- a good server --------------------------------------------------------------------------------------------------


def test_download_leaves_luna16s_layout(mirror, output):
    result = fetch(mirror, output, 7, 0)
    assert tree(output) == TREE | {"subset7/1.7.mhd", "subset7/1.7.raw"}
    assert {name: (output / name).read_text() for name in CONTENT} == CONTENT
    assert [(ct.series_uid, ct.subset) for ct in find_cts(output)] == [("1.1", 0), ("1.2", 0), ("1.7", 7)]
    assert [len(read(output)) for read in (read_annotations, read_candidates, read_excluded)] == [1, 2, 1]
    assert read_series_list(output) == ("1.1", "1.2", "1.7")
    assert result == {
        "output": str(output),
        "subsets": [0, 7],
        "series": 3,
        "fetched": [*KEYS, "subset7.zip"],
        "there": [],
        "bytes": sum(map(len, mirror.files.values())),
    }
    assert json.loads(json.dumps(result)) == result
    assert not list((output / module.ASIDE).glob("*.part"))


def test_download_fetches_nothing_twice(mirror, output):
    fetch(mirror, output)
    del mirror.asked[:]
    result = fetch(mirror, output)
    assert (result["fetched"], result["there"], result["series"], result["bytes"]) == ([], KEYS, 2, 0)
    assert {key for key, _ in mirror.asked} == {"record"}


def test_download_without_subsets_fetches_the_tables_alone(mirror, output):
    assert download(output, (), mirror.url, progress=False)["fetched"] == KEYS[:3]
    assert tree(output) == set(CONTENT)
    assert mirror.fetched("record") == [0], "the second record has no tables, so it is not asked"


def test_download_fetches_again_what_was_deleted_or_published_anew(mirror, output):
    fetch(mirror, output)
    (output / "subset0" / "1.2.raw").unlink()
    assert fetch(mirror, output)["fetched"] == ["subset0.zip"]
    assert tree(output) == TREE
    mirror.files["candidates_V2.zip"] = zipped({"candidates_V2/candidates_V2.csv": "new\n"})
    assert fetch(mirror, output)["fetched"] == ["candidates_V2.zip"]
    assert (output / "candidates_V2.csv").read_text() == "new\n"


def test_download_takes_a_marker_for_nothing_more_than_it_is(mirror, output):
    fetch(mirror, output)
    for text in ("", "[]", '{"md5": 1, "files": []}'):
        (output / module.ASIDE / "subset0.zip.json").write_text(text)
        assert fetch(mirror, output)["fetched"] == ["subset0.zip"]


def test_download_keeps_archives_on_request_and_takes_what_lies_there(mirror, output):
    fetch(mirror, output, keep_archives=True)
    archives = {key for key in KEYS if key.endswith(".zip")}
    assert tree(output) == TREE | archives
    shutil.rmtree(output / "subset0")
    shutil.rmtree(output / module.ASIDE)
    del mirror.asked[:]
    result = fetch(mirror, output)
    assert (result["fetched"], result["there"], result["bytes"]) == ([], KEYS, 0)
    assert tree(output) == TREE | archives
    assert {key for key, _ in mirror.asked} == {"record"}


@pytest.mark.parametrize(("name", "content"), [("annotations.csv", b"mine"), ("subset0.zip", b"half of it")])
def test_download_leaves_a_file_alone_that_is_not_the_published_one(mirror, output, name, content):
    output.mkdir()
    (output / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is there, but not as published .*: move it away"):
        fetch(mirror, output)
    assert (output / name).read_bytes() == content


def test_download_shows_its_progress_on_standard_error(mirror, output, capsys):
    download(output, (0,), mirror.url, progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "subset0.zip" in captured.err
    assert "100%" in captured.err


@pytest.mark.parametrize("link", ["3723295/files/{}/content", "/api/records/3723295/files/{}/content"])
def test_download_reads_links_relative_to_the_record(mirror, output, link):
    mirror.change = lambda file: file["links"].update(self=link.format(file["key"]))
    fetch(mirror, output)
    assert tree(output) == TREE


# --- addresses and records ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["file:///data", "ftp://x/y", "example.org", "", "http:///x", "http://[x"])
def test_download_takes_only_web_addresses_for_a_mirror(tmp_path, url):
    with pytest.raises(ValueError, match=r"--base-url .* begins with https:// or http://"):
        download(tmp_path / "luna16", (0,), url, progress=False)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [-1, 10])
def test_download_knows_ten_subsets(tmp_path, number):
    with pytest.raises(ValueError, match=f"subset {number}: LUNA16 has 0 to 9"):
        download(tmp_path, (0, number), progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": "12"}, "size '12' is no number of bytes"),
        ({"size": 0}, "size 0 is no number"),
        ({"size": 10**15}, "size 1000000000000000 is no number of bytes up to 40.0 GB"),
        ({"checksum": "md5:../../x"}, "checksum .* is no md5"),
        ({"checksum": None}, "checksum None is no md5"),
        ({"links": {}}, "size, checksum or links.self is missing"),
        ({"links": {"self": 5}}, "links.self 5 is no address"),
        ({"links": {"self": "file:///etc/passwd"}}, "leads to file:///etc/passwd"),
        ({"key": "other.zip"}, "lists no annotations.csv"),
    ],
)
def test_download_refuses_a_record_that_cannot_be(mirror, output, change, message):
    mirror.change = lambda file: file.update(change)
    with pytest.raises(ValueError, match=message):
        fetch(mirror, output)
    assert not output.exists()


@pytest.mark.parametrize("text", [b"<html>", b"[]", b'{"files": 5}', b"[" * 100_000])
def test_download_refuses_what_is_no_record(mirror, output, text):
    mirror.faults["record"] = [lambda request, body, start: send(request, text, 0)]
    with pytest.raises(ValueError, match="does not answer as a Zenodo record does"):
        fetch(mirror, output)


# --- the disk, and other programs -----------------------------------------------------------------------------------


def test_download_checks_the_room_before_it_fetches(mirror, output, monkeypatch, large):
    # 1 MB as archive, expected to be 2 MB unpacked; the tables take less than 3 kB
    for free, fits in ((2_990_000, False), (3_010_000, True)):
        monkeypatch.setattr(module.shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        if fits:
            fetch(mirror, output)
            continue
        with pytest.raises(RuntimeError, match=r"luna16 has 0.0 GB free, but 0.0 GB are needed \(.*--output.*--subset"):
            fetch(mirror, output)
        assert mirror.fetched("annotations.csv") == []


def test_download_tells_the_room_in_gigabytes(mirror, output, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=5 * 10**9))
    mirror.change = lambda file: file.update(size=7 * 10**9) if file["key"] == "subset0.zip" else None
    with pytest.raises(RuntimeError, match=r"5.0 GB free, but 21.0 GB are needed \(7.0 GB for archives, about 14.0 GB"):
        fetch(mirror, output)


KILLED = """
import sys
from pathlib import Path
from luna16_monai.setup.download import download
download(Path(sys.argv[1]), [0], sys.argv[2], progress=False)
"""


def test_download_goes_on_after_it_was_killed(mirror, output, large):
    reached, never = threading.Event(), threading.Event()

    def stall(request: Any, body: bytes, start: int) -> None:
        send(request, body, start, upto=600_000)
        request.wfile.flush()
        reached.set()
        never.wait(60)

    mirror.faults["subset0.zip"] = [stall]
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(output), mirror.url])
    try:
        assert reached.wait(60)
        # two whole blocks of 262,144 bytes have come, the third has not
        part = next((output / module.ASIDE).glob("subset0.zip.*.part"))
        for _ in range(500):
            if part.stat().st_size == 524_288:
                break
            threading.Event().wait(0.02)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
        never.set()
    assert tree(output) == set(CONTENT)
    assert fetch(mirror, output)["fetched"] == ["subset0.zip"]
    assert mirror.fetched("subset0.zip") == [0, 524_288]
    assert tree(output) == {*CONTENT, "subset0/1.1.mhd", "subset0/1.1.raw"}


def test_download_stopped_while_unpacking_leaves_no_half_file_and_fetches_nothing_again(mirror, output, monkeypatch):
    copied: list[Any] = []

    def copy(source: Any, target: Any, length: int) -> None:
        copied.append(source)
        if len(copied) == 5:  # three tables, one file of voxels, and half of the next
            target.write(b"half")
            raise KeyboardInterrupt
        shutil.copyfileobj(source, target, length)

    monkeypatch.setattr(archives, "shutil", SimpleNamespace(copyfileobj=copy, disk_usage=shutil.disk_usage))
    with pytest.raises(KeyboardInterrupt):
        fetch(mirror, output)
    assert tree(output) == {*CONTENT, "subset0/1.1.raw"}, "a header comes after its voxels"
    del mirror.asked[:]
    fetch(mirror, output)
    assert tree(output) == TREE
    assert {key for key, _ in mirror.asked} == {"record"}


def test_download_refuses_to_work_beside_another(mirror, output):
    (output / module.ASIDE).mkdir(parents=True)
    with (
        module._alone(output / module.ASIDE),
        pytest.raises(RuntimeError, match=r"another luna16 download works in .*luna16: wait"),
    ):
        fetch(mirror, output)


def test_download_removes_an_archive_that_is_refused(mirror, output):
    mirror.files["subset0.zip"] = zipped({**TWO, "../evil.mhd": b"x"})
    with pytest.raises(ValueError, match="no plain path"):
        fetch(mirror, output)
    assert tree(output) == set(CONTENT)
    assert not list((output / module.ASIDE).glob("*.part"))
