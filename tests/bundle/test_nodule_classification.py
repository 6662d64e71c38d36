"""The nodule bundle under MONAI's own commands: its settings, its properties, a training, and what is refused."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import monai.bundle
import pytest
import torch
import yaml
from monai.bundle import create_workflow, verify_metadata, verify_net_in_out
from monai.networks.nets import Classifier, DenseNet121
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from luna16_monai.bundle import config as bundle
from luna16_monai.bundle import folders as bundle_folders
from luna16_monai.dataset.splits import split_by_stride
from luna16_monai.machine.errors import one_line
from luna16_monai.machine.files import write_json
from luna16_monai.networks.nodule_net import NoduleNet
from luna16_monai.phantom.data_set import drawn_from, plan_scans
from luna16_monai.phantom.drawn import read_drawn
from luna16_monai.phantom.lesions import load_shape_bank
from luna16_monai.runs.folder import RunFolder
from luna16_monai.runs.seen import Seen, read_seen, write_seen
from luna16_monai.tables.lidc import Patients
from luna16_monai.tables.points import read_points
from luna16_monai.variety.shapes import measured_patients

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "bundles" / "nodule_classification" / "configs"
TRAIN_YAML = CONFIGS / "train.yaml"
# what CLI.md promises to those who call from outside
PROMISED = {
    *("dataset_dir", "store_dir", "output_dir", "device", "seed", "max_epochs", "samples_per_epoch", "batch_size"),
    *("learning_rate", "num_workers", "ratio", "validation_stride", "validation_subset", "spacing_zyx", "cache_gb"),
    *("amp", "deterministic", "resume", "checkpoint_iterations", "val_interval", "init_weights"),
}


@pytest.fixture
def small(phantom_dir, store_dir, tmp_path) -> dict[str, Any]:
    """Settings for two short epochs on the phantom."""
    return {
        "dataset_dir": str(phantom_dir),
        "store_dir": str(store_dir),
        "output_dir": str(tmp_path / "run"),
        "device": "cpu",
        "max_epochs": 2,
        "samples_per_epoch": 12,
        "batch_size": 4,
        "num_workers": 0,
        "validation_stride": 3,
        "validation_negatives": 6,
    }


def workflow(settings: dict[str, Any], *more_configs: Path) -> Any:
    """The bundle in this process; its logging.conf would take the handlers of the tests away."""
    files = [str(TRAIN_YAML), *map(str, more_configs)]
    return create_workflow(config_file=files, workflow_type="train", logging_file=False, **settings)


def command(run_id: str, settings: dict[str, Any], *more: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "monai.bundle", "run", run_id, "--config_file", str(TRAIN_YAML), *more]
    for key, value in settings.items():
        words += [f"--{key}", str(value)]
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)


# --- settings -------------------------------------------------------------------------------------------------------


def test_train_yaml_has_the_promised_settings_above_its_line():
    text = TRAIN_YAML.read_text(encoding="utf-8")
    above = yaml.safe_load(text[: re.search(r"^# -{20,}$", text, re.MULTILINE).start()])
    assert set(above) >= PROMISED
    assert (above["ratio"], above["spacing_zyx"], above["validation_stride"]) == ([1, 5], [1.25, 0.7, 0.7], 20)
    # YAML reads 1e-3 as text
    assert isinstance(above["learning_rate"], float)
    # nothing below the line is a plain value that somebody would want to set
    config = yaml.safe_load(text)
    below = set(config) - set(above)
    assert all(isinstance(config[key], dict | list | str) for key in below)


def test_root_is_the_folder_of_the_bundle_that_runs(state, small, acceptance):
    copy = str(acceptance / "configs" / "train.yaml")
    flow = create_workflow(config_file=copy, workflow_type="train", logging_file=False, **small)
    assert flow.bundle_root == str(acceptance)
    assert workflow({**small, "resume": "true"}).bundle_root == str(CONFIGS.parent)
    with pytest.raises(RuntimeError, match="called outside a config"):
        bundle.root()


def test_inference_of_a_copy_takes_the_copys_weights(state, acceptance, phantom_dir, tmp_path):
    (acceptance / "models" / "model.pt").unlink()
    copy = str(acceptance / "configs" / "inference.yaml")
    settings = {"dataset_dir": str(phantom_dir), "output_dir": str(tmp_path)}
    flow = create_workflow(config_file=copy, workflow_type="inference", logging_file=False, **settings)
    with pytest.raises(RuntimeError) as caught:
        flow.run()
    assert one_line(caught.value).startswith(f"no weights {acceptance / 'models' / 'model.pt'}: ")


def test_monai_takes_a_config_from_nowhere_but_its_arguments(state, monkeypatch):
    """Why the shortest training from the bundle's folder names args.yaml; docs/reuse.md is tested to run it."""
    monkeypatch.chdir(CONFIGS.parent)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'config_file'"):
        monai.bundle.run(run_id="training")
    assert yaml.safe_load(Path("args.yaml").read_text(encoding="utf-8")) == {
        "run_id": "training",
        "config_file": "configs/train.yaml",
    }


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"spacing_zyx": [1, 1, 1]},
            r"was made for spacing_zyx \[1\.25, 0\.7, 0\.7\], not \[1, 1, 1\]: prepare another",
        ),
        ({"spacing_zyx": "null"}, r"was made for spacing_zyx \[1\.25, 0\.7, 0\.7\], not native: prepare another"),
        ({"store_dir": "NOWHERE"}, r"no store in NOWHERE: run luna16 prepare --data DIR --store NOWHERE"),
        ({"dataset_dir": "NOWHERE"}, r"no candidates_V2\.csv \(or \.zip\) and no candidates\.csv in NOWHERE: put"),
        ({"validation_stride": 1}, r"validation_stride 1 leaves nothing to train on: use 2 or more"),
        (
            {"validation_subset": 9},
            r"validation_subset 9: no series is in it \(found: \[0, 1, .*\]\): name one of those",
        ),
        ({"key_metric": "beauty"}, r"key_metric beauty is none of the scores: choose one of"),
        ({"init_weights": "NOWHERE"}, r"init_weights NOWHERE: no such file: name a model\.pt"),
        ({"ratio": [0, 0]}, r"ratio \[0, 0\]: 2 numbers from 0 were expected"),
        ({"learning_rat": 1}, r"learning_rat is no setting of this bundle.* was learning_rate meant\?"),
    ],
)
def test_training_refuses(state, small, tmp_path, changed, message):
    # no folder of this machine: /nowhere may be there
    nowhere = str(tmp_path / "nowhere")
    named = {key: nowhere if value == "NOWHERE" else value for key, value in changed.items()}
    with pytest.raises(RuntimeError) as caught:
        create_and_build({**small, **named})
    assert re.search(message.replace("NOWHERE", re.escape(nowhere)), one_line(caught.value))


