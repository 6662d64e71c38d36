"""What overrides of a bundle's config mean, and which are refused."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import create_workflow
from monai.data import get_track_meta, set_track_meta

from luna16_monai.bundle import overrides
from luna16_monai.machine.errors import one_line

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "bundles" / "nodule_classification" / "configs"
MALIGNANCY = ROOT / "bundles" / "malignancy_classification" / "configs"


@pytest.fixture
def state() -> Iterator[None]:
    """Put back what a bundle changes for its whole process."""
    track, hook = get_track_meta(), sys.excepthook
    yield
    set_track_meta(track)
    sys.excepthook = hook


# --- nested overrides -----------------------------------------------------------------------------------------------

PLACES = {"optimizer#lr": "learning_rate", "schedule#max_lr": "learning_rate", "loader#batch_size": "batch_size"}


def nested(**changed: Any) -> dict[str, Any]:
    config: dict[str, Any] = {
        "learning_rate": 1e-3,
        "batch_size": 64,
        "optimizer": {"lr": "@learning_rate"},
        "schedule": {"max_lr": "@learning_rate"},
    }
    return {**config, **changed}


def test_take_nested_sets_the_setting_for_all_that_read_it() -> None:
    config = nested(optimizer={"lr": 1e-5})
    assert overrides.take_nested(config, PLACES, {"learning_rate": [1e-3]})
    assert config == nested(learning_rate=1e-5)


def test_take_nested_leaves_references_and_expressions_alone() -> None:
    for value in ("@scaled_rate", "$2 * @learning_rate", {"_target_": "Rate"}):
        config = nested(optimizer={"lr": value})
        assert not overrides.take_nested(config, PLACES, {"learning_rate": [1e-3]})
        assert config == nested(optimizer={"lr": value})


def test_take_nested_refuses_two_values_of_one_setting() -> None:
    config = nested(optimizer={"lr": 1e-5}, learning_rate=2e-3)
    with pytest.raises(
        ValueError, match=r"optimizer#lr 1e-05 and learning_rate 0\.002 mean the same: give learning_rate"
    ):
        overrides.take_nested(config, PLACES, {"learning_rate": [1e-3]})
    config = nested(optimizer={"lr": 1e-5}, schedule={"max_lr": 1e-4})
    with pytest.raises(ValueError, match=r"schedule#max_lr 0\.0001 and optimizer#lr 1e-05 mean the same"):
        overrides.take_nested(config, PLACES, {"learning_rate": [1e-3]})
    config = nested(optimizer={"lr": 1e-5}, learning_rate=1e-5)
    assert overrides.take_nested(config, PLACES, {"learning_rate": [1e-3]})


def test_references_are_those_of_the_bundle_and_of_the_one_below() -> None:
    found = overrides.references(CONFIGS, {})
    assert found["optimizer#lr"] == found["lr_scheduler#max_lr"] == "learning_rate"
    assert found["train#trainer#max_epochs"] == "max_epochs"
    assert found["volumes#paths"] == "dataset_dir"
    assert overrides.references(MALIGNANCY, {})["kinds#rule"] == "rule"
    assert overrides.references(MALIGNANCY, {})["optimizer#weight_decay"] == "weight_decay"


@pytest.mark.parametrize("configs", [CONFIGS, MALIGNANCY])
def test_training_takes_nested_overrides(
    state: None, phantom_dir: Path, store_dir: Path, tmp_path: Path, configs: Path
) -> None:
    nested: dict[str, Any] = {
        "optimizer#lr": 1e-5, "optimizer#weight_decay": 0.5, "train#sampler#samples_per_epoch": 8,
        "split#validation_stride": 3,
        "train#sampler#ratio": [1, 2] if configs == CONFIGS else [1, 2, 3], "store#store_dir": str(store_dir),
        "validate#dataloader#batch_size": 2,
    }  # fmt: skip
    settings = {"dataset_dir": str(phantom_dir), "output_dir": str(tmp_path / "run"), "device": "cpu", "num_workers": 0}
    flow = create_workflow(
        config_file=str(configs / "train.yaml"), workflow_type="train", logging_file=False, batch_size=4,
        init_weights="null", **settings, **nested, **({"train#trainer#max_epochs": 2} if configs == CONFIGS else {}),
    )  # fmt: skip
    told = {key: flow.parser.get_parsed_content(key) for key in ("learning_rate", "weight_decay", "validation_stride")}
    assert told == {"learning_rate": 1e-5, "weight_decay": 0.5, "validation_stride": 3}
    group = flow.parser.get_parsed_content("lr_scheduler").optimizer.param_groups[0]
    assert (group["max_lr"], group["weight_decay"]) == (1e-5, 0.5)
    # of the second bundle MONAI itself refuses a setting of the trainer, which its file does not hold
    assert flow.parser.get_parsed_content("train#trainer").state.max_epochs == (2 if configs == CONFIGS else 4)
    assert flow.parser.get_parsed_content("ratio") == nested["train#sampler#ratio"]
    # the validation may have batches of its own
    assert flow.parser.get_parsed_content("validate#dataloader").batch_size == 2
    assert flow.parser.get_parsed_content("train#dataloader").batch_size == 4


# --- values of the wrong kind ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"output_dir": 20241127}, r"output_dir is 20241127, which is no text: .* as in --output_dir \./NAME"),
        ({"output_dir": 1e5}, r"output_dir is 100000\.0, which is no text"),
        ({"store_dir": True}, "store_dir is True, which is no text"),
        ({"dataset_dir": None}, "dataset_dir is None, which is no text"),
        ({"init_weights": 3}, "init_weights is 3, which is no text"),
        ({"max_epochs": 2.5}, r"max_epochs 2\.5: give a whole number, 1 or more"),
        ({"max_epochs": 0}, "max_epochs 0: give a whole number, 1 or more"),
        ({"batch_size": "many"}, "batch_size many: give a whole number"),
        ({"num_workers": -1}, "num_workers -1: give a whole number, 0 or more"),
        ({"learning_rate": "fast"}, "learning_rate fast: give a number, 0 or more"),
        ({"shape_zyx": 16}, r"shape_zyx 16: give three whole numbers .* as in --shape_zyx \[32,48,48\]"),
        ({"shape_zyx": [32, 48]}, r"shape_zyx \[32, 48\]: give three whole numbers"),
        ({"spacing_zyx": 1}, r"spacing_zyx 1: give three numbers, as in --spacing_zyx \[1\.25,0\.7,0\.7\], .* or null"),
    ],
)
def test_settle_refuses_values_of_the_wrong_kind(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        overrides.settle(config, None, [])


def test_settle_takes_what_is_right_or_computed() -> None:
    config = {
        "output_dir": "./20241127", "store_dir": "$os.getcwd()", "init_weights": None, "max_epochs": "$2 + 1",
        "learning_rate": 1, "shape_zyx": [8, 8, 8], "spacing_zyx": None, "num_workers": 0,
    }  # fmt: skip
    assert not overrides.settle(dict(config), None, ["--output_dir", "./None", "--name", "Nonesuch", "None"])


@pytest.mark.parametrize("words", [["--output_dir", "None"], ["--output_dir=None"]])
def test_settle_refuses_none_which_monai_drops(words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"--output_dir None would be taken as not given: write --output_dir null"):
        overrides.settle({}, None, words)


def test_settle_refuses_a_sharp_that_fire_drops() -> None:
    overrides.settle({}, None, ["--optimizer#lr", "1", "--a", "--b#c", "2", "--d", "%file.yaml#key"])
    with pytest.raises(ValueError, match="--output_dir run#1 holds a #, which no setting can"):
        overrides.settle({}, None, ["--optimizer#lr", "1", "--output_dir", "run#1"])


@pytest.mark.parametrize("name", ["run#1", "2024_11_27"])
def test_folder_names_are_refused_before_anything_is_written(name: str, tmp_path: Path) -> None:
    words = ["run", "training", "--config_file", str(CONFIGS / "train.yaml"), "--output_dir", name]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "monai.bundle", *words],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert re.match("luna16: .*output_dir", done.stderr.strip().splitlines()[-1])
    assert not list(tmp_path.iterdir())


def test_nested_value_against_its_setting_is_refused(
    state: None, phantom_dir: Path, store_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError) as caught:
        create_workflow(
            config_file=str(CONFIGS / "train.yaml"), workflow_type="train", logging_file=False, device="cpu",
            dataset_dir=str(phantom_dir), store_dir=str(store_dir), output_dir=str(tmp_path / "run"),
            learning_rate=2e-3, **{"optimizer#lr": 1e-5},
        )  # fmt: skip
    assert "optimizer#lr 1e-05 and learning_rate 0.002 mean the same: give learning_rate" in one_line(caught.value)
    assert not (tmp_path / "run").exists()
