"""crossval and tune: what the options ask of each training, and what is refused before one is started."""

from __future__ import annotations

import argparse
import os
import shutil

import pytest
from verb_calls import prepare, refused

from luna16_monai.bundle.folders import bundle_dir
from luna16_monai.cli import experiments, main


def options(*words: str) -> argparse.Namespace:
    return main.parser().parse_args(["crossval", "--output", "x", *words])


def test_settings_are_those_of_set_and_of_seed_and_device():
    assert experiments._settings(options()) == {"seed": "0"}
    asked = options("--set", "max_epochs=2", "name=a=b", "--set", "ratio=[1,3]", "--seed", "4", "--device", "cuda:1")
    assert experiments._settings(asked) == {
        "seed": "4", "device": "cuda:1", "max_epochs": "2", "name": "a=b", "ratio": "[1,3]",
    }  # fmt: skip


@pytest.mark.parametrize("word", ["max_epochs", "=3"])
def test_a_setting_without_key_or_value_is_refused(call, data, tmp_path, word):
    call(*prepare(data, tmp_path / "store"))
    words = ["--output", tmp_path / "x", "--data", data, "--store", tmp_path / "store", "--set", word]
    refused(call("crossval", *words), f"--set {word}: key=value was expected, such as max_epochs=20")
    assert not (tmp_path / "x").exists()


def test_threads_are_the_cores_shared_unless_they_are_named(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    assert experiments._threads(options()) == 12
    assert experiments._threads(options("--workers", "3")) == 4
    assert experiments._threads(options("--workers", "3", "--gpus", "2")) == 2
    assert experiments._threads(options("--workers", "30")) == 1
    assert experiments._threads(options("--workers", "3", "--threads", "5")) == 5


def test_a_bundle_and_an_overlay_from_elsewhere_run_only_if_they_are_trusted(call, data, tmp_path):
    call(*prepare(data, tmp_path / "store"))
    mine = tmp_path / "mine"
    shutil.copytree(bundle_dir(), mine)
    words = ["--output", tmp_path / "x", "--data", data, "--store", tmp_path / "store"]
    for verb, more in (("crossval", ()), ("tune", ("--trials", 1))):
        refused(call(verb, *words, *more, "--bundle", mine), "train.yaml does not come with luna16_monai")
        (tmp_path / "calls.yaml").write_text("network:\n  _target_: os.system\n")
        refused(call(verb, *words, *more, "--overlay", tmp_path / "calls.yaml"), "it calls os.system")
    # an overlay of plain values is as harmless as --set
    (tmp_path / "plain.yaml").write_text("max_epochs: 1\n")
    assert experiments._trained_bundle(options("--overlay", str(tmp_path / "plain.yaml"))) == bundle_dir()
    assert not (tmp_path / "x").exists()


def test_crossval_without_a_store_is_refused(call, data, tmp_path):
    words = ["--output", tmp_path / "x", "--data", data, "--store", tmp_path / "store"]
    refused(call("crossval", *words), f"no store in {tmp_path / 'store'}", "run luna16 prepare")
    assert not (tmp_path / "x").exists()
