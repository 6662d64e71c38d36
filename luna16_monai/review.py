"""A page on this machine alone, to step through a prediction's candidates and to accept or reject them.

The standard library's HTTP server behind four bars: it listens on 127.0.0.1; every address holds a token that is drawn
at the start and told on the terminal; a ``Host`` that is not this machine's is refused, so that no web site can point
a name of its own here (DNS rebinding); and no path is ever taken from a request, which can only name a candidate's
number, a view and settings from closed lists. Rejected: a web framework, and a static page, which can save nothing.
"""

from __future__ import annotations

import hmac
import json
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from socketserver import TCPServer
from types import FrameType
from typing import Any
from urllib.parse import parse_qs

import numpy as np

from luna16_monai.bundle import bundle_dir
from luna16_monai.candidates import has_column, read_points
from luna16_monai.ct import read_geometry
from luna16_monai.cutouts import Volume
from luna16_monai.decisions import Decision, Decisions, Key, candidate_key
from luna16_monai.errors import one_line
from luna16_monai.inference import PreparedInMemory, from_ras
from luna16_monai.slices import (
    LUNG_WINDOW_HU,
    NORMALS,
    PIXELS,
    SIDE_MM,
    VIEWS,
    as_jpeg,
    slices_through,
    steps_across,
)

ADDRESS = "127.0.0.1"
HOSTS = (ADDRESS, "localhost")
WINDOWS_HU = {"lung": LUNG_WINDOW_HU, "soft tissue": (-160.0, 240.0)}
SIDES_MM = (SIDE_MM, 2 * SIDE_MM, 4 * SIDE_MM, 8 * SIDE_MM)
SHARPEST = 2
"""The most by which a picture has more pixels than the report's."""
MOST_CANDIDATES = 10_000
LONGEST_BODY = 1000
PATIENCE_SECONDS = 30
HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
FORBIDDEN = "403: this page opens only by the whole address that luna16 review has printed"


class Review:
    """Candidates of one prediction, the slices through them, and what was decided.

    Args:
        predictions: the table that ``luna16 predict`` wrote, or any submission.
        cts: CT files, folders of DICOM files, or a data folder in LUNA16's layout.
        decisions: where to and under whose name.
        least: only candidates of at least this probability.
        ras: the predictions are RAS; decisions are LPS all the same, as training reads them.

    Attributes:
        candidates: by falling probability; ``number``, ``series_uid``, ``point_xyz``, ``probability``,
            ``calibrated``.

    Raises:
        FileNotFoundError: no such CT.
        ValueError: the predictions belong to other CTs, a table is damaged, or there is nothing (or far too much) to
            show.
    """

    def __init__(
        self, predictions: Path, cts: Sequence[Path], decisions: Decisions, least: float = 0.0, ras: bool = False
    ) -> None:
        # the nodule bundle's way of reading a CT, but on the CT's own grid: what was scanned is what is judged
        self.volumes = PreparedInMemory(cts, bundle_dir() / "configs" / "prepare.yaml", None)
        self.decisions = decisions
        table = read_points(predictions, "probability")
        table = from_ras(table) if ras else table
        self.volumes.require_inside(table)
        calibrated = (
            read_points(predictions, "calibrated_probability").values
            if has_column(predictions, "calibrated_probability")
            else None
        )
        rows = np.argsort(-table.values, kind="stable")
        rows = rows[table.values[rows] >= least]
        if not 0 < len(rows) <= MOST_CANDIDATES:
            raise ValueError(
                f"{predictions} holds {len(rows)} candidates of probability {least:g} and more: give a table with 1 "
                f"to {MOST_CANDIDATES}, or another --least"
            )
        self.candidates: list[dict[str, Any]] = [
            {
                "number": number,
                "series_uid": table.series_uids[table.series[row]],
                "point_xyz": table.points_xyz[row].tolist(),
                "probability": float(table.values[row]),
                "calibrated": None if calibrated is None else float(calibrated[row]),
            }
            for number, row in enumerate(rows)
        ]
        self.keys = [candidate_key(one["series_uid"], one["point_xyz"]) for one in self.candidates]
        self._scan = lru_cache(64)(lambda uid: read_geometry(self.volumes.paths[uid]))
        self._reading = threading.Lock()
        self._volume(self.candidates[0]["series_uid"])

    def picture(self, number: int, view: str, step: int, side_mm: float, window: str) -> tuple[bytes, dict[str, Any]]:
        """One slice as JPEG, so many steps across the view from the candidate, and how far one can scroll.

        Raises:
            LookupError: no such candidate, view or window.
            ValueError: the step leads out of the scan.
            OSError: the CT is gone.
        """
        if number < 0:
            raise IndexError(f"candidate {number}: there is none below 0")
        candidate = self.candidates[number]
        scan = self._scan(candidate["series_uid"])
        step_mm, low, high = steps_across(scan, candidate["point_xyz"], view)
        if not low <= step <= high:
            raise ValueError(f"step {step} leads out of the scan: choose one from {low} to {high}")
        point = np.array(candidate["point_xyz"]) + step * step_mm * np.array(NORMALS[view])
        # a wide picture with the pixels of a small one would hide what lies between them
        pixels = round(PIXELS * min(side_mm / SIDE_MM, SHARPEST)) | 1
        volume = self._volume(candidate["series_uid"])
        cut = slices_through(volume, point, side_mm, pixels, WINDOWS_HU[window], [view])
        return as_jpeg(cut[view]), {"step_mm": step_mm, "low": low, "high": high}

    def decided(self, now: Mapping[Key, Decision] | None = None) -> dict[str, Any]:
        """What the decisions file says of the candidates: ``decisions`` by number, ``decided``, their count."""
        known = self.decisions.read() if now is None else now
        found = {number: vars(known[key]) for number, key in enumerate(self.keys) if key in known}
        return {"decisions": found, "decided": len(found)}

    def decide(self, number: int, label: int | None) -> dict[str, Any]:
        """Save a decision (1, 0, or None to take it back); gives what `decided` gives."""
        if number < 0:
            raise IndexError(f"candidate {number}: there is none below 0")
        return self.decided(self.decisions.decide(self.keys[number], label))

    def _volume(self, uid: str) -> Volume:
        with self._reading:
            return self.volumes.volume(uid)


