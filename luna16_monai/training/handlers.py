"""Ignite handlers that watch or guide a run: a fresh head, progress, finite losses, profile, precision-recall curve."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ignite.distributed as idist
import torch
from ignite.engine import Events
from monai.engines.utils import IterationEvents
from monai.engines.workflow import Workflow
from monai.utils import evenly_divisible_all_gather
from torch import nn

from luna16_monai.dataset.candidates import CandidateList
from luna16_monai.machine.files import write_json
from luna16_monai.networks.nodule_net import NoduleNet
from luna16_monai.training.metrics import CandidateScores

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)


class FiniteLoss:
    """Stop at the first loss that is NaN or infinite, on all ranks, and write which candidates were in the batch.

    Args:
        output_dir: ``nonfinite_loss.json`` is written there.
        candidates: the training list.
    """

    def __init__(self, output_dir: str, candidates: CandidateList) -> None:
        self.path = Path(output_dir) / "nonfinite_loss.json"
        self.candidates = candidates

    def attach(self, engine: Workflow) -> None:
        """Attach to the trainer, before its checkpoints."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Workflow) -> None:
        """Check the loss.

        Raises:
            FloatingPointError: it is not finite.
        """
        several = idist.get_world_size() > 1
        own, rows = engine.state.output["loss"].item(), engine.state.batch["candidate"]
        losses: Any = idist.all_gather(own) if several else [own]
        wrong = [rank for rank, loss in enumerate(losses) if not math.isfinite(loss)]
        if not wrong:
            return
        batches = evenly_divisible_all_gather(rows, concat=False) if several else [rows]
        rows = torch.cat([batches[rank] for rank in wrong])
        loss, table = losses[wrong[0]], self.candidates.table
        batch = [
            {"series_uid": table.series_uids[table.series[row]], "point_xyz": table.points_xyz[row].tolist()}
            for row in rows.tolist()
        ]
        if idist.get_rank() == 0:
            write_json(self.path, {"loss": str(loss), "iteration": engine.state.iteration, "batch": batch})
        raise FloatingPointError(
            f"the loss is {loss} in iteration {engine.state.iteration}: the batch is listed in {self.path}, the last "
            "checkpoint is from before it; look at those cutouts, or lower learning_rate"
        )


class HeadWarmUp:
    """Train the head alone at first, where it starts fresh on a backbone that was trained before.

    Gradients of a head that knows nothing would spoil that backbone. They are dropped for all but the head in the first
    twentieth of the run, half of the rate's warm-up; with batch norms their running statistics follow the data.

    Args:
        network: as `load_initial_weights` left it: its ``fresh_head`` says whether this is needed.
    """

    SHARE = 20

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def attach(self, engine: Workflow) -> None:
        """Attach to the trainer."""
        if isinstance(self.network, NoduleNet) and self.network.fresh_head:
            logger.info("the head is trained alone in the first twentieth of the run")
            engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Workflow) -> None:
        """Drop the gradients, if it is early enough."""
        state = engine.state
        if state.iteration * self.SHARE > state.max_epochs * state.epoch_length:
            return
        for name, parameter in self.network.named_parameters():
            if not name.startswith("head."):
                parameter.grad = None


class Progress:
    """One progress display for terminals and log files: a line every few seconds, and one with the epoch's scores.

    Args:
        name: what is running.
        seconds: between two lines.
        scores: what the epoch's line shows.
        best: whether it also says that the epoch is the best so far.
    """

    def __init__(
        self,
        name: str,
        seconds: float = 5.0,
        scores: Sequence[str] = (
            "loss",
            "loss_positive",
            "loss_negative",
            "roc_auc",
            "average_precision",
            "cpm",
            "roc_auc_nodules",
        ),
        best: bool = False,
    ) -> None:
        self.name, self.seconds, self.scores, self.best = name, seconds, scores, best

    def attach(self, engine: Workflow) -> None:
        """Attach to a trainer or an evaluator, after its metrics."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.iteration)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.end)

    def start(self, engine: Workflow) -> None:
        """Start the clock."""
        self.started = self.said = time.monotonic()
        self.seen = self.batches = 0

    def iteration(self, engine: Workflow) -> None:
        """Say where the epoch is, if it is time to."""
        self.seen += len(engine.state.batch["candidate"]) * idist.get_world_size()
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

    def end(self, engine: Workflow) -> None:
        """Say the epoch's scores."""
        metrics = engine.state.metrics
        shown = ", ".join(f"{name} {metrics[name]:.4f}" for name in self.scores if name in metrics)
        best = ", best so far" if self.best and engine.state.best_metric_epoch == engine.state.epoch else ""
        logger.info("%s: %s in %s%s", self._title(engine), shown, _clock(time.monotonic() - self.started), best)

    def _title(self, engine: Workflow) -> str:
        return f"epoch {engine.state.epoch} {self.name}"


class Profile:
    """Write torch's profile of three iterations, after five, as a trace for chrome://tracing or Perfetto.

    Args:
        output_dir: the trace goes to ``profile/trace.json`` in it.
        enabled: otherwise nothing is done.
    """

    def __init__(self, output_dir: str, enabled: bool) -> None:
        self.path, self.enabled = Path(output_dir) / "profile" / "trace.json", enabled

    def attach(self, engine: Workflow) -> None:
        """Attach to the trainer."""
        if self.enabled:
            engine.add_event_handler(Events.STARTED, self.start)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self.iteration)
            engine.add_event_handler(Events.COMPLETED, self.end)

    def start(self, _: Workflow) -> None:
        """Begin to count iterations."""
        schedule = torch.profiler.schedule(wait=2, warmup=3, active=3, repeat=1)
        self.profiler = torch.profiler.profile(schedule=schedule, on_trace_ready=self.write, record_shapes=True)
        self.profiler.start()

    def iteration(self, _: Workflow) -> None:
        """One iteration is done."""
        self.profiler.step()

    def end(self, _: Workflow) -> None:
        """Write what there is, of a run of fewer iterations too."""
        self.profiler.stop()

    def write(self, profiler: torch.profiler.profile) -> None:
        """Write the trace."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(self.path))
        logger.info("profile in %s", self.path)


class PrecisionRecallCurve:
    """Draw the epoch's precision-recall curve in TensorBoard.

    Args:
        writer: of TensorBoard's file, shared with the epoch's other handlers.
        scores: holds the predictions of the epoch.
    """

    def __init__(self, writer: SummaryWriter, scores: CandidateScores) -> None:
        self.writer, self.scores = writer, scores

    def attach(self, engine: Workflow) -> None:
        """Attach to the evaluator."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Workflow) -> None:
        """Add the curve."""
        self.writer.add_pr_curve(
            "precision_recall", self.scores.labels.numpy(), self.scores.probabilities.numpy(), engine.state.epoch
        )
        self.writer.flush()


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
