"""Words of a call of ``luna16``, what a refused one prints, and the processes of one that was stopped."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

Call = Callable[..., tuple[int, str, str]]
"""Takes words; gives exit code, standard output and standard error."""


def prepare(data: Path, store: Path, *more: object) -> list[object]:
    """The words of ``luna16 prepare`` in one process."""
    return ["prepare", "--data", data, "--store", store, "--workers", 1, *more]


def refused(result: tuple[int, str, str], *parts: str) -> None:
    """Check that a call ended with 2, and one line on standard error alone, which holds all of these words."""
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.startswith("luna16: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    for part in parts:
        assert part in err


def is_alive(group: int) -> bool:
    """Return whether a process group has a process."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def require_nobody_left(group: int) -> None:
    """Check that all processes of a group end; a training saves its state before, so that may take a moment."""
    until = time.monotonic() + 120
    while is_alive(group):
        assert time.monotonic() < until, "a process of the command lives on"
        time.sleep(0.05)
