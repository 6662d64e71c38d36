"""Claim a folder for settings: it is new, or was made with the same ones, or is refused."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from luna16_monai.machine.files import sha256, write_json

_NAMED = 5


def claim(
    path: Path,
    record: Mapping[str, Any],
    what: str,
    cure: str = "name another --output, or go on with the same",
    folder: Path | None = None,
    foreign: Sequence[str] = ("*",),
) -> None:
    """Write down what is being done in a folder, or check that it is what was begun there.

    Args:
        path: of the JSON file.
        record: what two calls must agree on to go on with each other's work.
        what: it is, for the errors: "search".
        cure: what to do where something else was begun, for the error.
        folder: that is claimed; None takes the one of the file.
        foreign: patterns of names that a folder without the file must not hold.

    Raises:
        ValueError: something else was begun in the folder.
        FileExistsError: other files are in it.
    """
    folder = path.parent if folder is None else folder
    if path.is_file():
        # as it would be read back: tuples are lists in JSON
        now, before = json.loads(json.dumps(record)), json.loads(path.read_text(encoding="utf-8"))
        require_same(folder, what, before, now, cure)
    else:
        require_empty(folder, f"that is no {what}, so name another folder", foreign)
        write_json(path, dict(record))


def require_same(folder: Path, what: str, was: Mapping[str, Any], now: Mapping[str, Any], cure: str) -> None:
    """Check that a folder was begun with the same settings.

    Args:
        folder: where.
        what: is in it, for the error.
        was: the settings that it was begun with.
        now: those at hand.
        cure: what to do otherwise, for the error.

    Raises:
        ValueError: names each setting that differs, with both values.
    """
    if was != now:
        raise ValueError(f"{folder} holds a {what} of other settings ({differences(was, now)}): {cure}")


def require_empty(folder: Path, cure: str, foreign: Sequence[str] = ("*",), ignored: Sequence[str] = ()) -> None:
    """Check that a folder is new or empty, so that nothing older is mixed with what will be written there.

    Args:
        folder: where.
        cure: what to do otherwise, for the error.
        foreign: patterns of the names that must not be there.
        ignored: patterns of names that may be there all the same.

    Raises:
        FileExistsError: names what is there; or the folder is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file: {cure}")
    names = sorted({path.name for pattern in foreign for path in folder.glob(pattern)})
    found = [name for name in names if not any(fnmatch(name, pattern) for pattern in ignored)]
    if found:
        raise FileExistsError(f"{folder} is not empty (it holds {', '.join(found[:_NAMED])}): {cure}")


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return each setting in which two records differ, with both values; of a group of settings those inside."""
    found = []
    for key in [key for key in {**was, **now} if was.get(key) != now.get(key)]:
        one, other = was.get(key), now.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found.append(f"{key}: {differences(one, other)}")
        else:
            found.append(f"{key} {one} instead of {other}")
    return ", ".join(found)


def digests(paths: Iterable[Path]) -> dict[str, str]:
    """Return the SHA-256 of each file, by its name."""
    return {path.name: sha256(path) for path in paths}
