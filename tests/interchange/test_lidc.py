"""Readers' outlines into nodules: volumes, places and merging by hand, and LUNA16's own rows where they are at hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from lidc_files import ring

from luna16_monai.interchange.lidc import Nodule, Outline, Reading, consensus, nodules_of

OUTLINES = Path(__file__).with_name("lidc_outlines.json")
SPACING = (2.0, 0.75, 0.5)
"""A voxel of 0.75 mm³."""


def box(columns: tuple[int, int], rows: tuple[int, int], slices: tuple[int, ...], malignancy: int = 3) -> Reading:
    outlines = [Outline(k, np.array(ring(columns, rows))) for k in slices]
    return Reading(outlines, {"malignancy": malignancy})


def sphere_mm(voxels: int) -> float:
    return float(np.cbrt(6 * voxels * 0.75 / np.pi))


def test_mask_is_what_lies_strictly_inside():
    """A line around 5 x 5 pixels leaves 3 x 3."""
    mask, corner = box((3, 7), (2, 6), (1, 2)).mask()
    assert corner.tolist() == [1, 2, 3]
    expected = np.zeros((2, 5, 5), bool)
    expected[:, 1:4, 1:4] = True
    assert np.array_equal(mask, expected)


def test_mask_takes_holes_out_and_turns_no_axis():
    outlines = [Outline(0, np.array(ring((0, 10), (0, 4)))), Outline(0, np.array(ring((1, 5), (0, 4))), False)]
    mask, _ = Reading(outlines).mask()
    # columns 1 to 9 of rows 1 to 3, without columns 2 to 4
    assert mask[0, 2].tolist() == [False, True, False, False, False, *[True] * 5, False]
    assert mask.shape == (1, 5, 11)
    far = Reading([outlines[0], Outline(7, np.array(ring((1, 5), (0, 4))), False)])
    assert far.mask()[0].sum() == 27


def test_mask_of_an_outline_around_nothing_is_one_voxel():
    mask, corner = Reading([Outline(3, np.array([(4, 5), (5, 5), (6, 5)]))]).mask()
    assert (int(mask.sum()), np.argwhere(mask)[0].tolist(), corner.tolist()) == (1, [0, 0, 1], [3, 5, 4])


def test_nodule_of_equal_readings():
    """18 voxels of 0.75 mm³; its middle is slice 1.5, row 4, column 5."""
    (nodule,) = nodules_of([box((3, 7), (2, 6), (1, 2))] * 3, SPACING)
    assert nodule.is_luna16
    assert nodule.diameter_mm == pytest.approx(sphere_mm(18), rel=1e-12)
    assert nodule.diameter_mm == pytest.approx(2.9542, abs=1e-4)
    assert nodule.index_zyx.tolist() == [1.5, 4, 5]


def test_readings_are_merged_from_the_last_to_the_first():
    """The first reader weighs a half, the others a fourth each, as in LUNA16's own table."""
    readings = [box((3, 7), (2, 6), (1, 2), 5), box((3, 8), (2, 6), (1, 2), 1), box((3, 9), (2, 6), (1, 2), 2)]
    (nodule,) = nodules_of(readings, SPACING)
    first, second, third = sphere_mm(18), sphere_mm(24), sphere_mm(30)
    assert nodule.diameter_mm == pytest.approx(first / 2 + second / 4 + third / 4, rel=1e-12)
    assert nodule.index_zyx[2] == 5 / 2 + 5.5 / 4 + 6 / 4
    assert [reading.ratings["malignancy"] for reading in nodule.readings] == [5, 1, 2]
    assert nodule.ratings() == (1, 2, 5)


def test_readings_further_apart_than_their_radii_are_two_nodules():
    """Diameters of 2.95 mm: middles 6 columns (3 mm) apart are two, 5 columns (2.5 mm) one."""
    near, far = box((8, 12), (2, 6), (1, 2)), box((9, 13), (2, 6), (1, 2))
    here = box((3, 7), (2, 6), (1, 2))
    assert len(nodules_of([here, near], SPACING)) == 1
    found = nodules_of([here, far, here], SPACING)
    assert [len(nodule.readings) for nodule in found] == [2, 1]
    assert not any(nodule.is_luna16 for nodule in found)
    assert nodules_of([], SPACING) == []


def test_consensus_is_what_half_of_the_readers_included():
    one, other = box((3, 7), (2, 6), (1,)), box((3, 9), (2, 6), (1,))
    where, mask = consensus(Nodule([one, one, other], np.zeros(3), 1.0), (4, 12, 14))
    whole = np.zeros((4, 12, 14), bool)
    whole[where] = mask
    # rows 3 to 5; columns 4 to 6 by all, 7 and 8 by one of three
    assert np.argwhere(whole).min(0).tolist() == [1, 3, 4]
    assert np.argwhere(whole).max(0).tolist() == [1, 5, 6]
    _, mask = consensus(Nodule([one, other], np.zeros(3), 1.0), (4, 12, 14))
    assert mask.sum() == 15


def test_official_rows_come_out_of_the_readers_outlines():
    """Real nodules whose readers disagree by more than a third: only LUNA16's way of merging gives its figures.

    The whole table is compared by tools/lidc_check.py: 1,174 of 1,186 rows are within 5 % and 1 mm.
    """
    nodules = json.loads(OUTLINES.read_text(encoding="utf-8"))["nodules"]
    assert sorted(len(one["readings"]) for one in nodules) == [3, 3, 4, 4]
    for one in nodules:
        readings = [
            Reading([Outline(o["slice"], np.array(o["pixels"]), o["included"]) for o in outlines])
            for outlines in one["readings"]
        ]
        (found,) = nodules_of(readings, one["spacing_zyx"])
        assert found.diameter_mm == pytest.approx(one["official_diameter_mm"], rel=1e-6)
        z_mm = one["first_z_mm"] + found.index_zyx[0] * one["spacing_zyx"][0]
        assert z_mm == pytest.approx(one["official_z_mm"], abs=1e-3)
        plain = np.mean([nodules_of([reading], one["spacing_zyx"])[0].diameter_mm for reading in readings])
        assert abs(plain / one["official_diameter_mm"] - 1) > 0.005
