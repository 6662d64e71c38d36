"""What a training of the detector needs beside that of a classifier: its metrics, its best epoch, clipped gradients."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from monai.engines.utils import IterationEvents
from monai.engines.workflow import Workflow
from monai.utils import evenly_divisible_all_gather
from torch import Tensor, nn

from luna16_monai.detection.crops import LabelledScans
from luna16_monai.detection.peaks import candidates_of
from luna16_monai.evaluation import froc
from luna16_monai.evaluation.by_data_set import scores_by_data_set
from luna16_monai.evaluation.calibration import operating_points
from luna16_monai.evaluation.ranks import NUMBERS, diameter_error, sensitivity_by_rank
from luna16_monai.evaluation.roc import average_precision, roc_auc
from luna16_monai.evaluation.submission import ReferenceStandard, evaluate
from luna16_monai.machine.files import atomic_write
from luna16_monai.runs.folder import RunFolder
from luna16_monai.runs.results import write_results
from luna16_monai.runs.seen import read_seen, write_seen_by_all
from luna16_monai.tables.hits import lies_on
from luna16_monai.tables.points import PointTable, write_points

LIMIT = 200
SCAN, POINT, PROBABILITY, DIAMETER = 0, slice(1, 4), 4, 5
COLUMNS = 6


class MeanLoss(Metric):
    """Put the mean loss of the crops of an epoch into the trainer's metrics, as ``loss``, over all ranks."""

    names = ("loss",)

    def __init__(self) -> None:
        super().__init__(metrics_result_mode="flatten")

    def reset(self) -> None:
        """Forget the epoch before."""
        self._sum, self._crops = 0.0, 0

    def iteration_completed(self, engine: Engine) -> None:
        """Keep one batch's loss."""
        state: Any = engine.state
        self.update((state.output["loss"], len(state.batch["candidate"])))

    def update(self, output: tuple[Tensor, int]) -> None:
        """Keep the mean loss of a batch, and how many crops it had."""
        loss, crops = output
        self._sum, self._crops = self._sum + float(loss.detach()) * crops, self._crops + crops

    def compute(self) -> dict[str, float]:
        """Return the mean over the epoch."""
        total: Any = idist.all_reduce(torch.tensor([self._sum, float(self._crops)], dtype=torch.float64))
        if not total[1]:
            raise ValueError("no crop was trained on in this epoch: is the dataset empty?")
        return {"loss": float(total[0] / total[1])}

    def state_dict(self) -> OrderedDict[str, Any]:
        """Return what was seen of the epoch, of all ranks, which have to call it together."""
        ranks: Any = idist.all_gather(torch.tensor([[self._sum, float(self._crops)]], dtype=torch.float64))
        return OrderedDict(ranks=ranks)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on after what ``state_dict`` had seen, each rank with its own part."""
        total, crops = state_dict["ranks"][idist.get_rank()].tolist()
        self._sum, self._crops = total, int(crops)


class DetectionScores(Metric):
    """Decode the output of each scan to candidates, gather them over ranks, and score them at the end of the epoch.

    Args:
        truth: what they are scored against.
        scans: gives geometry and lungs of each scan.
        series_uids: the validation series; a batch's ``candidate`` is an index into them.
        network: whose stride the output has.

    Attributes:
        table: the candidates after the epoch, by series, the most probable first; values are the probabilities.
        diameter_mm: (n,) of each.
    """

    names = ("cpm", *(f"sensitivity_at_{number}" for number in NUMBERS))

    def __init__(
        self, truth: ReferenceStandard, scans: LabelledScans, series_uids: Sequence[str], network: Any
    ) -> None:
        self.truth, self.scans, self.series_uids, self.stride = truth, scans, tuple(series_uids), network.stride_zyx
        super().__init__(metrics_result_mode="flatten")

    def reset(self) -> None:
        """Forget the epoch before."""
        self._parts: list[Tensor] = []

    def iteration_completed(self, engine: Engine) -> None:
        """Decode a batch: the output has ``pred``, the batch ``start`` and ``candidate``."""
        state: Any = engine.state
        self.update((state.output["pred"], state.batch["start"], state.batch["candidate"]))

    def update(self, output: tuple[Tensor, Tensor, Tensor]) -> None:
        """Keep the candidates of scans: output (n, 5, z, y, x), first voxels (n, 3) and scan indices (n,)."""
        for pred, start, scan in zip(*output, strict=True):
            uid = self.series_uids[int(scan)]
            volume, labels = self.scans.volume(uid), self.scans.labels(uid)
            maps = pred.detach().as_subclass(Tensor).float().cpu().numpy()
            found = candidates_of(maps, start.tolist(), self.stride, volume.geometry, volume.scan, labels.lungs, LIMIT)
            rows = np.column_stack([np.full(len(found), int(scan)), found.points_xyz, found.probability])
            self._parts.append(torch.from_numpy(np.column_stack([rows, found.diameter_mm])))

    def compute(self) -> dict[str, float]:
        """Gather the epoch on every rank, and score it."""
        mine = torch.cat([torch.zeros(0, COLUMNS, dtype=torch.float64), *self._parts])
        gathered = evenly_divisible_all_gather(mine, concat=True) if idist.get_world_size() > 1 else mine
        # a sampler that shares evenly gives some scans twice
        rows = np.unique(gathered.cpu().numpy(), axis=0)
        rows = rows[np.lexsort((-rows[:, PROBABILITY], rows[:, SCAN]))]
        self.diameter_mm = rows[:, DIAMETER]
        self.table = PointTable(
            "the detector's candidates", self.series_uids, rows[:, SCAN].astype(np.int32), rows[:, POINT],
            rows[:, PROBABILITY], np.arange(len(rows), dtype=np.int32) + 2,
        )  # fmt: skip
        if not len(rows):
            return dict.fromkeys(self.names, 0.0)
        match = self.truth.match(self.table, self.table.values)
        by_rank = sensitivity_by_rank(*self.truth.compared(self.table), match.n_scans, draws=0)
        at = by_rank["sensitivity_at_candidates"]
        return {"cpm": froc.cpm(match), **{f"sensitivity_at_{number}": at[str(number)] for number in NUMBERS}}


class DetectionResults:
    """Write the results of a validation epoch: ``metrics.json``, ``submission.csv`` and the tables of `write_results`.

    Args:
        output_dir: where to.
        scores: holds the candidates of the validation epoch.
        draws: of the bootstrap.
        weights: that found the candidates, where they lie elsewhere; what they were trained on is written beside the
            submission too. None for those of ``output_dir``.
    """

    def __init__(self, output_dir: str, scores: DetectionScores, draws: int = 1000, weights: str | None = None) -> None:
        self.folder, self.scores, self.draws, self.weights = RunFolder(output_dir), scores, draws, weights

    def attach(self, engine: Workflow) -> None:
        """Attach to the evaluator."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Workflow, **told: Any) -> None:
        """Write the files; ``told`` goes into metrics.json.

        Raises:
            ValueError: there is no candidate.
        """
        table, truth = self.scores.table, self.scores.truth
        if not len(table):
            raise ValueError("no scan of the validation has a candidate: were the weights trained?")
        evaluation = evaluate(table, truth, self.draws)
        marks, nodules = truth.compared(table)
        label = lies_on(table, truth.nodules).astype(np.int64)
        both = label.any() and not label.all()
        metrics = {
            **engine.state.metrics,
            **evaluation.scores,
            "roc_auc": float(roc_auc(table.values, label)[0]) if both else None,
            "average_precision": average_precision(table.values, label) if both else None,
            "calibration": {"skipped": "a detector's probability is not calibrated"},
            "thresholds": operating_points(table.values, label, len(self.scores.series_uids)) if label.any() else None,
            "positives": int(label.sum()),
            "diameter_error_mm": diameter_error(marks, nodules, self.scores.diameter_mm),
            "lost_to_lung_mask": lost_to_lungs(self.scores),
            "candidates": len(table),
            "series": len(self.scores.series_uids),
            **told,
        }
        if len(self.scores.scans.data_sets) > 1:
            shown = set(self.scores.series_uids)
            scored = {name: [uid for uid in uids if uid in shown] for name, uids in self.scores.scans.data_sets.items()}
            metrics["by_data_set"] = scores_by_data_set(scored, table, label, truth, self.draws)
        write_points(
            self.folder.submission_file, table.row_series(), table.points_xyz, table.values, "probability",
            diameter_mm=self.scores.diameter_mm,
        )  # fmt: skip
        if self.weights is not None:
            write_seen_by_all(self.folder.submission_file, [read_seen(self.weights)])
        write_results(self.folder.path, metrics, table, table.values, evaluation, label)


