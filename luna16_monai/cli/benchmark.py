"""The verb ``benchmark``: weights on labelled cutouts, or on CTs whose nodules are listed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luna16_monai.cli import console

if TYPE_CHECKING:
    from luna16_monai.cli.console import Verbs

FEWEST_NEGATIVES = 100
"""Spots of each CT, where nothing else is said."""


def add_benchmark(verbs: Verbs) -> None:
    """Add ``luna16 benchmark``."""
    text = "measure weights on labelled cutouts or CTs: AUC, what is found at few false calls"
    verb = console.add_verb(verbs, "benchmark", run_benchmark, text)
    where = verb.add_mutually_exclusive_group(required=True)
    where.add_argument("--cutouts", type=Path, metavar="DIR", help="labelled cutouts: an .npz and its .csv")
    where.add_argument("--ct", type=Path, action="extend", nargs="+", metavar="PATH", help="CTs, with --nodules")
    text = "seriesuid, coordX, coordY, coordZ, diameter_mm: all nodules of the CTs"
    verb.add_argument("--nodules", type=Path, metavar="CSV", help=text)
    text = f"spots of each CT that are no nodules; default: {FEWEST_NEGATIVES}"
    verb.add_argument("--negatives", type=int, default=FEWEST_NEGATIVES, metavar="N", help=text)
    text = "a run's model.pt; further ones are compared with the first; default: the bundle's own"
    verb.add_argument("--weights", type=Path, nargs="+", metavar="FILE", help=text)
    console.add_bundle(verb)
    console.add_trust(verb)
    verb.add_argument("--use", metavar="WORD", help="only rows with this word in the table's column use")
    verb.add_argument("--matched", action="store_true", help="first bring all cutouts to 1 mm and end them at 400 HU")
    text = "flips and turns that are averaged: 1, 2, 4, 8 or 16; default: the bundle's setting"
    verb.add_argument("--views", type=int, metavar="N", help=text)
    verb.add_argument("--output", type=Path, metavar="DIR", help="for benchmark.json")
    console.add_symlinks(verb)
    console.add_device(verb)
    console.add_bootstrap(verb)
    console.add_seed(verb)


def run_benchmark(options: argparse.Namespace) -> int:
    """Run ``luna16 benchmark``; return its exit code."""
    from luna16_monai.inference import benchmark
    from luna16_monai.inference.classifier import Classifier
    from luna16_monai.machine.files import write_json
    from luna16_monai.runs.seen import read_seen, tell_seen
    from luna16_monai.tables.cutouts import read_cutouts

    if (options.ct is None) != (options.nodules is None):
        raise ValueError("--ct needs --nodules, the table of all nodules in these CTs, and --nodules needs --ct")
    if options.ct and options.use:
        raise ValueError("--use goes with --cutouts: the table of --nodules has no such column")
    console.require_folder("--output", options.output, ["benchmark.json"], options.nodules, *(options.weights or []))
    bundle = console.bundle(options.bundle, options.trust_bundle)
    device = console.device(options.device)
    named = [(str(path), Classifier(bundle, device, [path])) for path in options.weights or []]
    named = named or [("bundle", Classifier(bundle, device))]
    if len({name for name, _ in named}) < len(named):
        raise ValueError("--weights names a file twice: name each once")
    if options.ct:
        recipe = named[0][1].recipe
        found = benchmark.cutouts_of_cts(
            options.ct, options.nodules, recipe, options.negatives, options.allow_symlinks
        )  # fmt: skip
    else:
        found = read_cutouts(options.cutouts)
    scored = found.to_score(options.use)
    result = benchmark.run_benchmark(
        named, scored, options.views, options.matched, options.bootstrap, options.seed
    )  # fmt: skip
    result = {"source": found.source, "use": options.use, "left_out": len(found) - len(scored), **result}
    if options.output is not None:
        write_json(options.output / "benchmark.json", result)
    series = sorted(set(scored.series) - {""})
    seen = tell_seen([read_seen(path) for _, one in named for path in one.weights], series, {}, "series that are known")
    console.warn([*result["warnings"], seen])
    return console.tell(options, result, _told(result))


def _told(result: dict[str, Any]) -> str:
    lines = [
        f"benchmark: {result['nodules']} nodules and {result['negatives']} others of {result['patients']} patients",
        "  AUC                       found at 1 %  at 5 %  5 %: <8 mm  8-15  >=15",
    ]
    for row in [*result["weights"], *result["differences"]]:
        sizes = [one["found_at"]["0.05"] for one in row["by_diameter_mm"].values()]
        signed = "+" if "from" in row else ""
        interval = "" if row["roc_auc_ci95"] is None else " ({:.3f} to {:.3f})".format(*row["roc_auc_ci95"])
        numbers = "  ".join(
            "-" if one is None else format(one, f"{signed}.2f") for one in [*row["found_at"].values(), *sizes]
        )
        what = f"{row['name']} minus {row['from']}" if signed else row["name"]
        lines.append(f"  {format(row['roc_auc'], signed + '.3f')}{interval}  {numbers}  {what}")
    return "\n".join(lines)
