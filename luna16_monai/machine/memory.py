"""How much memory is left; and let the C library keep what was freed, instead of giving it back to the system.

glibc returns large blocks as soon as they are freed, and each training step faults the same pages in again: a quarter
of a step on a CPU. Kept blocks change no result; the process holds what its largest step needed.
"""

from __future__ import annotations

import ctypes
import logging
import os
from pathlib import Path

logger = logging.getLogger(__name__)

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
SWITCH = "LUNA16_KEEP_MEMORY"
# of glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_INT = 2**31 - 1
_kept = False


def keeps_freed_memory() -> bool:
    """Whether glibc was told so in this process."""
    return _kept


def keep_freed_memory() -> bool:
    """Tell glibc to keep the memory that this process frees; whether it was done.

    Not done where ``LUNA16_KEEP_MEMORY`` is 0, with another C library, or where the caller has set malloc's thresholds.
    """
    if os.environ.get(SWITCH, "1") in ("0", "false"):
        return False
    if any(name in os.environ for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # macOS, musl
        return False
    global _kept
    # the size from which a block is a mapping of its own, and the free memory at the end of the heap that is kept
    _kept = bool(mallopt(_M_MMAP_THRESHOLD, 2**30) and mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT))
    return _kept


def left() -> tuple[int, int, int | None]:
    """Return in bytes what memory is left to this process, what the machine has, and its container's limit if any.

    Raises:
        FileNotFoundError: the system is no Linux.
    """
    lines = (line.split() for line in (PROC / "meminfo").read_text().splitlines())
    amounts = {words[0]: int(words[1]) * 1024 for words in lines if len(words) > 1}
    left_by_groups, limit = _cgroup_memory()
    available = amounts["MemAvailable:"]
    if left_by_groups is not None:
        available = min(available, left_by_groups)
    return available, amounts["MemTotal:"], limit


def _cgroup_memory() -> tuple[int | None, int | None]:
    """Return what the control groups of this process leave it and their limit, in bytes; None where there are none."""
    places = []
    for line in (PROC / "self" / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        # inside a container the path may be the host's, which is not seen: the root is then the container's own
        if controllers == "":
            places += [(CGROUPS / inner, "memory.max", "memory.current") for inner in _above(path)]
        elif "memory" in controllers.split(","):
            names = "memory.limit_in_bytes", "memory.usage_in_bytes"
            places += [(CGROUPS / "memory" / inner, *names) for inner in _above(path)]
    limits = []
    for folder, limit_name, used_name in places:
        try:
            limit, used = (int((folder / name).read_text()) for name in (limit_name, used_name))
        except (OSError, ValueError):  # not there, or "max"
            continue
        limits.append((limit - used, limit))
    return min(limits, default=(None, None))


def _above(path: str) -> list[str]:
    parts = [part for part in path.split("/") if part not in ("", "..")]
    return ["/".join(parts[:length]) for length in range(len(parts) + 1)]
