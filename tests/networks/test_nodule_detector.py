"""The detector's shapes, strides and first output."""

from __future__ import annotations

import pytest
import torch

from luna16_monai.networks.nodule_detector import NoduleDetector


def test_detector_has_the_designed_size_and_strides():
    network = NoduleDetector()
    assert sum(p.numel() for p in network.parameters()) == 742_629
    assert (network.stride_zyx, network.total_stride_zyx) == ((4, 4, 4), (8, 8, 8))
    flat = NoduleDetector((1, 2, 2), (4, 8, 8, 8))
    assert (flat.stride_zyx, flat.total_stride_zyx) == ((2, 4, 4), (8, 16, 16))
    assert flat(torch.zeros(1, 1, 16, 32, 48)).shape == (1, 5, 8, 8, 12)


def test_detector_starts_at_its_prior_and_a_usual_diameter():
    network = NoduleDetector(prior=0.01)
    torch.nn.init.zeros_(network.head.weight)
    output = network.eval()(torch.zeros(1, 1, 16, 16, 16))
    assert torch.sigmoid(output[0, 0]).mean().item() == pytest.approx(0.01)
    assert output[0, 4].exp().mean().item() == pytest.approx(8.0)


def test_detector_takes_any_number_type_and_clips():
    network = NoduleDetector().eval()
    hu = torch.randint(-1000, 400, (1, 1, 16, 16, 16), dtype=torch.int16)
    assert torch.equal(network(hu), network(hu.double()))
    hu[..., 0] = 3000
    low = hu.clone()
    low[..., 0] = 400
    assert torch.equal(network(hu), network(low))


def test_cell_keeps_its_middle():
    """A change of one voxel is felt symmetrically: with all kernels even or centred, mirrored input mirrors the sum."""
    network = NoduleDetector((2, 2, 2), (1, 1)).eval()
    for parameter in network.parameters():
        torch.nn.init.constant_(parameter, 0.5)
    hu = torch.full((1, 1, 24, 24, 24), -300.0)
    hu[0, 0, 9, 9, 9] = 400
    mirrored = torch.flip(hu, (2, 3, 4))
    torch.testing.assert_close(torch.flip(network(hu), (2, 3, 4)), network(mirrored))


@pytest.mark.parametrize("wrong", [{"channels": (16,)}, {"stem_stride_zyx": (3, 2, 2)}])
def test_detector_refuses_another_pyramid(wrong):
    with pytest.raises(ValueError, match="give two channels or more"):
        NoduleDetector(**wrong)
