"""``luna16 predict``: candidates of CTs scored, and written in the forms that were asked for.

All that can be refused is refused before the network runs, and nothing is written until all of it is made.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luna16_monai import __version__
from luna16_monai.ct.opening import find_series
from luna16_monai.inference.classifier import Classifier, score_in_turn, volumes_of
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


@dataclass(frozen=True)
class Wanted:
    """What else is written than the table.

    Attributes:
        dicom_sr: the file of a DICOM structured report.
        threshold: from which probability on a candidate is in it; of the calibrated one where there is one.
        explain: a folder for the explanations.
        explain_top: of how many candidates, the most probable ones.
        output_format: of the output, one of ``interchange.formats``; the points are LPS in all but our own tables.
        names: of the candidates, for formats that hold them.
        diameter_mm: (n,) of the candidates, NaN where it is not known; for the report, and for formats that hold it.
        listed: the candidates as they were listed; what is known of them stands behind our columns.
    """

    dicom_sr: Path | None = None
    threshold: float = THRESHOLD
    explain: Path | None = None
    explain_top: int = 10
    output_format: str = formats.LUNA16
    names: tuple[str, ...] = ()
    diameter_mm: NDArray[np.float64] | None = None
    listed: Points | None = None


def predict(
    classifiers: Sequence[Classifier],
    cts: Sequence[Path],
    table: PointTable,
    points: PointTable,
    output: Path,
    views: int | None = None,
    wanted: Wanted | None = None,
    progress: bool = False,
    malignancy: Classifier | None = None,
    allow_symlinks: bool = False,
) -> dict[str, Any]:
    """Score a table's candidates, and write the results.

    Args:
        classifiers: their probabilities are averaged.
        cts: CT files, folders of DICOM files, or a data folder.
        table: the candidates as they were given; the output keeps them.
        points: the same in LPS.
        output: the CSV, or a file in another format; see ``Wanted.output_format``.
        views: how many flips and turns are averaged; None takes each bundle's setting.
        wanted: what else is written.
        progress: show a bar.
        malignancy: the second bundle, whose probabilities are a column of their own.
        allow_symlinks: take CTs that are linked into place.

    Returns:
        ``output``, ``candidates``, ``series``; ``dicom_sr`` and ``reported`` (how many candidates are in it);
        ``explained`` (how many there are); ``files`` and ``left_out``, as `formats.write` gives them, if any.

    Raises:
        ValueError, FileExistsError, FileNotFoundError: as those that do it; a report of several series, or an
            explanation by several bundles.
        ModuleNotFoundError: highdicom is missing.
    """
    wanted = wanted or Wanted()
    source = _source(wanted, cts, points, allow_symlinks)
    _check_wanted(wanted, classifiers, output, points)
    both = classifiers if malignancy is None else [*classifiers, malignancy]
    volumes = volumes_of(both, cts, allow_symlinks)
    scored = score_in_turn(both, points, volumes, views)
    probability = sum(scored[1 : len(classifiers)], scored[0]) / len(classifiers)
    calibration = classifiers[0].calibration if len(classifiers) == 1 else None
    more = {} if calibration is None else {"calibrated_probability": calibration.apply(probability)}
    if malignancy is not None:
        more["malignancy"] = scored[-1]
    explanations = _explanations(wanted, classifiers[0], points, probability, volumes[0], progress)

    report = None
    if source is not None:
        told = replace(points, values=more.get("calibrated_probability", probability))
        algorithm = describe(classifiers, calibration is not None, views or classifiers[0].views, wanted.threshold)
        report, reported = make_structured_report(source, told, wanted.threshold, algorithm, wanted.diameter_mm)

    result: dict[str, Any] = {"output": str(output), "candidates": len(table), "series": len(table.series_uids)}
    result |= _write(output, table, points, {"probability": probability, **more}, wanted)
    if report is not None and wanted.dicom_sr is not None:
        with atomic_write(wanted.dicom_sr) as stream:
            stream.write(report)
        result |= {"dicom_sr": str(wanted.dicom_sr), "reported": reported}
    if explanations is not None and wanted.explain is not None:
        write_explanations(wanted.explain, explanations)
        result["explained"] = len(explanations)
    return result


def _write(
    output: Path, table: PointTable, points: PointTable, values: dict[str, NDArray[np.float64]], wanted: Wanted
) -> dict[str, Any]:
    """Write the candidates with their values in the format that is wanted; return what else is said of it."""
    uids = table.row_series()
    if wanted.output_format == formats.LUNA16:
        behind = {} if wanted.listed is None else columns_behind(wanted.listed, values)
        probability = values.pop("probability")
        write_points(output, uids, table.points_xyz, probability, "probability", **values, **behind)
        return {}
    if wanted.diameter_mm is not None:
        values = {**values, DIAMETER: wanted.diameter_mm}
    scored = Points(points.source, tuple(uids), points.points_xyz, values, wanted.names)
    files, notes = formats.write(output, scored, wanted.output_format)
    told: dict[str, Any] = {"left_out": list(notes)} if notes else {}
    return told | ({"files": [str(file) for file in files]} if files != [output] else {})


def _source(wanted: Wanted, cts: Sequence[Path], points: PointTable, allow_symlinks: bool) -> Source | None:
    """The series that the structured report is about, in the folder of --ct or below it; None where none is wanted."""
    if wanted.dicom_sr is None:
        return None
    require_threshold(wanted.threshold)
    if len(cts) != 1:
        raise ValueError(f"--dicom-sr is about one series, and --ct names {len(cts)} CTs: give one DICOM folder")
    folder = cts[0]
    if folder.is_dir():
        series = find_series(folder, allow_symlinks)
        listed = [uid for uid in points.series_uids if uid in series]
        if len(listed) > 1:
            raise ValueError(f"--dicom-sr is about one series, and {points.source} lists {len(listed)}: list one")
        folder = series[listed[0]] if listed else folder
    source = read_source(folder)
    points.require_series([source.series_uid], "the series of --dicom-sr")
    return source


def _check_wanted(wanted: Wanted, classifiers: Sequence[Classifier], output: Path, points: PointTable) -> None:
    """Refuse an output that cannot be written, and explanations that cannot be made, or be mixed with older ones."""
    formats.check_output(output, wanted.output_format, points.series_uids)
    if wanted.output_format == formats.MONAI and (wanted.diameter_mm is None or np.isnan(wanted.diameter_mm).all()):
        raise ValueError(f"{points.source} has no diameters, so there are no boxes to write: name another --format")
    if wanted.explain is None:
        return
    require_empty(wanted.explain, "name a new folder for --explain, or empty it")
    if len(classifiers) != 1 or wanted.explain_top < 1:
        raise ValueError(
            f"--explain of {wanted.explain_top} candidates by {len(classifiers)} bundles: give one bundle, and at "
            "least one candidate"
        )


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


def describe(classifiers: Sequence[Classifier], calibrated: bool, views: int, threshold: float) -> Algorithm:
    """What a report says of the algorithm: names and versions, and what the probabilities depend on.

    The weights by their checksums, which name no folder and tell two trainings apart.
    """
    names, versions, parameters = [], [], []
    for one in classifiers:
        metadata = one.bundle / "configs" / "metadata.json"
        about = json.loads(metadata.read_text(encoding="utf-8")) if metadata.is_file() else {}
        names.append(str(about.get("name", one.bundle.resolve().name)))
        versions.append(str(about.get("version", "unknown")))
        for path in one.weights:
            parameters.append(f"weights sha256 {sha256(path)}")
    parameters.append(f"certainty is the {'calibrated' if calibrated else 'raw'} probability of a nodule")
    parameters.append(f"candidates from a probability of {threshold:g} on")
    if views > 1:
        parameters.append(f"averaged over {views} flips and turns")
    parameters.append("for research, not for clinical use")
    return Algorithm(
        ", ".join(dict.fromkeys(names))[:64],
        f"luna16_monai {__version__}, bundle {', '.join(dict.fromkeys(versions))}"[:64],
        tuple(parameters),
    )