def test_training_refuses_first_weights_that_saw_the_validation(state, small, phantom_dir, tmp_path):
    """The weights' own record says so, under other names of the scans: a set of the same seed, drawn anew."""
    weights = tmp_path / "first" / "model.pt"
    weights.parent.mkdir()
    torch.save(NoduleNet().state_dict(), weights)
    drawn = read_drawn(phantom_dir)
    held_out = sorted(drawn)[0]
    write_seen(weights, Seen.of(["another name"], {"another name": drawn[held_out]}))
    with pytest.raises(RuntimeError) as caught:
        workflow({**small, "init_weights": str(weights)}).initialize()
    message = (
        rf"series {held_out} is in validation, and init_weights .* saw a scan that was drawn with the same anatomy"
    )
    assert re.search(message, one_line(caught.value))
    assert not Path(small["output_dir"]).exists()


def test_evaluating_refuses_weights_that_saw_what_is_scored(state, small, phantom_dir, tmp_path):
    weights = tmp_path / "model.pt"
    torch.save(NoduleNet(return_probabilities=False).state_dict(), weights)
    held_out = sorted(read_drawn(phantom_dir))[0]
    write_seen(weights, Seen.of([held_out], {}))
    settings = {key: small[key] for key in ("dataset_dir", "store_dir", "device", "validation_stride")}
    more = {"init_weights": str(weights), "run_dir": str(tmp_path / "run"), "output_dir": str(tmp_path / "out")}
    config = str(CONFIGS / "evaluate.yaml")
    with pytest.raises(RuntimeError) as caught:
        create_workflow(config_file=config, workflow_type="inference", logging_file=False, **{**settings, **more})
    assert re.search(rf"series {held_out} is in evaluation, and the weights .* saw it", one_line(caught.value))


