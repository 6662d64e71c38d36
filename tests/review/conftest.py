"""A CT to review."""

from __future__ import annotations

from pathlib import Path

import pytest
from drawn_scans import random_hu, write_scan

UID = "1.2.3"


@pytest.fixture
def ct(tmp_path: Path) -> Path:
    return write_scan(tmp_path / "ct", UID, random_hu(0))
