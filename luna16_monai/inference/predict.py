"""``luna16 predict``: candidates of CTs scored, and written in the forms that were asked for.

All that can be refused is refused before the network runs, and nothing is written until all of it is made.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luna16_monai import __version__
from luna16_monai.ct.opening import find_series
from luna16_monai.inference.classifier import Classifier, Scorer, volumes_of
from luna16_monai.inference.combination import combine
from luna16_monai.inference.occlusion import Explanation, explain, write_explanations
from luna16_monai.inference.structured_report import (
    THRESHOLD,
    Algorithm,
    Source,
    make_structured_report,
    read_source,
    require_threshold,
)
from luna16_monai.interchange import formats
from luna16_monai.interchange.luna16 import columns_behind
from luna16_monai.interchange.points import DIAMETER, Points
from luna16_monai.machine.claims import require_empty
from luna16_monai.machine.files import atomic_write, sha256
from luna16_monai.store.in_memory import InMemoryStore
from luna16_monai.tables.points import PointTable, write_points

CALIBRATED = "calibrated_probability"


@dataclass(frozen=True)
class Page:
    """A page about one CT that is written beside the table.

    Attributes:
        path: of the file.
        render: makes it of the points (LPS), the values of each by column, and what is told of the algorithm; gives the
            page and how many candidates it shows.
    """

    path: Path
    render: Callable[[PointTable, Mapping[str, NDArray[np.float64]], Algorithm], tuple[str, int]]


@dataclass(frozen=True)
class Wanted:
    """What else is written than the table.

    Attributes:
        dicom_sr: the file of a DICOM structured report.
        threshold: from which probability on a candidate is in it; of the calibrated one where there is one.
        explain: a folder for the explanations.
        explain_top: of how many candidates, the most probable ones.
        output_format: of the output, one of ``interchange.formats``; the points are LPS in all but our own tables.
        page: about one CT, for readers.
    """

    dicom_sr: Path | None = None
    threshold: float = THRESHOLD
    explain: Path | None = None
    explain_top: int = 10
    output_format: str = formats.LUNA16
    page: Page | None = None


@dataclass(frozen=True, eq=False)
class Listed:
    """The candidates that are classified: those of a list, or those that a detector found.

    Attributes:
        table: as they were given; so the output tells them.
        points: the same in LPS.
        names: of the candidates, for formats that hold them.
        diameter_mm: (n,) of the candidates, NaN where it is not known; for the report, and for formats that hold it.
        given: all that the list holds of them, which stands behind our columns; None for a detector's.
        detection: the bundle that found them; None for a list. The values of ``table`` are then its probabilities.
        detection_weights: the file that its weights were read from.
        classifier_weight: of the classifier's logit in the probability of both stages.
        without: series in which the detector found none.
    """

    table: PointTable
    points: PointTable
    names: tuple[str, ...] = ()
    diameter_mm: NDArray[np.float64] | None = None
    given: Points | None = None
    detection: Path | None = None
    detection_weights: Path | None = None
    classifier_weight: float = 0.5
    without: tuple[str, ...] = ()

    def select(self, rows: NDArray[np.intp]) -> Listed:
        """Return these rows of a detector's candidates alone, in this order."""
        return replace(
            self,
            table=self.table.select(rows),
            points=self.points.select(rows),
            names=tuple(self.names[row] for row in rows) if self.names else (),
            diameter_mm=None if self.diameter_mm is None else self.diameter_mm[rows],
        )


@dataclass(frozen=True, eq=False)
class Scored:
    """Probabilities of some candidates.

    Attributes:
        volumes: the CTs, as each classifier takes them.
        values: (n,) of each classifier.
    """

    volumes: Sequence[InMemoryStore]
    values: Sequence[NDArray[np.float64]]


