import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_average_precision, compute_roc_auc
from sklearn.metrics import roc_auc_score

from luna16_monai.evaluation.roc import average_precision, compare_roc_auc, roc_auc

LABEL = np.array([0, 0, 1, 1])


@pytest.mark.parametrize(
    ("probability", "expected"),
    [
        ([0.1, 0.2, 0.8, 0.9], 1.0),
        ([0.9, 0.8, 0.2, 0.1], 0.0),
        # of four pairs one is wrong
        ([0.1, 0.5, 0.4, 0.9], 0.75),
        # 0.5 stands beside a negative: half a pair
        ([0.1, 0.5, 0.5, 0.9], 0.875),
        ([0.5, 0.5, 0.5, 0.5], 0.5),
    ],
)
def test_roc_auc_by_hand(probability, expected):
    assert roc_auc(probability, LABEL).tolist() == [expected]


def test_roc_auc_weighs_candidates():
    # the wrong pair (0.5 above 0.4) counts 3 x 2 of (1 + 3) x (2 + 1) pairs
    auc = roc_auc([0.1, 0.5, 0.4, 0.9], LABEL, [[1, 3, 2, 1], [1, 0, 1, 1], [0, 0, 1, 1]])
    np.testing.assert_allclose(auc, [0.5, 1.0, np.nan])


def test_roc_auc_equals_scikit_learn_with_ties_and_repetitions():
    rng = np.random.default_rng(0)
    probability, label = rng.integers(0, 20, 300) / 20, rng.integers(0, 2, 300)
    weights = rng.integers(0, 4, (5, 300))
    expected = [roc_auc_score(np.repeat(label, w), np.repeat(probability, w)) for w in weights]
    np.testing.assert_allclose(roc_auc(probability, label, weights), expected, rtol=1e-12)


def test_roc_auc_refuses_arrays_that_do_not_fit():
    with pytest.raises(ValueError, match=r"probability \(3,\), label \(4,\)"):
        roc_auc([0.1, 0.2, 0.3], LABEL)


def test_compare_roc_auc_draws_whole_scans():
    # two scans: all right in one, all wrong in the other, so a draw gives 1, 0 or what both give
    label, scan = np.array([0, 1, 0, 1]), np.array([7, 7, 9, 9])
    result = compare_roc_auc({"mixed": [0.1, 0.2, 0.9, 0.8], "right": [0.1, 0.9, 0.2, 0.8]}, label, scan)
    # both: pairs (0.1, 0.2) and (0.1, 0.8) are right, (0.9, 0.2) and (0.9, 0.8) wrong
    assert result["mixed"] == {"roc_auc": 0.5, "roc_auc_ci95": [0.0, 1.0]}
    assert result["right"] == {
        "roc_auc": 1.0,
        "roc_auc_ci95": [1.0, 1.0],
        "behind_by": -0.5,
        "behind_by_ci95": [-1.0, 0.0],
    }


def test_compare_roc_auc_of_one_classifier_with_itself_is_zero():
    rng = np.random.default_rng(1)
    label, scan, probability = rng.integers(0, 2, 200), rng.integers(0, 8, 200), rng.random(200)
    result = compare_roc_auc({"a": probability, "b": probability}, label, scan, draws=50)
    assert result["b"]["behind_by_ci95"] == [0.0, 0.0]
    low, high = result["a"]["roc_auc_ci95"]
    assert low < result["a"]["roc_auc"] < high


def test_compare_roc_auc_refuses_one_class():
    with pytest.raises(ValueError, match=r"class \[1\] only"):
        compare_roc_auc({"a": [0.1, 0.2]}, [1, 1], [0, 1])


@pytest.mark.parametrize(
    ("probability", "expected"),
    [
        ([0.1, 0.2, 0.8, 0.9], 1.0),
        # recall 1/2 at precision 1/1, then 1/2 more at precision 2/3
        ([0.1, 0.5, 0.4, 0.9], 0.5 + 0.5 * 2 / 3),
        # recall 1/2 at precision 1/1, then the tie of a positive and a negative: 1/2 more at precision 2/3
        ([0.1, 0.5, 0.5, 0.9], 0.5 + 0.5 * 2 / 3),
        # all tied: recall 1 at precision 1/2
        ([0.5, 0.5, 0.5, 0.5], 0.5),
        # recall 1/2 at precision 1/3, 1/2 more at precision 2/4
        ([0.9, 0.8, 0.2, 0.1], 0.5 / 3 + 0.5 / 2),
    ],
)
def test_average_precision_by_hand(probability, expected):
    assert average_precision(probability, LABEL) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("label", [[0, 0, 0], [1, 1, 1], []])
def test_average_precision_of_one_class_is_nan(label):
    assert math.isnan(average_precision(np.linspace(0, 1, len(label)), label))


def test_average_precision_refuses_arrays_that_do_not_fit():
    with pytest.raises(ValueError, match=r"probability \(2,\), label \(4,\)"):
        average_precision([0.1, 0.2], LABEL)


def test_ranking_equals_monais_to_the_last_bit():
    rng = np.random.default_rng(7)
    tied = 0
    for case in range(400):
        count = int(rng.integers(2, 1500))
        probability = rng.random(count)
        if case % 4:
            # so few values that many tie
            probability = np.round(probability, int(rng.integers(1, 4)))
        label = (rng.random(count) < rng.uniform(0.02, 0.6)).astype(int)
        label[:2] = (0, 1)
        tied += len(np.unique(probability)) < count
        scores, truth = torch.from_numpy(probability), torch.from_numpy(label)
        assert float(roc_auc(probability, label)[0]) == float(compute_roc_auc(scores, truth)), case
        assert average_precision(probability, label) == float(compute_average_precision(scores, truth)), case
    assert tied > 250
