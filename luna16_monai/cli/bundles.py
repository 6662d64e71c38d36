"""The verbs about a bundle: ``export`` and ``bundle``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from luna16_monai.cli.console import _bundle, tell

if TYPE_CHECKING:
    pass


def run_export(options: argparse.Namespace) -> int:
    """Run ``luna16 export``; its exit code."""
    from luna16_monai.inference.classifier import Classifier
    from luna16_monai.networks.export import export

    bundle = _bundle(options.bundle, options.trust_bundle)
    classifier = Classifier(bundle, "cpu", [options.weights] if options.weights else (), "torch")
    export(classifier.networks[0], classifier.config, bundle, classifier.weights[0], options.format, options.output)
    result = {"format": options.format, "output": str(options.output), "bytes": options.output.stat().st_size}
    return tell(options, result, f"export: {options.format} in {options.output}")


def run_bundle(options: argparse.Namespace) -> int:
    """Run ``luna16 bundle``; its exit code."""
    from luna16_monai.bundle.folders import bundle_dir, copy_bundle

    copy_bundle(bundle_dir(options.name), options.output)
    return tell(options, {"output": str(options.output)}, f"bundle: {options.name} in {options.output}")
