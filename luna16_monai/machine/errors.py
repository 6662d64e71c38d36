"""Telling an error in one line: what the user should read, below the layers that the error came through."""

from __future__ import annotations

import errno
import re

DEAD_WORKER = "a worker process of the data loader died"
_NO_ROOM = "free some space, or name a folder on another disk"
_MORE_SHM = "enlarge it (docker run --shm-size 2g), or do without such processes by --num_workers 0"
_NO_WAY_IN = "name another folder, or change its permissions"
CURES = {
    errno.ENOSPC: _NO_ROOM,
    errno.EDQUOT: _NO_ROOM,
    errno.EROFS: _NO_WAY_IN,
    errno.EACCES: _NO_WAY_IN,
    errno.EPERM: _NO_WAY_IN,
    errno.EISDIR: "name a file, not a folder",
    errno.ENOTDIR: "name another path: a part of this one is a file",
    errno.ENAMETOOLONG: "give a shorter name",
}


def root_cause(error: BaseException) -> BaseException:
    """Return the error below those of MONAI, which only tell the transform or the expression in which it happened.

    Of a dead worker torch may tell a second time, wherever Python is by then, and so replace an error that says more.
    """
    before = error
    while is_dead_worker(before) and before.__context__ is not None:
        before = before.__context__
        if str(before).startswith(DEAD_WORKER):
            return before
    while error.__cause__ is not None and _raised_in(error).startswith("monai."):
        error = error.__cause__
    return error


def one_line(error: BaseException) -> str:
    """Return the message of an error's root cause without line breaks, or its kind if it has no message."""
    error = root_cause(error)
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if isinstance(error, OSError) and error.errno in CURES:
        text = f"{error.filename or 'the disk'}: {error.strerror}: {CURES[error.errno]}"
    if isinstance(error, MemoryError):
        text = f"{text or 'out of memory'}: give the process more memory, or use fewer workers"
    if "\nOriginal Traceback" in text:
        # a loader's worker hands its error over as a printed traceback, which begins with the root cause
        text = text.split("\n\nThe above exception")[0].strip().splitlines()[-1].split(": ", 1)[-1]
    if re.search(r"can't pickle|cannot pickle", text, re.IGNORECASE):
        text = f"{text}: what worker processes get must be a function of a module, no lambda; or --num_workers 0"
    if re.search(r"shared memory.*no space left|out of shared memory", text, re.IGNORECASE | re.DOTALL):
        text = f"no room in shared memory (/dev/shm) for what the loader's processes hand over: {_MORE_SHM}"
    return " ".join(text.split()) or type(error).__name__


def is_dead_worker(error: BaseException) -> bool:
    """Return whether a loader's worker process died: torch says so, or the connection to it broke."""
    broken = isinstance(error, ConnectionError | EOFError) and _raised_in(error).startswith("multiprocessing.")
    return broken or (isinstance(error, RuntimeError) and "DataLoader worker (pid" in str(error))


def _raised_in(error: BaseException) -> str:
    """Return the name of the module that raised it; empty where nothing did."""
    trace, module = error.__traceback__, ""
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "")
        trace = trace.tb_next
    return module
