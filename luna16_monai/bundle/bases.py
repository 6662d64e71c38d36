"""The files that a config builds on, as its ``builds_on`` names them, and configs laid over each other; without MONAI.

``builds_on: [nodule_classification/train.yaml]`` in a bundle's YAML means: what is not said here is said there. A plain
name is a file beside the one that names it; ``BUNDLE/FILE`` is a config of a bundle that comes with the package. Of
several files the first wins, and each wins over those that it builds on itself. MONAI knows no such key: it merges
files that are all named on the command line, which whoever runs a bundle would have to know.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from luna16_monai.bundle.folders import BUNDLES, TARGET, bundle_dir, is_packaged
from luna16_monai.machine.files import sha256

BUILDS_ON = "builds_on"
# as in MONAI's own configs: such a key lengthens a list, and such a mark leads into a part
LONGER, INTO = "+", ("#", "::")
IMPORTS = "imports"


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the content of a config file, as written.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no YAML, or no mapping.
    """
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error}): a YAML file was expected") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no settings: a YAML file with key: value was expected")
    return config


def base_files(config: Mapping[str, Any], folder: Path) -> list[Path]:
    """Return the files that a config builds on, and those that these build on; the first wins.

    Args:
        config: as written.
        folder: that its file lies in.

    Raises:
        FileNotFoundError: one of the files is not there.
        ValueError: ``builds_on`` names no file, or a file builds on itself.
    """
    # each file before those that it builds on, and otherwise in the order in which they are named
    last_first: list[Path] = []

    def add(path: Path, above: tuple[Path, ...]) -> None:
        if path in above:
            raise ValueError(f"{path} builds on itself, by way of {above[-1]}: take it out of {BUILDS_ON} there")
        if path in last_first:
            return
        for below in reversed(_named(read_yaml(path), path.parent)):
            add(below, (*above, path))
        last_first.append(path)

    for path in reversed(_named(config, folder)):
        add(path, ())
    return last_first[::-1]


def foreign_files(path: Path) -> list[Path]:
    """Return a config file and those that it builds on, without those of bundles that come with the package."""
    return [one for one in (path, *base_files(read_yaml(path), path.parent)) if not is_packaged(one)]


def base_digests(files: Iterable[Path]) -> dict[str, str]:
    """Return the SHA-256 of each config of another bundle that files build on, by the names of bundle and file."""
    bases = {one for path in files for one in base_files(read_yaml(path), path.parent) if one.parent != path.parent}
    return {f"{path.parents[1].name}/{path.name}": sha256(path) for path in sorted(bases)}


def read_whole(path: Path) -> dict[str, Any]:
    """Return a config with all that it takes from the files that it builds on.

    Raises:
        FileNotFoundError: one of the files is not there.
        ValueError: one of them is no config.
    """
    config = read_yaml(path)
    return on_bases(config, base_files(config, path.parent))


def on_bases(config: Mapping[str, Any], files: list[Path]) -> dict[str, Any]:
    """Return a config laid over the files that it builds on, of which the first wins; without any, as it is."""
    whole: dict[str, Any] = {}
    for one in (*map(read_yaml, reversed(files)), config):
        whole = laid_over(whole, one) if whole else dict(one)
    return {key: value for key, value in whole.items() if key != BUILDS_ON}


def laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return two configs as one, in which the one above wins.

    A mapping above that names no ``_target_`` changes single keys of the one below, however deep, and its keys that
    start with + lengthen lists. The keys ``a#b`` of a file that is named after another one lead into ``a``. The imports
    of both are made, those below first.
    """
    merged = dict(below)
    for key, value in above.items():
        name = key.removeprefix(LONGER)
        other = merged.get(name)
        if (mark := next((mark for mark in INTO if mark in name), None)) is not None:
            outer, inner = name.split(mark, 1)
            path = inner if name == key else LONGER + inner
            merged[outer] = _laid_into(merged.get(outer), path, value, outer)
        elif name == IMPORTS:
            merged[name] = list(dict.fromkeys([*(other or []), *value]))
        elif name != key and isinstance(value, list):
            merged[name] = [*(other or []), *value]
        elif isinstance(value, dict) and isinstance(other, dict) and TARGET not in value:
            merged[name] = laid_over(other, value)
        else:
            merged[name] = value
    return merged


def _laid_into(part: Any, path: str, value: Any, place: str) -> Any:
    """Return a part of a config in which what a path leads to is replaced."""
    if isinstance(part, list):
        index, _, rest = path.partition("#")
        changed = list(part)
        changed[int(index)] = _laid_into(changed[int(index)], rest, value, f"{place}#{index}") if rest else value
        return changed
    if not isinstance(part, dict):
        raise ValueError(f"{place}#{path} changes a part of {place}, which is not there: say all of {place}")
    return laid_over(part, {path: value})


def _named(config: Mapping[str, Any], folder: Path) -> list[Path]:
    """Return the files that a config names itself."""
    names = config.get(BUILDS_ON, [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{BUILDS_ON} {names}: a list of files was expected, such as [train.yaml]")
    return [_file(name, folder) for name in names]


def _file(name: str, folder: Path) -> Path:
    """Return the file that a name stands for."""
    bundle, _, file = name.rpartition("/")
    if bundle and bundle not in BUNDLES:
        raise ValueError(
            f"{BUILDS_ON} {name}: name a file beside this one, or a config of {' or '.join(BUNDLES)}, such as "
            f"{BUNDLES[0]}/train.yaml"
        )
    path = (bundle_dir(bundle) / "configs" if bundle else folder) / file
    if not path.is_file():
        raise FileNotFoundError(f"{BUILDS_ON} {name}: there is no {path}")
    return path.absolute()
