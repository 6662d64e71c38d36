"""The search: its trials, a whole search that goes on, and the overlay that comes out."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_crossval import DETECTION
from small_search import RANGES, plan, search, written

from luna16_monai.bundle.folders import bundle_dir
from luna16_monai.cli import main as cli
from luna16_monai.cli.experiments import write_chart
from luna16_monai.experiments.search import Search, TunePlan
from luna16_monai.experiments.tune import drop_unfinished_line, read_trials, run_trial, scores, tune, write_trials

ROOT = Path(__file__).parents[2]
needs_optuna = pytest.mark.skipif(
    find_spec("optuna") is None, reason="Optuna is not installed: make test-all, or pip install '.[tune]'"
)
needs_ray = pytest.mark.skipif(
    find_spec("ray") is None or find_spec("optuna") is None,
    reason="Ray Tune and Optuna are not installed: make test-all, or pip install '.[ray,tune]'",
)


def trial(one: TunePlan, name: str, settings: dict[str, Any], rows: str) -> None:
    folder = one.trial_dir(name)
    folder.mkdir(parents=True)
    (folder / "history.csv").write_text("epoch,split,loss,cpm\n" + rows)
    drawn = {"learning_rate": settings["learning_rate"], "network_def#norm": "null", "augmentation": 1.0}
    told = {"trial": name, "drawn": drawn, "settings": settings}
    (folder.parent / f"{name}.json").write_text(json.dumps(told))


def test_run_trial_tells_each_epoch_once(tmp_path, monkeypatch):
    one, told = plan(tmp_path), []

    def run_job(job: Any, watch: Any) -> None:
        folder = one.trial_dir("t")
        folder.mkdir(parents=True)
        rows = "epoch,split,loss,cpm\n1,train,1,\n1,validation,1,0.25\n"
        (folder / "history.csv").write_text(rows)
        watch()
        watch()
        (folder / "history.csv").write_text(rows + "2,validation,1,0.5\n")

    monkeypatch.setattr("luna16_monai.experiments.tune.run_job", run_job)
    drawn = {"learning_rate": 0.001, "network_def#norm": "null", "augmentation": 1.0}
    run_trial(one, "t", drawn, {}, told.append)
    assert told == [{"epoch": 1, "cpm": 0.25}, {"epoch": 2, "cpm": 0.5}]


def test_write_trials_finds_the_best_epoch_of_the_best_trial(tmp_path):
    one = plan(tmp_path)
    trial(one, "a", {"learning_rate": 0.001, "network_def#norm": None}, "1,validation,1,0.2\n2,validation,1,0.1\n")
    trial(one, "b", {"learning_rate": 0.01, "network_def#norm": "BATCH"}, "1,validation,1,0.1\n2,validation,1,0.4\n")
    trial(one, "c", {"learning_rate": 0.02, "network_def#norm": None}, "")
    told = write_trials(one)
    assert (told["trials"], told["files"]) == (2, ["best.yaml", "trials.csv"])
    assert told["best"]["trial"] == "b"
    text = (tmp_path / "best.yaml").read_text(encoding="utf-8")
    assert text.startswith("# The best of 2 trials: cpm 0.4000 after epoch 2, on the scans that it was chosen on.\n")
    assert yaml.safe_load(text) == {"learning_rate": 0.01, "network_def#norm": "BATCH"}
    with (tmp_path / "trials.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["trial"], row["cpm"], row["best_epoch"], row["epochs"]) for row in rows] == [
        ("b", "0.4", "2", "2"),
        ("a", "0.2", "1", "2"),
    ]
    pytest.importorskip("matplotlib", reason="the plot needs the extra 'report'")
    assert write_chart(one, read_trials(one))
    picture = (tmp_path / "trials.svg").read_text(encoding="utf-8")
    assert all(f">{name}<" in picture for name in ("learning rate", "norm", "augmentation", "cpm"))


def test_write_trials_refuses_where_none_has_a_score(tmp_path):
    with pytest.raises(RuntimeError, match="no trial got a score: see the logs in"):
        write_trials(plan(tmp_path))


def fake_training(one: TunePlan, epochs: int = 4) -> Any:
    """A training that writes an epoch's score at each look: higher with a learning rate nearer to 1e-3."""

    def run_job(job: Any, watch: Any) -> None:
        words = job.commands[0]
        rate = float(words[words.index("--learning_rate") + 1])
        folder = Path(words[words.index("--output_dir") + 1])
        folder.mkdir(parents=True, exist_ok=True)
        rows = "epoch,split,loss,cpm\n"
        for epoch in range(1, epochs + 1):
            rows += f"{epoch},validation,1,{(1 - abs(math.log10(rate) + 3)) * epoch / epochs}\n"
            (folder / "history.csv").write_text(rows)
            watch()

    return run_job