def test_second_training_remembers_what_the_first_weights_saw(state, small, phantom_dir, tmp_path):
    weights = tmp_path / "first" / "model.pt"
    weights.parent.mkdir()
    torch.save(NoduleNet().state_dict(), weights)
    write_json(weights.parent / "run.json", {"data": {"train_series": ["b"]}, "seen_series": ["a", "b"]})
    flow = workflow({**small, "init_weights": str(weights), "max_epochs": 1, "samples_per_epoch": 4})
    flow.initialize()
    flow.run()
    run = RunFolder(small["output_dir"])
    record = run.read_record()
    assert record is not None
    assert record.data.train_series is not None
    assert set(record.seen_series) == {"a", "b", *record.data.train_series}
    seen = read_seen(run.weights)
    assert seen is not None
    drawn = read_drawn(phantom_dir)
    assert set(seen.among(["a", "b", *drawn], drawn)) == set(record.seen_series)


@pytest.mark.parametrize("name", ["nodule_classification", "malignancy_classification", "nodule_detection"])
def test_weights_of_a_bundle_say_what_they_were_trained_on(name):
    seen = read_seen(bundle_folders.bundle_dir(name) / "models" / "model.pt")
    assert seen is not None
    plans = plan_scans(200, 0, load_shape_bank())
    uids = [plan.series_uid for plan in plans]
    train, _ = split_by_stride(uids, 5, Patients({plan.series_uid: plan.patient_id for plan in plans}))
    assert sorted(seen.among(uids, {})) == list(train)
    # the same scans by their anatomy, under the names of a larger set
    drawn = drawn_from({"kind": "synthetic", "recipe": 2, "seed": 0}, plan_scans(210, 0, load_shape_bank()))
    numbers = {plan.number for plan in plans if plan.series_uid in train}
    assert {drawn[uid].number for uid in seen.among(drawn, drawn)} == numbers
    assert measured_patients().isdisjoint(patient for one in seen.drawn for patient in one.patients)


def create_and_build(settings: dict[str, Any]) -> None:
    flow = workflow(settings)
    flow.initialize()
    flow.parser.get_parsed_content("train#trainer")


def test_training_refuses_a_class_that_is_absent_in_a_split(state, small, phantom_dir, tmp_path):
    lines = (phantom_dir / "candidates_V2.csv").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if not line.endswith(",1")]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "candidates_V2.csv").write_text("\n".join(kept) + "\n")
    with pytest.raises(RuntimeError) as caught:
        create_and_build({**small, "dataset_dir": str(tmp_path / "data")})
    message = r"the training split has no candidate of class 1 in its 5 series .*: hold out other series"
    assert re.match(message, one_line(caught.value))


# --- what MONAI expects of a bundle ---------------------------------------------------------------------------------


def test_train_yaml_has_all_properties_that_monai_looks_for(state, small):
    flow = workflow(small)
    flow.initialize()
    assert flow.check_properties() == []
    assert isinstance(flow.network_def, NoduleNet)
    assert flow.max_epochs == 2
    assert flow.train_dataset_data is flow.train_dataset.data
    # built once: what the properties show is what the trainer runs
    assert flow.trainer.network is flow.parser.get_parsed_content("network")


