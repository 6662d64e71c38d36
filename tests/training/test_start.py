"""What a training and a scoring begin with: the folder, the seed, the weights and their network."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow, create_workflow
from monai.data import get_track_meta, set_track_meta

from luna16_monai.bundle.folders import bundle_dir
from luna16_monai.dataset.splits import Split
from luna16_monai.machine.errors import one_line
from luna16_monai.networks.nodule_net import NoduleNet
from luna16_monai.networks.precision import SelfTest
from luna16_monai.runs.folder import RunFolder
from luna16_monai.runs.seen import Seen, write_seen
from luna16_monai.store.reading import Store
from luna16_monai.tables.data_sets import DataSets
from luna16_monai.tables.detected import read_detected
from luna16_monai.tables.luna16 import read_candidates
from luna16_monai.tables.points import write_points
from luna16_monai.training import distributed, start
from luna16_monai.training.seeds import seed_network

CONFIGS = bundle_dir() / "configs"
BEFORE = Path(__file__).parents[1] / "bundle" / "before"


@pytest.fixture(autouse=True)
def state() -> Iterator[None]:
    """Put back what a start changes for its whole process."""
    track, hook, threads = get_track_meta(), sys.excepthook, torch.get_num_threads()
    yield
    set_track_meta(track)
    sys.excepthook = hook
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def data(phantom_dir, store_dir) -> dict[str, Any]:
    return {"dataset_dir": str(phantom_dir), "store_dir": str(store_dir), "device": "cpu", "validation_stride": 3}


def started(files: list[Path], settings: dict[str, Any], kind: str = "train") -> Any:
    return create_workflow(config_file=list(map(str, files)), workflow_type=kind, logging_file=False, **settings)


def test_training_builds_the_network_after_the_seed_is_set(data, tmp_path):
    """Whatever was drawn before; a text of the command line is read as YAML would before anything is fetched."""
    torch.manual_seed(99)
    more = {"output_dir": str(tmp_path / "run"), "seed": 7, "deterministic": "true", "resume": "true"}
    flow = started([CONFIGS / "train.yaml"], {**data, **more})
    seed_network(7)
    expected = NoduleNet(return_probabilities=False).state_dict()
    assert {name: torch.equal(tensor, expected[name]) for name, tensor in flow.network_def.state_dict().items()} == (
        dict.fromkeys(expected, True)
    )
    assert torch.are_deterministic_algorithms_enabled()
    assert not get_track_meta()


def test_training_takes_out_of_fold_candidates_alone(data, phantom_dir, tmp_path, caplog):
    """From a table whose weights have seen the held-out scans; with one of its own series among them it is refused."""
    split = Split(phantom_dir, Store(data["store_dir"]), validation_stride=3)
    uid, other = split.train_series[:2]
    middle = read_candidates(phantom_dir)
    middle = middle.select(middle.series_codes([uid]) == 0)
    table = tmp_path / "found.csv"
    write_points(table, [uid] * len(middle), middle.points_xyz, np.full(len(middle), 0.5), "probability")
    settings = {**data, "candidates": str(table), "output_dir": str(tmp_path / "run")}

    def refusal() -> str:
        with pytest.raises(RuntimeError) as caught:
            started([CONFIGS / "train.yaml"], settings)
        assert not (tmp_path / "run").exists()
        return one_line(caught.value)

    assert "no found.csv.seen.json beside it" in refusal()
    write_seen(table, Seen.of([uid], {}))
    assert f"series {uid} is one that the weights which proposed its candidates were trained on" in refusal()
    write_seen(table, Seen.of([other, *split.validation_series[:2]], {}))
    with caplog.at_level(logging.INFO):
        flow = started([CONFIGS / "train.yaml"], settings)
    assert f"trained on 2 of the {len(split.validation_series)} series that are validated on" in caplog.text
    drawn_from = flow.parser.get_parsed_content("split").train.table
    # the nodules of the list, and what was found, but for what lies on an excluded finding
    expected = int(middle.values.sum()) + len(read_detected([table], DataSets.of(phantom_dir)))
    assert (drawn_from.series_codes([uid]) == 0).sum() == expected > len(middle.values) / 2


def test_training_refuses_a_used_folder_before_the_network_is_built(data, tmp_path):
    """That of a refused training stays as it was, also where its text says that nothing is to go on."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "model.pt").touch()
    settings = {**data, "output_dir": str(run), "resume": "false", "network_def": {"_target_": "no.such.network"}}
    with pytest.raises(RuntimeError) as caught:
        started([CONFIGS / "train.yaml"], settings)
    assert one_line(caught.value).startswith(f"{run} is not empty (it holds model.pt): continue that run")
    assert [path.name for path in run.iterdir()] == ["model.pt"]


@pytest.mark.parametrize("name", ["gpu", "cuda:99"])
def test_training_refuses_a_device_that_is_not_there(data, tmp_path, name):
    with pytest.raises(RuntimeError) as caught:
        started([CONFIGS / "train.yaml"], {**data, "device": name, "output_dir": str(tmp_path / "run")})
    assert one_line(caught.value).startswith(f"device {name}: ")
    assert "cpu" in one_line(caught.value)
    assert not (tmp_path / "run").exists()


