"""Weights that are read, and loaded into a network as its first ones."""

from __future__ import annotations

import io
import logging

import pytest
import torch
from torch import nn

from luna16_monai.networks.weights import load_initial_weights, load_state, read_weights


class Small(nn.Module):
    """A backbone of two values and a head of so many classes."""

    def __init__(self, classes: int = 2, inputs: int = 1) -> None:
        super().__init__()
        self.backbone = nn.Linear(inputs, 2, bias=False)
        self.head = nn.Linear(2, classes, bias=False)


@pytest.fixture
def first(tmp_path):
    """A file with backbone [[1], [2]] and head [[3, 4], [5, 6]]."""
    state = {"backbone.weight": torch.tensor([[1.0], [2.0]]), "head.weight": torch.tensor([[3.0, 4.0], [5.0, 6.0]])}
    torch.save(state, tmp_path / "model.pt")
    return tmp_path / "model.pt"


def test_read_weights_takes_a_path_a_text_and_an_open_file(first):
    for file in (first, str(first), io.BytesIO(first.read_bytes())):
        assert read_weights(file)["head.weight"].tolist() == [[3, 4], [5, 6]]


def test_read_weights_names_an_open_file_as_it_was_told():
    with pytest.raises(ValueError, match=r"^model of fold 3 holds no plain weights, or is damaged"):
        read_weights(io.BytesIO(b"nothing"), "model of fold 3")


def test_read_weights_tells_that_no_file_is_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model\.pt"):
        read_weights(tmp_path / "model.pt")


def test_load_initial_weights_replaces_all_of_the_same_size(first):
    network = Small()
    load_initial_weights(network, str(first))
    assert network.backbone.weight.tolist() == [[1], [2]]
    assert network.head.weight.tolist() == [[3, 4], [5, 6]]


def test_load_initial_weights_of_none_changes_nothing():
    network = Small()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    load_initial_weights(network, None)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_load_initial_weights_leaves_a_head_of_another_size_and_says_so(first, caplog):
    network = Small(classes=3)
    head = network.head.weight.clone()
    with caplog.at_level(logging.INFO):
        load_initial_weights(network, str(first))
    assert network.backbone.weight.tolist() == [[1], [2]]
    assert torch.equal(network.head.weight, head)
    assert "the head has another size and starts fresh" in caplog.text


def test_load_initial_weights_refuses_another_backbone_and_lacking_weights(first, tmp_path):
    with pytest.raises(ValueError, match=r"init_weights .*model\.pt belong to another network: .*backbone\.weight"):
        load_initial_weights(Small(inputs=4), str(first))
    torch.save({"head.weight": torch.zeros(2, 2)}, tmp_path / "head.pt")
    with pytest.raises(ValueError, match=r"belong to another network: .*backbone\.weight"):
        load_initial_weights(Small(), str(tmp_path / "head.pt"))
    with pytest.raises(FileNotFoundError, match=r"init_weights .*gone\.pt: no such file: name a model\.pt, or null"):
        load_initial_weights(Small(), str(tmp_path / "gone.pt"))


def test_load_state_takes_all_weights():
    network = torch.nn.Linear(2, 1)
    load_state(network, {"weight": torch.tensor([[2.0, 3.0]]), "bias": torch.tensor([4.0])}, "the weights")
    assert network(torch.tensor([[1.0, 10.0]])).item() == 36


def test_load_state_names_weights_of_another_network():
    with pytest.raises(ValueError, match=r"^the weights model\.pt belong to another network: .*size mismatch"):
        load_state(torch.nn.Linear(2, 1), torch.nn.Linear(3, 1).state_dict(), "the weights model.pt")
    with pytest.raises(ValueError, match="Missing key"):
        load_state(torch.nn.Linear(2, 1), {}, "init_weights x.pt")
