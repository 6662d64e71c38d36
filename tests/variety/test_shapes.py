"""The shapes that recipe 3 draws from."""

import numpy as np

from luna16_monai.phantom.lesions import load_shape_bank
from luna16_monai.variety.shapes import load_allowed_shapes, measured_patients


def test_load_allowed_shapes_leaves_out_the_patients_of_benchmarks():
    allowed, bank = load_allowed_shapes(), load_shape_bank()
    # 79 patients, with 155 of the 1,184 shapes
    assert len(measured_patients()) == 79
    assert len(allowed.numbers) == 1184 - 155
    assert not measured_patients() & set(allowed.patient.tolist())
    assert set(allowed.patient.tolist()) | measured_patients() >= set(bank.patient.tolist())


def test_load_allowed_shapes_turns_rows_and_columns_and_nothing_else():
    turned, bank = load_allowed_shapes().bank, load_shape_bank()
    for mask, shipped in zip(turned.masks[:50], bank.masks[:50], strict=True):
        assert np.array_equal(mask, shipped.transpose(0, 2, 1))
    assert np.array_equal(turned.diameter_mm, bank.diameter_mm)
