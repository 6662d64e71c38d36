"""The scores of an epoch over six scans, and the engine that has them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from point_tables import point_table

from luna16_monai.dataset.candidates import CandidateList
from luna16_monai.evaluation.submission import ReferenceStandard
from luna16_monai.training.metrics import CandidateScores

# six scans with a nodule of 6 mm at the origin each, a candidate on it and one 60 mm away
SERIES = tuple(f"1.{number}" for number in range(6))
ROWS = [(uid, x, 0.0, 0.0, float(x == 0)) for uid in SERIES for x in (0, 60)]
NODULES = [(uid, 0.0, 0.0, 0.0, 6.0) for uid in SERIES]


def scored(nodule_logit: float = 2.0, truth: bool = True) -> tuple[CandidateScores, CandidateList]:
    """The scores of an epoch in which nodules have this logit, the rest -1."""
    candidates = CandidateList(point_table(ROWS))
    against = ReferenceStandard(SERIES, point_table(NODULES), None, {uid: number for number, uid in enumerate(SERIES)})
    scores = CandidateScores(against, candidates) if truth else CandidateScores(None, candidates)
    scores.reset()
    labels = torch.tensor(candidates.labels)
    margin = torch.where(labels == 1, nodule_logit, -1.0)
    scores.update((torch.stack((torch.zeros(12), margin), 1), labels, torch.arange(12)))
    return scores, candidates


def engine(metrics: dict[str, float], epoch: int = 1, best: int = 1, **more: Any) -> Any:
    state = SimpleNamespace(metrics=metrics, epoch=epoch, best_metric_epoch=best, key_metric_name="cpm")
    return SimpleNamespace(state=state, **more)
