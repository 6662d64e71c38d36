"""The report's charts, as SVG inside the page: they take its font, and its colours in light and in dark.

Matplotlib draws them in placeholder colours, which are then exchanged for CSS variables. So one picture serves both
themes, and text stays text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray

from luna16_monai.evaluation.calibration import counts_at_thresholds, reliability_curve
from luna16_monai.evaluation.froc import RATES, froc_band, froc_curve, sensitivity_at
from luna16_monai.evaluation.match import Match

FloatArray = NDArray[np.float64]

IntArray = NDArray[np.integer[Any]]

INK, MUTED, LINE, ONE, TWO, THREE = "#010203", "#010204", "#010205", "#010206", "#010207", "#010208"
CSS = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    ONE: "var(--one)",
    TWO: "var(--two)",
    THREE: "var(--three)",
}
# what the variables are in the report's light theme
LIGHT = {
    "ink": "#1c2026",
    "muted": "#626872",
    "line": "#e2e3df",
    "one": "#2b5fc0",
    "two": "#c2591f",
    "three": "#2c7a5a",
}
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "luna16_monai",  # the same ids, so the same file, every time
    "font.family": "sans-serif",
    "font.size": 12,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.minor.visible": False,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}
SIZE_INCHES = (5.4, 3.9)
MOST_POINTS = 600


def froc_chart(match: Match, draws: int = 1000, seed: int = 0) -> str:
    """Return the FROC curve with its 95 % band and the seven points of the CPM."""
    curve = froc_curve(match)
    rates = np.geomspace(RATES[0] * 0.8, RATES[-1] * 1.25, 60)
    with _chart() as (figure, axes):
        low, high = froc_band(match, rates.tolist(), draws, seed).T
        axes.fill_between(rates, low, high, color=ONE, alpha=0.16, linewidth=0)
        axes.plot(rates, np.interp(rates, curve.false_positives_per_scan, curve.sensitivity), color=ONE)
        axes.plot(RATES, sensitivity_at(match), "o", color=ONE, markersize=6.5, clip_on=False)
        axes.set_xscale("log", base=2)
        axes.set_xticks(RATES, ["1/8", "1/4", "1/2", "1", "2", "4", "8"])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(rates[0], rates[-1])
        _share_axis(axes, "y")
        axes.set_xlabel("false positives per scan")
        axes.set_ylabel("sensitivity")
        return _svg(figure, "froc")


def rank_chart(at: Mapping[str, float], ci95: Mapping[str, Sequence[float]] | None) -> str:
    """Sensitivity by the number of candidates of a scan that are looked at, with its 95 % intervals."""
    places = range(len(at))
    with _chart() as (figure, axes):
        if ci95:
            for place, number in enumerate(at):
                axes.plot([place, place], ci95[number], color=ONE, alpha=0.35, linewidth=6)
        axes.plot(places, list(at.values()), "o-", color=ONE, markersize=7, linewidth=1.6, clip_on=False)
        axes.set_xticks(places, list(at))
        axes.set_xlim(-0.4, len(at) - 0.6)
        axes.grid(visible=False, axis="x")
        _share_axis(axes, "y")
        axes.set_xlabel("candidates of a scan, the most probable ones")
        axes.set_ylabel("sensitivity")
        return _svg(figure, "ranks")


def diameter_chart(by_diameter: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the sensitivity by diameter: a dot at one false positive a scan, a line from 1/8 to 8."""
    bins = {name: entry for name, entry in by_diameter.items() if entry["nodules"]}
    with _chart() as (figure, axes):
        for place, entry in enumerate(bins.values()):
            ends = [entry["sensitivity_at"][rate] for rate in ("0.125", "8")]
            axes.plot([place, place], ends, color=ONE, alpha=0.35, linewidth=6)
            axes.plot(place, entry["sensitivity_at"]["1"], "o", color=ONE, markersize=8, clip_on=False)
        axes.set_xticks(
            range(len(bins)), [f"{name.replace('>=', '≥')}\n{entry['nodules']}" for name, entry in bins.items()]
        )
        axes.set_xlim(-0.6, len(bins) - 0.4)
        axes.grid(visible=False, axis="x")
        _share_axis(axes, "y")
        axes.set_xlabel("diameter in mm, and number of nodules")
        axes.set_ylabel("sensitivity")
        return _svg(figure, "diameter")


