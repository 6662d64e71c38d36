"""Fetching LUNA16 from a server of our own that drops connections, lies and sends what nobody asked for."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from drawn_scans import write_scan

from luna16_monai.ct.folders import find_cts
from luna16_monai.setup import archives
from luna16_monai.setup import download as module
from luna16_monai.setup import fetching as module_fetching
from luna16_monai.setup.archives import unpack
from luna16_monai.setup.download import download
from luna16_monai.tables.luna16 import read_annotations, read_candidates, read_excluded, read_series_list

POINTS = "seriesuid,coordX,coordY,coordZ"
CONTENT = {
    "annotations.csv": f"{POINTS},diameter_mm\n1.1,0,0,0,5.5\n",
    "candidates_V2.csv": f"{POINTS},class\n1.1,0,0,0,1\n1.2,1,1,1,0\n",
    "annotations_excluded.csv": f"{POINTS},diameter_mm\n1.2,1,1,1,-1\n",
    "seriesuids.csv": "1.1\n1.2\n1.7\n",
}


def zipped(members: dict[str, bytes | str], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def scan(folder: Path, uid: str) -> dict[str, bytes]:
    """A true CT of 4 x 6 x 8 voxels, as the members of an archive."""
    write_scan(folder, uid, np.zeros((4, 6, 8), np.int16), None, (0, 0, 0), (1, 1, 1))
    return {f"{folder.name}/{path.name}": path.read_bytes() for path in sorted(folder.glob(f"{uid}.*"))}


class Mirror:
    """A server of both records. ``faults`` holds for each file what happens to the next requests for it."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.faults: dict[str, list[Callable[..., None]]] = {}
        self.ranges = True
        self.asked: list[tuple[str, int]] = []
        self.served: Counter[str] = Counter()
        self.change: Callable[[dict[str, Any]], None] = lambda file: None
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mirror.answer(self)

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/api"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def record(self, number: int) -> dict[str, Any]:
        files = []
        for key, content in self.files.items():
            if key in module.RECORDS[number]:
                checksum = "md5:" + hashlib.md5(content).hexdigest()
                link = f"{module.SITE}/records/{number}/files/{key}/content"
                files.append({"key": key, "size": len(content), "checksum": checksum, "links": {"self": link}})
        for file in files:
            self.change(file)
        return {"id": number, "files": files}

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        words = request.path.split("/")  # /api/records/3723295/files/subset0.zip/content
        key = words[5] if len(words) > 5 else "record"
        body = self.files[key] if len(words) > 5 else json.dumps(self.record(int(words[3]))).encode()
        told = request.headers.get("Range")
        start = int(told.removeprefix("bytes=").removesuffix("-")) if told and self.ranges else 0
        self.asked.append((key, start))
        fault = self.faults[key].pop(0) if self.faults.get(key) else send
        fault(request, body, start)
        request.wfile.flush()

    def fetched(self, key: str) -> list[int]:
        """From which bytes on a file was asked for."""
        return [start for name, start in self.asked if name == key]


def send(request: Any, body: bytes, start: int, announce: int = 0, upto: int | None = None, more: bytes = b"") -> None:
    """Answer as a good server does; or announce so many bytes more, or send the body only up to a byte, or more."""
    request.send_response(206 if start else 200)
    if start:
        request.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
    if not more:
        request.send_header("Content-Length", str(len(body) - start + announce))
    request.end_headers()
    request.wfile.write(body[start:upto] + more)


def fault(**how: Any) -> Callable[..., None]:
    return lambda request, body, start: send(request, body, start, **how)


def refuse(code: int, **headers: str) -> Callable[..., None]:
    def answer(request: Any, body: bytes, start: int) -> None:
        request.send_response(code)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return answer


def garble(request: Any, body: bytes, start: int) -> None:
    send(request, body[:-1] + bytes([body[-1] ^ 1]), start)


