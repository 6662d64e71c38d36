"""``luna16 predict`` without a list of candidates: detect, classify, and combine the two.

The combined logit is a weighted mean of both stages' logits; the weight stands in the detector's bundle.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from luna16_monai.inference.classifier import Classifier, score_in_turn, volumes_of
from luna16_monai.inference.detect import CLASSIFIER_WEIGHT, Candidates
from luna16_monai.tables.points import write_points

_LEAST = 1e-6

FloatArray = NDArray[np.float64]


def combine(detection: FloatArray, classification: FloatArray, weight: float = CLASSIFIER_WEIGHT) -> FloatArray:
    """Return the probability of both stages together, (n,).

    Args:
        detection: (n,) probabilities.
        classification: the same of the classifier.
        weight: of the classifier's logit, 0 to 1; the detector's has the rest.
    """
    one, other = (np.clip(p, _LEAST, 1 - _LEAST) for p in (detection, classification))
    logit = (1 - weight) * np.log(one / (1 - one)) + weight * np.log(other / (1 - other))
    return 1 / (1 + np.exp(-logit))


def predict_found(
    classifiers: Sequence[Classifier],
    found: Candidates,
    cts: Sequence[Path],
    output: Path,
    views: int | None = None,
    malignancy: Classifier | None = None,
    allow_symlinks: bool = False,
) -> dict[str, Any]:
    """Classify a detector's candidates and write both stages' table, by series, the most probable first.

    Args:
        classifiers: their probabilities are averaged.
        found: the candidates.
        cts: the CTs that they were found in.
        output: the CSV.
        views: how many flips and turns are averaged; None takes each bundle's setting.
        malignancy: the second bundle, whose probabilities are a column of their own.
        allow_symlinks: take CTs that are linked into place.

    Returns:
        ``output``, ``candidates``, ``series`` and ``without``, the series without a candidate.
    """
    both = classifiers if malignancy is None else [*classifiers, malignancy]
    table = found.table
    scored = score_in_turn(both, table, volumes_of(both, cts, allow_symlinks), views)
    mean = sum(scored[1 : len(classifiers)], scored[0]) / len(classifiers)
    probability = combine(table.values, mean, found.classifier_weight)
    order = np.lexsort((-probability, table.series))
    more: dict[str, ArrayLike] = {"detection_probability": table.values[order], "diameter_mm": found.diameter_mm[order]}
    if malignancy is not None:
        more["malignancy"] = scored[-1][order]
    rows = table.select(order)
    write_points(output, rows.row_series(), rows.points_xyz, probability[order], "probability", **more)
    series, without = len(table.series_uids), list(found.empty)
    return {"output": str(output), "candidates": len(table), "series": series, "without": without}
