"""The probability of both stages together, detection and classification.

The combined logit is a weighted mean of both stages' logits. Equal weights are those with which a prototype's ranks on
real CTs were measured, classifier with 16 views: nodules moved from rank 15 to 6, 17 to 5 and 55 to 11. The weight
stands in the detection bundle's inference.yaml, as ``classifier_weight``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_LEAST = 1e-6

FloatArray = NDArray[np.float64]


def combine(detection: FloatArray, classification: FloatArray, weight: float = 0.5) -> FloatArray:
    """Return the probability of both stages together, (n,).

    Args:
        detection: (n,) probabilities.
        classification: the same of the classifier.
        weight: of the classifier's logit, 0 to 1; the detector's has the rest.

    Raises:
        ValueError: a weight outside 0 to 1.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"classifier_weight {weight:g}: give a share of the logit from 0 to 1")
    one, other = (np.clip(p, _LEAST, 1 - _LEAST) for p in (detection, classification))
    logit = (1 - weight) * np.log(one / (1 - one)) + weight * np.log(other / (1 - other))
    return 1 / (1 + np.exp(-logit))
