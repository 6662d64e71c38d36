"""What the verbs of the ``luna16`` command share: exit codes, folders, trust, and how a result is told."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luna16_monai.bundle.folders import require_trust

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


def warn(warnings: Sequence[str]) -> None:
    """Tell of what is no error."""
    for warning in warnings:
        print("luna16: warning:", warning, file=sys.stderr)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: name a table that is there")
    return path


def _bundle(path: Path | None, trusted: bool) -> Path:
    """A bundle's folder, by default the nodule bundle; one from elsewhere only if it is trusted."""
    from luna16_monai.bundle.folders import bundle_dir

    if path is None:
        return bundle_dir()
    from monai.bundle import ConfigParser

    files = [path / "configs" / name for name in ("inference.yaml", "prepare.yaml")]
    require_trust(path, [ConfigParser.load_config_file(str(file)) for file in files if file.is_file()], trusted)
    return path


def _device(name: str) -> str:
    if name != "auto":
        return name
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
