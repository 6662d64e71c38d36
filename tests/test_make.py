"""The Makefile's choice of Python, with pretended ones on the path."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def pretend(folder: Path, name: str, version: str | None) -> Path:
    """Write a program that says its version; None: one that is there and does not start, as pyenv's shims."""
    path = folder / name
    path.write_text("#!/bin/sh\nexit 127\n" if version is None else f"#!/bin/sh\necho Python {version}\n")
    path.chmod(0o755)
    return path


def make(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run make with the folder before all else on the path, and without PYTHON of the environment."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "MAKEFLAGS")}
    environment["PATH"] = f"{folder}:{environment['PATH']}"
    return subprocess.run(
        ["make", "--no-print-directory", f"--file={ROOT / 'Makefile'}", *words],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("versions", "chosen"),
    [
        (("3.11.7", "3.12.1", "3.13.0"), "python3.13"),
        (("3.11.7", "3.12.1", None), "python3.12"),
        (("3.11.7", None, None), "python3.11"),
    ],
)
def test_make_takes_the_newest_python_that_starts(tmp_path, versions, chosen):
    for name, version in zip(("python3.11", "python3.12", "python3.13"), versions, strict=True):
        pretend(tmp_path, name, version)
    show = ("--eval", "show: ; @echo $(PYTHON)", "show")
    assert make(tmp_path, *show).stdout == f"{chosen}\n"
    assert make(tmp_path, *show, "PYTHON=python4").stdout == "python4\n"


def test_make_refuses_another_python_than_the_environment_has(tmp_path):
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    pretend(tmp_path / ".venv" / "bin", "python", "3.11.7")
    same, other = pretend(tmp_path, "same", "3.11.7"), pretend(tmp_path, "other", "3.13.0")
    assert make(tmp_path, "asked-python", f"PYTHON={same}").returncode == 0
    done = make(tmp_path, "asked-python", f"PYTHON={other}")
    assert done.returncode == 2
    assert f"make: .venv has Python 3.11.7, not {other}: remove .venv, or leave PYTHON out" in done.stderr
