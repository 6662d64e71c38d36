"""What ``luna16 demo --detection`` scores: the detector, both stages and a plain blob detector, on held-out scans."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luna16_monai.store.reading import Store
    from luna16_monai.tables.points import PointTable

LIMIT = 200
NAMES = {"blob": "blobs, no training", "detector": "detector", "both_stages": "detector and classifier"}


def held_out(data: Path, store_dir: Path, stride: int) -> dict[str, Path]:
    """Return the CTs that the demo's trainings hold out, series to file."""
    from luna16_monai.dataset.splits import Split
    from luna16_monai.store.reading import Store

    series = Split(data, Store(store_dir), validation_stride=stride).validation_series
    return {uid: next(data.glob(f"subset?/{uid}.mhd")) for uid in series}


def score(output: Path, data: Path, store_dir: Path, series_uids: Sequence[str]) -> dict[str, Any]:
    """Score the three lists of candidates, and write what a report is made of; return the content of metrics.json.

    Args:
        output: holds ``detector``, the training's folder, and ``both_stages.csv``; the results go here.
        data: the data folder.
        store_dir: its prepared volumes.
        series_uids: the held-out scans.
    """
    from luna16_monai.evaluation.submission import evaluate, validation_reference
    from luna16_monai.runs.folder import RunFolder
    from luna16_monai.runs.results import write_results
    from luna16_monai.store.reading import Store
    from luna16_monai.tables.points import read_points, write_points

    truth = validation_reference(data, series_uids)
    if truth is None:
        raise FileNotFoundError(f"no annotations.csv in {data}: draw the scans anew with luna16 phantom")
    rows, blobs = read_points(output / "both_stages.csv", "probability"), blob_candidates(Store(store_dir), series_uids)
    for path, one in ((RunFolder(output).submission_file, rows), (output / "blobs.csv", blobs)):
        write_points(path, one.row_series(), one.points_xyz, one.values, "probability")
    both = evaluate(rows, truth)
    metrics = {
        **both.scores,
        "series": len(series_uids),
        "candidates": len(rows),
        "detector": dict(RunFolder(output / "detector").read_metrics().content),
        "both_stages": both.scores,
        "blob": evaluate(blobs, truth).scores,
    }
    return dict(write_results(output, metrics, rows, rows.values, both).content)


def blob_candidates(store: Store, series_uids: Sequence[str]) -> PointTable:
    """Return the bright blobs in the lungs, strongest first; a blob's strength is not known, so its rank stands for it.

    Args:
        store: the prepared volumes.
        series_uids: whose.
    """
    import numpy as np

    from luna16_monai.ct.lungs import lung_mask
    from luna16_monai.phantom.candidates import propose_blobs
    from luna16_monai.tables.points import PointTable

    parts = []
    for number, uid in enumerate(series_uids):
        volume = store.volume(uid)
        voxels, grid = np.asarray(volume.voxels[:]), volume.geometry
        lungs = lung_mask(voxels, grid)
        places = np.stack(np.meshgrid(*map(np.arange, voxels.shape), indexing="ij"), -1).reshape(-1, 3)
        inside = lungs.contains(grid.world_from_voxel(places)).reshape(voxels.shape)
        points = propose_blobs(voxels, np.array(grid.spacing_zyx), inside, LIMIT)
        world = grid.world_from_voxel(points / grid.spacing_zyx - 0.5)
        rank = 1 / (2.0 + np.arange(len(points)))
        parts.append(np.column_stack([np.full(len(points), number), world, rank]))
    rows = np.concatenate([np.zeros((0, 5)), *parts])
    return PointTable(
        "the blobs", tuple(series_uids), rows[:, 0].astype(np.int32), rows[:, 1:4], rows[:, 4],
        np.arange(len(rows), dtype=np.int32) + 2,
    )  # fmt: skip


def table(metrics: dict[str, Any]) -> str:
    """Return what the three lists reached, in words."""
    numbers = list(metrics["both_stages"]["sensitivity_at_candidates"])
    lines = [
        f"\nOn {metrics['series']} held-out synthetic scans; sensitivity by the candidates of a scan that are looked "
        "at;\nintervals over scans\n",
        f"  {'':<24} " + "".join(f"{number:>7}" for number in numbers) + "   CPM (95 %)",
    ]
    for name, title in NAMES.items():
        one = metrics[name]
        low, high = one["cpm_ci95"]
        row = "".join(f"{one['sensitivity_at_candidates'][number]:7.3f}" for number in numbers)
        lines.append(f"  {title:<24} {row}   {one['cpm']:.3f} ({low:.3f} to {high:.3f})")
    detector = metrics["detector"]
    if (error := detector["diameter_error_mm"]) is not None:
        lines.append(f"\nDiameters are off by {error['median']:.2f} mm (median; 90 %: {error['p90']:.2f} mm)")
    lines.append(f"{detector['lost_to_lung_mask']} nodules lie outside the lungs that were found")
    lines.append("The data are synthetic: these figures say nothing about real CTs.")
    return "\n".join(lines)
