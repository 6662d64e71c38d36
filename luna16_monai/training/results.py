"""Ignite handlers that write what a run leaves: best epoch, results, history, settings."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Events
from monai.engines.workflow import Workflow
from numpy.typing import NDArray
from torch import nn

from luna16_monai import __version__
from luna16_monai.dataset.candidates import CandidateList
from luna16_monai.dataset.splits import Split
from luna16_monai.evaluation.by_data_set import scores_by_data_set
from luna16_monai.evaluation.calibration import calibrate, operating_points
from luna16_monai.evaluation.submission import evaluate
from luna16_monai.machine.files import atomic_write
from luna16_monai.machine.folder_lists import Folders, folder_list
from luna16_monai.machine.memory import keeps_freed_memory
from luna16_monai.networks.folding import folded_state
from luna16_monai.networks.nodule_detector import NoduleDetector
from luna16_monai.networks.nodule_net import NoduleNet
from luna16_monai.phantom.drawn import read_drawn
from luna16_monai.runs import folder
from luna16_monai.runs.results import write_results
from luna16_monai.runs.seen import Seen, read_seen, write_seen, write_seen_by_all
from luna16_monai.training.metrics import CandidateScores

SPLITS = ("train", "validation")
PACKAGES = ("torch", "monai", "pytorch-ignite", "numpy", "scipy", "SimpleITK", "blosc2")

FloatArray = NDArray[np.float64]

Part = Callable[[FloatArray], Mapping[str, Any]]
"""Gives a part of metrics.json from the (n,) probabilities of the validation list; NaN where one is not known."""


class ResultFiles:
    """Write the results of a validation epoch: ``metrics.json``, ``submission.csv`` and the tables of `write_results`.

    Args:
        output_dir: where to.
        scores: holds the predictions, and what they are scored against.
        candidates: the validation list.
        draws: of the bootstrap.
        seed: of the draws, and of the folds of the calibration.
        more: each gives a part of metrics.json, see `Part`; they come last.
        weights: that gave the probabilities, where they lie elsewhere; what they were trained on is written beside the
            submission too. None for those of ``output_dir``.
    """

    def __init__(
        self,
        output_dir: str,
        scores: CandidateScores,
        candidates: CandidateList,
        draws: int = 1000,
        seed: int = 0,
        more: Sequence[Part] = (),
        weights: str | None = None,
    ) -> None:
        self.folder, self.scores, self.candidates = folder.RunFolder(output_dir), scores, candidates
        self.draws, self.seed, self.more, self.weights = draws, seed, more, weights

    def attach(self, engine: Workflow) -> None:
        """Attach to the evaluator."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Workflow, **told: Any) -> None:
        """Write the files; ``told`` goes into metrics.json."""
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
            "thresholds": operating_points(probability, label, series) if label.any() else None,
            "candidates": len(rows),
            "positives": int(label.sum()),
            "series": series,
            **told,
            **self._parts(numbers, probability),
        }
        if data_sets := self.candidates.data_sets:
            metrics["by_data_set"] = scores_by_data_set(data_sets, marks, label, truth, self.draws, self.seed)
        self.folder.write_submission(rows, probability, calibrated)
        if self.weights is not None:
            write_seen_by_all(self.folder.submission_file, [read_seen(self.weights)])
        subsets = None if truth is None else truth.subsets
        write_results(self.folder.path, metrics, rows, probability, evaluation, label, calibrated, subsets)

    def _parts(self, numbers: NDArray[np.integer[Any]], probability: FloatArray) -> dict[str, Any]:
        """Return what each of ``more`` makes of the probabilities."""
        of_each = np.full(len(self.candidates), np.nan)
        of_each[numbers] = probability
        return {key: value for part in self.more for key, value in part(of_each).items()}


class BestEpoch:
    """Write ``model.pt`` and the files of `ResultFiles` whenever an epoch is the best so far.

    Args:
        output_dir: where to.
        network: its bare state dict becomes model.pt, batch norms behind convolutions folded into them.
        scores: holds the predictions of the validation epoch.
        candidates: the validation list.
        more: as of `ResultFiles`.
    """

    def __init__(
        self,
        output_dir: str,
        network: nn.Module,
        scores: CandidateScores,
        candidates: CandidateList,
        more: Sequence[Part] = (),
    ) -> None:
        self.network = network
        self.results = ResultFiles(output_dir, scores, candidates, more=more)

    def attach(self, engine: Workflow) -> None:
        """Attach to the evaluator."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Workflow) -> None:
        """Write the files, if this epoch is the best."""
        state = engine.state
        if state.best_metric_epoch != state.epoch:
            return
        with atomic_write(self.results.folder.weights) as stream:
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
        self.folder, self.split = folder.RunFolder(output_dir), split

    def attach(self, engine: Workflow) -> None:
        """Attach to the trainer, before the learning rate changes, or to the evaluator."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Workflow) -> None:
        """Add the epoch."""
        epoch = engine.state.epoch
        scores = {name: float(value) for name, value in engine.state.metrics.items() if math.isfinite(value)}
        if (optimizer := getattr(engine, "optimizer", None)) is not None:
            scores["learning_rate"] = float(optimizer.param_groups[0]["lr"])
        kept = [old for old in self.folder.read_history() if old.split != self.split or old.epoch < epoch]
        epochs = [*kept, folder.Epoch(epoch, self.split, scores)]
        self.folder.write_history(sorted(epochs, key=lambda one: (one.epoch, SPLITS.index(one.split))))


