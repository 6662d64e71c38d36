"""Targets by hand: 1 mm voxels, cells of 4 voxels, whose middles lie at 1.5, 5.5, 9.5, ..."""

from __future__ import annotations

import numpy as np
import pytest

from luna16_monai.ct.lungs import LungMask, whole_scan
from luna16_monai.detection.targets import (
    COUNTS,
    HEAT,
    LOG_DIAMETER,
    MIDDLE,
    OFFSETS,
    REGRESSION,
    Labels,
    draw_targets,
)
from luna16_monai.geometry.grid import Geometry

GRID = Geometry.from_axes((40, 40, 40), [1, 1, 1], (0, 0, 0), np.eye(3))
NONE = np.empty((0, 4))


def targets(nodules=NONE, excluded=NONE, lungs=None, start=(0, 0, 0)):
    labels = Labels(GRID, np.array(nodules, float), np.array(excluded, float), lungs or whole_scan(GRID))
    return draw_targets(labels, start, (40, 40, 40), (4, 4, 4))


def test_nodule_is_marked_at_its_nearest_cell():
    maps = targets([[18.5, 21.5, 26.5, 10.0]])
    # (18.5 - 1.5) / 4 = 4.25, (21.5 - 1.5) / 4 = 5, (26.5 - 1.5) / 4 = 6.25
    assert np.argwhere(maps[MIDDLE]).tolist() == [[4, 5, 6]]
    assert maps[HEAT, 4, 5, 6] == 1
    assert maps[OFFSETS][:, 4, 5, 6].tolist() == [0.25, 0.0, 0.25]
    assert maps[LOG_DIAMETER, 4, 5, 6] == pytest.approx(np.log(10))
    # sigma 0.2 x 10 = 2 mm; the cell at (5, 5, 6) is 3, 0 and 1 mm away
    assert maps[HEAT, 5, 5, 6] == pytest.approx(np.exp(-10 / 8))
    assert maps[REGRESSION].sum() == pytest.approx(1)


def test_outermost_cells_and_what_is_no_lung_do_not_count():
    voxels = np.ones((40, 40, 40), bool)
    voxels[:, :, :20] = False
    counts = targets(lungs=LungMask(voxels, GRID))[COUNTS]
    # x: cells 5 to 8 lie in the lungs and are not outermost
    assert np.argwhere(counts.any((0, 1))).ravel().tolist() == [5, 6, 7, 8]
    assert counts.sum() == 8 * 8 * 4


def test_excluded_finding_does_not_count_with_its_ring():
    counts = targets(excluded=[[17.5, 17.5, 17.5, 5.0]])[COUNTS]
    # 2.5 + 2 mm: its own cell (4, 4, 4) and the six that are 4 mm away
    assert np.argwhere(counts[1:-1, 1:-1, 1:-1] == 0).tolist() == [
        [2, 3, 3], [3, 2, 3], [3, 3, 2], [3, 3, 3], [3, 3, 4], [3, 4, 3], [4, 3, 3],
    ]  # fmt: skip


def test_nodule_on_an_excluded_finding_counts():
    maps = targets([[17.5, 17.5, 17.5, 6.0]], [[17.5, 17.5, 17.5, 10.0]])
    assert maps[COUNTS, 4, 4, 4] == 1
    assert maps[COUNTS, 5, 4, 4] == 0


@pytest.mark.parametrize("z", [-2.0, 1.0, 39.0, 45.0])
def test_nodule_whose_middle_is_not_in_view_counts_neither_way(z):
    maps = targets([[z, 17.5, 17.5, 20.0]])
    assert not maps[MIDDLE].any()
    assert not maps[REGRESSION].any()
    # cells of the second layer within 12 mm of the middle
    layer, height = (1, 5.5) if z < 20 else (8, 33.5)
    assert (maps[COUNTS, layer, 4, 4] == 0) == (abs(height - z) < 12)


def test_start_moves_the_grid():
    maps = targets([[18.5, 21.5, 26.5, 10.0]], start=(4, 8, 0))
    assert np.argwhere(maps[MIDDLE]).tolist() == [[3, 3, 6]]


def test_scan_without_nodules_has_only_what_counts():
    maps = targets()
    assert maps[COUNTS].sum() == 8**3
    assert not np.delete(maps, COUNTS, 0).any()
