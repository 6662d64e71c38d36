"""MLflow: what a training writes to a real server, once, on rank 0 alone, found again when it goes on."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigWorkflow

from luna16_monai.bundle.folders import bundle_dir
from luna16_monai.training import tracking
from luna16_monai.training.tracking import default_store, run_name

ROOT = Path(__file__).parents[2]
TRAIN_YAML = ROOT / "bundles" / "nodule_classification" / "configs" / "train.yaml"
needs_mlflow = pytest.mark.skipif(
    find_spec("mlflow") is None, reason="MLflow is not installed: make test-all, or pip install '.[mlflow]'"
)


def train(settings: dict[str, Any], processes: int = 1, **environment: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-W", "ignore"]
    files = [str(TRAIN_YAML)]
    if processes > 1:
        words += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        files.append(str(TRAIN_YAML.with_name("multi_gpu_train.yaml")))
    words += ["-m", "monai.bundle", "run", "training", "--config_file", str(files)]
    for key, value in settings.items():
        words += [f"--{key}", str(value)]
    return subprocess.run(
        words,
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=ROOT,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.fixture
def small(phantom_dir: Path, store_dir: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "tracking": "mlflow",
        "dataset_dir": phantom_dir,
        "store_dir": store_dir,
        "output_dir": tmp_path / "runs" / "one",
        "device": "cpu",
        "max_epochs": 2,
        "samples_per_epoch": 8,
        "batch_size": 4,
        "num_workers": 0,
        "validation_stride": 3,
        "shape_zyx": "[16,16,16]",
    }


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a real MLflow server on this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    words = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    words += ["--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}"]
    words += ["--artifacts-destination", str(tmp_path / "artifacts")]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "mlflow", *words], stdout=log, stderr=log, env=environment)
    try:
        deadline = time.monotonic() + 240
        while True:
            try:
                with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
                    assert answer.read() == b"OK"
                break
            except OSError:
                assert process.poll() is None, (tmp_path / "server.log").read_text(encoding="utf-8")[-2000:]
                assert time.monotonic() < deadline
                time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait()


def runs(address: str) -> list[Any]:
    import mlflow

    tracking.disable_telemetry()
    client = mlflow.MlflowClient(address)
    experiment = client.get_experiment_by_name("nodule_classification")
    return client.search_runs([experiment.experiment_id])


def test_run_name_tells_folders_apart_and_no_place(tmp_path):
    one, other = (run_name(str(tmp_path / name / "fold_3")) for name in ("a", "b"))
    assert one.startswith("a/fold_3 ")
    assert one.split()[1] != other.split()[1]
    assert str(tmp_path) not in one
    assert run_name(str(tmp_path / "a" / "fold_3")) == one


def test_default_store_lies_below_the_runs_unless_a_server_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("LUNA16_RUNS", str(tmp_path / "runs"))
    assert default_store() == f"sqlite:///{tmp_path}/runs/mlruns.db"
    assert (tmp_path / "runs").is_dir()
    monkeypatch.setenv("LUNA16_RUNS", str(tmp_path / "other"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    default_store()
    assert not (tmp_path / "other").exists()


def handlers() -> dict[str, Any]:
    """A config as MONAI leaves it after --tracking mlflow."""
    added = {"_target_": "MLFlowHandler", "_disabled_": "@is_not_rank0", "artifacts": "@save_execute_config"}
    return {"train": {"handlers": [{"_target_": "X"}, dict(added)]}, "validate": {"handlers": [dict(added)]}}


@pytest.mark.parametrize(
    ("bundle", "name"),
    [
        ("nodule_classification", "train.yaml"),
        ("nodule_classification", "evaluate.yaml"),
        ("malignancy_classification", "train.yaml"),
        ("malignancy_classification", "evaluate.yaml"),
        ("nodule_detection", "train.yaml"),
    ],
)
def test_each_engine_of_a_config_is_tracked_once(monkeypatch, bundle, name):
    monkeypatch.setattr(tracking, "require", lambda *_: None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    kind = "train" if name == "train.yaml" else "infer"
    path = bundle_dir(bundle) / "configs" / name
    flow = ConfigWorkflow(str(path), workflow_type=kind, logging_file=False, tracking="mlflow")
    flow.parser["initialize"] = ["$[start.build_on(), start.tracking.adapt()]"]
    flow.initialize()
    config: Any = flow.parser.config
    lists = {
        "train": config["train"]["handlers"],
        "validate": config["validate"]["handlers"],
        "evaluator": config.get("handlers", []),
    }
    found = {place: [one.get("prefix") for one in many if "MLFlow" in str(one) or "Tracking" in str(one)]
             for place, many in lists.items()}  # fmt: skip
    # evaluate.yaml builds on train.yaml, whose engines it holds and does not run
    own = {"evaluator": ["evaluation"]} if name == "evaluate.yaml" else {"evaluator": []}
    assert found == {"train": ["train"], "validate": ["validation"], **own}


def test_adapt_leaves_a_config_without_mlflow_alone():
    config = {"train": {"handlers": [{"_target_": "X"}]}, "validate": {}}
    assert not tracking._adapted(config)
    assert config == {"train": {"handlers": [{"_target_": "X"}]}, "validate": {}}


def test_adapt_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ModuleNotFoundError, match=r"--tracking mlflow needs it: pip install 'luna16_monai\[mlflow\]'"):
        tracking._adapted(handlers())


@pytest.mark.parametrize("rank", [0, 1])
def test_adapted_handlers_stay_off_on_other_ranks(monkeypatch, rank):
    from monai.bundle import ConfigParser
    from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS

    monkeypatch.setattr(tracking, "require", lambda *_: None)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    config = handlers()
    assert tracking._adapted(config)
    adapted = config["train"]["handlers"][1]
    assert (adapted["_target_"], adapted["prefix"]) == ("luna16_monai.training.tracking.Tracking", "train")
    parts = {"imports": ["$import torch"], "is_not_rank0": DEFAULT_MLFLOW_SETTINGS["configs"]["is_not_rank0"]}
    silent = {"_target_": "dict", "_disabled_": adapted["_disabled_"]}
    built = ConfigParser({**parts, "handlers": [silent]}).get_parsed_content("handlers")
    assert len(built) == (rank == 0)


@needs_mlflow
@pytest.mark.slow
def test_training_writes_parameters_scores_and_files_to_a_server(server, small):
    done = train(small, MLFLOW_TRACKING_URI=server)
    assert done.returncode == 0, done.stderr[-2000:]
    (run,) = runs(server)
    assert (run.info.status, run.info.run_name) == ("FINISHED", run_name(str(small["output_dir"])))
    params = run.data.params
    assert (params["max_epochs"], params["batch_size"], params["ratio"]) == ("2", "4", "[1, 5]")
    assert "NoduleNet" in params["network_def"]
    assert str(small["dataset_dir"]) not in str(params)
    assert {"train_loss", "validation_loss", "validation_cpm", "train_loss_of_batch", "lr_group_0"} <= set(
        run.data.metrics
    )
    import mlflow

    client = mlflow.MlflowClient(server)
    steps = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "validation_average_precision")]
    assert [step for step, _ in steps] == [1, 2]
    files = {entry.path for entry in client.list_artifacts(run.info.run_id)}
    assert files == {"model.pt", "metrics.json", "submission.csv", "history.csv", "run.json"}


@needs_mlflow
@pytest.mark.slow
def test_of_two_processes_the_first_alone_writes(server, small):
    done = train({**small, "samples_per_epoch": 16}, processes=2, MLFLOW_TRACKING_URI=server, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr[-2000:]
    (run,) = runs(server)
    assert (run.info.status, run.data.params["processes"]) == ("FINISHED", "2")
    import mlflow

    client = mlflow.MlflowClient(server)
    # 16 cutouts in two processes of 4: two iterations an epoch, each told once
    for name, expected in (("train_loss_of_batch", [1, 2, 3, 4]), ("validation_average_precision", [1, 2])):
        assert [told.step for told in client.get_metric_history(run.info.run_id, name)] == expected, name


@needs_mlflow
@pytest.mark.slow
def test_a_training_that_goes_on_goes_on_with_its_run_in_the_local_store(small, tmp_path):
    environment = {"LUNA16_RUNS": str(tmp_path / "runs")}
    environment["MLFLOW_TRACKING_URI"] = ""
    more = {"max_epochs": 60, "checkpoint_iterations": 1, "val_interval": 60}
    words = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "training", "--config_file", str(TRAIN_YAML)]
    for key, value in {**small, **more}.items():
        words += [f"--{key}", str(value)]
    process = subprocess.Popen(words, cwd=ROOT, env={**os.environ, **environment})
    checkpoints = Path(small["output_dir"]) / "checkpoints"
    deadline = time.monotonic() + 240
    while not list(checkpoints.glob("iteration_*.pt")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.terminate()
    assert process.wait() == 143
    address = f"sqlite:///{tmp_path}/runs/mlruns.db"
    (before,) = runs(address)
    assert before.info.status == "RUNNING"
    done = train({**small, **more, "resume": "true"}, **environment)
    assert done.returncode == 0, done.stderr[-2000:]
    (run,) = runs(address)
    assert (run.info.run_id, run.info.status) == (before.info.run_id, "FINISHED")
    assert run.data.params["resume"] == "False"
