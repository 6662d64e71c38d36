"""What a running config knows of itself: its settings as checked, what it builds on, its errors."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from monai.bundle import ConfigParser, create_workflow

from luna16_monai.bundle import config as bundle
from luna16_monai.machine.errors import one_line, root_cause

# a name of before the package had packages
BEFORE = "luna16_monai." + "networks.NoduleNet"


def checked(config: dict[str, Any]) -> ConfigParser:
    """A small config after its check."""
    imports = {"imports": ["$import luna16_monai.bundle.config as bundle"], "initialize": ["$bundle.check_settings()"]}
    parser = ConfigParser({**imports, **config})
    parser.get_parsed_content("initialize")
    return parser


def test_check_settings_accepts_what_something_reads():
    checked({"max_epochs": 3, "train": {"epochs": "@max_epochs"}})


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("max_epoch", "was max_epochs meant?"),
        ("maxepochs", "was max_epochs meant?"),
        ("zzz", "nothing reads it (settings"),
    ],
)
def test_check_settings_refuses_a_key_that_nothing_reads_and_names_the_near_one(key, hint):
    with pytest.raises(RuntimeError) as caught:
        checked({"max_epochs": 3, "ratio": [1, 5], key: 3, "train": {"a": "@max_epochs", "b": "$sum(@ratio)"}})
    assert type(root_cause(caught.value)) is ValueError
    line = one_line(caught.value)
    assert line.startswith(f"{key} is no setting of this bundle")
    assert hint in line
    assert "(settings: max_epochs, ratio)" in line


def test_check_settings_refuses_no_epochs():
    with pytest.raises(RuntimeError) as caught:
        checked({"max_epochs": 0, "train": {"epochs": "@max_epochs"}})
    assert one_line(caught.value) == "max_epochs 0: give a whole number, 1 or more"


def test_check_settings_turns_words_into_values():
    config = {
        "resume": "true",
        "amp": "false",
        "validation_subset": "null",
        "name": "trueish",
        "network_def": {"bias": "false", "norms": ["null", "BATCH"]},
        "train": "$[@resume, @amp, @validation_subset, @name]",
    }
    parser = checked(config)
    assert parser.get_parsed_content("train") == [True, False, None, "trueish"]
    assert parser.get_parsed_content("network_def") == {"bias": False, "norms": [None, "BATCH"]}


def test_check_settings_refuses_its_use_outside_a_config():
    with pytest.raises(RuntimeError, match="called outside a config: use it in a \\$ expression"):
        bundle.check_settings()


def test_check_settings_counts_what_python_fetches_by_name_as_read():
    config = {"max_epochs": 3, "seed": 1, "train": "@max_epochs"}
    imports = {"imports": ["$import luna16_monai.bundle.config as bundle"]}
    with pytest.raises(RuntimeError) as caught:
        checked(config)
    assert one_line(caught.value).startswith("seed is no setting of this bundle")
    parser = ConfigParser({**imports, **config, "initialize": ["$bundle.check_settings('seed')"]})
    parser.get_parsed_content("initialize")
    # a typing error is told with the settings that Python fetches among the known ones
    parser = ConfigParser({**imports, **config, "sed": 2, "initialize": ["$bundle.check_settings('seed')"]})
    with pytest.raises(RuntimeError) as caught:
        parser.get_parsed_content("initialize")
    assert "sed is no setting of this bundle, nothing reads it: was seed meant?" in one_line(caught.value)


def test_check_settings_names_what_a_moved_name_is_called_now():
    with pytest.raises(RuntimeError) as caught:
        checked({"network_def": {"_target_": BEFORE}})
    assert one_line(caught.value) == (
        f"the config: {BEFORE} has moved: write luna16_monai.networks.nodule_net.NoduleNet"
    )


def test_value_of_builds_what_a_key_stands_for_and_knows_what_is_missing():
    config = {"imports": ["$import luna16_monai.bundle.config as bundle"], "a": 1, "b": "$@a + 1"}
    parser = ConfigParser({**config, "c": "$bundle.value_of('b'), bundle.value_of('d', 7), bundle.value_of('e')"})
    assert parser.get_parsed_content("c") == (2, 7, None)


def test_running_config_is_the_config_as_written():
    parser = ConfigParser({"imports": ["$import luna16_monai.bundle.config as bundle"], "b": "$@a + 1", "a": 1})
    parser["a"] = 5
    parser["kept"] = "$bundle.running_config()"
    kept = parser.get_parsed_content("kept")
    assert (kept["a"], kept["b"]) == (5, "$@a + 1")
    assert "_meta_" not in kept


def test_build_on_changes_single_keys_and_lengthens_lists(state, tmp_path):
    (tmp_path / "below.yaml").write_text(
        "a: 1\nb: 2\npart: {x: 1, inner: {_target_: dict, one: 1}, items: [1], whole: {_target_: dict, one: 1}}\n"
        "run: ['$None']\n",
        encoding="utf-8",
    )
    (tmp_path / "above.yaml").write_text(
        "builds_on: [below.yaml]\nimports: [$import luna16_monai.bundle.config as bundle]\nb: 3\n"
        "part: {inner: {two: 2}, +items: [2], whole: {_target_: dict, two: 2}}\n"
        "initialize: [$bundle.build_on()]\n",
        encoding="utf-8",
    )
    flow = create_workflow(config_file=str(tmp_path / "above.yaml"), workflow_type=None, logging_file=False)
    parsed = flow.parser.get_parsed_content
    assert (parsed("a"), parsed("b"), parsed("part#x")) == (1, 3, 1)
    assert (parsed("part#inner"), parsed("part#items")) == ({"one": 1, "two": 2}, [1, 2])
    assert parsed("part#whole") == {"two": 2}, "a part that names its _target_ stands for itself"


def test_explain_errors_says_the_root_cause_in_the_last_line(state, capsys):
    bundle.explain_errors()
    with pytest.raises(RuntimeError) as caught:
        ConfigParser({"a": "$int('x')"}).get_parsed_content("a")
    sys.excepthook(caught.type, caught.value, caught.tb)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-1] == "luna16: invalid literal for int() with base 10: 'x'"


# --- what --tracking mlflow adds ------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [[], ["evaluator"]])
def test_build_on_adds_each_trackers_handler_once(state, tmp_path, own):
    """MONAI adds its handlers before a config is built on others, so to engines of this file alone."""
    engine = {"evaluator": {"_target_": "dict", "val_handlers": "@handlers"}, "handlers": [{"_target_": "dict"}]}
    train = {"trainer": {"_target_": "dict"}, "handlers": [{"_target_": "dict"}]}
    above = {
        "builds_on": ["below.yaml"],
        "imports": ["$import luna16_monai.bundle.config as bundle"],
        "save_execute_config": False,
        "initialize": ["$bundle.build_on()"],
        "run": [],
        **(engine if own else {}),
    }
    below = {"output_dir": "here", "is_not_rank0": False, "train": train, **({} if own else engine)}
    for name, config in (("above", above), ("below", below)):
        ConfigParser.export_config_file(config, str(tmp_path / f"{name}.yaml"), fmt="yaml")
    path = str(tmp_path / "above.yaml")
    flow = create_workflow(config_file=path, workflow_type=None, logging_file=False, tracking="mlflow")
    for handlers in ("handlers", "train#handlers"):
        assert [one["_target_"] for one in flow.parser[handlers]] == ["dict", "MLFlowHandler"]
    assert flow.parser["is_not_rank0"] is False
    assert flow.parser["save_execute_config"] is None
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".json"] == []


def test_without_steps_leaves_out_the_imports_that_only_they_use():
    config = {
        "imports": ["$import os", "$import heavy.part as start", "$from other import torch"],
        "initialize": ["$start.inference()"],
        "run": ["$start.go(@a)"],
        "a": "$os.path.join('x', 'y')",
        "b": {"c": ["$torch.zeros(1)", "restart"]},
    }
    less = bundle.without_steps(config)
    assert less == {"imports": ["$import os", "$from other import torch"], "a": config["a"], "b": config["b"]}
    assert set(config) == {"imports", "initialize", "run", "a", "b"}
