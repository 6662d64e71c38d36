"""Where a network runs: compiled torch, OpenVINO."""

from __future__ import annotations

import copy
import locale
import subprocess
import sys

import numpy as np
import pytest
import torch

from luna16_monai.bundle.folders import bundle_dir
from luna16_monai.detection.tiles import TiledInferer
from luna16_monai.inference.classifier import Classifier
from luna16_monai.networks.backends import OpenVinoNetwork, load_detector, load_weights, on_device
from luna16_monai.networks.nodule_detector import NoduleDetector
from luna16_monai.networks.nodule_net import NoduleNet

SHAPE = (32, 48, 48)


def test_openvino_scores_as_torch_does(trained):
    image = torch.rand((5, 1, *SHAPE)) * 2000 - 1000
    fast, slow = (
        Classifier(bundle_dir(), weights=[trained[0]], backend=backend).score(image) for backend in ("auto", "torch")
    )
    np.testing.assert_allclose(fast, slow, atol=1e-5)
    network = NoduleNet(two_scales=True, return_probabilities=False)
    assert isinstance(load_weights(network, trained[0], backend="auto"), OpenVinoNetwork)


def test_signals_are_handled_after_two_openvino_networks():
    """With a core for each, the process ended with SIGSEGV on CPUs with AMX."""
    code = (
        "import os, signal, torch\n"
        "from luna16_monai.networks.backends import OpenVinoNetwork\n"
        "from luna16_monai.networks.nodule_net import NoduleNet\n"
        "shape = (8, 8, 8)\n"
        "tiny = NoduleNet(shape, channels=(2, 4), return_probabilities=False)\n"
        "networks = [OpenVinoNetwork(tiny, shape) for _ in range(2)]\n"
        "[network(torch.zeros(1, 1, *shape)) for network in networks]\n"
        "networks.pop(0)\nnetworks.pop(0)\n"
        "signal.signal(signal.SIGINT, lambda *_: print('handled'))\nos.kill(os.getpid(), signal.SIGINT)\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_import_openvino_keeps_it_from_calling_home():
    code = (
        "import sys; from luna16_monai.networks.export import import_openvino; import_openvino();"
        "assert sys.modules['openvino_telemetry'] is None"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_load_weights_refuses_openvino_on_cuda(trained):
    with pytest.raises(ValueError, match="backend openvino on cuda"):
        load_weights(NoduleNet(two_scales=True, return_probabilities=False), trained[0], "cuda", "openvino")


@pytest.mark.skipif(
    locale.getpreferredencoding(False).lower().replace("-", "") != "utf8",
    reason="torch.compile reads its own sources in the locale's encoding: make test sets PYTHONUTF8",
)
def test_on_device_keeps_the_names_and_results():
    network = NoduleNet((8, 8, 8), channels=(2, 4), return_probabilities=False).eval()
    image = torch.randn(2, 1, 8, 8, 8)
    names, before = list(network.state_dict()), network(image)
    torch.testing.assert_close(on_device(copy.deepcopy(network), "cpu")(image), before)
    moved = on_device(network, "cpu", compile="reduce-overhead")
    assert list(moved.state_dict()) == names
    assert next(p for p in moved.parameters() if p.ndim == 5).is_contiguous(memory_format=torch.channels_last_3d)


@torch.inference_mode()
def test_openvino_detector_gives_what_torch_does(tmp_path):
    pytest.importorskip("openvino", reason="the backend needs the extra 'export'")
    torch.manual_seed(0)
    network = NoduleDetector()
    torch.nn.init.normal_(network.head.weight)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    hu = torch.randint(-1000, 400, (1, 1, 24, 40, 56), dtype=torch.int16)
    one, other = (
        TiledInferer((16, 16, 48))(hu, load_detector(NoduleDetector(), tmp_path / "model.pt", backend=backend))
        for backend in ("torch", "openvino")
    )
    assert one.std() > 0.1
    torch.testing.assert_close(other, one, rtol=0, atol=1e-3)
