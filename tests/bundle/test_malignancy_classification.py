"""The malignancy bundle under MONAI's own commands: its checks, a training, what it leaves, what is refused."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ckpt_export, create_workflow, verify_metadata, verify_net_in_out

from luna16_monai.bundle.bases import read_whole
from luna16_monai.bundle.folders import bundle_dir, copy_bundle
from luna16_monai.cli.main import main
from luna16_monai.ct.folders import find_cts
from luna16_monai.dataset.splits import split_by_stride
from luna16_monai.machine.errors import one_line
from luna16_monai.networks.nodule_net import NoduleNet
from luna16_monai.report.page import write_report
from luna16_monai.tables.lidc import Patients, write_readings
from luna16_monai.tables.luna16 import read_annotations, read_candidates
from luna16_monai.tables.points import read_points, write_points
from luna16_monai.training.tracking import disable_telemetry

pytest.importorskip("sklearn", reason="the ruler needs the extra 'baselines'")
needs_mlflow = pytest.mark.skipif(
    find_spec("mlflow") is None, reason="MLflow is not installed: make test-all, or pip install '.[mlflow]'"
)
BUNDLE = Path(__file__).parents[2] / "bundles" / "malignancy_classification"
CONFIGS = BUNDLE / "configs"


@pytest.fixture(scope="module")
def rated_dir(phantom_dir, tmp_path_factory) -> Path:
    """The phantom's tables, each scan's first nodule rated malignant, the others benign."""
    folder = tmp_path_factory.mktemp("rated")
    for path in phantom_dir.glob("*.csv"):
        shutil.copy(path, folder)
    nodules = read_annotations(folder)
    first = np.append(True, np.diff(nodules.series) > 0)
    uids = [nodules.series_uids[code] for code in nodules.series]
    ratings = [(5, 4, 4) if malignant else (1, 2, 3) for malignant in first]
    z_mm, diameters = nodules.points_xyz[:, 2].tolist(), nodules.values.tolist()
    write_readings(folder / "nodule_readings.csv", uids, z_mm, diameters, ratings)
    return folder


@pytest.fixture(scope="module")
def nodule_run(rated_dir, tmp_path_factory) -> Path:
    """What a run of the first bundle leaves: weights, and the probability of each candidate."""
    folder = tmp_path_factory.mktemp("runs") / "nodules"
    table = read_candidates(rated_dir)
    uids = [table.series_uids[code] for code in table.series]
    write_points(folder / "submission.csv", uids, table.points_xyz, 0.2 + 0.6 * table.values, "probability")
    torch.manual_seed(0)
    torch.save(NoduleNet(two_scales=True, return_probabilities=False).state_dict(), folder / "model.pt")
    return folder


@pytest.fixture(scope="module")
def small(rated_dir, store_dir, nodule_run) -> dict[str, Any]:
    """Settings for a short training on the phantom."""
    return {
        "dataset_dir": str(rated_dir),
        "store_dir": str(store_dir),
        "init_weights": str(nodule_run / "model.pt"),
        "device": "cpu",
        "max_epochs": 1,
        "samples_per_epoch": 24,
        "batch_size": 8,
        "num_workers": 0,
        "validation_stride": 3,
    }


def workflow(name: str, settings: dict[str, Any], kind: str = "train") -> Any:
    config = str(CONFIGS / name)
    return create_workflow(config_file=config, workflow_type=kind, logging_file=False, **settings)


# --- what MONAI expects of a bundle ---------------------------------------------------------------------------------


def test_metadata_fits_monais_schema(shared, tmp_path):
    # MONAI fetches the schema unless it is there
    (tmp_path / "schema.json").write_bytes(shared("schema/meta_schema_20240725.json").read_bytes())
    verify_metadata(meta_file=str(CONFIGS / "metadata.json"), filepath=str(tmp_path / "schema.json"))


def test_bundle_has_the_files_that_model_zoo_asks_for():
    for name in ("configs/metadata.json", "configs/inference.yaml", "LICENSE", "models/model.pt", "docs/README.md"):
        assert (BUNDLE / name).is_file(), name
    metadata = json.loads((CONFIGS / "metadata.json").read_text(encoding="utf-8"))
    assert metadata["version"] in metadata["changelog"]


def test_weights_of_the_bundle_are_those_that_their_card_names():
    card = (BUNDLE / "models" / "README.md").read_text(encoding="utf-8")
    assert "synthetic" in card.splitlines()[0]
    assert hashlib.sha256((BUNDLE / "models" / "model.pt").read_bytes()).hexdigest() in card
    NoduleNet(two_scales=True, return_probabilities=False).load_state_dict(
        torch.load(BUNDLE / "models" / "model.pt", weights_only=True)
    )


@pytest.mark.parametrize("name", ["train.yaml", "inference.yaml"])
def test_bundle_passes_verify_net_in_out(state, name):
    files = {"meta_file": str(CONFIGS / "metadata.json"), "config_file": str(CONFIGS / name)}
    verify_net_in_out(net_id="network_def", **files, device="cpu", p=1, n=1, any=1)


def test_bundle_passes_ckpt_export(state, tmp_path):
    bundle = Path(shutil.copytree(BUNDLE, tmp_path / "malignancy_classification"))
    ckpt_export(
        net_id="network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(bundle / "models" / "model.pt"),
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=str(bundle / "configs" / "inference.yaml"),
    )
    image = torch.rand(2, 1, 32, 48, 48) * 2000 - 1000
    network = NoduleNet(two_scales=True, return_probabilities=False).eval()
    network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(tmp_path / "model.ts")(image), network(image), atol=1e-4, rtol=0)


def test_inference_yaml_has_all_properties_and_differs_from_the_first_bundles_in_what_is_its_own(state, phantom_dir):
    settings = {"dataset_dir": str(phantom_dir)}
    assert workflow("inference.yaml", settings, "inference").check_properties() == []
    first, second = (
        read_whole(bundle_dir(name) / "configs" / "inference.yaml")
        for name in ("nodule_classification", "malignancy_classification")
    )
    assert {key for key in first if first[key] != second[key]} == {"imports", "output_file", "volumes"}
    # its CTs are prepared as the first bundle says
    assert second["imports"] == [*first["imports"], "$import luna16_monai.bundle.folders as folders"]
    assert set(first) == set(second)
    own = yaml.safe_load((CONFIGS / "inference.yaml").read_text(encoding="utf-8"))
    assert set(own) == {"builds_on", "imports", "output_file", "shape_zyx", "network_def", "volumes", "initialize"}
    assert list(own["volumes"]) == ["recipe"]


# --- the whole run --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(small, nodule_run, tmp_path_factory) -> Path:
    """The folder of a run from a copy of the bundle, started in an empty folder of another place."""
    place = tmp_path_factory.mktemp("elsewhere")
    copy_bundle(bundle_dir("malignancy_classification"), place / "mine")
    settings = {**small, "output_dir": place / "run", "nodule_run": nodule_run, "trainable_blocks": 1}
    words = ["-W", "ignore", "-m", "monai.bundle", "run", "training"]
    words += ["--config_file", place / "mine" / "configs" / "train.yaml"]
    words += [word for key, value in settings.items() for word in (f"--{key}", value)]
    done = subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, encoding="utf-8", cwd=place, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "roc_auc_nodules" in done.stderr
    return place / "run"


def test_training_scores_malignant_against_benign_nodules_beside_a_ruler(finished, rated_dir, store_dir):
    metrics = json.loads((finished / "metrics.json").read_text(encoding="utf-8"))
    told = metrics["malignancy"]
    series = read_annotations(rated_dir).series_uids
    # a patient of its own each
    _, held_out = split_by_stride(series, 3, Patients())
    assert (told["nodules"]["malignant"], told["patients"]) == (len(held_out), len(held_out)) == (3, 3)
    assert set(told["compared"]) == {"network", "diameter", "diameter_and_mean_hu"}
    # the first network finds every nodule of which there is a candidate
    counts = told["end_to_end"]["counts"]
    assert counts["malignant"]["missed"] + counts["benign"]["missed"] == told["nodules"]["without_candidate"]
    candidates = read_candidates(rated_dir)
    others = candidates.select((candidates.values == 0) & (candidates.series_codes(held_out) >= 0))
    assert sum(counts["non_nodule"].values()) == len(others) > 0
    assert (metrics["key_metric"], "cpm" in metrics) == ("roc_auc_nodules", False)
    rows = list(csv.DictReader((finished / "rated_nodules.csv").open(encoding="utf-8")))
    assert {row["seriesuid"] for row in rows} == set(held_out)


def test_training_of_the_last_block_leaves_the_others_as_they_were(finished, nodule_run):
    before, after = (torch.load(run / "model.pt", weights_only=True) for run in (nodule_run, finished))
    changed = {name.rsplit(".", 1)[0] for name in before if not torch.equal(before[name], after[name])}
    # of 16 modules the last four are the last block, and two of them are convolutions
    assert changed == {"backbone.12.conv", "backbone.13.conv", "head"}


def test_report_shows_the_ruler_beside_the_network(finished, store_dir, tmp_path):
    pytest.importorskip("matplotlib")
    write_report(finished, tmp_path / "report.html", store_dir)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    auc = json.loads((finished / "metrics.json").read_text(encoding="utf-8"))["malignancy"]["compared"]
    for text in ("Diameter alone", "Diameter and mean HU", "From candidate to malignant", "not a diagnosis"):
        assert text in page
    assert f">{auc['diameter']['roc_auc']:.3f}<" in page
    assert 'id="malignancy_auc">' + f"{auc['network']['roc_auc']:.3f}<" in page


def test_evaluating_gives_the_scores_of_the_training(state, finished, small, nodule_run, tmp_path):
    keys = ("dataset_dir", "store_dir", "device", "batch_size", "num_workers", "validation_stride")
    settings = {key: small[key] for key in keys} | {"run_dir": str(finished), "nodule_run": str(nodule_run)}
    # one view, as in the validation of a training
    own = {"output_dir": str(tmp_path / "out"), "views": 1}
    flow = workflow("evaluate.yaml", settings | own, "inference")
    assert flow.check_properties() == []
    flow.parser.get_parsed_content("evaluator").run()
    again, first = (json.loads((f / "metrics.json").read_text(encoding="utf-8")) for f in (tmp_path / "out", finished))
    assert again["malignancy"] == first["malignancy"]


def test_train_yaml_has_all_properties_that_monai_looks_for(state, small, tmp_path):
    own = {"output_dir": str(tmp_path / "run"), "trainable_blocks": 0, "samples_per_epoch": 32}
    flow = workflow("train.yaml", {**small, **own})
    assert flow.check_properties() == []
    assert [name for name, weight in flow.network_def.named_parameters() if weight.requires_grad] == [
        "head.weight",
        "head.bias",
    ]
    # 1 malignant to 5 benign to 10 others
    sampler = flow.parser.get_parsed_content("train#sampler")
    kinds = flow.parser.get_parsed_content("split").train.kinds
    assert np.bincount(kinds[sampler.draw(0)[0]]).tolist() == [20, 2, 10]


@pytest.mark.slow
def test_training_runs_in_two_processes(small, nodule_run, tmp_path):
    """By a multi_gpu_train.yaml that builds on the first bundle's, of which every part is there."""
    files = str([str(CONFIGS / name) for name in ("train.yaml", "multi_gpu_train.yaml")])
    settings = {**small, "output_dir": tmp_path / "run", "nodule_run": nodule_run, "trainable_blocks": 0}
    words = ["-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    words += ["-m", "monai.bundle", "run", "training", "--config_file", files]
    words += [str(word) for key, value in settings.items() for word in (f"--{key}", value)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], capture_output=True, encoding="utf-8", env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "training in 2 processes (gloo)" in done.stderr
    record = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    # 24 cutouts in two processes of 8, at the rate of fine-tuning times the square root of 2
    assert record["processes"] == 2
    assert record["settings"]["scaled_learning_rate"] == pytest.approx(3e-4 * 2**0.5)
    assert [path.name[:19] for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["iteration_000000002"]
    before, after = (torch.load(run / "model.pt", weights_only=True) for run in (nodule_run, tmp_path / "run"))
    assert {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])} == {"head"}
    assert json.loads((tmp_path / "run" / "metrics.json").read_text("utf-8"))["key_metric"] == "roc_auc_nodules"


