"""HTTP servers that answer each request in a thread, and do not end while one is at work."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

GRACE_S = 5.0
"""How long the end of a server waits; a container's engine kills after 10 s."""


class RequestServer(ThreadingHTTPServer):
    """A server whose ``server_close`` waits for the requests at work, for `GRACE_S` at most.

    So what a request writes is whole, and no thread is in C++ (torch, OpenVINO) when the process ends. Connections that
    are open without a request are not waited for.

    Args:
        address: host and port.
        handler: a class derived from `RequestHandler`.
    """

    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[RequestHandler]) -> None:
        self._changed, self._at_work = threading.Condition(), 0
        super().__init__(address, handler)

    def server_close(self) -> None:
        """Take no more requests, and wait for those at work."""
        super().server_close()
        with self._changed:
            self._changed.wait_for(lambda: self._at_work == 0, GRACE_S)

    def count(self, change: int) -> None:
        """Note that a request has begun, 1, or ended, -1."""
        with self._changed:
            self._at_work += change
            self._changed.notify_all()


class RequestHandler(BaseHTTPRequestHandler):
    """Answers the requests of a connection to a `RequestServer`."""

    server: RequestServer
    _begun = False

    def parse_request(self) -> bool:
        """Read the header of a request, which has then begun."""
        understood = super().parse_request()
        if understood:
            self._begun = True
            self.server.count(1)
        return understood

    def handle_one_request(self) -> None:
        """Wait for a request, and answer it."""
        try:
            super().handle_one_request()
        finally:
            if self._begun:
                self._begun = False
                self.server.count(-1)
