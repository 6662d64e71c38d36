"""Finished folds without a training."""

from __future__ import annotations

import numpy as np
import pytest
from small_crossval import fake_fold, plan

from luna16_monai.experiments.folds import Plan
from luna16_monai.store.reading import Store


@pytest.fixture
def faked(phantom_dir, store_dir, tmp_path) -> tuple[Plan, dict[str, int | None]]:
    """Two finished folds whose probabilities are made up: all 0.25 in fold 0, rising in fold 5."""
    one = plan(phantom_dir, store_dir, tmp_path / "cv", (0, 5))
    subsets = dict(Store(store_dir).subsets)
    fake_fold(one, 0, subsets, np.full(99, 0.25), (1.0, 0.0, 0.5))
    fake_fold(one, 5, subsets, np.linspace(0.1, 0.9, 99), (2.0, 0.0, 0.0))
    return one, subsets
