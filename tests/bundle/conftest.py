"""What tests that run a bundle in their own process share."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch
from monai.data import get_track_meta, set_track_meta


@pytest.fixture
def state() -> Iterator[None]:
    """Put back what a bundle changes for its whole process."""
    track, hook, threads = get_track_meta(), sys.excepthook, torch.get_num_threads()
    yield
    set_track_meta(track)
    sys.excepthook = hook
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
