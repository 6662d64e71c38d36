"""The design's augmentation, fused: the same draws as MONAI's transforms, an eighth of the time.

Flips, scale and offset per axis and a rotation in the axial plane never mix z with y and x. Trilinear resampling then
falls apart exactly into a bilinear one in the plane, with z as channels, and a small matrix along z. What a researcher
reads and changes stays MONAI's RandFlipd, RandAffined and RandGaussianNoised in the bundle's YAML; `Augmentation`
takes the short way only where the list is exactly of that form, otherwise MONAI runs as written.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.engines.utils import default_prepare_batch
from monai.transforms import Compose, RandAffined, RandFlipd, RandGaussianNoised, Transform
from monai.utils import ensure_tuple
from torch import Tensor

logger = logging.getLogger(__name__)


class Augmentation:
    """Where the random transforms of a bundle, and what comes after them, run.

    Args:
        random: the random transforms, in their order; fused where their form allows it, else as they are.
        final: what is done to a cutout after them.
        on_device: run both on whole batches, on the device of the training, where the random ones can be fused: the
            loader then hands over int16 cutouts, and the device does in one step what costs a CPU a millisecond each.

    Attributes:
        transforms: what the loader does.
        prepare_batch: what the trainer does, its argument of that name.
    """

    def __init__(self, random: Sequence[Transform], final: Sequence[Transform] = (), on_device: bool = False) -> None:
        reason = _why_not(random)
        self.transforms: list[Any] = [*random, *final]
        self.prepare_batch: Callable[..., Any] = default_prepare_batch
        if reason is not None:
            logger.info("augmentation: MONAI's transforms as written, since %s", reason)
            return
        fused = FusedAugmentation(random)
        if on_device:
            self.transforms, self.prepare_batch = [DrawAugmentation(fused)], DeviceAugmentation(fused, final)
        else:
            self.transforms = [fused, *final]
        place = "on the device, batch by batch" if on_device else "in the loader"
        logger.info("augmentation: fused (flips, affine and noise in one), %s", place)


class FusedAugmentation(Compose):
    """Flips, an axial affine and noise in one step; the draws are those of the transforms it is made of.

    The result equals MONAI's to rounding, but for the noise: that is drawn by torch from a seed of the noise
    transform's own random state, the same distribution at a fifth of the time.

    Args:
        transforms: RandFlipd for some axes, RandAffined, RandGaussianNoised, as `Augmentation` accepts them.
    """

    def __init__(self, transforms: Sequence[Any]) -> None:
        super().__init__(list(transforms))
        *self.flips, self.affine, self.noise = transforms
        (self.key,) = self.affine.keys
        self.shape_zyx = tuple(self.affine.rand_affine.spatial_size)
        z, y, x = (torch.arange(side) - (side - 1) / 2 for side in self.shape_zyx)
        self.z = z
        self.plane_yx1 = torch.stack([*torch.meshgrid(y, x, indexing="ij"), torch.ones(len(y), len(x))], dim=-1)

    def __call__(self, input_: Mapping[Hashable, Any], *_: Any, **__: Any) -> dict[Hashable, Any]:  # type: ignore[override]
        """Augment (1, z, y, x) of any size and dtype; gives (1, *spatial_size) float32."""
        return {**input_, self.key: self.batch([input_[self.key]], [(self.draw(), self.draw_noise())])}

    def batch(self, images: Sequence[Tensor], draws: Sequence[tuple[Tensor, int]]) -> Tensor:
        """Augment the cutouts of a batch at once.

        Args:
            images: each (1, z, y, x), of one size.
            draws: for each, what `draw` and `draw_noise` gave.

        Returns:
            (n, *spatial_size) float32.
        """
        # new generators: one that is kept would not get through to a worker process that is not a fork
        noise = [(seed, torch.Generator()) for _, seed in draws]
        return self.apply(torch.cat(list(images)), torch.stack([matrix for matrix, _ in draws]), noise)

    def apply(self, images: Tensor, matrices: Tensor, noise: Sequence[tuple[int, torch.Generator]]) -> Tensor:
        """Augment a batch by matrices and with noise.

        Args:
            images: (n, z, y, x).
            matrices: (n, 4, 4), of `draw`.
            noise: a seed and the generator to be seeded, for each image, or one for the whole batch.

        Returns:
            (n, *spatial_size) float32.
        """
        images = resample_axial(images.float(), matrices, self.z.to(images.device), self.plane_yx1.to(images.device))
        settings = self.noise.rand_gaussian_noise
        if settings.std:
            for part, (seed, generator) in zip(images.chunk(len(noise)), noise, strict=True):
                generator.manual_seed(seed)
                part += torch.randn(part.shape, generator=generator, device=images.device).mul_(settings.std)
        return images.add_(settings.mean)

    def draw_noise(self) -> int:
        """Draw the seed of a noise field; to be called after `draw`."""
        return int(self.noise.R.randint(2**31))

    def draw(self) -> Tensor:
        """Draw flips and affine: (4, 4) float32, output to input, (z, y, x, 1) in voxels from the middle of the box."""
        signs = torch.ones(3)
        for flip in self.flips:
            flip.randomize(None)
            if flip._do_transform:
                signs[flip.flipper.spatial_axis] *= -1
        self.affine.randomize(None)
        inner = self.affine.rand_affine
        inner.randomize()
        # MONAI draws once more when it makes the grid; a grid of one voxel gives its matrix at no cost
        inner.rand_affine_grid(grid=torch.zeros(4, 1, 1, 1))
        matrix = torch.as_tensor(inner.rand_affine_grid.get_transformation_matrix()).float()
        # the flips come first, so they act last on the way from output to input
        return torch.cat([signs, torch.ones(1)])[:, None] * matrix


class DrawAugmentation(Compose):
    """The loader's half of an augmentation on the device: the draws, beside the cutout as it is."""

    def __init__(self, fused: FusedAugmentation) -> None:
        super().__init__(list(fused.transforms))
        self.fused = fused

    def __call__(self, input_: Mapping[Hashable, Any], *_: Any, **__: Any) -> dict[Hashable, Any]:  # type: ignore[override]
        """Put the draws of `FusedAugmentation` beside (1, z, y, x)."""
        return {**input_, "augmentation": self.fused.draw(), "noise_seed": self.fused.draw_noise()}


