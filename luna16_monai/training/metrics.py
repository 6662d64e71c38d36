"""Ignite metrics of our own: scores over a whole epoch, from the loss to LUNA16's CPM."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from ignite.metrics import Metric
from monai.metrics import compute_average_precision, compute_confusion_matrix_metric, compute_roc_auc
from monai.utils import evenly_divisible_all_gather
from torch import Tensor, nn

from luna16_monai.dataset.candidates import CandidateList
from luna16_monai.evaluation import froc
from luna16_monai.evaluation.match import Match
from luna16_monai.evaluation.submission import ReferenceStandard

CONFUSION_METRICS = {
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "specificity": "specificity",
    "f1": "f1 score",
}


def classification_scores(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Score the predictions of a whole epoch; a nodule is predicted where its probability is 0.5 or more.

    Args:
        logits: (n, 2) float.
        labels: (n,) int, 1 is nodule.

    Returns:
        ``loss`` (mean cross-entropy), ``loss_positive`` and ``loss_negative`` (over one class), ``accuracy``,
        ``precision``, ``recall``, ``specificity``, ``f1``, ``roc_auc`` and ``average_precision``; NaN where a
        score is not defined, such as a rate of a class that is absent.
    """
    logits, labels = logits.double(), labels.long()
    losses = nn.functional.cross_entropy(logits, labels, reduction="none")
    positive = labels == 1
    scores = {
        "loss": losses.mean().item(),
        "loss_positive": losses[positive].mean().item(),
        "loss_negative": losses[~positive].mean().item(),
    }
    predicted = logits[:, 1] >= logits[:, 0]
    counts = torch.stack(
        [
            (predicted & positive).sum(),
            (predicted & ~positive).sum(),
            (~predicted & ~positive).sum(),
            (~predicted & positive).sum(),
        ]
    ).double()
    for name, monai_name in CONFUSION_METRICS.items():
        scores[name] = compute_confusion_matrix_metric(monai_name, counts).item()
    if positive.any() and not positive.all():
        # the difference of the logits ranks as the probability does, without its ties near 0 and 1
        margin = logits[:, 1] - logits[:, 0]
        scores["roc_auc"] = float(compute_roc_auc(margin, positive.long()))  # type: ignore[arg-type]
        scores["average_precision"] = float(compute_average_precision(margin, positive.long()))  # type: ignore[arg-type]
    else:
        scores["roc_auc"] = scores["average_precision"] = math.nan
    return scores


