"""A page on this machine alone, to step through a prediction's candidates and to accept or reject them.

The standard library's HTTP server behind four bars: it listens on 127.0.0.1; every address holds a token that is drawn
at the start and printed on the terminal; a ``Host`` that is not this machine's is refused, so that no site can point
a name of its own here (DNS rebinding); and no path is ever taken from a request, which can only name a candidate's
number, a view and settings from closed lists. Rejected: a web framework, and a static page, which can save nothing.
"""

from __future__ import annotations

import hmac
import json
import secrets
import sys
from collections.abc import Callable, Mapping
from functools import cached_property
from http import HTTPStatus
from importlib.resources import files
from socketserver import TCPServer
from typing import Any
from urllib.parse import parse_qs

from luna16_monai.geometry.slices import NORMALS, VIEWS
from luna16_monai.machine.errors import one_line
from luna16_monai.machine.serving import RequestHandler, RequestServer
from luna16_monai.review.session import SIDES_MM, WINDOWS_HU, Review

ADDRESS = "127.0.0.1"
HOSTS = (ADDRESS, "localhost")
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


def check_port(port: int) -> None:
    """Refuse what is no port.

    Raises:
        ValueError: it is not from 0 to 65535.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"port {port}: give a number from 1 to 65535, or 0 for a free one")


class ReviewServer(RequestServer):
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

    def __init__(self, review: Review, port: int = 0) -> None:
        self.review, self.token, self.saved = review, secrets.token_urlsafe(24), 0
        check_port(port)
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
        """Serve until something is raised, as Ctrl-C is in the main thread, or another thread calls ``shutdown``.

        Args:
            tell: is called first; whoever reads what it prints may stop the server at once.
        """
        try:
            tell()
            self.serve_forever()
        finally:
            self.server_close()


class _Handler(RequestHandler):
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
        answers = {
            "": self._page,
            "candidates": self._candidates,
            "decisions": self._decisions,
            "slice": self._slice,
            "whole": self._whole,
        }
        return self._answer(answers.get(name), query)

    def do_POST(self) -> None:
        """Save a decision, or a candidate that is missing."""
        # one that is not understood might leave half a body behind, so the connection ends with it
        self.close_connection = True
        name, query = self._asked()
        if name is None:
            return self._forbid()
        return self._answer({"decide": self._decide, "add": self._add}.get(name), query)

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
        except (LookupError, ValueError, OverflowError) as error:
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
        state = review.decided()
        self._send_json(
            {
                "candidates": review.candidates,
                "views": list(VIEWS),
                "axes": {view: [*axes, NORMALS[view]] for view, axes in VIEWS.items()},
                "scans": {uid: {view: vars(one) for view, one in of.items()} for uid, of in review.planes.items()},
                "sides_mm": SIDES_MM,
                "windows": list(WINDOWS_HU),
                "reviewer": review.decisions.reviewer,
                "file": review.decisions.path.name,
                **state,
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

    def _whole(self, query: dict[str, list[str]]) -> None:
        series_uid, view, window = (_one(query, name) for name in ("series", "view", "window"))
        picture = self.server.review.whole(series_uid, view, int(_one(query, "number")), window)
        self._send(HTTPStatus.OK, "image/jpeg", picture)

    def _said(self) -> dict[str, Any]:
        """The JSON object that was sent; a form of another site cannot send one."""
        length = int(self.headers.get("Content-Length", ""))
        if not 0 < length <= LONGEST_BODY or self.headers.get_content_type() != "application/json":
            raise ValueError(f"a decision of {length} bytes: send a small JSON object")
        said = json.loads(self.rfile.read(length))
        return said if isinstance(said, dict) else {}

    def _add(self, query: dict[str, list[str]]) -> None:
        said = self._said()
        point, diameter = said.get("point_xyz"), said.get("diameter_mm")
        numbers = [*point, diameter] if isinstance(point, list) else []
        if len(numbers) != 4 or any(type(one) not in (int, float) for one in numbers):
            raise ValueError("a candidate names series_uid, point_xyz of three numbers and diameter_mm: send these")
        state = self.server.review.add(str(said.get("series_uid")), numbers[:3], numbers[3])
        self.server.saved += 1
        self._send_json(state)

    def _decide(self, query: dict[str, list[str]]) -> None:
        said = self._said()
        kinds = [type(said.get(name)) for name in ("number", "label")]
        if "label" not in said or kinds not in ([int, int], [int, type(None)]):
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
