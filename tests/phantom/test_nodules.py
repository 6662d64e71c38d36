"""Settings of a drawn scan, and its nodules."""

from __future__ import annotations

import pytest

from luna16_monai.phantom.nodules import JITTER_MM, ScanSettings


@pytest.mark.parametrize(
    "settings",
    [
        {"slices": (40, 39)},
        {"nodules": (0, 2)},
        {"rows": 32},
        {"slices": (8, 40)},
        {"difficulty": 2.1},
        {"difficulty": float("nan")},
        {"negatives_per_positive": -1.0},
        {"negatives_per_positive": float("inf")},
    ],
)
def test_scan_settings_refuses_numbers_out_of_range(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        ScanSettings(**settings)


def test_scan_settings_difficulty_moves_each_knob():
    easy, usual, hard = (ScanSettings(difficulty=d) for d in (0.0, 1.0, 2.0))
    assert [s.likeness for s in (easy, usual, hard)] == [0.5, 1, 2]
    assert [s.overlap for s in (easy, usual, hard)] == [0, 0.75, 1]
    # the smallest nodule's radius is 1.6 mm: no farther at any difficulty
    assert [s.jitter_mm for s in (easy, usual, hard)] == [0, JITTER_MM, JITTER_MM]
    assert ScanSettings(difficulty=0.5).jitter_mm == JITTER_MM / 2
    # -95 HU is 100 below solid nodules: 200 darker when easy, 60 of the 100 made up for when hard
    assert [s.mimic_hu(-95.0) for s in (easy, usual, hard)] == pytest.approx([-295, -95, -35])
