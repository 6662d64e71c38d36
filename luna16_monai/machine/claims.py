"""Claim a folder for settings: it is new, or was made with the same ones, or is refused."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from luna16_monai.machine.files import sha256, write_json


def claim(path: Path, record: Mapping[str, Any], what: str) -> None:
    """Write down what is being done in a folder, or check that it is what was begun there.

    Args:
        path: of the JSON file; everything that is done lies beside it.
        record: what two calls must agree on to go on with each other's jobs.
        what: it is, for the errors: "search".

    Raises:
        ValueError: something else was begun in the folder.
        FileExistsError: other files are in it.
    """
    if path.is_file():
        # as it would be read back: tuples are lists in JSON
        now, before = json.loads(json.dumps(record)), json.loads(path.read_text(encoding="utf-8"))
        for key in now:
            if before.get(key) != now[key]:
                raise ValueError(
                    f"{path.parent} holds a {what} with other {_difference(key, before.get(key), now[key])}: "
                    "name another --output, or go on with the same"
                )
    elif path.parent.is_dir() and any(path.parent.iterdir()):
        raise FileExistsError(f"{path.parent} is not empty and holds no {what}: name another --output")
    else:
        write_json(path, dict(record))


def require_empty(folder: Path, cure: str) -> None:
    """Check that a folder is new or empty, so that nothing older is mixed with what will be written there.

    Raises:
        FileExistsError: it is there and not empty, or is a file.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not empty: {cure}")


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return each setting in which two records differ, with both values."""
    keys = [key for key in {**was, **now} if was.get(key) != now.get(key)]
    return ", ".join(f"{key} {was.get(key)} instead of {now.get(key)}" for key in keys)


def _difference(key: str, was: Any, now: Any) -> str:
    """What differs between two values, in words."""
    if isinstance(was, dict) and isinstance(now, dict):
        inner = next(name for name in {**was, **now} if was.get(name) != now.get(name))
        key, was, now = f"{key}, {inner}", was.get(inner), now.get(inner)
    return f"{key} ({was}, now {now})"


def digests(paths: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of each file, by its name."""
    return {path.name: sha256(path) for path in paths}
