"""Seeds, and how torch is set up."""

import subprocess
import sys
from pathlib import Path

import pytest

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")

LARGE_TENSOR = """
import re
import torch
from luna16_monai.training import seeds

seeds.configure_torch(deterministic=False)
tensor = torch.ones(64 << 20, dtype=torch.uint8)
pages = open("/proc/self/smaps_rollup", encoding="utf-8").read()
print(re.search(r"AnonHugePages: +([0-9]+) kB", pages)[1])
"""


def test_configured_torch_takes_large_tensors_in_huge_pages():
    if not HUGE_PAGES.is_file() or "[never]" in HUGE_PAGES.read_text(encoding="utf-8"):
        pytest.skip("this kernel has no transparent huge pages")
    if "[always]" in HUGE_PAGES.read_text(encoding="utf-8"):
        pytest.skip("this kernel gives huge pages unasked")
    done = subprocess.run([sys.executable, "-c", LARGE_TENSOR], capture_output=True, text=True, check=True)
    assert int(done.stdout) >= 32 << 10