def wrong_range(request: Any, body: bytes, start: int) -> None:
    request.send_response(206)
    request.send_header("Content-Range", f"bytes 0-{len(body) - 1}/{len(body)}")
    request.end_headers()
    request.wfile.write(body)


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


def tree(folder: Path, hidden: bool = False) -> set[str]:
    """The files below a folder; those of the download's own folder only on request."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return names if hidden else {name for name in names if not name.startswith(module.ASIDE)}


TREE = {*CONTENT, *(f"subset0/{uid}.{kind}" for uid in ("1.1", "1.2") for kind in ("mhd", "raw"))}
KEYS = ["annotations.csv", "candidates_V2.zip", "evaluationScript.zip", "subset0.zip"]


def fetch(mirror: Mirror, output: Path, *subsets: int, **more: Any) -> dict[str, Any]:
    return download(output, subsets or (0,), mirror.url, progress=False, **more)


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


# --- a bad line -----------------------------------------------------------------------------------------------------


@pytest.fixture
def large(mirror) -> bytes:
    """Subset 0 with a scan that does not compress: 1,000,000 bytes and a little."""
    noise = random.Random(0).randbytes(1_000_000)
    mirror.files["subset0.zip"] = zipped({"subset0/1.1.mhd": "header", "subset0/1.1.raw": noise}, zipfile.ZIP_STORED)
    return mirror.files["subset0.zip"]


def test_download_goes_on_where_the_connection_dropped(mirror, output, large, pauses):
    mirror.faults["subset0.zip"] = [fault(upto=600_000), fault(upto=700_000)]
    fetch(mirror, output)
    # every byte was served once
    assert mirror.fetched("subset0.zip") == [0, 600_000, 700_000]
    assert (output / "subset0" / "1.1.raw").read_bytes() == random.Random(0).randbytes(1_000_000)
    # the first attempt brought more than a block, so its failure is the first; the second brought less
    assert pauses == [1, 2]


def test_download_begins_anew_where_the_server_knows_no_ranges(mirror, output, large):
    mirror.ranges = False
    mirror.faults["subset0.zip"] = [fault(upto=600_000)]
    fetch(mirror, output)
    assert mirror.fetched("subset0.zip") == [0, 0]
    assert (output / "subset0" / "1.1.raw").stat().st_size == 1_000_000


def test_download_gives_up_after_pauses_that_grow(mirror, output, pauses):
    mirror.faults["subset0.zip"] = [fault(upto=10)] * 9
    with pytest.raises(RuntimeError, match=r"subset0.zip: the connection dropped after 10 of \d+ bytes, 6 times in a"):
        fetch(mirror, output)
    assert pauses == [1, 2, 4, 8, 16]
    assert tree(output) == set(CONTENT)
    mirror.faults.clear()
    assert fetch(mirror, output)["fetched"] == ["subset0.zip"]
    assert mirror.fetched("subset0.zip") == [0, *[10] * 6]


def test_download_does_not_give_up_while_something_comes(mirror, output, monkeypatch):
    monkeypatch.setattr(module_fetching, "BLOCK", 10)
    mirror.faults["subset0.zip"] = [fault(upto=10 * number) for number in range(1, 10)]
    fetch(mirror, output)
    assert mirror.fetched("subset0.zip") == [10 * number for number in range(10)]
    assert tree(output) == TREE


def test_download_gives_up_on_a_server_that_always_begins_anew(mirror, output, large, pauses):
    mirror.ranges = False
    mirror.faults["subset0.zip"] = [fault(upto=600_000)] * 20
    with pytest.raises(RuntimeError, match="dropped"):
        fetch(mirror, output)
    assert mirror.fetched("subset0.zip") == [0] * 6


@pytest.mark.parametrize(
    ("announce", "message"), [(-7, "announces {} bytes, but {} of"), (7, "announces {} bytes, but {} of")]
)
def test_download_catches_a_content_length_that_lies(mirror, output, announce, message):
    size = len(mirror.files["subset0.zip"])
    mirror.faults["subset0.zip"] = [fault(announce=announce)] * 6
    with pytest.raises(RuntimeError, match=message.format(size + announce, size)):
        fetch(mirror, output)
    assert tree(output) == set(CONTENT)
    fetch(mirror, output)
    assert tree(output) == TREE


def test_download_catches_more_bytes_than_the_record_has(mirror, output):
    mirror.faults["subset0.zip"] = [fault(more=b"surplus")] * 6
    with pytest.raises(RuntimeError, match=f"sends more than the {len(mirror.files['subset0.zip'])} bytes"):
        fetch(mirror, output)
    assert tree(output) == set(CONTENT)


def test_download_catches_a_range_that_was_not_asked_for(mirror, output, large):
    mirror.faults["subset0.zip"] = [fault(upto=600_000), wrong_range]
    fetch(mirror, output)
    assert mirror.fetched("subset0.zip") == [0, 600_000, 0]
    assert tree(output) == {*CONTENT, "subset0/1.1.mhd", "subset0/1.1.raw"}


def test_download_begins_anew_where_the_server_has_no_such_range(mirror, output, large):
    mirror.faults["subset0.zip"] = [fault(upto=600_000), refuse(416)]
    fetch(mirror, output)
    assert mirror.fetched("subset0.zip") == [0, 600_000, 0]


def test_download_begins_anew_where_more_lies_there_than_there_is(mirror, output):
    md5 = hashlib.md5(mirror.files["subset0.zip"]).hexdigest()
    (output / module.ASIDE).mkdir(parents=True)
    (output / module.ASIDE / f"subset0.zip.{md5}.part").write_bytes(bytes(10_000_000))
    fetch(mirror, output)
    assert mirror.fetched("subset0.zip") == [0]
    assert tree(output) == TREE


def test_download_begins_anew_where_the_record_has_another_checksum(mirror, output, large):
    mirror.faults["subset0.zip"] = [fault(upto=600_000), *[refuse(503)] * 5]
    with pytest.raises(RuntimeError, match="answers 503"):
        fetch(mirror, output)
    mirror.files["subset0.zip"] = large[:-1] + b"!"
    mirror.files["subset0.zip"] = zipped({"subset0/1.1.mhd": "new", "subset0/1.1.raw": "new"})
    fetch(mirror, output)
    assert mirror.fetched("subset0.zip")[-1] == 0
    assert (output / "subset0" / "1.1.raw").read_text() == "new"
    assert not list((output / module.ASIDE).glob("*.part"))


def test_download_fetches_wrong_bytes_once_more_and_then_gives_up(mirror, output):
    mirror.faults["subset0.zip"] = [garble]
    fetch(mirror, output)
    assert mirror.fetched("subset0.zip") == [0, 0]
    shutil.rmtree(output)
    mirror.faults["subset0.zip"] = [garble, garble]
    with pytest.raises(RuntimeError, match=r"subset0.zip from .* came twice with the wrong md5"):
        fetch(mirror, output)
    assert tree(output) == set(CONTENT)
    assert not list((output / module.ASIDE).glob("*.part"))


def test_download_waits_as_long_as_the_server_asks(mirror, output, pauses):
    mirror.faults["subset0.zip"] = [refuse(429, Retry_After="7"), refuse(503, Retry_After="100000")]
    mirror.faults["record"] = [refuse(500)]
    fetch(mirror, output)
    assert pauses == [1, 7, 60]


@pytest.mark.parametrize("code", [403, 404, 410])
def test_download_does_not_ask_again_for_what_is_refused(mirror, output, pauses, code):
    mirror.faults["subset0.zip"] = [refuse(code)]
    with pytest.raises(RuntimeError, match=f"subset0.zip/content: the server answers {code} .*--base-url"):
        fetch(mirror, output)
    assert pauses == []


def test_download_tells_that_nobody_answers(tmp_path, pauses):
    with pytest.raises(RuntimeError, match=r"http://127.0.0.1:1/records/3723295: .*refused.*, 6 times in a row"):
        download(tmp_path / "luna16", (0,), "http://127.0.0.1:1", progress=False)
    assert os.listdir(tmp_path) == []


# --- addresses and records ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "gopher://x/"])
def test_download_follows_no_redirect_out_of_the_web(mirror, output, location):
    mirror.faults["subset0.zip"] = [refuse(302, Location=location)] * 6
    with pytest.raises((ValueError, RuntimeError), match=r"subset0.zip.*(leads to|not allowed)"):
        fetch(mirror, output)
    assert tree(output) == set(CONTENT)
    assert mirror.fetched("subset0.zip") == [0]


def test_download_follows_a_redirect_and_keeps_its_range(mirror, output, large):
    there = f"{mirror.url}/records/3723295/files/subset0.zip/content"
    mirror.faults["subset0.zip"] = [fault(upto=600_000), refuse(302, Location=there)]
    fetch(mirror, output)
    assert mirror.fetched("subset0.zip") == [0, 600_000, 600_000]


def test_redirects_never_give_up_encryption():
    request = module_fetching.urllib.request.Request("https://example.org/a")
    with pytest.raises(ValueError, match=r"https://example.org/a leads to http://example.org/b, without encryption"):
        module_fetching._Redirects().redirect_request(request, None, 302, "Found", {}, "http://example.org/b")
    followed = module_fetching._Redirects().redirect_request(request, None, 302, "Found", {}, "https://example.org/b")
    assert followed.full_url == "https://example.org/b"


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


# --- archives -------------------------------------------------------------------------------------------------------


def special(name: str, mode: int, content: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        member = zipfile.ZipInfo(name)
        member.external_attr = mode << 16
        archive.writestr(member, content)
    return buffer.getvalue()


def understated(members: dict[str, bytes]) -> bytes:
    """An archive whose list says that its first member unpacks to 100 bytes."""
    content = bytearray(zipped(members))
    at = content.index(b"PK\1\2") + 24
    content[at : at + 4] = (100).to_bytes(4, "little")
    return bytes(content)


TWO = {"subset0/1.1.mhd": b"header", "subset0/1.1.raw": b"voxels"}


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        *((zipped({**TWO, name: b"x"}), "no plain path; nothing of it is unpacked") for name in (
            "../1.2.mhd", "subset0/../../1.2.raw", "/tmp/1.2.mhd", "..\\..\\1.2.mhd", "C:/1.2.mhd", "subset0//1.2.mhd",
            "./1.2.mhd", "subset0/1.2\n.mhd", "../harmless.txt",
        )),
        (special("subset0/1.1.mhd", stat.S_IFLNK | 0o777, "/etc/passwd"), "a link or another special file"),
        (special("subset0/1.1.mhd", stat.S_IFIFO | 0o777, ""), "a link or another special file"),
        (zipped({**TWO, "subset0/1.2.raw": bytes(10_000_000)}), "would unpack to 0.0 GB from 0.0 GB, more than CTs"),
        (understated({"1.1.raw": bytes(1000), "1.1.mhd": b"header"}), "cannot be unpacked"),
        (zipped({**TWO, "1.1.raw": b"other"}), "holds 1.1.raw twice"),
        (zipped(TWO, zipfile.ZIP_BZIP2), r"1.1.mhd in a form that Python cannot unpack \(method 12\).*7z"),
        (zipped({"subset0/1.1.mhd": b"header"}), "is incomplete, subset0/1.1.raw is missing"),
        (zipped({"readme.txt": b"nothing here"}), r"is incomplete, subset0/\*.mhd is missing"),
        (zipped(TWO)[:-30], "cannot be unpacked .File is not a zip file"),
        (zipped({**TWO, "1.2.raw": b"v" * 50}, zipfile.ZIP_STORED).replace(b"v" * 50, b"w" * 50), "Bad CRC-32"),
    ],
)  # fmt: skip
def test_unpack_refuses(tmp_path, archive, message):
    path, output = tmp_path / "archive", tmp_path / "data" / "luna16"
    path.write_bytes(archive)
    output.mkdir(parents=True)
    with pytest.raises(ValueError, match=f"subset0.zip .*{message}"):
        unpack(path, "subset0.zip", output)
    # what was whole before a damaged member was met may stay, but nothing of that member, and no header
    assert tree(tmp_path, hidden=True) - {"data/luna16/subset0/1.1.raw"} == {"archive"}


def test_unpack_cuts_nothing_off_a_name(tmp_path):
    # zipfile would read this name up to the NUL
    (tmp_path / "archive").write_bytes(zipped({"1.1.mhd#.txt": b"x"}).replace(b"mhd#", b"mhd\0"))
    with pytest.raises(ValueError, match=r"'1.1.mhd\\x00.txt', no plain path"):
        unpack(tmp_path / "archive", "subset0.zip", tmp_path)


def test_unpack_leaves_other_files_in_the_archive(tmp_path):
    more = {"subset0/.1.2.mhd": b"x", "__MACOSX/subset0/._1.1.mhd": b"x", "subset0/run.sh": b"x", "subset0/": b""}
    (tmp_path / "archive").write_bytes(zipped({**TWO, **more}))
    (tmp_path / "data").mkdir()
    assert unpack(tmp_path / "archive", "subset0.zip", tmp_path / "data") == {
        "subset0/1.1.mhd": 6,
        "subset0/1.1.raw": 6,
    }
    assert tree(tmp_path / "data") == {"subset0/1.1.mhd", "subset0/1.1.raw"}


def test_unpack_takes_archives_with_and_without_a_folder_of_their_own(tmp_path):
    for number, folder in enumerate(("", "subset3/", "subset3\\", "LUNA16/subset3/")):
        (tmp_path / "archive").write_bytes(zipped({f"{folder}1.1.mhd": b"header", f"{folder}1.1.zraw": b"voxels"}))
        output = tmp_path / str(number)
        output.mkdir()
        unpack(tmp_path / "archive", "subset3.zip", output)
        assert tree(output) == {"subset3/1.1.mhd", "subset3/1.1.zraw"}


@pytest.mark.parametrize(("limit", "message"), [("MOST_MEMBERS", "has 2 members"), ("LONGEST_LIST", "list of members")])
def test_unpack_refuses_a_list_of_members_without_end(tmp_path, monkeypatch, limit, message):
    (tmp_path / "archive").write_bytes(zipped(TWO))
    monkeypatch.setattr(archives, limit, 1 if limit == "MOST_MEMBERS" else 100)
    with pytest.raises(ValueError, match=message):
        unpack(tmp_path / "archive", "subset0.zip", tmp_path)


def test_unpack_checks_the_room_for_what_is_in_it(tmp_path, monkeypatch):
    (tmp_path / "archive").write_bytes(zipped(TWO))
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=11))
    with pytest.raises(RuntimeError, match=r"subset0.zip unpacks to 0.0 GB: free some space"):
        unpack(tmp_path / "archive", "subset0.zip", tmp_path)
    assert tree(tmp_path) == {"archive"}


def test_unpack_names_the_table_that_is_missing(tmp_path):
    (tmp_path / "archive").write_bytes(zipped({"evaluationScript/annotations/seriesuids.csv": "1.1\n"}))
    with pytest.raises(ValueError, match=r"evaluationScript.zip is incomplete, annotations_excluded.csv is missing"):
        unpack(tmp_path / "archive", "evaluationScript.zip", tmp_path)


def test_download_removes_an_archive_that_is_refused(mirror, output):
    mirror.files["subset0.zip"] = zipped({**TWO, "../evil.mhd": b"x"})
    with pytest.raises(ValueError, match="no plain path"):
        fetch(mirror, output)
    assert tree(output) == set(CONTENT)
    assert not list((output / module.ASIDE).glob("*.part"))
