"""One self-contained HTML page about one CT: its candidates, each in three planes, with what is known of them.

The page needs no network. Of the CT it tells the series' identifier, how the voxels lie and the lungs' volume: no text
of a DICOM header, so no name.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from luna16_monai import __version__
from luna16_monai.ct.lungs import LungMask, lung_mask
from luna16_monai.geometry.grid import Geometry
from luna16_monai.geometry.slices import SIDE_MM, VIEWS, as_jpeg, slices_through
from luna16_monai.geometry.volume import Volume
from luna16_monai.machine.extras import require
from luna16_monai.report.places import LungPlaces, Place

MOST_SHOWN, MOST_LISTED = 100, 200
THICK_MM = 3.0
CALIBRATED = "calibrated_probability"

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Reading:
    """One candidate, as the page shows it.

    Attributes:
        rank: from 1, by falling probability.
        probability: by which it is ranked, and which the threshold is about.
        others: further values by name, for instance the malignancy; None where one is not known.
        diameter_mm: None where it is not known.
        point_xyz: world LPS mm.
        slice_number: of the slice through it, counted from 1 at the head.
        place: in the lungs; None where none were found.
        pictures: view to data address; empty where none are shown.
    """

    rank: int
    probability: float
    others: Mapping[str, float | None]
    diameter_mm: float | None
    point_xyz: tuple[float, float, float]
    slice_number: int
    place: Place | None
    pictures: Mapping[str, str]


def scan_page(
    series_uid: str,
    volume: Volume,
    points_xyz: ArrayLike,
    columns: Mapping[str, ArrayLike],
    threshold: float,
    algorithm: Mapping[str, Sequence[str]],
    notices: Sequence[str] = (),
) -> tuple[str, int]:
    """Return the page and how many candidates it shows in pictures.

    Args:
        series_uid: of the CT.
        volume: the CT, on its own grid.
        points_xyz: (n, 3) world LPS mm, inside it.
        columns: (n,) each: ``probability``, and what else is known: ``calibrated_probability`` (the threshold is then
            about it), ``detection_probability``, ``malignancy``, ``diameter_mm`` (NaN or below 0: not known).
        threshold: from which probability on a candidate is shown in pictures; the `MOST_SHOWN` most probable ones.
        algorithm: what is told of the networks: lines by name.
        notices: sentences that stand at the top.

    Raises:
        ModuleNotFoundError: jinja2 is missing.
    """
    require("report", "the report", "jinja2")
    import jinja2

    hu = np.asarray(volume.voxels[:], np.int16)
    lungs = lung_mask(hu, volume.geometry)
    places = LungPlaces(lungs) if lungs.voxels.any() else None
    rows = _readings(volume, np.asarray(points_xyz, float).reshape(-1, 3), columns, threshold, places)
    shown = [row for row in rows if row.pictures]
    reached = sum(row.probability >= threshold for row in rows)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("luna16_monai", "resources"),
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template("scan.html.j2").render(
        version=__version__,
        series_uid=series_uid,
        facts=_facts(volume.scan, places),
        notices=[*notices, *_notices(volume.scan, lungs, places)],
        threshold=f"{threshold:g}",
        calibrated=CALIBRATED in columns,
        shown=shown,
        reached=reached,
        others=rows[len(shown) : len(shown) + MOST_LISTED],
        total=len(rows),
        algorithm=algorithm,
        side_mm=SIDE_MM,
    )
    return page, len(shown)


def _readings(
    volume: Volume,
    points_xyz: FloatArray,
    columns: Mapping[str, ArrayLike],
    threshold: float,
    places: LungPlaces | None,
) -> list[Reading]:
    """The candidates by falling probability; the first ones from the threshold on have pictures."""
    known = {name: np.asarray(values, float) for name, values in columns.items()}
    ranked_by = known[CALIBRATED if CALIBRATED in known else "probability"]
    more: list[str] = [name for name in ("detection_probability", "malignancy") if name in known]
    if CALIBRATED in known:
        more.insert(0, "probability")
    order = np.argsort(-ranked_by, kind="stable").tolist()
    located = places.of(points_xyz) if places is not None else [None] * len(points_xyz)
    rows = []
    for rank, row in enumerate(order, start=1):
        x, y, z = points_xyz[row].tolist()
        pictured = ranked_by[row] >= threshold and rank <= MOST_SHOWN
        diameter = known["diameter_mm"][row] if "diameter_mm" in known else np.nan
        rows.append(
            Reading(
                rank,
                float(ranked_by[row]),
                {name: None if np.isnan(known[name][row]) else float(known[name][row]) for name in more},
                float(diameter) if diameter > 0 else None,
                (x, y, z),
                _slice_number(volume.scan, (x, y, z)),
                located[row],
                _pictures(volume, (x, y, z)) if pictured else {},
            )
        )
    return rows


def _pictures(volume: Volume, point_xyz: Sequence[float]) -> dict[str, str]:
    cut = slices_through(volume, point_xyz)
    return {view: "data:image/jpeg;base64," + base64.b64encode(as_jpeg(cut[view])).decode() for view in VIEWS}


def _slice_number(scan: Geometry, point_xyz: Sequence[float]) -> int:
    """Return the number of the slice nearest to a point, from 1 at the head."""
    axis = int(np.abs(scan.affine[2, :3] / scan.spacing_zyx).argmax())
    index = int(np.floor(scan.voxel_from_world(point_xyz)[axis] + 0.5))
    return scan.shape_zyx[axis] - index if scan.affine[2, axis] > 0 else index + 1


def _facts(scan: Geometry, places: LungPlaces | None) -> dict[str, str]:
    """What is known of the series, by name."""
    z, y, x = scan.shape_zyx
    dz, dy, dx = scan.spacing_zyx
    facts = {
        "Slices": f"{z}, {dz:.2f} mm apart",
        "Pixels of a slice": f"{x} × {y}, {dx:.3f} × {dy:.3f} mm each",
        "Size": f"{x * dx:.0f} × {y * dy:.0f} × {z * dz:.0f} mm",
    }
    if places is not None:
        facts["Lungs that were found"] = (
            f"{places.millilitres / 1000:.1f} l with vessels and a margin of 3 mm, "
            f"{places.high_z - places.low_z:.0f} mm high"
        )
    return facts


def _notices(scan: Geometry, lungs: LungMask, places: LungPlaces | None) -> list[str]:
    """What a reader should know of the CT."""
    told = []
    if max(scan.spacing_zyx) > THICK_MM:
        told.append(f"Slices {max(scan.spacing_zyx):.1f} mm apart: thick slices multiply false candidates.")
    if places is None:
        return [*told, "No lungs were found in this CT, so the side and the third are not told."]
    if lungs.voxels[0].any() or lungs.voxels[-1].any():
        told.append("The lungs reach the end of the scan: thirds are those of the part that was scanned.")
    if places.middle_x is None:
        told.append("Two lungs cannot be told apart in this CT, so the side is not told.")
    return told


def algorithm_lines(name: str, version: str, parameters: Sequence[str]) -> dict[str, Any]:
    """Return what the page tells of the networks, as `scan_page` takes it."""
    return {"Networks": [name], "Version": [version], "Settings": list(parameters)}
