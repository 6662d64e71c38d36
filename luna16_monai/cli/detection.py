"""The verb that finds candidates in bare CTs: ``detect``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from luna16_monai.cli import console

if TYPE_CHECKING:
    from luna16_monai.cli.console import Verbs

BUNDLE = "nodule_detection"


def add_detect(verbs: Verbs) -> None:
    """Add ``luna16 detect``."""
    verb = console.add_verb(verbs, "detect", run_detect, "find nodule candidates in CTs")
    console.add_ct(verb)
    verb.add_argument("--output", type=Path, required=True, metavar="CSV")
    verb.add_argument("--max", type=int, default=50, metavar="N", help="candidates of a CT; default: 50")
    verb.add_argument("--threshold", type=float, default=0.0, metavar="P", help="the least probability; default: 0")
    verb.add_argument("--bundle", type=Path, metavar="DIR", help="default: the detection bundle")
    console.add_trust(verb)
    verb.add_argument("--weights", type=Path, metavar="FILE", help="a run's model.pt; default: the bundle's own")
    lungs = verb.add_mutually_exclusive_group()
    text = "of the lungs: a file, or a folder with one named as each series; default: they are found"
    lungs.add_argument("--lung-mask", type=Path, metavar="PATH", help=text)
    lungs.add_argument("--no-lung-mask", action="store_true", help="search the whole scan")
    console.add_symlinks(verb)
    console.add_device(verb)


def run_detect(options: argparse.Namespace) -> int:
    """Run ``luna16 detect``; return its exit code."""
    from luna16_monai.bundle.folders import bundle_dir
    from luna16_monai.inference.detect import lungs_from, read_detector

    bundle = console.bundle(options.bundle or bundle_dir(BUNDLE), options.trust_bundle)
    detector, prepare = read_detector(bundle, console.device(options.device), options.weights)
    found = detector.candidates(
        prepare(options.ct, options.allow_symlinks), options.max, options.threshold,
        lungs_from(options.lung_mask, options.no_lung_mask), console.shows_progress(options),
    )  # fmt: skip
    found.write(options.output)
    count, series = len(found.table), len(found.table.series_uids)
    console.warn([*found.warnings, *(f"series {uid} has no candidate" for uid in found.empty)])
    result = {"output": str(options.output), "candidates": count, "series": series, "without": list(found.empty)}
    return console.tell(options, result, f"detect: {count} candidates of {series} CTs in {options.output}")
