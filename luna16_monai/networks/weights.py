"""Read weights, and load them into a network as its first ones."""

from __future__ import annotations

import logging
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from luna16_monai.networks.folding import unfolded_state
from luna16_monai.networks.nodule_net import NoduleNet

logger = logging.getLogger(__name__)

WRAPPERS = ("state_dict", "model_state_dict", "model", "network", "net")
"""Under which keys other programs keep a network's weights."""
PREFIXES = ("module.", "_orig_mod.")


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
        raise ValueError(_no_weights(file, str(name or file), type(error).__name__)) from error


def _no_weights(file: Path | str | BinaryIO, name: str, error: str) -> str:
    """What a file is that holds no plain weights."""
    start = b""
    if isinstance(file, Path | str):
        with Path(file).open("rb") as stream:
            start = stream.read(512)
    if start.startswith(b"version https://git-lfs"):
        return f"{name} is a Git LFS pointer, not the weights themselves: fetch these with git lfs pull"
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return f"{name} is a web page, not the weights: download the file itself"
    if start.startswith(b"PK") and _is_torchscript(Path(str(file))):
        return f"{name} is a TorchScript program, an export: name the model.pt that it was made from"
    return f"{name} holds no plain weights, or is damaged ({error}): name a file that this program wrote"


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def read_state(path: Path | str) -> dict[str, Tensor]:
    """Read the weights of a network, as this program or another one wrote them.

    Taken are a bare state dict, and one inside ``{"state_dict": ...}`` or another of `WRAPPERS`; where all names begin
    with ``module.`` or ``_orig_mod.``, as parallel or compiled networks have them, that is dropped.

    Raises:
        ValueError: as `read_weights`; or the file is a checkpoint of a run, or holds no weights.
    """
    content = read_weights(path)
    if isinstance(content, Mapping) and {"network", "optimizer", "iteration"} <= content.keys():
        beside = Path(path).parent.parent / "model.pt"
        which = str(beside) if beside.is_file() else "the run's model.pt"
        raise ValueError(f"{path} is a checkpoint of a run, to go on from with --resume true: name {which} instead")
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and _is_state(content.get(wrapper)):
            logger.info("%s: the weights under %r are taken", path, wrapper)
            content = content[wrapper]
            break
    if not _is_state(content):
        raise ValueError(f"{path} holds no weights of a network, tensors by name: name a run's model.pt")
    state: dict[str, Tensor] = dict(content)
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _is_state(content: Any) -> bool:
    return isinstance(content, Mapping) and bool(content) and all(isinstance(v, Tensor) for v in content.values())


def load_state(network: torch.nn.Module, state: Mapping[str, Any], what: str) -> None:
    """Load weights into a network, all of them.

    Args:
        network: takes them.
        state: tensors by name, as ``network.state_dict()``.
        what: they are, for the message: "the weights model.pt".

    Raises:
        ValueError: they belong to another network.
    """
    if difference := _difference(network.state_dict(), state):
        raise ValueError(
            f"{what} belong to another network: {difference}; keep the run's run.json beside its model.pt, which says "
            "which network it is, or set network_def as it was trained"
        )
    network.load_state_dict(state)


def _difference(own: Mapping[str, Tensor], state: Mapping[str, Any]) -> str:
    """Say how weights differ from a network's: one tensor by name, and how many more; empty where they fit."""
    reshaped = [name for name in own if name in state and state[name].shape != own[name].shape]
    missing = [name for name in own if name not in state]
    unknown = [name for name in state if name not in own]
    if not (names := reshaped + missing + unknown):
        return ""
    if reshaped:
        told = f"{names[0]} is {tuple(state[names[0]].shape)} there, {tuple(own[names[0]].shape)} in the network"
    else:
        told = f"{names[0]} is missing" if missing else f"the network has no {names[0]}"
    return told if len(names) == 1 else f"{told} ({len(names)} tensors differ)"


def load_initial_weights(network: torch.nn.Module, path: str | None, shape_zyx: Sequence[int] | None = None) -> None:
    """Start from the weights in a file; None leaves the network as it is.

    A head for other classes stays as it was initialised. That for a larger cutout takes over the weights where the
    cells of its features are those of the smaller cutout, see `grown_head`, and otherwise stays as it was initialised
    too; the log says which. Weights whose batch norms were folded go into a network with norms too, whose norms then
    begin as the identity.

    Args:
        network: takes them. A `NoduleNet` whose head starts fresh although the classes are the same has ``fresh_head``
            set.
        path: of a model.pt.
        shape_zyx: voxels of the cutouts that the weights were trained on; None where that is not known.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the weights belong to another network.
    """
    if path is None:
        return
    if not Path(path).is_file():
        raise FileNotFoundError(f"init_weights {path}: no such file: name a model.pt, or null to start fresh")
    weights = unfolded_state(network, read_state(path))
    own = network.state_dict()
    others = [key for key in own if key.startswith("head.") and key in weights and weights[key].shape != own[key].shape]
    carried, grows = None, False
    if isinstance(network, NoduleNet) and (grows := others == ["head.weight"]) and shape_zyx is not None:
        carried = grown_head(network, weights["head.weight"], shape_zyx)
    heads = {key: own[key] for key in others} if carried is None else {"head.weight": carried}
    load_state(network, {**weights, **heads}, f"init_weights {path}")
    if carried is not None:
        logger.info("init_weights: the head of the smaller cutout is carried over to its cells, all from %s", path)
    elif others:
        logger.info("init_weights: the head has another size and starts fresh, all else goes on from %s", path)
        if isinstance(network, NoduleNet):
            network.fresh_head = grows


def grown_head(network: NoduleNet, weight: Tensor, shape_zyx: Sequence[int]) -> Tensor | None:
    """Return the weight of a head for a larger cutout that reads the smaller cutout's cells as its head did.

    A candidate lies in the middle of its cutout, so the smaller one begins half the difference inside the larger one.
    Where that is a whole number of cells on each axis, a cell of the smaller one's features sees in the larger one what
    it saw before, but for its border: there the smaller one saw zeros. The weights of the other cells are zero.

    Args:
        network: of the larger cutout.
        weight: (classes, features) of the smaller cutout's head.
        shape_zyx: voxels of the smaller cutout.

    Returns:
        (classes, features); None where the cells do not fit, as from 16 x 24 x 24 to 32 x 48 x 48.
    """
    channels = network.arguments["channels"]
    cell = 2 ** len(channels) * (2 if network.two_scales else 1)
    large_zyx = network.arguments["spatial_shape_zyx"]
    shifts = [large // 2 - small // 2 for large, small in zip(large_zyx, shape_zyx, strict=True)]
    old, new = ([side // cell for side in sides] for sides in (shape_zyx, large_zyx))
    if any(shift % cell or shift < 0 for shift in shifts) or weight.shape[1] != channels[-1] * math.prod(old):
        return None
    grown = torch.zeros(len(weight), channels[-1], *new)
    z, y, x = (slice(shift // cell, shift // cell + side) for shift, side in zip(shifts, old, strict=True))
    grown[:, :, z, y, x] = weight.reshape(len(weight), channels[-1], *old)
    return grown.flatten(1)
