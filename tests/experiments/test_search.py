"""The plan of a search: what its file may say, what is drawn, and a trial as a job."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from small_search import RANGES, plan, search, written

from luna16_monai.bundle.folders import bundle_dir
from luna16_monai.experiments.search import Search

OWN = bundle_dir() / "configs" / "tune.yaml"


def test_tune_yaml_names_settings_that_train_yaml_has():
    ranges = Search.read(OWN).ranges
    asked = {
        "learning_rate",
        "weight_decay",
        "network_def#channels",
        "network_def#dropout",
        "network_def#norm",
        "ratio",
    }
    assert asked | {"spacing_zyx", "augmentation"} == set(ranges)
    config = yaml.safe_load((OWN.parent / "train.yaml").read_text(encoding="utf-8"))
    for name, one in ranges.items():
        for key, base in one.get("times", {name: None}).items():
            place: Any = config
            for part in key.split("#"):
                place = place[int(part) if isinstance(place, list) else part]
            # at strength 1 it is what train.yaml says
            assert base is None or base == place, key


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "beauty"}, "metric beauty: name one of average_precision, cpm"),
        ({"search": {"a": {"uniform": [1, 0]}}}, r"a is \[1, 0\]: two numbers, the smaller one first"),
        ({"search": {"a": {"log_uniform": [0, 1]}}}, r"a is \[0, 1\]: two numbers"),
        (
            {"search": {"a": {"normal": [0, 1]}}},
            "a is .*: one of uniform, log_uniform, choice with a list was expected",
        ),
        ({"search": {"a": {"choice": 3}}}, "one of uniform, log_uniform, choice with a list was expected"),
    ],
)
def test_search_refuses(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        Search.read(written(tmp_path, search(**changes)))


def test_search_refuses_a_file_that_lacks_a_key_or_is_absent(tmp_path):
    with pytest.raises(ValueError, match=r"cannot be read .*metric.*: see the nodule bundle's configs/tune.yaml"):
        Search.read(written(tmp_path, {"search": {}}))
    with pytest.raises(FileNotFoundError, match=r"no search .*none\.yaml"):
        Search.read(tmp_path / "none.yaml")


def test_settings_reads_choices_and_spreads_a_strength_over_its_settings():
    drawn = {"learning_rate": 0.00123456, "network_def#norm": "null", "augmentation": 0.5}
    assert Search("cpm", 1, 2, RANGES).settings(drawn) == {
        "learning_rate": 0.001235,
        "network_def#norm": None,
        "train#random_transforms#3#scale_range": [0.1, 0.1, 0.1],
        "train#random_transforms#4#std": 12.5,
    }


def test_plan_refuses_what_a_trial_decides(tmp_path):
    with pytest.raises(ValueError, match="learning_rate is what each trial decides itself"):
        plan(tmp_path, settings={"learning_rate": "1"})
    with pytest.raises(ValueError, match="key_metric is what each trial decides itself"):
        plan(tmp_path, settings={"key_metric": "loss"})


def test_trials_have_the_epochs_of_an_overlay_unless_they_are_set(tmp_path):
    overlay = tmp_path / "longer.yaml"
    overlay.write_text("max_epochs: 30\n", encoding="utf-8")
    assert plan(tmp_path).max_epochs == yaml.safe_load((OWN.parent / "train.yaml").read_text())["max_epochs"]
    assert plan(tmp_path, overlays=(overlay,)).max_epochs == 30
    assert plan(tmp_path, overlays=(overlay,), settings={"max_epochs": "2"}).max_epochs == 2


def test_job_of_a_trial_trains_on_the_store_of_its_spacing(tmp_path):
    one = plan(tmp_path, settings={"max_epochs": "2"})
    stores = {"[1.0, 1.0, 1.0]": tmp_path / "stores" / "1.0x1.0x1.0"}
    words = one.job("t", {"spacing_zyx": [1.0, 1.0, 1.0], "network_def#norm": None}, stores).commands[0]
    told = dict(zip(words[9::2], words[10::2], strict=True))
    assert told["--store_dir"] == str(tmp_path / "stores" / "1.0x1.0x1.0")
    assert (told["--spacing_zyx"], told["--network_def#norm"]) == ("[1.0, 1.0, 1.0]", "null")
    assert (told["--key_metric"], told["--resume"], told["--max_epochs"]) == ("cpm", "true", "2")
