"""Check that the packages of an extra are installed, and name the command that installs it."""

from __future__ import annotations

from importlib.util import find_spec

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
