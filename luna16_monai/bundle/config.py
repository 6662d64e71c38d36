"""What a bundle's YAML needs to know of itself: its config as written, overrides, and settings that nothing reads."""

from __future__ import annotations

import copy
import difflib
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.utils import DEFAULT_HANDLERS_ID, DEFAULT_MLFLOW_SETTINGS, ID_SEP_KEY

from luna16_monai.bundle import overrides
from luna16_monai.bundle.bases import BUILDS_ON, base_files, on_bases
from luna16_monai.bundle.moved import refuse_moved
from luna16_monai.machine.errors import one_line
from luna16_monai.machine.folder_lists import folder_list, folder_names
from luna16_monai.machine.processes import end_workers

TRACKING: dict[str, Any] = DEFAULT_MLFLOW_SETTINGS["configs"]  # type: ignore[assignment]
SECTIONS = {
    *("imports", "initialize", "run", "training", "evaluating", "finalize", "train", "validate"),
    *("bundle_root", "network_def", "is_not_rank0", "_meta_", BUILDS_ON, "several_processes"),
    *TRACKING,
}
Caller = TypeVar("Caller")
WORDS = {"true": True, "false": False, "null": None}


def running_config() -> dict[str, Any]:
    """Return the config that is being evaluated, as written: files, overlays and overrides together, nothing built.

    Called in a ``$`` expression of the config itself.

    Raises:
        RuntimeError: it is called outside a config.
    """
    config: Any = _running_parser().config
    return {key: value for key, value in config.items() if key != ConfigParser.meta_key}


def build_on() -> None:
    """Take what the running config does not say from the files that its ``builds_on`` names, see ``bases``.

    To be called early in ``initialize``. What ``--tracking mlflow`` adds to engines is added to those of these files.

    Raises:
        RuntimeError: it is called outside a bundle's workflow.
        FileNotFoundError: one of the files is not there.
        ValueError: ``builds_on`` names no file.
    """
    parser = _running_parser()
    config: Any = parser.config
    if BUILDS_ON not in config:
        return
    files = base_files(config, _caller(ConfigWorkflow).config_root_path)
    # a file that names its engines elsewhere does not say this key either, so --tracking mlflow has added it
    tracked = config.get("is_not_rank0") == TRACKING["is_not_rank0"]
    if tracked:
        # MONAI's defaults would take the place of what the other files say
        for key in [key for key in config if key in TRACKING and config[key] == TRACKING[key]]:
            del config[key]
    engines = {name: ids["id"] for name, ids in DEFAULT_HANDLERS_ID.items()}
    missing = {name for name, engine in engines.items() if parser.get(engine) is None}
    whole = on_bases(config, files)
    del config[BUILDS_ON]
    # in place, since the workflow and its parser hold on to it
    config.update(whole)
    if tracked:
        settings: dict[str, Any] = copy.deepcopy(DEFAULT_MLFLOW_SETTINGS)
        added = {key: value for key, value in settings["configs"].items() if key not in engines or key in missing}
        ConfigWorkflow.patch_bundle_tracking(parser, {**settings, "configs": added})
    parser.parse(reset=True)


def change_config(change: Callable[[dict[str, Any]], bool]) -> None:
    """Let a function change the running config in place, early in ``initialize``.

    Args:
        change: gives whether it has changed anything.

    Raises:
        RuntimeError: it is called outside a config.
    """
    parser = _running_parser()
    config: Any = parser.config
    if change(config):
        parser.parse(reset=True)


