"""Weights that are read, and loaded into a network as its first ones."""

from __future__ import annotations

import io
import logging

import pytest
import torch
from torch import nn

from luna16_monai.networks.nodule_net import NoduleNet
from luna16_monai.networks.weights import grown_head, load_initial_weights, load_state, read_state, read_weights


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


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict", "model", "network", "net"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_read_state_takes_what_other_programs_write(first, tmp_path, wrapper, prefix):
    state = {prefix + name: value for name, value in read_weights(first).items()}
    torch.save(state if wrapper is None else {wrapper: state, "epoch": 3}, tmp_path / "other.pt")
    found = read_state(tmp_path / "other.pt")
    assert {name: value.tolist() for name, value in found.items()} == {
        "backbone.weight": [[1], [2]],
        "head.weight": [[3, 4], [5, 6]],
    }


def test_read_state_keeps_a_part_that_is_called_module(tmp_path):
    """It is no prefix where another part stands beside it."""
    torch.save({"module.weight": torch.zeros(1), "head.weight": torch.zeros(1)}, tmp_path / "model.pt")
    assert list(read_state(tmp_path / "model.pt")) == ["module.weight", "head.weight"]


def test_read_state_names_what_is_no_weights(first, tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    checkpoint = run / "checkpoints" / "iteration_4.pt"
    torch.save({"network": {"weight": torch.zeros(1)}, "optimizer": {}, "iteration": 4}, checkpoint)
    with pytest.raises(ValueError, match=r"iteration_4\.pt is a checkpoint of a run, .*: name the run's model\.pt"):
        read_state(checkpoint)
    (run / "model.pt").touch()
    with pytest.raises(ValueError, match=rf"name {run / 'model.pt'} instead"):
        read_state(checkpoint)
    contents = {
        "lfs.pt": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "is a Git LFS pointer"),
        "page.pt": (b"\n<!DOCTYPE html><html><body>404</body></html>", "is a web page, not the weights"),
        "old_page.pt": (b"<HTML><body>Sign in</body></html>", "is a web page, not the weights"),
        "empty.pt": (b"", "holds no plain weights, or is damaged"),
        "cut.pt": (first.read_bytes()[:200], "holds no plain weights, or is damaged"),
    }
    for name, (content, message) in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} {message}"):
            read_state(tmp_path / name)
    torch.jit.script(nn.Linear(1, 1)).save(str(tmp_path / "export.ts"))
    with pytest.raises(ValueError, match=r"export\.ts is a TorchScript program, an export: name the model\.pt"):
        read_state(tmp_path / "export.ts")
    for what in ({}, {"a": 1}, [torch.zeros(1)], torch.zeros(1), {"state_dict": {}}):
        torch.save(what, tmp_path / "what.pt")
        with pytest.raises(ValueError, match=r"what\.pt holds no weights of a network"):
            read_state(tmp_path / "what.pt")


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


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ({"weight": torch.zeros(1, 3), "bias": torch.zeros(1)}, r"weight is \(1, 3\) there, \(1, 2\) in the network; "),
        ({"weight": torch.zeros(1, 2), "bias": torch.zeros(1), "scale": torch.zeros(1)}, "the network has no scale; "),
        ({"weight": torch.zeros(1, 2)}, "bias is missing; "),
        (
            {"weight": torch.zeros(4, 2), "norm": torch.zeros(4)},
            "in the network .3 tensors differ.; keep the run's",
        ),
        ({}, "weight is missing .2 tensors differ.; keep the run's run.json beside its model.pt"),
    ],
)
def test_load_state_tells_weights_of_another_network_in_one_line(state: dict[str, torch.Tensor], told: str):
    with pytest.raises(ValueError, match=rf"^the weights model\.pt belong to another network: .*{told}") as refusal:
        load_state(torch.nn.Linear(2, 1), state, "the weights model.pt")
    assert "\n" not in str(refusal.value)


def test_grown_head_puts_each_weight_into_the_cell_that_its_voxels_have_now():
    """Cells of 4 voxels: (8, 4, 4) has 2 x 1 x 1 of them; in (8, 12, 12) these are the middle ones of 2 x 3 x 3."""
    network = NoduleNet((8, 12, 12), channels=(1, 2), return_probabilities=False)
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])  # (class, channel and z)
    grown = grown_head(network, weight, (8, 4, 4))
    assert grown is not None
    cells = grown.reshape(2, 2, 2, 3, 3)
    assert cells[:, :, :, 1, 1].tolist() == [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
    cells[:, :, :, 1, 1] = 0
    assert not cells.any()


@pytest.mark.parametrize(
    ("two_scales", "large", "small", "fits"),
    [
        (False, (32, 48, 48), (32, 16, 16), True),
        (False, (32, 48, 48), (16, 24, 24), False),  # 8 and 12 voxels from the face: half a cell, three quarters
        (False, (16, 24, 24), (32, 48, 48), False),  # smaller
        (True, (32, 96, 96), (32, 32, 32), True),
        (True, (32, 64, 64), (32, 32, 32), False),
    ],
)
def test_grown_head_fits_where_the_difference_is_whole_cells(two_scales, large, small, fits):
    one, other = (NoduleNet(shape, two_scales=two_scales, return_probabilities=False) for shape in (small, large))
    assert (grown_head(other, one.head.weight.detach(), small) is not None) == fits


@pytest.mark.parametrize(("two_scales", "large"), [(False, (24, 24, 24)), (True, (40, 40, 40))])
def test_grown_head_gives_the_same_logits_where_the_border_does_not_matter(tmp_path, two_scales, large):
    """Convolutions that look at their middle voxel alone see no border; two scales: the middle part alone counts."""
    small = (8, 8, 8)
    torch.manual_seed(0)
    settings = {"channels": (2, 3), "return_probabilities": False, "two_scales": two_scales}
    one, other = NoduleNet(small, **settings).eval(), NoduleNet(large, **settings).eval()
    with torch.no_grad():
        for part in one.modules():
            if isinstance(part, nn.Conv3d):
                middle = part.weight[:, :, 1, 1, 1].clone()
                part.weight.zero_()[:, :, 1, 1, 1] = middle
    torch.save(one.state_dict(), tmp_path / "model.pt")
    load_initial_weights(other, str(tmp_path / "model.pt"), small)
    assert not other.fresh_head
    image = torch.randn(4, 1, *large) * 300
    margin = (large[0] - small[0]) // 2
    inside = image[..., margin:-margin, margin:-margin, margin:-margin]
    with torch.inference_mode():
        torch.testing.assert_close(other(image), one(inside))


def test_load_initial_weights_says_what_became_of_the_head_of_a_smaller_cutout(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for small, shape, told, fresh in [
        ((8, 4, 4), (8, 4, 4), "is carried over to its cells", False),
        ((8, 8, 8), (8, 8, 8), "starts fresh", True),  # two voxels from the face: half a cell
        ((8, 4, 4), None, "starts fresh", True),  # not known
    ]:
        one = NoduleNet(small, channels=(1, 2), return_probabilities=False)
        torch.save(one.state_dict(), tmp_path / "model.pt")
        other = NoduleNet((8, 12, 12), channels=(1, 2), return_probabilities=False)
        load_initial_weights(other, str(tmp_path / "model.pt"), shape)
        assert told in caplog.text
        assert other.fresh_head == fresh
        caplog.clear()