def predict(
    classifiers: Sequence[Classifier],
    cts: Sequence[Path],
    listed: Listed,
    output: Path,
    views: int | None = None,
    wanted: Wanted | None = None,
    progress: bool = False,
    malignancy: Classifier | None = None,
    allow_symlinks: bool = False,
    scored: Scored | None = None,
) -> dict[str, Any]:
    """Score candidates, and write the results: in the order of a list, a detector's by series, most probable first.

    Args:
        classifiers: their probabilities are averaged.
        cts: CT files, folders of DICOM files, or a data folder.
        listed: the candidates; see `two_stages.detect_and_score` for a detector's.
        output: the CSV, or a file in another format; see ``Wanted.output_format``.
        views: how many flips and turns are averaged; None takes each bundle's setting.
        wanted: what else is written.
        progress: show a bar.
        malignancy: the second bundle, whose probabilities are a column of their own.
        allow_symlinks: take CTs that are linked into place.
        scored: the probabilities, where they are known: of each classifier, then of the second bundle.

    Returns:
        ``output``, ``candidates``, ``series``; of a detector's ``without``, the series that have none; ``dicom_sr`` and
        ``reported`` (how many candidates are in it); ``explained`` (how many there are); ``files`` and ``left_out``, as
        `formats.write` gives them, if any; ``report``, the page's file, and ``shown``, the candidates that it shows.

    Raises:
        ValueError, FileExistsError, FileNotFoundError: as those that do it; a report of several series, or an
            explanation by several bundles.
        ModuleNotFoundError: highdicom is missing.
    """
    wanted = wanted or Wanted()
    source = check_wanted(wanted, classifiers, cts, output, listed.points.series_uids, allow_symlinks)
    _check_boxes(wanted, listed)
    if scored is None:
        both = classifiers if malignancy is None else [*classifiers, malignancy]
        volumes = volumes_of(both, cts, allow_symlinks)
        scored = Scored(volumes, Scorer(both, volumes, views, progress)(listed.points))
    columns, calibrated = _columns(classifiers, listed, scored.values, malignancy is not None)
    if listed.detection is not None:
        order = np.lexsort((-columns["probability"], listed.table.series))
        listed, columns = listed.select(order), {name: value[order] for name, value in columns.items()}
    probability, points = columns["probability"], listed.points
    explanations = _explanations(wanted, classifiers[0], points, probability, scored.volumes[0], progress)
    algorithm = describe(classifiers, calibrated, views or classifiers[0].views, wanted.threshold, listed)
    report = _report(source, listed, columns, wanted.threshold, algorithm)
    page = _page(wanted, listed, columns, algorithm)

    counts = {"candidates": len(points), "series": len(points.series_uids)}
    result: dict[str, Any] = {"output": str(output), **counts}
    if listed.detection is not None:
        result["without"] = list(listed.without)
    result |= _write(output, listed, columns, wanted)
    result |= _write_report(wanted, report) | _write_explanations(wanted, explanations)
    return result | _write_page(wanted, page)


def _report(
    source: Source | None,
    listed: Listed,
    columns: Mapping[str, NDArray[np.float64]],
    threshold: float,
    algorithm: Algorithm,
) -> tuple[bytes, int] | None:
    """Return the structured report and how many candidates are in it; None where it is about no series."""
    if source is None:
        return None
    told = replace(listed.points, values=columns.get(CALIBRATED, columns["probability"]))
    return make_structured_report(source, told, threshold, algorithm, listed.diameter_mm)


def _page(
    wanted: Wanted, listed: Listed, columns: Mapping[str, NDArray[np.float64]], algorithm: Algorithm
) -> tuple[str, int]:
    """Render the page about the CT, and count what it shows; empty where none is wanted."""
    if wanted.page is None:
        return "", 0
    diameters = {} if listed.diameter_mm is None else {DIAMETER: listed.diameter_mm}
    return wanted.page.render(listed.points, {**columns, **diameters}, algorithm)


