"""``luna16 predict`` without a list: the detector's candidates, classified CT by CT, so that each CT is read once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from luna16_monai.inference.classifier import Classifier, Scorer
from luna16_monai.inference.detect import LIMIT, Candidates, Detector, Lungs
from luna16_monai.inference.predict import Listed, Scored
from luna16_monai.store.in_memory import InMemoryStore


def detect_and_score(
    detector: Detector,
    volumes: InMemoryStore,
    classifiers: Sequence[Classifier],
    stores: Sequence[InMemoryStore],
    views: int | None = None,
    limit: int = LIMIT,
    lungs: Lungs | None = None,
    progress: bool = False,
) -> tuple[Candidates, Listed, Scored]:
    """Return the candidates of CTs, and their probabilities by each classifier, for `predict`.

    Args:
        detector: finds them.
        volumes: the CTs, as the detector takes them.
        classifiers: score them; the malignancy bundle last.
        stores: the CTs, as each classifier takes them; see `volumes_of`, which shares what is prepared alike.
        views: as `predict`.
        limit, lungs, progress: as `Detector.candidates`.

    Raises:
        ValueError: as `Detector.candidates`.
    """
    # the detector's part tells of short CTs
    score = Scorer(classifiers, stores, views, warn=False)
    parts = []
    for part in detector.each(volumes, limit, lungs=lungs, progress=progress):
        parts.append((part, score(part.table)))
    found = Candidates.joined([part for part, _ in parts], volumes.series_uids, detector.weights)
    values = [np.concatenate([np.zeros(0), *(scored[k] for _, scored in parts)]) for k in range(len(classifiers))]
    listed = Listed(
        found.table, found.table, diameter_mm=np.asarray(found.diameter_mm, np.float64), detection=detector.bundle,
        detection_weights=detector.weights, classifier_weight=detector.classifier_weight, without=found.empty,
    )  # fmt: skip
    return found, listed, Scored(stores, values)
