"""A trained network in the formats of other programs: torch.export's PT2, TorchScript, ONNX, OpenVINO.

TorchScript, deprecated in torch 2.9 and later, is MONAI's own export, with the logits alone; the others give ``logits``
and ``probabilities``. All take ``image`` (batch, 1, z, y, x) float32 HU, clipped to what the network was trained on, of
any batch size. A detector takes volumes and gives maps instead, see `export_detector`.
"""

from __future__ import annotations

import io
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from monai.bundle import ckpt_export
from torch import Tensor, nn

from luna16_monai.machine.extras import require
from luna16_monai.machine.files import atomic_write
from luna16_monai.networks.backends import (
    OUTPUTS,
    WithProbabilities,
    detector_model,
    import_openvino,
    openvino_model,
)
from luna16_monai.networks.nodule_detector import NoduleDetector


def export(network: nn.Module, config: Mapping[str, Any], bundle: Path, kind: str, output: Path) -> None:
    """Write a bundle's network in one of the formats; nothing is left under the final name where that fails.

    Args:
        network: with its weights, gives logits.
        config: the bundle's inference.yaml.
        bundle: its folder.
        kind: ``pt2``, ``torchscript``, ``onnx`` or ``openvino``.
        output: the file; OpenVINO's has a ``.bin`` beside it.

    Raises:
        ValueError: the output's name does not fit.
        ModuleNotFoundError: a package that the format needs is missing.
    """
    shape_zyx = config["shape_zyx"]
    if kind == "torchscript":
        export_torchscript(network, config["network_def"], bundle, output)
    elif kind == "openvino":
        export_openvino(network, shape_zyx, output)
    else:
        about = {
            "description": "lung nodule classification of CT cutouts; for research, not for clinical use",
            "input": "image (batch, 1, z, y, x) float32 HU clipped to -1000..1000, the candidate in the middle",
            "spacing_zyx_mm": json.dumps(config["spacing_zyx"]),
            "classes": json.dumps(["non-nodule", "nodule"]),
        }
        (export_pt2 if kind == "pt2" else export_onnx)(network, shape_zyx, output, about)


def export_detector(network: NoduleDetector, config: Mapping[str, Any], bundle: Path, kind: str, output: Path) -> None:
    """Write a detector in one of the formats; arguments and errors as `export`.

    It takes ``image`` (batch, 1, z, y, x) float32 HU whose sides are multiples of its total stride, and gives ``maps``,
    see `NoduleDetector.forward`. Tiles, lungs and decoding are not in the file.
    """
    strides = network.total_stride_zyx
    example = torch.zeros(2, 1, *(stride * sides for stride, sides in zip(strides, (2, 3, 4), strict=True)))
    sides = {
        axis: n * torch.export.Dim(f"cells_{name}", min=1)
        for axis, name, n in zip((2, 3, 4), "zyx", strides, strict=True)
    }
    dynamic = {"image": {0: torch.export.Dim("batch", min=1), **sides}}
    about = {
        "description": "lung nodule detection in CTs; for research, not for clinical use",
        "input": f"image (batch, 1, z, y, x) float32 HU, sides multiples of {list(strides)}",
        "output": "maps (batch, 5, z, y, x): logit, offset along z, y, x in cells, log of the diameter in mm",
        "stride_zyx": json.dumps(network.stride_zyx),
        "spacing_zyx_mm": json.dumps(config["spacing_zyx"]),
    }
    if kind == "torchscript":
        export_torchscript(network, config["network_def"], bundle, output)
    elif kind == "pt2":
        _write_pt2(network, example, dynamic, output, about)
    elif kind == "onnx":
        _write_onnx(network, example, dynamic, ("maps",), output, about)
    else:
        _write_openvino(lambda openvino: detector_model(openvino, network, example), output)