@needs_optuna
def test_search_here_ends_poor_trials_early_and_goes_on_with_what_was_begun(
    phantom_dir, store_dir, tmp_path, monkeypatch
):
    one = TunePlan(bundle_dir(), phantom_dir, store_dir, tmp_path / "out", Search("cpm", 1, 2, RANGES), 12)
    train = fake_training(one)
    begun = []

    def dies(job: Any, watch: Any) -> None:
        begun.append(job.name)
        if len(begun) == 6:
            raise KeyboardInterrupt
        train(job, watch)

    monkeypatch.setattr("luna16_monai.experiments.tune.run_job", dies)
    with pytest.raises(KeyboardInterrupt):
        tune(one, progress=False)
    stopped = json.loads((one.output / "trials" / "00005.json").read_text(encoding="utf-8"))
    told = tune(one, progress=False)
    assert told["trials"] == 12
    # the sixth went on under its name, with what was drawn for it
    assert begun == [f"trial {number:05d}" for number in (*range(6), 5, *range(7, 13))]
    assert json.loads((one.output / "trials" / "00005.json").read_text(encoding="utf-8")) == stopped
    with (one.output / "trials.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    epochs = [int(row["epochs"]) for row in rows]
    assert max(epochs) == 4
    assert min(epochs) == 1
    assert sum(epochs) < 0.75 * 4 * 12
    # nothing is left to do, and another kind of search is refused
    begun.clear()
    assert tune(one, progress=False) == told
    assert begun == []
    with pytest.raises(ValueError, match=r"holds a search of other settings \(trials 12 instead of 13\)"):
        tune(replace(one, trials=13), progress=False)


@needs_optuna
def test_drop_unfinished_line_leaves_a_journal_that_goes_on(tmp_path):
    import optuna

    def study() -> Any:
        storage = JournalStorage(JournalFileBackend(str(journal)))
        return optuna.create_study(storage=storage, study_name="s", load_if_exists=True)

    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    journal = tmp_path / "optuna.journal"
    drop_unfinished_line(journal)
    assert not journal.exists()
    study().ask()
    whole = journal.read_bytes()
    drop_unfinished_line(journal)
    assert journal.read_bytes() == whole
    # a writer was killed in the middle of its line
    journal.write_bytes(whole + whole.splitlines()[-1][:30])
    drop_unfinished_line(journal)
    assert journal.read_bytes() == whole
    assert study().ask().number == 1
    assert len(study().trials) == 2


@needs_optuna
def test_search_here_shows_the_trials_and_the_best_score(phantom_dir, store_dir, tmp_path, monkeypatch, capsys):
    one = TunePlan(bundle_dir(), phantom_dir, store_dir, tmp_path / "out", Search("cpm", 1, 2, RANGES), 3)
    train = fake_training(one)

    def slow(job: Any, watch: Any) -> None:
        job.log.parent.mkdir(exist_ok=True)
        job.log.write_text(f"{job.name} trains\n", encoding="utf-8")
        time.sleep(0.3)
        train(job, watch)

    monkeypatch.setattr("luna16_monai.machine.jobs.SECONDS_BETWEEN_LOOKS", 0.05)
    monkeypatch.setattr("luna16_monai.experiments.tune.run_job", slow)
    told = tune(one)
    shown = capsys.readouterr().err
    assert ", 00000: trial 00000 trains" in shown
    assert "trial 00002 trains" in shown
    assert "3/3" in shown
    first = max(score for _, score in scores(one.trial_dir("00000"), "cpm"))
    assert f"best {first:.4f}; 00001: trial 00001 trains" in shown
    assert told["best"]["score"] >= first


@needs_optuna
def test_search_here_tells_of_a_failed_trial_and_tries_it_again(phantom_dir, store_dir, tmp_path, monkeypatch, caplog):
    one = TunePlan(bundle_dir(), phantom_dir, store_dir, tmp_path / "out", Search("cpm", 1, 2, RANGES), 3)
    train = fake_training(one)
    monkeypatch.setattr(
        "luna16_monai.experiments.tune.run_job",
        lambda job, watch: "no room" if "00001" in job.name else train(job, watch),
    )
    assert tune(one, progress=False)["trials"] == 2
    assert "a trial failed: no room" in caplog.text
    monkeypatch.setattr("luna16_monai.experiments.tune.run_job", train)
    assert tune(one, progress=False)["trials"] == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "where", [pytest.param([], id="here", marks=needs_optuna), pytest.param(["--ray", "local"], marks=needs_ray)]
)
def test_tune_from_the_command_line_goes_on_and_its_best_trains(where, phantom_dir, store_dir, tmp_path, capfd):
    output = tmp_path / "tune"
    ranges = {**RANGES, "network_def#channels": {"choice": [[2, 4, 4, 8]]}}
    tiny = ["max_epochs=2", "samples_per_epoch=60", "batch_size=4", "num_workers=0", "validation_stride=3"]
    tiny += ["shape_zyx=[16,16,16]", "checkpoint_iterations=1"]
    words = ["tune", "--data", phantom_dir, "--store", store_dir, "--output", output, "--trials", 2, "--json", *where]
    words += ["--search", written(tmp_path, search(search=ranges)), "--threads", 1, "--device", "cpu", "--set", *tiny]
    first = subprocess.Popen([sys.executable, "-W", "ignore", "-m", "luna16_monai", *map(str, words)], cwd=ROOT)
    deadline = time.monotonic() + 300
    while not list(output.glob("trials/*/checkpoints/iteration_*.pt")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.kill()
    first.wait()
    begun = {path: path.read_text(encoding="utf-8") for path in output.glob("trials/*.json")}
    capfd.readouterr()
    assert cli.main([str(word) for word in words]) == 0
    told = json.loads(capfd.readouterr().out)
    # what was begun goes on as it was drawn, and counts once
    assert told["trials"] == len(list(output.glob("trials/*.json"))) == 2
    assert {path: path.read_text(encoding="utf-8") for path in begun} == begun
    assert any("going on after iteration" in log.read_text(encoding="utf-8") for log in output.glob("logs/*.log"))
    assert {path.name for path in output.glob("*.*")} >= {"best.yaml", "trials.csv", "tune.json"}
    logs = {path: path.read_bytes() for path in (output / "logs").glob("*.log")}
    assert len(logs) == 2
    # all is done: the second call trains nothing, and says the same
    assert cli.main([str(word) for word in words]) == 0
    assert json.loads(capfd.readouterr().out) == told
    assert {path: path.read_bytes() for path in logs} == logs
    config = f"['{bundle_dir() / 'configs' / 'train.yaml'}','{output / 'best.yaml'}']"
    call = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "training", "--config_file", config]
    call += ["--dataset_dir", str(phantom_dir), "--store_dir", str(store_dir), "--output_dir", str(tmp_path / "best")]
    call += [word for text in tiny for word in (f"--{text.split('=')[0]}", text.split("=")[1])]
    assert subprocess.run([*call, "--device", "cpu"], cwd=ROOT, check=False).returncode == 0
    used = json.loads((tmp_path / "best" / "run.json").read_text(encoding="utf-8"))["settings"]
    best = told["best"]["settings"]
    assert used["learning_rate"] == best["learning_rate"]
    assert (used["network_def"]["norm"], used["network_def"]["channels"]) == (best["network_def#norm"], [2, 4, 4, 8])


@needs_optuna
@pytest.mark.slow
def test_tune_of_the_detector_tries_what_its_file_says(phantom_dir, store_dir, tmp_path):
    bundle = bundle_dir("nodule_detection")
    file = Search.read(bundle / "configs" / "tune.yaml")
    # the seconds of a test have no room for the large crops and networks
    ranges = {**file.ranges, "shape_zyx": {"choice": [[32, 48, 48]]}, "network_def#channels": {"choice": [[8, 16]]}}
    settings = {key: value for key, value in DETECTION.items() if key != "shape_zyx"} | {"validation_stride": "4"}
    one = TunePlan(bundle, phantom_dir, store_dir, tmp_path / "out", replace(file, ranges=ranges), 2, settings)
    told = tune(one, progress=False)
    assert (told["metric"], told["trials"]) == ("cpm", 2)
    assert 0 <= told["best"]["score"] <= 1
    best = yaml.safe_load((one.output / "best.yaml").read_text(encoding="utf-8"))
    assert set(best) == set(ranges)
    assert best["ratio"] in file.ranges["ratio"]["choice"]
