"""The official score: reference cases, small cases worked out by hand, and a slow twin written in plain loops.

In the hand-made cases all points lie on the x axis and a row is (scan, x in mm, probability or diameter in mm).
"""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from marks import Row, match

from luna16_monai.evaluation import froc
from luna16_monai.evaluation import match as hits
from luna16_monai.evaluation.match import Match
from luna16_monai.tables.hits import Findings, Marks

SHARED = Path(__file__).resolve().parents[2] / os.environ.get("LUNA16_SHARED", "../shared")


class TestSensitivity:
    def test_sensitivity_at_interpolates_between_the_points_by_hand(self) -> None:
        # Falling: hit 0.9, false 0.8, (hit and 2 false) at 0.5, false 0.1; a third nodule is missed; 2 scans.
        result = match(
            [(0, 0.0, 0.9), (0, 30.0, 0.8), (1, 0.0, 0.5), (1, 30.0, 0.5), (1, 40.0, 0.5), (1, 50.0, 0.1)],
            nodules=[(0, 0.0, 6.0), (1, 0.0, 6.0), (1, 90.0, 6.0)],
            n_scans=2,
        )
        curve = froc.froc_curve(result)
        assert curve.threshold.tolist() == [np.inf, 0.9, 0.8, 0.5, 0.1]
        assert curve.false_positives_per_scan.tolist() == [0, 0, 0.5, 1.5, 2]
        assert curve.sensitivity == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3, 2 / 3])
        # At 1 false positive a scan: half way from (0.5, 1/3) to (1.5, 2/3).
        assert froc.sensitivity_at(result) == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1 / 2, 2 / 3, 2 / 3, 2 / 3])
        assert froc.cpm(result) == pytest.approx((1 + 1 / 2 + 2) / 7)

    def test_sensitivity_at_counts_nodules_of_a_scan_without_marks(self) -> None:
        result = match([(0, 0.0, 0.9)], nodules=[(0, 0.0, 6.0), (1, 0.0, 6.0)], n_scans=3)
        scores = froc.score(result, draws=0)
        assert froc.cpm(result) == 0.5
        assert (scores["false_negatives"], scores["scans_without_marks"], scores["scans"]) == (1, 2, 3)

    def test_sensitivity_at_rises_straight_from_the_origin_where_all_probabilities_are_equal(self) -> None:
        # One point: 2 false positives in one scan, 1 of 1 nodule.
        result = match([(0, 0.0, 0.5), (0, 30.0, 0.5), (0, 40.0, 0.5)], nodules=[(0, 0.0, 6.0)])
        assert froc.sensitivity_at(result).tolist() == [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 1, 1]

    def test_sensitivity_at_without_false_positives_is_the_share_found(self) -> None:
        result = match([(0, 0.0, 0.5), (0, 30.0, 0.1)], nodules=[(0, 0.0, 6.0), (0, 30.0, 6.0), (0, 60.0, 6.0)])
        assert froc.sensitivity_at(result) == pytest.approx(7 * [2 / 3])

    def test_sensitivity_at_without_hits_or_marks_is_zero(self) -> None:
        assert froc.cpm(match([(0, 50.0, 0.9)], nodules=[(0, 0.0, 6.0)])) == 0
        assert froc.cpm(match([], nodules=[(0, 0.0, 6.0)])) == 0

    def test_sensitivity_at_takes_the_upper_end_of_a_step_at_the_rate(self) -> None:
        # 4 scans, 4 false positives: after the first 1 of them (0.25 a scan) the nodule is found.
        marks = [(0, 30.0, 0.9), (0, 0.0, 0.5), (1, 0.0, 0.1), (2, 0.0, 0.1), (3, 0.0, 0.1)]
        assert froc.sensitivity_at(match(marks, [(0, 0.0, 6.0)], n_scans=4), [0.249, 0.25]).tolist() == [0, 1]

    def test_sensitivity_at_rounds_as_the_official_script(self) -> None:
        # 7 of 25 false positives in 7 scans are 1 a scan, but 7 / 25 * 25 / 7 is 1.0000000000000002: the script that
        # goes this way does not see the step at 1.
        marks = [(i, 30.0, 0.9) for i in range(7)] + [(0, 0.0, 0.5)] + [(i % 7, 50.0 + i, 0.1) for i in range(18)]
        assert froc.sensitivity_at(match(marks, [(0, 0.0, 6.0)], n_scans=7), [1.0, 1.0 + 1e-9]).tolist() == [0, 1]

    def test_sensitivity_at_without_any_nodule_is_an_error(self) -> None:
        nothing_to_find = match([(0, 0.0, 0.5)], nodules=[])
        for function in (froc.sensitivity_at, froc.froc_curve, froc.ceiling, froc.bootstrap, froc.score):
            with pytest.raises(ValueError, match=r"no nodule \(0\) in the 1 scans"):
                function(nothing_to_find)


