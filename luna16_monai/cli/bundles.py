"""The verbs about a bundle and its weights: ``export``, ``bundle`` and ``calibrate``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luna16_monai.cli import console

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luna16_monai.cli.console import Verbs
    from luna16_monai.runs.folder import RunFolder
    from luna16_monai.runs.seen import Seen
    from luna16_monai.tables.data_sets import DataSets


def add_export(verbs: Verbs) -> None:
    """Add ``luna16 export``."""
    verb = console.add_verb(verbs, "export", run_export, "write a trained network in another program's format")
    verb.add_argument("--format", required=True, choices=("torchscript", "onnx", "openvino", "pt2"))
    verb.add_argument("--output", type=Path, required=True, metavar="FILE", help="OpenVINO's ends in .xml")
    console.add_bundle(verb)
    console.add_trust(verb)
    verb.add_argument("--weights", type=Path, metavar="FILE", help="a run's model.pt; default: the bundle's own")


def run_export(options: argparse.Namespace) -> int:
    """Run ``luna16 export``; return its exit code."""
    from luna16_monai.inference.classifier import Classifier
    from luna16_monai.inference.detect import detects, read_network
    from luna16_monai.networks.export import export, export_detector
    from luna16_monai.runs.seen import copy_seen

    console.require_file("--output", options.output, options.weights)
    bundle = console.bundle(options.bundle, options.trust_bundle)
    if detects(bundle):
        network, config, weights = read_network(bundle, options.weights)
        export_detector(network, config, bundle, options.format, options.output)
    else:
        classifier = Classifier(bundle, "cpu", [options.weights] if options.weights else (), "torch")
        weights = classifier.weights[0]
        export(classifier.networks[0], classifier.config, bundle, options.format, options.output)
    copy_seen(weights, options.output)
    result = {"format": options.format, "output": str(options.output), "bytes": options.output.stat().st_size}
    return console.tell(options, result, f"export: {options.format} in {options.output}")


def add_bundle(verbs: Verbs) -> None:
    """Add ``luna16 bundle``."""
    text = "write a bundle that comes with the package to a folder of your own"
    verb = console.add_verb(verbs, "bundle", run_bundle, text)
    verb.add_argument("name", nargs="?", default="nodule_classification")
    verb.add_argument("--output", type=Path, required=True, metavar="DIR")


def run_bundle(options: argparse.Namespace) -> int:
    """Run ``luna16 bundle``; return its exit code."""
    from luna16_monai.bundle.folders import bundle_dir, copy_bundle

    console.require_folder("--output", options.output)
    copy_bundle(bundle_dir(options.name), options.output)
    return console.tell(options, {"output": str(options.output)}, f"bundle: {options.name} in {options.output}")


def add_calibrate(verbs: Verbs) -> None:
    """Add ``luna16 calibrate``."""
    text = "fit the probabilities of a run anew, and choose a threshold; predict reads both"
    verb = console.add_verb(verbs, "calibrate", run_calibrate, text)
    verb.add_argument("--run", dest="run_dir", type=Path, required=True, metavar="DIR", help="its output folder")
    text = "CTs and candidates that the weights have not seen; default: the run's own validation"
    verb.add_argument("--data", type=Path, nargs="+", metavar="DIR", help=text)
    text = "a table that predict wrote of --data without a list: chooses the threshold of both stages"
    verb.add_argument("--predictions", type=Path, metavar="CSV", help=text)
    text = "that the threshold allows a scan; default: 1.0"
    verb.add_argument("--false-positives", type=float, default=1.0, metavar="N", help=text)
    console.add_bundle(verb)
    console.add_trust(verb)
    text = "flips and turns that are averaged, as predict will; default: the bundle's setting"
    verb.add_argument("--views", type=int, metavar="N", help=text)
    console.add_symlinks(verb)
    console.add_device(verb)
    console.add_bootstrap(verb)
    console.add_seed(verb)


def run_calibrate(options: argparse.Namespace) -> int:
    """Run ``luna16 calibrate``; return its exit code."""
    from luna16_monai.runs.calibrated import BOTH_STAGES, THRESHOLD, write_calibrated
    from luna16_monai.runs.folder import RunFolder
    from luna16_monai.tables.data_sets import DataSets

    run = RunFolder(options.run_dir)
    if not run.weights.is_file():
        raise FileNotFoundError(f"no {run.weights}: name the output folder of a training")
    if not options.false_positives > 0:
        raise ValueError(f"--false-positives {options.false_positives:g}: give a number above 0, such as 1")
    folders = None if options.data is None else DataSets.of(options.data)
    if options.predictions is not None:
        if folders is None:
            raise ValueError("--predictions without --data: name the data folder that they are about")
        found = _of_predictions(options, run, folders)
    elif folders is None:
        found = _of_validation(options, run)
    else:
        found = _of_data(options, run, folders)
    kept = ("calibration", THRESHOLD, BOTH_STAGES)
    write_calibrated(run, {key: found[key] for key in kept if key in found})
    result = {"file": str(run.calibration_file), **dict.fromkeys(kept), **found}
    told = result[THRESHOLD] or result[BOTH_STAGES]
    interval = "" if told["threshold_ci95"] is None else " (95 % {:.4f} to {:.4f})".format(*told["threshold_ci95"])
    line = (
        f"calibrate: threshold {told['threshold']:.4f}{interval} for {told['wanted']:g} false calls a scan, on "
        f"{result['scans']} scans, in {run.calibration_file}"
    )
    return console.tell(options, result, line)


def _fitted(
    options: argparse.Namespace, series: Sequence[str], scans: Sequence[str], probability: Any, label: Any
) -> dict[str, Any]:
    """The calibration and the threshold of scored candidates.

    Args:
        options: of the verb.
        series: of each candidate.
        scans: all that were scored.
        probability: (n,) raw.
        label: (n,) 0 or 1.
    """
    import numpy as np

    from luna16_monai.evaluation.calibration import Calibration, calibrate
    from luna16_monai.evaluation.false_calls import choose_threshold

    number = {uid: row for row, uid in enumerate(scans)}
    scan = np.array([number[uid] for uid in series], np.int64)
    _, fitted = calibrate(probability, label, scan, options.seed)
    if "skipped" in fitted:
        raise ValueError(f"the run cannot be calibrated ({fitted['skipped']}): give more scans with --data")
    threshold = choose_threshold(
        probability, label, scan, len(scans), options.false_positives, options.bootstrap, options.seed
    )
    line = Calibration(fitted["platt"]["slope"], fitted["platt"]["offset"])
    threshold["calibrated_threshold"] = float(line.apply(np.array([threshold["threshold"]]))[0])
    counts = {"scans": len(scans), "candidates": len(label), "positives": int(label.sum())}
    return {**counts, "calibration": fitted, "threshold": threshold}


def _of_validation(options: argparse.Namespace, run: RunFolder) -> dict[str, Any]:
    """Calibrate on the validation, as the training scored it."""
    from luna16_monai.runs.results import read_results

    if options.views is not None:
        raise ValueError("--views without --data: the validation was scored by the training; name --data")
    results = read_results(run.path)
    if results.label is None or run.read_network() == {}:
        raise ValueError(f"{run.path} is no run of a classifier, whose candidates have classes: name one")
    scored = results.series_uids
    fitted = _fitted(options, results.candidate_series, scored, results.probability, results.label)
    return {"source": "validation", "left_out": 0, "views": 1, **fitted}


def _of_data(options: argparse.Namespace, run: RunFolder, folders: DataSets) -> dict[str, Any]:
    """Score the candidates of data folders as predict does, and calibrate on them."""
    from luna16_monai.inference.classifier import Classifier, Scorer
    from luna16_monai.runs.seen import read_seen

    bundle = console.bundle(options.bundle, options.trust_bundle)
    classifier = Classifier(bundle, console.device(options.device), [run.weights], calibrated=False)
    volumes = classifier.volumes(folders.folders, options.allow_symlinks)
    scans = _unseen(read_seen(run.weights), volumes.series_uids, folders)
    table = folders.candidates()
    table = table.select(table.series_codes(scans) >= 0)
    score = Scorer([classifier], [volumes], options.views, console.shows_progress(options))
    label = table.values.astype(int)
    fitted = _fitted(options, table.row_series(), scans, score(table)[0], label)
    told = {"source": ", ".join(folders.names), "left_out": len(volumes.series_uids) - len(scans)}
    return {**told, "views": options.views or classifier.views, **fitted}


def _of_predictions(options: argparse.Namespace, run: RunFolder, folders: DataSets) -> dict[str, Any]:
    """Choose the threshold of both stages together, by what they found in data folders."""
    import numpy as np

    from luna16_monai.bundle.folders import bundle_dir
    from luna16_monai.evaluation.false_calls import choose_threshold
    from luna16_monai.evaluation.match import MarkStatus
    from luna16_monai.evaluation.submission import ReferenceStandard
    from luna16_monai.runs.seen import read_seen, seen_beside
    from luna16_monai.store.in_memory import InMemoryStore
    from luna16_monai.tables.points import has_column, read_points

    if not has_column(options.predictions, "detection_probability"):
        raise ValueError(f"{options.predictions} has no detection_probability: name a table of predict without a list")
    marks = read_points(options.predictions, "probability")
    recipe = bundle_dir() / "configs" / "prepare.yaml"
    there = InMemoryStore(folders.folders, recipe, allow_symlinks=options.allow_symlinks).series_uids
    marks.require_series(there, f"{folders}")
    seen = [seen_beside(options.predictions), read_seen(run.weights)]
    scans = _unseen(seen[1], _unseen(seen[0], there, folders), folders)
    marks = marks.select(marks.series_codes(scans) >= 0)
    match = ReferenceStandard(tuple(scans), folders.annotations(), folders.excluded()).match(marks, marks.values)
    hit = match.mark_status == MarkStatus.HIT
    counted = hit | (match.mark_status == MarkStatus.FALSE_POSITIVE)
    threshold = choose_threshold(
        match.mark_probability[counted], hit[counted].astype(int), match.mark_scan[counted], len(scans),
        options.false_positives, options.bootstrap, options.seed,
        np.bincount(match.nodule_scan[match.nodule_mark < 0], minlength=len(scans)),
    )  # fmt: skip
    counts = {"scans": len(scans), "candidates": len(marks), "positives": int(hit.sum())}
    told = {"source": str(options.predictions.name), "left_out": len(there) - len(scans), "views": None}
    return {**told, **counts, "threshold_of_both_stages": threshold}


def _unseen(seen: Seen | None, series_uids: Sequence[str], folders: DataSets) -> list[str]:
    """Those series that weights were not trained on; all where there is no record."""
    from luna16_monai.phantom.drawn import read_drawn

    known = set() if seen is None else set(seen.among(series_uids, read_drawn(folders.folders)))
    left = sorted(set(series_uids) - known)
    if not left:
        raise ValueError(
            f"the weights were trained on all {len(series_uids)} scans of {folders}: name scans that they have not "
            "seen, or leave --data out, for the validation"
        )
    return left
