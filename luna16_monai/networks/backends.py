"""Put a network on a device and a backend: torch, compiled torch, or OpenVINO."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from luna16_monai.machine.extras import is_installed, require
from luna16_monai.networks.weights import load_state, read_weights

BACKENDS = ("auto", "torch", "openvino")


def load_weights(
    network: nn.Module,
    path: Path | str,
    device: torch.device | str = "cpu",
    backend: str = "torch",
    shape_zyx: Sequence[int] = (32, 48, 48),
) -> nn.Module:
    """Return the network with its weights, ready to score.

    Args:
        network: gives logits.
        path: a bare state dict.
        device: where it runs.
        backend: ``torch``; ``openvino``, which is faster on a CPU and gives the same within 1e-5; ``auto`` takes
            OpenVINO on a CPU where it is installed.
        shape_zyx: voxels of a cutout.

    Raises:
        FileNotFoundError: there are no weights.
        ValueError: they belong to another network, the file holds more than weights, or the backend does not fit.
        ModuleNotFoundError: OpenVINO was asked for and is missing.
    """
    on_cpu = torch.device(device).type == "cpu"
    if backend not in BACKENDS or (backend == "openvino" and not on_cpu):
        raise ValueError(f"backend {backend} on {device}: name one of {', '.join(BACKENDS)}; openvino runs on a CPU")
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights {path}: train the bundle and put its model.pt there, or name a file")
    load_state(network, read_weights(path), f"the weights {path}")
    if backend == "openvino" or (backend == "auto" and on_cpu and is_installed("openvino")):
        return OpenVinoNetwork(network.eval(), shape_zyx)
    return network.to(device=device, memory_format=torch.channels_last_3d).eval()  # type: ignore[call-overload]


OUTPUTS = ("logits", "probabilities")


class WithProbabilities(nn.Module):
    """A network whose forward gives (logits, probabilities), on the CPU and in the usual memory layout."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Score a batch."""
        logits = self.network(image)
        return logits, torch.softmax(logits, dim=1)


class OpenVinoNetwork(nn.Module):
    """A network that OpenVINO runs on the CPU, for scoring: takes and gives what the network itself does.

    Args:
        network: gives logits.
        shape_zyx: voxels of a cutout.

    Raises:
        ModuleNotFoundError: openvino is missing.
    """

    def __init__(self, network: nn.Module, shape_zyx: Sequence[int]) -> None:
        super().__init__()
        openvino = import_openvino()
        # one call at a time, which is to have all cores
        hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        self.compiled = openvino.compile_model(openvino_model(openvino, network, shape_zyx), "CPU", hints)

    def forward(self, image: Tensor) -> Tensor:
        """Score a batch."""
        return torch.from_numpy(self.compiled(image.numpy())[0])


def import_openvino() -> ModuleType:
    """OpenVINO, kept from telling its maker that it was imported, which it otherwise does over the network.

    Raises:
        ModuleNotFoundError: it is missing.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    require("export", "this backend or format", "openvino")
    import openvino

    return openvino


def openvino_model(openvino: ModuleType, network: nn.Module, shape_zyx: Sequence[int]) -> Any:
    """Return the network as OpenVINO's model, which gives probabilities, for batches of any size."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = openvino.convert_model(
            WithProbabilities(network), example_input=torch.zeros(2, 1, *shape_zyx), input=[-1, 1, *shape_zyx]
        )
    model.inputs[0].get_tensor().set_names({"image"})
    for out, name in zip(model.outputs, OUTPUTS, strict=True):
        out.get_tensor().set_names({name})
    return model


def on_device(network: nn.Module, device: torch.device | str, compile: bool | str = False) -> nn.Module:
    """Put a network where it is trained, in the layout in which 3-D convolutions are fast; results are the same.

    Args:
        network: is moved, not copied.
        device: where to.
        compile: by ``torch.compile``, in place so that the names of the weights stay; a text is its mode.
    """
    network = network.to(device=device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    if compile:
        network.compile(mode=None if compile is True else compile)
    return network


def share_batch_norm(network: nn.Module, device: torch.device | str, enabled: bool = True) -> nn.Module:
    """Let batch normalisations take mean and variance over the batches of all processes (torch's SyncBatchNorm).

    Args:
        network: its batch normalisations are replaced in place; the names of its weights stay.
        device: where it will be trained.
        enabled: False gives the network as it is.

    Raises:
        ValueError: the device is no GPU, for which torch has no such layer.
    """
    if not enabled:
        return network
    if torch.device(device).type != "cuda":
        raise ValueError(f"sync_batch_norm on device {device}: it works on CUDA alone: leave it false here")
    return nn.SyncBatchNorm.convert_sync_batchnorm(network)
