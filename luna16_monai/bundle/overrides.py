"""Overrides of a bundle's config: what they mean, and which are refused.

An override reaches the config as Python Fire and MONAI have read it: ``20241127`` is a number by then, ``None`` is
dropped, and a # has become ``::``. A nested override (``--optimizer#lr 1e-5``) replaces a reference, and so cuts a part
off from its setting, while other parts still read that.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

from luna16_monai.bundle.bases import read_whole
from luna16_monai.bundle.folders import TARGET, bundle_dir

logger = logging.getLogger(__name__)

# what a config's text that is no plain text starts with: an expression, a reference, a macro
MARKS = "$@%"
FOLDERS = ("output_dir", "dataset_dir", "store_dir", "run_dir", "bundle_root")
# these may name several, as a list or with os.pathsep between them
FOLDER_LISTS = ("dataset_dir", "store_dir")
FILES = ("candidates", "init_weights", "nodule_run")
WHOLE_NUMBERS = {
    **dict.fromkeys(("max_epochs", "samples_per_epoch", "batch_size", "val_interval", "checkpoint_iterations"), 1),
    **dict.fromkeys(("num_workers", "seed"), 0),
}
NUMBERS = ("learning_rate", "weight_decay", "cache_gb")
TRIPLES = ("shape_zyx", "margin_zyx")
# files of a bundle whose references tell which setting a part reads
CONFIGS = ("train.yaml", "evaluate.yaml", "inference.yaml")


def settle(config: dict[str, Any], folder: Path | None, words: Sequence[str]) -> bool:
    """Let nested overrides set the settings that they mean, in place, and refuse values of the wrong kind.

    Args:
        config: the whole config, as written; ``true``, ``false`` and ``null`` are values already.
        folder: of the running bundle's configs; None outside a bundle.
        words: of the command line.

    Returns:
        Whether the config has changed.

    Raises:
        ValueError: names the setting, what it is and what was expected.
    """
    _refuse_lost(words)
    changed = folder is not None and take_nested(config, references(folder, config), written_values(folder))
    require_kinds(config)
    return changed


def take_nested(config: dict[str, Any], references: Mapping[str, str], written: Mapping[str, Sequence[Any]]) -> bool:
    """Set a setting where a part that reads it was given a plain value instead, and let the part read it again.

    Then all parts agree, and the run's record says what it did. A part whose value may well differ from the setting's
    keeps it: the batch size and processes of the validation, a seed, mixed precision.

    Args:
        config: changed in place.
        references: place of a part, as ``optimizer#lr``, to the name of the setting that it reads.
        written: the values of each setting in the bundle's files.

    Returns:
        Whether the config has changed.

    Raises:
        ValueError: the setting was given another value as well.
    """
    taken: dict[str, tuple[str, Any]] = {}
    for place, name in references.items():
        part, key = _part(config, place)
        if part is None or name not in config or _may_differ(place, name):
            continue
        value = part[key]
        if isinstance(value, dict) or (isinstance(value, str) and value[:1] in MARKS):
            continue
        other = taken.get(name, (name, config[name]))
        if (name in taken or config[name] not in written.get(name, ())) and other[1] != value:
            raise ValueError(f"{place} {value} and {other[0]} {other[1]} mean the same: give {name} alone")
        taken[name] = place, value
        part[key] = f"@{name}"
    for name, (place, value) in taken.items():
        config[name] = value
        logger.info("%s is taken as %s: %s", place, name, value)
    return bool(taken)


def references(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Return the places of a bundle's configs that read a setting and nothing else, with its name.

    Args:
        folder: of the bundle's configs.
        config: the running one; places in a list count only while the list holds the same there.
    """
    found = {}
    for below in _configs(folder):
        for place, name in _references(below):
            listed = any(key.isdecimal() for key in place.split("#"))
            if name in below and not (listed and _target(below, place) != _target(config, place)):
                found[place] = name
    return found


