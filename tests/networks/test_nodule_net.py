"""The network: its size, its outputs, and that it can learn."""

from __future__ import annotations

import math

import pytest
import torch
from monai.networks.nets import DenseNet121
from torch import nn

from luna16_monai.dataset.cutouts import LoadCutoutd
from luna16_monai.dataset.splits import Split
from luna16_monai.networks.nodule_net import NoduleNet, freeze
from luna16_monai.store.reading import Store


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def of_type(network: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    return [module for module in network.modules() if type(module) is kind]


def test_nodule_net_has_222220_parameters():
    # batch norm 2; convolutions (27 in + 1) out: 224 + 1736, 3472 + 6928, 13856 + 27680, 55360 + 110656; head 2306
    assert parameters(NoduleNet()) == 2 + 1960 + 10400 + 41536 + 166016 + 2306 == 222_220


def test_nodule_net_halves_each_side_in_each_block():
    network = NoduleNet()
    shapes = []
    for pool in of_type(network, nn.MaxPool3d):
        pool.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape)))
    logits, probabilities = network(torch.zeros(2, 1, 32, 48, 48))
    assert shapes == [(2, 8, 16, 24, 24), (2, 16, 8, 12, 12), (2, 32, 4, 6, 6), (2, 64, 2, 3, 3)]
    assert network.head.in_features == 1152
    assert logits.shape == probabilities.shape == (2, 2)


def test_nodule_net_gives_logits_and_their_softmax_or_the_logits_alone():
    designed, bare = NoduleNet().eval(), NoduleNet(return_probabilities=False).eval()
    bare.load_state_dict(designed.state_dict())
    image = torch.randn(3, 1, 32, 48, 48)
    logits, probabilities = designed(image)
    assert torch.equal(bare(image), logits)
    ones = torch.exp(logits[:, 1]) / torch.exp(logits).sum(dim=1)
    torch.testing.assert_close(probabilities[:, 1], ones)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(3))
    assert logits.std() > 0


def test_nodule_net_is_what_the_design_spells_out():
    """Conv, ReLU, conv, ReLU, max-pool, four times, on a normalised input: written out by hand, with its weights."""
    network = NoduleNet(return_probabilities=False).eval()
    network.tail.running_mean.fill_(-500)
    network.tail.running_var.fill_(300**2)
    image = torch.randn(2, 1, 32, 48, 48) * 300 - 500
    convolutions = of_type(network, nn.Conv3d)
    assert [conv.out_channels for conv in convolutions] == [8, 8, 16, 16, 32, 32, 64, 64]
    out = (image + 500) / math.sqrt(300**2 + 1e-5)
    for first, second in zip(convolutions[::2], convolutions[1::2], strict=True):
        for conv in (first, second):
            out = torch.relu(nn.functional.conv3d(out, conv.weight, conv.bias, padding=1))
        out = nn.functional.max_pool3d(out, 2)
    torch.testing.assert_close(network(image), network.head(out.flatten(1)), rtol=1e-4, atol=1e-4)


def test_nodule_net_is_initialised_as_kaiming_says():
    torch.manual_seed(0)
    network = NoduleNet()
    for conv in of_type(network, nn.Conv3d)[3:]:
        # deviation sqrt(2 / fan in); some thousand draws are within 10 % of it
        assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (conv.in_channels * 27)), rel=0.1)
        assert not conv.bias.any()
    assert network.head.weight.std().item() == pytest.approx(math.sqrt(2 / 1152), rel=0.1)
    assert not network.head.bias.any()


def test_nodule_net_takes_other_channels_shapes_and_classes():
    network = NoduleNet((16, 24, 20), in_channels=2, num_classes=3, channels=(4, 6), return_probabilities=False)
    # batch norm 4; (54 + 1) 4, (108 + 1) 4, 109 * 6, (162 + 1) 6; head (6 * 4 * 6 * 5) 3 + 3
    assert parameters(network) == 4 + 220 + 436 + 654 + 978 + 2163
    assert network(torch.zeros(5, 2, 16, 24, 20)).shape == (5, 3)


def test_nodule_net_without_bias():
    network = NoduleNet(bias=False)
    # one less for each of 2 * (8 + 16 + 32 + 64) channels
    assert parameters(network) == 222_220 - 240
    assert all(conv.bias is None for conv in of_type(network, nn.Conv3d))


def test_nodule_net_with_a_norm_after_each_convolution():
    network = NoduleNet(norm="BATCH")
    assert len(of_type(network, nn.BatchNorm3d)) == 1 + 8
    assert parameters(network) == 222_220 + 2 * 240
    assert len(of_type(NoduleNet(norm="INSTANCE"), nn.InstanceNorm3d)) == 8
    assert len(of_type(NoduleNet(), nn.BatchNorm3d)) == 1


