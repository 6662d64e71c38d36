"""The verb that finds candidates in bare CTs: ``detect``."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from luna16_monai.cli import console

if TYPE_CHECKING:
    from luna16_monai.cli.console import Verbs
    from luna16_monai.inference.detect import Candidates, Detector, Lungs
    from luna16_monai.store.in_memory import InMemoryStore

BUNDLE = "nodule_detection"


def add_detect(verbs: Verbs) -> None:
    """Add ``luna16 detect``."""
    verb = console.add_verb(verbs, "detect", run_detect, "find nodule candidates in CTs")
    console.add_ct(verb)
    verb.add_argument("--output", type=Path, required=True, metavar="CSV")
    add_max(verb)
    verb.add_argument("--threshold", type=float, default=0.0, metavar="P", help="the least probability; default: 0")
    verb.add_argument("--bundle", type=Path, metavar="DIR", help="default: the detection bundle")
    console.add_trust(verb)
    verb.add_argument("--weights", type=Path, metavar="FILE", help="a run's model.pt; default: the bundle's own")
    add_lungs(verb)
    console.add_symlinks(verb)
    verb.add_argument("--backend", default="auto", choices=("auto", "torch", "openvino"), help="what runs it")
    console.add_views(verb)
    console.add_device(verb)
    console.add_workers(verb, "CTs at once; default: 1")
    console.add_ray(verb)


def run_detect(options: argparse.Namespace) -> int:
    """Run ``luna16 detect``; return its exit code."""
    console.load_monai(options, options.bundle)
    from luna16_monai.inference.detect_many import Search, detect_many, forget
    from luna16_monai.phantom.drawn import drawn_near
    from luna16_monai.runs.seen import read_seen, tell_seen, write_seen_by_all

    console.require_file("--output", options.output, options.weights, options.lung_mask, *options.ct)
    if options.ray:
        # each node has a current folder of its own
        options.ct, options.output = [path.absolute() for path in options.ct], options.output.absolute()
    bundle = bundle_of(options.bundle, options.trust_bundle)
    detector, volumes = opened(options, bundle, options.weights, options.views)
    if len(volumes.series_uids) > 1:
        search = Search(
            detector.bundle, console.device(options.device), options.weights, options.max, options.threshold,
            options.lung_mask, options.no_lung_mask, options.backend, options.views,
        ).absolute()  # fmt: skip
        execute = None
        if options.ray:
            from luna16_monai.machine.cluster import run_tasks

            execute = partial(run_tasks, address=options.ray, dashboard=options.dashboard)
        shown = console.shows_progress(options)
        found = detect_many(search, detector, volumes, options.output, options.workers or 1, shown, execute)
    else:
        found = detector.candidates(volumes, options.max, options.threshold, lungs(options))
    warn(found)
    found.write(options.output)
    forget(options.output)
    records = [read_seen(found.weights)]
    write_seen_by_all(options.output, records)
    print("luna16:", tell_seen(records, found.table.series_uids, drawn_near(options.ct)), file=sys.stderr)
    count, series = len(found.table), len(found.table.series_uids)
    result = {"output": str(options.output), "candidates": count, "series": series, "without": list(found.empty)}
    return console.tell(options, result, f"detect: {count} candidates of {series} CTs in {options.output}")


def add_max(verb: argparse.ArgumentParser) -> None:
    """Add --max: the most candidates of a CT."""
    verb.add_argument("--max", type=int, default=50, metavar="N", help="candidates of a CT; default: 50")


def add_lungs(verb: argparse.ArgumentParser) -> None:
    """Add --lung-mask and --no-lung-mask."""
    lungs = verb.add_mutually_exclusive_group()
    text = "of the lungs: a file, or a folder with one named as each series; default: they are found"
    lungs.add_argument("--lung-mask", type=Path, metavar="PATH", help=text)
    lungs.add_argument("--no-lung-mask", action="store_true", help="search the whole scan")


def lungs(options: argparse.Namespace) -> Lungs:
    """Return what gives the lungs of a CT, by --lung-mask and --no-lung-mask."""
    from luna16_monai.inference.detect import lungs_from

    return lungs_from(options.lung_mask, options.no_lung_mask)


def opened(
    options: argparse.Namespace, bundle: Path, weights: Path | None, views: int | None
) -> tuple[Detector, InMemoryStore]:
    """Return a detector, and the CTs of --ct as it takes them.

    Args:
        options: of a verb with --ct, --allow-symlinks, --backend and --device.
        bundle: that detects, see `bundle_of`.
        weights: a model.pt; None takes the bundle's own.
        views: flips and turns that are averaged; None takes the bundle's setting.
    """
    from luna16_monai.inference.detect import read_detector

    detector, prepare = read_detector(bundle, console.device(options.device), weights, options.backend, views)
    return detector, prepare(options.ct, options.allow_symlinks)


def bundle_of(bundle: Path | None, trust: bool) -> Path:
    """Return the folder of a bundle that detects; None means the one that comes with the package."""
    from luna16_monai.bundle.folders import bundle_dir

    return console.bundle(bundle or bundle_dir(BUNDLE), trust)


def warn(found: Candidates) -> None:
    """Print what is to be known of the CTs: warnings, and which have no candidate."""
    console.warn([*found.warnings, *(f"series {uid} has no candidate" for uid in found.empty)])
