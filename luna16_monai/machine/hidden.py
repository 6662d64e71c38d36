"""Import a package while others, which it would load as well, are hidden from it.

MONAI loads all of itself, and with it what its parts for training and plotting may use, installed or not: two thirds of
the time that its import takes. A process that only scores does without.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from types import ModuleType


@contextmanager
def hidden(*names: str) -> Iterator[None]:
    """Let imports of these modules fail as if they were not installed; those that are loaded already stay."""
    finder = _Nothing(names)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Nothing(MetaPathFinder):
    """Refuses to find some modules."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = frozenset(names)

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        """Return None for any other module, which is then looked for elsewhere.

        Raises:
            ModuleNotFoundError: the module is hidden.
        """
        if fullname in self.names:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
