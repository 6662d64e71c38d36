from __future__ import annotations

import pytest
import torch

from luna16_monai.networks.folding import folded_state, unfolded_state
from luna16_monai.networks.nodule_net import NoduleNet, both_scales
from luna16_monai.networks.weights import load_initial_weights

SHAPE = (16, 16, 16)


def trained(**settings) -> NoduleNet:
    """A network whose norms have seen some batches, so that none is the identity."""
    torch.manual_seed(0)
    network = NoduleNet(SHAPE, norm="BATCH", return_probabilities=False, **settings)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if ".adn." in name:
                value.uniform_(-1.5, 1.5)  # negative ones too
    network.train()
    for _ in range(3):
        network(torch.randn(4, 1, *SHAPE) * 300 - 500)
    return network.eval()


@pytest.mark.parametrize("settings", [{}, {"bias": False}, {"two_scales": True, "channels": (8, 16, 32)}])
def test_folded_network_is_the_designs_and_gives_the_same_logits(settings):
    network = trained(**settings)
    plain = NoduleNet(SHAPE, return_probabilities=False, **{**settings, "bias": True}).eval()
    plain.load_state_dict(folded_state(network))
    images = torch.randn(8, 1, *SHAPE) * 300 - 500
    with torch.inference_mode():
        torch.testing.assert_close(plain(images), network(images), rtol=1e-5, atol=1e-5)


def test_folded_network_has_the_designs_parameters():
    network = NoduleNet(norm="BATCH")
    assert sum(value.numel() for name, value in folded_state(network).items() if "running" not in name) == 222_220 + 1
    two = NoduleNet(norm="BATCH", two_scales=True)
    assert sum(value.numel() for name, value in folded_state(two).items() if "running" not in name) == 220_262 + 1


def test_network_without_norms_is_its_own_folded_state():
    network = NoduleNet(SHAPE)
    state = folded_state(network)
    assert state.keys() == network.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("norm", ["INSTANCE", ("INSTANCE", {"affine": True}), ("GROUP", {"num_groups": 2})])
def test_other_norms_are_neither_folded_nor_unfolded(norm):
    network = NoduleNet(SHAPE, norm=norm)
    state = folded_state(network)
    assert state.keys() == network.state_dict().keys()
    assert unfolded_state(network, state).keys() == state.keys()


def test_fine_tuning_from_folded_weights_keeps_the_function(tmp_path):
    network = trained()
    torch.save(folded_state(network), tmp_path / "model.pt")
    again = NoduleNet(SHAPE, norm="BATCH", return_probabilities=False)
    load_initial_weights(again, str(tmp_path / "model.pt"))
    images = torch.randn(8, 1, *SHAPE) * 300 - 500
    with torch.inference_mode():
        torch.testing.assert_close(again.eval()(images), network(images), rtol=1e-5, atol=1e-5)


def test_unfolded_state_leaves_what_has_norms_alone():
    network = trained()
    state = unfolded_state(network, network.state_dict())
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_both_scales_are_the_middle_and_the_average():
    image = torch.arange(8 * 8 * 8.0).reshape(1, 1, 8, 8, 8)
    both = both_scales(image)
    assert both.shape == (1, 2, 4, 4, 4)
    assert torch.equal(both[0, 0], image[0, 0, 2:6, 2:6, 2:6])
    # the first 2 x 2 x 2 voxels: 0, 1, 8, 9, 64, 65, 72, 73
    assert both[0, 1, 0, 0, 0] == 36.5
    for axis in (2, 3, 4):
        assert torch.equal(both_scales(image.flip(axis)), both.flip(axis))
    assert torch.equal(both_scales(torch.rot90(image, 1, (3, 4))), torch.rot90(both, 1, (3, 4)))


def test_two_scales_refuse_sides_that_have_no_middle_half():
    with pytest.raises(ValueError, match="need sides that 4 divides"):
        NoduleNet((30, 48, 48), two_scales=True)


@pytest.mark.parametrize("settings", [{}, {"norm": "BATCH"}, {"norm": "BATCH", "two_scales": True}])
def test_gradients_in_training_are_those_of_the_parts_one_after_the_other(settings):
    torch.manual_seed(1)
    shape = (32, 32, 32)
    network = NoduleNet(shape, return_probabilities=False, **settings).double()
    with torch.no_grad():
        network.tail.weight.fill_(1.3)
        network.tail.bias.fill_(0.2)
    images, labels = torch.randn(4, 1, *shape).double() * 300 - 500, torch.tensor([0, 1, 1, 0])
    torch.nn.functional.cross_entropy(network(images), labels).backward()
    found = {name: value.grad.clone() for name, value in network.named_parameters()}
    network.zero_grad()
    image = both_scales(images) if settings.get("two_scales") else images
    logits = network.head(network.backbone(network.tail(image)).flatten(1))
    torch.nn.functional.cross_entropy(logits, labels).backward()
    for name, value in network.named_parameters():
        torch.testing.assert_close(found[name], value.grad, rtol=1e-6, atol=1e-9)
