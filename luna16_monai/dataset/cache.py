"""A dataset that caches the deterministic transforms and seeds the random ones by sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset
from monai.transforms import Compose, Randomizable


class SeededCacheDataset(CacheDataset):
    """MONAI's CacheDataset, asked for by (index, seed): the seed alone decides the item's augmentation.

    Args:
        data: the items.
        transform: deterministic transforms first; what they give is kept.
        cache_gb: how much to keep, in 10^9 bytes over all items; the first items are kept.
        num_workers: threads that fill the cache.
        progress: whether to show a bar while the cache is filled.
    """

    def __init__(
        self,
        data: Sequence[Any],
        transform: Compose,
        cache_gb: float = 1.0,
        num_workers: int | None = None,
        progress: bool = True,
    ) -> None:
        super().__init__(
            data, transform, cache_num=0, num_workers=num_workers, progress=progress, copy_cache=False
        )  # no transform here changes its input in place
        self._random_states = list(_random_states(transform))
        if cache_gb > 0 and len(data):
            item = self._load_cache_item(0)
            size = sum(value.nbytes for value in item.values() if isinstance(value, torch.Tensor | np.ndarray))
            self.set_num = int(cache_gb * 1e9 / max(size, 1))
            self.set_data(data)

    def __getitem__(self, index: int | tuple[int, int]) -> Any:  # type: ignore[override]
        """An item; with a pair (index, seed) its augmentation is drawn from the seed."""
        if isinstance(index, tuple):
            index, seed = index
            for offset, state in enumerate(self._random_states):
                # in place: MONAI's set_random_state makes new states, at ten times the cost
                state.seed((seed + offset * 0x9E3779B9) % 2**32)
        return super().__getitem__(index)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> None:
        """Do nothing: MONAI's loader calls this as it starts and in each worker, but here the items' seeds decide."""


def _random_states(transform: Any) -> Iterator[np.random.RandomState]:
    """The random state of each transform inside a transform, its own first; OneOf, a Compose, draws from its own."""
    if isinstance(transform, Randomizable):
        yield transform.R
    for inner in transform.transforms if isinstance(transform, Compose) else vars(transform).values():
        if isinstance(inner, Randomizable):
            yield from _random_states(inner)
