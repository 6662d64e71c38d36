"""The search of many CTs goes on where it was stopped, under the same settings alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from luna16_monai.bundle.folders import bundle_dir
from luna16_monai.inference.detect_many import Search, detect_many, forget, parts_of
from luna16_monai.machine.files import write_json

SEARCH = Search(bundle_dir("nodule_detection"))
DETECTOR: Any = SimpleNamespace(weights=None)
VOLUMES: Any = SimpleNamespace(wrong={}, series_uids=("a", "b"), cts={"a": "CT a", "b": "CT b"})


def searching(output: Path, asked: list[str], stop_at: str = "") -> Callable[..., Iterator[None]]:
    """Write one candidate of each CT, until one is reached."""

    def execute(_: object, todo: Sequence[tuple[str, object]]) -> Iterator[None]:
        for uid, _ct in todo:
            if uid == stop_at:
                raise KeyboardInterrupt
            asked.append(uid)
            told = {"points_xyz": [[1.0, 2.0, 3.0]], "probability": [0.5], "diameter_mm": [4.0], "warnings": [uid]}
            write_json(parts_of(output) / f"{uid}.json", {"series_uid": uid, **told})
            yield

    return execute


def test_detect_many_goes_on_with_the_cts_that_are_left(tmp_path):
    output, first, second = tmp_path / "out.csv", [], []
    with pytest.raises(KeyboardInterrupt):
        detect_many(SEARCH, DETECTOR, VOLUMES, output, execute=searching(output, first, stop_at="b"))
    found = detect_many(SEARCH, DETECTOR, VOLUMES, output, execute=searching(output, second))
    assert (first, second) == (["a"], ["b"])
    assert (found.table.row_series(), found.warnings) == (["a", "b"], ("a", "b"))
    assert found.table.points_xyz.tolist() == [[1, 2, 3]] * 2
    assert parts_of(output) == tmp_path / "out.csv.parts"
    forget(output)
    assert list(tmp_path.iterdir()) == []


def test_detect_many_refuses_other_settings_and_a_damaged_part(tmp_path):
    output = tmp_path / "out.csv"
    detect_many(SEARCH, DETECTOR, VOLUMES, output, execute=searching(output, []))
    other = Search(SEARCH.bundle, limit=7)
    with pytest.raises(ValueError, match=r"holds a search of other settings \(max 50 instead of 7\)"):
        detect_many(other, DETECTOR, VOLUMES, output, execute=searching(output, []))
    (parts_of(output) / "b.json").write_text("{")
    with pytest.raises(ValueError, match=r"b.json is damaged .*: remove it, and run luna16 detect again"):
        detect_many(SEARCH, DETECTOR, VOLUMES, output, execute=searching(output, []))
