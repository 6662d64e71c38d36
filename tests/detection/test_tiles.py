"""Tiles give what the whole volume gives."""

from __future__ import annotations

import pytest
import torch

from luna16_monai.detection.tiles import TiledInferer
from luna16_monai.machine import progress
from luna16_monai.networks.nodule_detector import NoduleDetector


def network(**settings):
    torch.manual_seed(0)
    net = NoduleDetector(**settings)
    torch.nn.init.normal_(net.head.weight)  # a new head's weights are so small that nothing would differ
    return net.eval()


@pytest.mark.parametrize(
    "settings", [{}, {"stem_stride_zyx": (1, 2, 2), "channels": (4, 8, 8, 8)}, {"channels": (4, 8)}]
)
@torch.inference_mode()
def test_tiled_equals_whole(settings):
    net = network(**settings)
    hu = torch.randint(-1000, 400, (1, 1, 48, 80, 64), dtype=torch.int16)
    whole = net(hu)
    tiled = TiledInferer((16, 32, 32))(hu, net)
    assert whole.std() > 0.1
    torch.testing.assert_close(tiled, whole, rtol=0, atol=2e-5)


@torch.inference_mode()
def test_tiles_at_uneven_ends():
    net = network()
    hu = torch.randint(-1000, 400, (1, 1, 24, 40, 56), dtype=torch.int16)
    torch.testing.assert_close(TiledInferer((16, 16, 48))(hu, net), net(hu), rtol=0, atol=2e-5)


@torch.inference_mode()
def test_tiles_of_a_long_search_are_counted(monkeypatch, capsys):
    monkeypatch.setattr(progress, "DELAY_S", 0.0)
    with progress.showing(True):
        TiledInferer((16, 16, 48))(torch.zeros(1, 1, 24, 40, 56), network())
    assert "search: 100%" in (told := capsys.readouterr().err)
    assert "12/12" in told


@torch.inference_mode()
def test_tiles_without_their_surroundings_differ():
    net = network()
    inferer = TiledInferer((16, 32, 32))
    inferer.halo = inferer.halo * 0
    hu = torch.randint(-1000, 400, (1, 1, 48, 80, 64), dtype=torch.int16)
    assert (inferer(hu, net) - net(hu)).abs().max() > 1e-2


@pytest.mark.parametrize("wrong", [{"tile_zyx": (8, 32, 32)}, {"halo_zyx": (2, 8, 8)}, {"halo_zyx": (0, 8, 8)}])
def test_tiles_of_a_wrong_size_are_refused(wrong):
    with pytest.raises(ValueError, match="give multiples of 16"):
        TiledInferer(**wrong)