def without_steps(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config without ``initialize`` and ``run``, and without the imports that nothing else in it uses.

    MONAI's parser runs all imports, whatever is asked of it.
    """
    rest = {key: value for key, value in config.items() if key not in ("imports", "initialize", "run")}
    text = json.dumps(rest, default=str)
    imports = [line for line in config.get("imports", ()) if re.search(rf"\b{line.split()[-1]}\b", text)]
    return {**rest, "imports": imports}


def root() -> str:
    """Return the folder of the bundle whose config is running, the one that its ``configs`` lie in.

    Called in a ``$`` expression of the config itself, so a copy of the bundle finds its own files, from any folder.

    Raises:
        RuntimeError: it is called outside a bundle's workflow.
    """
    return str(_caller(ConfigWorkflow).config_root_path.parent)


def value_of(key: str, otherwise: Any = None) -> Any:
    """Return what a key of the config that is being evaluated stands for, built where it is an object.

    Raises:
        RuntimeError: it is called outside a config.
    """
    parser = _running_parser()
    return parser.get_parsed_content(key) if key in parser else otherwise


def settings() -> dict[str, Any]:
    """Return the plain top-level settings of the config that is being evaluated, with ``network_def`` as written.

    Of a path only the last part is told, so that a record of a run holds no folder of the machine.

    Raises:
        RuntimeError: it is called outside a config.
    """
    parser = _running_parser()
    config: Any = parser.config
    told: dict[str, Any] = {}
    for key, written in config.items():
        if key in SECTIONS or isinstance(written, dict) or _references(written) & SECTIONS:
            continue
        value = parser.get_parsed_content(key)
        if isinstance(value, torch.device):
            value = str(value)
        if key in overrides.FOLDER_LISTS and isinstance(value, str | list):
            value = _names(value)
        elif isinstance(value, str):
            value = Path(value).name or value
        if value is None or isinstance(value, bool | int | float | str | list):
            told[key] = value
    return {**told, "network_def": config.get("network_def")}


def check_settings(*fetched: str) -> None:
    """Read the overrides as YAML would, and refuse what nothing reads. To be called first in ``initialize``.

    The command line hands over ``true``, ``false`` and ``null`` as text, and MONAI accepts any key in silence.

    Args:
        fetched: keys that Python code reads by `value_of`, to which nothing in the config may refer.

    Raises:
        ValueError: names the key that nothing refers to, and the one that was probably meant; a setting that held a
            ``#``; a name that has moved; or what `overrides.settle` refuses.
    """
    parser = _running_parser()
    config: Any = parser.config
    if (read := _read_words(config)) != config:
        config.update(read)
        parser.parse(reset=True)
    workflow = _found(ConfigWorkflow)
    folder = None if workflow is None else Path(workflow.config_root_path)
    if overrides.settle(config, folder, sys.argv[1:]):
        parser.parse(reset=True)
    refuse_moved(config, "the config")
    for key, value in config.items():
        texts = value if key in overrides.FOLDER_LISTS and isinstance(value, list) else [value]
        plain = [one for one in texts if isinstance(one, str) and one[:1] not in overrides.MARKS]
        if key not in SECTIONS and any("#" in one or ID_SEP_KEY in one for one in plain):
            raise ValueError(
                f"{key} is {value}, where MONAI turns every # into ::, so that no setting can hold one: give a "
                "folder by LUNA16_DATA, LUNA16_STORE or LUNA16_RUNS instead, or rename it"
            )
    referred = _references(config) | set(fetched)
    if folder is not None:
        # a setting stays one where a nested override has taken its place in each part
        referred |= set(overrides.references(folder, config).values()) & set(config)
    known = sorted(referred & set(config) - SECTIONS)
    # of a file that the bundle builds on, and without a use here: refused where it is given another value
    written = {} if folder is None else overrides.written_values(folder)
    for key, value in config.items():
        if key not in SECTIONS and key not in referred and value not in written.get(key, ()):
            meant = difflib.get_close_matches(key, known, n=1)
            raise ValueError(
                f"{key} is no setting of this bundle, nothing reads it{f': was {meant[0]} meant?' if meant else ''} "
                f"(settings: {', '.join(known)})"
            )


def _names(folders: str | list[str]) -> str | list[str]:
    """Return the last part of the name of a folder, or of each of several."""
    names = folder_names(folder_list(folders))
    return names[0] if len(names) == 1 else list(names)


def _references(config: Any) -> set[str]:
    """Return the top-level keys that a part of a config refers to."""
    return set(re.findall(r"@([A-Za-z_]\w*)", json.dumps(config, default=str)))


def _read_words(value: Any) -> Any:
    """Return the same config with ``true``, ``false`` and ``null`` for the words."""
    if isinstance(value, dict):
        return {key: _read_words(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_read_words(inner) for inner in value]
    return WORDS.get(value, value) if isinstance(value, str) else value


def _running_parser() -> ConfigParser:
    return _caller(ConfigParser)


def _caller(kind: type[Caller]) -> Caller:
    if (caller := _found(kind)) is None:
        raise RuntimeError("this was called outside a config: use it in a $ expression of a bundle's YAML")
    return caller


def _found(kind: type[Caller]) -> Caller | None:
    # MONAI hands its expressions no way to the parser or the workflow, so they are looked up among the callers
    frame = sys._getframe(1)
    while frame is not None:
        if isinstance(caller := frame.f_locals.get("self"), kind):
            return caller
        frame = frame.f_back  # type: ignore[assignment]
    return None


def explain_errors() -> None:
    """Let an error that ends the process say its root cause in its last line.

    The loaders' processes are ended first: they go on with their next batch, and print what fails in it.
    """

    def tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        sys.__excepthook__(kind, error, trace)
        end_workers()
        print("luna16:", one_line(error), file=sys.stderr)

    sys.excepthook = tell
