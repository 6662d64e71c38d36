"""The luna16 command: its options, exit codes and one-line errors, and that its help loads nothing."""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path

import pytest
from verb_calls import prepare

from luna16_monai import __version__
from luna16_monai.cli import main as cli

ROOT = Path(__file__).parents[2]
VERBS = ROOT / "luna16_monai" / "cli"

# type, nargs, whether required, whether given more than once, default; in the order of the help
OPTIONS = {
    "phantom": {
        "--output": "path",
        "--scans": "int",
        "--seed": "int, default 0",
        "--workers": "int",
        "--difficulty": "float",
        "--negatives-per-positive": "float",
        "--background": "path, +, more than once",
        "--nodules": "path",
        "--annotations": "path",
        "--recipe": "2|3",
    },
    "bank": {
        "--ct": "path, +, more than once",
        "--masks": "path, +, more than once",
        "--lidc": "path",
        "--readers": "int, default 3",
        "--output": "path, required",
        "--allow-symlinks": "flag",
    },
    "download": {
        "--output": "path",
        "--subset": "int, *",
        "--base-url": "text",
        "--keep-archives": "flag",
        "--lidc": "flag",
        "--patient": "text, +",
    },
    "doctor": {
        "--data": "path, +",
        "--store": "path, +",
    },
    "prepare": {
        "--data": "path, +",
        "--store": "path, +",
        "--spacing-zyx": "float, 3",
        "--native": "flag",
        "--config": "path",
        "--trust-bundle": "flag",
        "--allow-missing": "flag",
        "--allow-symlinks": "flag",
        "--workers": "int",
        "--ray": "text",
        "--dashboard": "flag",
    },
    "evaluate": {
        "--annotations": "path, required",
        "--excluded": "path",
        "--no-excluded": "flag",
        "--seriesuids": "path, required",
        "--subsets": "path",
        "--bootstrap": "int, default 1000",
        "--seed": "int, default 0",
        "--submission": "path, required",
        "--ras": "flag",
        "--lung-mask": "path",
        "--output": "path",
    },
    "compare": {
        "--annotations": "path, required",
        "--excluded": "path",
        "--no-excluded": "flag",
        "--seriesuids": "path, required",
        "--subsets": "path",
        "--bootstrap": "int, default 1000",
        "--seed": "int, default 0",
        "--submission": "path, required, more than once",
        "--output": "path",
    },
    "benchmark": {
        "--cutouts": "path",
        "--ct": "path, +, more than once",
        "--nodules": "path",
        "--negatives": "int, default 100",
        "--weights": "path, +",
        "--bundle": "path",
        "--trust-bundle": "flag",
        "--use": "text",
        "--matched": "flag",
        "--views": "int",
        "--output": "path",
        "--allow-symlinks": "flag",
        "--device": "device_name, default auto",
        "--bootstrap": "int, default 1000",
        "--seed": "int, default 0",
    },
    "detect": {
        "--ct": "path, +, required, more than once",
        "--output": "path, required",
        "--max": "int, default 50",
        "--threshold": "float, default 0.0",
        "--bundle": "path",
        "--trust-bundle": "flag",
        "--weights": "path",
        "--lung-mask": "path",
        "--no-lung-mask": "flag",
        "--allow-symlinks": "flag",
        "--backend": "auto|torch|openvino, default auto",
        "--views": "int",
        "--device": "device_name, default auto",
        "--workers": "int",
        "--ray": "text",
        "--dashboard": "flag",
    },
    "predict": {
        "--ct": "path, +, required, more than once",
        "--candidates": "path",
        "--max": "int, default 50",
        "--lung-mask": "path",
        "--no-lung-mask": "flag",
        "--detector": "path",
        "--detector-weights": "path",
        "--bundle": "path, +",
        "--trust-bundle": "flag",
        "--weights": "path, +",
        "--malignancy": "text, ?",
        "--malignancy-weights": "path",
        "--backend": "auto|torch|openvino, default auto",
        "--tta": "flag",
        "--views": "int",
        "--device": "device_name, default auto",
        "--output": "path, required",
        "--format": "text",
        "--allow-symlinks": "flag",
        "--ras": "flag",
        "--dicom-sr": "path",
        "--report": "path",
        "--threshold": "float",
        "--explain": "path",
        "--explain-top": "int, default 10",
    },
    "review": {
        "--predictions": "path",
        "--ct": "path, +, required, more than once",
        "--output": "path",
        "--port": "int, default 0",
        "--decisions": "path",
        "--reviewer": "text",
        "--least": "float, default 0.0",
        "--allow-symlinks": "flag",
        "--ras": "flag",
        "--max": "int, default 50",
        "--lung-mask": "path",
        "--no-lung-mask": "flag",
        "--detector": "path",
        "--detector-weights": "path",
        "--bundle": "path, +",
        "--trust-bundle": "flag",
        "--weights": "path, +",
        "--malignancy": "text, ?",
        "--malignancy-weights": "path",
        "--backend": "auto|torch|openvino, default auto",
        "--tta": "flag",
        "--views": "int",
        "--device": "device_name, default auto",
    },
    "convert": {
        "--input": "path, required",
        "--output": "path, required",
        "--from": "text",
        "--to": "text",
        "--ct": "path, +, more than once",
        "--ras": "flag",
        "--voxel": "zyx|xyz",
        "--nodules": "path",
        "--masks": "flag",
        "--allow-symlinks": "flag",
    },
    "challenge": {
        "--input": "path, default /input",
        "--output": "path, default /output",
        "--serve": "flag",
        "--bundle": "path",
        "--trust-bundle": "flag",
        "--weights": "path, +",
        "--detector": "path",
        "--detector-weights": "path",
        "--max": "int, default 50",
        "--backend": "auto|torch|openvino, default auto",
        "--device": "device_name, default auto",
    },
    "export": {
        "--format": "torchscript|onnx|openvino|pt2, required",
        "--output": "path, required",
        "--bundle": "path",
        "--trust-bundle": "flag",
        "--weights": "path",
    },
    "bundle": {
        "name": "text, ?, default nodule_classification",
        "--output": "path, required",
    },
    "report": {
        "--run": "path, required",
        "--output": "path",
        "--store": "path, +",
    },
    "calibrate": {
        "--run": "path, required",
        "--data": "path, +",
        "--predictions": "path",
        "--false-positives": "float, default 1.0",
        "--bundle": "path",
        "--trust-bundle": "flag",
        "--views": "int",
        "--allow-symlinks": "flag",
        "--device": "device_name, default auto",
        "--bootstrap": "int, default 1000",
        "--seed": "int, default 0",
    },
    "crossval": {
        "--folds": "int, +",
        "--ray": "text",
        "--dashboard": "flag",
        "--bundle": "path",
        "--trust-bundle": "flag",
        "--output": "path, required",
        "--data": "path, +",
        "--store": "path, +",
        "--set": "text, +, more than once",
        "--overlay": "path, +",
        "--workers": "int",
        "--threads": "int",
        "--gpus": "int, default 0",
        "--device": "device_name, default auto",
        "--seed": "int, default 0",
        "--bootstrap": "int, default 1000",
    },
    "tune": {
        "--trials": "int, required",
        "--search": "path",
        "--ray": "text",
        "--dashboard": "flag",
        "--bundle": "path",
        "--trust-bundle": "flag",
        "--output": "path, required",
        "--data": "path, +",
        "--store": "path, +",
        "--set": "text, +, more than once",
        "--overlay": "path, +",
        "--workers": "int",
        "--threads": "int",
        "--gpus": "int, default 0",
        "--device": "device_name, default auto",
        "--seed": "int, default 0",
    },
    "verify": {
        "--store": "path, +",
    },
    "demo": {
        "--output": "path",
        "--malignancy": "path",
        "--detection": "path",
        "--long": "flag",
        "--seed": "int, default 0",
    },
}
OF_EVERY_VERB = ["--help", "--json", "--quiet", "--debug"]