def test_network_def_is_overridden_by_one_key_of_an_overlay(state, small, tmp_path):
    overlay = tmp_path / "other.yaml"
    shape = "in_shape: [1, 32, 48, 48], classes: 2, channels: [4, 8], strides: [4, 4]"
    overlay.write_text(f"network_def: {{_target_: monai.networks.nets.Classifier, {shape}}}\n")
    flow = workflow({**small, "max_epochs": 1, "samples_per_epoch": 4}, overlay)
    flow.initialize()
    assert isinstance(flow.network_def, Classifier)
    flow.run()
    assert "final.1.weight" in torch.load(Path(small["output_dir"]) / "model.pt", weights_only=True)


def test_network_def_is_overridden_from_the_command_line(state, small):
    network = {"_target_": "DenseNet121", "spatial_dims": 3, "in_channels": 1, "out_channels": 2}
    flow = workflow({**small, "network_def": network})
    flow.initialize()
    assert isinstance(flow.network_def, DenseNet121)
    flow = workflow({**small, "network_def#norm": "BATCH", "resume": "true"})
    flow.initialize()
    assert sum(isinstance(module, torch.nn.BatchNorm3d) for module in flow.network_def.modules()) == 9


def test_training_augments_on_the_device_and_writes_a_profile(state, small):
    more = {"augment_on_device": "true", "profile": "true", "max_epochs": 1, "samples_per_epoch": 40}
    flow = workflow({**small, **more})
    flow.initialize()
    flow.run()
    # ten iterations, of which numbers 6 to 8 are traced
    trace = json.loads((Path(small["output_dir"]) / "profile" / "trace.json").read_text())
    names = {event["name"] for event in trace["traceEvents"] if "name" in event}
    assert {f"ProfilerStep#{number}" for number in (5, 6, 7)} <= names
    assert "aten::grid_sampler" in names
    assert (Path(small["output_dir"]) / "model.pt").is_file()


# from a 25th of the full rate over half a cosine to all of it; the last batch of a whole cycle has hardly any
@pytest.mark.parametrize("rates", [[4e-5], [4e-5, 5.2e-4], [4e-5, 1e-3, 4e-9]])
def test_learning_rate_is_scheduled_in_the_shortest_runs(state, small, rates):
    flow = workflow({**small, "max_epochs": 1, "samples_per_epoch": 4 * len(rates)})
    scheduler = flow.parser.get_parsed_content("lr_scheduler")
    seen = []
    for _ in rates:
        seen.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    assert seen == pytest.approx(rates)


def test_initial_weights_are_taken(state, small, tmp_path):
    weights = NoduleNet().state_dict()
    weights["head.bias"] += 0.5
    torch.save(weights, tmp_path / "model.pt")
    flow = workflow({**small, "init_weights": str(tmp_path / "model.pt")})
    flow.initialize()
    assert torch.equal(flow.network_def.head.bias, torch.full((2,), 0.5))


def test_metadata_fits_monais_schema(shared, tmp_path):
    schema = shared("schema/meta_schema_20240725.json")
    # MONAI fetches the schema unless it is there
    (tmp_path / "schema.json").write_bytes(schema.read_bytes())
    verify_metadata(meta_file=str(CONFIGS / "metadata.json"), filepath=str(tmp_path / "schema.json"))


@pytest.fixture
def acceptance(tmp_path) -> Path:
    """The bundle in a folder of its own, as model-zoo's CI takes it."""
    return Path(shutil.copytree(CONFIGS.parent, tmp_path / "nodule_classification"))


def test_bundle_has_the_files_that_model_zoo_asks_for(acceptance):
    assert (acceptance / "configs" / "multi_gpu_train.yaml").is_file()
    for name in ("configs/metadata.json", "configs/inference.yaml", "LICENSE", "models/model.pt", "docs/README.md"):
        assert (acceptance / name).is_file(), name
    metadata = json.loads((acceptance / "configs" / "metadata.json").read_text())
    assert metadata["version"] in metadata["changelog"]