def roc_chart(probability: FloatArray, label: IntArray) -> str:
    """Return the ROC curve of the candidates."""
    true_positives, false_positives = _counts(probability, label)
    with _chart() as (figure, axes):
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 4)))
        axes.plot(
            *_thinned(false_positives / false_positives[-1], true_positives / true_positives[-1]),
            color=ONE,
            clip_on=False,
        )
        _share_axis(axes, "x")
        _share_axis(axes, "y")
        axes.set_xlabel("false positive rate")
        axes.set_ylabel("true positive rate")
        return _svg(figure, "roc")


def precision_recall_chart(probability: FloatArray, label: IntArray) -> str:
    """Return precision against recall of the candidates; a line marks the share of nodules among them."""
    true_positives, false_positives = (counts[1:] for counts in _counts(probability, label))
    recall, precision = true_positives / true_positives[-1], true_positives / (true_positives + false_positives)
    with _chart() as (figure, axes):
        axes.axhline(float(np.mean(label)), color=MUTED, linewidth=1, linestyle=(0, (4, 4)))
        axes.plot(*_thinned(recall, precision), color=ONE)
        _share_axis(axes, "x")
        _share_axis(axes, "y")
        axes.set_xlabel("recall")
        axes.set_ylabel("precision")
        return _svg(figure, "precision_recall")


def ruler_chart(scores: Mapping[str, FloatArray], label: IntArray) -> str:
    """Return ROC curves of up to three ways to tell malignant nodules from benign ones."""
    with _chart() as (figure, axes):
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 4)))
        for (name, values), colour in zip(scores.items(), (ONE, TWO, THREE), strict=False):
            malignant, benign = _counts(values, label)
            axes.plot(benign / benign[-1], malignant / malignant[-1], color=colour, label=name, clip_on=False)
        _share_axis(axes, "x")
        _share_axis(axes, "y")
        axes.set_xlabel("benign nodules called malignant")
        axes.set_ylabel("malignant nodules called so")
        axes.legend(loc="lower right")
        return _svg(figure, "ruler")


def reliability_chart(
    probability: FloatArray,
    calibrated: FloatArray | None,
    label: IntArray,
    bins: int = 10,
    positives: str = "nodules",
    name: str = "reliability",
) -> str:
    """Return the share of nodules against the probability, before and after calibration; a dot grows with its rows.

    Args:
        probability: (n,) raw.
        calibrated: (n,), where known.
        label: (n,) 0 or 1.
        bins: of equal width.
        positives: what those of label 1 are called.
        name: of the chart, for its ids.
    """
    curves = {"raw": (probability, TWO)} | ({} if calibrated is None else {"calibrated": (calibrated, ONE)})
    with _chart() as (figure, axes):
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 4)))
        for title, (values, colour) in curves.items():
            curve = reliability_curve(values, label, bins)
            axes.plot(curve.mean_probability, curve.nodule_share, color=colour, linewidth=1.6, label=title)
            area = 12 + 140 * np.sqrt(curve.candidates / label.size)
            axes.scatter(curve.mean_probability, curve.nodule_share, s=area, color=colour, linewidths=0, clip_on=False)
        _share_axis(axes, "x")
        _share_axis(axes, "y")
        axes.set_xlabel("probability")
        axes.set_ylabel(f"share of {positives}")
        axes.legend(loc="upper left")
        return _svg(figure, name)


