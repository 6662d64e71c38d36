"""One file over HTTP: connections that drop, servers that lie, redirects."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import socket
from collections.abc import Callable
from typing import Any

import pytest
from mirror import CONTENT, TREE, fault, fetch, send, tree, zipped

from luna16_monai.setup import download as module
from luna16_monai.setup import fetching as module_fetching
from luna16_monai.setup.download import download


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
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # taken, and nobody listens there
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(RuntimeError, match=rf"{url}/records/3723295: .*refused.*, 6 times in a row"):
            download(tmp_path / "luna16", (0,), url, progress=False)
    assert os.listdir(tmp_path) == []


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