def test_weights_of_the_bundle_are_those_that_their_card_names(acceptance):
    card = (acceptance / "models" / "README.md").read_text(encoding="utf-8")
    assert "synthetic" in card.splitlines()[0]
    assert hashlib.sha256((acceptance / "models" / "model.pt").read_bytes()).hexdigest() in card
    weights = torch.load(acceptance / "models" / "model.pt", weights_only=True)
    NoduleNet(two_scales=True, return_probabilities=False).load_state_dict(weights)
    assert (
        sum(value.numel() for name, value in weights.items() if "running" not in name and "num" not in name) == 220_262
    )


def test_weights_of_the_bundle_lie_beside_a_record_of_their_network(acceptance):
    """So that a fine-tuning and an evaluation by train.yaml, which is the design's, know what they are."""
    network = RunFolder(acceptance / "models").read_network()
    assert network["network_def"] == {
        "spatial_shape_zyx": [32, 48, 48], "in_channels": 1, "num_classes": 2, "channels": [8, 16, 32, 64],
        "norm": None, "dropout": 0.0, "dropout_dim": 1, "bias": True, "two_scales": True,
    }  # fmt: skip
    assert network["spacing_zyx"] == [1.25, 0.7, 0.7]


def test_inference_yaml_has_all_properties_that_monai_looks_for(state, phantom_dir, tmp_path):
    settings = {"dataset_dir": str(phantom_dir), "output_dir": str(tmp_path)}
    config = str(CONFIGS / "inference.yaml")
    flow = create_workflow(config_file=config, workflow_type="inference", logging_file=False, **settings)
    assert flow.check_properties() == []


def test_evaluate_yaml_has_all_properties_that_monai_looks_for(state, small, tmp_path):
    torch.save(NoduleNet(return_probabilities=False).state_dict(), tmp_path / "model.pt")
    keys = ("dataset_dir", "store_dir", "device", "validation_stride")
    settings = {**{key: small[key] for key in keys}, "init_weights": str(tmp_path / "model.pt")}
    config = str(CONFIGS / "evaluate.yaml")
    flow = create_workflow(config_file=config, workflow_type="inference", logging_file=False, **settings)
    assert flow.check_properties() == []


@pytest.mark.parametrize("name", ["train.yaml", "inference.yaml"])
def test_bundle_passes_verify_net_in_out(state, name):
    files = {"meta_file": str(CONFIGS / "metadata.json"), "config_file": str(CONFIGS / name)}
    verify_net_in_out(net_id="network_def", **files, device="cpu", p=1, n=1, any=1)


def test_bundle_passes_ckpt_export_as_model_zoo_runs_it(acceptance, tmp_path):
    words = ["ckpt_export", "network_def", "--filepath", tmp_path / "model.ts"]
    files = {
        "ckpt_file": "models/model.pt",
        "meta_file": "configs/metadata.json",
        "config_file": "configs/inference.yaml",
    }
    words += [word for key, name in files.items() for word in (f"--{key}", acceptance / name)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "monai.bundle", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    image = torch.rand(3, 1, 32, 48, 48) * 2000 - 1000
    network = NoduleNet(two_scales=True, return_probabilities=False).eval()
    network.load_state_dict(torch.load(acceptance / "models" / "model.pt", weights_only=True))
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(tmp_path / "model.ts")(image), network(image), atol=1e-4, rtol=0)


# --- the whole run, as a user types it ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(phantom_dir, store_dir, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """The folder of a run of two epochs, and its settings."""
    output = tmp_path_factory.mktemp("runs") / "run"
    settings = {
        "dataset_dir": phantom_dir,
        "store_dir": store_dir,
        "output_dir": output,
        "device": "cpu",
        "max_epochs": 2,
        "samples_per_epoch": 12,
        "batch_size": 4,
        "num_workers": 0,
        "validation_stride": 3,
    }
    done = command("training", settings)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "epoch 2 validation" in done.stderr
    return output, settings


