"""The verbs of the ``luna16`` command: each calls one function and tells its result."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luna16_monai.console import (
    DONE,
    FAILED,
    data_folder,
    folder,
    require_trust,
    shows_progress,
    store_folder,
    tell,
    warn,
)

if TYPE_CHECKING:
    from luna16_monai.inference import Classifier

SECOND_BUNDLE = "malignancy_classification"


def run_phantom(options: argparse.Namespace) -> int:
    """Run ``luna16 phantom``; its exit code."""
    output = options.output or folder("LUNA16_DATA", "data/phantom")
    common = {"seed": options.seed, "progress": shows_progress(options), "workers": options.workers}
    if options.scans is not None:
        common["scans"] = options.scans
    wanted = {"difficulty": options.difficulty, "negatives_per_positive": options.negatives_per_positive}
    settings = {name: value for name, value in wanted.items() if value is not None}
    if options.background is None:
        from luna16_monai.phantom import write_phantom
        from luna16_monai.placement import ScanSettings

        result = write_phantom(output, **common, settings=ScanSettings(**settings))
    else:
        if settings:
            raise ValueError(f"--background takes no {', '.join(settings)}: leave it out, or the background")
        from luna16_monai.background import write_background_phantom

        result = write_background_phantom(options.background, output, **common)
    there = "already" if result["cached"] else "written"
    return tell(options, result, f"phantom: {result['scans']} CTs in {output}, {there}")


def run_download(options: argparse.Namespace) -> int:
    """Run ``luna16 download``; its exit code."""
    from luna16_monai.download import download

    output = options.output or folder("LUNA16_DATA", "data/luna16")
    result = download(output, options.subset, options.base_url, shows_progress(options), options.keep_archives)
    return tell(options, result, f"download: {result['series']} CTs of {len(result['subsets'])} subsets in {output}")


def run_doctor(options: argparse.Namespace) -> int:
    """Run ``luna16 doctor``; its exit code."""
    from luna16_monai.doctor import examine, told

    result = examine(data_folder(options), store_folder(options), folder("LUNA16_RUNS", "runs"))
    tell(options, result, told(result))
    return DONE if result["ok"] else FAILED


def run_prepare(options: argparse.Namespace) -> int:
    """Run ``luna16 prepare``; its exit code."""
    from luna16_monai.bundle import bundle_dir
    from luna16_monai.prepare import Recipe, prepare

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
        from luna16_monai.cluster import run_tasks

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
    from luna16_monai.cutouts import verify

    store_dir = store_folder(options)
    wrong = verify(store_dir, progress=shows_progress(options))
    for line in wrong:
        print("luna16:", line, file=sys.stderr)
    tell(options, {"store": str(store_dir), "wrong": wrong}, f"verify: {len(wrong) or 'nothing'} wrong in {store_dir}")
    return FAILED if wrong else DONE


def run_evaluate(options: argparse.Namespace) -> int:
    """Run ``luna16 evaluate``; its exit code."""
    from luna16_monai.candidates import read_points
    from luna16_monai.evaluation import evaluate
    from luna16_monai.results import write_results

    truth = _truth(options)
    submission = read_points(_existing(options.submission), "probability")
    evaluation = evaluate(submission, truth, options.bootstrap, options.seed)
    if options.output is not None:
        write_results(
            options.output, evaluation.scores, submission, submission.values, evaluation, subsets=truth.subsets
        )
    warn(evaluation.scores["warnings"])
    return tell(options, evaluation.scores, _told(evaluation.scores))


def run_compare(options: argparse.Namespace) -> int:
    """Run ``luna16 compare``; its exit code."""
    from luna16_monai.candidates import read_points
    from luna16_monai.evaluation import compare, evaluate
    from luna16_monai.files import write_json

    if len(options.submission) != 2:
        raise ValueError(f"--submission is given {len(options.submission)} times: compare takes it twice")
    truth = _truth(options)
    one, other = (evaluate(read_points(_existing(path), "probability"), truth, draws=0) for path in options.submission)
    result = {
        "submissions": [path.name for path in options.submission],
        **compare(one, other, options.bootstrap, options.seed),
    }
    if options.output is not None:
        write_json(options.output / "comparison.json", result)
    warn(result["warnings"])
    low, high = result["cpm_difference_ci95"]
    return tell(
        options,
        result,
        f"compare: CPM {result['cpm'][0]:.4f} and {result['cpm'][1]:.4f} on {result['scans']} scans, "
        f"difference {result['cpm_difference']:+.4f} (95 % {low:+.4f} to {high:+.4f})",
    )


def _truth(options: argparse.Namespace) -> Any:
    from luna16_monai.evaluation import read_truth

    return read_truth(options.annotations, options.excluded, options.seriesuids, options.subsets)


def _told(scores: dict[str, Any]) -> str:
    interval = "" if scores["cpm_ci95"] is None else " (95 % {:.4f} to {:.4f})".format(*scores["cpm_ci95"])
    columns = scores["sensitivity_at"]
    return "\n".join(
        [
            f"evaluate: CPM {scores['cpm']:.4f}{interval} on {scores['scans']} scans with {scores['nodules']} nodules",
            "  false positives a scan " + "".join(f"{rate:>8}" for rate in columns),
            "  sensitivity            " + "".join(f"{value:8.4f}" for value in columns.values()),
            f"  {scores['candidate_ceiling']:.4f} of the nodules have a candidate on them",
        ]
    )


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: name a table that is there")
    return path


def run_predict(options: argparse.Namespace) -> int:
    """Run ``luna16 predict``; its exit code."""
    from luna16_monai.candidates import read_points
    from luna16_monai.inference import Classifier, from_ras
    from luna16_monai.prediction import Wanted, predict

    bundles = [_bundle(path, options.trust_bundle) for path in options.bundle or [None]]
    table = read_points(_existing(options.candidates), None)
    device = _device(options.device)
    classifiers = [Classifier(bundle, device, options.weights or (), options.backend) for bundle in bundles]
    points = from_ras(table) if options.ras else table
    wanted = Wanted(options.dicom_sr, options.threshold, options.explain, options.explain_top)
    result = predict(
        classifiers, options.ct, table, points, options.output, options.tta, wanted, shows_progress(options),
        malignancy=_malignancy_classifier(options, device),
    )  # fmt: skip
    lines = [f"predict: {len(table)} probabilities in {options.output}"]
    if options.dicom_sr:
        lines.append(f"  {result['reported']} candidates from {options.threshold:g} on in {options.dicom_sr}")
    if options.explain:
        lines.append(f"  {result['explained']} explanations in {options.explain}")
    return tell(options, result, "\n".join(lines))


def run_review(options: argparse.Namespace) -> int:
    """Run ``luna16 review``; its exit code."""
    from luna16_monai.decisions import Decisions, login_name
    from luna16_monai.review import Review, ReviewServer

    predictions = _existing(options.predictions)
    path = options.decisions or predictions.with_name(f"{predictions.stem}_decisions.csv")
    decisions = Decisions(path, options.reviewer or login_name())
    server = ReviewServer(Review(predictions, options.ct, decisions, options.least, options.ras), options.port)
    count = len(server.review.candidates)
    result = {"url": server.url, "decisions": str(path), "reviewer": decisions.reviewer, "candidates": count}
    line = f"review: {server.url}\n  {count} candidates; Ctrl-C ends it"
    server.serve_until_stopped(lambda: tell(options, result, line))
    told = f"{server.saved} decisions saved; {path} holds {server.review.decided()['decided']} of {count}"
    print("luna16: review has ended,", told, file=sys.stderr)
    return DONE


def _malignancy_classifier(options: argparse.Namespace, device: str) -> Classifier | None:
    """The second bundle, where it is asked for."""
    from luna16_monai.bundle import bundle_dir
    from luna16_monai.inference import Classifier

    if options.malignancy is None:
        if options.malignancy_weights:
            raise ValueError("--malignancy-weights without --malignancy: add it, or leave the weights out")
        return None
    bundle = _bundle(
        Path(options.malignancy) if options.malignancy else bundle_dir(SECOND_BUNDLE), options.trust_bundle
    )
    weights = [options.malignancy_weights] if options.malignancy_weights else ()
    return Classifier(bundle, device, weights, options.backend)


def _bundle(path: Path | None, trusted: bool) -> Path:
    """A bundle's folder, by default the nodule bundle; one from elsewhere only if it is trusted."""
    from luna16_monai.bundle import bundle_dir

    if path is None:
        return bundle_dir()
    from monai.bundle import ConfigParser

    files = [path / "configs" / name for name in ("inference.yaml", "prepare.yaml")]
    require_trust(path, [ConfigParser.load_config_file(str(file)) for file in files if file.is_file()], trusted)
    return path


