from __future__ import annotations

import os
import subprocess
import sys

import pytest

from luna16_monai.machine import memory

CODE = """
import resource, numpy as np
from luna16_monai.machine.memory import keep_freed_memory
print(keep_freed_memory())
for step in range(20):
    if step == 4:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(8_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(**environment: str) -> tuple[str, int]:
    """What the function says, and the page faults of 16 arrays of 64 MB made and freed, 15,625 pages each."""
    words = [sys.executable, "-c", CODE]
    shown = subprocess.run(words, capture_output=True, text=True, check=True, env={**os.environ, **environment}).stdout
    done, count = shown.split()
    return done, int(count)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_kept_for_the_next_step():
    # numpy asks for huge pages for large arrays, which need few faults anyway
    done, kept = faults(NUMPY_MADVISE_HUGEPAGE="0")
    assert done == "True"
    assert kept < 1_000


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
@pytest.mark.parametrize("setting", [{"LUNA16_KEEP_MEMORY": "0"}, {"MALLOC_TRIM_THRESHOLD_": "131072"}])
def test_freed_memory_is_given_back_where_that_is_asked_for(setting):
    done, given = faults(NUMPY_MADVISE_HUGEPAGE="0", **setting)
    assert done == "False"
    assert given > 10_000


def test_left_is_the_least_of_machine_and_container(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 1000 kB\nMemAvailable: 500 kB\n")
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/a\n")
    assert memory.left() == (512_000, 1_024_000, None)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "memory.max").write_text("300000\n")
    (tmp_path / "a" / "memory.current").write_text("100000\n")
    assert memory.left() == (200_000, 1_024_000, 300_000)
