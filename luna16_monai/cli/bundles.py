"""The verbs about a bundle: ``export`` and ``bundle``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from luna16_monai.cli import console

if TYPE_CHECKING:
    from luna16_monai.cli.console import Verbs


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