class RunRecord:
    """Write ``run.json`` when training starts, and beside ``model.pt`` what it has seen, see ``runs.seen``.

    Args:
        output_dir: where to.
        settings: of the run, see ``bundle.settings``.
        dataset_dir: the data folder, or several; the record names them, and says if the data are synthetic.
        split: the data.
        network: its parameters are counted.
        init_weights: the weights that the training starts from; what they had seen, the run has seen.
    """

    def __init__(
        self,
        output_dir: str,
        settings: Mapping[str, Any],
        dataset_dir: Folders,
        split: Split,
        network: nn.Module,
        init_weights: str | None = None,
    ) -> None:
        self.folder = folder.RunFolder(output_dir)
        kinds = [_kind(data) for data in folder_list(dataset_dir)]
        self.series, self.drawn, self.init_weights = split.train_series, read_drawn(dataset_dir), init_weights
        # of a run that goes on, what it wrote itself
        before = [self.folder, *([] if init_weights is None else [folder.RunFolder(Path(init_weights).parent)])]
        seen = {uid for one in before for uid in one.seen_series()}
        self.record = folder.RunRecord(
            settings=dict(settings),
            versions={
                "luna16_monai": __version__,
                **{name: version(name) for name in PACKAGES},
                "python": platform.python_version(),
            },
            device=torch.cuda.get_device_name() if settings.get("device") != "cpu" else "cpu",
            threads=torch.get_num_threads(),
            processes=idist.get_world_size(),
            network_def=network.arguments if isinstance(network, NoduleNet) else None,
            parameters=sum(parameter.numel() for parameter in network.parameters()),
            data=folder.DataRecord(
                name=", ".join(split.data_sets),
                kind=" and ".join(dict.fromkeys(kinds)),
                train=_sizes(split.train_series, split.train),
                validation=_sizes(split.validation_series, split.validation),
                train_series=tuple(split.train_series),
                validation_series=tuple(split.validation_series),
                test_series=tuple(split.test_series),
                candidates_sha256={"train": split.train.digest(), "validation": split.validation.digest()},
                data_sets=_each(split, kinds),
            ),
            seen_series=tuple(sorted({*split.train_series, *seen})),
            bf16_blocks=network.bfloat16_blocks if isinstance(network, NoduleNet | NoduleDetector) else (),
            keeps_memory=keeps_freed_memory(),
        )

    def attach(self, engine: Workflow) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Workflow) -> None:
        """Write the records, before there are weights: no model.pt stands there without."""
        weights = self.folder.weights
        write_seen(weights, Seen.of(self.series, self.drawn, read_seen(weights), read_seen(self.init_weights)))
        self.folder.write_record(self.record)


def _kind(data: Path) -> str:
    """Return what a data folder says of how it came about; without ``phantom.json`` it is ``real``."""
    phantom = data / "phantom.json"
    return str(json.loads(phantom.read_text(encoding="utf-8")).get("kind", "real")) if phantom.is_file() else "real"


def _each(split: Split, kinds: Sequence[str]) -> dict[str, Any] | None:
    """Return what is told of each of several data sets, by its name; None of one alone."""
    if len(split.data_sets) < 2:
        return None
    told: dict[str, Any] = {name: {"kind": kind} for name, kind in zip(split.data_sets, kinds, strict=True)}
    for part, series, candidates in (
        ("train", split.train_series, split.train),
        ("validation", split.validation_series, split.validation),
    ):
        for name, uids in split.of_each(series).items():
            rows = candidates.table.series_codes(uids) >= 0
            positives = int(candidates.labels[rows].sum())
            told[name][part] = {"series": len(uids), "candidates": int(rows.sum()), "positives": positives}
    return told


def _sizes(series_uids: Sequence[str], candidates: CandidateList) -> dict[str, int]:
    return {"series": len(series_uids), "candidates": len(candidates), "positives": int(candidates.labels.sum())}
