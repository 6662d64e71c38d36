"""A bundle with weights, for the tests of its networks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from luna16_monai.networks.nodule_net import NoduleNet


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NoduleNet]:
    """Weights as after training: the tail knows what HU look like."""
    torch.manual_seed(0)
    network = NoduleNet(two_scales=True, return_probabilities=False)
    network.tail.running_mean.fill_(-600.0)
    network.tail.running_var.fill_(400.0**2)
    path = tmp_path_factory.mktemp("trained") / "model.pt"
    torch.save(network.state_dict(), path)
    return path, network.eval()
