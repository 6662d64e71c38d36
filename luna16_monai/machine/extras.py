"""Packages that may be missing: what an extra installs, and what an import can do without."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.util import find_spec
from types import ModuleType

DISTRIBUTIONS = {"sklearn": "scikit-learn", "idc_index": "idc-index"}
"""The names under which packages are installed, where these are not those that are imported."""


def is_installed(*modules: str) -> bool:
    """Return whether all of these packages can be imported; none is."""
    return all(find_spec(module) is not None for module in modules)


def install(extra: str) -> str:
    """Return the command that installs an extra, or several with commas between."""
    return f"pip install 'luna16_monai[{extra}]'"


def require(extra: str, needed_by: str, *modules: str) -> None:
    """Check that packages of an extra are installed.

    Args:
        extra: its name in pyproject.toml, or several with commas between.
        needed_by: the option or the part that needs the packages, for the message: "--ray".
        modules: the packages, by the names under which they are imported.

    Raises:
        ModuleNotFoundError: names the first package that is missing, what needs it, and the command.
    """
    for module in modules:
        if not is_installed(module):
            name = DISTRIBUTIONS.get(module, module)
            raise ModuleNotFoundError(
                f"{name} is not installed, and {needed_by} needs it: {install(extra)}", name=module
            )


@contextmanager
def hidden(*names: str) -> Iterator[None]:
    """Let imports of these modules fail as if they were not installed; those that are loaded already stay.

    MONAI loads all of itself, and with it what its parts for training and plotting may use, installed or not: two
    thirds of the time that its import takes. A process that only scores does without.
    """
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