def test_training_writes_a_bare_state_dict(finished):
    weights = torch.load(finished[0] / "model.pt", weights_only=True)
    network = NoduleNet(return_probabilities=False)
    network.load_state_dict(weights)
    assert {value.device.type for value in weights.values()} == {"cpu"}


def test_training_writes_the_scores_of_the_best_epoch(finished):
    metrics = json.loads((finished[0] / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["epoch"] in (1, 2)
    assert metrics["key_metric"] == "average_precision"
    # three of eight series are held out, with four negatives to a positive
    assert metrics["series"] == 3
    assert metrics["candidates"] == 5 * metrics["positives"] > 0
    assert metrics["loss"] > 0
    for name in ("accuracy", "recall", "specificity", "roc_auc", "average_precision"):
        assert 0 <= metrics[name] <= 1
    assert "optimistic" in metrics["chosen_on"]


def test_training_writes_a_submission_of_all_validation_candidates(finished, phantom_dir):
    path = finished[0] / "submission.csv"
    with path.open(newline="") as stream:
        assert next(csv.reader(stream))[:5] == ["seriesuid", "coordX", "coordY", "coordZ", "probability"]
    submission = read_points(path, "probability")
    given = read_points(phantom_dir / "candidates_V2.csv", "class")
    held_out = given.select(given.series_codes(submission.series_uids) >= 0)
    assert len(submission.series_uids) == 3
    assert sorted(submission.points_xyz.tolist()) == sorted(held_out.points_xyz.tolist())
    assert len(set(submission.values.tolist())) > 1


def test_training_leaves_nothing_half_written(finished):
    output = finished[0]
    assert {"checkpoints", "metrics.json", "model.pt", "submission.csv"} <= set(os.listdir(output))
    assert not list(output.rglob("*.tmp"))


def test_training_writes_losses_and_scores_for_tensorboard(finished):
    def steps(folder: Path) -> dict[str, list[int]]:
        assert len(list(folder.glob("events*"))) == 1, "one file, not one for each epoch"
        events = EventAccumulator(str(folder)).Reload()
        tags = events.Tags()
        scalars = {tag: [one.step for one in events.Scalars(tag)] for tag in tags["scalars"]}
        curves = {tag: [one.step for one in events.Tensors(tag)] for tag in tags["tensors"]}
        return scalars | curves

    training, validation = steps(finished[0]), steps(finished[0] / "validation")
    # 12 samples in batches of 4, in 2 epochs
    assert training["train_loss"] == [1, 2, 3, 4, 5, 6]
    assert training["roc_auc"] == validation["roc_auc"] == [1, 2]
    assert validation["precision_recall"] == [1, 2]


def test_a_used_output_folder_is_refused_and_nothing_in_it_is_touched(finished):
    """Under the other run id, which names the same steps."""
    output, settings = finished
    before = {path: path.stat().st_mtime_ns for path in sorted(output.rglob("*"))}
    done = command("run", settings)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"luna16: {output} is not empty (it holds ")
    assert last.endswith("continue that run with --resume true, or name another output_dir")
    assert {path: path.stat().st_mtime_ns for path in sorted(output.rglob("*"))} == before


def test_a_finished_run_is_resumed_without_work(state, finished):
    output, settings = finished
    before = {path: path.stat().st_mtime_ns for path in sorted(output.rglob("*")) if path.is_file()}
    flow = workflow({**{key: str(value) for key, value in settings.items()}, **numbers(settings), "resume": "true"})
    flow.initialize()
    flow.run()
    after = {path: path.stat().st_mtime_ns for path in before}
    assert after == before


def numbers(settings: dict[str, Any]) -> dict[str, int]:
    return {key: value for key, value in settings.items() if isinstance(value, int)}
