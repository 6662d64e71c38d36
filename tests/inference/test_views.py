"""Probabilities averaged over flips and turns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from luna16_monai.inference.classifier import Classifier
from luna16_monai.inference.views import NUMBERS, ViewsInferer, mean_of_maps, views_of


@pytest.mark.parametrize("number", NUMBERS)
def test_views_are_all_different_and_the_first_is_the_batch_itself(number):
    image = torch.arange(2 * 3 * 3 * 2.0).reshape(1, 1, 2, 3, 6)[..., :3]
    seen = list(views_of(image, number))
    assert len(seen) == number
    assert torch.equal(seen[0], image)
    assert len({tuple(view.flatten().tolist()) for view in seen}) == number


def test_two_and_four_views_flip_z_and_x():
    image = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 1, 2, 1, 2)  # (z, x)
    assert [view.flatten().tolist() for view in views_of(image, 2)] == [[1, 2, 3, 4], [3, 4, 1, 2]]
    assert [view.flatten().tolist() for view in views_of(image, 4)] == [
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


def test_score_averages_over_the_views(classifier: Classifier) -> None:
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(-1000, 400, (1, 1, 32, 48, 48), generator=generator).float()
    once, averaged = classifier.score(image, views=1), classifier.score(image, views=16)
    turned = classifier.score(image.flip(2).rot90(1, (3, 4)), views=16)
    assert not torch.allclose(once, averaged, atol=1e-4)
    assert torch.allclose(averaged, turned, atol=1e-5)


@pytest.mark.parametrize("number", NUMBERS)
def test_mean_of_maps_turns_places_and_offsets_back(number):
    """A network that marks the brightest voxel by its cell and offset says the same place in each view."""

    def run(image):
        output = torch.zeros(1, 5, 2, 2, 2)
        voxel = np.array(np.unravel_index(int(image.argmax()), (8, 8, 8)))
        cell = voxel // 4
        output[(0, 0, *cell)] = 1
        output[(0, slice(1, 4), *cell)] = torch.tensor(((voxel - 1.5) / 4 - cell), dtype=torch.float32)
        output[0, 4] = 2
        return output

    image = torch.zeros(1, 1, 8, 8, 8)
    image[0, 0, 5, 2, 7] = 1
    seen = mean_of_maps(image, number, run)
    expected = torch.zeros(5, 2, 2, 2)
    expected[0, 1, 0, 1] = 1
    # voxels 5, 2 and 7; the middles of their cells are at 5.5, 1.5 and 5.5, and a cell has 4 voxels
    expected[1:4, 1, 0, 1] = torch.tensor([-0.125, 0.125, 0.375])
    expected[4] = 2
    torch.testing.assert_close(seen[0], expected)
