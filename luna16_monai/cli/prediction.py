"""The verbs that run a network on CTs, or show what it gave: ``predict`` and ``review``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from luna16_monai.cli.console import DONE, _bundle, _device, _existing, shows_progress, tell

if TYPE_CHECKING:
    from luna16_monai.inference.classifier import Classifier

SECOND_BUNDLE = "malignancy_classification"


def run_predict(options: argparse.Namespace) -> int:
    """Run ``luna16 predict``; its exit code."""
    from luna16_monai.inference.classifier import Classifier
    from luna16_monai.inference.predict import Wanted, predict
    from luna16_monai.tables.points import from_ras, read_points

    bundles = [_bundle(path, options.trust_bundle) for path in options.bundle or [None]]
    table = read_points(_existing(options.candidates), None)
    device = _device(options.device)
    classifiers = [Classifier(bundle, device, options.weights or (), options.backend) for bundle in bundles]
    points = from_ras(table) if options.ras else table
    wanted = Wanted(options.dicom_sr, options.threshold, options.explain, options.explain_top)
    result = predict(
        classifiers, options.ct, table, points, options.output, options.tta, wanted, shows_progress(options),
        malignancy=_malignancy_classifier(options, device), allow_symlinks=options.allow_symlinks,
    )  # fmt: skip
    lines = [f"predict: {len(table)} probabilities in {options.output}"]
    if options.dicom_sr:
        lines.append(f"  {result['reported']} candidates from {options.threshold:g} on in {options.dicom_sr}")
    if options.explain:
        lines.append(f"  {result['explained']} explanations in {options.explain}")
    return tell(options, result, "\n".join(lines))


def run_review(options: argparse.Namespace) -> int:
    """Run ``luna16 review``; its exit code."""
    from luna16_monai.review.decisions import Decisions, login_name
    from luna16_monai.review.server import ReviewServer
    from luna16_monai.review.session import Review

    predictions = _existing(options.predictions)
    path = options.decisions or predictions.with_name(f"{predictions.stem}_decisions.csv")
    decisions = Decisions(path, options.reviewer or login_name())
    session = Review(predictions, options.ct, decisions, options.least, options.ras, options.allow_symlinks)
    server = ReviewServer(session, options.port)
    count = len(server.review.candidates)
    result = {"url": server.url, "decisions": str(path), "reviewer": decisions.reviewer, "candidates": count}
    line = f"review: {server.url}\n  {count} candidates; Ctrl-C ends it"
    server.serve_until_stopped(lambda: tell(options, result, line))
    told = f"{server.saved} decisions saved; {path} holds {server.review.decided()['decided']} of {count}"
    print("luna16: review has ended,", told, file=sys.stderr)
    return DONE


def _malignancy_classifier(options: argparse.Namespace, device: str) -> Classifier | None:
    """The second bundle, where it is asked for."""
    from luna16_monai.bundle.folders import bundle_dir
    from luna16_monai.inference.classifier import Classifier

    if options.malignancy is None:
        if options.malignancy_weights:
            raise ValueError("--malignancy-weights without --malignancy: add it, or leave the weights out")
        return None
    bundle = _bundle(
        Path(options.malignancy) if options.malignancy else bundle_dir(SECOND_BUNDLE), options.trust_bundle
    )
    weights = [options.malignancy_weights] if options.malignancy_weights else ()
    return Classifier(bundle, device, weights, options.backend)
