"""One self-contained HTML file about a run: scores, curves, calibration, settings, and pictures of what went wrong.

The page needs no network and no framework: matplotlib's charts as SVG, slices as JPEG, both inside the file, and a few
lines of script for the gallery. Only series identifiers and the settings that the run wrote down are told.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luna16_monai import __version__
from luna16_monai.geometry.slices import SIDE_MM
from luna16_monai.machine.extras import require
from luna16_monai.machine.files import atomic_write
from luna16_monai.machine.folder_lists import Folders
from luna16_monai.report.gallery import EXAMPLES_PER_KIND, KINDS, choose_examples, pictures_of
from luna16_monai.report.methods import methods
from luna16_monai.runs.folder import Epoch, RunFolder
from luna16_monai.runs.results import Results, read_results

RULER_NAMES = {"malignancy": "network", "diameter_mm": "diameter", "diameter_and_mean_hu": "diameter and mean HU"}


def write_report(
    run_dir: Path, output: Path, store_dir: Folders | None = None, per_kind: int = EXAMPLES_PER_KIND
) -> dict[str, Any]:
    """Write the page.

    Args:
        run_dir: the output folder of a training, of ``run evaluating`` or of ``luna16 evaluate``.
        output: the HTML file.
        store_dir: the prepared volumes, for the slices, in one store or several; without any there are no pictures.
        per_kind: the most examples of each kind.

    Returns:
        ``report`` (the file), ``megabytes``, ``examples`` and ``pictures``.

    Raises:
        FileNotFoundError: the folder holds no scored run.
        ValueError: one of its files is damaged.
        ModuleNotFoundError: matplotlib or jinja2 is missing.
    """
    require("report", "the report", "jinja2", "matplotlib")
    import jinja2

    results = read_results(run_dir)
    run = RunFolder(run_dir)
    record = run.read_record()
    examples = choose_examples(results, per_kind)
    pictures = pictures_of(examples, store_dir)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("luna16_monai", "resources"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    page = environment.get_template("report.html.j2").render(
        name=run_dir.resolve().name,
        version=__version__,
        metrics=results.metrics.content,
        run=None if record is None else record.as_json(),
        charts=_charts(results, run),
        methods=methods(record, results.metrics),
        kinds={kind: (title, sum(e.kind == kind for e in examples)) for kind, title in KINDS.items()},
        cards=list(zip(examples, pictures, strict=True)),
        side_mm=SIDE_MM,
    )
    content = page.encode()
    with atomic_write(output) as stream:
        stream.write(content)
    return {
        "report": str(output),
        "megabytes": len(content) / 1e6,
        "examples": len(examples),
        "pictures": 3 * sum(picture is not None for picture in pictures),
    }


def _charts(results: Results, run: RunFolder) -> dict[str, str]:
    """Return the charts that the run has data for, by name, as SVG."""
    from luna16_monai.report import charts

    drawn: dict[str, str] = {}
    if results.match is not None:
        drawn["froc"] = charts.froc_chart(results.match)
        drawn["diameter"] = charts.diameter_chart(results.metrics["by_diameter_mm"])
    ranks = results.metrics.content.get("sensitivity_at_candidates")
    if ranks:
        drawn["ranks"] = charts.rank_chart(ranks, results.metrics.content.get("sensitivity_at_candidates_ci95"))
    label = results.label
    positives = "malignant nodules" if "malignancy" in results.metrics else "nodules"
    if label is not None and 0 < label.sum() < label.size:
        drawn["roc"] = charts.roc_chart(results.probability, label)
        drawn["precision_recall"] = charts.precision_recall_chart(results.probability, label)
        drawn["reliability"] = charts.reliability_chart(
            results.probability, results.calibrated, label, positives=positives
        )
    drawn |= _malignancy_charts(run)
    history = run.read_history()
    for name, axis, wanted in (
        ("loss", "loss", {"training": ("train", "loss"), "validation": ("validation", "loss")}),
        (
            "scores",
            "score of the validation",
            {
                "CPM": ("validation", "cpm"),
                "average precision": ("validation", "average_precision"),
                **(
                    {"AUC malignant, benign": ("validation", "roc_auc_nodules")}
                    if "malignancy" in results.metrics
                    else {"ROC AUC": ("validation", "roc_auc")}
                ),
            },
        ),
    ):
        lines = {title: _line(history, *which) for title, which in wanted.items()}
        lines = {title: line for title, line in lines.items() if line[0]}
        if lines:
            drawn[name] = charts.history_chart(lines, name, axis)
    return drawn


def _malignancy_charts(run: RunFolder) -> dict[str, str]:
    from luna16_monai.report import charts

    nodules = run.read_rated_nodules()
    if nodules is None:
        return {}
    scores = {title: nodules.columns[column] for column, title in RULER_NAMES.items()}
    return {
        "ruler": charts.ruler_chart(scores, nodules.label),
        "malignancy_reliability": charts.reliability_chart(
            nodules.malignancy, nodules.calibrated, nodules.label, 5, "malignant nodules", "malignancy_reliability"
        ),
    }


def _line(history: Sequence[Epoch], split: str, score: str) -> tuple[list[int], list[float]]:
    rows = [row for row in history if row.split == split and score in row.scores]
    return [row.epoch for row in rows], [row.scores[score] for row in rows]


def _number(value: float | None, digits: int = 3) -> str:
    """Return a number for the page; a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"
