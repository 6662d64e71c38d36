"""A server of LUNA16's records on this machine, whose answers may be damaged."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import zipfile
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from drawn_scans import write_scan

from luna16_monai.setup import download as module
from luna16_monai.setup.download import download

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


def tree(folder: Path, hidden: bool = False) -> set[str]:
    """The files below a folder; those of the download's own folder only on request."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return names if hidden else {name for name in names if not name.startswith(module.ASIDE)}


TREE = {*CONTENT, *(f"subset0/{uid}.{kind}" for uid in ("1.1", "1.2") for kind in ("mhd", "raw"))}


def fetch(mirror: Mirror, output: Path, *subsets: int, **more: Any) -> dict[str, Any]:
    return download(output, subsets or (0,), mirror.url, progress=False, **more)


TWO = {"subset0/1.1.mhd": b"header", "subset0/1.1.raw": b"voxels"}
