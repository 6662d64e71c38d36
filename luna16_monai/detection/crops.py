"""The boxes that the detector is trained on, drawn by counter, and the scans that it is validated on.

``RatioSampler`` draws what a crop is near (a nodule, a candidate of class 0, or anywhere in the lungs) and its seed,
both from (seed, epoch, position). All else about a crop follows from its seed: so neither the number of workers nor a
run that goes on in the middle of an epoch changes a crop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from luna16_monai.ct.lungs import LungMask, lung_mask
from luna16_monai.dataset.candidates import CandidateList
from luna16_monai.detection.targets import OFFSETS, Labels, draw_targets, in_voxels
from luna16_monai.geometry.grid import Geometry
from luna16_monai.geometry.volume import AIR_HU, Volume
from luna16_monai.machine.folder_lists import Folders
from luna16_monai.store.reading import Store
from luna16_monai.tables.data_sets import DataSets
from luna16_monai.tables.hits import lies_on
from luna16_monai.tables.points import PointTable

NOWHERE, NODULE, NEGATIVE = 0, 1, 2
MARGIN_MM = 16.0
_EDGE_MM = 8.0


@dataclass(frozen=True)
class Strength:
    """How strong the augmentation is.

    Attributes:
        gain: HU above air are multiplied by 1 and up to this share more or less.
        shift_hu: added to all, up to this.
        noise_hu: the largest standard deviation of the noise, which half of the crops get.
    """

    gain: float = 0.08
    shift_hu: float = 25.0
    noise_hu: float = 30.0


class LabelledScans:
    """Volumes of a store with their labels and lungs.

    Args:
        dataset_dir: the data folder, or several, for its tables of nodules and excluded findings.
        store: the prepared volumes.
        cache_gb: of volumes that are kept in memory, in each process.

    Attributes:
        data_sets: the series of each data set, by its name.

    Raises:
        FileNotFoundError: the data folder has no annotations.
        ValueError: a row is malformed.
    """

    def __init__(self, dataset_dir: Folders, store: Store, cache_gb: float = 0.0) -> None:
        folders = DataSets.of(dataset_dir)
        self.data_sets = folders.series(store.parts)
        self.bytes_left = cache_gb * 1e9
        self._kept: dict[str, Volume] = {}
        self.store, self.nodules = store, folders.annotations()
        excluded = folders.excluded()
        self.excluded = self.nodules.select(np.zeros(len(self.nodules), bool)) if excluded is None else excluded
        self._labels: dict[str, Labels] = {}

    def volume(self, series_uid: str) -> Volume:
        """Return a series' volume, kept in memory where it has room."""
        if series_uid in self._kept:
            return self._kept[series_uid]
        volume = self.store.volume(series_uid)
        size = 2 * math.prod(volume.geometry.shape_zyx)
        if size <= self.bytes_left:
            self.bytes_left -= size
            volume = self._kept[series_uid] = volume.in_memory()
        return volume

    def labels(self, series_uid: str) -> Labels:
        """Return what is known of a series; its lungs are found when it is first asked for."""
        if series_uid not in self._labels:
            volume = self.volume(series_uid)
            nodules = in_voxels(self.nodules, series_uid, volume.geometry)
            excluded = in_voxels(self.excluded, series_uid, volume.geometry)
            lungs = lung_mask(np.asarray(volume.voxels[:]), volume.geometry)
            self._labels[series_uid] = Labels(volume.geometry, nodules, excluded, lungs)
        return self._labels[series_uid]


