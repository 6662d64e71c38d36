"""Fold the batch norms of a trained network into its convolutions, and unfold them for a training that goes on.

A batch norm behind a convolution only scales and shifts its channels in scoring, which the convolution's own weights
and bias can do. What is trained with norms so becomes the design's network without them: as small, as fast, exported
as it is. The way back loses what a norm had learned: it becomes the identity in scoring.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from monai.networks.blocks import Convolution
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

NORM = ".adn.N"
NORMS = (nn.BatchNorm3d, nn.SyncBatchNorm)


def folded_state(network: nn.Module) -> dict[str, Tensor]:
    """Return the state of the same network without the batch norms behind its convolutions.

    Folded in float64. In scoring both give the same logits to 1e-5. A network without such norms gives its own state;
    norms of other kinds (instance, group) depend on the cutout, so they stay what they are.

    Args:
        network: its blocks are MONAI's ``Convolution``, whose norm follows the convolution.

    Returns:
        names and tensors on the CPU; the convolutions have a bias each.
    """
    state = {name: value.detach().cpu() for name, value in network.state_dict().items()}
    for name, norm in network.named_modules():
        if not (name.endswith(NORM) and isinstance(norm, NORMS)):
            continue
        convolution = name.removesuffix(NORM) + ".conv"
        mean, variance, gamma, beta = (
            state.pop(f"{name}.{part}").double() for part in ("running_mean", "running_var", "weight", "bias")
        )
        state.pop(f"{name}.num_batches_tracked", None)
        scale = gamma * (variance + norm.eps).rsqrt()
        weight, bias = state[f"{convolution}.weight"], state.get(f"{convolution}.bias")
        state[f"{convolution}.weight"] = (weight.double() * scale[:, None, None, None, None]).to(weight.dtype)
        shift = -mean * scale + beta
        if bias is not None:
            shift = shift + bias.double() * scale
        state[f"{convolution}.bias"] = shift.to(weight.dtype)
    return state


def folded(network: nn.Module) -> nn.Module:
    """Return a copy of a network for scoring, with its batch norms folded into the convolutions before them.

    Args:
        network: as `folded_state`; is not changed.
    """
    copied = copy.deepcopy(network).eval()
    for part in copied.modules():
        norm = getattr(getattr(part, "adn", None), "N", None)
        if isinstance(part, Convolution) and isinstance(norm, nn.BatchNorm3d):
            convolution: Any = part.get_submodule("conv")
            part.conv = fuse_conv_bn_eval(convolution, norm)
            part.get_submodule("adn").N = nn.Identity()
    return copied


def unfolded_state(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state for a network with batch norms from one without: each norm begins as the identity in scoring.

    In training a norm takes the statistics of the batch instead, from the first step on; so the function is kept for
    scoring and for frozen blocks, not within a training step.

    Args:
        network: the one with norms.
        state: of the same network without them.
    """
    result = dict(state)
    for name, part in network.named_modules():
        if name.endswith(NORM) and isinstance(part, NORMS) and f"{name}.weight" not in state:
            result |= {f"{name}.{key}": value.detach().cpu() for key, value in part.state_dict().items()}
            width = part.num_features
            result[f"{name}.running_mean"] = torch.zeros(width)
            result[f"{name}.running_var"] = torch.ones(width)
            result[f"{name}.weight"] = torch.full((width,), (1 + part.eps) ** 0.5)
            result[f"{name}.bias"] = torch.zeros(width)
    return result
