"""From CTs and points to probabilities: the same as in validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from luna16_monai.bundle.folders import bundle_dir
from luna16_monai.ct.opening import CT
from luna16_monai.inference.classifier import Classifier, score_in_turn, volumes_of
from luna16_monai.networks.nodule_net import NoduleNet
from luna16_monai.store.preparation import prepare_volume
from luna16_monai.store.reading import Store
from luna16_monai.tables.luna16 import read_candidates


def test_probabilities_equal_those_of_the_store(
    phantom_dir: Path, store_dir: Path, classifier: Classifier, weights: Path
) -> None:
    table = read_candidates(phantom_dir).select(np.arange(0, 40, 4)[::-1])
    got = classifier.probabilities(table, classifier.volumes([phantom_dir]), batch_size=3)
    network = NoduleNet(return_probabilities=True).eval()
    network.load_state_dict(torch.load(weights, weights_only=True))
    store = Store(store_dir)
    for row in range(len(table)):
        cutout = store.volume(table.series_uids[table.series[row]]).cutout(table.points_xyz[row])
        image = torch.from_numpy(cutout).float().clamp(-1000, 1000)[None, None]
        with torch.no_grad():
            assert got[row] == pytest.approx(network(image)[1][0, 1].item(), abs=1e-5)


def test_score_in_turn_prepares_each_ct_once_for_bundles_that_prepare_it_alike(
    phantom_dir: Path, weights: Path, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = read_candidates(phantom_dir)
    rows = np.flatnonzero(table.series < 2)[::-4]
    second = Classifier(bundle_dir("malignancy_classification"), weights=[weights], backend="torch")
    expected = classifier.probabilities(table.select(rows), classifier.volumes([phantom_dir]))
    prepared = []

    def prepare(ct: CT, *rest: Any) -> Any:
        prepared.append(ct.path.stem)
        return prepare_volume(ct, *rest)

    monkeypatch.setattr("luna16_monai.store.in_memory.prepare_volume", prepare)
    both = [classifier, second]
    scored = score_in_turn(both, table.select(rows), volumes_of(both, [phantom_dir]))
    assert sorted(prepared) == sorted(table.series_uids[:2])
    for one in scored:
        np.testing.assert_allclose(one, expected, atol=1e-6)