class CropList(Dataset[dict[str, Any]]):
    """Crops for training; an item is asked for by (index, seed), as ``RatioSampler`` yields them.

    Args:
        scans: volumes and labels.
        series_uids: the training series, those without nodules too.
        candidates: their candidates, of which those of class 0 that lie on no nodule and no excluded finding are crops'
            centres.
        shape_zyx: voxels of a crop.
        stride_zyx: voxels of a cell of the network's output.
        strength: of the augmentation.
        mined_share: of the crops near a candidate of class 0, how many are near a mined point instead, once there are
            some, see ``training.mining``.

    Attributes:
        mined: (n, 4) float64, the number of a series and a point in it.
        labels: (n,) what each item is near: 1 a nodule, 2 a candidate of class 0, 0 anywhere in a scan's lungs.
        table: the series and the point of each item; of the last kind the point says nothing.
    """

    def __init__(
        self,
        scans: LabelledScans,
        series_uids: Sequence[str],
        candidates: CandidateList | None,
        shape_zyx: Sequence[int] = (32, 64, 64),
        stride_zyx: Sequence[int] = (4, 4, 4),
        strength: Strength | None = None,
        mined_share: float = 0.5,
    ) -> None:
        if not 0 <= mined_share <= 1:
            raise ValueError(f"mined_share {mined_share:g}: give a share from 0 to 1")
        self.mined, self.mined_share = np.zeros((0, 4)), mined_share
        self.scans, self.series_uids = scans, tuple(series_uids)
        self.shape, self.stride = np.array(shape_zyx), tuple(stride_zyx)
        if (self.shape % 16).any() or (self.shape // self.stride < 3).any():
            raise ValueError(f"crops of {self.shape.tolist()} voxels: give multiples of 16, of three cells or more")
        self.strength = strength or Strength()
        near = [self._rows(scans.nodules)]
        if candidates is not None:
            table = candidates.table.select(candidates.labels == 0)
            near.append(self._rows(table.select(~(lies_on(table, scans.nodules) | lies_on(table, scans.excluded)))))
        counts = [len(self.series_uids), *(len(series) for series, _ in near)]
        self.labels = np.repeat([NOWHERE, NODULE, NEGATIVE][: len(counts)], counts)
        self.table = PointTable(
            source="the crops",
            series_uids=self.series_uids,
            series=np.concatenate([np.arange(counts[0]), *(series for series, _ in near)]).astype(np.int32),
            points_xyz=np.concatenate([np.zeros((counts[0], 3)), *(points for _, points in near)]),
            values=self.labels.astype(float),
            lines=np.arange(len(self.labels), dtype=np.int32),
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        """Return ``image`` (1, z, y, x) float32 HU, ``label`` (8, z, y, x) and ``candidate``, the index."""
        index, seed = item
        rng = np.random.default_rng(seed)
        series, point = self.table.series[index], self.table.points_xyz[index]
        if self.labels[index] == NEGATIVE and len(self.mined) and rng.random() < self.mined_share:
            row = self.mined[rng.integers(len(self.mined))]
            series, point = int(row[0]), row[1:]
        uid = self.series_uids[series]
        volume, labels = self.scans.volume(uid), self.scans.labels(uid)
        if self.labels[index] == NOWHERE:
            middle = _anywhere(rng, labels.lungs, labels.geometry)
        else:
            middle = labels.geometry.voxel_from_world(point)
        margin = np.minimum(np.ceil(_EDGE_MM / np.array(labels.geometry.spacing_zyx)), self.shape // 2 - 1)
        start = np.floor(middle - margin - rng.random(3) * (self.shape - 2 * margin)).astype(int)
        start = np.clip(start, 0, np.maximum(np.array(labels.geometry.shape_zyx) - self.shape, 0))
        shape = self.shape.tolist()
        image = box_of(volume, start.tolist(), shape).astype(np.float32)
        image, target = augment(rng, image, draw_targets(labels, start.tolist(), shape, self.stride), self.strength)
        return {"image": torch.from_numpy(image[None]), "label": torch.from_numpy(target), "candidate": index}

    def _rows(self, table: PointTable) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        codes = table.series_codes(self.series_uids)
        return codes[codes >= 0], table.points_xyz[codes >= 0]


class ScanList(Dataset[dict[str, Any]]):
    """Whole lung boxes for validation, in the order of the series.

    Args:
        scans: volumes and labels.
        series_uids: the validation series.
        multiple_zyx: what the sides of a box are multiples of: the network's total stride.
    """

    def __init__(self, scans: LabelledScans, series_uids: Sequence[str], multiple_zyx: Sequence[int]) -> None:
        self.scans, self.series_uids, self.multiple = scans, tuple(series_uids), tuple(multiple_zyx)

    def __len__(self) -> int:
        return len(self.series_uids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return ``image`` (1, z, y, x) int16 HU, ``start`` (3,), its first voxel, and ``candidate``, the index."""
        uid = self.series_uids[index]
        volume, labels = self.scans.volume(uid), self.scans.labels(uid)
        image, start = lung_box(volume, labels.lungs, self.multiple)
        return {"image": torch.from_numpy(image[None]), "start": torch.from_numpy(start), "candidate": index}


def lung_box(
    volume: Volume, lungs: LungMask, multiple_zyx: Sequence[int]
) -> tuple[NDArray[np.int16], NDArray[np.int_]]:
    """Return the box of the lungs with a margin, int16 (z, y, x), and its first voxel.

    Its sides are multiples; beyond the volume it is air. Without lungs it is the smallest box, at the first voxel.
    """
    low, high = lungs.box(volume.geometry, MARGIN_MM) or (np.zeros(3, int), np.ones(3, int))
    multiple = np.array(multiple_zyx)
    shape = -(-(high - low) // multiple) * multiple
    return box_of(volume, low.tolist(), shape.tolist()), low


def box_of(volume: Volume, start_zyx: Sequence[int], shape_zyx: Sequence[int]) -> NDArray[np.int16]:
    """Return a box of a volume by its first voxel, int16 (z, y, x); air outside."""
    start, shape = np.array(start_zyx), np.array(shape_zyx)
    low = np.clip(start, 0, volume.geometry.shape_zyx)
    high = np.clip(start + shape, low, volume.geometry.shape_zyx)
    box = np.full(shape, AIR_HU, np.int16)
    box[tuple(map(slice, low - start, high - start))] = volume.voxels[tuple(map(slice, low.tolist(), high.tolist()))]
    return box


def augment(
    rng: np.random.Generator, image: NDArray[np.float32], target: NDArray[np.float32], strength: Strength
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Flip, exchange y and x, change the gain and the level, and add noise; (z, y, x) HU and (8, z, y, x)."""
    target = target.copy()
    for axis in range(3):
        if rng.random() < 0.5:
            image, target = np.flip(image, axis), np.flip(target, axis + 1).copy()
            target[OFFSETS][axis] *= -1
    if rng.random() < 0.5:
        image, target = image.swapaxes(1, 2), target.swapaxes(2, 3)[[0, 1, 2, 4, 3, 5, 6, 7]]
    image = (image - AIR_HU) * rng.uniform(1 - strength.gain, 1 + strength.gain) + AIR_HU
    image = image + rng.uniform(-strength.shift_hu, strength.shift_hu)
    if rng.random() < 0.5:
        image = image + rng.standard_normal(image.shape, np.float32) * rng.uniform(0, strength.noise_hu)
    return np.ascontiguousarray(image, np.float32), np.ascontiguousarray(target, np.float32)


def _anywhere(rng: np.random.Generator, lungs: LungMask, grid: Geometry) -> NDArray[np.float64]:
    """Return a voxel of the lungs, or of the scan where it has none."""
    inside = np.flatnonzero(lungs.voxels)
    if not len(inside):
        return rng.random(3) * grid.shape_zyx
    voxel = np.array(np.unravel_index(inside[rng.integers(len(inside))], lungs.voxels.shape))
    return grid.voxel_from_world(lungs.geometry.world_from_voxel(voxel.astype(float)))
