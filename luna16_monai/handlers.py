"""Ignite handlers of our own: what a run writes (best epoch, results, history, settings), its seeds, its progress."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Events
from monai.engines.workflow import Workflow
from monai.utils import evenly_divisible_all_gather
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from luna16_monai import __version__, ranks
from luna16_monai.candidates import write_points
from luna16_monai.datalist import CandidateList, RatioSampler, Split
from luna16_monai.evaluation import calibrate, evaluate, thresholds
from luna16_monai.files import atomic_write, write_json
from luna16_monai.results import write_results
from luna16_monai.scores import CandidateScores
from luna16_monai.seeds import seed_iteration

logger = logging.getLogger(__name__)

HISTORY, RUN = "history.csv", "run.json"
SPLITS = ("train", "validation")
PACKAGES = ("torch", "monai", "pytorch-ignite", "numpy", "scipy", "SimpleITK", "blosc2")


class EpochSeeds:
    """Tie the order of an epoch to (seed, epoch) and what is random in an iteration to (seed, iteration).

    So neither the number of workers nor what ran before matters, and a run that goes on in the middle of an epoch
    sees what it would have seen. Of several ranks each draws its own numbers.

    Args:
        sampler: draws the epoch.
        seed: of the whole run.
        batch_size: of the loader, on this rank.
    """

    def __init__(self, sampler: RatioSampler, seed: int, batch_size: int) -> None:
        self.sampler, self.seed, self.batch_size = sampler, seed, batch_size

    def attach(self, engine: Workflow) -> None:
        """Attach to the trainer, before any other handler that draws numbers."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.start_epoch)
        engine.add_event_handler(Events.ITERATION_STARTED, self.start_iteration)

    def start_epoch(self, engine: Workflow) -> None:
        """Move the sampler; Ignite asks the loader for an iterator after this event, on resume too."""
        done = engine.state.iteration % engine.state.epoch_length
        self.sampler.set_position(engine.state.epoch - 1, done * self.batch_size)

    def start_iteration(self, engine: Workflow) -> None:
        """Seed torch for dropout."""
        seed_iteration(self.seed, engine.state.iteration, idist.get_rank())


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


class SharedBuffers:
    """Validate the same network on every rank: rank 0's, with the running means of its batch normalisations.

    DistributedDataParallel hands those on at the start of an iteration, so after the last one the ranks' differ.

    Args:
        network: is changed in place.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def attach(self, engine: Workflow) -> None:
        """Attach to the evaluator."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, _: Workflow) -> None:
        """Take rank 0's buffers."""
        ranks.copy_buffers(self.network)


class ResultFiles:
    """Write the results of a validation epoch: ``metrics.json``, ``submission.csv`` and the tables of `write_results`.

    Args:
        output_dir: where to.
        scores: holds the predictions, and what they are scored against.
        candidates: the validation list.
        draws: of the bootstrap.
        seed: of the draws, and of the folds of the calibration.
    """

    def __init__(
        self, output_dir: str, scores: CandidateScores, candidates: CandidateList, draws: int = 1000, seed: int = 0
    ) -> None:
        self.output_dir, self.scores, self.candidates = Path(output_dir), scores, candidates
        self.draws, self.seed = draws, seed

    def attach(self, engine: Workflow) -> None:
        """Attach to the evaluator."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Workflow, **more: Any) -> None:
        """Write the files; ``more`` goes into metrics.json."""
        numbers = self.scores.candidates.numpy()
        rows, label = self.candidates.table.select(numbers), self.candidates.labels[numbers]
        probability = self.scores.probabilities.numpy()
        truth = self.scores.truth
        marks = replace(rows, values=probability, source="the validation candidates")
        evaluation = None if truth is None else evaluate(marks, truth, self.draws, self.seed)
        calibrated, calibration = calibrate(probability, label, rows.series, self.seed)
        series = len(set(rows.series.tolist())) if truth is None else len(truth.series_uids)
        metrics = {
            **engine.state.metrics,
            **({} if evaluation is None else evaluation.scores),
            "calibration": calibration,
            "thresholds": thresholds(probability, label, series) if label.any() else None,
            "candidates": len(rows),
            "positives": int(label.sum()),
            "series": series,
            **more,
        }
        write_points(
            self.output_dir / "submission.csv",
            [rows.series_uids[code] for code in rows.series],
            rows.points_xyz,
            probability,
            "probability",
            **({} if calibrated is None else {"calibrated_probability": calibrated}),
        )
        subsets = None if truth is None else truth.subsets
        write_results(self.output_dir, metrics, rows, probability, evaluation, label, calibrated, subsets)


class BestEpoch:
    """Write ``model.pt`` and the files of `ResultFiles` whenever an epoch is the best so far.

    Args:
        output_dir: where to.
        network: its bare state dict becomes model.pt.
        scores: holds the predictions of the validation epoch.
        candidates: the validation list.
    """

    def __init__(self, output_dir: str, network: nn.Module, scores: CandidateScores, candidates: CandidateList) -> None:
        self.output_dir, self.network = Path(output_dir), network
        self.results = ResultFiles(output_dir, scores, candidates)

    def attach(self, engine: Workflow) -> None:
        """Attach to the evaluator."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Workflow) -> None:
        """Write the files, if this epoch is the best."""
        state = engine.state
        if state.best_metric_epoch != state.epoch:
            return
        with atomic_write(self.output_dir / "model.pt") as stream:
            torch.save({name: value.cpu() for name, value in self.network.state_dict().items()}, stream)
        self.results(
            engine,
            epoch=state.epoch,
            key_metric=state.key_metric_name,
            chosen_on="the validation split that it is reported on, so the figures are optimistic",
        )


