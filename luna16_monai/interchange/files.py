"""What a format of points is: its files, how they are recognised, read and written; and JSON, read strictly.

Each format has a module with its own `Format` in it; `formats` lists them. What is wrong with a JSON file is reported
with the file, the place in it, and the cure.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from luna16_monai.interchange.points import KNOWN, Points
from luna16_monai.interchange.scans import Scans
from luna16_monai.machine.files import write_json

LARGEST_BYTES = 1 << 28
"""Files beyond it are refused before they are read; a million points take about half of it."""


@dataclass(frozen=True)
class Format:
    """One format of points.

    Attributes:
        name: as users name it.
        recognises: whether a file or folder is in it, by what it holds; gets the path and, of a JSON file, its content.
        read: the points of one file in world LPS mm; gets the path, the CTs that were named, and whether the file is
            RAS. None where what it holds is no list of points but becomes a data folder.
        document: what is written for points, and notes on what it leaves out. None where it is only read.
        save: writes such a document as one file, whole or not at all.
        suffixes: of its files, where each is about one CT and several make a folder; new ones end in the first.
        new_names: ends of a new file's name, or whole names, that ask for this format.
        holds: which values it can hold; None for all.
        holds_names: whether it can hold the names of points.
        may_be_ras: whether its files leave it open, or in a config beside them, that they are RAS.
        may_be_voxels: whether its files may hold voxels in the place of millimetres.
    """

    name: str
    recognises: Callable[[Path, Any], bool]
    read: Callable[[Path, Scans, bool], Points] | None = None
    document: Callable[[Points], tuple[Any, tuple[str, ...]]] | None = None
    save: Callable[[Path, Any], object] = write_json
    suffixes: tuple[str, ...] = ()
    new_names: tuple[str, ...] = ()
    holds: tuple[str, ...] | None = KNOWN
    holds_names: bool = True
    may_be_ras: bool = False
    may_be_voxels: bool = False

    @property
    def one_ct_a_file(self) -> bool:
        """Whether its files are about one CT."""
        return bool(self.suffixes)

    def files_in(self, folder: Path) -> list[Path]:
        """Return the files of a folder that end as this format's do, by name."""
        found = [path for path in sorted(folder.iterdir()) if path.name.lower().endswith(self.suffixes)]
        return [path for path in found if path.is_file() and not path.name.startswith(".")]

    def loses(self, points: Points) -> tuple[str, ...]:
        """Return what is known of points and cannot be held, a line each."""
        held = points.values if self.holds is None else self.holds
        lost = [name for name in points.values if name not in held and points.knows(name)]
        notes = [f"{name} left out: {self.name} cannot hold it" for name in lost]
        if not self.holds_names and any(points.names):
            notes.append(f"names left out: {self.name} cannot hold them")
        return tuple(notes)


def read_json(path: Path) -> Any:
    """Return the content of a JSON file in UTF-8; NaN and Infinity, which JSON does not know, are refused.

    Raises:
        ValueError: it is no JSON, too large or too deep; the message names the file, and the line where that is known.
    """
    if path.stat().st_size > LARGEST_BYTES:
        raise ValueError(f"{path} has more than {LARGEST_BYTES} bytes: is this a list of points?")

    def refuse(name: str) -> NoReturn:
        raise ValueError(f"{path} holds {name}, which is no number in JSON: mend or remove it")

    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: {error.msg}: save it as JSON anew") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error.reason}): save it as JSON anew") from error
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deep: is this a list of points?") from error


def member(of: Any, key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """Return a member of a JSON object.

    Args:
        of: the object.
        key: the member's name.
        kind: the Python type, or types, that it must have.
        where: the file and the place in it, for the message.

    Raises:
        ValueError: there is no such member, or it is of another type.
    """
    if not isinstance(of, dict):
        raise ValueError(f"{where}: {shown(of)} is no JSON object: is this the right file?")
    if key not in of:
        raise ValueError(f"{where}: {key!r} is missing (found: {', '.join(map(repr, of))[:100]}): add it")
    value = of[key]
    # True is an int for Python, and no number for JSON
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{where}: {key!r} is {shown(value)}, {_wanted(kind)} was expected: mend it")
    return value


def numbers(values: Any, count: int, where: str, what: str) -> list[float]:
    """Return a list of so many finite numbers.

    Raises:
        ValueError: it is something else.
    """
    fits = isinstance(values, list) and len(values) == count
    if not fits or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        raise ValueError(f"{where}: {what} is {shown(values)}, {count} numbers were expected: mend or remove it")
    # a whole number of JSON may be longer than a float can hold
    found = [_as_float(value) for value in values]
    if not np.isfinite(found).all():
        raise ValueError(f"{where}: {what} is {shown(values)}, which is not finite: mend or remove it")
    return found


def number(value: Any, where: str, what: str) -> float:
    """Return one finite number; errors as `numbers`."""
    return numbers([value], 1, where, what)[0]


def shown(value: Any) -> str:
    """Return a value for a message, cut short."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def _wanted(kind: type | tuple[type, ...]) -> str:
    names = {dict: "an object", list: "a list", str: "a text", int: "a number", float: "a number"}
    kinds: Sequence[type] = kind if isinstance(kind, tuple) else (kind,)
    return " or ".join(dict.fromkeys(names.get(one, one.__name__) for one in kinds))
