"""A dataset that caches the deterministic transforms and seeds the random ones by sample."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset
from monai.transforms import Compose, EnsureTyped, Randomizable, RandomizableTrait, ScaleIntensityRanged
from tqdm import tqdm

from luna16_monai.dataset.augmentation import FusedAugmentation
from luna16_monai.dataset.cutouts import LoadCutoutd


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
        self._fused = _fused(transform)
        if cache_gb > 0 and len(data):
            item = self._load_cache_item(0)
            size = sum(value.nbytes for value in item.values() if isinstance(value, torch.Tensor | np.ndarray))
            self.set_num = int(cache_gb * 1e9 / max(size, 1))
            self.set_data(data)

    def _fill_cache(self, indices: Sequence[int] | None = None) -> list[Any]:
        """Return the cached items, as MONAI does, but read series by series."""
        load = self.transform.transforms[0]
        if not isinstance(load, LoadCutoutd):
            return super()._fill_cache(indices)
        wanted = range(self.cache_num) if indices is None else indices
        of_series: dict[str, list[int]] = {}
        for index in wanted:
            of_series.setdefault(self.data[index]["series_uid"], []).append(index)
        items: dict[int, Any] = {}
        bar = tqdm(total=len(wanted), desc="Loading dataset", disable=not self.progress)
        with bar, ThreadPool(self.num_workers) as pool:
            for series_uid, members in of_series.items():
                with load.reading(series_uid, len(members)):
                    for index, item in zip(members, pool.imap(self._load_cache_item, members), strict=True):
                        items[index] = item
                        bar.update()
        return [items[index] for index in wanted]

    def __getitem__(self, index: int | tuple[int, int]) -> Any:  # type: ignore[override]
        """An item; with a pair (index, seed) its augmentation is drawn from the seed."""
        if isinstance(index, tuple):
            index, seed = index
            self._seed(seed)
            with _global_draws_from(seed):
                return super().__getitem__(index)
        return super().__getitem__(index)

    def __getitems__(self, indices: Sequence[int | tuple[int, int]]) -> list[Any]:
        """The items of a batch, for which torch's loader asks at once; equal to one by one.

        A fused augmentation takes the whole batch, and so does what follows it, if that works voxel by voxel.
        """
        if self._fused is None or not all(isinstance(index, tuple) for index in indices):
            return [self[index] for index in indices]
        fused, final = self._fused
        items, draws = [], []
        for index, seed in indices:  # type: ignore[misc]
            self._seed(seed)
            draws.append((fused.draw(), fused.draw_noise()))
            items.append(self._cache[index] if index < self.cache_num else self._load_cache_item(index))
        images = final({fused.key: fused.batch([item[fused.key] for item in items], draws)})[fused.key]
        return [{**item, fused.key: image[None]} for item, image in zip(items, images, strict=True)]

    def _seed(self, seed: int) -> None:
        for offset, state in enumerate(self._random_states):
            # in place: MONAI's set_random_state makes new states, at ten times the cost
            state.seed((seed + offset * 0x9E3779B9) % 2**32)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> None:
        """Do nothing: MONAI's loader calls this as it starts and in each worker, but here the items' seeds decide."""


@contextmanager
def _global_draws_from(seed: int) -> Iterator[None]:
    """Seed what a transform draws from that has no state of its own; the states of before stay.

    torch seeds them once for each worker, so that their number would decide what is drawn.
    """
    plain, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(plain)
            np.random.set_state(numpys)  # noqa: NPY002


def _fused(transform: Compose) -> tuple[FusedAugmentation, Compose] | None:
    """Return the fused augmentation of a list and what follows it, where both can take a whole batch; else None."""
    parts = list(transform.transforms)
    places = [place for place, part in enumerate(parts) if isinstance(part, FusedAugmentation)]
    if len(places) != 1 or any(isinstance(part, RandomizableTrait) for part in parts[: places[0]]):
        return None
    fused, final = parts[places[0]], parts[places[0] + 1 :]
    by_voxel = all(type(part) in (ScaleIntensityRanged, EnsureTyped) and part.keys == (fused.key,) for part in final)
    return (fused, Compose(final)) if by_voxel else None


def _random_states(transform: Any) -> Iterator[np.random.RandomState]:
    """The random state of each transform inside a transform, its own first; OneOf, a Compose, draws from its own."""
    if isinstance(transform, Randomizable):
        yield transform.R
    for inner in transform.transforms if isinstance(transform, Compose) else vars(transform).values():
        if isinstance(inner, Randomizable):
            yield from _random_states(inner)
