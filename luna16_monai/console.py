"""What the verbs of the ``luna16`` command share: exit codes, folders, trust, and how a result is told."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DONE, FAILED, WRONG_INPUT = 0, 1, 2


def tell(options: argparse.Namespace, result: dict[str, Any], line: str) -> int:
    """Print a result, as JSON where that was asked for, else as a line; the exit code of what is done."""
    print(json.dumps(result, indent=2) if options.json else line, flush=True)
    return DONE


def shows_progress(options: argparse.Namespace) -> bool:
    """Whether progress bars are wanted."""
    return not options.quiet and sys.stderr.isatty()


def folder(variable: str, default: str) -> Path:
    """A folder that an environment variable may name."""
    return Path(os.environ.get(variable, default))


def data_folder(options: argparse.Namespace) -> Path:
    """Where the data are."""
    return options.data or folder("LUNA16_DATA", "data/phantom")


def store_folder(options: argparse.Namespace) -> Path:
    """Where the prepared volumes are."""
    return options.store or folder("LUNA16_STORE", "data/store")


def require_trust(path: Path, config: Any, trusted: bool) -> None:
    """A config runs code: what one from elsewhere calls is told, and it is run only on request."""
    from luna16_monai.bundle import called_names, is_packaged

    if is_packaged(path):
        return
    names = ", ".join(called_names(config))
    if not trusted:
        raise ValueError(
            f"{path} does not come with luna16_monai and may run any code (it calls {names}): add --trust-bundle if "
            "you trust it"
        )
    print(f"luna16: {path} calls {names}", file=sys.stderr)


def warn(warnings: Sequence[str]) -> None:
    """Tell of what is no error."""
    for warning in warnings:
        print("luna16: warning:", warning, file=sys.stderr)