class TestBreakdowns:
    def test_by_diameter_puts_each_nodule_into_its_half_open_bin(self) -> None:
        diameters = [4.999, 5.0, 5.999, 6.0, 8.0, 14.999, 15.0, 30.0]
        result = match([(0, 100.0, 0.9)], nodules=[(0, 100.0 * i, d) for i, d in enumerate(diameters)])
        bins = froc.by_diameter(result)
        assert {name: entry["nodules"] for name, entry in bins.items()} == {
            "<5": 1, "5-6": 2, "6-8": 1, "8-15": 2, ">=15": 2,
        }  # fmt: skip
        assert bins["5-6"]["sensitivity_at"] == dict.fromkeys(("0.125", "0.25", "0.5", "1", "2", "4", "8"), 0.5)
        assert bins["<5"]["sensitivity_at"]["8"] == 0.0

    def test_by_diameter_reads_at_the_false_positives_of_all_scans(self) -> None:
        # The big nodule is found after 1 false positive in 2 scans; the small one's hit is no false positive.
        result = match(
            [(0, 0.0, 0.9), (1, 30.0, 0.8), (1, 0.0, 0.7)], nodules=[(0, 0.0, 4.0), (1, 0.0, 20.0)], n_scans=2
        )
        bins = froc.by_diameter(result)
        assert list(bins["<5"]["sensitivity_at"].values()) == [1, 1, 1, 1, 1, 1, 1]
        assert list(bins[">=15"]["sensitivity_at"].values()) == [0, 0, 1, 1, 1, 1, 1]
        assert bins["6-8"] == {"nodules": 0, "sensitivity_at": dict.fromkeys(bins["<5"]["sensitivity_at"])}

    def test_by_group_scores_each_group_on_its_own_scans(self) -> None:
        # Group 3 (scans 0, 2): false 0.9, hit 0.8: the hit comes at 1 / 2 a scan. Group 5 (scan 1): hit at once, one
        # of two nodules. Group 7 (scan 3): nothing to find.
        result = match(
            [(0, 50.0, 0.9), (2, 0.0, 0.8), (1, 0.0, 0.7), (1, 50.0, 0.1), (3, 0.0, 0.95)],
            nodules=[(2, 0.0, 6.0), (1, 0.0, 6.0), (1, 90.0, 6.0)],
            n_scans=4,
        )
        groups = froc.by_group(result, np.array([3, 5, 3, 7]))
        assert list(groups["3"]["sensitivity_at"].values()) == [0, 0, 1, 1, 1, 1, 1]
        assert (groups["3"]["scans"], groups["3"]["nodules"]) == (2, 1)
        assert groups["3"]["cpm"] == pytest.approx(5 / 7)
        assert (groups["5"]["scans"], groups["5"]["nodules"], groups["5"]["cpm"]) == (1, 2, 0.5)
        assert (groups["7"]["nodules"], groups["7"]["cpm"], groups["7"]["sensitivity_at"]["1"]) == (0, None, None)

    def test_by_group_refuses_groups_that_are_not_one_a_scan(self) -> None:
        with pytest.raises(ValueError, match=r"shape \(3,\), not \(1,\)"):
            froc.by_group(match([], []), np.array([0, 1, 2]))

    def test_ceiling_is_the_share_of_nodules_with_any_mark(self) -> None:
        nodules = [(0, 0.0, 6.0), (0, 50.0, 6.0), (1, 0.0, 6.0), (1, 50.0, 6.0)]
        assert froc.ceiling(match([(0, 1.0, 0.0), (0, 2.0, 0.0), (1, 49.0, 1.0)], nodules, n_scans=2)) == 0.5


