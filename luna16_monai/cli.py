"""The ``luna16`` command: read the arguments, call one function, print its result."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from luna16_monai import __version__
from luna16_monai.errors import one_line, root_cause

DONE, FAILED, WRONG_INPUT = 0, 1, 2
INPUT_ERRORS = (ValueError, LookupError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        arguments: the words after ``luna16``; None takes those of the process.

    Returns:
        0 done, 1 the work failed or a check found something wrong, 2 the call or its input is wrong.
    """
    options = _parser().parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print("luna16: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    except Exception as error:
        # nothing is hidden: the error is told in one line, and raised whole with --debug
        if options.debug:
            raise
        print("luna16:", one_line(error), file=sys.stderr)
        return WRONG_INPUT if isinstance(root_cause(error), INPUT_ERRORS) else FAILED


def _phantom(options: argparse.Namespace) -> int:
    output = options.output or _folder("LUNA16_DATA", "data/phantom")
    common = {"seed": options.seed, "progress": _progress(options), "workers": options.workers}
    if options.scans is not None:
        common["scans"] = options.scans
    if options.background is None:
        from luna16_monai.phantom import write_phantom

        result = write_phantom(output, **common)
    else:
        from luna16_monai.background import write_background_phantom

        result = write_background_phantom(options.background, output, **common)
    there = "already" if result["cached"] else "written"
    return _print(options, result, f"phantom: {result['scans']} CTs in {output}, {there}")


def _prepare(options: argparse.Namespace) -> int:
    from luna16_monai.bundle import bundle_dir
    from luna16_monai.prepare import Recipe, prepare

    spacing: Any = "file"
    if options.native:
        spacing = None
    elif options.spacing_zyx:
        spacing = options.spacing_zyx
    recipe = Recipe.read(options.config or bundle_dir() / "configs" / "prepare.yaml", spacing)
    data, store_dir = _data(options), _store(options)
    store = prepare(
        data,
        store_dir,
        recipe,
        workers=options.workers,
        allow_missing=options.allow_missing,
        allow_symlinks=options.allow_symlinks,
        progress=_progress(options),
    )
    result = {
        "store": str(store_dir),
        "series": len(store.series_uids),
        "missing": len(store.missing),
        "spacing_zyx": recipe.spacing_zyx,
    }
    return _print(options, result, f"prepare: {len(store.series_uids)} CTs in {store_dir}")


def _verify(options: argparse.Namespace) -> int:
    from luna16_monai.cutouts import verify

    store_dir = _store(options)
    wrong = verify(store_dir, progress=_progress(options))
    for line in wrong:
        print("luna16:", line, file=sys.stderr)
    _print(
        options, {"store": str(store_dir), "wrong": wrong}, f"verify: {len(wrong) or 'nothing'} wrong in {store_dir}"
    )
    return FAILED if wrong else DONE


def _print(options: argparse.Namespace, result: dict[str, Any], line: str) -> int:
    print(json.dumps(result, indent=2) if options.json else line)
    return DONE


def _progress(options: argparse.Namespace) -> bool:
    return not options.quiet and sys.stderr.isatty()


def _folder(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable, default))


def _data(options: argparse.Namespace) -> Path:
    return options.data or _folder("LUNA16_DATA", "data/phantom")


def _store(options: argparse.Namespace) -> Path:
    return options.store or _folder("LUNA16_STORE", "data/store")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="luna16",
        description="Train, evaluate and ship a lung-nodule classifier on LUNA16. For research, not for clinical use.",
        epilog="Folders default to LUNA16_DATA, LUNA16_STORE and LUNA16_RUNS.",
    )
    parser.add_argument("--version", action="version", version=f"luna16_monai {__version__}")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")

    def verb(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        added.add_argument("--json", action="store_true", help="print the result as one JSON object")
        added.add_argument("--quiet", action="store_true", help="show no progress bar")
        added.add_argument("--debug", action="store_true", help="show the traceback of an error")
        return added

    phantom = verb("phantom", _phantom, "write a synthetic data set in LUNA16's own layout")
    phantom.add_argument("--output", type=Path, metavar="DIR")
    phantom.add_argument("--scans", type=int, metavar="N", help="default: 60, or 10 with --background")
    phantom.add_argument("--seed", type=int, default=0, metavar="N")
    phantom.add_argument("--workers", type=int, metavar="N")
    phantom.add_argument("--background", type=Path, metavar="PATH", help="put nodules into this real CT")

    prepare = verb("prepare", _prepare, "send each CT once through the bundle's transforms into the store; resumable")
    prepare.add_argument("--data", type=Path, metavar="DIR")
    prepare.add_argument("--store", type=Path, metavar="DIR")
    spacing = prepare.add_mutually_exclusive_group()
    spacing.add_argument("--spacing-zyx", type=float, nargs=3, metavar=("Z", "Y", "X"), help="millimetres")
    spacing.add_argument("--native", action="store_true", help="keep each CT's own spacing")
    prepare.add_argument("--config", type=Path, metavar="FILE", help="the transform list; default: the nodule bundle's")
    prepare.add_argument("--allow-missing", action="store_true", help="go on without the CTs that are not there")
    prepare.add_argument("--allow-symlinks", action="store_true", help="take CTs that are linked into place")
    prepare.add_argument("--workers", type=int, metavar="N")

    check = verb("verify", _verify, "check a store against its checksums")
    check.add_argument("--store", type=Path, metavar="DIR")
    return parser


if __name__ == "__main__":
    sys.exit(main())
