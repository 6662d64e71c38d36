"""The verbs about data: ``phantom``, ``download``, ``doctor``, ``prepare`` and ``verify``."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import Any

from luna16_monai.bundle.folders import require_trust
from luna16_monai.cli.console import DONE, FAILED, data_folder, folder, shows_progress, store_folder, tell


def run_phantom(options: argparse.Namespace) -> int:
    """Run ``luna16 phantom``; its exit code."""
    output = options.output or folder("LUNA16_DATA", "data/phantom")
    common = {"seed": options.seed, "progress": shows_progress(options), "workers": options.workers}
    if options.scans is not None:
        common["scans"] = options.scans
    wanted = {"difficulty": options.difficulty, "negatives_per_positive": options.negatives_per_positive}
    settings = {name: value for name, value in wanted.items() if value is not None}
    if options.background is None:
        from luna16_monai.phantom.data_set import write_phantom
        from luna16_monai.phantom.nodules import ScanSettings

        result = write_phantom(output, **common, settings=ScanSettings(**settings))
    else:
        if settings:
            raise ValueError(f"--background takes no {', '.join(settings)}: leave it out, or the background")
        from luna16_monai.phantom.background import write_background_phantom

        result = write_background_phantom(options.background, output, **common)
    there = "already" if result["cached"] else "written"
    return tell(options, result, f"phantom: {result['scans']} CTs in {output}, {there}")


def run_download(options: argparse.Namespace) -> int:
    """Run ``luna16 download``; its exit code."""
    from luna16_monai.setup.download import download

    output = options.output or folder("LUNA16_DATA", "data/luna16")
    result = download(output, options.subset, options.base_url, shows_progress(options), options.keep_archives)
    return tell(options, result, f"download: {result['series']} CTs of {len(result['subsets'])} subsets in {output}")


def run_doctor(options: argparse.Namespace) -> int:
    """Run ``luna16 doctor``; its exit code."""
    from luna16_monai.setup.doctor import examine, told

    result = examine(data_folder(options), store_folder(options), folder("LUNA16_RUNS", "runs"))
    tell(options, result, told(result))
    return DONE if result["ok"] else FAILED


def run_prepare(options: argparse.Namespace) -> int:
    """Run ``luna16 prepare``; its exit code."""
    from luna16_monai.bundle.folders import bundle_dir
    from luna16_monai.store.preparation import Recipe
    from luna16_monai.store.prepare import prepare

    spacing: Any = "file"
    if options.native:
        spacing = None
    elif options.spacing_zyx:
        spacing = options.spacing_zyx
    recipe = Recipe.read(options.config or bundle_dir() / "configs" / "prepare.yaml", spacing)
    if options.config is not None:
        require_trust(options.config, recipe.config, options.trust_bundle)
    data, store_dir = data_folder(options), store_folder(options)
    execute = None
    if options.ray:
        from luna16_monai.machine.cluster import run_tasks

        # each node has a current folder of its own
        data, store_dir = data.absolute(), store_dir.absolute()
        execute = partial(run_tasks, address=options.ray, dashboard=options.dashboard)
    store = prepare(
        data,
        store_dir,
        recipe,
        workers=options.workers,
        allow_missing=options.allow_missing,
        allow_symlinks=options.allow_symlinks,
        progress=shows_progress(options),
        execute=execute,
        log_dir=store_dir / "logs",
    )
    result = {
        "store": str(store_dir),
        "series": len(store.series_uids),
        "missing": len(store.missing),
        "spacing_zyx": recipe.spacing_zyx,
    }
    return tell(options, result, f"prepare: {len(store.series_uids)} CTs in {store_dir}")


def run_verify(options: argparse.Namespace) -> int:
    """Run ``luna16 verify``; its exit code."""
    from luna16_monai.store.reading import verify

    store_dir = store_folder(options)
    wrong = verify(store_dir, progress=shows_progress(options))
    for line in wrong:
        print("luna16:", line, file=sys.stderr)
    tell(options, {"store": str(store_dir), "wrong": wrong}, f"verify: {len(wrong) or 'nothing'} wrong in {store_dir}")
    return FAILED if wrong else DONE
