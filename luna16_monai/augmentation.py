"""The design's augmentation, fused: the same draws as MONAI's transforms, an eighth of the time.

Flips, scale and offset per axis and a rotation in the axial plane never mix z with y and x. Trilinear resampling then
falls apart exactly into a bilinear one in the plane, with z as channels, and a small matrix along z. What a researcher
reads and changes stays MONAI's RandFlipd, RandAffined and RandGaussianNoised in the bundle's YAML; `augmentation`
takes the short way only where the list is exactly of that form, otherwise MONAI runs as written.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import Compose, RandAffined, RandFlipd, RandGaussianNoised, Transform
from monai.utils import ensure_tuple
from torch import Tensor

logger = logging.getLogger(__name__)


def augmentation(transforms: Sequence[Transform]) -> Transform:
    """The transforms as one: fused where their form allows it, else as they are.

    Args:
        transforms: the random transforms of a bundle, in their order.
    """
    reason = _why_not(transforms)
    if reason is None:
        logger.info("augmentation: fused (flips, affine and noise in one)")
        return FusedAugmentation(transforms)
    logger.info("augmentation: MONAI's transforms as written, since %s", reason)
    return Compose(list(transforms))


class FusedAugmentation(Compose):
    """Flips, an axial affine and noise in one step; the draws are those of the transforms it is made of.

    The result equals MONAI's to rounding, but for the noise: that is drawn by torch from a seed of the noise
    transform's own random state, the same distribution at a fifth of the time.

    Args:
        transforms: RandFlipd for some axes, RandAffined, RandGaussianNoised, as `augmentation` accepts them.
    """

    def __init__(self, transforms: Sequence[Any]) -> None:
        super().__init__(list(transforms))
        *self.flips, self.affine, self.noise = transforms
        (self.key,) = self.affine.keys
        self.shape_zyx = tuple(self.affine.rand_affine.spatial_size)
        z, y, x = (torch.arange(side) - (side - 1) / 2 for side in self.shape_zyx)
        self.z = z
        self.plane_yx1 = torch.stack([*torch.meshgrid(y, x, indexing="ij"), torch.ones(len(y), len(x))], dim=-1)
        self.generator = torch.Generator()

    def __call__(self, input_: Mapping[Hashable, Any], *_: Any, **__: Any) -> dict[Hashable, Any]:  # type: ignore[override]
        """Augment (1, z, y, x) of any size and dtype; gives (1, *spatial_size) float32."""
        item = dict(input_)
        image = item[self.key]
        matrix = self.draw()
        image = resample_axial(image[0].float(), matrix, self.z, self.plane_yx1)
        std = self.noise.rand_gaussian_noise.std
        if std:
            self.generator.manual_seed(int(self.noise.R.randint(2**31)))
            image += torch.randn(image.shape, generator=self.generator).mul_(std)
        item[self.key] = image.add_(self.noise.rand_gaussian_noise.mean)[None]
        return item

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


def resample_axial(image: Tensor, matrix: Tensor, z: Tensor, plane_yx1: Tensor) -> Tensor:
    """Trilinear resampling, border values outside, for a matrix that does not mix z with y and x.

    Args:
        image: (z, y, x) float32.
        matrix: (4, 4), output to input, (z, y, x, 1) in voxels from the middle of each box.
        z: (depth,) the output's z, from its middle.
        plane_yx1: (height, width, 3) the output's (y, x, 1), likewise.

    Returns:
        (depth, height, width) float32.
    """
    depth, height, width = image.shape
    position = (matrix[0, 0] * z + matrix[0, 3] + (depth - 1) / 2).clamp(0, depth - 1)
    # the share of each input slice in each output slice: a hat of width one around the position
    slices = (1 - (position[:, None] - torch.arange(depth)).abs()).clamp(min=0)
    image = (slices @ image.reshape(depth, -1)).reshape(1, -1, height, width)
    yx = plane_yx1 @ matrix[1:3, 1:].T
    grid = torch.stack([yx[..., 1] * (2 / (width - 1)), yx[..., 0] * (2 / (height - 1))], dim=-1)[None]
    return torch.nn.functional.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=True)[0]


def _why_not(transforms: Sequence[Any]) -> str | None:
    """Why the transforms cannot be fused; None where they can."""
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
