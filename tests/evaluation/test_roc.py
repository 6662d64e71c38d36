import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_average_precision, compute_roc_auc
from sklearn.metrics import roc_auc_score

from luna16_monai.evaluation.roc import average_precision, compare_roc_auc, delong, roc_auc

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
        # differences of the positives' shares (-0.5, -0.5), of the negatives' (0, -1): variance 0 / 2 + 0.5 / 2, z = -1
        "delong_p": pytest.approx(math.erfc(1 / math.sqrt(2))),
    }


def test_compare_roc_auc_of_one_classifier_with_itself_is_zero():
    rng = np.random.default_rng(1)
    label, scan, probability = rng.integers(0, 2, 200), rng.integers(0, 8, 200), rng.random(200)
    result = compare_roc_auc({"a": probability, "b": probability}, label, scan, draws=50)
    assert result["b"]["behind_by_ci95"] == [0.0, 0.0]
    assert result["b"]["delong_p"] == 1
    low, high = result["a"]["roc_auc_ci95"]
    assert low < result["a"]["roc_auc"] < high


def test_delong_by_hand():
    # shares of negatives below the positives: (1, 0.5), (0, 1); of positives above the negatives: (0.5, 1), (0.5, 0.5)
    # differences (1, -0.5) and (0, 0.5), each 0.25 on average, of variance 1.125 and 0.125
    result = delong([0.9, 0.4, 0.5, 0.1], [0.3, 0.7, 0.6, 0.5], [1, 1, 0, 0])
    assert result["difference"] == 0.25
    assert result["standard_error"] == pytest.approx(math.sqrt(1.125 / 2 + 0.125 / 2))
    assert result["z"] == pytest.approx(math.sqrt(0.1))
    assert result["p_value"] == pytest.approx(math.erfc(math.sqrt(0.05)))


def test_delong_equals_the_sum_over_all_pairs_with_ties():
    rng = np.random.default_rng(2)
    label = rng.permutation(np.r_[np.ones(30, int), np.zeros(50, int)])
    one, other = (rng.integers(0, 9, 80) / 9 + label * shift for shift in (0.5, 0.3))

    def kernel(values):
        gap = values[label == 1][:, None] - values[label == 0][None]
        return np.where(gap > 0, 1.0, np.where(gap == 0, 0.5, 0.0))

    gap = kernel(one) - kernel(other)
    result = delong(one, other, label)
    assert result["difference"] == pytest.approx(roc_auc(one, label)[0] - roc_auc(other, label)[0])
    assert result["standard_error"] ** 2 == pytest.approx(
        np.var(gap.mean(1), ddof=1) / 30 + np.var(gap.mean(0), ddof=1) / 50
    )
    swapped = delong(other, one, label)
    assert (swapped["z"], swapped["p_value"]) == pytest.approx((-result["z"], result["p_value"]))


def test_delong_rejects_at_its_level():
    # two equally good classifiers on independent candidates: p is uniform, so 5 % of 2,000 lie below 0.05, 74 to 126
    rng = np.random.default_rng(3)
    label = np.r_[np.ones(60, int), np.zeros(60, int)]
    p_values = [delong(*(rng.normal(size=(2, 120)) + label), label)["p_value"] for _ in range(2000)]
    assert 74 <= sum(p < 0.05 for p in p_values) <= 126


def test_delong_tells_what_cannot_be_tested():
    assert delong([0.9, 0.1, 0.2], [0.1, 0.2, 0.3], [1, 0, 0]) == {
        "difference": 1.0, "standard_error": None, "z": None, "p_value": None,
    }  # fmt: skip
    perfect, wrong = [0.1, 0.2, 0.8, 0.9], [0.9, 0.8, 0.2, 0.1]
    assert delong(perfect, wrong, [0, 0, 1, 1]) == {"difference": 1.0, "standard_error": 0.0, "z": None, "p_value": 0.0}
    with pytest.raises(ValueError, match=r"class \[1\] only"):
        delong([0.1, 0.2], [0.2, 0.1], [1, 1])
    with pytest.raises(ValueError, match=r"probabilities \(2,\) and \(3,\), label \(2,\)"):
        delong([0.1, 0.2], [0.2, 0.1, 0.3], [0, 1])


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
