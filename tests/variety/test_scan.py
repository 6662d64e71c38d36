"""One scan of recipe 3."""

import numpy as np
import pytest
from wide_scans import SMALL, small_variety

from luna16_monai.phantom.scan import ScanPlan
from luna16_monai.variety.scan import draw_varied_scan
from luna16_monai.variety.settings import SHARES, Variety
from luna16_monai.variety.shapes import load_allowed_shapes

PLAN = ScanPlan(0, "1.2.3", "PHANTOM-0000", 0, tuple(load_allowed_shapes().numbers[:40].tolist()))


def test_draw_varied_scan_gives_the_same_scan_again():
    one, other = (draw_varied_scan(PLAN, 1, small_variety()) for _ in range(2))
    assert np.array_equal(one.hu, other.hu)
    assert one.findings == other.findings


def test_draw_varied_scan_empty_ones_have_candidates_of_class_0_alone():
    scan = draw_varied_scan(PLAN, 1, small_variety(empty=1.0))
    assert scan.findings.nodules == []
    # three for each of two nodules
    assert [row[3] for row in scan.findings.candidates] == [0] * 6


@pytest.mark.parametrize("seed", [3, 4])
def test_draw_varied_scan_with_everything_in_it_stays_in_range(seed):
    scan = draw_varied_scan(PLAN, seed, Variety(**{**SMALL, **dict.fromkeys(SHARES, 1.0), "empty": 0.0}))
    assert len(scan.findings.nodules) >= 1
    lung = scan.hu[scan.hu > -1900]
    assert lung.min() >= -1024
    assert scan.hu.max() <= 3071
    assert (scan.hu < -1900).any()
    inside = scan.geometry.voxel_from_world([row[:3] for row in scan.findings.candidates])
    assert (inside > -0.51).all()
    assert (inside < np.array(scan.hu.shape) - 0.49).all()
