"""The self-test refuses bfloat16 where a convolution is wrong in it, or slow."""

from __future__ import annotations

import pytest
import torch

from luna16_monai.networks import bfloat16
from luna16_monai.networks.nodule_detector import NoduleDetector

IMAGE = torch.zeros(1, 1, 16, 16, 16)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return NoduleDetector(channels=(4, 8))


@pytest.mark.parametrize(
    ("error", "ratio", "expected"),
    [(0.019, 0.89, (True,)), (0.021, 0.89, (False,)), (0.019, 0.91, (False,)), (float("inf"), 0.1, (False,))],
)
def test_bfloat16_is_chosen_where_all_is_right_and_faster(network, monkeypatch, error, ratio, expected):
    monkeypatch.setattr(bfloat16, "try_convolution", lambda *_: (error, {False: 1.0, True: ratio}))
    before = torch.random.get_rng_state()
    assert bfloat16.try_convolutions(network, IMAGE).chosen == expected
    assert torch.equal(torch.random.get_rng_state(), before)


def test_every_convolution_is_tried_with_its_own_maps(network, monkeypatch):
    tried = []

    def note(convolution, images):
        tried.append((convolution.in_channels, convolution.out_channels, tuple(images.shape[2:])))
        return 0.0, {False: 1.0, True: 0.5}

    monkeypatch.setattr(bfloat16, "try_convolution", note)
    assert bfloat16.try_convolutions(network, IMAGE).chosen == (True,)
    # the stem's two, one down, the residual's two, the neck and the head
    assert tried == [
        (1, 4, (16, 16, 16)), (4, 4, (8, 8, 8)), (4, 8, (8, 8, 8)), (8, 8, (4, 4, 4)), (8, 8, (4, 4, 4)),
        (8, 32, (4, 4, 4)), (32, 5, (4, 4, 4)),
    ]  # fmt: skip


def test_rounding_is_no_error_but_a_wrong_result_is():
    convolution = torch.nn.Conv3d(4, 4, 3, padding=1)
    images = torch.randn(1, 4, 8, 8, 8)
    assert bfloat16.try_convolution(convolution, images)[0] < 0.01

    class Wrong(torch.nn.Conv3d):
        def forward(self, x):
            out = super().forward(x)
            return out * 1.1 if out.dtype == torch.bfloat16 else out

    assert bfloat16.try_convolution(Wrong(4, 4, 3, padding=1), images)[0] == pytest.approx(0.1, abs=0.02)


def test_scoring_is_float32_whatever_training_is(network):
    network.eval()
    expected = network(IMAGE)
    network.bfloat16_blocks = (True,)
    assert torch.equal(network(IMAGE), expected)
    assert network.train()(IMAGE).dtype == torch.bfloat16
