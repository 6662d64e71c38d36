"""A bundle's network with random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from luna16_monai.bundle.folders import bundle_dir
from luna16_monai.inference.classifier import Classifier
from luna16_monai.networks.nodule_net import NoduleNet


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    state = NoduleNet(two_scales=True, return_probabilities=False).state_dict()
    # as if it had seen lungs: untouched, its logits are in the hundreds, and 1 HU moves a probability from end to end
    state["tail.running_mean"].fill_(-600)
    state["tail.running_var"].fill_(300**2)
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def classifier(weights: Path) -> Classifier:
    return Classifier(bundle_dir(), weights=[weights], backend="torch")
