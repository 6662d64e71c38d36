"""Telling an error in one line: what the user should read, below the layers that the error came through."""

from __future__ import annotations


def root_cause(error: BaseException) -> BaseException:
    """The error below those of MONAI, which only tell the transform or the expression in which it happened."""
    while error.__cause__ is not None and _raised_in(error).startswith("monai."):
        error = error.__cause__
    return error


def one_line(error: BaseException) -> str:
    """What to tell of an error: its root cause's message without line breaks, or its kind if it has no message."""
    error = root_cause(error)
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if "\nOriginal Traceback" in text:
        # a loader's worker hands its error over as a printed traceback, which begins with the root cause
        text = text.split("\n\nThe above exception")[0].strip().splitlines()[-1].split(": ", 1)[-1]
    return " ".join(text.split()) or type(error).__name__


def _raised_in(error: BaseException) -> str:
    """The name of the module that raised it; empty where nothing did."""
    trace, module = error.__traceback__, ""
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "")
        trace = trace.tb_next
    return module
