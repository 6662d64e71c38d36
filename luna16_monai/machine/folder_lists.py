"""Settings, options and variables that name one folder or several."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

Folders = Path | str | Sequence[Path | str]
"""One folder or several, see `folder_list`."""


def folder_list(setting: Folders) -> tuple[Path, ...]:
    """Return the folders that a setting names, in its order.

    A text names several if they stand with ``os.pathsep`` between them, as in ``PATH``; where the whole of it is the
    name of something that is there, it names that alone. A `Path` and each item of a list name one.

    Raises:
        ValueError: a folder is named twice, or a list names none.
    """
    if isinstance(setting, Path):
        return (setting,)
    if isinstance(setting, str):
        parts = [setting] if Path(setting).exists() else [part for part in setting.split(os.pathsep) if part]
        found = [Path(part) for part in parts or [setting]]
    else:
        found = [Path(one) for one in setting]
    if not found:
        raise ValueError("a list of folders names none: name one folder or more")
    twice = [one for row, one in enumerate(found) if one.absolute() in [other.absolute() for other in found[:row]]]
    if twice:
        raise ValueError(f"the folder {twice[0]} is named twice: name each once")
    return tuple(found)


def absolute(setting: Folders) -> tuple[Path, ...]:
    """Return the folders that a setting names, from the root on."""
    return tuple(one.absolute() for one in folder_list(setting))


def as_text(folders: Sequence[Path]) -> str:
    """Return folders as one text that `folder_list` reads.

    Raises:
        ValueError: one of several has ``os.pathsep`` in its name.
    """
    texts = [str(one) for one in folders]
    if len(texts) > 1 and (odd := [one for one in texts if os.pathsep in one]):
        raise ValueError(
            f"the folder {odd[0]} has a {os.pathsep} in its name, so it cannot be one of several: rename it"
        )
    return os.pathsep.join(texts)


def folder_names(folders: Sequence[Path]) -> tuple[str, ...]:
    """Return the last part of each folder's name, and a number behind it where another one before has the same."""
    names: list[str] = []
    for one in folders:
        name = one.absolute().name or str(one)
        same = sum(other == name or other.startswith(f"{name} (") for other in names)
        names.append(f"{name} ({same + 1})" if same else name)
    return tuple(names)