def require_kinds(config: Mapping[str, Any]) -> None:
    """Check that folders are names, and numbers numbers; what is computed is left to those who take it.

    Raises:
        ValueError: names the setting, its value, and what was expected.
    """
    for key, value in config.items():
        # an object of the name is no setting, as the candidates of inference.yaml
        if (isinstance(value, str) and value[:1] in MARKS) or (isinstance(value, Mapping) and "_target_" in value):
            continue
        if key in FOLDER_LISTS and isinstance(value, list | tuple) and value:
            odd = [one for one in value if not isinstance(one, str)]
        else:
            odd = [] if isinstance(value, str) or (key in FILES and value is None) else [value]
        if odd and key in (*FOLDERS, *FILES):
            raise ValueError(
                f"{key} is {odd[0]!r}, which is no text: a name that reads as a number or as true, false or null needs "
                f"its folder before it, as in --{key} ./NAME"
            )
        if key in WHOLE_NUMBERS and not (_is_whole(value) and value >= WHOLE_NUMBERS[key]):
            raise ValueError(f"{key} {value}: give a whole number, {WHOLE_NUMBERS[key]} or more")
        if key in NUMBERS and not (_is_number(value) and 0 <= value < float("inf")):
            raise ValueError(f"{key} {value}: give a number, 0 or more, such as 0.001")
        if key in TRIPLES and not (_is_triple(value) and all(map(_is_whole, value))):
            raise ValueError(f"{key} {value}: give three whole numbers (voxels in z, y, x), as in --{key} [32,48,48]")
        if key == "spacing_zyx" and value is not None and not (_is_triple(value) and all(map(_is_number, value))):
            raise ValueError(
                f"{key} {value}: give three numbers, as in --{key} [1.25,0.7,0.7], in mm along z, y, x; or null"
            )


def _refuse_lost(words: Sequence[str]) -> None:
    """MONAI drops an override that is None and takes the bundle's value; Python Fire drops what follows a #."""
    for word, after in zip_longest(words, words[1:], fillvalue=""):
        name, equals, value = word.partition("=")
        value = value if equals else after
        if not name.startswith("--"):
            continue
        if value == "None":
            raise ValueError(
                f"{name} None would be taken as not given: write {name} null for no value, or {name} ./None for a "
                "folder of this name"
            )
        if "#" in value and value[:1] not in MARKS and not value.startswith("--"):
            raise ValueError(
                f"{name} {value} holds a #, which no setting can: give a folder by LUNA16_DATA, LUNA16_STORE or "
                "LUNA16_RUNS instead, or rename it"
            )


def _may_differ(place: str, name: str) -> bool:
    of_validation = place.startswith("validate#dataloader#") and name in ("batch_size", "num_workers")
    return of_validation or name in ("amp", "seed")


def _part(config: Any, place: str) -> tuple[Any, Any]:
    """The mapping or list that holds a place, and its key there; None where the config has no such place."""
    *way, last = place.split("#")
    for key in way:
        config = _at(config, key)
    if isinstance(config, list):
        return (config, int(last)) if last.isdecimal() and int(last) < len(config) else (None, last)
    return (config, last) if isinstance(config, dict) and last in config else (None, last)


def _at(config: Any, key: str) -> Any:
    if isinstance(config, dict):
        return config.get(key)
    if isinstance(config, list) and key.isdecimal() and int(key) < len(config):
        return config[int(key)]
    return None


def _target(config: Any, place: str) -> Any:
    """Return what the mapping calls that holds a place."""
    part, _ = _part(config, place)
    return part.get(TARGET) if isinstance(part, dict) else None


def _references(config: Any, place: str = "") -> Iterator[tuple[str, str]]:
    pairs = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    for key, value in pairs:
        there = f"{place}#{key}" if place else str(key)
        if isinstance(value, str) and value.startswith("@") and value[1:].isidentifier() and place:
            yield there, value[1:]
        else:
            yield from _references(value, there)


@cache
def _configs(folder: Path) -> list[dict[str, Any]]:
    """Return the nodule bundle's train.yaml, on which others build, and what the folder holds; later ones win."""
    files = [bundle_dir() / "configs" / CONFIGS[0], *(folder / name for name in CONFIGS)]
    return [read_whole(file) for file in files if file.is_file()]


def written_values(folder: Path) -> dict[str, list[Any]]:
    """Return the values of each setting in the files of a bundle, those that these build on included."""
    configs = _configs(folder)
    return {name: [config[name] for config in configs if name in config] for name in set().union(*configs)}


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_triple(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3