def _write_report(wanted: Wanted, report: tuple[bytes, int] | None) -> dict[str, Any]:
    """Write the structured report, where it is wanted; give what is known of it."""
    if report is None or wanted.dicom_sr is None:
        return {}
    with atomic_write(wanted.dicom_sr) as stream:
        stream.write(report[0])
    return {"dicom_sr": str(wanted.dicom_sr), "reported": report[1]}


def _write_explanations(wanted: Wanted, explanations: Sequence[Explanation] | None) -> dict[str, Any]:
    """Write the explanations, where they are wanted; give what is known of them."""
    if explanations is None or wanted.explain is None:
        return {}
    write_explanations(wanted.explain, explanations)
    return {"explained": len(explanations)}


def _write_page(wanted: Wanted, page: tuple[str, int]) -> dict[str, Any]:
    """Write the page, where one is wanted; give what is known of it."""
    if wanted.page is None:
        return {}
    with atomic_write(wanted.page.path) as stream:
        stream.write(page[0].encode())
    return {"report": str(wanted.page.path), "shown": page[1]}


def _columns(
    classifiers: Sequence[Classifier], listed: Listed, scored: Sequence[NDArray[np.float64]], malignancy: bool
) -> tuple[dict[str, NDArray[np.float64]], bool]:
    """Return the values of the candidates by their column, and whether they are calibrated."""
    probability = sum(scored[1 : len(classifiers)], scored[0]) / len(classifiers)
    # fitted to LUNA16's lists, in which one candidate of eleven is a nodule: of a detector's list it says nothing
    calibration = classifiers[0].calibration if len(classifiers) == 1 and listed.detection is None else None
    columns = {"probability": probability}
    if listed.detection is not None:
        columns["probability"] = combine(listed.table.values, probability, listed.classifier_weight)
        columns["detection_probability"] = listed.table.values
        if listed.diameter_mm is not None:
            columns[DIAMETER] = listed.diameter_mm
    if calibration is not None:
        columns[CALIBRATED] = calibration.apply(probability)
    if malignancy:
        columns["malignancy"] = scored[-1]
    return columns, calibration is not None


def _write(output: Path, listed: Listed, columns: dict[str, NDArray[np.float64]], wanted: Wanted) -> dict[str, Any]:
    """Write the candidates with their values in the format that is wanted; give what else is told of it."""
    uids = listed.table.row_series()
    if wanted.output_format == formats.LUNA16:
        behind = {} if listed.given is None else columns_behind(listed.given, columns)
        more = {name: value for name, value in columns.items() if name != "probability"}
        write_points(output, uids, listed.table.points_xyz, columns["probability"], "probability", **more, **behind)
        return {}
    values = columns if listed.diameter_mm is None else {**columns, DIAMETER: listed.diameter_mm}
    scored = Points(listed.points.source, tuple(uids), listed.points.points_xyz, values, listed.names)
    files, notes = formats.write(output, scored, wanted.output_format)
    told: dict[str, Any] = {"left_out": list(notes)} if notes else {}
    return told | ({"files": [str(file) for file in files]} if files != [output] else {})


def check_wanted(
    wanted: Wanted,
    classifiers: Sequence[Classifier],
    cts: Sequence[Path],
    output: Path,
    series_uids: Sequence[str],
    allow_symlinks: bool = False,
) -> Source | None:
    """Refuse an output that cannot be written, and explanations that cannot be made, or be mixed with older ones.

    Args:
        wanted: what else is written than the table.
        classifiers: that will score.
        cts: the CTs.
        output: the table.
        series_uids: of the candidates.
        allow_symlinks: take CTs that are linked into place.

    Returns:
        The series that the structured report is about; None where none is wanted.
    """
    source = _source(wanted, cts, series_uids, allow_symlinks)
    formats.check_output(output, wanted.output_format, series_uids)
    if wanted.explain is None:
        return source
    require_empty(wanted.explain, "name a new folder for --explain, or empty it")
    if len(classifiers) != 1 or wanted.explain_top < 1:
        raise ValueError(
            f"--explain of {wanted.explain_top} candidates by {len(classifiers)} bundles: give one bundle, and at "
            "least one candidate"
        )
    return source