class TestBootstrap:
    def test_bootstrap_of_one_scan_has_no_width(self) -> None:
        result = match([(0, 30.0, 0.9), (0, 0.0, 0.5)], nodules=[(0, 0.0, 6.0), (0, 60.0, 6.0)])
        intervals = froc.bootstrap(result, draws=50)
        assert intervals.cpm.tolist() == 2 * [froc.cpm(result)]
        assert intervals.sensitivity_at.T.tolist() == 2 * [froc.sensitivity_at(result).tolist()]

    def test_bootstrap_is_reproducible_and_leaves_the_global_random_state_alone(self) -> None:
        result = random_match(7)[0]
        before = repr(np.random.get_state())
        a, b, c = (froc.bootstrap(result, 100, seed) for seed in (7, 7, 8))
        assert np.array_equal(a.sensitivity_at, b.sensitivity_at) and np.array_equal(a.cpm, b.cpm)
        assert not np.array_equal(a.sensitivity_at, c.sensitivity_at)
        assert repr(np.random.get_state()) == before

    def test_bootstrap_does_not_depend_on_the_chunks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        result = random_match(7)[0]
        at_once = froc.bootstrap(result, 101)
        monkeypatch.setattr(froc, "_ELEMENTS_PER_CHUNK", 150)
        assert np.array_equal(froc.bootstrap(result, 101).sensitivity_at, at_once.sensitivity_at)

    def test_bootstrap_bounds_are_sorted_values_25_and_975_from_0(self) -> None:
        # Scan i holds n[i] nodules; those of the even scans are found. No false positive: the CPM is the share found.
        n = np.array([2, 5, 10, 17, 3, 14, 4, 19, 13, 9])
        nodules = [(i, 10.0 * j, 6.0) for i in range(10) for j in range(n[i])]
        intervals = froc.bootstrap(match([(i, x, 0.5) for i, x, _ in nodules if i % 2 == 0], nodules, n_scans=10))
        scans = np.random.default_rng(0).integers(10, size=(1000, 10))
        ordered = np.sort((n[scans] * (scans % 2 == 0)).sum(axis=1) / n[scans].sum(axis=1))
        assert ordered[24] < ordered[25] < ordered[26] and ordered[974] < ordered[975] < ordered[976]
        assert intervals.cpm == pytest.approx([ordered[25], ordered[975]], abs=1e-12)

    @pytest.mark.parametrize("seed", range(5))
    def test_bootstrap_equals_scoring_copies_of_the_drawn_scans(self, seed: int) -> None:
        result, tables, n_scans, limit = random_match(seed)
        drawn_scans = np.random.default_rng(3).integers(n_scans, size=(40, n_scans))
        values = []
        for scans in drawn_scans:
            marks, nodules, excluded = (
                [(i, *row[1:]) for i, scan in enumerate(scans) for row in table if row[0] == scan] for table in tables
            )
            if nodules:
                values.append(slow_score(marks, nodules, excluded, n_scans, limit)["sensitivity_at"])
        ordered = np.sort(values, axis=0)
        low, high = (ordered[len(ordered) * share // 1000] for share in (25, 975))
        intervals = froc.bootstrap(result, draws=40, seed=3)
        assert intervals.sensitivity_at == pytest.approx(np.stack((low, high), axis=1))
        means = sorted(np.mean(values, axis=1))
        assert intervals.cpm == pytest.approx([means[len(means) * 25 // 1000], means[len(means) * 975 // 1000]])

    def test_bootstrap_leaves_out_draws_without_a_nodule(self) -> None:
        # The only nodule, always found without a false positive, lies in one of 3 scans: 8 of 27 draws lack it.
        assert froc.bootstrap(match([(0, 0.0, 0.9)], [(0, 0.0, 6.0)], n_scans=3), 100).cpm.tolist() == [1, 1]

    def test_bootstrap_refuses_to_draw_nothing(self) -> None:
        with pytest.raises(ValueError, match=r"draws \(0\)"):
            froc.bootstrap(match([], [(0, 0.0, 6.0)]), draws=0)

    def test_froc_band_at_the_seven_rates_is_the_bootstrap(self) -> None:
        result = random_match(2)[0]
        assert np.array_equal(froc.froc_band(result, froc.RATES, 60, 4), froc.bootstrap(result, 60, 4).sensitivity_at)

    def test_compare_with_itself_gives_zeros(self) -> None:
        result = random_match(3)[0]
        difference = froc.compare(result, result, draws=100)
        assert difference["cpm_difference"] == 0 and difference["cpm_difference_ci95"] == [0, 0]
        assert set(difference["sensitivity_at_difference"].values()) == {0}
        assert all(bounds == [0, 0] for bounds in difference["sensitivity_at_difference_ci95"].values())

    def test_compare_draws_the_same_scans_for_both(self) -> None:
        # One finds the nodules of the even scans, the other all: they differ by the share of odd scans in the draw.
        # Between all and nothing the difference is 1 in every draw.
        nodules = [(i, 0.0, 6.0) for i in range(20)]
        even, odd = [(i, 0.0, 0.5) for i in range(0, 20, 2)], [(i, 0.0, 0.5) for i in range(1, 20, 2)]
        nothing, some, all_ = (match(marks, nodules, n_scans=20) for marks in ([], even, even + odd))
        better = froc.compare(some, all_, draws=200)
        assert (better["cpm"], better["cpm_difference"]) == ([0.5, 1.0], 0.5)
        assert better["sensitivity_at"]["2"] == [0.5, 1.0]
        low, high = better["cpm_difference_ci95"]
        assert 0.2 < low < 0.5 < high < 0.8
        worse = froc.compare(all_, some, draws=200)
        assert worse["cpm_difference"] == -0.5
        assert froc.compare(nothing, all_, draws=200)["cpm_difference_ci95"] == [1, 1]

    def test_compare_refuses_submissions_to_other_tables(self) -> None:
        one = match([], [(0, 0.0, 6.0)], n_scans=2)
        with pytest.raises(ValueError, match=r"number of scans \(2 and 3\)"):
            froc.compare(one, match([], [(0, 0.0, 6.0)], n_scans=3))
        with pytest.raises(ValueError, match=r"number of nodules \(1 and 2\)"):
            froc.compare(one, match([], [(0, 0.0, 6.0), (1, 0.0, 6.0)], n_scans=2))
        with pytest.raises(ValueError, match=r"number of excluded findings \(0 and 1\)"):
            froc.compare(one, match([], [(0, 0.0, 6.0)], [(0, 0.0, 6.0)], n_scans=2))
        with pytest.raises(ValueError, match=r"nodules \(1\) lie in other scans"):
            froc.compare(one, match([], [(1, 0.0, 6.0)], n_scans=2))


class TestScore:
    def test_score_fills_every_key_of_the_contract(self) -> None:
        result = match([(0, 0.0, 0.9), (0, 30.0, 0.5)], [(0, 0.0, 6.0)], n_scans=2)
        scores = froc.score(result, draws=20, scan_group=np.array([0, 1]))
        assert json.loads(json.dumps(scores)) == scores
        rates = ["0.125", "0.25", "0.5", "1", "2", "4", "8"]
        assert list(scores["sensitivity_at"]) == list(scores["sensitivity_at_ci95"]) == rates
        assert scores["cpm_ci95"] == [1, 1] and scores["sensitivity_at_ci95"]["8"] == [1, 1]
        assert list(scores["by_diameter_mm"]) == ["<5", "5-6", "6-8", "8-15", ">=15"]
        assert list(scores["by_subset"]) == ["0", "1"]

    def test_score_without_draws_has_no_intervals(self) -> None:
        scores = froc.score(match([], [(0, 0.0, 6.0)]), draws=0)
        assert scores["cpm_ci95"] is None and scores["sensitivity_at_ci95"] is None and "by_subset" not in scores

    def test_score_of_no_marks_at_all(self) -> None:
        scores = froc.score(match([], [(0, 0.0, 6.0), (1, 0.0, 6.0)], n_scans=2), draws=10)
        assert (scores["cpm"], scores["cpm_ci95"], scores["candidate_ceiling"]) == (0, [0, 0], 0)
        assert (scores["false_negatives"], scores["scored_candidates"], scores["scans_without_marks"]) == (2, 0, 2)

    @pytest.mark.parametrize("seed", range(40))
    def test_score_equals_the_slow_twin(self, seed: int) -> None:
        result, tables, n_scans, limit = random_match(seed)
        scores, expected = froc.score(result, draws=0), slow_score(*tables, n_scans, limit)
        assert list(scores["sensitivity_at"].values()) == pytest.approx(expected.pop("sensitivity_at"), abs=1e-12)
        assert {key: scores[key] for key in expected} == expected

    def test_score_does_not_depend_on_the_order_of_rows(self) -> None:
        _, tables, n_scans, limit = random_match(11)
        random = np.random.default_rng(0)
        marks, nodules, excluded = ([table[i] for i in random.permutation(len(table))] for table in tables)
        assert froc.score(match(marks, nodules, excluded, n_scans, limit)) == froc.score(match(*tables, n_scans, limit))

    @pytest.mark.parametrize("case", ["small", "full"])
    def test_score_equals_the_official_evaluator(self, case: str) -> None:
        result, expected = reference_match(case)
        scores = froc.score(result, draws=0)
        sensitivities, cpm = expected.pop("sensitivity_at"), expected.pop("cpm")
        assert scores["sensitivity_at"] == pytest.approx(sensitivities, abs=1e-6)
        assert scores["cpm"] == pytest.approx(cpm, abs=1e-6)
        assert {key: scores[key] for key in expected} == expected

    def test_score_of_the_full_case_with_1000_draws_takes_under_5_s_of_one_core(self) -> None:
        result, _ = reference_match("full")
        start = time.process_time()
        scores = froc.score(result, draws=1000)
        assert time.process_time() - start < 5
        low, high = scores["cpm_ci95"]
        assert low < scores["cpm"] < high


def reference_match(case: str) -> tuple[Match, dict]:
    folder = SHARED / "reference" / "froc"
    if not folder.is_dir():
        pytest.skip("the reference submissions are absent: set LUNA16_SHARED to the folder that holds reference/froc")
    code = {uid: i for i, uid in enumerate((folder / f"{case}_seriesuids.csv").read_text(encoding="utf-8").split())}

    def read(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = [(code[uid], *map(float, numbers)) for uid, *numbers in list(csv.reader(stream))[1:] if uid in code]
        table = np.array(rows)
        return table[:, 0].astype(np.int32), table[:, 1:4], table[:, 4]

    marks = Marks(*read(folder / f"{case}_submission.csv"))
    nodules = Findings(*read(SHARED / "data" / "luna16" / "annotations.csv"))
    excluded = Findings(*read(SHARED / "data" / "luna16" / "annotations_excluded.csv"))
    result = hits.match_marks(marks, nodules, excluded, len(code))
    return result, json.loads((folder / f"{case}_expected.json").read_text(encoding="utf-8"))


def random_match(seed: int) -> tuple[Match, tuple[list[Row], list[Row], list[Row]], int, int]:
    """A small crowded case on whole millimetres and tenths of probability, so that ties and touches abound."""
    random = np.random.default_rng(seed)
    n_scans, limit = int(random.integers(1, 7)), int(random.integers(2, 12))

    def rows(n: int, values: Sequence[float]) -> list[Row]:
        return [
            (int(random.integers(n_scans)), float(random.integers(30)), float(random.choice(values))) for _ in range(n)
        ]

    tables = (
        rows(int(random.integers(60)), [i / 10 for i in range(11)]),
        rows(int(random.integers(1, 8)), [2, 4, 5, 6, 8, 16]),
        rows(int(random.integers(5)), [-1, 2, 4]),
    )
    return match(*tables, n_scans, limit), tables, n_scans, limit


def slow_score(marks: list[Row], nodules: list[Row], excluded: list[Row], n_scans: int, limit: int) -> dict:
    """The rules, one mark after the other."""
    counts = dict.fromkeys(("scored_candidates", "ignored_on_excluded", "ignored_double", "false_negatives"), 0)
    hits, false_positives = [], []

    def inside(mark: Row, finding: Row) -> bool:
        diameter = 10.0 if finding[2] < 0 else finding[2]
        return (mark[1] - finding[1]) ** 2 < (diameter / 2) ** 2

    for scan in range(n_scans):
        scored = [mark for mark in marks if mark[0] == scan]
        if len(scored) > limit:
            threshold = sorted((mark[2] for mark in scored), reverse=True)[limit]
            scored = [mark for mark in scored if mark[2] > threshold]
        counts["scored_candidates"] += len(scored)
        used = [False] * len(scored)
        for nodule in (row for row in nodules if row[0] == scan):
            on_it = [i for i, mark in enumerate(scored) if inside(mark, nodule)]
            for i in on_it:
                used[i] = True
            if on_it:
                hits.append(max(scored[i][2] for i in on_it))
                counts["ignored_double"] += len(on_it) - 1
            else:
                counts["false_negatives"] += 1
        for i, mark in enumerate(scored):
            if used[i]:
                continue
            if any(row[0] == scan and inside(mark, row) for row in excluded):
                counts["ignored_on_excluded"] += 1
            else:
                false_positives.append(mark[2])

    x, y = [0.0], [0.0]
    for threshold in sorted({*hits, *false_positives}, reverse=True):
        above = sum(p >= threshold for p in false_positives)
        x.append(above / len(false_positives) * len(false_positives) / n_scans if above else 0.0)
        y.append(sum(p >= threshold for p in hits) / len(nodules))
    return counts | {
        "true_positives": len(hits),
        "false_positives": len(false_positives),
        "sensitivity_at": np.interp(froc.RATES, x, y),
    }
