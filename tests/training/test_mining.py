"""False positives are mined on the training scans alone, off all findings, and belong to the checkpoint."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from luna16_monai.dataset.candidates import CandidateList
from luna16_monai.detection.crops import NEGATIVE, CropList, LabelledScans
from luna16_monai.detection.targets import MIDDLE, Labels
from luna16_monai.geometry.grid import Geometry
from luna16_monai.networks.nodule_detector import NoduleDetector
from luna16_monai.store.reading import Store
from luna16_monai.tables.luna16 import read_candidates
from luna16_monai.training.mining import MinedNegatives, near_findings


@pytest.fixture(scope="module")
def crops(phantom_dir, store_dir):
    scans = LabelledScans(phantom_dir, Store(store_dir))
    return CropList(scans, scans.store.series_uids[:2], CandidateList(read_candidates(phantom_dir)), (32, 48, 48))


def engine(epoch, last):
    return SimpleNamespace(state=SimpleNamespace(epoch=epoch, max_epochs=last))


def test_near_findings_reaches_two_millimetres_beyond_them():
    grid = Geometry((10, 10, 60), np.array([[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]]))
    labels = Labels(grid, np.array([[0.0, 0.0, 0.0, 6.0]]), np.array([[0.0, 0.0, 50.0, 10.0]]), None)
    # radius 3 and 2 more: 4.9 is near, 5.1 is not; of the other, at x = 50, 5 and 2
    points = np.array([[4.9, 0, 0], [5.1, 0, 0], [43.1, 0, 0], [42.9, 0, 0]])
    assert near_findings(points, labels).tolist() == [True, False, True, False]


def test_mining_looks_after_its_epochs_but_not_the_last(crops):
    torch.manual_seed(0)
    network = NoduleDetector(channels=(4, 8)).train()
    mining = MinedNegatives(crops, network, epochs=[2, 4], per_scan=20)
    mining(engine(1, 4))
    mining(engine(4, 4))
    assert len(crops.mined) == 0
    mining(engine(2, 4))
    assert network.training
    # of the 20 of each scan those on findings are left out
    assert set(crops.mined[:, 0]) == {0, 1}
    assert 20 < len(crops.mined) <= 40
    for number, uid in enumerate(crops.series_uids):
        labels, points = crops.scans.labels(uid), crops.mined[crops.mined[:, 0] == number, 1:]
        assert labels.lungs.contains(points).all()
        assert not near_findings(points, labels).any()
    state = mining.state_dict()
    crops.mined = np.zeros((0, 4))
    mining.load_state_dict(state)
    assert torch.equal(mining.state_dict()["mined"], state["mined"])


def test_crops_near_mined_points_take_the_place_of_candidates(crops):
    index = int(np.flatnonzero(crops.labels == NEGATIVE)[0])
    crops.mined = np.zeros((0, 4))
    before = crops[index, 7]
    labels = crops.scans.labels(crops.series_uids[0])
    nodule = labels.geometry.world_from_voxel(labels.nodules[0, :3])
    crops.mined, crops.mined_share = np.array([[0.0, *nodule]]), 1.0
    # a point on a nodule, which mining would not give, shows that the crop is there
    assert crops[index, 7]["label"][MIDDLE].sum() >= 1
    crops.mined, crops.mined_share = np.zeros((0, 4)), 0.5
    assert torch.equal(crops[index, 7]["image"], before["image"])


@pytest.mark.parametrize(("epochs", "per_scan"), [([0], 40), ([1], 0)])
def test_mining_at_no_epoch_or_of_nothing_is_refused(crops, epochs, per_scan):
    with pytest.raises(ValueError, match="give numbers from 1 on"):
        MinedNegatives(crops, NoduleDetector(channels=(4, 8)), epochs, per_scan)
