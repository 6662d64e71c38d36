"""The bootstrap over scans or patients: how often each is drawn, and the interval of what was computed on the draws."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from luna16_monai.machine.progress import bar

FloatArray = NDArray[np.float64]


def drawn_weights(groups: int, draws: int, seed: int, rows: int) -> Iterator[FloatArray]:
    """How often each group is drawn, in each draw.

    Args:
        groups: number of scans or patients; each draw takes as many, with repetition.
        draws: how many.
        seed: of the draws.
        rows: draws that are yielded at once, which changes none of them.

    Yields:
        (up to ``rows``, groups) float64.
    """
    random = np.random.default_rng(seed)
    with bar(draws, "bootstrap", "draw") as shown:
        for start in range(0, draws, rows):
            n = min(rows, draws - start)
            cell = random.integers(groups, size=(n, groups)) + groups * np.arange(n)[:, None]
            yield np.bincount(cell.ravel(), minlength=n * groups).reshape(n, groups).astype(np.float64)
            shown.update(n)


def interval(drawn: FloatArray) -> FloatArray:
    """Return the bounds of the middle 95 % of the rows, (..., 2): of 1,000 sorted values number 25 and 975 from 0."""
    ordered = np.sort(drawn, axis=0)
    return np.stack((ordered[len(ordered) * 25 // 1000], ordered[len(ordered) * 975 // 1000]), axis=-1)