class History:
    """Keep every epoch's scores in ``history.csv``, one row for each epoch and split.

    A run that goes on writes the rows of the epochs that it repeats anew.

    Args:
        output_dir: where to.
        split: ``train`` or ``validation``.

    Raises:
        ValueError: another split.
    """

    def __init__(self, output_dir: str, split: str) -> None:
        if split not in SPLITS:
            raise ValueError(f"split {split!r} of the history: name one of {', '.join(SPLITS)}")
        self.path, self.split = Path(output_dir) / HISTORY, split

    def attach(self, engine: Workflow) -> None:
        """Attach to the trainer, before the learning rate changes, or to the evaluator."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Workflow) -> None:
        """Add the epoch."""
        epoch = engine.state.epoch
        known = {name: value for name, value in engine.state.metrics.items() if math.isfinite(value)}
        row: dict[str, Any] = {"epoch": epoch, "split": self.split, **known}
        if (optimizer := getattr(engine, "optimizer", None)) is not None:
            row["learning_rate"] = optimizer.param_groups[0]["lr"]
        kept = [old for old in read_history(self.path) if old["split"] != self.split or int(old["epoch"]) < epoch]
        rows = sorted([*kept, row], key=lambda one: (int(one["epoch"]), SPLITS.index(one["split"])))
        columns = list(dict.fromkeys(name for one in rows for name in one))
        with atomic_write(self.path) as raw, io.TextIOWrapper(raw, "utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, columns, restval="")
            writer.writeheader()
            writer.writerows(rows)


def read_history(path: Path) -> list[dict[str, str]]:
    """The rows of a ``history.csv``; none where there is no such file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


class RunRecord:
    """Write ``run.json`` when training starts: settings, versions, and the sizes of what is trained on.

    Args:
        output_dir: where to.
        settings: of the run, see ``bundle.settings``.
        dataset_dir: the data folder; the record says if its data are synthetic.
        split: the data.
        network: its parameters are counted.
    """

    def __init__(
        self, output_dir: str, settings: Mapping[str, Any], dataset_dir: str, split: Split, network: nn.Module
    ) -> None:
        self.path = Path(output_dir) / RUN
        data = Path(dataset_dir)
        about = json.loads(phantom.read_text(encoding="utf-8")) if (phantom := data / "phantom.json").is_file() else {}
        self.record = {
            "settings": dict(settings),
            "versions": {
                "luna16_monai": __version__,
                **{name: version(name) for name in PACKAGES},
                "python": platform.python_version(),
            },
            "device": torch.cuda.get_device_name() if settings.get("device") != "cpu" else "cpu",
            "threads": torch.get_num_threads(),
            "processes": idist.get_world_size(),
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "data": {
                "name": data.name,
                "kind": about.get("kind", "real"),
                "train": _sizes(split.train_series, split.train),
                "validation": _sizes(split.validation_series, split.validation),
                "train_series": list(split.train_series),
                "validation_series": list(split.validation_series),
                "test_series": list(split.test_series),
            },
        }

    def attach(self, engine: Workflow) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Workflow) -> None:
        """Write the record."""
        write_json(self.path, self.record)


def trained_series(run_dir: Path | str) -> tuple[str, ...]:
    """The series that a run was trained on, as its ``run.json`` tells; none where there is no such file.

    Raises:
        ValueError: the file is damaged.
    """
    path = Path(run_dir) / RUN
    if not path.is_file():
        return ()
    try:
        return tuple(json.loads(path.read_text(encoding="utf-8"))["data"]["train_series"])
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"{path} does not tell what the run was trained on: train it anew, or evaluate its model.pt by "
            "--init_weights with a run_dir that has no run.json"
        ) from error


def trained_beside(weights: Path | str | None) -> tuple[str, ...]:
    """The series that weights were trained on, as far as a ``run.json`` beside them tells.

    Raises:
        ValueError: that file is damaged.
    """
    return () if weights is None else trained_series(Path(weights).parent)


def _sizes(series_uids: Sequence[str], candidates: CandidateList) -> dict[str, int]:
    return {"series": len(series_uids), "candidates": len(candidates), "positives": int(candidates.labels.sum())}


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
