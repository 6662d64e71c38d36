"""Where points lie in the lungs, on masks whose sides and heights are known."""

from __future__ import annotations

import numpy as np
import pytest

from luna16_monai.ct.lungs import LungMask
from luna16_monai.geometry.grid import Geometry
from luna16_monai.report.places import LungPlaces

# voxels of 2 mm, the first centre at (-160, -100, -300): x to the left, y to the back, z to the head
GRID = Geometry.from_axes((160, 100, 150), (2, 2, 2), (-160, -100, -300), np.eye(3))


def two_lungs(geometry: Geometry = GRID) -> LungMask:
    """z from -281 to -101 mm; the right lung x from -121 to -41, the left one from 39 to 119."""
    voxels = np.zeros((150, 100, 160), bool)
    voxels[10:100, 20:80, 20:60] = True
    voxels[10:100, 20:80, 100:140] = True
    return LungMask(voxels, geometry)


def test_places_tell_side_third_and_height():
    places = LungPlaces(two_lungs())
    # 90 x 60 x 80 voxels of 8 mm3
    assert places.millilitres == pytest.approx(3456)
    assert (places.low_z, places.high_z) == (-281, -101)
    # 180 mm high: the thirds part at -221 and -161
    points = [(-100, 0, -110), (80, 0, -162), (80, 0, -222), (80, 0, -160)]
    found = places.of(points)
    assert [(one.side, one.third, one.below_top_mm, one.in_lungs) for one in found] == [
        ("right", "upper", 9, True),
        ("left", "middle", 61, True),
        ("left", "lower", 121, True),
        ("left", "upper", 59, True),
    ]
    assert str(found[0]) == "right lung, upper third"


def test_place_outside_the_mask_is_said():
    place = LungPlaces(two_lungs()).of([(-5, 0, -110)])[0]
    assert (place.side, place.in_lungs) == ("right", False)
    assert str(place).startswith("outside the lungs that were found")


def test_places_are_the_same_however_the_voxels_lie():
    flipped = Geometry.from_axes((160, 100, 150), (2, 2, 2), (158, 98, -300), np.diag([-1, -1, 1]))
    mask = two_lungs()
    turned = LungMask(mask.voxels[:, ::-1, ::-1], flipped)
    points = [(-100, 0, -110), (80, 0, -222)]
    assert LungPlaces(turned).of(points) == LungPlaces(mask).of(points)


def test_side_is_not_told_of_one_lung():
    voxels = two_lungs().voxels.copy()
    voxels[:, :, 80:] = False
    places = LungPlaces(LungMask(voxels, GRID))
    assert places.middle_x is None
    assert str(places.of([(-100, 0, -110)])[0]) == "upper third of the lungs"


def test_places_need_lungs():
    with pytest.raises(ValueError, match="without lungs"):
        LungPlaces(LungMask(np.zeros((2, 2, 2), bool), Geometry((2, 2, 2), np.eye(4))))
