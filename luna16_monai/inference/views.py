"""Test-time views: a cutout flipped and turned, whose probabilities are averaged.

More views cost as many times the time. On drawn scans eight views bring all that sixteen do; MONAI's
TestTimeAugmentation draws its views at random, so that the same cutout has another probability the next time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor

NUMBERS = (1, 2, 4, 8, 16)


def views_of(images: Tensor, number: int) -> Iterator[Tensor]:
    """Yield a batch (n, channel, z, y, x) as it is, then flipped and turned; z stays upright or upside down.

    1 is the batch alone; 2 adds the flip of z; 4 the flips of z, of x and of both; 8 the quarter turns in the axial
    plane with and without the flip of z; 16 those with and without the flip of x.

    Raises:
        ValueError: there is no such set of views.
    """
    for in_z, in_x, turns in _views(number):
        seen = images.flip(2) if in_z else images
        seen = seen.flip(4) if in_x else seen
        yield torch.rot90(seen, turns, (3, 4)) if turns else seen


def _views(number: int) -> list[tuple[bool, bool, int]]:
    """Return of each view whether z is flipped, whether x is, and how many quarter turns follow."""
    check_views(number)
    return [
        (in_z, in_x, turns)
        for in_z in ((False, True) if number > 1 else (False,))
        for in_x in ((False, True) if number in (4, 16) else (False,))
        for turns in range(4 if number >= 8 else 1)
    ]


def mean_of_maps(image: Tensor, number: int, run: Callable[[Tensor], Tensor]) -> Tensor:
    """Return a detector's output for a box, averaged over views; the logits are, not the probabilities.

    Args:
        image: (batch, 1, z, y, x).
        number: of the views, see `views_of`.
        run: gives (batch, 5, z, y, x) of the cells, whose channels 1 to 3 are offsets along z, y and x.
    """
    total: Tensor | None = None
    for view, (in_z, in_x, turns) in zip(views_of(image, number), _views(number), strict=True):
        output = torch.rot90(run(view), -turns, (3, 4))
        logit, z, y, x, size = output.unbind(1)
        for _ in range(turns):
            y, x = x, -y
        output = torch.stack([logit, -z if in_z else z, y, -x if in_x else x, size], 1)
        output = output.flip(4) if in_x else output
        output = output.flip(2) if in_z else output
        total = output if total is None else total + output
    if total is None:
        raise ValueError(f"views {number}: there is none")
    return total / number


def check_views(number: Any) -> int:
    """Return the number of views, if it is one.

    Raises:
        ValueError: it is not.
    """
    if number not in NUMBERS or isinstance(number, bool):
        raise ValueError(f"views {number}: give one of {', '.join(map(str, NUMBERS))}")
    return int(number)


class ViewsInferer(Inferer):
    """Average a network's probabilities over views; what it gives are logits whose softmax is that average.

    Args:
        number: of the views, see `views_of`; with 1 the network's logits are given as they are.
    """

    def __init__(self, number: int = 1) -> None:
        super().__init__()
        self.number = check_views(number)

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Score a batch (n, channel, z, y, x); gives logits (n, classes)."""
        if self.number == 1:
            return network(inputs, *args, **kwargs)
        scored = [
            torch.log_softmax(network(view, *args, **kwargs).double(), 1) for view in views_of(inputs, self.number)
        ]
        return (torch.logsumexp(torch.stack(scored), 0) - math.log(self.number)).to(inputs.dtype)