def test_nodule_net_with_dropout_of_values_or_channels():
    assert not of_type(NoduleNet(), nn.Dropout)
    plain, whole = NoduleNet(dropout=0.2), NoduleNet(dropout=0.2, dropout_dim=3)
    assert [module.p for module in of_type(plain, nn.Dropout)] == [0.2] * 8
    assert [module.p for module in of_type(whole, nn.Dropout3d)] == [0.2] * 8
    image = torch.randn(2, 1, 32, 48, 48)
    for network in (plain, whole):
        network.load_state_dict(NoduleNet().state_dict())
        network.train()
        assert not torch.equal(network(image)[0], network(image)[0])
        network.eval()
        assert torch.equal(network(image)[0], network(image)[0])


@pytest.mark.parametrize(("shape", "channels"), [((32, 48, 15), (8, 16, 32, 64)), ((3, 4, 4), (8, 16))])
def test_nodule_net_refuses_cutouts_that_vanish(shape, channels):
    with pytest.raises(ValueError, match=rf"cutouts of .* voxels vanish after {len(channels)} poolings: use fewer"):
        NoduleNet(shape, channels=channels)
    NoduleNet(tuple(side + 1 for side in shape), channels=channels)


@pytest.mark.parametrize("norm", [None, "BATCH"])
def test_nodule_net_learns_in_any_memory_layout(norm):
    torch.manual_seed(0)
    network = NoduleNet((16, 16, 16), channels=(4, 8), norm=norm, return_probabilities=False).eval()
    image = torch.randn(2, 1, 16, 16, 16)
    expected = network(image)
    faster = network.to(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(faster(image), expected, rtol=1e-4, atol=1e-5)


def test_a_monai_network_gives_what_nodule_net_gives():
    """So that the bundle's network_def can name it in place of ours."""
    image = torch.zeros(2, 1, 32, 48, 48)
    one = DenseNet121(spatial_dims=3, in_channels=1, out_channels=2).eval()(image)
    assert one.shape == NoduleNet(return_probabilities=False)(image).shape


def test_nodule_net_overfits_16_cutouts(phantom_dir, store_dir):
    candidates = Split(phantom_dir, Store(store_dir), validation_stride=3).train
    rows = [*range(8), *range(len(candidates) - 8, len(candidates))]
    assert candidates.labels[rows].tolist() == [1] * 8 + [0] * 8
    load = LoadCutoutd("image", store_dir)
    images = torch.stack([load(candidates[row])["image"] for row in rows]).float().clip(-1000, 1000)
    labels = torch.as_tensor(candidates.labels[rows])
    torch.manual_seed(0)
    network = NoduleNet(return_probabilities=False).to(memory_format=torch.channels_last_3d)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    losses = []
    while len(losses) < 60 and (not losses or losses[-1] >= 0.05):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.3
    assert losses[-1] < 0.05


def test_freeze_trains_the_head_and_the_last_blocks_and_keeps_the_statistics_of_the_rest():
    def trained(blocks):
        network = freeze(NoduleNet(return_probabilities=False), blocks)
        return {name.rsplit(".", 1)[0] for name, weight in network.named_parameters() if weight.requires_grad}

    assert trained(0) == {"head"}
    assert trained(1) == {"head", "backbone.12.conv", "backbone.13.conv"}
    assert len(trained(4)) == 9
    assert len(trained(None)) == 10, "the tail too"
    network = freeze(NoduleNet(norm="BATCH", return_probabilities=False), 2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.train()
    network(torch.randn(2, 1, 32, 48, 48) * 300)
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    # of the batch norms those in the last two blocks alone
    assert {name.rsplit(".", 1)[0] for name in moved} == {f"backbone.{n}.adn.N" for n in (8, 9, 12, 13)}


def test_freeze_refuses_what_is_not_there():
    with pytest.raises(
        ValueError, match=r"trainable_blocks 5: the network has 4 blocks; give 0 \(the head alone\) to 4"
    ):
        freeze(NoduleNet(), 5)
    with pytest.raises(ValueError, match=r"trainable_blocks 1: Linear is not made of blocks as NoduleNet is"):
        freeze(torch.nn.Linear(2, 2), 1)
    assert freeze(torch.nn.Linear(2, 2), None).weight.requires_grad


@pytest.mark.parametrize("two_scales", [False, True])
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_constant_air_trains_and_scores_to_numbers_under_amp(low, two_scales):
    network = NoduleNet((16, 16, 16), channels=(2, 4), norm="BATCH", return_probabilities=False, two_scales=two_scales)
    air = torch.full((2, 1, 16, 16, 16), -1000.0)
    with torch.autocast("cpu", dtype=low):
        loss = torch.nn.functional.cross_entropy(network(air), torch.tensor([0, 1]))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(value.grad).all() for value in network.parameters() if value.grad is not None)
    assert all(torch.isfinite(value).all() for value in network.state_dict().values())
    with torch.autocast("cpu", dtype=low), torch.no_grad():
        assert torch.isfinite(network.eval()(air)).all()


def test_a_batch_of_one_trains():
    """The last one of an epoch, where the samples are no multiple of the batch."""
    network = NoduleNet((16, 16, 16), channels=(2, 4), norm="BATCH", return_probabilities=False)
    loss = network(torch.randn(1, 1, 16, 16, 16) * 100 - 500).sum()
    loss.backward()
    assert torch.isfinite(loss)
