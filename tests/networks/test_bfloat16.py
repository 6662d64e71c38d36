"""A detector scored in bfloat16: near float32, tiled as whole, and only where it is right and faster."""

from __future__ import annotations

import time

import pytest
import torch

from luna16_monai.detection.tiles import TiledInferer
from luna16_monai.networks import bfloat16
from luna16_monai.networks.bfloat16 import Bfloat16Detector, scores_in_bfloat16
from luna16_monai.networks.folding import folded
from luna16_monai.networks.nodule_detector import NoduleDetector


@pytest.fixture(scope="module")
def detector() -> NoduleDetector:
    torch.manual_seed(0)
    network = NoduleDetector()
    torch.nn.init.normal_(network.head.weight)
    network.train()(torch.randn(1, 1, 16, 32, 32) * 300 - 300)  # so that its norms are not the identity
    return folded(network)


@torch.inference_mode()
def test_bfloat16_detector_gives_float32_within_its_rounding(detector):
    hu = torch.randint(-1000, 400, (1, 1, 32, 48, 64), dtype=torch.int16)
    exact, rounded = detector(hu), TiledInferer((16, 16, 32))(hu, Bfloat16Detector(detector))
    error = (rounded - exact).norm() / exact.norm()
    # bfloat16 keeps 8 bits, a relative 0.002 for one number
    assert 1e-5 < error < 0.02
    assert rounded.dtype == torch.float32
    # the head is not rounded: nearly all of the cells have a logit of their own
    assert len(rounded[0, 0].unique()) > 0.9 * rounded[0, 0].numel()


def test_scores_in_bfloat16_wants_it_right_and_faster(detector, monkeypatch):
    def chosen(seconds):
        """With so many seconds of each round in float32 and in bfloat16, begun and ended."""
        clock = iter([at for pair in seconds for taken in pair for at in (0, taken)])
        monkeypatch.setattr(time, "process_time", lambda: next(clock))
        return scores_in_bfloat16(detector)

    # the fastest rounds decide: 4 against 10, then 9.5 against 10
    assert chosen([(10, 12), (11, 4), (30, 12)])
    assert not chosen([(10, 12), (11, 9.5), (30, 12)])
    monkeypatch.setattr(bfloat16, "LARGEST_ERROR", 1e-9)
    assert not chosen([(10, 4), (10, 4), (10, 4)])
