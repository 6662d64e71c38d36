"""What becomes of each mark: hit, double, false positive or ignored."""

from __future__ import annotations

import numpy as np
import pytest
from marks import columns, match

from luna16_monai.evaluation import froc
from luna16_monai.evaluation import match as hits
from luna16_monai.evaluation.match import MarkStatus, Match
from luna16_monai.tables.hits import Findings, Marks


def statuses(result: Match) -> list[MarkStatus]:
    return [MarkStatus(status) for status in result.mark_status]


class TestMatchMarks:
    def test_match_marks_on_the_radius_misses_and_just_inside_hits(self) -> None:
        result = match([(0, 3.0, 0.9), (0, -2.999, 0.8)], nodules=[(0, 0.0, 6.0)])
        assert statuses(result) == [MarkStatus.FALSE_POSITIVE, MarkStatus.HIT]
        assert result.nodule_mark.tolist() == [1]

    def test_match_marks_measures_distance_in_all_three_axes(self) -> None:
        nodule = Findings(np.array([0]), np.array([[1.0, 2.0, 3.0]]), np.array([14.0]))
        # Offsets (2, 3, 6): distance 7, the radius. The second mark is 0.001 mm nearer in z.
        marks = Marks(np.array([0, 0]), np.array([[3.0, 5.0, 9.0], [3.0, 5.0, 8.999]]), np.array([0.5, 0.5]))
        assert statuses(hits.match_marks(marks, nodule, None, 1)) == [MarkStatus.FALSE_POSITIVE, MarkStatus.HIT]

    def test_match_marks_of_another_scan_does_not_hit(self) -> None:
        result = match([(1, 0.0, 0.9)], nodules=[(0, 0.0, 6.0)], n_scans=2)
        assert statuses(result) == [MarkStatus.FALSE_POSITIVE]
        assert result.nodule_mark.tolist() == [-1]

    def test_match_marks_two_on_one_nodule_count_once_by_the_more_probable(self) -> None:
        result = match([(0, 1.0, 0.3), (0, 0.0, 0.8), (0, 20.0, 0.1)], nodules=[(0, 0.0, 6.0)])
        assert statuses(result) == [MarkStatus.DOUBLE, MarkStatus.HIT, MarkStatus.FALSE_POSITIVE]
        assert result.nodule_mark.tolist() == [1]
        assert result.nodule_marks.tolist() == [2]
        assert result.mark_nodule.tolist() == [0, 0, -1]

    def test_match_marks_one_on_two_nodules_hits_both(self) -> None:
        result = match([(0, 2.0, 0.7)], nodules=[(0, 0.0, 6.0), (0, 4.0, 6.0)])
        scores = froc.score(result, draws=0)
        assert result.nodule_mark.tolist() == [0, 0]
        assert (scores["true_positives"], scores["false_positives"], scores["ignored_double"]) == (2, 0, 0)

    def test_match_marks_names_the_nodule_that_a_mark_counts_for(self) -> None:
        # The first mark lies on both nodules, but only nodule 0 has no better one.
        result = match([(0, 2.0, 0.5), (0, 6.0, 0.9)], nodules=[(0, 0.0, 6.0), (0, 4.0, 6.0)])
        assert result.nodule_mark.tolist() == [0, 1]
        assert result.mark_nodule.tolist() == [0, 1]

    def test_match_marks_double_of_two_nodules_counts_for_each(self) -> None:
        # Both marks lie in both nodules: two true positives by the first, and two doubles by the second.
        result = match([(0, 2.0, 0.7), (0, 2.1, 0.6)], nodules=[(0, 0.0, 6.0), (0, 4.0, 6.0)])
        scores = froc.score(result, draws=0)
        assert statuses(result) == [MarkStatus.HIT, MarkStatus.DOUBLE]
        assert (scores["true_positives"], scores["ignored_double"], scores["scored_candidates"]) == (2, 2, 2)

    def test_match_marks_on_excluded_finding_counts_neither_way(self) -> None:
        result = match([(0, 50.0, 0.9), (0, 80.0, 0.2)], nodules=[(0, 0.0, 6.0)], excluded=[(0, 51.0, 4.0)])
        assert statuses(result) == [MarkStatus.ON_EXCLUDED, MarkStatus.FALSE_POSITIVE]

    def test_match_marks_takes_unknown_diameter_as_10_mm(self) -> None:
        excluded = [(0, 0.0, -1.0), (0, 50.0, 0.5)]
        result = match([(0, 4.999, 0.9), (0, 5.0, 0.9), (0, 51.0, 0.9)], nodules=[], excluded=excluded)
        assert statuses(result) == [MarkStatus.ON_EXCLUDED, MarkStatus.FALSE_POSITIVE, MarkStatus.FALSE_POSITIVE]

    def test_match_marks_inside_nodule_and_excluded_finding_is_a_hit(self) -> None:
        result = match(
            [(0, 1.0, 0.9), (0, 1.5, 0.5), (0, 7.0, 0.4)], nodules=[(0, 0.0, 6.0)], excluded=[(0, 3.0, 10.0)]
        )
        assert statuses(result) == [MarkStatus.HIT, MarkStatus.DOUBLE, MarkStatus.ON_EXCLUDED]

    def test_match_marks_without_excluded_list_makes_false_positives_and_says_so(self) -> None:
        marks, nodules = Marks(*columns([(0, 50.0, 0.9)])), Findings(*columns([(0, 0.0, 6.0)]))
        result = hits.match_marks(marks, nodules, None, 1)
        assert statuses(result) == [MarkStatus.FALSE_POSITIVE]
        assert froc.score(result, draws=0)["excluded_findings"] is None
        assert froc.score(match([], [(0, 0.0, 6.0)], [(0, 9.0, 1.0)]), draws=0)["excluded_findings"] == 1

    def test_match_marks_drops_all_that_tie_with_the_first_beyond_the_limit(self) -> None:
        # Number 3 and 4 of scan 0 tie at 0.5, so the limit of 3 leaves two. Scan 1 has just 3, all of them equal.
        result = match(
            [(0, 10.0, 0.5), (0, 20.0, 0.9), (0, 30.0, 0.5), (0, 40.0, 0.6), (0, 50.0, 0.1)]
            + [(1, x, 0.2) for x in (10.0, 20.0, 30.0)],
            nodules=[(0, 30.0, 4.0)],
            n_scans=2,
            limit=3,
        )
        assert (result.mark_status == MarkStatus.BEYOND_LIMIT).tolist() == [True, False, True, False, True] + 3 * [
            False
        ]
        assert result.nodule_mark.tolist() == [-1]
        assert froc.ceiling(result) == 1.0  # a candidate does lie on it

    @pytest.mark.parametrize(("n_marks", "n_scored"), [(100, 100), (101, 0)])
    def test_match_marks_scores_a_hundred_equal_marks_but_none_of_101(self, n_marks: int, n_scored: int) -> None:
        result = match([(0, 10.0 * i, 0.5) for i in range(n_marks)], nodules=[(0, 0.0, 6.0)])
        assert froc.score(result, draws=0)["scored_candidates"] == n_scored

    def test_match_marks_refuses_what_it_cannot_score(self) -> None:
        with pytest.raises(ValueError, match=r"probability \(1\.5\) of mark 1 lies outside 0 to 1"):
            match([(0, 0.0, 0.5), (0, 0.0, 1.5)], [])
        with pytest.raises(ValueError, match=r"probability \(nan\) of mark 0"):
            match([(0, 0.0, np.nan)], [])
        with pytest.raises(ValueError, match=r"position \[inf, 0\.0, 0\.0\] mm of finding 0"):
            match([], [(0, np.inf, 5.0)])
        with pytest.raises(ValueError, match=r"diameter \(nan mm\) of finding 0"):
            match([], [(0, 0.0, np.nan)])
        with pytest.raises(ValueError, match=r"scan number \(2\) of mark 0 lies outside 0 to 1"):
            match([(2, 0.0, 0.5)], [], n_scans=2)
        with pytest.raises(ValueError, match=r"scan number \(-1\) of excluded finding 0"):
            match([], [], [(-1, 0.0, 5.0)])
        with pytest.raises(ValueError, match=r"number of scans \(0\)"):
            match([], [], n_scans=0)
        with pytest.raises(ValueError, match=r"positions \(1, 2\)"):
            Marks(np.array([0]), np.zeros((1, 2)), np.array([0.5]))
