"""Words of a call of ``luna16``, and what a refused one prints."""

from __future__ import annotations

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
