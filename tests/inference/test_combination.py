"""Both stages' probabilities together."""

from __future__ import annotations

import numpy as np
import pytest

from luna16_monai.inference.combination import combine


def test_combine_is_the_mean_of_the_logits():
    # odds 3 and 1/3 give 1; odds 4 and 1 give 2
    assert combine(np.array([0.75, 0.8]), np.array([0.25, 0.5])).tolist() == pytest.approx([0.5, 2 / 3])


def test_combine_with_a_weight_of_none_is_one_stage():
    one, other = np.array([0.2, 0.9]), np.array([0.7, 0.1])
    assert combine(one, other, 0.0).tolist() == pytest.approx(one.tolist())
    assert combine(one, other, 1.0).tolist() == pytest.approx(other.tolist())


def test_combine_is_finite_at_certain_probabilities():
    assert combine(np.array([0.0, 1.0, 0.0]), np.array([0.0, 1.0, 1.0])).tolist() == pytest.approx(
        [0, 1, 0.5], abs=2e-6
    )


def test_combine_refuses_a_weight_that_is_no_share():
    with pytest.raises(ValueError, match=r"classifier_weight 1.5: give a share"):
        combine(np.array([0.5]), np.array([0.5]), 1.5)
