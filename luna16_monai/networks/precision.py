"""Choose which blocks of the network are trained in bfloat16 on a CPU: those where that is right and faster here.

Processors differ: with the instructions for it a step takes two thirds of the time or less, without them several times
as long; and oneDNN gives infinite or random weight gradients for maps two voxels deep on some of those that have them.
A list of processors would be wrong for the next one, so the convolutions are tried at the start of a training.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from luna16_monai.networks.nodule_net import MODULES_A_BLOCK, NoduleNet

LARGEST_ERROR = 0.02
"""Of outputs and gradients, relative to float32; bfloat16 rounds to 0.003 on average."""
FAST_ENOUGH = 0.9
"""Of float32's time."""
ROUNDS, CUTOUTS = 3, 4


@dataclass(frozen=True)
class SelfTest:
    """What a self-test has found.

    Attributes:
        right: of each block, whether its convolutions' outputs and gradients in bfloat16 are those of float32, rounded.
        time_ratio: CPU time of all blocks that are right, forward and backward, over that in float32.
    """

    right: tuple[bool, ...]
    time_ratio: float

    @property
    def chosen(self) -> tuple[bool, ...]:
        """The blocks to train in bfloat16: those that are right, if that is faster; none otherwise."""
        return tuple(right and self.time_ratio <= FAST_ENOUGH for right in self.right)


def try_bfloat16(network: NoduleNet) -> SelfTest:
    """Try the convolutions of a network in bfloat16 on this machine's CPU, on a few maps of the size that they have.

    Takes a second or less on a processor for which it is fast. torch's random state stays as it is.

    Args:
        network: is not changed.
    """
    right, seconds = [], {False: 0.0, True: 0.0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for block in _blocks(network):
            found = [_try(convolution, images) for convolution, images in block]
            right.append(all(error <= LARGEST_ERROR for error, _ in found))
            if right[-1]:
                for _, times in found:
                    seconds = {low: seconds[low] + times[low] for low in seconds}
    return SelfTest(tuple(right), seconds[True] / seconds[False] if seconds[False] else float("inf"))


def _blocks(network: NoduleNet) -> Iterator[list[tuple[nn.Conv3d, Tensor]]]:
    """Yield of each block its convolutions, copied, with random maps of their size for each."""
    parts: list[Any] = list(network.backbone)
    sides = network.backbone_shape_zyx
    for start in range(0, len(parts), MODULES_A_BLOCK):
        block = []
        for part in parts[start : start + 2]:
            own = part.conv
            convolution: Any = nn.Conv3d(own.in_channels, own.out_channels, 3, padding=1)
            images = torch.randn(CUTOUTS, own.in_channels, *sides)
            block.append((convolution.to(memory_format=torch.channels_last_3d), _layout(images)))
        yield block
        sides = [side // 2 for side in sides]


def _layout(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last_3d)


def _try(convolution: nn.Conv3d, images: Tensor) -> tuple[float, dict[bool, float]]:
    """Return the largest relative error in bfloat16, and the time in float32 (False) and in bfloat16 (True)."""
    gradient = _layout(torch.randn_like(convolution(images)))
    times, results = {}, {}
    for low in (False, True):
        passed = []
        for _ in range(ROUNDS):
            started = time.process_time()
            results[low] = _forward_backward(convolution, images, gradient, low)
            passed.append(time.process_time() - started)
        times[low] = min(passed)
    errors = [
        ((rounded - exact).norm() / exact.norm()).item()
        for exact, rounded in zip(results[False], results[True], strict=True)
    ]
    # NaN compares with nothing
    return max(error if error >= 0 else float("inf") for error in errors), times


def _forward_backward(convolution: nn.Conv3d, images: Tensor, gradient: Tensor, low: bool) -> list[Tensor]:
    """Return the output and all gradients of a convolution, as float32."""
    images = images.detach().requires_grad_()
    weight = convolution.weight.detach().requires_grad_()
    bias = torch.zeros(convolution.out_channels, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        output = F.conv3d(images, weight, bias, padding=1)
    output.backward(gradient.to(output.dtype))
    tensors = (output.detach(), images.grad, weight.grad, bias.grad)
    return [tensor.float() for tensor in tensors if tensor is not None]
