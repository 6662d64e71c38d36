"""Ignite metrics and handlers of our own: scores over whole epochs, the best epoch's files, seeds, progress."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from monai.metrics import compute_average_precision, compute_confusion_matrix_metric, compute_roc_auc
from monai.utils import evenly_divisible_all_gather
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from luna16_monai.candidates import write_points
from luna16_monai.datalist import CandidateList, RatioSampler
from luna16_monai.files import atomic_write, write_json
from luna16_monai.seeds import seed_iteration

logger = logging.getLogger(__name__)

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
        scores["roc_auc"] = float(compute_roc_auc(margin, positive.long()))
        scores["average_precision"] = float(compute_average_precision(margin, positive.long()))
    else:
        scores["roc_auc"] = scores["average_precision"] = math.nan
    return scores


class CandidateScores(Metric):
    """Keep the epoch's predictions, gathered over ranks, and put ``classification_scores`` into the engine's metrics.

    Attach it under the name of the score that decides the best epoch; the others appear beside it.

    Attributes:
        logits: (n, 2) float32 on the CPU, after the epoch, sorted by candidate.
        labels: (n,) int64.
        candidates: (n,) int64, index into the dataset's list.
    """

    def __init__(self) -> None:
        super().__init__(metrics_result_mode="flatten")

    def reset(self) -> None:
        """Forget the epoch before."""
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def iteration_completed(self, engine: Engine) -> None:
        """Keep one batch. The output has ``logits`` and ``label``, the batch has ``candidate``."""
        output, batch = engine.state.output, engine.state.batch
        self.update((output["logits"], output["label"], batch["candidate"]))

    def update(self, output: tuple[Tensor, Tensor, Tensor]) -> None:
        """Keep logits (batch, 2), labels (batch,) and candidate indices (batch,)."""
        self._parts.append(tuple(part.detach().as_subclass(Tensor).cpu() for part in output))  # type: ignore[arg-type]

    def compute(self) -> dict[str, float]:
        """Gather and score the epoch."""
        if not self._parts:
            raise ValueError("no prediction was made in this epoch: is the dataset empty?")
        gathered = (evenly_divisible_all_gather(torch.cat(part)) for part in zip(*self._parts, strict=True))
        self.logits, self.labels, candidates = gathered
        self.candidates, order = candidates.sort(stable=True)
        self.logits, self.labels = self.logits[order], self.labels[order]
        return classification_scores(self.logits, self.labels)

    @property
    def probabilities(self) -> Tensor:
        """(n,) float64, the probability of a nodule, sorted by candidate."""
        return torch.softmax(self.logits.double(), dim=1)[:, 1]

    def state_dict(self) -> dict[str, Any]:
        """The part of the epoch that was seen, for a checkpoint in its middle."""
        return {"parts": [list(part) for part in self._parts]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on after what ``state_dict`` had seen."""
        self._parts = [tuple(part) for part in state_dict["parts"]]


def key_metric(name: str, metric: Metric) -> dict[str, Metric]:
    """Name the score that decides the best epoch, in the form MONAI's engines take.

    Raises:
        ValueError: there is no such score.
    """
    known = classification_scores(torch.zeros(2, 2), torch.tensor([0, 1]))
    if name not in known:
        raise ValueError(f"key_metric {name} is none of the scores: choose one of {', '.join(known)}")
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


class EpochSeeds:
    """Tie the order of an epoch to (seed, epoch) and what is random in an iteration to (seed, iteration).

    So neither the number of workers nor what ran before matters, and a run that goes on in the middle of an epoch
    sees what it would have seen.

    Args:
        sampler: draws the epoch.
        seed: of the whole run.
        batch_size: of the loader, on this rank.
    """

    def __init__(self, sampler: RatioSampler, seed: int, batch_size: int) -> None:
        self.sampler, self.seed, self.batch_size = sampler, seed, batch_size

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, before any other handler that draws numbers."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.start_epoch)
        engine.add_event_handler(Events.ITERATION_STARTED, self.start_iteration)

    def start_epoch(self, engine: Engine) -> None:
        """Move the sampler; Ignite asks the loader for an iterator after this event, on resume too."""
        done = engine.state.iteration % engine.state.epoch_length
        self.sampler.set_position(engine.state.epoch - 1, done * self.batch_size)

    def start_iteration(self, engine: Engine) -> None:
        """Seed torch for dropout."""
        seed_iteration(self.seed, engine.state.iteration)


