"""What a run leaves: the best epoch, its results, the history and the record."""

from __future__ import annotations

import csv
import importlib.metadata
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Engine
from monai.bundle import ConfigParser
from point_tables import point_table
from small_scores import ROWS, SERIES, engine, scored

from luna16_monai.bundle import config as bundle
from luna16_monai.dataset.candidates import CandidateList
from luna16_monai.evaluation.match import match_marks
from luna16_monai.runs.folder import Epoch, RunFolder
from luna16_monai.runs.results import read_results
from luna16_monai.runs.seen import Seen, seen_beside, write_seen
from luna16_monai.training.results import BestEpoch, History, ResultFiles, RunRecord


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

    def test_result_files_of_other_weights_say_what_these_have_seen(self, tmp_path: Path) -> None:
        scores, candidates = scored()
        weights, output = tmp_path / "run" / "model.pt", tmp_path / "evaluation"
        write_seen(weights, Seen.of(["1.1"], {}))
        for given, known in ((str(weights), ["1.1"]), (str(tmp_path / "without_record.pt"), None)):
            ResultFiles(str(output), scores, candidates, weights=given)(engine(scores.compute()))
            seen = seen_beside(output / "submission.csv")
            assert (None if seen is None else seen.among(["1.1", "1.2"], {})) == known


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
            data_sets={"scans": SERIES},
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
        assert written["data"]["name"] == "scans"
        assert written["data"]["train"] == {"series": 4, "candidates": 12, "positives": 6}
        assert written["versions"]["torch"] == importlib.metadata.version("torch")
        assert RunFolder(tmp_path).seen_series() == SERIES[:4]

    def test_seen_series_of_a_folder_without_a_record_are_none(self, tmp_path: Path) -> None:
        assert RunFolder(tmp_path).seen_series() == ()

    def test_seen_series_of_a_damaged_record_are_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "run.json").write_text("{}")
        with pytest.raises(ValueError, match=r"run\.json does not tell what the run was trained on"):
            RunFolder(tmp_path).seen_series()
