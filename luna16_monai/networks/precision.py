"""Choose which blocks of a network are trained in bfloat16 on a CPU: those where that is right and faster here.

Processors differ: with the instructions for it a step takes two thirds of the time or less, without them several times
as long; and oneDNN gives infinite or random weight gradients for maps two voxels deep on some of those that have them.
A list of processors would be wrong for the next one, so the convolutions are tried at the start of a training.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from luna16_monai.networks.nodule_detector import NoduleDetector
from luna16_monai.networks.nodule_net import NoduleNet

Result = TypeVar("Result")

LARGEST_ERROR = 0.02
"""Of outputs and gradients, relative to float32; bfloat16 rounds to 0.003 on average."""
FAST_ENOUGH = 0.9
"""Of float32's time."""
ROUNDS = 3


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


def try_bfloat16(network: NoduleNet | NoduleDetector) -> SelfTest:
    """Try the convolutions of a network in bfloat16 on this machine's CPU, on a few maps of the size that they have.

    Takes a second or less on a processor for which it is fast. torch's random state stays as it is.

    Args:
        network: is not changed.
    """
    copied: Any = copy.deepcopy(network).to("cpu", memory_format=torch.channels_last_3d).eval()  # type: ignore[call-overload]
    shapes: dict[nn.Conv3d, torch.Size] = {}
    convolutions = [[part for part in block.modules() if isinstance(part, nn.Conv3d)] for block in copied.blocks()]
    hooks = [
        convolution.register_forward_hook(lambda one, given, _: shapes.update({one: given[0].shape}))
        for block in convolutions
        for convolution in block
    ]
    right, seconds = [], {False: 0.0, True: 0.0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        with torch.no_grad():
            copied(copied.example_image())
        for hook in hooks:
            hook.remove()
        for block in convolutions:
            found = [try_convolution(convolution, torch.randn(shapes[convolution])) for convolution in block]
            right.append(all(error <= LARGEST_ERROR for error, _ in found))
            if right[-1]:
                for _, times in found:
                    seconds = {low: seconds[low] + times[low] for low in seconds}
    return SelfTest(tuple(right), seconds[True] / seconds[False] if seconds[False] else float("inf"))


def try_convolution(convolution: nn.Conv3d, images: Tensor) -> tuple[float, dict[bool, float]]:
    """Return the largest relative error in bfloat16, and the CPU seconds in float32 (False) and in bfloat16 (True).

    Args:
        convolution: is not changed.
        images: (batch, channels, z, y, x).
    """
    images = images.contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    towards = torch.randn_like(convolution(images))
    results, times = in_turns(partial(_forward_backward, convolution, images, towards))
    return max(map(relative_error, results[False], results[True])), times


def in_turns(work: Callable[[bool], Result]) -> tuple[dict[bool, Result], dict[bool, float]]:
    """Return what some work gives in float32 (False) and in bfloat16 (True), and the least CPU seconds of each.

    They take turns, so that a machine whose speed drifts slows both.
    """
    results: dict[bool, Result] = {}
    spent: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(ROUNDS):
        for low, seconds in spent.items():
            started = time.process_time()
            results[low] = work(low)
            seconds.append(time.process_time() - started)
    return results, {low: min(seconds) for low, seconds in spent.items()}


def relative_error(exact: Tensor, rounded: Tensor) -> float:
    """Return how far a tensor is from the exact one, relative to its size; infinite where that is no number."""
    error = float((rounded - exact).norm() / exact.norm())
    return error if error >= 0 else float("inf")  # NaN compares with nothing


def _forward_backward(convolution: nn.Conv3d, images: Tensor, towards: Tensor, low: bool) -> list[Tensor]:
    """Return as float32 the output and the gradients of the image and of the parameters."""
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        output = convolution(images)
    gradients = torch.autograd.grad(output, [images, *convolution.parameters()], towards.to(output.dtype))
    return [output.detach().float(), *(gradient.float() for gradient in gradients)]
