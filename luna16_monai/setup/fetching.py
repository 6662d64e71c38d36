"""Fetch a file over HTTP: resumable, with its length and checksum checked."""

from __future__ import annotations

import http.client
import logging
import os
import re
import ssl
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from tqdm import tqdm

from luna16_monai import __version__

Result = TypeVar("Result")

logger = logging.getLogger(__name__)

BLOCK = 1 << 18
TIMEOUT_S = 60
ATTEMPTS, FIRST_PAUSE_S, LONGEST_PAUSE_S = 6, 1.0, 60.0
PASSING = {408, 425, 429, 500, 502, 503, 504}
"""Answers of a server that may be others a moment later."""


@dataclass(frozen=True)
class Archive:
    """A file of a record, as the record lists it: its name, address, size in bytes and md5 in hexadecimal."""

    key: str
    url: str
    size: int
    md5: str


class Interruption(Exception):
    """What another attempt may mend.

    Args:
        gained: whether the attempt brought anything that stays.
        wait_s: what the server asks for.
    """

    def __init__(self, text: str, gained: bool = False, wait_s: float = 0.0) -> None:
        super().__init__(text)
        self.gained, self.wait_s = gained, wait_s


class _NoSuchRange(Interruption):
    """What is there of a file ends where the server's file has no more to give."""


# --- fetching -------------------------------------------------------------------------------------------------------


def require_web(url: str, came_from: str | None = None) -> None:
    """Refuse what is no web address, and one without encryption that an encrypted one leads to."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        host = None
    if host is None or parts.scheme not in ("http", "https"):
        leads = f"{came_from} leads to {url}" if came_from else f"--base-url {url}"
        raise ValueError(f"{leads}: an address that begins with https:// or http:// was expected")
    if parts.scheme == "http" and came_from is not None and came_from.startswith("https:"):
        raise ValueError(f"{came_from} leads to {url}, without encryption: name a mirror with --base-url")


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        require_web(newurl, req.full_url)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    # not build_opener, which also opens file:, ftp: and data:
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


def open_address(url: str, start: int = 0) -> http.client.HTTPResponse:
    """Ask for a file from a byte on."""
    headers = {"User-Agent": f"luna16_monai/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        return _opener().open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        text = f"the server answers {error.code} {error.reason}"
        if error.code == 416 and start:
            raise _NoSuchRange(text) from error
        if error.code in PASSING:
            raise Interruption(text, wait_s=_asked_pause(error.headers.get("Retry-After"))) from error
        raise RuntimeError(f"{url}: {text}: try later, or name a mirror with --base-url") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise RuntimeError(
                f"{url}: its certificate is not trusted ({reason.verify_message}): install the system's certificates, "
                "or name your proxy's in SSL_CERT_FILE"
            ) from error
        raise Interruption(str(reason) or type(reason).__name__) from error


def _asked_pause(header: str | None) -> float:
    return min(float(header), LONGEST_PAUSE_S) if header is not None and header.isdecimal() else 0.0


def read_block(response: http.client.HTTPResponse, size: int) -> bytes:
    """Read up to so many bytes; a connection that drops is an `Interruption`."""
    try:
        return response.read(size)
    except (OSError, http.client.HTTPException) as error:
        raise Interruption(f"the connection dropped ({error})") from error


def persist(name: str, attempt: Callable[[], Result]) -> Result:
    """Try again, after pauses that grow, until some attempts in a row have brought nothing."""
    failures = 0
    while True:
        try:
            return attempt()
        except Interruption as error:
            failures = 1 if error.gained else failures + 1
            if failures == ATTEMPTS:
                raise RuntimeError(
                    f"{name}: {error}, {ATTEMPTS} times in a row: run the same command again later, it goes on where "
                    "it stopped; or name a mirror with --base-url"
                ) from error
            pause = max(min(FIRST_PAUSE_S * 2 ** (failures - 1), LONGEST_PAUSE_S), error.wait_s)
            logger.warning("%s: %s: again in %.0f s", name, error, pause)
            time.sleep(pause)


def fetch(archive: Archive, part: Path, bar: tqdm[Any]) -> None:
    """Fetch an archive into a file, going on at its end, until it has the right length."""
    furthest = there = min(size_of(part), archive.size)
    skip_on_bar(bar, there)

    def attempt() -> None:
        nonlocal furthest
        try:
            _fetch_on(archive, part, bar)
        except Interruption as error:
            # counted from the furthest place, for a server that always begins anew never ends
            error.gained = size_of(part) - furthest >= BLOCK
            furthest = max(furthest, size_of(part))
            raise

    if size_of(part) != archive.size:
        persist(archive.key, attempt)


def _fetch_on(archive: Archive, part: Path, bar: tqdm[Any]) -> None:
    """One attempt; what it has brought stays, unless it contradicts what the record says."""
    with open(part, "ab") as stream:
        have = stream.tell()

        def begin_anew() -> None:
            nonlocal have
            stream.truncate(0)
            skip_on_bar(bar, -min(have, archive.size))
            have = 0

        if have > archive.size:
            begin_anew()
        try:
            response = open_address(archive.url, have)
        except _NoSuchRange:
            begin_anew()
            raise
        with response:
            if response.status != 206:
                begin_anew()  # a server without ranges sends all of it
            if contradiction := _contradiction(response, have, archive.size):
                begin_anew()
                raise Interruption(contradiction)
            while block := read_block(response, BLOCK):
                if have + len(block) > archive.size:
                    begin_anew()
                    raise Interruption(f"the server sends more than the {archive.size} bytes of the record")
                stream.write(block)
                have += len(block)
                bar.update(len(block))
        if have < archive.size:
            raise Interruption(f"the connection dropped after {have} of {archive.size} bytes")
        stream.flush()
        os.fsync(stream.fileno())


def skip_on_bar(bar: tqdm[Any], size: int) -> None:
    """Move a bar without the rate and the time left taking it for work done."""
    if not bar.disable:
        bar.n, bar.initial, bar.last_print_n = bar.n + size, bar.initial + size, bar.last_print_n + size
        bar.refresh()


def _contradiction(response: http.client.HTTPResponse, have: int, size: int) -> str | None:
    """Return what in the headers differs from the record; None where they agree or are silent."""
    if response.status == 206:
        told = response.headers.get("Content-Range", "")
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", told.strip())
        if match is None or int(match[1]) != have or match[2] not in (str(size), "*"):
            return f"the server sends {told or 'a part without Content-Range'}, not from byte {have} of {size}"
    if response.length not in (None, size - have):
        return f"the server announces {response.length} bytes, but {size - have} of the record's {size} are to come"
    return None


def size_of(path: Path) -> int:
    """Return the size of a file, 0 where there is none."""
    return path.stat().st_size if path.is_file() else 0