class BestDetection:
    """Write ``model.pt`` and the files of `DetectionResults` whenever an epoch is the best so far.

    Args:
        output_dir: where to.
        network: its bare state dict becomes model.pt.
        scores: holds the candidates of the validation epoch.
        draws: of the bootstrap.
    """

    def __init__(self, output_dir: str, network: nn.Module, scores: DetectionScores, draws: int = 1000) -> None:
        self.network, self.results = network, DetectionResults(output_dir, scores, draws)

    def attach(self, engine: Workflow) -> None:
        """Attach to the evaluator."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Workflow) -> None:
        """Write the files, if this epoch is the best and there is a candidate."""
        state = engine.state
        if state.best_metric_epoch != state.epoch or not len(self.results.scores.table):
            return
        with atomic_write(self.results.folder.weights) as stream:
            torch.save({name: value.cpu() for name, value in self.network.state_dict().items()}, stream)
        self.results(
            engine,
            epoch=state.epoch,
            key_metric=state.key_metric_name,
            chosen_on="the validation split that it is reported on, so the figures are optimistic",
        )


def lost_to_lungs(scores: DetectionScores) -> int:
    """Return how many of the nodules lie outside the lungs that were found, and so can't be detected."""
    nodules, lost = scores.truth.nodules, 0
    for uid in scores.series_uids:
        points = nodules.points_xyz[nodules.series_codes([uid]) == 0]
        lost += int((~scores.scans.labels(uid).lungs.contains(points)).sum())
    return lost


class ClipGradients:
    """Scale the gradients of an iteration down to a norm; attach it to the trainer.

    Args:
        network: whose gradients.
        norm: the largest that is left.
    """

    def __init__(self, network: nn.Module, norm: float = 5.0) -> None:
        self.network, self.norm = network, norm

    def attach(self, engine: Workflow) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Workflow) -> None:
        """Clip them, after mixed precision's scale is taken off."""
        trainer: Any = engine
        if trainer.amp and trainer.scaler is not None:
            trainer.scaler.unscale_(trainer.optimizer)
        nn.utils.clip_grad_norm_(self.network.parameters(), self.norm)
