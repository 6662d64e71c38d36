"""The verbs about scores: ``evaluate``, ``compare``, ``benchmark`` and ``report``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luna16_monai.cli import console

if TYPE_CHECKING:
    from luna16_monai.cli.console import Verbs

FEWEST_NEGATIVES = 100
"""Spots of each CT, where nothing else is said."""


def add_evaluate(verbs: Verbs) -> None:
    """Add ``luna16 evaluate``."""
    verb = console.add_verb(verbs, "evaluate", run_evaluate, "score a submission as LUNA16 does")
    _add_reference(verb)
    text = "seriesuid, coordX, coordY, coordZ, probability; or any format of convert"
    verb.add_argument("--submission", type=Path, required=True, metavar="FILE", help=text)
    verb.add_argument("--ras", action="store_true", help="the submission's table or boxes are RAS, not LPS")
    text = "also count the nodules that these masks lose: a folder with one named as each series, or one file"
    verb.add_argument("--lung-mask", type=Path, metavar="PATH", help=text)
    verb.add_argument("--output", type=Path, metavar="DIR", help="for metrics.json, candidates.csv, nodules.csv")


def run_evaluate(options: argparse.Namespace) -> int:
    """Run ``luna16 evaluate``; return its exit code."""
    from luna16_monai.evaluation.submission import evaluate
    from luna16_monai.interchange.formats import Conventions, read_as_table, read_diameters
    from luna16_monai.runs.results import write_results

    _check_results(options)
    truth, conventions = _truth(options), Conventions(ras=options.ras)
    submission, notes = read_as_table(options.submission, "probability", conventions)
    diameters = read_diameters(options.submission, conventions)
    evaluation = evaluate(submission, truth, options.bootstrap, options.seed, diameter_mm=diameters)
    if options.lung_mask is not None:
        from luna16_monai.evaluation.lost import lost_to_lung_mask

        evaluation.scores["lost_to_lung_mask"] = len(lost_to_lung_mask(truth.nodules, options.lung_mask))
    if options.output is not None:
        write_results(
            options.output, evaluation.scores, submission, submission.values, evaluation, subsets=truth.subsets
        )
    console.warn([*notes, *evaluation.scores["warnings"], *_seen(options, truth.series_uids)])
    return console.tell(options, evaluation.scores, _told(evaluation.scores))


def _check_results(options: argparse.Namespace) -> None:
    """Refuse an output folder in which a table that is read, or another one of a data set, would be lost."""
    from luna16_monai.runs.folder import RunFolder
    from luna16_monai.tables.luna16 import find_table

    if options.output is None:
        return
    run = RunFolder(options.output)
    files = [run.metrics_file, run.candidates_file, run.nodules_file, run.series_file]
    names = [path.name for path in files]
    console.require_folder("--output", options.output, names, options.submission, *_tables(options))
    if options.output.is_dir() and find_table(options.output, "annotations") is not None:
        raise ValueError(f"--output {options.output} is a data folder, whose tables would be lost: name another one")


def _seen(options: argparse.Namespace, series_uids: Sequence[str]) -> list[str]:
    """Return how many of the scored scans the weights have seen, where a record lies beside the submission."""
    from luna16_monai.phantom.drawn import drawn_near
    from luna16_monai.runs.seen import seen_beside, tell_seen

    seen = seen_beside(options.submission)
    if seen is None:
        return []
    tables = [options.annotations, options.seriesuids, *([options.subsets] if options.subsets else [])]
    return [tell_seen([seen], series_uids, drawn_near(tables), "scans that are scored")]


def add_compare(verbs: Verbs) -> None:
    """Add ``luna16 compare``."""
    text = "tell whether the second of two submissions is better than the first"
    verb = console.add_verb(verbs, "compare", run_compare, text)
    _add_reference(verb)
    verb.add_argument("--submission", type=Path, action="append", required=True, metavar="FILE", help="give it twice")
    verb.add_argument("--output", type=Path, metavar="DIR", help="for comparison.json")


def run_compare(options: argparse.Namespace) -> int:
    """Run ``luna16 compare``; return its exit code."""
    from luna16_monai.evaluation.submission import compare, evaluate
    from luna16_monai.interchange.formats import read_as_table
    from luna16_monai.machine.files import write_json

    if len(options.submission) != 2:
        raise ValueError(f"--submission is given {len(options.submission)} times: compare takes it twice")
    console.require_folder("--output", options.output, ["comparison.json"], *options.submission, *_tables(options))
    truth = _truth(options)
    one, other = (evaluate(read_as_table(path, "probability")[0], truth, draws=0) for path in options.submission)
    result = {
        "submissions": [path.name for path in options.submission],
        **compare(one, other, options.bootstrap, options.seed),
    }
    if options.output is not None:
        write_json(options.output / "comparison.json", result)
    console.warn(result["warnings"])
    low, high = result["cpm_difference_ci95"]
    lines = [
        f"compare: CPM {result['cpm'][0]:.4f} and {result['cpm'][1]:.4f} on {result['scans']} scans, "
        f"difference {result['cpm_difference']:+.4f} (95 % {low:+.4f} to {high:+.4f})"
    ]
    if result["roc_auc"] is not None:
        low, high = result["roc_auc_difference_ci95"]
        p_value = "" if result["delong_p"] is None else f", DeLong's p {result['delong_p']:.3g}"
        lines.append(
            f"  AUC of the same candidates {result['roc_auc'][0]:.4f} and {result['roc_auc'][1]:.4f}, difference "
            f"{result['roc_auc_difference']:+.4f} (95 % {low:+.4f} to {high:+.4f}{p_value})"
        )
    return console.tell(options, result, "\n".join(lines))


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
    records = [read_seen(path) for _, one in named for path in one.weights]
    seen = [tell_seen(records, series, {}, "series that are known")] if series else []
    console.warn([*result["warnings"], *seen])
    return console.tell(options, result, _told_benchmark(result))


def _told_benchmark(result: dict[str, Any]) -> str:
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


def add_report(verbs: Verbs) -> None:
    """Add ``luna16 report``."""
    verb = console.add_verb(verbs, "report", run_report, "write one self-contained HTML file about a run")
    verb.add_argument("--run", dest="run_dir", type=Path, required=True, metavar="DIR", help="its output folder")
    verb.add_argument("--output", type=Path, metavar="FILE.html", help="default: report.html in that folder")
    console.add_store(verb, "the prepared volumes, for the pictures")


def run_report(options: argparse.Namespace) -> int:
    """Run ``luna16 report``; return its exit code."""
    from luna16_monai.report.page import write_report
    from luna16_monai.runs.folder import RunFolder

    output = options.output or RunFolder(options.run_dir).report_file
    read = [path for path in options.run_dir.glob("*") if path.suffix.lower() != ".html"]
    console.require_file("--output", output, *read)
    result = write_report(options.run_dir, output, console.store_folders(options))
    return console.tell(
        options, result, f"report: {output} ({result['megabytes']:.1f} MB, {result['pictures']} pictures)"
    )


def _add_reference(verb: argparse.ArgumentParser) -> None:
    """Add the options of a reference standard: the nodules, and which scans are scored; and those of the bootstrap."""
    verb.add_argument("--annotations", type=Path, required=True, metavar="CSV", help="the nodules")
    excluded = verb.add_mutually_exclusive_group(required=True)
    excluded.add_argument("--excluded", type=Path, metavar="CSV", help="findings that count neither way")
    excluded.add_argument("--no-excluded", action="store_true", help="do without; not comparable with LUNA16's CPM")
    verb.add_argument("--seriesuids", type=Path, required=True, metavar="CSV", help="the scans to score, no others")
    verb.add_argument("--subsets", type=Path, metavar="PATH", help="table of seriesuid, subset; or the CTs' folder")
    console.add_bootstrap(verb)
    console.add_seed(verb)


def _tables(options: argparse.Namespace) -> list[Path | None]:
    """The tables of a reference standard that were named."""
    return [options.annotations, options.excluded, options.seriesuids, options.subsets]


def _truth(options: argparse.Namespace) -> Any:
    from luna16_monai.evaluation.submission import read_reference

    return read_reference(options.annotations, options.excluded, options.seriesuids, options.subsets)


def _told(scores: dict[str, Any]) -> str:
    interval = "" if scores["cpm_ci95"] is None else " (95 % {:.4f} to {:.4f})".format(*scores["cpm_ci95"])
    columns, ranks = scores["sensitivity_at"], scores["sensitivity_at_candidates"]
    lines = [
        f"evaluate: CPM {scores['cpm']:.4f}{interval} on {scores['scans']} scans with {scores['nodules']} nodules",
        "  false positives a scan " + "".join(f"{rate:>8}" for rate in columns),
        "  sensitivity            " + "".join(f"{value:8.4f}" for value in columns.values()),
        "  candidates a scan      " + "".join(f"{number:>8}" for number in ranks),
        "  sensitivity            " + "".join(f"{value:8.4f}" for value in ranks.values()),
        f"  {scores['candidate_ceiling']:.4f} of the nodules have a candidate on them",
    ]
    if error := scores.get("diameter_error_mm"):
        lines.append(f"  diameters are off by {error['median']:.2f} mm in the median, {error['p90']:.2f} at the 90th %")
    if "lost_to_lung_mask" in scores:
        lines.append(f"  {scores['lost_to_lung_mask']} nodules lie outside the lung masks")
    return "\n".join(lines)
