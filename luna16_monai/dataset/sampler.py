"""Draw positives and negatives at a ratio, by counter.

The sampler yields (index, seed) pairs that depend on (seed, epoch, position) alone; the dataset turns the seed into
the random state of the augmentation. So a batch is the same whatever the number of workers, and a run can go on
in the middle of an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Sampler

from luna16_monai.dataset.seeds import ITEM_STREAM, ORDER_STREAM, POOL_STREAM


class RatioSampler(Sampler[tuple[int, int]]):
    """Draw classes at a ratio; yields (index, seed) pairs that depend on (seed, epoch, position) alone.

    Each class is drawn from shuffled rounds through its pool that go on from epoch to epoch: no candidate comes
    again before its class is used up, and every one is equally likely.

    Args:
        labels: (n,) class of each candidate.
        ratio: how often each class is drawn, in the order of ``classes``: (1, 5) is one positive to five negatives.
        samples_per_epoch: pairs drawn in an epoch, over all ranks.
        seed: of the whole run.
        classes: the class that each part of the ratio belongs to.
        rank: this process's share of the epoch is every ``world_size``-th position, starting here.
        world_size: number of processes.

    Raises:
        ValueError: a class is empty, the ratio is not positive, or the ranks cannot share the epoch evenly.
    """

    def __init__(
        self,
        labels: ArrayLike,
        ratio: Sequence[int] = (1, 5),
        samples_per_epoch: int = 200_000,
        seed: int = 0,
        classes: Sequence[int] = (1, 0),
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        labels = np.asarray(labels)
        if len(ratio) != len(classes) or min(ratio) < 0 or sum(ratio) == 0:
            raise ValueError(f"ratio {list(ratio)}: {len(classes)} numbers from 0 were expected, such as [1, 5]")
        if samples_per_epoch < 1 or samples_per_epoch % world_size:
            raise ValueError(
                f"samples_per_epoch {samples_per_epoch} cannot be shared by {world_size} processes: "
                "use a positive multiple of their number"
            )
        self.pools = [np.flatnonzero(labels == label) for label in classes]
        for label, part, pool in zip(classes, ratio, self.pools, strict=True):
            if part and not len(pool):
                raise ValueError(
                    f"class {label} has no candidate in the training split, but ratio {list(ratio)} asks for it: "
                    "check the candidates table and the split"
                )
        ends = np.round(np.cumsum(ratio) / sum(ratio) * samples_per_epoch).astype(int)
        self.counts = np.diff(ends, prepend=0)
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.samples = samples_per_epoch
        self.set_position(0)

    def set_position(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch, counted from 0, and how many of this rank's pairs to skip."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        """Pairs of a whole epoch on this rank, wherever it starts."""
        return self.samples // self.world_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        indices, seeds = self.draw(self.epoch)
        mine = slice(self.rank + self.start * self.world_size, None, self.world_size)
        return zip(indices[mine].tolist(), seeds[mine].tolist(), strict=True)

    def draw(self, epoch: int) -> tuple[NDArray[np.intp], NDArray[np.uint32]]:
        """Return the whole epoch over all ranks: (samples,) indices and (samples,) seeds."""
        drawn = [self._from_pool(kind, epoch) for kind in range(len(self.pools))]
        indices = self._random(ORDER_STREAM, epoch).permutation(np.concatenate(drawn))
        seeds = self._random(ITEM_STREAM, epoch).integers(2**32, size=self.samples, dtype=np.uint32)
        return indices, seeds

    def _from_pool(self, kind: int, epoch: int) -> NDArray[np.intp]:
        pool, count = self.pools[kind], int(self.counts[kind])
        if not count:
            return pool[:0]
        first = epoch * count
        rounds = range(first // len(pool), (first + count - 1) // len(pool) + 1)
        shuffled = np.concatenate([self._random(POOL_STREAM, kind, number).permutation(pool) for number in rounds])
        return shuffled[first - rounds.start * len(pool) :][:count]

    def _random(self, *key: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence([self.seed, *key]))
