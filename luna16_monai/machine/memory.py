"""Let the C library keep freed memory for the next step, instead of giving it back to the system.

glibc returns large blocks as soon as they are freed, and each training step faults the same pages in again: a quarter
of a step on a CPU. Kept blocks change no result; the process holds what its largest step needed.
"""

from __future__ import annotations

import ctypes
import logging
import os

logger = logging.getLogger(__name__)

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
