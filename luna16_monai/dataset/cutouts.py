"""MONAI transforms of our own."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from luna16_monai.geometry.volume import Volume
from luna16_monai.store.reading import Store


class VolumeSource(Protocol):
    """Where volumes come from: a ``Store``, or CTs prepared in memory."""

    def volume(self, series_uid: str, /) -> Volume:
        """Return a series on the grid that cutouts are taken from."""
        ...


class LoadCutoutd(MapTransform):
    """Read a candidate's cutout from the store. Deterministic, so ``CacheDataset`` keeps its int16 result.

    Takes ``series_uid`` and ``point_xyz`` ((3,) world LPS mm) out of the item and puts (1, z, y, x) int16 HU under
    each key. The candidate's voxel lies at index ``shape // 2`` (+ margin).

    Args:
        keys: where the cutout goes.
        store: the prepared store, its folder, or another source of volumes.
        shape_zyx: voxels of the network's input.
        margin_zyx: voxels more on each side, so that a rotated or enlarged box is filled with tissue instead of
            copied borders; the affine transform after it gives ``shape_zyx`` again.
    """

    def __init__(
        self,
        keys: KeysCollection,
        store: VolumeSource | Path | str,
        shape_zyx: Sequence[int] = (32, 48, 48),
        margin_zyx: Sequence[int] = (0, 0, 0),
    ) -> None:
        super().__init__(keys)
        self.store = Store(store) if isinstance(store, str | Path) else store
        self.box_zyx = tuple(side + 2 * margin for side, margin in zip(shape_zyx, margin_zyx, strict=True))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        volume = self.store.volume(item.pop("series_uid"))
        cutout = torch.from_numpy(volume.cutout(item.pop("point_xyz"), self.box_zyx))[None]
        for key in self.keys:
            item[key] = cutout
        return item

    def reading(self, series_uid: str, cutouts: int) -> AbstractContextManager[None]:
        """Read so many cutouts of a series within the block; where they are many, its volume is read once for all.

        Reading a box takes two to three times as long as its share of the whole volume, since pieces at its border are
        decompressed too.
        """
        if not isinstance(self.store, Store):
            return nullcontext()
        voxels = math.prod(self.store.volume(series_uid).geometry.shape_zyx)
        return self.store.whole(series_uid) if 2 * cutouts * math.prod(self.box_zyx) >= voxels else nullcontext()
