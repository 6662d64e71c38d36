"""Decisions: a table that training reads, and several writers who lose nothing of each other's."""

from __future__ import annotations

import csv
import multiprocessing
import re
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from luna16_monai.interchange import formats
from luna16_monai.review.decisions import COLUMNS, Decisions, login_name
from luna16_monai.tables.luna16 import read_candidates
from luna16_monai.tables.points import point_key, read_points


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def decide_many(path: Path, reviewer: str, start: int) -> None:
    decisions = Decisions(path, reviewer)
    for number in range(start, start + 15):
        decisions.decide(point_key("1.2", (number, 0, 0)), number % 2)


def test_decide_writes_who_and_when_and_the_last_one_wins(tmp_path):
    path = tmp_path / "decisions.csv"
    anna, ben = Decisions(path, "Anna"), Decisions(path, 'Ben, "the second"')
    assert not path.exists()
    one, other = point_key("1.2", (1, 2, 3)), point_key("1.2", (4, 5, 6))
    anna.decide(one, 1)
    anna.decide(other, 0)
    known = ben.decide(one, 0)
    assert {key: (said.label, said.reviewer) for key, said in known.items()} == {
        one: (0, 'Ben, "the second"'),
        other: (0, "Anna"),
    }
    assert anna.read() == known
    assert [tuple(row) for row in rows(path)] == [COLUMNS, COLUMNS]
    age = datetime.now(UTC) - datetime.fromisoformat(rows(path)[0]["time"])
    assert timedelta(0) <= age < timedelta(minutes=1)
    assert anna.decide(one, None).keys() == {other}
    assert len(rows(path)) == 1


def test_training_reads_decisions_as_candidates(tmp_path):
    decisions = Decisions(tmp_path / "candidates_V2.csv", "Anna")
    decisions.decide(point_key("1.3", (1.5, -2.25, 3)), 1)
    decisions.decide(point_key("1.2", (4, 5, 6)), 0)
    table = read_candidates(tmp_path)
    assert [table.series_uids[code] for code in table.series] == ["1.3", "1.2"]
    np.testing.assert_array_equal(table.points_xyz, [[1.5, -2.25, 3], [4, 5, 6]])
    assert table.values.tolist() == [1, 0]


def test_diameters_are_a_last_column_that_other_readers_understand(tmp_path):
    path = tmp_path / "candidates_V2.csv"
    decisions = Decisions(path, "Anna")
    decisions.decide(point_key("1.2", (4, 5, 6)), 0)
    decisions.decide(point_key("1.2", (1.5, -2.25, 3)), 1, 6.5)
    assert [row["diameter_mm"] for row in rows(path)] == ["-1", "6.5"]
    assert list(rows(path)[0]) == [*COLUMNS, "diameter_mm"]
    assert [one.diameter_mm for one in decisions.read().values()] == [None, 6.5]
    assert read_candidates(tmp_path).values.tolist() == [0, 1]
    np.testing.assert_array_equal(formats.read_candidates(path).values["diameter_mm"], [np.nan, 6.5])
    points = formats.read(path)
    assert points.values["class"].tolist() == [0, 1]
    assert "column 'reviewer' left out: it holds other things than numbers" in points.notes
    # the last diameter goes: so does the column
    decisions.decide(point_key("1.2", (1.5, -2.25, 3)), None)
    assert list(rows(path)[0]) == list(COLUMNS)


def test_two_processes_and_a_thread_lose_no_decision_and_the_file_is_always_whole(tmp_path):
    path = tmp_path / "decisions.csv"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=decide_many, args=(path, name, 100 * n)) for n, name in enumerate("AB")]
    writers.append(threading.Thread(target=decide_many, args=(path, "C", 200)))  # type: ignore[arg-type]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            assert read_points(path, "class").series_uids == ("1.2",)
    for writer in writers:
        writer.join()
    assert {row["reviewer"]: sum(r["reviewer"] == row["reviewer"] for r in rows(path)) for row in rows(path)} == {
        "A": 15,
        "B": 15,
        "C": 15,
    }
    assert {path.name for path in tmp_path.iterdir()} == {"decisions.csv", ".decisions.csv.lock"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "seriesuid,coordX,coordY,coordZ,class\n1.2,1,2,3,1\n",
            "class'): it holds no decisions of reviewers, name another file",
        ),
        ("seriesuid,coordX,coordY,coordZ,probability\n1.2,1,2,3,0.5\n", "column class is missing"),
        (",".join(COLUMNS) + "\n1.2,1,2,3,7,Anna,now\n", "class is 7"),
    ],
)
def test_decisions_refuse_a_file_that_holds_something_else(tmp_path, text, message):
    path = tmp_path / "decisions.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(message)):
        Decisions(path, "Anna")
    assert path.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("name", ["", " Anna", "An\nna", "x" * 65])
def test_decisions_refuse_a_name_that_cannot_stand_in_a_table(tmp_path, name):
    with pytest.raises(ValueError, match="give a name of 1 to 64 characters"):
        Decisions(tmp_path / "decisions.csv", name)


def test_decide_refuses_another_class(tmp_path):
    with pytest.raises(ValueError, match="class 2: give 1"):
        Decisions(tmp_path / "decisions.csv", "Anna").decide(point_key("1.2", (1, 2, 3)), 2)


def test_login_name_without_one_says_what_to_do(monkeypatch):
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr("getpass.getuser", nobody)
    with pytest.raises(ValueError, match="give one with --reviewer"):
        login_name()
