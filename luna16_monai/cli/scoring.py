"""The verbs about scores: ``evaluate``, ``compare`` and ``report``."""

from __future__ import annotations

import argparse
from typing import Any

from luna16_monai.cli.console import _existing, store_folder, tell, warn


def run_evaluate(options: argparse.Namespace) -> int:
    """Run ``luna16 evaluate``; its exit code."""
    from luna16_monai.evaluation.submission import evaluate
    from luna16_monai.runs.results import write_results
    from luna16_monai.tables.points import read_points

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
    from luna16_monai.evaluation.submission import compare, evaluate
    from luna16_monai.machine.files import write_json
    from luna16_monai.tables.points import read_points

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
    from luna16_monai.evaluation.submission import read_truth

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


def run_report(options: argparse.Namespace) -> int:
    """Run ``luna16 report``; its exit code."""
    from luna16_monai.report.page import write_report

    output = options.output or options.run_dir / "report.html"
    result = write_report(options.run_dir, output, store_folder(options))
    return tell(options, result, f"report: {output} ({result['megabytes']:.1f} MB, {result['pictures']} pictures)")