def test_training_of_several_processes_joins_them_before_it_claims_the_folder(data, tmp_path, monkeypatch):
    for name in distributed.TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    files = [CONFIGS / "train.yaml", CONFIGS / "multi_gpu_train.yaml"]
    with pytest.raises(RuntimeError) as caught:
        started(files, {**data, "output_dir": str(tmp_path / "run"), "init_weights": str(tmp_path / "nowhere.pt")})
    assert "not set: multi_gpu_train.yaml is for processes that torchrun starts" in one_line(caught.value)
    assert not (tmp_path / "run").exists()
    # and the settings are checked before that
    with pytest.raises(RuntimeError) as caught:
        started(files, {**data, "output_dir": str(tmp_path / "run"), "max_epoch": 1})
    assert one_line(caught.value).startswith("max_epoch is no setting of this bundle")


@pytest.mark.parametrize(
    ("found", "blocks"),
    [
        (SelfTest((True, True, True, False), 0.6), (True, True, True, False)),
        (SelfTest((True, True, True, True), 1.5), (False,) * 4),
    ],
)
def test_recipe_trains_in_bfloat16_where_the_self_test_finds_it_right_and_faster(
    data, tmp_path, monkeypatch, found, blocks
):
    monkeypatch.setattr(start, "try_bfloat16", lambda _: found)
    files = [CONFIGS / "train.yaml", CONFIGS / "recipe.yaml"]
    flow = started(files, {**data, "output_dir": str(tmp_path / "run")})
    assert flow.network_def.bfloat16_blocks == blocks


def test_run_that_goes_on_keeps_the_blocks_of_its_record(data, tmp_path, monkeypatch, caplog):
    """A second self-test may find another time; the run goes on as it began, as far as that is right here."""
    files = [CONFIGS / "train.yaml", CONFIGS / "recipe.yaml"]
    settings = {**data, "output_dir": str(tmp_path / "run"), "max_epochs": 1, "samples_per_epoch": 16}
    settings |= {"num_workers": 0, "validation_negatives": 20, "resume": True}
    monkeypatch.setattr(start, "try_bfloat16", lambda _: SelfTest((True, True, True, False), 0.6))
    started(files, settings).run()
    record = RunFolder(tmp_path / "run").read_record()
    assert record is not None
    assert record.bf16_blocks == (True, True, True, False)
    assert record.settings["bf16"] is True
    assert record.keeps_memory is (sys.platform == "linux")

    monkeypatch.setattr(start, "try_bfloat16", lambda _: SelfTest((True, True, True, True), 2.0))
    assert started(files, settings).network_def.bfloat16_blocks == (True, True, True, False)
    assert "results will differ" not in caplog.text
    monkeypatch.setattr(start, "try_bfloat16", lambda _: SelfTest((True, False, True, True), 0.6))
    assert started(files, settings).network_def.bfloat16_blocks == (True, False, True, False)
    assert "results will differ" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bf16": "maybe"}, "bf16 maybe: give true or false"),
        ({"bf16": True, "network_def": {"_target_": "torch.nn.Identity"}}, "bf16 true: Identity is not made of blocks"),
    ],
)
def test_training_refuses_a_wrong_bf16_in_one_line(data, tmp_path, settings, message):
    with pytest.raises(RuntimeError) as caught:
        started([CONFIGS / "train.yaml"], {**data, "output_dir": str(tmp_path / "run"), **settings})
    assert one_line(caught.value).startswith(message)


def test_evaluation_takes_the_network_of_a_run_from_before(data, tmp_path):
    """Its record had no entry for the network, and named it as it was called then."""
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(BEFORE / "run.json", run)
    torch.save(NoduleNet([16, 24, 24], return_probabilities=False).state_dict(), run / "model.pt")
    flow = started([CONFIGS / "evaluate.yaml"], {**data, "run_dir": str(run)}, "inference")
    assert flow.parser["shape_zyx"] == [16, 24, 24]
    weights = torch.load(run / "model.pt", weights_only=True)
    assert torch.equal(flow.network_def.state_dict()["head.weight"], weights["head.weight"])


@pytest.mark.parametrize("name", ["nodule_classification", "malignancy_classification", "nodule_detection"])
def test_training_refuses_a_setting_that_nothing_reads_in_each_bundle(data, tmp_path, name):
    settings = {**data, "output_dir": str(tmp_path / "run"), "learning_rat": 0.1}
    with pytest.raises(RuntimeError) as caught:
        started([bundle_dir(name) / "configs" / "train.yaml"], settings)
    assert one_line(caught.value).startswith("learning_rat is no setting of this bundle")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["nodule_classification", "malignancy_classification"])
def test_evaluation_after_its_training_is_that_file_alone(name):
    """As `luna16 crossval` names the files: train.yaml, overlays, evaluate.yaml."""
    folder, given = bundle_dir(name) / "configs", {"init_weights": "w.pt", "run_dir": "run", "output_dir": "out"}
    alone, after = (
        dict(whole([folder / file for file in files], given).parser.config)
        for files in (["evaluate.yaml"], ["train.yaml", "evaluate.yaml"])
    )
    assert {key for key in {**alone, **after} if alone.get(key) != after.get(key)} == set()


def whole(files: list[Path], settings: dict[str, Any]) -> Any:
    """A scoring after its first steps; nothing of it is built."""
    flow = ConfigWorkflow(list(map(str, files)), workflow_type="infer", logging_file=False, **settings)
    flow.parser["initialize"] = ["$start.build_on()"]
    flow.initialize()
    return flow
