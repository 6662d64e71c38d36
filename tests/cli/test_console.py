"""What the verbs share: folders, tables, trust, devices, and what is printed where."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from luna16_monai.bundle.folders import bundle_dir
from luna16_monai.cli import console


def options(*words: str) -> argparse.Namespace:
    """Options of a verb that has all shared ones."""
    verbs = argparse.ArgumentParser().add_subparsers()
    verb = console.add_verb(verbs, "try", lambda _: console.DONE, "text")
    for add in (
        console.add_data, console.add_store, console.add_workers, console.add_seed, console.add_device,
        console.add_bundle, console.add_trust, console.add_bootstrap, console.add_symlinks, console.add_ray,
    ):  # fmt: skip
        add(verb)
    return verb.parse_args(words)


def test_add_verb_gives_the_options_of_every_verb_and_what_runs_it():
    plain = options()
    assert (plain.json, plain.quiet, plain.debug) == (False, False, False)
    assert plain.run(plain) == 0
    asked = options("--json", "--quiet", "--debug")
    assert (asked.json, asked.quiet, asked.debug) == (True, True, True)


def test_shared_options_have_these_defaults():
    plain = vars(options())
    del plain["run"], plain["json"], plain["quiet"], plain["debug"]
    assert plain == {
        "data": None, "store": None, "workers": None, "seed": 0, "device": "auto", "bundle": None,
        "trust_bundle": False, "bootstrap": 1000, "allow_symlinks": False, "ray": None, "dashboard": False,
    }  # fmt: skip


def test_folders_are_those_of_the_option_then_of_the_environment_then_the_default(monkeypatch):
    monkeypatch.delenv("LUNA16_DATA", raising=False)
    monkeypatch.delenv("LUNA16_STORE", raising=False)
    assert console.data_folders(options()) == (Path("data/phantom"),)
    assert console.store_folders(options()) == (Path("data/store"),)
    monkeypatch.setenv("LUNA16_DATA", "/a/data")
    monkeypatch.setenv("LUNA16_STORE", "/a/store")
    assert console.data_folders(options()) == (Path("/a/data"),)
    assert console.store_folders(options()) == (Path("/a/store"),)
    assert console.data_folders(options("--data", "x")) == (Path("x"),)
    assert console.store_folders(options("--store", "y")) == (Path("y"),)
    monkeypatch.setenv("LUNA16_DATA", f"/a{os.pathsep}/b")
    assert console.data_folders(options()) == (Path("/a"), Path("/b"))
    with pytest.raises(ValueError, match=r"2 data folders \(/a, /b\) with 1 stores \(/a/store\): name one store for"):
        console.data_and_stores(options())


def test_existing_gives_a_file_and_refuses_a_folder(tmp_path):
    table = tmp_path / "a.csv"
    table.write_text("seriesuid\n")
    assert console.existing(table) == table
    for path in (tmp_path, tmp_path / "b.csv"):
        with pytest.raises(FileNotFoundError, match=r"no file .*: name a table that is there"):
            console.existing(path)


def test_bundle_is_the_nodule_bundle_or_one_that_is_trusted(tmp_path, capsys):
    assert console.bundle(None, False) == bundle_dir("nodule_classification")
    assert console.bundle(bundle_dir("malignancy_classification"), False) == bundle_dir("malignancy_classification")
    mine = tmp_path / "mine"
    shutil.copytree(bundle_dir(), mine)
    with pytest.raises(ValueError, match=r"mine does not come with luna16_monai .*: add --trust-bundle"):
        console.bundle(mine, False)
    assert console.bundle(mine, True) == mine
    assert "mine calls " in capsys.readouterr().err


@pytest.mark.parametrize(("there", "device"), [(True, "cuda"), (False, "cpu")])
def test_device_auto_is_cuda_where_it_is_available(there, device, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: there)
    assert console.device("auto") == device


def test_device_refuses_what_is_not_there(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert console.device("cuda:1") == "cuda:1"
    with pytest.raises(ValueError, match=r"device cuda:2: there is cuda:0 to cuda:1, and cpu: name one of them"):
        console.device("cuda:2")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for name in ("cuda", "cuda:0"):
        with pytest.raises(ValueError, match=rf"device {name}: .*, so there is cpu alone: name that one"):
            console.device(name)


@pytest.mark.parametrize("name", ["gpu", "GPU", "0", "cuda:", "cuda:x", "mps", ""])
def test_device_must_be_named_as_one(name, capsys):
    parser = argparse.ArgumentParser()
    console.add_device(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--device", name])
    assert f"{name!r} is no device: name auto, cpu, cuda or cuda:N" in capsys.readouterr().err


def test_tell_prints_the_line_or_the_json_alone(capsys):
    assert console.tell(options(), {"a": 1}, "a line") == 0
    assert capsys.readouterr() == ("a line\n", "")
    assert console.tell(options("--json"), {"a": [1, None]}, "a line") == 0
    out, err = capsys.readouterr()
    assert (json.loads(out), err) == ({"a": [1, None]}, "")


def test_warn_prints_on_standard_error(capsys):
    console.warn(["one", "two"])
    assert capsys.readouterr() == ("", "luna16: warning: one\nluna16: warning: two\n")


def test_progress_is_shown_in_a_terminal_unless_quiet(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert console.shows_progress(options())
    assert not console.shows_progress(options("--quiet"))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    assert not console.shows_progress(options())
