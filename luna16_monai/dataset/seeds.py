"""Random seeds derived from a run's seed and counters."""

from __future__ import annotations

import numpy as np

ORDER_STREAM, POOL_STREAM, ITEM_STREAM, VALIDATION_STREAM = range(4)


def derive(seed: int, *key: int) -> int:
    """Return a seed of 63 bits for one purpose, from the run's seed and whole numbers that name the purpose.

    Raises:
        ValueError: the seed is below 0.
    """
    if seed < 0:
        raise ValueError(f"seed {seed}: give 0 or more")
    words = np.random.SeedSequence([seed, *key]).generate_state(2)
    # a Python int: a tensor or numpy scalar as torch's seed may silently become something else
    return int(words[0]) << 31 | int(words[1]) >> 1
