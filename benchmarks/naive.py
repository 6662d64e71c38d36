"""The naive way, as the first version of such a project has it: a float32 file per candidate, augmentation sample by
sample on a whole 3-D grid, PyTorch's default memory layout, a plain training loop. What the benchmark compares with."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset


def write_files(folder: Path, cutouts: Iterator[np.ndarray], labels: list[int]) -> None:
    """One npz file per candidate."""
    folder.mkdir(parents=True)
    for number, (cutout, label) in enumerate(zip(cutouts, labels, strict=True)):
        np.savez(folder / f"{number}.npz", cutout=cutout.astype(np.float32), label=label)


def augment(image: Tensor) -> Tensor:
    """Flip, offset, scale, turn and noise of one cutout (1, z, y, x), as the design does."""
    transform = torch.eye(4)
    for axis in range(3):
        if random.random() > 0.5:
            transform[axis, axis] *= -1
        transform[axis, 3] = 0.1 * random.uniform(-1, 1)
        transform[axis, axis] *= 1 + 0.2 * random.uniform(-1, 1)
    angle = random.random() * 2 * math.pi
    turn = torch.eye(4)
    turn[:2, :2] = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    grid = F.affine_grid((transform @ turn)[:3][None], [1, *image.shape], align_corners=False)
    turned = F.grid_sample(image[None], grid, padding_mode="border", align_corners=False)[0]
    return turned + 25 * torch.randn_like(turned)


class Cutouts(Dataset[tuple[Tensor, int]]):
    """The files, augmented or not."""

    def __init__(self, folder: Path, count: int, augmented: bool) -> None:
        self.folder, self.count, self.augmented = folder, count, augmented

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with np.load(self.folder / f"{index}.npz") as content:
            image, label = torch.from_numpy(content["cutout"])[None].clamp(-1000, 1000), int(content["label"])
        return (augment(image) if self.augmented else image), label


def loader(folder: Path, count: int, batch_size: int, workers: int) -> DataLoader[tuple[Tensor, int]]:
    """Shuffled batches of augmented cutouts."""
    return DataLoader(Cutouts(folder, count, True), batch_size, shuffle=True, num_workers=workers)


def step(network: nn.Module, optimizer: torch.optim.Optimizer, image: Tensor, label: Tensor) -> float:
    """One iteration of training."""
    optimizer.zero_grad()
    loss = F.cross_entropy(network(image), label)
    loss.backward()
    optimizer.step()
    return loss.item()
