"""Writing files so that nothing half-written ever stands under a final name."""

from __future__ import annotations

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

    Written aside in the same folder, fsync, rename, fsync of the folder; on an error the rest is removed.
    The name aside starts with a dot and ends in ``.tmp``, unique to the writer, so two writers never share one.

    Args:
        path: the final name; its folder is made if need be.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name[:100]}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with open(aside, "xb") as stream:
            yield stream
        publish(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def publish(aside: Path, path: Path) -> None:
    """Give a finished file of the same folder its final name, so that a power cut leaves the old or the new one."""
    with open(aside, "rb") as stream:
        os.fsync(stream.fileno())
    os.replace(aside, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all."""
    with atomic_write(path) as stream:
        stream.write((json.dumps(content, indent=2) + "\n").encode())