class DeviceAugmentation:
    """The trainer's half: a ``prepare_batch`` that augments the whole batch where it is trained on.

    Equal to the loader's way for the same draws, but for the noise field, which is drawn for the batch from the seed
    of its first cutout.

    Args:
        fused: the augmentation.
        final: what is done after it, on (n, 1, z, y, x).
    """

    def __init__(self, fused: FusedAugmentation, final: Sequence[Transform] = ()) -> None:
        self.fused, self.final = fused, Compose(list(final))
        self.generators: dict[torch.device, torch.Generator] = {}

    def __call__(
        self, batch: Mapping[str, Any], device: torch.device | str, non_blocking: bool = False, **_: Any
    ) -> tuple[Tensor, Tensor]:
        """Give the batch's images (n, 1, z, y, x) float32 and labels (n,), on the device."""
        device = torch.device(device)
        generator = self.generators.setdefault(device, torch.Generator(device))
        key = self.fused.key
        images, matrices, label = (
            batch[name].to(device, non_blocking=non_blocking) for name in (key, "augmentation", "label")
        )
        augmented = self.fused.apply(images[:, 0], matrices, [(int(batch["noise_seed"][0]), generator)])
        return self.final({key: augmented[:, None]})[key], label


def resample_axial(images: Tensor, matrices: Tensor, z: Tensor, plane_yx1: Tensor) -> Tensor:
    """Resample trilinearly, border values outside, by matrices that do not mix z with y and x.

    Args:
        images: (n, z, y, x) float32.
        matrices: (n, 4, 4), output to input, (z, y, x, 1) in voxels from the middle of each box.
        z: (depth,) the output's z, from its middle.
        plane_yx1: (height, width, 3) the output's (y, x, 1), likewise.

    Returns:
        (n, depth, height, width) float32.
    """
    count, depth, height, width = images.shape
    position = (matrices[:, 0, :1] * z + matrices[:, 0, 3:] + (depth - 1) / 2).clamp(0, depth - 1)
    # the share of each input slice in each output slice: a hat of width one around the position
    slices = (1 - (position[..., None] - torch.arange(depth, device=z.device)).abs()).clamp(min=0)
    images = (slices @ images.reshape(count, depth, -1)).reshape(count, -1, height, width)
    yx = plane_yx1 @ matrices[:, None, 1:3, 1:].mT
    grid = torch.stack([yx[..., 1] * (2 / (width - 1)), yx[..., 0] * (2 / (height - 1))], dim=-1)
    return torch.nn.functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=True)


def _why_not(transforms: Sequence[Any]) -> str | None:
    """Return why the transforms cannot be fused; None where they can."""
    *flips, affine, noise = transforms if len(transforms) > 1 else (None, None)
    if not all(type(flip) is RandFlipd for flip in flips):
        return "not all that comes before the affine are RandFlipd"
    if type(affine) is not RandAffined or type(noise) is not RandGaussianNoised:
        return "the list does not end in RandAffined, RandGaussianNoised"
    if len({key for part in transforms for key in part.keys}) != 1:
        return "it works on several keys"
    if not all(isinstance(flip.flipper.spatial_axis, int) for flip in flips):
        return "a flip acts on several axes"
    inner = affine.rand_affine
    if any(inner.rand_affine_grid.rotate_range[1:]) or any(inner.rand_affine_grid.shear_range):
        return "the affine leaves the axial plane"
    if affine.prob != 1 or noise.prob != 1 or noise.rand_gaussian_noise.sample_std:
        return "the affine or the noise is not applied each time with a fixed sigma"
    if affine.mode[0] != "bilinear" or affine.padding_mode[0] != "border":
        return "the affine is not bilinear with border padding"
    size = ensure_tuple(inner.spatial_size)
    if inner.spatial_size is None or len(size) != 3 or min(size) < 2:
        return "the affine has no fixed spatial_size in 3-D"
    return None