def test_an_overlay_changes_parts_of_the_first_bundles_training(state, small, tmp_path):
    (tmp_path / "mine.yaml").write_text("+train: {random_transforms: []}\nloss: {_target_: torch.nn.NLLLoss}\n")
    files = [str(CONFIGS / "train.yaml"), str(tmp_path / "mine.yaml")]
    settings = {**small, "output_dir": str(tmp_path / "run")}
    flow = create_workflow(config_file=files, workflow_type="train", logging_file=False, **settings)
    parsed = flow.parser.get_parsed_content
    assert parsed("train#random_transforms") == []
    assert isinstance(parsed("loss"), torch.nn.NLLLoss)
    assert parsed("train#sampler").counts.tolist() == [2, 7, 15], "and this bundle's own parts are still there"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"trainable_blocks": 5}, r"trainable_blocks 5: the network has 4 blocks; give 0 \(the head alone\) to 4"),
        ({"ratio": [1, 5]}, r"ratio \[1, 5\]: 3 numbers from 0 were expected"),
        ({"rule": "mean"}, r"rule 'mean' for ratings .*: name median or two_readers"),
        ({"trainable_block": 1}, r"trainable_block is no setting of this bundle.* was trainable_blocks meant\?"),
        ({"key_metric": "cpm"}, r"key_metric cpm is none of the scores"),
    ],
)
def test_training_refuses(state, small, tmp_path, changed, message):
    with pytest.raises(RuntimeError) as caught:
        flow = workflow("train.yaml", {**small, "output_dir": str(tmp_path / "run"), **changed})
        flow.parser.get_parsed_content("train#trainer")
    assert re.search(message, one_line(caught.value))


