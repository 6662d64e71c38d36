"""The loss by hand, on a few cells."""

from __future__ import annotations

import math

import pytest
import torch

from luna16_monai.detection.loss import DetectionLoss
from luna16_monai.detection.targets import COUNTS, HEAT, LOG_DIAMETER, MAPS, MIDDLE, OFFSETS, REGRESSION


def one_nodule():
    target = torch.zeros(1, MAPS, 1, 1, 4)
    target[0, COUNTS] = 1
    target[0, HEAT, 0, 0] = torch.tensor([1.0, 0.5, 0.0, 0.0])
    target[0, MIDDLE, 0, 0, 0] = target[0, REGRESSION, 0, 0, 0] = 1
    target[0, OFFSETS, 0, 0, 0] = torch.tensor([0.25, 0.0, -0.5])
    target[0, LOG_DIAMETER, 0, 0, 0] = 2.0
    target[0, COUNTS, 0, 0, 3] = 0
    return target


def test_loss_is_focal_and_adds_the_errors():
    # all probabilities 1/2: middle (1/2)^2 ln 2; beside it (1/2)^4 (1/2)^2 ln 2; elsewhere (1/2)^2 ln 2; one counts not
    focal = (1 / 4 + 1 / 64 + 1 / 4) * math.log(2)
    loss = DetectionLoss(offset_weight=0.5, diameter_weight=2.0)
    assert loss(torch.zeros(1, 5, 1, 1, 4), one_nodule()).item() == pytest.approx(focal + 0.5 * 0.75 + 2.0 * 2.0)


def test_loss_of_a_perfect_output_is_nearly_none():
    output = torch.zeros(1, 5, 1, 1, 4)
    output[0, 0, 0, 0] = torch.tensor([30.0, -30.0, -30.0, 30.0])  # the last cell does not count
    output[0, 1:, 0, 0, 0] = torch.tensor([0.25, 0.0, -0.5, 2.0])
    assert DetectionLoss()(output, one_nodule()).item() == pytest.approx(0, abs=1e-6)


def test_loss_without_nodules_is_of_the_negatives():
    target = torch.zeros(2, MAPS, 1, 1, 4)
    target[:, COUNTS] = 1
    assert DetectionLoss()(torch.zeros(2, 5, 1, 1, 4), target).item() == pytest.approx(8 / 4 * math.log(2))


def test_loss_is_for_each_nodule():
    target = one_nodule()
    one = DetectionLoss()(torch.zeros(1, 5, 1, 1, 4), target)
    assert DetectionLoss()(torch.zeros(2, 5, 1, 1, 4), target.repeat(2, 1, 1, 1, 1)).item() == pytest.approx(one.item())


def test_loss_is_finite_at_extreme_logits():
    output = torch.full((1, 5, 1, 1, 4), 1e4, requires_grad=True)
    loss = DetectionLoss()(output, one_nodule())
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(output.grad).all()
