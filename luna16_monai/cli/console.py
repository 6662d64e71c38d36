"""What the verbs share: exit codes, options, default folders, trust in a bundle, and how a result is printed."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luna16_monai.machine.folder_lists import folder_list

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

UNUSED = (
    *("ignite", "matplotlib", "pandas", "sklearn", "torch.utils.tensorboard", "tensorboard"),
    *("scipy.signal", "scipy.stats", "skimage", "jsonschema", "transformers"),
)
"""What MONAI loads for training, plots and statistics."""

DONE, FAILED, WRONG_INPUT, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143

# --- options --------------------------------------------------------------------------------------------------------


def add_verb(verbs: Verbs, name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
    """Add a verb with the options of every verb: --json, --quiet and --debug.

    Args:
        verbs: what ``add_subparsers`` gave.
        name: of the verb.
        run: is called with the options, and returns the exit code.
        text: of the help, in the list of verbs and above the options.

    Returns:
        The verb's parser, for its own options.
    """
    added = verbs.add_parser(name, help=text, description=text)
    added.set_defaults(run=run)
    added.add_argument("--json", action="store_true", help="print the result as one JSON object")
    added.add_argument("--quiet", action="store_true", help="show no progress bar")
    added.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return added


def add_data(verb: argparse.ArgumentParser) -> None:
    """Add --data, see `data_folder`."""
    verb.add_argument("--data", type=Path, nargs="+", metavar="DIR", help="several are read as one data set")


def add_store(verb: argparse.ArgumentParser, text: str = "one for each data folder, in the same order") -> None:
    """Add --store, see `store_folders`."""
    verb.add_argument("--store", type=Path, nargs="+", metavar="DIR", help=text)


def add_workers(verb: argparse.ArgumentParser, text: str | None = None) -> None:
    """Add --workers: how many processes; None takes the verb's own default."""
    verb.add_argument("--workers", type=int, metavar="N", help=text)


def add_seed(verb: argparse.ArgumentParser) -> None:
    """Add --seed, from which all chance follows."""
    verb.add_argument("--seed", type=int, default=0, metavar="N")


def add_device(verb: argparse.ArgumentParser) -> None:
    """Add --device, see `device`."""
    verb.add_argument("--device", type=device_name, default="auto", metavar="auto|cpu|cuda|cuda:N")


def add_ct(verb: argparse.ArgumentParser, required: bool = True) -> None:
    """Add --ct: the CTs, in any number; None where it is not given."""
    verb.add_argument("--ct", type=Path, action="extend", nargs="+", required=required, metavar="PATH", help="CTs")


def add_bundle(verb: argparse.ArgumentParser) -> None:
    """Add --bundle, see `bundle`."""
    verb.add_argument("--bundle", type=Path, metavar="DIR", help="default: the nodule bundle")


def add_trust(verb: argparse.ArgumentParser, option: str = "--bundle") -> None:
    """Add --trust-bundle, without which no code of another's config is run."""
    verb.add_argument("--trust-bundle", action="store_true", help=f"run a {option} that may hold any code")


def add_views(verb: argparse.ArgumentParser) -> None:
    """Add --views."""
    text = "flips and turns that are averaged: 1, 2, 4, 8 or 16; default: the bundle's setting"
    verb.add_argument("--views", type=int, metavar="N", help=text)


def add_bootstrap(verb: argparse.ArgumentParser) -> None:
    """Add --bootstrap: the draws that give the intervals."""
    verb.add_argument("--bootstrap", type=int, default=1000, metavar="N", help="draws; 0 gives no intervals")


def add_symlinks(verb: argparse.ArgumentParser) -> None:
    """Add --allow-symlinks: CTs may be links that leave their folder."""
    verb.add_argument("--allow-symlinks", action="store_true", help="take CTs that are linked into place")


def add_ray(verb: argparse.ArgumentParser) -> None:
    """Add --ray and --dashboard."""
    verb.add_argument("--ray", metavar="ADDRESS|local", help="run on this Ray cluster; local: one of this machine")
    verb.add_argument("--dashboard", action="store_true", help="Ray's, of --ray local, for this machine alone")


# --- what the options mean ------------------------------------------------------------------------------------------


def folder(variable: str, default: str) -> Path:
    """Return the folder that an environment variable names, else the default.

    Raises:
        ValueError: it names several.
    """
    found = folder_list(os.environ.get(variable, default))
    if len(found) > 1:
        raise ValueError(
            f"{variable} names {len(found)} folders, where one is needed: name it by an option, or set one"
        )
    return found[0]


def data_folders(options: argparse.Namespace) -> tuple[Path, ...]:
    """Return the folders of --data, else of LUNA16_DATA, else data/phantom."""
    return folder_list(options.data or os.environ.get("LUNA16_DATA", "data/phantom"))


