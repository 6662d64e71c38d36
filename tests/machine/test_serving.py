"""A server ends when its requests at work have ended, and does not wait for anything else."""

from __future__ import annotations

import http.client
import threading
import time

import pytest

from luna16_monai.machine import serving
from luna16_monai.machine.serving import RequestHandler, RequestServer


class Slow(RequestHandler):
    protocol_version = "HTTP/1.1"
    entered, released, ended = threading.Event(), threading.Event(), threading.Event()

    def do_GET(self) -> None:
        if self.path == "/slow":
            self.entered.set()
            self.released.wait(30)
            time.sleep(0.2)
            self.ended.set()
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server():
    for event in (Slow.entered, Slow.released, Slow.ended):
        event.clear()
    one = RequestServer(("127.0.0.1", 0), Slow)
    thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield one
    Slow.released.set()
    one.shutdown()
    thread.join()
    one.server_close()


def asking(server: RequestServer, path: str) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.request("GET", path)
    return connection


def test_server_close_waits_for_a_request_at_work(server):
    connection = asking(server, "/slow")
    assert Slow.entered.wait(30)
    server.shutdown()
    threading.Timer(0.2, Slow.released.set).start()
    server.server_close()
    assert Slow.ended.is_set()
    connection.close()


def test_server_close_waits_for_so_long_alone(server, monkeypatch):
    monkeypatch.setattr(serving, "GRACE_S", 0.1)
    connection = asking(server, "/slow")
    assert Slow.entered.wait(30)
    server.shutdown()
    server.server_close()
    assert not Slow.ended.is_set()
    connection.close()


def test_server_close_waits_for_no_idle_connection(server, monkeypatch):
    monkeypatch.setattr(serving, "GRACE_S", 1000.0)
    connection = asking(server, "/fast")
    assert connection.getresponse().read() == b""
    server.shutdown()
    server.server_close()
    connection.close()
