"""What a nodule's size and brightness say of its malignancy."""

from __future__ import annotations

import numpy as np
import pytest
from one_volume import OneVolume
from point_tables import point_table

from luna16_monai.malignancy.size_baseline import measure_nodules, require_scikit_learn, score_ruler


def test_measure_nodules_takes_the_mean_of_the_ball():
    nodules = point_table([("a", 0, 0, 0, 12.0), ("a", 0, 0, 6, 1.0), ("a", 0, 0, 7, 2.0)])
    measured = measure_nodules(nodules, OneVolume())  # type: ignore[arg-type]
    # the ball; one voxel at its edge; at 7 mm the voxel and its six neighbours, of which one lies at 6 mm
    assert measured.tolist() == [[12, 50], [1, 50], [2, pytest.approx(-1000 + 1050 / 7)]]


def test_score_ruler_ranks_by_diameter_and_learns_what_brightness_adds():
    pytest.importorskip("sklearn", reason="the ruler needs the extra 'baselines'")
    train = np.array([[5.0, -600], [6.0, -500], [5.5, 20], [6.5, 50]])
    test = np.array([[9.0, -600], [5.0, 40]])
    scores = score_ruler(train, np.array([0, 0, 1, 1]), test)
    assert scores["diameter"].tolist() == [9, 5]
    # the classes differ in brightness alone
    dark = score_ruler(train, np.array([0, 0, 1, 1]), np.array([[5.5, -600]]))["diameter_and_mean_hu"]
    assert scores["diameter_and_mean_hu"][1] > 0.5 > dark[0]
    with pytest.raises(ValueError, match="4 nodules to train on, all of one class"):
        score_ruler(train, np.ones(4, int), test)


def test_require_scikit_learn_names_the_command(monkeypatch):
    monkeypatch.setattr("luna16_monai.machine.extras.is_installed", lambda *modules: False)
    with pytest.raises(ModuleNotFoundError, match="scikit-learn is not installed, and the comparison"):
        require_scikit_learn()