def test_training_refuses_weights_that_have_seen_the_validation(state, small, nodule_run, rated_dir, tmp_path):
    held_out = split_by_stride(read_annotations(rated_dir).series_uids, 3, Patients())[1]
    shutil.copy(nodule_run / "model.pt", tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"data": {"train_series": held_out}}), encoding="utf-8")
    settings = {**small, "output_dir": str(tmp_path / "run"), "init_weights": str(tmp_path / "model.pt")}
    with pytest.raises(RuntimeError) as caught:
        workflow("train.yaml", settings)
    assert re.search(r"is in validation, and init_weights .*model\.pt saw it in training", one_line(caught.value))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_crossval_scores_each_fold_by_the_weights_that_it_trained(small, tmp_path, capsys):
    """The bundle's train.yaml names weights to start from, which are none to score by."""
    keys = ("init_weights", "max_epochs", "samples_per_epoch", "batch_size", "num_workers", "validation_stride")
    call = ["crossval", "--bundle", BUNDLE, "--data", small["dataset_dir"], "--store", small["store_dir"]]
    call += ["--output", tmp_path / "cv", "--folds", 0, 5, "--device", "cpu", "--threads", 1, "--bootstrap", 20]
    assert main([*map(str, call), "--json", "--set", *(f"{key}={small[key]}" for key in keys)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["pooled_folds"], told["mean_of_folds"], "cpm" in told) == ([0, 5], None, False)
    assert told["folds"]["5"]["key_metric"] == "roc_auc_nodules"
    fold = tmp_path / "cv" / "fold_5"
    settings = {key: small[key] for key in ("dataset_dir", "store_dir", "device", "batch_size", "num_workers")}
    settings |= {"run_dir": fold, "output_dir": tmp_path / "again", "validation_subset": 5}
    words = ["-m", "monai.bundle", "run", "evaluating", "--config_file", CONFIGS / "evaluate.yaml"]
    words += [word for key, value in settings.items() for word in (f"--{key}", value)]
    subprocess.run([sys.executable, "-W", "ignore", *map(str, words)], cwd=BUNDLE.parents[1], check=True)
    one, other = ((folder / "submission.csv").read_text() for folder in (fold / "test", tmp_path / "again"))
    assert one == other


@needs_mlflow
@pytest.mark.slow
def test_tracking_writes_training_and_evaluation(small, tmp_path):
    """MONAI adds its handlers before this bundle knows its engines, which are the first bundle's."""
    run = tmp_path / "runs" / "malignancy_classification"
    evaluation = {key: small[key] for key in ("dataset_dir", "store_dir", "device", "num_workers", "validation_stride")}
    environment = {**os.environ, "LUNA16_RUNS": str(tmp_path / "runs"), "MLFLOW_TRACKING_URI": ""}
    for run_id, name, settings in (("training", "train", small), ("evaluating", "evaluate", evaluation)):
        words = ["-m", "monai.bundle", "run", run_id, "--config_file", str(CONFIGS / f"{name}.yaml")]
        words += [str(word) for key, value in settings.items() for word in (f"--{key}", value)]
        call = [sys.executable, "-W", "ignore", *words, "--tracking", "mlflow"]
        done = subprocess.run(call, capture_output=True, encoding="utf-8", cwd=BUNDLE.parents[1], env=environment)
        assert done.returncode == 0, done.stderr[-2000:]
    import mlflow

    disable_telemetry()
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/runs/mlruns.db")
    experiment = client.get_experiment_by_name("malignancy_classification")
    evaluated, trained = client.search_runs([experiment.experiment_id])
    assert trained.info.run_name.startswith("runs/malignancy_classification ")
    assert evaluated.info.run_name.startswith("malignancy_classification/evaluation ")
    assert {"train_loss", "train_loss_of_batch", "validation_roc_auc_nodules"} <= set(trained.data.metrics)
    assert "evaluation_roc_auc" in evaluated.data.metrics
    assert (trained.data.params["max_epochs"], trained.data.params["rule"]) == ("1", "median")
    assert str(small["dataset_dir"]) not in str(trained.data.params)
    files = {entry.path for entry in client.list_artifacts(trained.info.run_id)}
    assert files == {"model.pt", "metrics.json", "submission.csv", "history.csv", "run.json"}
    assert not list(run.rglob("config_*.json")), "MONAI's file of all settings, which names folders"


# --- both bundles in a row ------------------------------------------------------------------------------------------


def test_predict_writes_the_probabilities_of_both_bundles(phantom_dir, finished, nodule_run, tmp_path, capsys):
    table = read_candidates(phantom_dir)
    rows = np.flatnonzero(table.series < 2)[::-3]
    points, output = tmp_path / "points.csv", tmp_path / "predictions.csv"
    uids = [table.series_uids[code] for code in table.series[rows]]
    write_points(points, uids, table.points_xyz[rows], np.zeros(len(rows)), "class")
    cts = [str(ct.path) for ct in find_cts(phantom_dir) if ct.series_uid in uids]
    call = ["predict", "--ct", *cts, "--candidates", str(points), "--output", str(output), "--device", "cpu"]
    call += ["--weights", str(nodule_run / "model.pt"), "--backend", "torch"]
    assert main([*call, "--malignancy-weights", str(finished / "model.pt")]) == 2
    assert "--malignancy-weights without --malignancy" in capsys.readouterr().err
    columns = {}
    for name, weights in (("trained", [str(finished / "model.pt")]), ("same", [str(nodule_run / "model.pt")])):
        assert main([*call, "--malignancy", "--malignancy-weights", *weights]) == 0
        columns[name] = list(csv.DictReader(output.open(encoding="utf-8")))
        assert list(columns[name][0])[-3:] == ["probability", "malignancy", "class"]
    assert [row["seriesuid"] for row in columns["same"]] == uids
    # the same weights give the same twice, in the order of the rows; trained ones something else
    assert [row["probability"] for row in columns["same"]] == [row["malignancy"] for row in columns["same"]]
    assert [row["probability"] for row in columns["same"]] == [row["probability"] for row in columns["trained"]]
    assert [row["malignancy"] for row in columns["same"]] != [row["malignancy"] for row in columns["trained"]]


def test_predict_takes_the_bundles_own_weights_and_refuses_a_strange_bundle(phantom_dir, tmp_path, capsys):
    table = read_candidates(phantom_dir)
    points, output = tmp_path / "points.csv", tmp_path / "predictions.csv"
    write_points(points, [table.series_uids[0]], table.points_xyz[table.series == 0][:1], [0], "class")
    ct = next(str(ct.path) for ct in find_cts(phantom_dir) if ct.series_uid == table.series_uids[0])
    call = ["predict", "--ct", ct, "--candidates", str(points), "--output", str(output), "--device", "cpu"]
    copy_bundle(bundle_dir("malignancy_classification"), tmp_path / "mine")
    assert main([*call, "--malignancy", str(tmp_path / "mine")]) == 2
    assert "does not come with luna16_monai and may run any code" in capsys.readouterr().err
    assert not output.exists()
    values = []
    for more in (["--malignancy"], ["--malignancy", str(tmp_path / "mine"), "--trust-bundle"]):
        assert main([*call, *more]) == 0
        values.append(next(csv.DictReader(output.open(encoding="utf-8")))["malignancy"])
    assert values[0] == values[1]
    assert 0 < float(values[0]) < 1
    assert len(read_points(output, "probability")) == 1
