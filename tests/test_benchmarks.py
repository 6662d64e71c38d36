"""Of the benchmarks, the arithmetic of CPU seconds to a CPM; the trainings run by ``make bench``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import detection
import quality

from luna16_monai.ct.opening import open_ct


def measured(seconds: dict[str, list[float | None]]) -> tuple[dict[str, Any], list[tuple[str, int]]]:
    """The result of trainings that took so long, and which were run."""
    calls: list[tuple[str, int]] = []

    def one(way: str, seed: int) -> dict[str, Any]:
        calls.append((way, seed))
        taken = seconds[way][seed]
        return {"cpu_seconds": taken, "cpm": 0.46 if taken else 0.1 * (seed + 1)}

    return quality.measure(Path("data"), Path("store"), 3, 3000.0, one), calls


def test_median_of_three_seeds_and_the_ratio_to_the_naive_way():
    result, calls = measured({"recipe": [120.0, 100.0, None], "design": [900.0, 800.0, 1000.0], "naive": [2000.0] * 3})
    assert [result[way]["cpu_seconds"] for way in quality.WAYS] == [120, 900, 2000]
    assert len(calls) == 9
    assert quality.ratio(result) == pytest.approx(2000 / 120)


def test_way_that_mostly_does_not_arrive_is_over_the_cap_and_needs_no_third_seed():
    result, calls = measured({"recipe": [100.0] * 3, "design": [None, 2900.0, None], "naive": [None, None, 1.0]})
    assert [result[way]["cpu_seconds"] for way in quality.WAYS] == [100, None, None]
    # two of three without an arrival decide
    assert calls == [*(("recipe", seed) for seed in range(3)), *(("design", seed) for seed in range(3)),
                     ("naive", 0), ("naive", 1)]  # fmt: skip
    assert result["naive"]["cpm"] == pytest.approx(0.15)
    # at least so many times, since it was stopped
    assert quality.ratio(result) == pytest.approx(30)
    assert list(quality.lines(result))[2].endswith("over 3,000  (CPM 0.150)")


def test_ratio_is_not_known_where_the_recipe_does_not_arrive():
    result, _ = measured({"recipe": [None] * 3, "design": [None] * 3, "naive": [None] * 3})
    assert quality.ratio(result) is None


def test_cost_of_a_command_is_its_own():
    seconds, memory = detection.cost(
        [sys.executable, "-c", "x = bytearray(150_000_000)\nfor _ in range(3_000_000): pass"]
    )
    # an interpreter takes about 10 MB
    assert 0.15 < memory < 0.2
    assert 0.02 < seconds < 5
    with pytest.raises(SystemExit, match="ended with 3"):
        detection.cost([sys.executable, "-c", "raise SystemExit(3)"])


def test_chest_has_lungs_where_it_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(detection, "SHAPE", (4, 512, 512))
    voxels = open_ct(detection.write_chest(tmp_path / "chest.mhd")).read()
    assert voxels.shape == (4, 512, 512)
    # the middle of a lung, the tissue between both, and the air beside the body
    for x, hu in ((150, -860), (256, 40), (2, -1000)):
        assert abs(voxels[2, 246:255, x : x + 3].mean() - hu) < 30