class FiniteLoss:
    """Stop at the first loss that is NaN or infinite, and write which candidates were in the batch.

    Args:
        output_dir: ``nonfinite_loss.json`` is written there.
        candidates: the training list.
    """

    def __init__(self, output_dir: str, candidates: CandidateList) -> None:
        self.path = Path(output_dir) / "nonfinite_loss.json"
        self.candidates = candidates

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, before its checkpoints."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Check the loss.

        Raises:
            FloatingPointError: it is not finite.
        """
        loss = engine.state.output["loss"].item()
        if math.isfinite(loss):
            return
        rows = engine.state.batch["candidate"].tolist()
        table = self.candidates.table
        batch = [
            {"series_uid": table.series_uids[table.series[row]], "point_xyz": table.points_xyz[row].tolist()}
            for row in rows
        ]
        write_json(self.path, {"loss": str(loss), "iteration": engine.state.iteration, "batch": batch})
        raise FloatingPointError(
            f"the loss is {loss} in iteration {engine.state.iteration}: the batch is listed in {self.path}, the last "
            "checkpoint is from before it; look at those cutouts, or lower learning_rate"
        )


class BestEpoch:
    """Write ``model.pt``, ``metrics.json`` and ``submission.csv`` whenever an epoch is the best so far.

    Args:
        output_dir: where to.
        network: its bare state dict becomes model.pt.
        scores: holds the predictions of the validation epoch.
        candidates: the validation list.
    """

    def __init__(self, output_dir: str, network: nn.Module, scores: CandidateScores, candidates: CandidateList) -> None:
        self.output_dir, self.network, self.scores = Path(output_dir), network, scores
        self.table = candidates.table

    def attach(self, engine: Engine) -> None:
        """Attach to the evaluator."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the files, if this epoch is the best."""
        state = engine.state
        if state.best_metric_epoch != state.epoch:
            return
        with atomic_write(self.output_dir / "model.pt") as stream:
            torch.save({name: value.cpu() for name, value in self.network.state_dict().items()}, stream)
        rows = self.table.select(self.scores.candidates.numpy())
        write_points(
            self.output_dir / "submission.csv",
            [rows.series_uids[code] for code in rows.series],
            rows.points_xyz,
            self.scores.probabilities.numpy(),
            "probability",
        )
        chosen = {
            "epoch": state.epoch,
            "key_metric": state.key_metric_name,
            "chosen_on": "the validation split that it is reported on, so the figures are optimistic",
            "candidates": len(rows),
            "positives": int(rows.values.sum()),
            "series": len(set(rows.series.tolist())),
        }
        finite = {name: value if math.isfinite(value) else None for name, value in state.metrics.items()}
        write_json(self.output_dir / "metrics.json", {**finite, **chosen})


class Progress:
    """One progress display for terminals and log files: a line every few seconds, and one with the epoch's scores.

    Args:
        name: what is running.
        seconds: between two lines.
        scores: what the epoch's line shows.
        best: whether it also tells that the epoch is the best so far.
    """

    def __init__(
        self,
        name: str,
        seconds: float = 5.0,
        scores: Sequence[str] = ("loss", "loss_positive", "loss_negative", "roc_auc", "average_precision"),
        best: bool = False,
    ) -> None:
        self.name, self.seconds, self.scores, self.best = name, seconds, scores, best

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer or an evaluator, after its metrics."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.iteration)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.end)

    def start(self, engine: Engine) -> None:
        """Start the clock."""
        self.started = self.said = time.monotonic()
        self.seen = self.batches = 0

    def iteration(self, engine: Engine) -> None:
        """Say where the epoch is, if it is time to."""
        self.seen += len(engine.state.batch["candidate"])
        self.batches += 1
        now = time.monotonic()
        if now - self.said < self.seconds:
            return
        self.said = now
        state = engine.state
        length = state.epoch_length
        done = (state.iteration - 1) % length + 1
        rate = self.batches / (now - self.started)
        loss = f", loss {state.output['loss'].item():.4f}" if "loss" in state.output else ""
        logger.info(
            "%s: batch %d of %d%s, %.0f cutouts/s, %s left in this epoch",
            *(self._title(engine), done, length, loss, self.seen / (now - self.started)),
            _clock((length - done) / rate),
        )

    def end(self, engine: Engine) -> None:
        """Say the epoch's scores."""
        metrics = engine.state.metrics
        shown = ", ".join(f"{name} {metrics[name]:.4f}" for name in self.scores if name in metrics)
        best = ", best so far" if self.best and engine.state.best_metric_epoch == engine.state.epoch else ""
        logger.info("%s: %s in %s%s", self._title(engine), shown, _clock(time.monotonic() - self.started), best)

    def _title(self, engine: Engine) -> str:
        return f"epoch {engine.state.epoch} {self.name}"


class PrecisionRecallCurve:
    """Draw the epoch's precision-recall curve in TensorBoard.

    Args:
        log_dir: TensorBoard's folder.
        scores: holds the predictions of the epoch.
    """

    def __init__(self, log_dir: str, scores: CandidateScores) -> None:
        self.log_dir, self.scores = log_dir, scores

    def attach(self, engine: Engine) -> None:
        """Attach to the evaluator."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Add the curve."""
        with SummaryWriter(self.log_dir) as writer:
            writer.add_pr_curve(
                "precision_recall", self.scores.labels.numpy(), self.scores.probabilities.numpy(), engine.state.epoch
            )


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