def history_chart(lines: Mapping[str, tuple[Sequence[int], Sequence[float]]], name: str, label: str) -> str:
    """Return scores by epoch.

    Args:
        lines: up to three, each with its epochs and values.
        name: of the chart, for its ids.
        label: of the vertical axis.
    """
    with _chart() as (figure, axes):
        for (title, (epochs, values)), colour in zip(lines.items(), (ONE, TWO, THREE), strict=False):
            axes.plot(epochs, values, "o-", color=colour, markersize=4, label=title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.legend()
        return _svg(figure, name)


def trials_chart(
    drawn: Mapping[str, Sequence[Any]], scores: Sequence[float], label: str, axes_of: Mapping[str, Any]
) -> str:
    """Return the score of each trial of a search against each thing that was tried; the best trial is marked.

    Args:
        drawn: by name, what each trial had: numbers, or texts for a choice.
        scores: of each trial, in the same order.
        label: of the score.
        axes_of: by name of what is a number: its scale ("linear" or "log") and the two ends of its axis.
    """
    columns = min(3, len(drawn))
    rows = -(-len(drawn) // columns)
    best = int(np.argmax(scores))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * columns, 2.9 * rows))
        panels = np.atleast_1d(figure.subplots(rows, columns, sharey=True)).ravel()
        for axes, (name, values) in zip(panels, drawn.items(), strict=False):
            axes.tick_params(length=0)
            if name in axes_of:
                scale, low, high = axes_of[name]
                places = [float(value) for value in values]
                axes.set_xscale(scale)
                axes.set_xlim(low, high)
                axes.xaxis.set_minor_locator(NullLocator())
            else:
                names = sorted(set(map(str, values)))
                places = [float(names.index(str(value))) for value in values]
                axes.set_xticks(range(len(names)), names, rotation=15, ha="right", fontsize=8)
                axes.set_xlim(-0.6, len(names) - 0.4)
            axes.plot(places, scores, "o", color=ONE, alpha=0.6, markersize=5, clip_on=False)
            axes.plot(places[best], scores[best], "o", color=TWO, markersize=8, clip_on=False)
            axes.set_xlabel(name.split("#")[-1].replace("_", " "))
        for axes in panels[len(drawn) :]:
            axes.set_visible(False)
        for axes in panels[::columns]:
            axes.set_ylabel(label.replace("_", " "))
        return _svg(figure, "trials")


def standalone(svg: str) -> str:
    """Return a chart as a picture of its own, in the report's light colours on white, for a notebook or a paper."""
    for name, colour in LIGHT.items():
        svg = svg.replace(f"var(--{name})", colour)
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    width, height = SIZE_INCHES if box is None else (float(points) / 72 for points in box.groups())
    head = f'<svg width="{width:g}in" height="{height:g}in" style="background:#fff;font-family:sans-serif"'
    return svg.replace("<svg", head, 1)


@contextmanager
def _chart() -> Iterator[tuple[Figure, Axes]]:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZE_INCHES)
        axes = figure.subplots()
        axes.tick_params(length=0)
        yield figure, axes


def _share_axis(axes: Axes, which: str) -> None:
    getattr(axes, f"set_{which}lim")(0, 1.015)
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(MaxNLocator(5))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _counts(probability: FloatArray, label: IntArray) -> tuple[IntArray, IntArray]:
    """Return the nodules and others at or above each distinct probability, falling, after (0, 0)."""
    _, nodules, others = counts_at_thresholds(probability, label)
    return np.append(0, nodules), np.append(0, others)


def _thinned(x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return no more points than the eye can tell apart, evenly along the curve."""
    length = np.append(0.0, np.cumsum(np.hypot(np.diff(x), np.diff(y))))
    rows = np.unique(np.searchsorted(length, np.linspace(0, length[-1], MOST_POINTS)).clip(max=x.size - 1))
    return x[rows], y[rows]


def _svg(figure: Figure, name: str) -> str:
    """Return the figure as an element of the page, its ids made unique by the name."""
    content = io.StringIO()
    figure.savefig(content, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = content.getvalue()
    svg = svg[svg.index("<svg") :]
    # the page has the sizes, the fonts and the rules; an id stays only where the chart itself refers to it
    for pattern in (
        r"<metadata>.*?</metadata>",
        r"<style.*?</style>",
        r' (width|height)="[^"]*pt"',
        r"font-family: [^;]*; ",
    ):
        svg = re.sub(pattern, "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for placeholder, variable in CSS.items():
        svg = svg.replace(placeholder, variable)
    return svg
