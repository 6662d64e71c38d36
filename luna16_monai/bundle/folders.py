"""Where bundles lie, how one is copied, and what code from elsewhere it would call."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

from luna16_monai.machine.claims import require_empty

BUNDLES = ("nodule_classification", "malignancy_classification", "nodule_detection")
TARGET = "_target_"
DOTTED_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


def called_names(config: Any) -> list[str]:
    """Return what a config would call or evaluate, once each, in its order.

    Each ``_target_``, each ``$`` expression, each macro, which may bring in another file, and each text with dots as a
    Python name has them: some transforms import what is so named, as ``LoadImage`` does its reader.
    """
    if isinstance(config, dict):
        inner = [config[TARGET]] if isinstance(config.get(TARGET), str) else []
        names = [*inner, *(name for value in config.values() for name in called_names(value))]
    elif isinstance(config, list):
        names = [name for value in config for name in called_names(value)]
    else:
        calls = isinstance(config, str) and (config[:1] in ("$", "%") or DOTTED_NAME.fullmatch(config))
        names = [config] if calls else []
    return list(dict.fromkeys(names))


def is_packaged(path: Path) -> bool:
    """Return whether a file belongs to a bundle that comes with the package."""
    return path.resolve().is_relative_to(bundle_dir().parent.resolve())


def bundle_dir(name: str = "nodule_classification") -> Path:
    """Return the folder of a bundle that comes with the package: installed with it, or in the source tree.

    Raises:
        FileNotFoundError: there is no such bundle.
    """
    package = Path(__file__).parents[1]
    for folder in (package / "bundles" / name, package.parent / "bundles" / name):
        if (folder / "configs").is_dir():
            return folder
    raise FileNotFoundError(f"no bundle {name}: name {' or '.join(BUNDLES)}, or the folder of one of your own")


def copy_bundle(bundle: Path, output: Path) -> None:
    """Copy a bundle to a folder of the user's.

    Raises:
        FileExistsError: the folder is there and not empty.
    """
    require_empty(output, "name a new folder, or empty it")
    shutil.copytree(bundle, output, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))


def require_trust(path: Path, config: Any, trusted: bool) -> None:
    """A config runs code: what one from elsewhere calls is told, and it is run only on request."""

    if is_packaged(path):
        return
    names = ", ".join(called_names(config))
    if not trusted:
        raise ValueError(
            f"{path} does not come with luna16_monai and may run any code (it calls {names}): add --trust-bundle if "
            "you trust it"
        )
    print(f"luna16: {path} calls {names}", file=sys.stderr)