def store_folders(options: argparse.Namespace) -> tuple[Path, ...]:
    """Return the folders of --store, else of LUNA16_STORE, else data/store."""
    return folder_list(options.store or os.environ.get("LUNA16_STORE", "data/store"))


def data_and_stores(options: argparse.Namespace) -> list[tuple[Path, Path]]:
    """Return each data folder with its store.

    Raises:
        ValueError: there are more of the one than of the other.
    """
    data, stores = data_folders(options), store_folders(options)
    if len(data) != len(stores):
        raise ValueError(
            f"{len(data)} data folders ({', '.join(map(str, data))}) with {len(stores)} stores "
            f"({', '.join(map(str, stores))}): name one store for each, in the same order"
        )
    return list(zip(data, stores, strict=True))


def existing(path: Path) -> Path:
    """Return the path of a table that is there.

    Raises:
        FileNotFoundError: it is not.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: name a table that is there")
    return path


def require_file(option: str, path: Path | None, *inputs: Path | None, may_be_folder: bool = False) -> None:
    """Check, before any work, that a file can be written without losing what is read.

    Args:
        option: that names it, for the message.
        path: the file; None: nothing to check.
        inputs: what the verb reads; None where an option is not given.
        may_be_folder: the verb makes a folder of that name, and checks it.

    Raises:
        ValueError: the path is a folder, lies below a file, or is one of the inputs.
    """
    if path is None:
        return
    if path.is_dir() and not may_be_folder:
        raise ValueError(f"{option} {path} is a folder: name a file in it, such as {path / 'results.csv'}")
    _require_folder(option, path.parent)
    for given in inputs:
        if given is not None and given.exists() and path.exists() and path.samefile(given):
            raise ValueError(f"{option} {path} is read as {given}, which would be lost: name another file")


def require_folder(option: str, path: Path | None, names: Sequence[str] = (), *inputs: Path | None) -> None:
    """Check, before any work, that files can be written into a folder without losing what is read.

    Args:
        option: that names it, for the message.
        path: the folder, there or not; None: nothing to check.
        names: of the files that are written there.
        inputs: as `require_file`.

    Raises:
        ValueError: the path is a file, lies below one, or one of the files is one of the inputs.
    """
    if path is None:
        return
    _require_folder(option, path)
    for name in names:
        require_file(option, path / name, *inputs, may_be_folder=True)


def _require_folder(option: str, path: Path) -> None:
    """Refuse a folder that is a file, or lies below one."""
    there = next((one for one in (path, *path.parents) if one.exists()), None)
    if there is not None and not there.is_dir():
        raise ValueError(f"{option}: {there} is a file, where a folder is needed: name another path")


def bundle(path: Path | None, trusted: bool) -> Path:
    """Return a bundle's folder, by default the nodule bundle's.

    Raises:
        ValueError: the bundle does not come with the package, and is not trusted.
    """
    from luna16_monai.bundle.bases import foreign_files, read_yaml
    from luna16_monai.bundle.folders import bundle_dir, require_trust

    if path is None:
        return bundle_dir()
    files = [path / "configs" / name for name in ("inference.yaml", "prepare.yaml")]
    called = [read_yaml(one) for file in files if file.is_file() for one in foreign_files(file)]
    require_trust(path, called, trusted)
    return path


def load_monai(options: argparse.Namespace, *bundles: Path | None) -> None:
    """Import MONAI without what a prediction does not need, where this process runs one verb and no other code.

    Another's bundle may need all of it.

    Args:
        options: of the verb.
        bundles: that will run; None is one that comes with the package.
    """
    from luna16_monai.machine.extras import hidden

    if options.is_program and "monai" not in sys.modules and not any(bundles):
        with hidden(*UNUSED):
            import monai.bundle  # noqa: F401


def device(name: str) -> str:
    """Return the device that --device names; ``auto`` is CUDA where it is available, else the CPU.

    Raises:
        ValueError: it is not there.
    """
    import torch

    from luna16_monai.networks.backends import require_device

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return str(require_device(name))


def device_name(text: str) -> str:
    """Return the word after --device, if it is the name of a device, there or not."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no device: name auto, cpu, cuda or cuda:N")
    return text


# --- what is printed ------------------------------------------------------------------------------------------------


def tell(options: argparse.Namespace, result: dict[str, Any], line: str) -> int:
    """Print a result, as JSON with --json, else as a line; return the exit code of what is done."""
    print(json.dumps(result, indent=2) if options.json else line, flush=True)
    return DONE


def warn(warnings: Sequence[str]) -> None:
    """Print warnings on standard error, a line each."""
    for warning in warnings:
        print("luna16: warning:", warning, file=sys.stderr)


def shows_progress(options: argparse.Namespace) -> bool:
    """Return whether progress bars are shown: without --quiet, and where standard error is a terminal."""
    return not options.quiet and sys.stderr.isatty()
