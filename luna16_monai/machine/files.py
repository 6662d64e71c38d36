"""Writing files so that nothing half-written ever stands under a final name; their checksum."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


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
        with _open_folder(path.parent) as folder:
            # shared by writers, so that nobody clears up between the next two lines
            _try_lock(folder, fcntl.LOCK_SH)
            try:
                stream = files.enter_context(open(aside, "xb"))
            except OSError as error:
                error.filename = str(path)
                raise
            guard = files.enter_context(open(aside, "rb"))
            _try_lock(guard.fileno(), fcntl.LOCK_EX)
        try:
            yield stream
            stream.close()
            os.fsync(guard.fileno())
            os.replace(aside, path)
        except BaseException as error:
            aside.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.filename is None:
                error.filename = str(path)  # a full disk does not tell which file it had no room for
            raise
        with _open_folder(path.parent) as folder:
            os.fsync(folder)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all."""
    with atomic_write(path) as stream:
        stream.write((json.dumps(content, indent=2) + "\n").encode())


def remove_abandoned(folder: Path) -> None:
    """Remove what writers that were killed left aside in a folder; what a living one writes is locked, and stays."""
    with _open_folder(folder) as descriptor:
        if not _try_lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
            return
        for aside in folder.glob(".*.tmp"):
            with contextlib.suppress(FileNotFoundError), open(aside, "rb") as stream:
                if _try_lock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB):
                    aside.unlink()


def _try_lock(file: int, kind: int) -> bool:
    """Lock an open file or folder; False where another has it, or the file system knows no locks."""
    try:
        fcntl.flock(file, kind)
    except OSError:
        return False
    return True


@contextmanager
def _open_folder(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
