"""Which runs go on: what of two configs changes what is computed, in today's names and in those of before."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser

from luna16_monai.bundle.bases import read_whole
from luna16_monai.bundle.folders import bundle_dir
from luna16_monai.training.comparison import differences

BEFORE = Path(__file__).parents[1] / "bundle" / "before"
SETTINGS = {"num_workers": 0, "max_epochs": 2, "batch_size": 16, "validation_stride": 3}
# what the runs of before were given on the command line
GIVEN = {
    "nodules": {
        **SETTINGS,
        "shape_zyx": [16, 24, 24],
        "margin_zyx": [4, 6, 6],
        "samples_per_epoch": 96,
        "seed": 5,
    },
    "malignancy": {
        **SETTINGS,
        "samples_per_epoch": 32,
        "seed": 6,
        "init_weights": "runs/nodules/model.pt",
        "nodule_run": "runs/nodules",
        # the bundle's network was the design's
        "network_def#two_scales": False,
    },
}


def of_today(kind: str) -> dict[str, Any]:
    """The config of the same training as it is written now, as a checkpoint would hold it."""
    bundle = {"nodules": "nodule_classification", "malignancy": "malignancy_classification"}[kind]
    parser = ConfigParser(read_whole(bundle_dir(bundle) / "configs" / "train.yaml"))
    for key, value in GIVEN[kind].items():
        parser[key] = value
    parser.parse()
    return json.loads(json.dumps(parser.config, default=str))


def of_before(kind: str) -> dict[str, Any]:
    return json.loads((BEFORE / f"{kind}_config.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", ["nodules", "malignancy"])
def test_run_of_before_goes_on(kind):
    before, now = of_before(kind), of_today(kind)
    # the two have hardly a name in common
    assert before["network_def"]["_target_"] != now["network_def"]["_target_"]
    assert before["initialize"] != now["initialize"]
    assert differences(before, now) == {}


def test_fine_tuning_of_before_is_told_that_the_network_has_changed():
    now = of_today("malignancy")
    now["network_def"]["two_scales"] = True
    assert differences(of_before("malignancy"), now) == {
        "network_def#two_scales": "network_def#two_scales was false, is true"
    }


@pytest.mark.parametrize("kind", ["nodules", "malignancy"])
@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("learning_rate",), 0.5, r"learning_rate was"),
        (("network_def", "norm"), "BATCH", r'network_def#norm was null, is "BATCH"'),
        (("split", "_target_"), "my.Split", r'split#_target_ was "luna16_monai.dataset.splits.Split", is "my.Split"'),
        (("train", "random_transforms", 4, "std"), 30.0, r"train#random_transforms#4#std was 25.0, is 30.0"),
        (("train", "handlers", 1, "_target_"), "my.Loss", r"train#handlers#1#_target_ was"),
        (
            ("validate", "preprocessing", "transforms", 0, "keys"),
            "label",
            r"validate#preprocessing#transforms#0#keys was",
        ),
    ],
)
def test_what_changes_a_run_is_told(kind, path, value, told):
    now = of_today(kind)
    part: Any = now
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    (line,) = differences(of_before(kind), now).values()
    assert line.startswith(told)


def test_what_only_tells_of_a_run_is_free():
    before = of_today("nodules")
    now = copy.deepcopy(before)
    now["train"]["handlers"].append({"_target_": "luna16_monai.training.tracking.Tracking", "prefix": "train"})
    now["train"]["handlers"].insert(0, {"_target_": "TensorBoardStatsHandler", "tag_name": "more"})
    now["validate"]["more_results"] = [{"_target_": "my.Scores"}]
    now |= {"run_name": "mine", "output_dir": "elsewhere", "num_workers": 7, "training": []}
    assert differences(before, now) == {}
    now["train"]["handlers"].append({"_target_": "my.ClipGradient"})
    (line,) = differences(before, now).values()
    assert line.startswith("train#handlers was ")


def test_short_names_of_imports_stand_for_what_they_mean():
    before = {"imports": ["$import mine.losses as losses"], "loss": "$losses.focal(2)"}
    assert differences(before, {"imports": ["$import mine.losses as l"], "loss": "$l.focal(2)"}) == {}
    assert differences(before, {"imports": ["$import other as losses"], "loss": "$losses.focal(2)"}) == {
        "loss": 'loss was "$mine.losses.focal(2)", is "$other.focal(2)"'
    }


def test_tables_of_candidates_are_compared_by_their_rows_and_not_by_their_names():
    before = {"split": {"_target_": "a"}}
    now = {"candidates": "runs/found.csv", "split": {"_target_": "a", "candidates": "@candidates"}}
    assert differences(before, now) == {}
    assert differences(now, {**now, "candidates": None}) == {}
    assert "split#candidates" in differences(before, {"split": {"_target_": "a", "candidates": "x.csv"}})
