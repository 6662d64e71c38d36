"""Try a network of any form in bfloat16 on a CPU, see ``precision``: each convolution on maps of its own size."""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
from torch import Tensor, nn

from luna16_monai.networks.precision import LARGEST_ERROR, ROUNDS, SelfTest


def try_convolutions(network: nn.Module, image: Tensor) -> SelfTest:
    """Try all convolutions of a network in bfloat16, forward and backward; the network counts as one block.

    torch's random state stays as it is.

    Args:
        network: is not changed.
        image: a batch of the size that it is trained on.
    """
    copied: Any = copy.deepcopy(network)
    copied = copied.to("cpu", memory_format=torch.channels_last_3d).train()
    shapes: dict[nn.Conv3d, torch.Size] = {}
    for module in copied.modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_hook(lambda one, given, _: shapes.update({one: given[0].shape}))
    seconds = {False: 0.0, True: 0.0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        copied(image)
        for convolution, shape in shapes.items():
            convolution._forward_hooks.clear()
            error, times = try_convolution(convolution, torch.randn(shape))
            if error > LARGEST_ERROR:
                return SelfTest((False,), float("inf"))
            seconds = {low: seconds[low] + times[low] for low in seconds}
    return SelfTest((True,), seconds[True] / seconds[False])


def try_convolution(convolution: nn.Conv3d, images: Tensor) -> tuple[float, dict[bool, float]]:
    """Return the largest relative error in bfloat16, and the CPU seconds in float32 (False) and in bfloat16 (True).

    Args:
        convolution: is not changed but for its gradients.
        images: (batch, channels, z, y, x).
    """
    images = images.contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    towards = torch.randn_like(convolution(images))
    parameters = list(convolution.parameters())
    results, times = {}, {}
    for low in (False, True):
        spent = []
        for _ in range(ROUNDS):
            started = time.process_time()
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                output = convolution(images)
            gradients = torch.autograd.grad(output, [images, *parameters], towards.to(output.dtype))
            spent.append(time.process_time() - started)
        results[low], times[low] = [output.detach().float(), *(one.float() for one in gradients)], min(spent)
    errors = [
        float((rounded - exact).norm() / exact.norm())
        for exact, rounded in zip(results[False], results[True], strict=True)
    ]
    # NaN compares with nothing
    return max(error if error >= 0 else float("inf") for error in errors), times
