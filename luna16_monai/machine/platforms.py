"""What the operating system gives: Linux and macOS in full, another one a line in place of a late failure."""

from __future__ import annotations

import os

SYSTEM = os.name
"""``posix`` on Linux and macOS, ``nt`` on Windows."""


def require_posix() -> None:
    """Check that this is Linux or macOS.

    Signals, process groups, locks and whole files rest on POSIX.

    Raises:
        RuntimeError: it is another system.
    """
    if SYSTEM != "posix":
        raise RuntimeError(
            f"luna16_monai runs on Linux and macOS, and this system is {SYSTEM}: on Windows use WSL 2 or the container"
            " (docs/install.md)"
        )


def usable_cores() -> int:
    """Return the number of cores that this process may use; where that is not told (macOS), of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def total_memory() -> int:
    """Return the machine's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
