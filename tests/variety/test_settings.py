"""Settings of recipe 3."""

import pytest

from luna16_monai.variety.settings import RANGES, SHARES, Variety


def test_variety_names_its_shares_and_ranges():
    settings = Variety()
    assert all(0 < getattr(settings, name) <= 1 for name in SHARES)
    assert all(len(getattr(settings, name)) == 2 for name in RANGES)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"empty": 1.1}, "empty 1.1: give a share"),
        ({"dome": -0.1}, "dome -0.1"),
        ({"azygos": float("nan")}, "azygos nan"),
        ({"slice_mm": (5.0, 0.6)}, "slice_mm"),
        ({"noise_hu": (0.0, 5.0)}, "noise_hu .*above 0"),
        ({"nodules": (0, 2)}, "nodules"),
        ({"height_mm": (20.0, 60.0)}, "a chest needs 50 mm, 40 mm"),
        ({"difficulty": 3.0}, "difficulty"),
        ({"negatives_per_positive": float("nan")}, "negatives_per_positive"),
    ],
)
def test_variety_refuses_numbers_out_of_range(wrong, message):
    with pytest.raises(ValueError, match=message):
        Variety(**wrong)
