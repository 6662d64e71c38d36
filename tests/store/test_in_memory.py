"""CTs prepared in memory."""

from __future__ import annotations

from pathlib import Path

from luna16_monai.bundle.folders import bundle_dir
from luna16_monai.store.in_memory import PreparedInMemory


def test_prepared_in_memory_keeps_one_volume(phantom_dir: Path) -> None:
    volumes = PreparedInMemory(phantom_dir, bundle_dir() / "configs" / "prepare.yaml")
    one, other = volumes.series_uids[:2]
    first = volumes.volume(one)
    assert volumes.volume(one) is first
    volumes.volume(other)
    assert volumes.volume(one) is not first
