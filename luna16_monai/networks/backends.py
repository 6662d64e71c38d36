"""Put a network on a device and a backend: torch, compiled torch, or OpenVINO."""

from __future__ import annotations

import copy
import re
import sys
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from luna16_monai.machine.extras import is_installed, require
from luna16_monai.networks.bfloat16 import Bfloat16Detector, scores_in_bfloat16
from luna16_monai.networks.folding import folded
from luna16_monai.networks.nodule_detector import NoduleDetector
from luna16_monai.networks.weights import load_state, read_state

DEVICE = re.compile(r"cpu|cuda(:\d+)?")
BACKENDS = ("auto", "torch", "openvino")


def require_device(device: torch.device | str) -> torch.device:
    """Return a device that is there.

    Raises:
        ValueError: it is neither a CPU nor a CUDA device, or is not there; the message says which ones are.
    """
    name = str(device)
    if not DEVICE.fullmatch(name):
        raise ValueError(f"device {name}: there are cpu, cuda and cuda:N: name one of them")
    found = torch.device(name)
    if found.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            why = "torch finds no CUDA device" if torch.version.cuda else "this torch was built without CUDA"
            raise ValueError(f"device {name}: {why}, so there is cpu alone: name that one")
        if (found.index or 0) >= count:
            there = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
            raise ValueError(f"device {name}: there is {there}, and cpu: name one of them")
    return found


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
    if _loaded(network, path, device, backend):
        return OpenVinoNetwork(network.eval(), shape_zyx)
    return network.to(device=device, memory_format=torch.channels_last_3d).eval()  # type: ignore[call-overload]


def load_detector(
    network: NoduleDetector,
    path: Path | str,
    device: torch.device | str = "cpu",
    backend: str = "torch",
    bf16: bool = False,
) -> nn.Module:
    """Return a detector with its weights, for `TiledInferer`, its norms folded into its convolutions.

    Args:
        network, path, device, backend: as `load_weights`.
        bf16: score in bfloat16 on a CPU that is faster with it; with torch, a self-test decides whether it is.

    Raises:
        FileNotFoundError, ValueError, ModuleNotFoundError: as `load_weights`.
    """
    by_openvino = _loaded(network, path, device, backend)
    ready: Any = folded(network.cpu())
    if by_openvino:
        return OpenVinoDetector(ready, bf16)
    ready = ready.to(device=device, memory_format=torch.channels_last_3d)
    if bf16 and torch.device(device).type == "cpu" and scores_in_bfloat16(ready):
        return Bfloat16Detector(ready)
    return ready


def _loaded(network: nn.Module, path: Path | str, device: torch.device | str, backend: str) -> bool:
    """Give a network its weights; return whether OpenVINO is to run it."""
    on_cpu = torch.device(device).type == "cpu"
    if backend not in BACKENDS or (backend == "openvino" and not on_cpu):
        raise ValueError(f"backend {backend} on {device}: name one of {', '.join(BACKENDS)}; openvino runs on a CPU")
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights {path}: train the bundle and put its model.pt there, or name a file")
    load_state(network, read_state(path), f"the weights {path}")
    return backend == "openvino" or (backend == "auto" and on_cpu and is_installed("openvino"))


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
        self.compiled = core().compile_model(openvino_model(openvino, network, shape_zyx), "CPU", hints)

    def forward(self, image: Tensor) -> Tensor:
        """Score a batch."""
        return torch.from_numpy(self.compiled(image.numpy())[0])


class OpenVinoDetector(nn.Module):
    """A detector that OpenVINO runs on the CPU, both parts of it on volumes of any size.

    Args:
        network: with its weights.
        bf16: in bfloat16 where the CPU has it; the head, little work, stays torch's, in float32.

    Raises:
        ModuleNotFoundError: openvino is missing.
    """

    def __init__(self, network: NoduleDetector, bf16: bool = False) -> None:
        super().__init__()
        openvino = import_openvino()
        self.stem_stride_zyx = network.stem_stride_zyx
        network = copy.deepcopy(network).to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
        self.head = network.head
        small = torch.zeros(1, 1, *network.total_stride_zyx)
        low = bf16 and "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        hints = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "bf16" if low else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        with torch.no_grad():
            first = network.fine(small)
        examples = {"fine": small, "features": first}
        self._compiled = {}
        for name, example in examples.items():
            shape = [-1, example.shape[1], -1, -1, -1]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = openvino.convert_model(_Part(network, name), example_input=example, input=[shape])
            self._compiled[name] = core().compile_model(model, "CPU", hints)

    def fine(self, image: Tensor) -> Tensor:
        """Return the first level, as `NoduleDetector.fine`."""
        return torch.from_numpy(self._compiled["fine"](image.float().numpy())[0])

    def coarse(self, first: Tensor) -> Tensor:
        """Return the output from the first level, as `NoduleDetector.coarse`."""
        return self.head(torch.from_numpy(self._compiled["features"](first.numpy())[0]))


class _Part(nn.Module):
    """One part of a detector, named ``fine`` or ``features``, as a network of its own."""

    def __init__(self, network: NoduleDetector, name: str) -> None:
        super().__init__()
        self.network, self.part = network, name

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        return self.network.fine(x) if self.part == "fine" else self.network.features(x)


def import_openvino() -> ModuleType:
    """OpenVINO, kept from telling its maker that it was imported, which it otherwise does over the network.

    Raises:
        ModuleNotFoundError: it is missing.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    require("export", "this backend or format", "openvino")
    import openvino

    return openvino


@cache
def core() -> Any:
    """Return the process's one core of OpenVINO.

    On a CPU with AMX each core gives the thread another stack for the handling of signals. Of two cores the second one
    to end puts back the first one's, which is gone by then, and the next signal ends the process with SIGSEGV.
    """
    return import_openvino().Core()


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


def detector_model(openvino: ModuleType, network: nn.Module, example: Tensor) -> Any:
    """Return a detector as OpenVINO's model, from ``image`` of any size to ``maps``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = openvino.convert_model(network, example_input=example, input=[-1, 1, -1, -1, -1])
    model.inputs[0].get_tensor().set_names({"image"})
    model.outputs[0].get_tensor().set_names({"maps"})
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


def share_batch_norm(network: nn.Module, device: torch.device | str, enabled: bool | None = True) -> nn.Module:
    """Let batch normalisations take mean and variance over the batches of all processes (torch's SyncBatchNorm).

    Args:
        network: its batch normalisations are replaced in place; the names of its weights stay.
        device: where it will be trained.
        enabled: False gives the network as it is; None replaces them on a GPU where there are more than one, as with
            norms in the blocks: the tail alone, which scales HU, does as well with the batch of one process.

    Raises:
        ValueError: the device is no GPU, for which torch has no such layer; or ``enabled`` is another value.
    """
    if enabled is None:
        norms = sum(isinstance(part, nn.BatchNorm3d) for part in network.modules())
        enabled = norms > 1 and torch.device(device).type == "cuda"
    if not isinstance(enabled, bool):
        raise ValueError(f"sync_batch_norm {enabled}: give true, false, or null")
    if not enabled:
        return network
    if torch.device(device).type != "cuda":
        raise ValueError(f"sync_batch_norm on device {device}: it works on CUDA alone: leave it null here")
    return nn.SyncBatchNorm.convert_sync_batchnorm(network)
