"""What a bundle's YAML needs to know of itself: where it lies, its config as written, what nothing would read."""

from __future__ import annotations

import difflib
import json
import re
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS

from luna16_monai.errors import one_line

SECTIONS = {
    *("imports", "initialize", "run", "training", "evaluating", "finalize", "train", "validate"),
    *("bundle_root", "network_def", "_meta_"),
    *DEFAULT_MLFLOW_SETTINGS["configs"],  # type: ignore[misc]
}
WORDS = {"true": True, "false": False, "null": None}


def running_config() -> dict[str, Any]:
    """The config that is being evaluated, as written: files, overlays and overrides together, nothing built.

    Called in a ``$`` expression of the config itself.

    Raises:
        RuntimeError: it is called outside a config.
    """
    config: Any = _running_parser().config
    return {key: value for key, value in config.items() if key != ConfigParser.meta_key}


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
        ValueError: names the key that nothing refers to, and the one that was probably meant.
    """
    parser = _running_parser()
    config: Any = parser.config
    if (read := _read_words(config)) != config:
        config.update(read)
        parser.parse(reset=True)
    referred = _references(config)
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
    # MONAI hands its expressions no way to the parser, so it is looked up among the callers
    frame = sys._getframe(1)
    while frame is not None:
        if isinstance(parser := frame.f_locals.get("self"), ConfigParser):
            return parser
        frame = frame.f_back  # type: ignore[assignment]
    raise RuntimeError("this was called outside a config: use it in a $ expression of a bundle's YAML")


def explain_errors() -> None:
    """Let an error that ends the process say its root cause in its last line."""

    def tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        sys.__excepthook__(kind, error, trace)
        print("luna16:", one_line(error), file=sys.stderr)

    sys.excepthook = tell


def bundle_dir(name: str = "nodule_classification") -> Path:
    """The folder of a bundle that comes with the package: installed with it, or in the source tree.

    Raises:
        FileNotFoundError: there is no such bundle.
    """
    package = Path(__file__).parent
    for folder in (package / "bundles" / name, package.parent / "bundles" / name):
        if (folder / "configs").is_dir():
            return folder
    raise FileNotFoundError(f"no bundle {name}: name nodule_classification, or the folder of one of your own")
