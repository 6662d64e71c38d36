"""Read JSON strictly: what is wrong is reported with the file, the place in it, and the cure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

LARGEST_BYTES = 1 << 28
"""Files beyond it are refused before they are read; a million points take about half of it."""


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
