"""The network: a small 3-D CNN that classifies one cutout as nodule or non-nodule.

It follows the design of "Deep Learning with PyTorch" (Stevens, Antiga, Viehmann, 2020), chapter 11: a batch
normalisation as tail, four blocks of two convolutions and a max-pool, one linear layer as head. Its blocks are
MONAI's ``Convolution``; what varies (width, norm, dropout, bias) is an argument, not another class.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.blocks import Convolution
from torch import Tensor, nn
from torch.nn import functional as F

MODULES_A_BLOCK = 4


class NoduleNet(nn.Module):
    """Classify cutouts of CT voxels in HU.

    With the default arguments it has 222,220 parameters, and (32, 48, 48) voxels become (2, 3, 3) before the head.
    With ``two_scales`` it has 220,262, and costs about an eighth: its backbone sees the middle half of the cutout and,
    as a second channel, the whole cutout averaged over 2 x 2 x 2 voxels, both (16, 24, 24). A nodule of 30 mm does not
    fit into the first, and small ones vanish in the second. Both are made from the cutout inside the network, so that
    what is read, flipped, turned and exported is the cutout alone.

    Args:
        spatial_shape_zyx: voxels of a cutout; each side is halved once a block.
        in_channels: channels of the image.
        num_classes: outputs of the head; class 1 is "nodule".
        channels: width of each block, so its length is the number of blocks.
        norm: a MONAI norm ("BATCH", "INSTANCE", ...) after each convolution, or None as designed.
        dropout: probability after each convolution, 0 as designed.
        dropout_dim: 1 drops single values, 3 drops whole channels.
        bias: whether the convolutions have one.
        two_scales: whether the backbone sees the middle at full resolution beside the whole at half of it.
        return_probabilities: as designed, forward returns (logits, probabilities); False gives the logits tensor
            alone, as every MONAI network does. The weights are the same.

    Raises:
        ValueError: the cutout is too small for the number of blocks, or cannot be halved about its middle.
    """

    # constant for TorchScript, which then compiles one of the two returns
    __constants__ = ("return_probabilities",)

    # which blocks are trained in bfloat16, see networks.precision; scoring is float32
    bfloat16_blocks: tuple[bool, ...] = ()
    # set where all but the head goes on from other weights, see networks.weights
    fresh_head = False

    def __init__(
        self,
        spatial_shape_zyx: Sequence[int] = (32, 48, 48),
        in_channels: int = 1,
        num_classes: int = 2,
        channels: Sequence[int] = (8, 16, 32, 64),
        norm: str | None = None,
        dropout: float = 0.0,
        dropout_dim: int = 1,
        bias: bool = True,
        return_probabilities: bool = True,
        two_scales: bool = False,
    ) -> None:
        super().__init__()
        # what a run records, so that its weights are read back into the same network
        self.arguments: dict[str, Any] = {
            "spatial_shape_zyx": list(spatial_shape_zyx),
            "in_channels": in_channels,
            "num_classes": num_classes,
            "channels": list(channels),
            "norm": norm,
            "dropout": dropout,
            "dropout_dim": dropout_dim,
            "bias": bias,
            "two_scales": two_scales,
        }
        if two_scales and any(side % 4 for side in spatial_shape_zyx):
            raise ValueError(
                f"two_scales with cutouts of {tuple(spatial_shape_zyx)} voxels: the middle half and the average over "
                "2 x 2 x 2 voxels need sides that 4 divides"
            )
        inner_zyx = [side // 2 if two_scales else side for side in spatial_shape_zyx]
        self.backbone_shape_zyx = inner_zyx
        smallest = min(inner_zyx) // 2 ** len(channels)
        if smallest < 1:
            raise ValueError(
                f"cutouts of {tuple(spatial_shape_zyx)} voxels vanish after {len(channels)} poolings: "
                "use fewer channels entries or larger cutouts"
            )
        self.return_probabilities = return_probabilities
        self.two_scales = two_scales
        in_channels *= 2 if two_scales else 1
        self.tail = nn.BatchNorm3d(in_channels)
        blocks: list[nn.Module] = []
        common: dict[str, Any] = {"norm": norm, "dropout": dropout or None, "dropout_dim": dropout_dim, "bias": bias}
        for width_in, width in zip((in_channels, *channels), channels, strict=False):
            blocks += [
                Convolution(3, width_in, width, kernel_size=3, adn_ordering="NAD", act="RELU", **common),
                # ReLU and max-pool commute: after the pooling it costs an eighth, and gives the same
                Convolution(3, width, width, kernel_size=3, adn_ordering="ND", **common),
                nn.MaxPool3d(2),
                nn.ReLU(),
            ]
        self.backbone = nn.Sequential(*blocks)
        self.trainable_blocks: int | None = None
        features = channels[-1] * math.prod(side // 2 ** len(channels) for side in inner_zyx)
        self.head = nn.Linear(features, num_classes)
        self.apply(_initialise)

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Score a batch.

        Args:
            image: (batch, channel, z, y, x) float32, HU.

        Returns:
            logits (batch, classes), and with ``return_probabilities`` their softmax beside them.
        """
        if self.two_scales:
            image = both_scales(image)
        if torch.jit.is_scripting():
            features = self.backbone(self.tail(image))
        else:
            features = self._train_backbone(image) if self.training else self.backbone(self.tail(image))
        logits = self.head(features.flatten(1))
        if self.return_probabilities:
            return logits, torch.softmax(logits, dim=1)
        return logits

    def _train_backbone(self, image: Tensor) -> Tensor:
        """Return what the backbone makes of a batch in training, at no cost for the gradient of the image.

        The tail scales and shifts what it has normalised, which the first convolution can do as well: over the
        normalised channels and one of ones, with the weights scaled and shifted instead. Only the tail's two parameters
        a channel needed the gradient of the image, a seventh of a step. Equal to rounding, zero padding included.
        """
        tail: Any = self.tail
        first: Any = self.backbone[0]
        if not tail.training or type(self.tail) is not nn.BatchNorm3d:
            return self._run_parts(tail(image), 0)
        tail.num_batches_tracked.add_(1)
        normal = F.batch_norm(
            image, tail.running_mean, tail.running_var, None, None, True, tail.momentum or 0.0, tail.eps
        )
        weight = first.conv.weight
        scaled = weight * tail.weight[:, None, None, None]
        shifted = (weight * tail.bias[:, None, None, None]).sum(1, keepdim=True)
        padded = torch.cat([normal, torch.ones_like(normal[:, :1])], 1).contiguous(memory_format=torch.channels_last_3d)
        with self._precision_of(0):
            features = F.conv3d(padded, torch.cat([scaled, shifted], 1), first.conv.bias, padding=first.conv.padding)
            if hasattr(first, "adn"):
                features = first.adn(features)
        return self._run_parts(features, 1)

    def _run_parts(self, features: Tensor, start: int) -> Tensor:
        """Return what the backbone's parts from a number on make of features, each block in its own precision."""
        parts = list(self.backbone)
        if not any(self.bfloat16_blocks):
            for part in parts[start:]:
                features = part(features)
            return features
        for number in range(start, len(parts)):
            low = self.bfloat16_blocks[number // MODULES_A_BLOCK]
            with self._precision_of(number):
                features = parts[number](features if low else features.float())
        return features.float()

    def _precision_of(self, part: int) -> contextlib.AbstractContextManager[Any]:
        if not any(self.bfloat16_blocks):
            return contextlib.nullcontext()
        return torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16_blocks[part // MODULES_A_BLOCK])

    def blocks(self) -> list[nn.Module]:
        """Return the parts of the backbone between two poolings, each as a module of its own."""
        return [self.backbone[at : at + MODULES_A_BLOCK] for at in range(0, len(self.backbone), MODULES_A_BLOCK)]

    def example_image(self) -> Tensor:
        """Return a batch of four cutouts of air, of the size that the network scores."""
        return torch.full((4, self.arguments["in_channels"], *self.arguments["spatial_shape_zyx"]), -1000.0)

    def train(self, mode: bool = True) -> NoduleNet:
        """Switch to training; what is frozen stays as it is in scoring, so that its statistics do not move."""
        super().train(mode)
        for part in self._frozen():
            part.eval()
        return self

    def freeze(self, trainable_blocks: int) -> None:
        """Train the head and the last blocks alone; see `freeze`."""
        blocks = len(self.blocks())
        if not 0 <= trainable_blocks <= blocks:
            raise ValueError(
                f"trainable_blocks {trainable_blocks}: the network has {blocks} blocks; give 0 (the head alone) to "
                f"{blocks}, or null for everything"
            )
        self.trainable_blocks = trainable_blocks
        for part in self._frozen():
            part.requires_grad_(False)
        self.train(self.training)

    def _frozen(self) -> list[nn.Module]:
        if self.trainable_blocks is None:
            return []
        blocks = list(self.backbone)
        return [self.tail, *blocks[: len(blocks) - MODULES_A_BLOCK * self.trainable_blocks]]


def both_scales(image: Tensor) -> Tensor:
    """Return the middle half of a batch of cutouts, and as further channels the whole averaged over 2 x 2 x 2 voxels.

    Flipping or turning the cutout flips or turns both, as they share its middle.

    Args:
        image: (batch, channel, z, y, x), each side divisible by 4.

    Returns:
        (batch, 2 * channel, z / 2, y / 2, x / 2).
    """
    z, y, x = image.shape[2:]
    middle = image[:, :, z // 4 : z // 4 + z // 2, y // 4 : y // 4 + y // 2, x // 4 : x // 4 + x // 2]
    return torch.cat([middle, F.avg_pool3d(image, 2)], 1)


def freeze(network: nn.Module, trainable_blocks: int | None) -> nn.Module:
    """Keep the first part of a network as it is, for fine-tuning.

    Args:
        network: is changed, not copied.
        trainable_blocks: 0 trains the head alone, N also the last N blocks; None trains everything, the tail too.

    Raises:
        ValueError: the network has fewer blocks, or is not made of blocks.
    """
    if trainable_blocks is not None:
        if not isinstance(network, NoduleNet):
            raise ValueError(
                f"trainable_blocks {trainable_blocks}: {type(network).__name__} is not made of blocks as NoduleNet is: "
                "set it to null"
            )
        network.freeze(trainable_blocks)
    return network


def _initialise(module: nn.Module) -> None:
    """Kaiming initialisation (He et al., 2015, arXiv 1502.01852), for convolutions and the head."""
    if isinstance(module, nn.Conv3d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
