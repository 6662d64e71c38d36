"""What a run writes beside its weights: the best epoch's files, the history, the record; and what stops it."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.engines.utils import IterationEvents
from point_tables import point_table

from luna16_monai.bundle import config as bundle
from luna16_monai.dataset.candidates import CandidateList
from luna16_monai.evaluation.match import match_marks
from luna16_monai.evaluation.submission import ReferenceStandard
from luna16_monai.networks.nodule_net import NoduleNet
from luna16_monai.runs.folder import Epoch, RunFolder
from luna16_monai.runs.results import read_results
from luna16_monai.training.handlers import FiniteLoss, HeadWarmUp
from luna16_monai.training.metrics import CandidateScores
from luna16_monai.training.results import BestEpoch, History, ResultFiles, RunRecord

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


class TestBestEpoch:
    def test_best_epoch_writes_everything_about_the_best(self, tmp_path: Path) -> None:
        scores, candidates = scored()
        network = torch.nn.Linear(2, 2)
        BestEpoch(str(tmp_path), network, scores, candidates)(engine(scores.compute(), epoch=3, best=3))
        assert set(torch.load(tmp_path / "model.pt", weights_only=True)) == {"weight", "bias"}
        metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
        assert (metrics["cpm"], metrics["cpm_ci95"], metrics["roc_auc"], metrics["epoch"]) == (1, [1, 1], 1, 3)
        assert (metrics["candidates"], metrics["positives"], metrics["series"], metrics["scans"]) == (12, 6, 6, 6)
        assert metrics["thresholds"]["best_f1"]["f1"] == 1
        assert metrics["calibration"]["cross_fitted_folds"] == 5
        assert "optimistic" in metrics["chosen_on"]
        rows = list(csv.DictReader((tmp_path / "submission.csv").open()))
        assert list(rows[0])[-2:] == ["probability", "calibrated_probability"]
        # the raw probability, sigmoid(2)
        assert float(rows[0]["probability"]) == pytest.approx(1 / (1 + math.exp(-2)))
        results = read_results(tmp_path)
        assert results.label is not None
        assert (results.label.sum(), results.series_uids) == (6, SERIES)

    def test_best_epoch_is_matched_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        matched = []

        def counted(*arguments: Any) -> Any:
            matched.append(arguments)
            return match_marks(*arguments)

        monkeypatch.setattr("luna16_monai.evaluation.submission.match_marks", counted)
        scores, candidates = scored()
        BestEpoch(str(tmp_path), torch.nn.Linear(2, 2), scores, candidates)(engine(scores.compute()))
        assert len(matched) == 1
        scores.reset()
        assert scores.match is None

    def test_best_epoch_leaves_the_files_of_a_better_epoch(self, tmp_path: Path) -> None:
        scores, candidates = scored()
        BestEpoch(str(tmp_path), torch.nn.Linear(2, 2), scores, candidates)(engine(scores.compute(), epoch=3, best=2))
        assert list(tmp_path.iterdir()) == []

    def test_result_files_without_a_truth_have_no_cpm(self, tmp_path: Path) -> None:
        scores, candidates = scored(truth=False)
        ResultFiles(str(tmp_path), scores, candidates)(engine(scores.compute()))
        assert "cpm" not in json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
        assert read_results(tmp_path).match is None

    def test_result_files_give_the_score_that_the_command_gives(self, tmp_path: Path) -> None:
        # nodules below the others: found at 1 false positive a scan
        scores, candidates = scored(nodule_logit=-2.0)
        metrics = scores.compute()
        ResultFiles(str(tmp_path), scores, candidates)(engine(metrics))
        assert metrics["cpm"] == pytest.approx(4 / 7)
        assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["cpm"] == metrics["cpm"]


class TestHistory:
    def test_history_has_a_row_for_each_epoch_and_split(self, tmp_path: Path) -> None:
        train, validation = (History(str(tmp_path), split) for split in ("train", "validation"))
        optimizer = SimpleNamespace(param_groups=[{"lr": 0.01}])
        for epoch in (1, 2):
            validation(engine({"loss": 0.5 / epoch, "cpm": 0.1 * epoch}, epoch))
            train(engine({"loss": 1.0 / epoch, "precision": math.nan}, epoch, optimizer=optimizer))
        assert (tmp_path / "history.csv").read_text(encoding="utf-8").splitlines() == [
            "epoch,split,loss,learning_rate,cpm",
            "1,train,1.0,0.01,",
            "1,validation,0.5,,0.1",
            "2,train,0.5,0.01,",
            "2,validation,0.25,,0.2",
        ]
        assert RunFolder(tmp_path).read_history() == [
            Epoch(1, "train", {"loss": 1.0, "learning_rate": 0.01}),
            Epoch(1, "validation", {"loss": 0.5, "cpm": 0.1}),
            Epoch(2, "train", {"loss": 0.5, "learning_rate": 0.01}),
            Epoch(2, "validation", {"loss": 0.25, "cpm": 0.2}),
        ]

    def test_history_of_a_run_that_goes_on_replaces_the_epochs_that_it_repeats(self, tmp_path: Path) -> None:
        for epoch, loss in ((1, 0.9), (2, 0.8), (3, 0.7), (2, 0.6)):
            History(str(tmp_path), "validation")(engine({"loss": loss}, epoch))
        history = RunFolder(tmp_path).read_history()
        assert [(row.epoch, row.scores["loss"]) for row in history] == [(1, 0.9), (2, 0.6)]

    def test_history_refuses_another_split(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="split 'test' of the history"):
            History(str(tmp_path), "test")

    def test_history_of_nothing_is_empty(self, tmp_path: Path) -> None:
        assert RunFolder(tmp_path).read_history() == []


class TestRunRecord:
    def test_run_record_tells_settings_versions_and_sizes_but_no_folder(self, tmp_path: Path) -> None:
        data = tmp_path / "somewhere" / "scans"
        data.mkdir(parents=True)
        (data / "phantom.json").write_text('{"kind": "synthetic"}')
        candidates = CandidateList(point_table(ROWS))
        split = SimpleNamespace(
            train_series=SERIES[:4],
            validation_series=SERIES[4:],
            test_series=("t",),
            train=candidates,
            validation=candidates,
        )
        config = {
            "imports": ["$import torch"],
            "dataset_dir": str(data),
            "device": "$torch.device('cpu')",
            "batch_size": 8,
            "twice": "$@batch_size * 2",
            "network_def": {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 2},
            "network": "$@network_def.to(@device)",
            "train": {"settings": "$bundle.settings()", "trainer": "$1 / 0"},
            "training": ["$@train#trainer.run()"],
        }
        parser = ConfigParser(config, globals={"bundle": bundle})
        settings = parser.get_parsed_content("train#settings")
        assert {key: value for key, value in settings.items() if key != "network_def"} == {
            "dataset_dir": "scans",
            "device": "cpu",
            "batch_size": 8,
            "twice": 16,
        }
        record = RunRecord(str(tmp_path), settings, str(data), split, torch.nn.Linear(2, 2))  # type: ignore[arg-type]
        record(Engine(lambda _, __: None))
        text = (tmp_path / "run.json").read_text(encoding="utf-8")
        written = json.loads(text)
        assert str(tmp_path) not in text
        assert (written["parameters"], written["device"], written["data"]["kind"]) == (6, "cpu", "synthetic")
        assert written["data"]["train"] == {"series": 4, "candidates": 12, "positives": 6}
        assert written["versions"]["torch"] == torch.__version__
        assert RunFolder(tmp_path).seen_series() == SERIES[:4]

    def test_seen_series_of_a_folder_without_a_record_are_none(self, tmp_path: Path) -> None:
        assert RunFolder(tmp_path).seen_series() == ()

    def test_seen_series_of_a_damaged_record_are_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "run.json").write_text("{}")
        with pytest.raises(ValueError, match=r"run\.json does not tell what the run was trained on"):
            RunFolder(tmp_path).seen_series()


class TestFiniteLoss:
    def test_finite_loss_stops_and_names_the_batch(self, tmp_path: Path) -> None:
        candidates = CandidateList(point_table(ROWS))
        losses = iter([0.5, math.nan])
        trainer = Engine(lambda _, __: {"loss": torch.tensor(next(losses))})
        FiniteLoss(str(tmp_path), candidates).attach(trainer)
        trainer.add_event_handler(Events.ITERATION_STARTED, lambda engine: None)
        batches = [{"candidate": torch.tensor([0, 1])}, {"candidate": torch.tensor([6, 2])}]
        with pytest.raises(FloatingPointError, match=r"the loss is nan in iteration 2"):
            trainer.run(batches, max_epochs=1)
        written = json.loads((tmp_path / "nonfinite_loss.json").read_text(encoding="utf-8"))
        # positives come first in the list: row 6 is the first negative, at 60 mm in scan 1.0
        assert written["batch"][0] == {"series_uid": "1.0", "point_xyz": [60.0, 0.0, 0.0]}
        assert written["iteration"] == 2


class TestHeadWarmUp:
    def test_first_twentieth_of_the_run_trains_the_head_alone(self) -> None:
        network = NoduleNet((8, 8, 8), channels=(2, 4), return_probabilities=False)
        network.fresh_head = True
        optimizer = torch.optim.AdamW(network.parameters(), lr=0.1, weight_decay=0.1)

        def moved(iteration: int) -> set[str]:
            before = {name: value.clone() for name, value in network.named_parameters()}
            optimizer.zero_grad()
            network(torch.randn(2, 1, 8, 8, 8) * 100)[:, 1].sum().backward()
            # 2 epochs of 20 iterations: the first two of 40
            state = SimpleNamespace(iteration=iteration, max_epochs=2, epoch_length=20)
            HeadWarmUp(network)(SimpleNamespace(state=state))  # type: ignore[arg-type]
            optimizer.step()
            return {name.split(".")[0] for name, value in network.named_parameters() if not value.equal(before[name])}

        assert moved(1) == moved(2) == {"head"}
        assert moved(3) == {"tail", "backbone", "head"}

    @pytest.mark.parametrize("fresh", [False, True])
    def test_head_that_goes_on_is_not_warmed_up(self, fresh: bool) -> None:
        network = NoduleNet((8, 8, 8), channels=(2, 4))
        network.fresh_head = fresh
        trainer = Engine(lambda *_: None)
        trainer.register_events(IterationEvents.BACKWARD_COMPLETED)
        handler = HeadWarmUp(network)
        handler.attach(trainer)  # type: ignore[arg-type]
        assert trainer.has_event_handler(handler, IterationEvents.BACKWARD_COMPLETED) == fresh