def run_export(options: argparse.Namespace) -> int:
    """Run ``luna16 export``; its exit code."""
    from luna16_monai.export import export
    from luna16_monai.inference import Classifier

    bundle = _bundle(options.bundle, options.trust_bundle)
    classifier = Classifier(bundle, "cpu", [options.weights] if options.weights else (), "torch")
    export(classifier.networks[0], classifier.config, bundle, classifier.weights[0], options.format, options.output)
    result = {"format": options.format, "output": str(options.output), "bytes": options.output.stat().st_size}
    return tell(options, result, f"export: {options.format} in {options.output}")


def run_bundle(options: argparse.Namespace) -> int:
    """Run ``luna16 bundle``; its exit code."""
    from luna16_monai.bundle import bundle_dir, copy_bundle

    copy_bundle(bundle_dir(options.name), options.output)
    return tell(options, {"output": str(options.output)}, f"bundle: {options.name} in {options.output}")


def _device(name: str) -> str:
    if name != "auto":
        return name
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def run_report(options: argparse.Namespace) -> int:
    """Run ``luna16 report``; its exit code."""
    from luna16_monai.report import write_report

    output = options.output or options.run_dir / "report.html"
    result = write_report(options.run_dir, output, store_folder(options))
    return tell(options, result, f"report: {output} ({result['megabytes']:.1f} MB, {result['pictures']} pictures)")