def described(action: argparse.Action) -> str:
    """An option in the words of `OPTIONS`."""
    kind = "|".join(map(str, action.choices or ())) or getattr(action.type, "__name__", "text").lower()
    words = ["flag"] if action.nargs == 0 else [kind]
    if action.nargs:
        words.append(str(action.nargs))
    if action.required:
        words.append("required")
    if isinstance(action, argparse._AppendAction | argparse._ExtendAction):
        words.append("more than once")
    if action.default is not None and action.default is not False:
        words.append(f"default {action.default}")
    return ", ".join(words)


def verbs() -> dict[str, argparse.ArgumentParser]:
    (choices,) = (a.choices for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(choices)


# --- options --------------------------------------------------------------------------------------------------------


def test_verbs_stand_in_the_order_of_the_help():
    assert list(verbs()) == list(OPTIONS)


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_a_verb_are_as_others_call_them(name):
    actions = {(action.option_strings or [action.dest])[-1]: action for action in verbs()[name]._actions}
    assert list(actions)[: len(OF_EVERY_VERB)] == OF_EVERY_VERB
    own = {flag: described(action) for flag, action in actions.items() if flag not in OF_EVERY_VERB}
    assert own == OPTIONS[name]
    assert list(own) == list(OPTIONS[name])


@pytest.mark.parametrize("name", OPTIONS)
def test_a_verb_is_two_functions_one_below_the_other(name):
    run = verbs()[name].get_default("run")
    assert run.__name__ == f"run_{name}"
    module = importlib.import_module(run.__module__)
    tree = ast.parse(Path(module.__file__).read_text("utf-8"))
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert functions[functions.index(f"add_{name}") + 1] == f"run_{name}"


# --- the command itself ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "luna16: the following arguments are required: VERB: see luna16 --help"),
        (["fly"], "luna16: argument VERB: invalid choice: 'fly'"),
        (["prepare", "--native", "--spacing-zyx", "1", "1", "1"], "not allowed with argument --native"),
        (["prepare", "--spacing-zyx", "1", "1"], "expected 3 arguments: see luna16 prepare --help"),
        (["phantom", "--scans", "many"], "luna16: argument --scans: invalid int value: 'many': see luna16 phantom"),
        (["verify", "--nosuch"], "luna16: unrecognized arguments: --nosuch: see luna16 --help"),
    ],
)
def test_a_wrong_call_ends_with_2_and_one_line(words, message, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    captured = capsys.readouterr()
    assert caught.value.code == 2
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_version_and_help_end_with_0(capsys):
    for words, text in ((["--version"], f"luna16_monai {__version__}"), (["prepare", "--help"], "--spacing-zyx Z Y X")):
        with pytest.raises(SystemExit) as caught:
            cli.main(words)
        assert caught.value.code == 0
        assert text in capsys.readouterr().out


def test_luna16_and_the_module_are_the_same_program():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    module, name = scripts["luna16"].split(":")
    assert getattr(importlib.import_module(module), name) is cli.main


def test_the_module_tells_an_error_in_one_line_and_ends_with_2(tmp_path, data):
    (data / "subset0" / "b.raw").unlink()
    words = [str(word) for word in prepare(data, tmp_path / "store")]
    done = subprocess.run([sys.executable, "-m", "luna16_monai", *words], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("luna16: b.raw, the data file of b.mhd, is missing")
    assert done.stderr.count("\n") == 1


def test_an_error_that_is_not_of_the_input_ends_with_1(call, data, tmp_path, monkeypatch):
    def burn(*_: object) -> None:
        raise OSError(5, "the disk burns")

    monkeypatch.setattr("luna16_monai.store.prepare.prepare_volume", burn)
    assert call(*prepare(data, tmp_path / "store")) == (1, "", "luna16: [Errno 5] the disk burns\n")


def test_debug_raises_the_error_whole(call, tmp_path):
    with pytest.raises(FileNotFoundError, match="no store in"):
        call("verify", "--store", tmp_path, "--debug")


def test_an_interruption_says_how_to_go_on(call, data, tmp_path, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("luna16_monai.store.prepare.prepare_volume", interrupt)
    code, out, err = call(*prepare(data, tmp_path / "store"))
    assert (code, out) == (130, "")
    assert err == "luna16: interrupted; the same command goes on where it stopped\n"


STOPPED = {
    signal.SIGINT: (130, "", "luna16: interrupted; the same command goes on where it stopped\n"),
    signal.SIGTERM: (143, "", "luna16: ended by SIGTERM; the same command goes on where it stopped\n"),
}


@pytest.mark.parametrize("number", STOPPED)
def test_a_signal_ends_a_verb_with_its_code_and_one_line(call, data, tmp_path, monkeypatch, number):
    monkeypatch.setattr("luna16_monai.store.prepare.prepare_volume", lambda *_, **__: os.kill(os.getpid(), number))
    before = signal.getsignal(number)
    assert call(*prepare(data, tmp_path / "store")) == STOPPED[number]
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", STOPPED)
def test_a_signal_waits_until_an_import_is_over(call, data, tmp_path, monkeypatch, number):
    (tmp_path / "slowly_imported.py").write_text(
        f"import os, time\nos.kill(os.getpid(), {int(number)})\ntime.sleep(0.2)\nwhole = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "slowly_imported", raising=False)

    def import_and_go_on(*_: object, **__: object) -> None:
        importlib.import_module("slowly_imported")
        time.sleep(10)
        pytest.fail("was not interrupted after the import")

    monkeypatch.setattr("luna16_monai.store.prepare.prepare_volume", import_and_go_on)
    assert call(*prepare(data, tmp_path / "store")) == STOPPED[number]
    assert sys.modules["slowly_imported"].whole


def test_a_signal_that_is_ignored_stays_ignored(call, data, tmp_path, monkeypatch):
    from luna16_monai.store.prepare import prepare_volume

    def signal_and_prepare(*arguments: object, **options: object) -> object:
        os.kill(os.getpid(), signal.SIGINT)
        return prepare_volume(*arguments, **options)

    monkeypatch.setattr("luna16_monai.store.prepare.prepare_volume", signal_and_prepare)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert call(*prepare(data, tmp_path / "store"))[0] == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_main_runs_in_another_thread_too(data, tmp_path):
    codes = []
    words = [str(word) for word in prepare(data, tmp_path / "store")]
    thread = threading.Thread(target=lambda: codes.append(cli.main(words)))
    thread.start()
    thread.join()
    assert codes == [0]


# --- start-up -------------------------------------------------------------------------------------------------------


def modules_after(*words: str) -> set[str]:
    """The modules that are loaded when the command, or the help, has ended."""
    program = (
        "import atexit, json, sys\n"
        "atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr))\n"
        "from luna16_monai.cli.main import main\n"
        f"sys.exit(main({list(words)}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize("words", [("--help",), ("predict", "--help"), ("--version",)])
def test_help_loads_the_standard_library_and_the_verbs_alone(words):
    loaded = modules_after(*words)
    outside = {name.partition(".")[0] for name in loaded} - sys.stdlib_module_names
    # what site packages bring in by .pth files
    assert outside - {"__main__", "_distutils_hack", "_virtualenv", "sitecustomize", "usercustomize"} <= {
        name for name in outside if name == "luna16_monai" or name.startswith("__editable__")
    }
    ours = {name for name in loaded if name.startswith("luna16_monai")}
    modules = {f"luna16_monai.cli.{path.stem}" for path in VERBS.glob("*.py") if path.stem != "__init__"}
    assert ours == {
        "luna16_monai", "luna16_monai.cli", *modules, "luna16_monai.machine",
        *(f"luna16_monai.machine.{name}" for name in ("errors", "folder_lists", "platforms")),
    }  # fmt: skip
    # 116 with Python 3.11; each costs about 0.4 ms
    assert len(loaded) < 180


@pytest.mark.parametrize("path", sorted(VERBS.glob("[!_]*.py")), ids=lambda path: path.stem)
def test_a_module_takes_public_names_alone_and_of_other_verbs_only_what_it_shares(path):
    tree = ast.parse(path.read_text("utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    ours = [node for node in imports if node.module.startswith("luna16_monai")]
    names = [alias.name for node in ours for alias in node.names]
    assert [name for name in names if name.startswith("_")] in ([], ["__version__"])
    from_cli = [node for node in tree.body if node in ours and node.module == "luna16_monai.cli"]
    if path.stem not in ("main", "console"):
        # predict and challenge detect where they are given no list, review predicts, and a page is no verb
        shared = {
            "prediction": ["console", "detection", "pages"],
            "exchange": ["console", "detection"],
            "reviewing": ["console", "prediction"],
            "pages": [],
        }
        assert [alias.name for node in from_cli for alias in node.names] == shared.get(path.stem, ["console"])


@pytest.mark.parametrize(("loaded", "frozen"), [(False, 1), (True, 0)])
def test_objects_are_left_at_the_end_but_where_triton_would_report_them(monkeypatch, loaded, frozen):
    calls: list[None] = []
    monkeypatch.setattr(cli.gc, "freeze", lambda: calls.append(None))
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    if loaded:
        monkeypatch.setitem(sys.modules, "triton", object())
    cli._leave_objects()
    assert len(calls) == frozen
