"""bfloat16 on a CPU: blocks take part where the self-test finds them right and faster, and scoring never does."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from luna16_monai.networks import precision
from luna16_monai.networks.nodule_detector import NoduleDetector
from luna16_monai.networks.nodule_net import NoduleNet
from luna16_monai.networks.precision import SelfTest, try_bfloat16, try_convolution

SHAPE = (32, 32, 32)
HAS_BFLOAT16 = torch.cpu._is_avx512_bf16_supported()


def network(**settings) -> NoduleNet:
    torch.manual_seed(0)
    return NoduleNet(SHAPE, return_probabilities=False, **settings)


def images(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 1, *SHAPE, generator=torch.Generator().manual_seed(1)) * 300 - 500


def test_chosen_takes_the_right_blocks_where_that_is_faster():
    assert SelfTest((True, True, False), 0.6).chosen == (True, True, False)
    assert SelfTest((True, True, False), 0.95).chosen == (False, False, False)
    assert SelfTest((False, False), float("inf")).chosen == (False, False)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 7.0])
def test_block_with_a_wrong_weight_gradient_is_found(monkeypatch, wrong):
    """As oneDNN gives them for maps two voxels deep: the last block of cutouts of 32 voxels, at two scales."""
    exact = precision._forward_backward

    def spoiled(convolution, images, towards, low):
        output, of_images, of_weight, of_bias = exact(convolution, images, towards, low)
        return [output, of_images, of_weight * wrong if low and images.shape[2] == 2 else of_weight, of_bias]

    monkeypatch.setattr(precision, "_forward_backward", spoiled)
    assert try_bfloat16(network(two_scales=True)).right == (True, True, True, False)


@pytest.mark.skipif(not HAS_BFLOAT16, reason="a processor with AVX512_BF16")
def test_onednns_weight_gradient_for_maps_two_deep_is_found_wrong():
    code = (
        "import torch; torch.set_num_threads(1)\n"
        "from luna16_monai.networks.nodule_net import NoduleNet\n"
        "from luna16_monai.networks.precision import try_bfloat16\n"
        "print(try_bfloat16(NoduleNet((32, 32, 32), two_scales=True)).right)"
    )
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "(True, True, True, False)"


def test_self_test_leaves_the_random_state_and_the_network():
    one = network()
    before, weights = torch.get_rng_state(), {name: value.clone() for name, value in one.state_dict().items()}
    found = try_bfloat16(one)
    assert found.right == (True,) * 4
    assert found.time_ratio > 0
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, weights[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("norm", [None, "BATCH"])
def test_training_in_bfloat16_is_near_float32_and_scoring_is_float32(norm):
    exact, low = network(norm=norm, two_scales=True), network(norm=norm, two_scales=True)
    low.bfloat16_blocks = (True, True, True, False)
    label = torch.tensor([0, 1, 0, 1])
    losses = {one: F.cross_entropy(one.train()(images()), label) for one in (exact, low)}
    for loss in losses.values():
        loss.backward()
    assert losses[low].dtype == torch.float32
    assert losses[low].item() != losses[exact].item()
    assert losses[low].item() == pytest.approx(losses[exact].item(), rel=0.05)
    # the weights themselves stay float32, and so do their gradients
    assert {parameter.grad.dtype for parameter in low.parameters()} == {torch.float32}
    low.load_state_dict(exact.state_dict())
    with torch.inference_mode():
        assert torch.equal(low.eval()(images()), exact.eval()(images()))


@pytest.fixture
def detector():
    torch.manual_seed(0)
    return NoduleDetector(channels=(4, 8))


@pytest.mark.parametrize(
    ("error", "ratio", "expected"),
    [(0.019, 0.89, (True,)), (0.021, 0.89, (False,)), (0.019, 0.91, (False,)), (float("inf"), 0.1, (False,))],
)
def test_detector_is_trained_in_bfloat16_where_all_is_right_and_faster(detector, monkeypatch, error, ratio, expected):
    monkeypatch.setattr(precision, "try_convolution", lambda *_: (error, {False: 1.0, True: ratio}))
    before = torch.random.get_rng_state()
    assert try_bfloat16(detector).chosen == expected
    assert torch.equal(torch.random.get_rng_state(), before)


def test_every_convolution_is_tried_with_its_own_maps(detector, monkeypatch):
    tried = []

    def note(convolution, images):
        tried.append((convolution.in_channels, convolution.out_channels, tuple(images.shape[2:])))
        return 0.0, {False: 1.0, True: 0.5}

    monkeypatch.setattr(precision, "try_convolution", note)
    assert try_bfloat16(detector).chosen == (True,)
    # the stem's two, one down, the residual's two, the neck and the head
    assert tried == [
        (1, 4, (32, 64, 64)), (4, 4, (16, 32, 32)), (4, 8, (16, 32, 32)), (8, 8, (8, 16, 16)), (8, 8, (8, 16, 16)),
        (8, 32, (8, 16, 16)), (32, 5, (8, 16, 16)),
    ]  # fmt: skip


def test_rounding_is_no_error_but_a_wrong_result_is():
    convolution = torch.nn.Conv3d(4, 4, 3, padding=1)
    images = torch.randn(1, 4, 8, 8, 8)
    assert try_convolution(convolution, images)[0] < 0.01

    class Wrong(torch.nn.Conv3d):
        def forward(self, x):
            out = super().forward(x)
            return out * 1.1 if out.dtype == torch.bfloat16 else out

    assert try_convolution(Wrong(4, 4, 3, padding=1), images)[0] == pytest.approx(0.1, abs=0.02)


def test_detector_scores_in_float32_whatever_training_is(detector):
    image = torch.zeros(1, 1, 16, 16, 16)
    detector.eval()
    expected = detector(image)
    detector.bfloat16_blocks = (True,)
    assert torch.equal(detector(image), expected)
    assert detector.train()(image).dtype == torch.bfloat16
