"""What a real nodule touches in its own CT."""

from dataclasses import replace

import numpy as np
import pytest
from real_nodules import ball

from luna16_monai.semi_real.contact import distance_outside, find_contact


def test_distance_outside_is_measured_from_the_outlines():
    distance = distance_outside(ball(8.0))
    # the ball's columns reach from 12 to 20 of 33; its border lies half a voxel behind them
    assert distance[8, 16, 20] == pytest.approx(-0.5)
    assert distance[8, 16, 21] == pytest.approx(0.5)
    assert distance[8, 16, 26] == pytest.approx(5.5)


def test_find_contact_of_a_ball_in_lung_is_nothing():
    contact = find_contact(ball(8.0))
    assert contact.location == "isolated"
    assert not contact.outward.any()


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_find_contact_sees_on_which_side_the_wall_is(turns):
    # the middle lies at column 16, the wall begins at column 19, 3 mm away
    nodule = ball(8.0, wall_from_x=19)
    turned = replace(nodule, hu=np.rot90(nodule.hu, turns, (1, 2)), share=np.rot90(nodule.share, turns, (1, 2)))
    contact = find_contact(turned)
    assert contact.location == "pleural"
    expected = [[0, 0, 1], [0, -1, 0], [0, 0, -1], [0, 1, 0]][turns]
    assert contact.outward @ expected > 0.95
    assert contact.depth_mm == pytest.approx(5.0, abs=1.5)


def test_find_contact_sees_a_vessel_as_no_wall():
    nodule = ball(8.0)
    hu = nodule.hu.copy()
    hu[7:10, 15:18, 20:] = 40
    hu[7:10, 15:18, :13] = 40
    assert find_contact(replace(nodule, hu=hu)).location == "vascular"
