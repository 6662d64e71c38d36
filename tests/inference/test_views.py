"""Probabilities averaged over flips and turns."""

from __future__ import annotations

import torch

from luna16_monai.inference.classifier import Classifier


def test_score_averages_over_the_views(classifier: Classifier) -> None:
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(-1000, 400, (1, 1, 32, 48, 48), generator=generator).float()
    once, averaged = classifier.score(image), classifier.score(image, tta=True)
    turned = classifier.score(image.flip(2).rot90(1, (3, 4)), tta=True)
    assert not torch.allclose(once, averaged, atol=1e-4)
    assert torch.allclose(averaged, turned, atol=1e-5)
