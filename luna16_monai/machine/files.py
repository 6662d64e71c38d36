"""Write files so that nothing half-written ever stands under a final name; compute their checksum."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from filelock import lock_descriptor

ABANDONED_AFTER_SECONDS = 60.0
"""A file aside that is younger may belong to a writer that has not locked it yet."""


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that takes its name only when it is complete and on the disk.

    Written aside in the same folder, fsync, rename, fsync of the folder; on an error the rest is removed. The name
    aside starts with a dot, ends in ``.tmp`` and is unique to the writer, so two writers never share one. A writer
    that is killed leaves it behind, see `remove_abandoned`.

    Args:
        path: the final name; its folder is made if need be.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name[:100]}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    # the lock of the guard goes when the process does, however it ends
    with contextlib.ExitStack() as files:
        try:
            stream = files.enter_context(open(aside, "xb"))
        except OSError as error:
            error.filename = str(path)
            raise
        guard = files.enter_context(open(aside, "r+b"))  # NFS locks only what is open for writing
        _try_lock(guard.fileno())
        try:
            yield stream
            stream.close()
            os.fsync(guard.fileno())
            os.replace(aside, path)
        except BaseException as error:
            aside.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.filename is None:
                error.filename = str(path)  # a full disk does not name the file it had no room for
            raise
        with _open_folder(path.parent) as folder:
            os.fsync(folder)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all."""
    with atomic_write(path) as stream:
        stream.write((json.dumps(content, indent=2) + "\n").encode())


def write_csv(path: Path, header: Iterable[Any] | None, rows: Iterable[Iterable[Any]]) -> None:
    """Write a CSV file in UTF-8, whole or not at all; without a first line where ``header`` is None."""
    with atomic_write(path) as raw, io.TextIOWrapper(raw, "utf-8", newline="") as stream:
        writer = csv.writer(stream)
        if header is not None:
            writer.writerow(header)
        writer.writerows(rows)


def remove_abandoned(folder: Path) -> None:
    """Remove what killed writers left aside in a folder: the files aside that are unlocked and older than a minute.

    What a living writer writes is locked, and stays; so does all on a file system without locks, and what another
    user left.
    """
    for aside in folder.glob(".*.tmp"):
        with contextlib.suppress(FileNotFoundError, PermissionError), open(aside, "r+b") as stream:
            old = time.time() - aside.stat().st_mtime > ABANDONED_AFTER_SECONDS
            if old and _try_lock(stream.fileno()):
                aside.unlink()


def _try_lock(file: int) -> bool:
    """Lock an open file until it is closed; False where another has it, or the file system knows no locks."""
    try:
        return lock_descriptor(file, blocking=False)
    except OSError:
        return False


@contextmanager
def _open_folder(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
