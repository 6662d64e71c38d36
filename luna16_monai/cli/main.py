"""The ``luna16`` command: collects the verbs, runs one, and prints an error as one line.

A verb is two functions one below the other: ``add_x`` adds its options, ``run_x`` runs it and returns the exit code.
The modules with the verbs import nothing heavy at their top, so that the help of a verb loads no library.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from luna16_monai import __version__
from luna16_monai.cli import (
    bundles,
    console,
    data,
    demo,
    detection,
    exchange,
    experiments,
    prediction,
    reviewing,
    scoring,
)
from luna16_monai.cli.console import FAILED, INTERRUPTED, TERMINATED, WRONG_INPUT
from luna16_monai.machine.errors import one_line, root_cause
from luna16_monai.machine.platforms import require_posix

INPUT_ERRORS = (ValueError, LookupError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)
VERBS = (
    data.add_phantom,
    data.add_bank,
    data.add_download,
    data.add_doctor,
    data.add_prepare,
    scoring.add_evaluate,
    scoring.add_compare,
    scoring.add_benchmark,
    detection.add_detect,
    prediction.add_predict,
    reviewing.add_review,
    exchange.add_convert,
    exchange.add_challenge,
    bundles.add_export,
    bundles.add_bundle,
    scoring.add_report,
    bundles.add_calibrate,
    experiments.add_crossval,
    experiments.add_tune,
    data.add_verify,
    demo.add_demo,
)
"""In the order of the help."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C. Of a plain KeyboardInterrupt in an ``exec`` Python remembers that it was not caught, also where it is."""


class Terminated(KeyboardInterrupt):
    """The process was asked to end by SIGTERM: what tidies up after Ctrl-C does so here too."""


IMPORT_MACHINERY = "<frozen importlib._bootstrap>"
SECONDS_BETWEEN_TRIES = 0.05
SIGNALS: dict[signal.Signals, type[KeyboardInterrupt]] = {signal.SIGINT: Interrupted, signal.SIGTERM: Terminated}


class _Parser(argparse.ArgumentParser):
    """Tells what is wrong with a call in one line, as every other error."""

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_INPUT, f"luna16: {message}: see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command."""
    whole: argparse.ArgumentParser = _Parser(
        prog="luna16",
        description="Train, evaluate and ship a lung-nodule classifier on LUNA16. For research, not for clinical use.",
        epilog="Folders default to LUNA16_DATA, LUNA16_STORE and LUNA16_RUNS.",
    )
    whole.add_argument("--version", action="version", version=f"luna16_monai {__version__}")
    verbs = whole.add_subparsers(title="verbs", required=True, metavar="VERB")
    for add in VERBS:
        add(verbs)
    return whole


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        arguments: the words after ``luna16``; None takes those of the process.

    Returns:
        0 done, 1 the work failed or a check found something wrong, 2 the call or its input is wrong, 130 interrupted,
        143 ended by SIGTERM.
    """
    options = parser().parse_args(arguments)
    # not for the help
    from luna16_monai.machine.progress import showing

    options.is_program = arguments is None
    atexit.register(_leave_objects)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    # numexpr greets every user of blosc2 with its number of threads; torch prints statistics where its import was ended
    for name in ("numexpr", "torch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        require_posix()
        with _raised_on_signals(), showing(console.shows_progress(options)):
            return options.run(options)
    except Terminated:
        print("luna16: ended by SIGTERM; the same command goes on where it stopped", file=sys.stderr)
        return _ended(options, TERMINATED)
    except KeyboardInterrupt:
        print("luna16: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return _ended(options, INTERRUPTED)
    except Exception as error:
        # nothing is hidden: the error is told in one line, and raised whole with --debug
        if options.debug:
            raise
        print("luna16:", one_line(error), file=sys.stderr)
        return WRONG_INPUT if isinstance(root_cause(error), INPUT_ERRORS) else FAILED


def _ended(options: argparse.Namespace, code: int) -> int:
    """Return an exit code; a program that served ends at once.

    Where OpenVINO or torch had run in a server's threads, the interpreter's own end was seen to end with SIGABRT or
    SIGSEGV instead of the code (Python 3.12). By then all is written.
    """
    if options.is_program and getattr(options, "serves", False):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _leave_objects() -> None:
    """Keep the interpreter from looking over every object of torch and MONAI when it ends, for 0.7 s.

    Not where triton is loaded, which then reports on standard error what is left (3.9, in torch's builds for CUDA).
    """
    if "triton" not in sys.modules:
        gc.freeze()


@contextmanager
def _raised_on_signals() -> Iterator[None]:
    """Raise `SIGNALS` in the main thread, as another cannot; a signal that is ignored, as by nohup, stays so."""

    def stop(number: int, frame: FrameType | None) -> None:
        if not _is_importing(frame):
            raise SIGNALS[signal.Signals(number)]
        # a library in C++ that is just being loaded aborts the process at an exception, or cannot be loaded again
        again = threading.Timer(SECONDS_BETWEEN_TRIES, os.kill, [os.getpid(), number])
        again.daemon = True
        again.start()

    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in SIGNALS}
    caught = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    for number in caught:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in caught.items():
            signal.signal(number, handler)


def _is_importing(frame: FrameType | None) -> bool:
    """Return whether an import that the verb has begun is not over in this frame."""
    while frame is not None and frame.f_code is not main.__code__:
        if frame.f_code.co_filename == IMPORT_MACHINERY:
            return True
        frame = frame.f_back
    return False


if __name__ == "__main__":
    sys.exit(main())
