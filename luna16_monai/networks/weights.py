"""Read weights, and load them into a network as its first ones."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from luna16_monai.networks.folding import unfolded_state

logger = logging.getLogger(__name__)


def read_weights(file: Path | str | BinaryIO, name: str | None = None) -> Any:
    """Read tensors and plain values, and nothing else: what would run code is refused.

    Args:
        file: a path, or an open file.
        name: the file, for the message; default: its path.

    Raises:
        ValueError: it holds something else, or is damaged.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # of a damaged file the unpickler may raise anything
        raise ValueError(
            f"{name or file} holds no plain weights, or is damaged ({type(error).__name__}): name a file that this "
            "program wrote"
        ) from error


def load_state(network: torch.nn.Module, state: Mapping[str, Any], what: str) -> None:
    """Load weights into a network, all of them.

    Args:
        network: takes them.
        state: tensors by name, as ``network.state_dict()``.
        what: they are, for the message: "the weights model.pt".

    Raises:
        ValueError: they belong to another network.
    """
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{what} belong to another network: {reason}") from error


def load_initial_weights(network: torch.nn.Module, path: str | None) -> None:
    """Start from the weights in a file; None leaves the network as it is.

    A head of another size, as for other classes or a larger cutout, stays as it was initialised; the log says so.
    Weights whose batch norms were folded go into a network with norms too, whose norms then begin as the identity.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the weights belong to another network.
    """
    if path is None:
        return
    if not Path(path).is_file():
        raise FileNotFoundError(f"init_weights {path}: no such file: name a model.pt, or null to start fresh")
    weights = unfolded_state(network, read_weights(path))
    own = network.state_dict()
    fresh = [key for key in own if key.startswith("head.") and key in weights and weights[key].shape != own[key].shape]
    load_state(network, {**weights, **{key: own[key] for key in fresh}}, f"init_weights {path}")
    if fresh:
        logger.info("init_weights: the head has another size and starts fresh, all else goes on from %s", path)
