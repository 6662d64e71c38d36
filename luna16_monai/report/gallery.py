"""Choose the examples that a report shows, and cut their pictures."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from luna16_monai.evaluation.calibration import OPERATING_RATE
from luna16_monai.evaluation.froc import froc_curve
from luna16_monai.evaluation.match import MarkStatus, Match
from luna16_monai.geometry.slices import as_jpeg, slices_through
from luna16_monai.geometry.volume import Volume
from luna16_monai.machine.folder_lists import Folders, folder_list
from luna16_monai.runs.results import Results
from luna16_monai.store.reading import Store

KINDS = {"false": "false positive", "missed": "missed nodule", "hit": "hit"}
EXAMPLES_PER_KIND = 30


@dataclass(frozen=True)
class Example:
    """A point to look at.

    Attributes:
        kind: one of `KINDS`.
        series_uid: its scan.
        point_xyz: world LPS mm.
        probability: the raw one; None for a nodule without a candidate.
        calibrated: the calibrated one, where known.
        diameter_mm: of the nodule, where there is one.
    """

    kind: str
    series_uid: str
    point_xyz: tuple[float, float, float]
    probability: float | None
    calibrated: float | None
    diameter_mm: float | None


def choose_examples(results: Results, per_kind: int = EXAMPLES_PER_KIND) -> list[Example]:
    """Return what the gallery shows: the most probable false positives, the missed nodules, a sample of the hits.

    A nodule is missed without a candidate on it, or below the threshold that brings one false positive a scan; those
    without come first, the largest before the others, then the least probable. Hits are spread evenly over their
    probabilities.
    """
    match = results.match
    if match is None:
        return []
    false = np.flatnonzero(match.mark_status == MarkStatus.FALSE_POSITIVE)
    false = false[np.argsort(-match.mark_probability[false], kind="stable")][:per_kind]

    found = match.nodule_mark >= 0
    best = np.where(found, match.mark_probability[match.nodule_mark], -1.0)
    curve = froc_curve(match)
    threshold = curve.threshold[curve.false_positives_per_scan <= OPERATING_RATE][-1]
    missed = np.flatnonzero(best < threshold)
    missed = missed[np.lexsort((-match.nodule_diameter_mm[missed], best[missed]))][:per_kind]
    hits = np.flatnonzero(best >= threshold)
    hits = hits[np.argsort(-best[hits], kind="stable")]
    hits = hits[np.unique(np.linspace(0, hits.size - 1, min(per_kind, hits.size)).round().astype(int))]
    return [
        *(_candidate("false", row, results, None) for row in false.tolist()),
        *(_nodule(row, results, match) for row in missed.tolist()),
        *(
            _candidate("hit", int(match.nodule_mark[row]), results, float(match.nodule_diameter_mm[row]))
            for row in hits
        ),
    ]


def _candidate(kind: str, row: int, results: Results, diameter_mm: float | None) -> Example:
    x, y, z = results.candidate_points_xyz[row].tolist()
    return Example(
        kind,
        results.candidate_series[row],
        (x, y, z),
        float(results.probability[row]),
        None if results.calibrated is None else float(results.calibrated[row]),
        diameter_mm,
    )


def _nodule(row: int, results: Results, match: Match) -> Example:
    mark = int(match.nodule_mark[row])
    x, y, z = results.nodule_points_xyz[row].tolist()
    return Example(
        "missed",
        results.series_uids[match.nodule_scan[row]],
        (x, y, z),
        None if mark < 0 else float(results.probability[mark]),
        None if mark < 0 or results.calibrated is None else float(results.calibrated[mark]),
        float(match.nodule_diameter_mm[row]),
    )


def pictures_of(examples: Sequence[Example], store_dir: Folders | None) -> list[dict[str, str] | None]:
    """Return the slices of each example as data addresses; None where the store lacks that place."""
    folders = [] if store_dir is None else [one for one in folder_list(store_dir) if (one / "store.json").is_file()]
    if not folders:
        return [None] * len(examples)
    store = Store(folders)
    there = set(store.series_uids)
    return [_slices(store.volume(one.series_uid), one) if one.series_uid in there else None for one in examples]


def _slices(volume: Volume, example: Example) -> dict[str, str] | None:
    if not volume.scan.contains(example.point_xyz):
        return None
    pictures = slices_through(volume, example.point_xyz)
    return {
        view: "data:image/jpeg;base64," + base64.b64encode(as_jpeg(picture)).decode()
        for view, picture in pictures.items()
    }