def _source(wanted: Wanted, cts: Sequence[Path], series_uids: Sequence[str], allow_symlinks: bool) -> Source | None:
    """Return the series of the structured report, in the folder of --ct or below it; None where none is wanted."""
    if wanted.dicom_sr is None:
        return None
    require_threshold(wanted.threshold)
    if len(cts) != 1:
        raise ValueError(f"--dicom-sr is about one series, and --ct names {len(cts)} CTs: give one DICOM folder")
    folder = cts[0]
    if folder.is_dir():
        series = find_series(folder, allow_symlinks)
        listed = [uid for uid in series_uids if uid in series]
        if len(listed) > 1:
            raise ValueError(f"--dicom-sr is about one series, and there are candidates of {len(listed)}: name one")
        folder = series[listed[0]] if listed else folder
    source = read_source(folder)
    if others := sorted(set(series_uids) - {source.series_uid}):
        raise ValueError(f"series {others[0]} is not the series of --dicom-sr: does this table belong to these scans?")
    return source


def _check_boxes(wanted: Wanted, listed: Listed) -> None:
    """Refuse boxes without diameters."""
    unknown = listed.diameter_mm is None or (len(listed.diameter_mm) and np.isnan(listed.diameter_mm).all())
    if wanted.output_format == formats.MONAI and unknown:
        source = listed.points.source
        raise ValueError(f"{source} has no diameters, so there are no boxes to write: name another --format")


def _explanations(
    wanted: Wanted,
    classifier: Classifier,
    points: PointTable,
    probability: NDArray[np.float64],
    volumes: InMemoryStore,
    progress: bool,
) -> list[Explanation] | None:
    """Explain the most probable candidates, the first one first; None where that is not wanted."""
    if wanted.explain is None:
        return None
    top = np.argsort(-probability, kind="stable")[: wanted.explain_top]
    by_series = top[np.argsort(points.series[top], kind="stable")]
    made = dict(zip(by_series, explain(classifier, points.select(by_series), volumes, progress), strict=True))
    return [made[row] for row in top]


def describe(
    classifiers: Sequence[Classifier], calibrated: bool, views: int, threshold: float, listed: Listed | None = None
) -> Algorithm:
    """What a report says of the algorithm: names and versions, and what the probabilities depend on.

    The weights by their checksums, which name no folder and tell two trainings apart.
    """
    bundles: list[tuple[Path, Sequence[Path]]] = [(one.bundle, one.weights) for one in classifiers]
    if listed is not None and listed.detection is not None:
        bundles.append((listed.detection, [listed.detection_weights] if listed.detection_weights else []))
    names, versions, parameters = [], [], []
    for bundle, weights in bundles:
        metadata = bundle / "configs" / "metadata.json"
        about = json.loads(metadata.read_text(encoding="utf-8")) if metadata.is_file() else {}
        names.append(str(about.get("name", bundle.resolve().name)))
        versions.append(str(about.get("version", "unknown")))
        for path in weights:
            parameters.append(f"weights sha256 {sha256(path)}")
    parameters.append(f"certainty is the {'calibrated' if calibrated else 'raw'} probability of a nodule")
    if listed is not None and listed.detection is not None:
        share = f"{listed.classifier_weight:g} of its logit"
        parameters.append(f"by detection and classification, the latter with {share}")
    parameters.append(f"candidates from a probability of {threshold:g} on")
    if views > 1:
        parameters.append(f"averaged over {views} flips and turns")
    parameters.append("for research, not for clinical use")
    return Algorithm(
        ", ".join(dict.fromkeys(names))[:64],
        f"luna16_monai {__version__}, bundle {', '.join(dict.fromkeys(versions))}"[:64],
        tuple(parameters),
    )