class CandidateScores(Metric):
    """Keep the epoch's predictions, gathered over ranks, and put ``classification_scores`` into the engine's metrics.

    Attach it under the name of the score that decides the best epoch; the others appear beside it. With a list of
    candidates each counts once, however often the ranks' samplers repeated it to share evenly; with a truth ``cpm`` is
    added, and where the candidates are of more than two kinds ``roc_auc_nodules``, the AUC without kind 0.

    Args:
        truth: what the CPM is scored against; None where there is none, or to be none.
        candidates: the list that candidate indices point into; needed with a truth. None for training, where candidates
            come as often as they are drawn.

    Attributes:
        logits: (n, 2) float32 on the CPU, after the epoch, sorted by candidate.
        labels: (n,) int64.
        candidates: (n,) int64, index into the dataset's list.
        match: of these candidates with the truth; None without one, and on ranks other than the first.

    Raises:
        ValueError: a truth without candidates.
    """

    def __init__(self, truth: ReferenceStandard | None = None, candidates: CandidateList | None = None) -> None:
        if truth is not None and candidates is None:
            raise ValueError("a truth without candidates: name the validation list, whose points are scored")
        self.truth, self.list = truth, candidates
        super().__init__(metrics_result_mode="flatten")

    @property
    def names(self) -> tuple[str, ...]:
        """The scores that ``compute`` gives."""
        known = classification_scores(torch.zeros(2, 2), torch.tensor([0, 1]))
        more = {"cpm": self.truth is not None, "roc_auc_nodules": self._has_kinds()}
        return (*known, *(name for name, given in more.items() if given))

    def reset(self) -> None:
        """Forget the epoch before."""
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []
        self.match: Match | None = None

    def iteration_completed(self, engine: Engine) -> None:
        """Keep one batch. The output has ``logits`` and ``label``, the batch has ``candidate``."""
        state: Any = engine.state
        output, batch = state.output, state.batch
        self.update((output["logits"], output["label"], batch["candidate"]))

    def update(self, output: tuple[Tensor, Tensor, Tensor]) -> None:
        """Keep logits (batch, 2), labels (batch,) and candidate indices (batch,)."""
        self._parts.append(tuple(part.detach().as_subclass(Tensor).cpu() for part in output))  # type: ignore[arg-type]

    def compute(self) -> dict[str, float]:
        """Gather the epoch on every rank, score it on the first, and tell the others."""
        if not self._parts:
            raise ValueError("no prediction was made in this epoch: is the dataset empty?")
        parts = [torch.cat(part) for part in zip(*self._parts, strict=True)]
        logits, labels, candidates = (evenly_divisible_all_gather(part, concat=True) for part in parts)
        self.candidates, order = candidates.sort(stable=True)
        if self.list is not None:
            first = torch.ones_like(self.candidates, dtype=torch.bool)
            first[1:] = self.candidates[1:] != self.candidates[:-1]
            self.candidates, order = self.candidates[first], order[first]
        self.logits, self.labels = logits[order], labels[order]
        if idist.get_world_size() == 1:
            return self._scores()
        scores = self._scores() if idist.get_rank() == 0 else dict.fromkeys(self.names, 0.0)
        told: Any = idist.broadcast(torch.tensor([scores[name] for name in self.names], dtype=torch.float64), src=0)
        return dict(zip(self.names, told.tolist(), strict=True))

    @property
    def probabilities(self) -> Tensor:
        """(n,) float64, the probability of a nodule, sorted by candidate."""
        return torch.softmax(self.logits.double(), dim=1)[:, 1]

    def state_dict(self) -> OrderedDict[str, Any]:
        """The part of the epoch that was seen, for a checkpoint in its middle.

        Of several ranks, which have to call it together, it is the parts that they all saw.
        """
        if idist.get_world_size() == 1:
            return OrderedDict(parts=[list(part) for part in self._parts])
        mine = [torch.cat(part) for part in zip(*self._parts, strict=True)]
        gathered = [evenly_divisible_all_gather(part, concat=False) for part in mine]
        return OrderedDict(ranks=[list(part) for part in zip(*gathered, strict=True)])

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on after what ``state_dict`` had seen, of several ranks each with its own part."""
        parts = state_dict["parts"] if idist.get_world_size() == 1 else [state_dict["ranks"][idist.get_rank()]]
        self._parts = [tuple(part) for part in parts]

    def _scores(self) -> dict[str, float]:
        scores = classification_scores(self.logits, self.labels)
        if self.truth is not None and self.list is not None:
            points = self.list.table.select(self.candidates.numpy())
            self.match = self.truth.match(points, self.probabilities.numpy())
            scores["cpm"] = froc.cpm(self.match)
        if self.list is not None and self._has_kinds():
            nodules = torch.from_numpy(self.list.kinds)[self.candidates] != 0
            scores["roc_auc_nodules"] = classification_scores(self.logits[nodules], self.labels[nodules])["roc_auc"]
        return scores

    def _has_kinds(self) -> bool:
        return self.list is not None and int(self.list.kinds.max(initial=0)) > 1


def key_metric(name: str, metric: CandidateScores) -> dict[str, Metric]:
    """Name the score that decides the best epoch, in the form MONAI's engines take.

    Raises:
        ValueError: there is no such score.
    """
    if name not in metric.names:
        absent = "; the log says why there is no CPM" if name == "cpm" else ""
        raise ValueError(f"key_metric {name} is none of the scores: choose one of {', '.join(metric.names)}{absent}")
    return {name: metric}


def lower_is_better(name: str) -> bool:
    """Whether the best epoch is the one with the lowest value of this score."""
    return name.startswith("loss")


def is_better(name: str) -> Callable[[float, float], bool]:
    """How MONAI's engines compare a score with the best so far; NaN is never better, and always beaten."""

    def compare(current: float, best: float) -> bool:
        if math.isnan(current) or math.isnan(best):
            return math.isnan(best) and not math.isnan(current)
        return current < best if lower_is_better(name) else current > best

    return compare
