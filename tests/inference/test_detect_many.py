"""Finished CTs beside the table: what is joined, refused and removed. No network runs here; see tests/cli."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from luna16_monai.bundle.folders import bundle_dir
from luna16_monai.inference.detect_many import Search, detect_many, forget, parts_of
from luna16_monai.machine.files import write_json

SEARCH = Search(bundle_dir("nodule_detection"))


def search(output, finish, uids=("a", "b"), **settings):
    """Candidates of CTs, each of which ``finish`` searches."""
    volumes = SimpleNamespace(series_uids=uids, cts=dict.fromkeys(uids), wrong={})

    def execute(work, items):
        for uid, _ in items:
            finish(uid)
            yield None

    one = Search(SEARCH.bundle, **settings)
    return detect_many(one, SimpleNamespace(views=1, weights=None), volumes, output, execute=execute)


def finishes(output, calls):
    """Writes two candidates of series a and none of b, as a worker would."""

    def finish(uid):
        calls.append(uid)
        n = 2 if uid == "a" else 0
        found = {"points_xyz": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]][:n], "probability": [0.75, 0.5][:n]}
        found |= {"diameter_mm": [6.0, 7.0][:n], "warnings": [f"about {uid}"], "series_uid": uid}
        write_json(parts_of(output) / f"{uid}.json", found)

    return finish


def test_finished_cts_are_joined_and_not_searched_again(tmp_path):
    output, calls = tmp_path / "a.csv", []
    for _ in range(2):
        found = search(output, finishes(output, calls))
        assert found.table.series_uids == ("a", "b")
        assert found.table.series.tolist() == [0, 0]
        assert found.table.values.tolist() == [0.75, 0.5]
        assert found.diameter_mm.tolist() == [6.0, 7.0]
        assert (found.empty, found.warnings) == (("b",), ("about a", "about b"))
    assert calls == ["a", "b"]
    forget(output)
    assert list(tmp_path.iterdir()) == []


def test_finished_cts_of_other_settings_are_refused(tmp_path):
    output = tmp_path / "a.csv"
    search(output, finishes(output, []))
    with pytest.raises(ValueError, match=r"holds a search of other settings \(lungs found instead of none\)"):
        search(output, finishes(output, []), whole=True)


def test_a_damaged_finished_ct_is_refused(tmp_path):
    output = tmp_path / "a.csv"
    search(output, finishes(output, []))
    (parts_of(output) / "a.json").write_text("{]")
    with pytest.raises(ValueError, match=r"a\.json is damaged .* remove it, and run luna16 detect again"):
        search(output, finishes(output, []))


def test_a_ct_that_is_gone_at_the_end_is_told(tmp_path):
    with pytest.raises(RuntimeError, match="series a was removed from"):
        search(tmp_path / "a.csv", lambda uid: None)


def test_parts_lie_beside_the_table():
    assert parts_of(Path("runs/found.csv")) == Path("runs/found.csv.parts")
