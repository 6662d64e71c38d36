"""Calibration and thresholds, with numbers that can be followed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics.calibration import CalibrationErrorMetric
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, precision_recall_curve

from luna16_monai.evaluation.calibration import (
    Calibration,
    best_f1_threshold,
    brier_score,
    calibrate,
    confusion,
    counts_at_thresholds,
    cross_fit,
    expected_calibration_error,
    fit_platt,
    fit_temperature,
    operating_points,
    reliability_curve,
    threshold_at_false_positives_per_scan,
)

# Falling: nodule 0.9, other 0.8, nodule and other 0.6, other 0.3, nodule 0.2.
PROBABILITY = np.array([0.2, 0.9, 0.6, 0.8, 0.6, 0.3])
LABEL = np.array([1, 1, 1, 0, 0, 0])


def test_calibration_apply_moves_the_logit_along_the_line() -> None:
    # logit(0.8) = ln 4: 2 ln 4 - ln 2 = ln 8, and sigmoid(ln 8) = 8 / 9. logit(0.5) = 0: sigmoid(-ln 2) = 1 / 3.
    calibrated = Calibration(slope=2.0, offset=-np.log(2)).apply(np.array([0.8, 0.5]))
    assert calibrated == pytest.approx([8 / 9, 1 / 3])


def test_calibration_apply_keeps_certainty_finite_and_in_order() -> None:
    nearly_one = float(np.nextafter(np.float32(1), np.float32(0)))
    calibrated = Calibration(slope=0.5, offset=-3.0).apply(np.array([0.0, 0.5, nearly_one, 1.0]))
    assert (np.diff(calibrated) > 0).all() and calibrated[0] > 0 and calibrated[-1] < 1


def test_fit_platt_of_two_values_meets_their_shares() -> None:
    # 4 nodules and 4 others: labels are drawn in to 5/6 and 1/6. At 0.5 (1 of 4): (5/6 + 3/6) / 4 = 1/3. At 0.75
    # (3 of 4): 2/3. Logits 0 and ln 3 become -ln 2 and ln 2: offset -ln 2, slope 2 ln 2 / ln 3.
    probability = np.repeat([0.5, 0.75], 4)
    line = fit_platt(probability, np.array([1, 0, 0, 0, 1, 1, 1, 0]))
    assert line.offset == pytest.approx(-np.log(2), abs=1e-7)
    assert line.slope == pytest.approx(2 * np.log(2) / np.log(3), abs=1e-7)
    assert line.apply(probability[[0, -1]]) == pytest.approx([1 / 3, 2 / 3])


def test_fit_temperature_of_two_values_meets_their_shares() -> None:
    # As above with 0.25 in place of 0.5: logits -ln 3 and ln 3 become -ln 2 and ln 2.
    line = fit_temperature(np.repeat([0.25, 0.75], 4), np.array([1, 0, 0, 0, 1, 1, 1, 0]))
    assert line.slope == pytest.approx(np.log(2) / np.log(3), abs=1e-7)
    assert line.offset == 0


def test_fit_platt_shifts_from_one_in_six_to_one_in_500() -> None:
    # Scores of two unit normals 2 apart, calibrated for odds 1:5; at odds 1:499 the right line is 1, ln 5 - ln 499.
    random = np.random.default_rng(0)
    label = (np.arange(250_000) < 500).astype(int)
    raw = expit(2 * (random.normal(size=label.size) + np.where(label, 1, -1)) - np.log(5))
    line = fit_platt(raw, label)
    assert line.slope == pytest.approx(1, abs=0.08)
    assert line.offset == pytest.approx(np.log(5 / 499), abs=0.15)
    assert line.apply(raw).mean() == pytest.approx(1 / 500, rel=0.01)


def test_fit_platt_equals_logistic_regression_on_the_drawn_in_labels() -> None:
    random = np.random.default_rng(1)
    label = (random.random(400) < 0.1).astype(int)
    raw = expit(3 * random.normal(size=400) + 2 * label)
    nodules, others = label.sum(), (1 - label).sum()
    target = np.where(label, (nodules + 1) / (nodules + 2), 1 / (others + 2))
    x = logit(raw)[:, None]
    twin = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(
        np.vstack((x, x)), np.repeat([1, 0], 400), sample_weight=np.concatenate((target, 1 - target))
    )
    line = fit_platt(raw, label)
    assert (line.slope, line.offset) == pytest.approx((twin.coef_.item(), twin.intercept_.item()), abs=1e-5)


def test_fit_platt_stays_finite_where_a_threshold_separates() -> None:
    line = fit_platt(np.array([0.0, 0.0, 1.0, 1.0]), np.array([0, 0, 1, 1]))
    assert line.apply(np.array([0.0, 1.0])) == pytest.approx([1 / 4, 3 / 4], abs=1e-6)  # labels drawn in


def test_fit_platt_never_reverses_a_ranking() -> None:
    calibrated = fit_platt(np.array([0.9, 0.8, 0.1, 0.2]), np.array([0, 0, 1, 1])).apply(np.array([0.1, 0.9]))
    assert calibrated[0] < calibrated[1]
    assert calibrated == pytest.approx([0.5, 0.5], abs=0.002)


def test_fit_platt_of_equal_probabilities_gives_the_share_of_nodules() -> None:
    # 1 nodule, drawn in to 2/3; 3 others, to 1/5: (2/3 + 3/5) / 4 = 19/60.
    line = fit_platt(np.full(4, 0.3), np.array([0, 0, 0, 1]))
    assert line.apply(np.array([0.3])) == pytest.approx([19 / 60])


def test_fit_platt_refuses_one_class_alone() -> None:
    with pytest.raises(ValueError, match="0 nodules and 2 others"):
        fit_platt(np.array([0.1, 0.2]), np.array([0, 0]))


def test_cross_fit_uses_the_other_folds_only() -> None:
    random = np.random.default_rng(2)
    scan = np.repeat(np.arange(8), 25)
    label = np.tile(np.arange(25) < 3, 8).astype(int)
    raw = expit(random.normal(size=200) + 2 * label)
    calibrated = cross_fit(raw, label, scan, folds=4, seed=5)
    # Other rows of scan 0 become the nodules: only its own fold of two scans does not learn of it.
    moved = np.where(scan == 0, np.roll(label, 5), label)
    unchanged = calibrated == cross_fit(raw, moved, scan, folds=4, seed=5)
    by_scan = unchanged.reshape(8, 25)
    assert by_scan[0].all()
    assert sorted(by_scan.sum(axis=1)) == 6 * [0] + 2 * [25]


def test_cross_fit_spreads_scans_with_nodules_over_the_folds() -> None:
    # Were both nodules in one fold, its line would have to be fitted without any.
    scan = np.repeat(np.arange(10), 2)
    label = np.zeros(20, dtype=int)
    label[[4, 8]] = 1
    raw = np.linspace(0.1, 0.9, 20)
    for seed in range(20):
        assert cross_fit(raw, label, scan, folds=5, seed=seed).shape == (20,)


def test_cross_fit_is_reproducible_and_takes_the_fit_given() -> None:
    random = np.random.default_rng(3)
    scan, label = random.permutation(np.arange(300) % 20), np.arange(300) % 7 == 0
    raw = expit(random.normal(size=300) + label)
    assert np.array_equal(cross_fit(raw, label, scan, seed=1), cross_fit(raw, label, scan, seed=1))
    assert not np.array_equal(cross_fit(raw, label, scan, seed=1), cross_fit(raw, label, scan, seed=2))
    # A temperature leaves 1/2 where it is.
    raw[:50] = 0.5
    assert cross_fit(raw, label, scan, fit=fit_temperature)[:50] == pytest.approx(np.full(50, 0.5))


def test_cross_fit_lowers_error_and_brier_score_of_an_overconfident_network() -> None:
    random = np.random.default_rng(4)
    label = (random.random(20_000) < 0.02).astype(int)
    raw = expit(4 * (random.normal(size=label.size) + np.where(label, 1, -1)) + 2)
    calibrated = cross_fit(raw, label, np.arange(label.size) % 50)
    assert expected_calibration_error(calibrated, label) < 0.01 < 0.1 < expected_calibration_error(raw, label)
    assert brier_score(calibrated, label) < 0.02 < brier_score(raw, label)


def test_cross_fit_of_one_scan_says_that_it_needs_two() -> None:
    with pytest.raises(ValueError, match="candidates of 1 scan: calibration needs two or more"):
        cross_fit(PROBABILITY, LABEL, np.zeros(6, np.int64), folds=1)


def test_cross_fit_refuses_folds_that_cannot_be() -> None:
    for folds in (1, 3):
        with pytest.raises(ValueError, match=rf"number of folds \({folds}\) must be 2 to 2"):
            cross_fit(PROBABILITY, LABEL, np.array([0, 0, 0, 1, 1, 1]), folds=folds)
    with pytest.raises(ValueError, match=r"scans have shape \(2,\)"):
        cross_fit(PROBABILITY, LABEL, np.array([0, 1]), folds=2)


def test_brier_score_is_the_mean_squared_difference() -> None:
    # Squares 0.64, 0.01, 0.16, 0.64, 0.36, 0.09: 1.90 / 6.
    assert brier_score(PROBABILITY, LABEL) == pytest.approx(1.9 / 6)
    assert brier_score(PROBABILITY, LABEL) == pytest.approx(brier_score_loss(LABEL, PROBABILITY))


def test_reliability_curve_leaves_out_empty_bins_and_puts_1_into_the_last() -> None:
    # Five bins: 0.1 and 0.1 in the first, 0.2 in the second, 0.9 and 1 in the last.
    curve = reliability_curve(np.array([0.1, 1.0, 0.2, 0.1, 0.9]), np.array([0, 1, 1, 1, 1]), bins=5)
    assert curve.mean_probability == pytest.approx([0.1, 0.2, 0.95])
    assert curve.nodule_share.tolist() == [0.5, 1, 1]
    assert curve.candidates.tolist() == [2, 1, 2]


def test_expected_calibration_error_weighs_bins_by_their_candidates() -> None:
    # Distances 0.4, 0.8 and 0.05 of 2, 1 and 2 candidates: (0.8 + 0.8 + 0.1) / 5.
    error = expected_calibration_error(np.array([0.1, 1.0, 0.2, 0.1, 0.9]), np.array([0, 1, 1, 1, 1]), bins=5)
    assert error == pytest.approx(0.34)
    assert expected_calibration_error(np.array([0.0, 1.0]), np.array([0, 1])) == 0


def test_expected_calibration_error_equals_monais() -> None:
    rng = np.random.default_rng(5)
    # in the middle between multiples of 1/256, so clear of the edges of 16 bins, which MONAI moves by 1e-7
    probability = (rng.integers(0, 256, 4000) + 0.5) / 256
    label = (rng.random(4000) < probability**1.5).astype(np.int64)
    metric = CalibrationErrorMetric(num_bins=16, calibration_reduction="expected")
    metric(torch.from_numpy(probability).float()[None, None], torch.from_numpy(label)[None, None])
    expected = expected_calibration_error(probability, label, 16)
    assert 0.05 < expected < 0.5
    assert metric.aggregate().item() == pytest.approx(expected, abs=1e-6)


def test_reliability_curve_refuses_no_bins() -> None:
    with pytest.raises(ValueError, match=r"number of bins \(0\)"):
        reliability_curve(PROBABILITY, LABEL, bins=0)


def test_best_f1_threshold_by_hand() -> None:
    # F1 at 0.9, 0.8, 0.6, 0.3, 0.2: 2/4, 2/5, 4/7, 4/8, 6/9.
    assert best_f1_threshold(PROBABILITY, LABEL) == 0.2
    # Without the last: 2/3, 2/4, 4/6, 4/7. 0.9 and 0.6 are equally good.
    assert best_f1_threshold(PROBABILITY[1:], LABEL[1:]) == 0.9


def test_best_f1_threshold_is_best_on_random_ties() -> None:
    random = np.random.default_rng(5)
    probability, label = random.integers(20, size=200) / 20, random.integers(2, size=200)
    precision, recall, _ = precision_recall_curve(label, probability)
    best = confusion(probability, label, best_f1_threshold(probability, label))["f1"]
    assert best == pytest.approx(np.max(2 * precision * recall / (precision + recall)))


def test_best_f1_threshold_refuses_a_list_without_nodules() -> None:
    with pytest.raises(ValueError, match=r"no nodule among the rows \(2\)"):
        best_f1_threshold(np.array([0.1, 0.2]), np.array([0, 0]))


@pytest.mark.parametrize(("n_scans", "rate", "expected"), [(1, 1.0, 0.8), (2, 1.0, 0.6), (1, 2.9, 0.6), (3, 1.0, 0.2)])
def test_threshold_at_false_positives_per_scan_by_hand(n_scans: int, rate: float, expected: float) -> None:
    # False positives at 0.9, 0.8, 0.6, 0.3, 0.2: 0, 1, 2, 3, 3.
    assert threshold_at_false_positives_per_scan(PROBABILITY, LABEL, n_scans, rate) == expected


def test_threshold_at_false_positives_per_scan_exceeds_all_where_the_first_is_one_too_many() -> None:
    threshold = threshold_at_false_positives_per_scan(np.array([0.9, 0.9, 0.5]), np.array([0, 1, 0]), 2, 0.25)
    assert threshold > 0.9
    assert confusion(np.array([0.9, 0.9, 0.5]), np.array([0, 1, 0]), threshold)["fp"] == 0


def test_threshold_at_false_positives_per_scan_refuses_no_scans() -> None:
    with pytest.raises(ValueError, match="over 0 scans"):
        threshold_at_false_positives_per_scan(PROBABILITY, LABEL, 0)
    with pytest.raises(ValueError, match=r"\(nan\)"):
        threshold_at_false_positives_per_scan(PROBABILITY, LABEL, 1, float("nan"))


def test_confusion_by_hand() -> None:
    # From 0.6 on: nodules 0.9 and 0.6, others 0.8 and 0.6; below: nodule 0.2, other 0.3.
    assert confusion(PROBABILITY, LABEL, 0.6) == {
        "tp": 2, "fp": 2, "tn": 1, "fn": 1,
        "precision": 1 / 2, "recall": 2 / 3, "specificity": 1 / 3, "f1": 4 / 7,
    }  # fmt: skip


def test_confusion_has_no_share_of_nothing() -> None:
    nothing_called = confusion(np.array([0.1]), np.array([0]), 0.5)
    assert (nothing_called["precision"], nothing_called["recall"], nothing_called["f1"]) == (None, None, None)
    assert confusion(np.array([0.1]), np.array([1]), 0.5)["specificity"] is None


def test_confusion_refuses_rows_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"probability \(1\.5\) of row 1"):
        confusion(np.array([0.5, 1.5]), np.array([0, 1]), 0.5)
    with pytest.raises(ValueError, match=r"label \(2\) of row 0"):
        confusion(np.array([0.5]), np.array([2]), 0.5)
    with pytest.raises(ValueError, match=r"shape \(2,\), labels \(1,\)"):
        confusion(np.array([0.5, 0.5]), np.array([1]), 0.5)
    with pytest.raises(ValueError, match=r"shape \(0,\)"):
        confusion(np.array([]), np.array([]), 0.5)


def test_counts_at_thresholds_count_equal_probabilities_together():
    probability = np.array([0.2, 0.9, 0.5, 0.5, 0.2])
    threshold, nodules, others = counts_at_thresholds(probability, np.array([0, 1, 1, 0, 0]))
    assert (threshold.tolist(), nodules.tolist(), others.tolist()) == ([0.9, 0.5, 0.2], [1, 2, 2], [0, 1, 3])


def test_calibrate_takes_back_the_share_of_nodules_in_training() -> None:
    # true probability sigmoid(x - 3), the network says sigmoid(x): slope 1, offset -3
    random = np.random.default_rng(0)
    x, scan = random.normal(0, 2, 20_000), np.arange(20_000) % 20
    label = (random.random(x.size) < expit(x - 3)).astype(int)
    calibrated, summary = calibrate(expit(x), label, scan)
    assert calibrated is not None
    assert summary["platt"]["slope"] == pytest.approx(1, abs=0.1)
    assert summary["platt"]["offset"] == pytest.approx(-3, abs=0.15)
    assert summary["platt"]["ece"] < 0.02 < summary["temperature"]["ece"] < summary["raw"]["ece"]
    assert np.abs(calibrated - expit(x - 3)).max() < 0.1


def test_calibrate_tells_why_it_was_skipped() -> None:
    calibrated, summary = calibrate(np.array([0.1, 0.9]), np.array([0, 1]), np.array([4, 4]))
    assert (calibrated, list(summary)) == (None, ["skipped"])


def test_thresholds_give_the_confusion_at_each() -> None:
    # falling: 0.9 nodule, 0.8 other, 0.6 nodule, 0.3 other; 2 scans, so two false positives are one a scan
    result = operating_points(np.array([0.3, 0.9, 0.6, 0.8]), np.array([0, 1, 1, 0]), n_scans=2)
    best, one = result["best_f1"], result["one_false_positive_per_scan"]
    assert [best[key] for key in ("threshold", "tp", "fp", "tn", "fn")] == [0.6, 2, 1, 1, 0]
    assert [one[key] for key in ("threshold", "tp", "fp", "tn", "fn")] == [0.3, 2, 2, 0, 0]
    assert "optimistic" in result["chosen_on"]
