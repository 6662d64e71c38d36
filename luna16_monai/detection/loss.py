"""The detector's loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from luna16_monai.detection.targets import COUNTS, HEAT, LOG_DIAMETER, MIDDLE, OFFSETS, REGRESSION


class DetectionLoss(nn.Module):
    """CenterNet's focal loss of the heat, and the absolute errors of offset and log diameter, for each nodule.

    Args:
        offset_weight: of the error of the offset, in cells.
        diameter_weight: of the error of the diameter's logarithm.
    """

    def __init__(self, offset_weight: float = 0.5, diameter_weight: float = 0.5) -> None:
        super().__init__()
        self.offset_weight, self.diameter_weight = offset_weight, diameter_weight

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the loss of a batch, a scalar in float32.

        Args:
            output: (batch, 5, z, y, x), see ``NoduleDetector.forward``.
            target: (batch, 8, z, y, x), see ``draw_targets``.
        """
        output, target = output.float(), target.float()
        logit, middle = output[:, 0], target[:, MIDDLE]
        probability = torch.sigmoid(logit)
        hit = middle * (1 - probability) ** 2 * F.logsigmoid(logit)
        counts = target[:, COUNTS] * (1 - middle) * (1 - target[:, HEAT]) ** 4
        miss = counts * probability**2 * F.logsigmoid(-logit)
        offset = (output[:, 1:4] - target[:, OFFSETS]).abs().sum(1)
        diameter = (output[:, 4] - target[:, LOG_DIAMETER]).abs()
        error = (self.offset_weight * offset + self.diameter_weight * diameter) * target[:, REGRESSION]
        return (error - hit - miss).sum() / middle.sum().clamp(min=1)
