"""What the operating system gives, and what is said where it is neither Linux nor macOS."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from luna16_monai.cli.main import main
from luna16_monai.machine import platforms


def test_usable_cores_are_those_of_the_process(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    assert platforms.usable_cores() == 3


def test_usable_cores_are_the_machines_where_the_process_has_none_of_its_own(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 10)
    assert platforms.usable_cores() == 10
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert platforms.usable_cores() == 1


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="compared with /proc")
def test_total_memory_is_what_the_kernel_says():
    (line,) = (one for one in Path("/proc/meminfo").read_text(encoding="ascii").splitlines() if "MemTotal" in one)
    assert platforms.total_memory() == int(line.split()[1]) * 1024


def test_verbs_say_in_one_line_that_another_system_is_not_supported(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(platforms, "SYSTEM", "nt")
    assert main(["phantom", "--output", str(tmp_path / "data")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "luna16: luna16_monai runs on Linux and macOS, and this system is nt: on Windows use WSL 2 or the container"
        " (docs/install.md)"
    )
    assert not (tmp_path / "data").exists()
