"""Ignite handlers that write what a run leaves: best epoch, results, history, settings."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Events
from monai.engines.workflow import Workflow
from torch import nn

from luna16_monai import __version__
from luna16_monai.dataset.candidates import CandidateList
from luna16_monai.dataset.splits import Split
from luna16_monai.evaluation.calibration import calibrate, thresholds
from luna16_monai.evaluation.submission import evaluate
from luna16_monai.machine.files import atomic_write, write_csv, write_json
from luna16_monai.networks.folding import folded_state
from luna16_monai.networks.nodule_net import NoduleNet
from luna16_monai.runs.history import HISTORY, read_history
from luna16_monai.runs.record import RUN
from luna16_monai.runs.results import write_results
from luna16_monai.tables.points import write_points
from luna16_monai.training.metrics import CandidateScores

SPLITS = ("train", "validation")
PACKAGES = ("torch", "monai", "pytorch-ignite", "numpy", "scipy", "SimpleITK", "blosc2")


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
        evaluation = None if truth is None else evaluate(marks, truth, self.draws, self.seed, self.scores.match)
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
            rows.row_series(),
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
        network: its bare state dict becomes model.pt, batch norms behind convolutions folded into them.
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
            torch.save(folded_state(self.network), stream)
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
        write_csv(self.path, columns, ([one.get(name, "") for name in columns] for one in rows))


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
            **({"network_def": network.arguments} if isinstance(network, NoduleNet) else {}),
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


def _sizes(series_uids: Sequence[str], candidates: CandidateList) -> dict[str, int]:
    return {"series": len(series_uids), "candidates": len(candidates), "positives": int(candidates.labels.sum())}
