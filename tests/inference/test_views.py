from __future__ import annotations

import pytest
import torch

from luna16_monai.inference.views import NUMBERS, ViewsInferer, views


@pytest.mark.parametrize("number", NUMBERS)
def test_views_are_all_different_and_the_first_is_the_batch_itself(number):
    image = torch.arange(2 * 3 * 3 * 2.0).reshape(1, 1, 2, 3, 6)[..., :3]
    seen = list(views(image, number))
    assert len(seen) == number
    assert torch.equal(seen[0], image)
    assert len({tuple(view.flatten().tolist()) for view in seen}) == number


def test_two_and_four_views_flip_z_and_x():
    image = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 1, 2, 1, 2)  # (z, x)
    assert [view.flatten().tolist() for view in views(image, 2)] == [[1, 2, 3, 4], [3, 4, 1, 2]]
    assert [view.flatten().tolist() for view in views(image, 4)] == [
        [1, 2, 3, 4],
        [2, 1, 4, 3],
        [3, 4, 1, 2],
        [4, 3, 2, 1],
    ]


def test_inferer_averages_probabilities_not_logits():
    image = torch.tensor([0.0, 3.0]).reshape(1, 1, 2, 1, 1)

    def network(batch):
        first = batch[:, 0, 0, 0, 0]  # logits (0, ln 1) upright, (0, ln e^3) flipped
        return torch.stack([torch.zeros_like(first), first], 1)

    averaged = torch.softmax(ViewsInferer(2)(image, network), 1)[0, 1].item()
    upright, flipped = 0.5, 1 / (1 + 2.718281828459045**-3)
    assert averaged == pytest.approx((upright + flipped) / 2, abs=1e-6)
    assert ViewsInferer(1)(image, network).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("number", [0, 3, 32, True, "4", None])
def test_views_refuse_another_number_in_one_line(number):
    with pytest.raises(ValueError, match=f"views {number}: give one of 1, 2, 4, 8, 16"):
        ViewsInferer(number)
