"""Telling an error in one line: what the user should read, below the layers that the error came through."""

from __future__ import annotations


def root_cause(error: BaseException) -> BaseException:
    """The error that others were raised from, such as MONAI's, which only tell which expression or transform failed."""
    # what a worker process sends along as a cause was never raised: it is a traceback as text
    while error.__cause__ is not None and error.__cause__.__traceback__ is not None:
        error = error.__cause__
    return error


def one_line(error: BaseException) -> str:
    """The message of an error's root cause, without line breaks; the kind of error where it has no message."""
    error = root_cause(error)
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if "Original Traceback" in text:
        # a loader's worker hands its error over as a printed traceback, which begins with the root cause
        text = text.split("\n\nThe above exception")[0].strip().splitlines()[-1].split(": ", 1)[-1]
    return " ".join(text.split()) or type(error).__name__
