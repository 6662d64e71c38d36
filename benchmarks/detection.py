"""What it costs to find candidates in a CT of 512 x 512 x 300, from the file to the table: CPU seconds and memory.

The CT is drawn: a body, two lungs, noise. MONAI's detection network (RetinaNet on ResNet-50, its bundle's settings,
random weights) is given one patch of 192 x 192 x 80 voxels; its seconds are those of all patches of the CT without
overlap. It needs torchvision, and its figure is left out where that is not installed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from luna16_monai.ct.metaimage import write_mhd
from luna16_monai.geometry.grid import Geometry

SHAPE = (300, 512, 512)
SPACING_XYZ = (0.7, 0.7, 1.0)
PATCH_XYZ = (192, 192, 80)


def write_chest(path: Path) -> Path:
    """Write a CT of a body with two lungs, of the same bytes each time; return its path."""
    rng = np.random.default_rng(0)
    depth, height, width = SHAPE
    y, x = np.mgrid[:height, :width]
    body = ((y - 256) / 190) ** 2 + ((x - 256) / 235) ** 2 < 1
    hu = np.empty(SHAPE, np.int16)
    for z in range(depth):
        hu[z] = np.where(body, 40, -1000)
        size = np.sin(np.pi * (z + 15) / (depth + 30))
        for middle in (150, 362):
            hu[z][((y - 250) / (135 * size)) ** 2 + ((x - middle) / (85 * size)) ** 2 < 1] = -860
        hu[z] += rng.normal(0, 25, (height, width)).astype(np.int16)
    write_mhd(path, hu, Geometry.from_axes((width, height, depth), SPACING_XYZ, (0, 0, 0), np.eye(3)))
    return path


# started by the benchmark itself, a command would have the benchmark's own memory as its peak
_LAUNCHER = """
import json, os, sys
quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
process = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=quiet)
_, status, used = os.wait4(process, 0)
print(json.dumps([os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, used.ru_maxrss]))
"""


def cost(words: Sequence[str]) -> tuple[float, float]:
    """Return the CPU seconds, user and system, and the peak memory in GB of a command on one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-S", "-c", _LAUNCHER, *words]
    done = subprocess.run(launcher, env=environment, capture_output=True, text=True, check=True)
    code, seconds, kibibytes = json.loads(done.stdout)
    if code:
        sys.exit(f"{' '.join(words)} ended with {code}: {done.stderr}")
    return seconds, kibibytes * 1024 / 1e9


def monai_seconds() -> float | None:
    """Return the CPU seconds of MONAI's RetinaNet for the whole CT, without overlap; None without torchvision."""
    if find_spec("torchvision") is None:
        return None
    from monai.apps.detection.networks.retinanet_network import RetinaNet, resnet_fpn_feature_extractor
    from monai.networks.nets import resnet50

    backbone = resnet50(spatial_dims=3, n_input_channels=1, conv1_t_stride=[2, 2, 1], conv1_t_size=[7, 7, 7])
    features = resnet_fpn_feature_extractor(backbone, 3, False, [1, 2], None)
    network = RetinaNet(3, 1, 3, features, size_divisible=[16, 16, 8]).eval()
    patches = float(np.prod([size / part for size, part in zip(SHAPE[::-1], PATCH_XYZ, strict=True)]))
    started = time.process_time()
    with torch.inference_mode():
        network(torch.zeros(1, 1, *PATCH_XYZ))
    return (time.process_time() - started) * patches


def rows(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows, each measured once: a program's CPU seconds vary little."""
    ct = write_chest(folder / "chest.mhd")
    monai = monai_seconds()
    program = [sys.executable, "-m", "luna16_monai"]
    ways = {"detect, torch": ["detect", "--backend", "torch"], "predict, both stages": ["predict", "--malignancy"]}
    if find_spec("openvino") is not None:
        ways["detect, OpenVINO"] = ["detect", "--backend", "openvino"]
    for name, words in ways.items():
        call = [*program, *words, "--ct", str(ct), "--output", str(folder / "found.csv"), "--device", "cpu"]
        seconds, memory = cost(call)
        for unit, value, theirs in (("CPU s", seconds, monai if "detect" in name else None), ("GB", memory, None)):
            what = f"a CT of 512 x 512 x 300 from the file to the table ({name})"
            yield {"name": what, "unit": unit, "ours": value, "naive": None, "monai": theirs, "limit": None}