class ReviewServer(ThreadingHTTPServer):
    """Serves one review on this machine until it is stopped.

    Args:
        review: what is shown.
        port: 0 takes a free one.

    Attributes:
        token: without which nothing is answered.
        saved: how many decisions were written through this server.

    Raises:
        ValueError: the port is taken, or may not be used.
    """

    daemon_threads = True

    def __init__(self, review: Review, port: int = 0) -> None:
        self.review, self.token, self.saved = review, secrets.token_urlsafe(24), 0
        if not 0 <= port <= 65535:
            raise ValueError(f"port {port}: give a number from 1 to 65535, or 0 for a free one")
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as error:
            raise ValueError(
                f"port {port} cannot be used ({error.strerror}): name another --port, or 0 for a free one"
            ) from error

    @cached_property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{ADDRESS}:{self.server_port}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Tell what went wrong, unless it is a browser that has hung up."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def server_bind(self) -> None:
        """Bind without asking the network for this machine's name, as the parent would."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def serve_until_stopped(self, tell: Callable[[], object] = lambda: None) -> None:
        """Serve until Ctrl-C, or until the process is asked to end.

        Args:
            tell: is called first; whoever reads what it prints may stop the server at once.
        """

        def stop(number: int, frame: FrameType | None) -> None:
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGTERM, stop)
        try:
            tell()
            self.serve_forever()
        except KeyboardInterrupt:
            pass
        finally:
            signal.signal(signal.SIGTERM, before)
            self.server_close()


class _Handler(BaseHTTPRequestHandler):
    """Answers one browser; what it may ask for is the closed list in `do_GET` and `do_POST`."""

    server: ReviewServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "luna16", ""
    timeout = PATIENCE_SECONDS

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a log of addresses would hold the token."""

    def do_GET(self) -> None:
        """Send the page, the list, the decisions or a picture."""
        name, query = self._asked()
        if name is None:
            return self._forbid()
        answers = {"": self._page, "candidates": self._candidates, "decisions": self._decisions, "slice": self._slice}
        return self._answer(answers.get(name), query)

    def do_POST(self) -> None:
        """Save a decision."""
        # one that is not understood might leave half a body behind, so the connection ends with it
        self.close_connection = True
        name, query = self._asked()
        if name is None:
            return self._forbid()
        return self._answer(self._decide if name == "decide" else None, query)

    def _asked(self) -> tuple[str | None, dict[str, list[str]]]:
        """What is asked for, None without token or from under another host's name; and how."""
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        path, _, query = self.path.partition("?")
        token, slash, name = path.removeprefix("/").partition("/")
        known = bool(slash) and hmac.compare_digest(token.encode(), self.server.token.encode())
        return (name if known and host in HOSTS else None), parse_qs(query)

    def _forbid(self) -> None:
        self._send(HTTPStatus.FORBIDDEN, "text/plain", FORBIDDEN.encode())

    def _answer(self, answer: Any, query: dict[str, list[str]]) -> None:
        if answer is None:
            return self._send(HTTPStatus.NOT_FOUND, "text/plain", b"404: there is no such page")
        try:
            return answer(query)
        except (LookupError, ValueError) as error:
            status, text = HTTPStatus.BAD_REQUEST, one_line(error)
        except OSError as error:
            status, text = HTTPStatus.INTERNAL_SERVER_ERROR, one_line(error)
        return self._send(status, "text/plain", text.encode())

    def _page(self, query: dict[str, list[str]]) -> None:
        resources, nonce = files("luna16_monai").joinpath("resources"), secrets.token_urlsafe(16)
        page = resources.joinpath("review.html").read_text(encoding="utf-8")
        look = resources.joinpath("look.css").read_text(encoding="utf-8")
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src blob: data:; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        content = page.replace("/* look.css */", look).replace("%nonce%", nonce)
        self._send(HTTPStatus.OK, "text/html", content.encode(), {"Content-Security-Policy": policy})

    def _candidates(self, query: dict[str, list[str]]) -> None:
        review = self.server.review
        self._send_json(
            {
                "candidates": review.candidates,
                "views": list(VIEWS),
                "sides_mm": SIDES_MM,
                "windows": list(WINDOWS_HU),
                "reviewer": review.decisions.reviewer,
                "file": review.decisions.path.name,
                **review.decided(),
            }
        )

    def _decisions(self, query: dict[str, list[str]]) -> None:
        self._send_json(self.server.review.decided())

    def _slice(self, query: dict[str, list[str]]) -> None:
        number, step, side = (int(_one(query, name)) for name in ("number", "step", "side"))
        if not 0 <= side < len(SIDES_MM):
            raise ValueError(f"side {side}: choose one from 0 to {len(SIDES_MM) - 1}")
        picture, scrolling = self.server.review.picture(
            number, _one(query, "view"), step, SIDES_MM[side], _one(query, "window")
        )
        self._send(HTTPStatus.OK, "image/jpeg", picture, {"X-Scrolling": json.dumps(scrolling)})

    def _decide(self, query: dict[str, list[str]]) -> None:
        length = int(self.headers.get("Content-Length", ""))
        if not 0 < length <= LONGEST_BODY or self.headers.get_content_type() != "application/json":
            raise ValueError(f"a decision of {length} bytes: send a small JSON object")
        said = json.loads(self.rfile.read(length))
        kinds = [type(said.get(name)) for name in ("number", "label")] if isinstance(said, dict) else []
        if kinds not in ([int, int], [int, type(None)]):
            raise ValueError("a decision names a number and a label of 1, 0 or null: send both")
        state = self.server.review.decide(said["number"], said["label"])
        self.server.saved += 1
        self._send_json(state)

    def _send_json(self, content: Any) -> None:
        self._send(HTTPStatus.OK, "application/json", json.dumps(content).encode())

    def _send(self, status: HTTPStatus, kind: str, content: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        text = kind if kind.startswith("image/") else f"{kind}; charset=utf-8"
        for name, value in {"Content-Type": text, **HEADERS, **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            # else a browser sends its next request into a closed connection
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)


def _one(query: Mapping[str, list[str]], name: str) -> str:
    values = query.get(name, [])
    if len(values) != 1:
        raise ValueError(f"{name} is given {len(values)} times: give it once")
    return values[0]
