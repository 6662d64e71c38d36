"""What a bundle's YAML needs to know of itself: its config as written, overrides, and settings that nothing reads."""

from __future__ import annotations

import copy
import difflib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS, ID_SEP_KEY, MERGE_KEY

from luna16_monai.bundle import overrides
from luna16_monai.bundle.folders import TARGET, bundle_dir
from luna16_monai.machine.errors import one_line

TRACKING: dict[str, Any] = DEFAULT_MLFLOW_SETTINGS["configs"]  # type: ignore[assignment]
SECTIONS = {
    *("imports", "initialize", "run", "training", "evaluating", "finalize", "train", "validate"),
    *("bundle_root", "network_def", "is_not_rank0", "_meta_"),
    *TRACKING,
}
Caller = TypeVar("Caller")
WORDS = {"true": True, "false": False, "null": None}


def running_config() -> dict[str, Any]:
    """The config that is being evaluated, as written: files, overlays and overrides together, nothing built.

    Called in a ``$`` expression of the config itself.

    Raises:
        RuntimeError: it is called outside a config.
    """
    config: Any = _running_parser().config
    return {key: value for key, value in config.items() if key != ConfigParser.meta_key}


def build_on(name: str, bundle: str | None = None) -> None:
    """Take what the running config does not say from another one. To be called early in ``initialize``.

    Nearly the same as naming both files in ``--config_file``, the running one last; but whoever runs it need not know.
    A mapping of the running config that names no ``_target_`` changes single keys of the other's, however deep, and its
    keys that start with + lengthen the other's lists (a + at the very top is MONAI's, and lost in a single file).
    What ``--tracking mlflow`` adds to engines is added to those of the other file.

    Args:
        name: of the other file.
        bundle: the bundle that comes with the package and holds it; None looks beside the running file.

    Raises:
        RuntimeError: it is called outside a bundle's workflow.
        FileNotFoundError: there is no such bundle.
    """
    parser, workflow = _running_parser(), _caller(ConfigWorkflow)
    config: Any = parser.config
    folder = workflow.config_root_path if bundle is None else bundle_dir(bundle) / "configs"
    below = ConfigParser.load_config_file(str(folder / name))
    imports = [*below.pop("imports", []), *config.get("imports", [])]
    asked = any(key in config and config[key] == TRACKING[key] for key in ("tracking_uri", "run_name"))
    if asked:
        # --tracking mlflow found no engine in this file; its settings would take the place of the other file's
        for key in [key for key in config if key in TRACKING and config[key] == TRACKING[key]]:
            del config[key]
    # in place, since the workflow and its parser hold on to it
    config.update({**_laid_over(below, config), "imports": list(dict.fromkeys(imports))})
    if asked:
        ConfigWorkflow.patch_bundle_tracking(parser, copy.deepcopy(DEFAULT_MLFLOW_SETTINGS))
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


def root() -> str:
    """The folder of the bundle whose config is running, the one that its ``configs`` lie in.

    Called in a ``$`` expression of the config itself, so a copy of the bundle finds its own files, from any folder.

    Raises:
        RuntimeError: it is called outside a bundle's workflow.
    """
    return str(_caller(ConfigWorkflow).config_root_path.parent)


def _laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Two configs as one, in which the one above wins; see `build_on`."""
    merged = dict(below)
    for key, value in above.items():
        name = key.removeprefix(MERGE_KEY)
        other = below.get(name)
        if name != key and isinstance(value, list) and isinstance(other, list):
            merged[name] = [*other, *value]
        elif isinstance(value, dict) and isinstance(other, dict) and TARGET not in value:
            merged[name] = _laid_over(other, value)
        else:
            merged[key] = value
    return merged


def settings() -> dict[str, Any]:
    """The plain top-level settings of the config that is being evaluated, with ``network_def`` as written.

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
        if isinstance(value, str):
            value = Path(value).name or value
        if value is None or isinstance(value, bool | int | float | str | list):
            told[key] = value
    return {**told, "network_def": config.get("network_def")}


def check_settings() -> None:
    """Read the overrides as YAML would, and refuse what nothing reads. To be called first in ``initialize``.

    The command line hands over ``true``, ``false`` and ``null`` as text, and MONAI accepts any key in silence.

    Raises:
        ValueError: names the key that nothing refers to, and the one that was probably meant; a setting that held a
            ``#``; or what `overrides.settle` refuses.
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
    for key, value in config.items():
        plain = key not in SECTIONS and isinstance(value, str) and value[:1] not in overrides.MARKS
        if plain and ("#" in value or ID_SEP_KEY in value):
            raise ValueError(
                f"{key} is {value}, where MONAI turns every # into ::, so that no setting can hold one: give a "
                "folder by LUNA16_DATA, LUNA16_STORE or LUNA16_RUNS instead, or rename it"
            )
    referred = _references(config)
    if folder is not None:
        # a setting stays one where a nested override has taken its place in each part
        referred |= set(overrides.references(folder, config).values()) & set(config)
    known = sorted(referred & set(config) - SECTIONS)
    for key in config:
        if key not in SECTIONS and key not in referred:
            meant = difflib.get_close_matches(key, known, n=1)
            raise ValueError(
                f"{key} is no setting of this bundle, nothing reads it{f': was {meant[0]} meant?' if meant else ''} "
                f"(settings: {', '.join(known)})"
            )


def _references(config: Any) -> set[str]:
    """The top-level keys that a part of a config refers to."""
    return set(re.findall(r"@([A-Za-z_]\w*)", json.dumps(config, default=str)))


def _read_words(value: Any) -> Any:
    """The same config with ``true``, ``false`` and ``null`` for the words."""
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
    """Let an error that ends the process say its root cause in its last line."""

    def tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        sys.__excepthook__(kind, error, trace)
        print("luna16:", one_line(error), file=sys.stderr)

    sys.excepthook = tell