def export_torchscript(network: nn.Module, network_def: Mapping[str, Any], bundle: Path, output: Path) -> None:
    """Write a bundle's network as TorchScript, by ``monai.bundle ckpt_export``, metadata and config inside.

    Args:
        network: with its weights, which may have stood in a file of another form.
        network_def: what builds it, which a run may have recorded beside its weights.
        bundle: its folder.
        output: the file.
    """
    # it prints its arguments on standard output, where --json prints its object alone
    logging.getLogger("monai.bundle.scripts").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        written, weights = Path(folder) / "model.ts", Path(folder) / "model.pt"
        torch.save({name: value.cpu().contiguous() for name, value in network.state_dict().items()}, weights)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ckpt_export(
                "network_def",
                filepath=str(written),
                ckpt_file=str(weights),
                meta_file=str(bundle / "configs" / "metadata.json"),
                config_file=str(bundle / "configs" / "inference.yaml"),
                network_def=dict(network_def),
            )
        _copy(written, output)


def export_pt2(network: nn.Module, shape_zyx: Sequence[int], output: Path, about: dict[str, str]) -> None:
    """Write a network by ``torch.export``, for ``torch.export.load`` in a process without this package.

    Args:
        network: gives logits.
        shape_zyx: voxels of a cutout.
        output: the file.
        about: what the file says of itself, each as an extra file.
    """
    dynamic = {"image": {0: torch.export.Dim("batch", min=1)}}
    _write_pt2(WithProbabilities(network), torch.zeros(2, 1, *shape_zyx), dynamic, output, about)


def _write_pt2(
    network: nn.Module, example: Tensor, dynamic: dict[str, Any], output: Path, about: Mapping[str, str]
) -> None:
    program = torch.export.export(network, (example,), dynamic_shapes=dynamic)
    written = io.BytesIO()
    torch.export.save(program, written, extra_files=dict(about))
    with atomic_write(output) as stream:
        stream.write(written.getvalue())


def export_onnx(network: nn.Module, shape_zyx: Sequence[int], output: Path, about: dict[str, str]) -> None:
    """Write a network as ONNX.

    Args:
        network: gives logits.
        shape_zyx: voxels of a cutout.
        output: the file.
        about: what the file says of itself.

    Raises:
        ModuleNotFoundError: onnx or onnxscript is missing.
    """
    # two cutouts, since a batch of one would be taken for a constant
    example, dynamic = torch.zeros(2, 1, *shape_zyx), {"image": {0: torch.export.Dim("batch", min=1)}}
    _write_onnx(WithProbabilities(network).eval(), example, dynamic, OUTPUTS, output, about)


def _write_onnx(
    network: nn.Module,
    example: Tensor,
    dynamic: dict[str, Any],
    outputs: Sequence[str],
    output: Path,
    about: dict[str, str],
) -> None:
    require("export", "an ONNX file", "onnx", "onnxscript")
    import onnx

    # torch warns that torchvision, which nothing here needs, is not installed; the others tell each pass
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # of torch's own use of what torch has deprecated
        warnings.simplefilter("ignore", FutureWarning)
        program = torch.onnx.export(
            network,
            (example,),
            input_names=["image"],
            output_names=list(outputs),
            dynamic_shapes=dynamic,
            dynamo=True,
            verbose=False,
        )
    model: Any = program.model_proto  # type: ignore[union-attr]
    onnx.helper.set_model_props(model, about)
    onnx.checker.check_model(model)
    with atomic_write(output) as stream:
        stream.write(model.SerializeToString())


def export_openvino(network: nn.Module, shape_zyx: Sequence[int], output: Path) -> None:
    """Write a network as OpenVINO's ``.xml``, with its weights in a ``.bin`` beside it, in float32.

    Raises:
        ValueError: the output is not named ``.xml``.
        ModuleNotFoundError: openvino is missing.
    """
    _write_openvino(lambda openvino: openvino_model(openvino, network, shape_zyx), output)


def _write_openvino(convert: Callable[[ModuleType], Any], output: Path) -> None:
    if output.suffix != ".xml":
        raise ValueError(f"{output.name}: OpenVINO writes two files, name the one that ends in .xml")
    openvino = import_openvino()
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / output.name
        openvino.save_model(convert(openvino), written, compress_to_fp16=False)
        _copy(written.with_suffix(".bin"), output.with_suffix(".bin"))
        _copy(written, output)


def _copy(written: Path, output: Path) -> None:
    with atomic_write(output) as stream:
        stream.write(written.read_bytes())
