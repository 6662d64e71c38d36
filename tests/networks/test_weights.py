"""Weights that do not fit are refused, naming what they are."""

from __future__ import annotations

import pytest
import torch

from luna16_monai.networks.weights import load_state


def test_load_state_takes_all_weights():
    network = torch.nn.Linear(2, 1)
    load_state(network, {"weight": torch.tensor([[2.0, 3.0]]), "bias": torch.tensor([4.0])}, "the weights")
    assert network(torch.tensor([[1.0, 10.0]])).item() == 36


def test_load_state_names_weights_of_another_network():
    with pytest.raises(ValueError, match=r"^the weights model\.pt belong to another network: .*size mismatch"):
        load_state(torch.nn.Linear(2, 1), torch.nn.Linear(3, 1).state_dict(), "the weights model.pt")
    with pytest.raises(ValueError, match="Missing key"):
        load_state(torch.nn.Linear(2, 1), {}, "init_weights x.pt")
