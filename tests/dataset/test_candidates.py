"""The lazy list of candidates, and a sample of negatives."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from point_tables import point_table

from luna16_monai.dataset.candidates import CandidateList, sample_negatives
from luna16_monai.tables.points import PointTable


def test_sample_negatives_keeps_all_where_there_are_no_more():
    table = point_table([("a", i, 0, 0, i % 2) for i in range(6)])
    for negatives in (None, 3, 4):
        assert sample_negatives(table, negatives) is table
    assert sample_negatives(table, 0).values.tolist() == [1, 1, 1]


def test_candidate_list_puts_positives_first_and_tells_each_its_own_index():
    table = point_table([("a", 1, 2, 3, 0), ("b", 4, 5, 6, 1), ("a", 7, 8, 9, 0)])
    candidates = CandidateList(table)
    assert len(candidates) == 3
    first, *others = candidates
    assert first["series_uid"] == "b"
    assert first["point_xyz"].tolist() == [4, 5, 6]
    assert (first["label"], first["candidate"]) == (1, 0)
    assert [(item["point_xyz"].tolist(), item["label"], item["candidate"]) for item in others] == [
        ([1, 2, 3], 0, 1),
        ([7, 8, 9], 0, 2),
    ]
    assert candidates.labels.tolist() == [1, 0, 0]
    with pytest.raises(IndexError):
        candidates[3]


def test_candidate_list_is_lazy():
    rows = 100_000
    table = PointTable(
        source="made",
        series_uids=("a",),
        series=np.zeros(rows, np.int32),
        points_xyz=np.zeros((rows, 3)),
        values=np.zeros(rows),
        lines=np.arange(rows, dtype=np.int32),
    )
    # 40 bytes a row of the table and 8 of the labels: no dict, which takes 200
    assert len(pickle.dumps(CandidateList(table))) < 48 * rows + 2000
