"""A stand-in for Hugging Face on this machine: what its download client asks for, of folders that lie here."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """A server of repositories, each a folder, on their branch main."""

    def __init__(self, repositories: dict[str, Path]) -> None:
        self.repositories = repositories
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self)

            def do_HEAD(self) -> None:
                hub.answer(self)

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        self.asked.append(path)
        body, headers = self.content(path)
        request.send_response(404 if body is None else 200)
        for name, value in {"X-Repo-Commit": COMMIT, "Content-Length": str(len(body or b"")), **headers}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body or b"")

    def content(self, path: str) -> tuple[bytes | None, dict[str, str]]:
        """The body and the headers for a path; no body where there is nothing."""
        words = path.strip("/").split("/")
        api = words[:2] == ["api", "models"]
        repository, words = "/".join(words[2:4] if api else words[:2]), words[4:] if api else words[2:]
        folder = self.repositories.get(repository)
        if folder is None:
            return None, {"X-Error-Code": "RepoNotFound"}
        if api:
            return json.dumps(self.told(repository, folder, words)).encode(), {"Content-Type": "application/json"}
        file = folder.joinpath(*words[2:])  # resolve/REVISION/...
        if words[0] != "resolve" or not file.is_file():
            return None, {"X-Error-Code": "EntryNotFound"}
        return file.read_bytes(), {"ETag": f'"{digest(file)}"', "Content-Type": "application/octet-stream"}

    @staticmethod
    def told(repository: str, folder: Path, words: list[str]) -> Any:
        """What the API says: the branches, the commit of a revision, or the files of a commit."""
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [path.relative_to(folder).as_posix() for path in files]
        if words[0] == "refs":
            main = {"name": "main", "ref": "refs/heads/main", "targetCommit": COMMIT}
            return {"branches": [main], "tags": [], "converts": []}
        if words[0] == "tree":
            return [
                {"type": "file", "path": name, "size": path.stat().st_size, "oid": digest(path)}
                for name, path in zip(names, files, strict=True)
            ]
        return {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}


def digest(path: Path) -> str:
    """A file's git id, which the hub gives as its ETag."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
