"""``luna16 detect``: nodule candidates of bare CTs.

The same code as in validation: the same volume, the box of the same lungs, the same tiles and the same decoding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from luna16_monai.bundle.config import without_steps
from luna16_monai.ct.lungs import LungMask, lung_mask, read_lung_mask, whole_scan
from luna16_monai.detection.crops import lung_box
from luna16_monai.detection.peaks import Found, candidates_of
from luna16_monai.detection.tiles import TiledInferer
from luna16_monai.geometry.grid import Geometry
from luna16_monai.geometry.volume import Volume
from luna16_monai.inference.views import check_views, mean_of_maps
from luna16_monai.machine import memory
from luna16_monai.networks.nodule_detector import NoduleDetector
from luna16_monai.networks.weights import load_state, read_state
from luna16_monai.store.in_memory import InMemoryStore
from luna16_monai.tables.points import PointTable, write_points

LIMIT = 50
THICK_MM = 3.0
SPACING_MM = (0.1, 10.0)
VOXEL_BYTES = 2
SOURCE = "the detector's candidates"
NO_LUNGS = "give a chest CT in HU, its lungs by --lung-mask, or --no-lung-mask"

Lungs = Callable[[str, Volume], LungMask]
"""Gives the lungs of a series from its volume."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """Candidates of CTs, by series, the most probable first.

    Attributes:
        table: values are the probabilities.
        diameter_mm: (n,) of each.
        empty: the series without any.
        warnings: sentences about the CTs.
        weights: the file that the network's weights were read from; None where it is not known.
    """

    table: PointTable
    diameter_mm: NDArray[np.floating]
    empty: tuple[str, ...]
    warnings: tuple[str, ...]
    weights: Path | None = None

    @classmethod
    def of(cls, uid: str, found: Found, warnings: Sequence[str] = (), weights: Path | None = None) -> Candidates:
        """Return the candidates of one CT."""
        n = len(found)
        points, probability = (np.asarray(one, np.float64) for one in (found.points_xyz, found.probability))
        table = PointTable(SOURCE, (uid,), np.zeros(n, np.int32), points, probability, np.arange(n, dtype=np.int32) + 2)
        return cls(table, found.diameter_mm, () if n else (uid,), tuple(warnings), weights)

    @classmethod
    def joined(cls, parts: Sequence[Candidates], series_uids: Sequence[str], weights: Path | None = None) -> Candidates:
        """Return the candidates of several CTs together.

        Args:
            parts: of each CT, in any order.
            series_uids: of all CTs, sorted.
            weights: that found them.
        """
        parts = sorted(parts, key=lambda part: part.table.series_uids)
        codes = [part.table.series_codes(series_uids) for part in parts]
        count = sum(map(len, codes))
        table = PointTable(
            source=SOURCE,
            series_uids=tuple(series_uids),
            series=np.concatenate([np.zeros(0, np.int32), *codes]).astype(np.int32),
            points_xyz=np.concatenate([np.zeros((0, 3)), *(part.table.points_xyz for part in parts)]),
            values=np.concatenate([np.zeros(0), *(part.table.values for part in parts)]),
            lines=np.arange(count, dtype=np.int32) + 2,
        )
        diameter = np.concatenate([np.zeros(0), *(part.diameter_mm for part in parts)])
        empty = tuple(uid for part in parts for uid in part.empty)
        return cls(table, diameter, empty, tuple(line for part in parts for line in part.warnings), weights)

    def write(self, output: Path | str) -> None:
        """Write the table of ``luna16 detect``; the file is whole or absent."""
        table, uids = self.table, self.table.row_series()
        write_points(
            Path(output), uids, table.points_xyz, table.values, "probability", diameter_mm=self.diameter_mm
        )  # fmt: skip


class Detector:
    """A network that finds candidates in volumes.

    Args:
        network: with its weights, see ``NoduleDetector``.
        stride_zyx: voxels of a cell of its output.
        multiple_zyx: what the sides of its input are multiples of.
        inferer: applies it to a whole box.
        device: where it runs.
        weights: the file that its weights were read from, for the record.
        classifier_weight: of the classifier's logit where both stages are combined.
        views: how many flips and turns of a CT its output is averaged over, see `views.views_of`.

    Attributes:
        bundle: the folder that it was read from; empty where it was built otherwise.
    """

    def __init__(
        self,
        network: nn.Module,
        stride_zyx: Sequence[int],
        multiple_zyx: Sequence[int],
        inferer: TiledInferer,
        device: torch.device | str = "cpu",
        weights: Path | str | None = None,
        classifier_weight: float = 0.5,
        views: int = 1,
    ) -> None:
        self.views = check_views(views)
        self.weights = None if weights is None else Path(weights)
        self.bundle, self.classifier_weight = Path(), classifier_weight
        self.network, self.inferer, self.device = network.eval(), inferer, device
        self.stride, self.multiple = tuple(stride_zyx), tuple(multiple_zyx)

    @torch.inference_mode()
    def find(self, volume: Volume, lungs: LungMask, limit: int) -> Found:
        """Return the candidates of a volume, the most probable first, at most so many."""
        image, start = lung_box(volume, lungs, self.multiple)
        # int16: each tile alone becomes float32
        box = torch.from_numpy(image)[None, None].to(self.device)
        output = mean_of_maps(box, self.views, lambda view: self.inferer(view, self.network))
        maps = output[0].float().cpu().numpy()
        return candidates_of(maps, start.tolist(), self.stride, volume.geometry, volume.scan, lungs, limit)

    def candidates(
        self,
        volumes: InMemoryStore,
        limit: int = LIMIT,
        threshold: float = 0.0,
        lungs: Lungs | None = None,
        progress: bool = False,
    ) -> Candidates:
        """Return the candidates of CTs; arguments and errors as `each`."""
        parts = list(self.each(volumes, limit, threshold, lungs, progress))
        return Candidates.joined(parts, volumes.series_uids, self.weights)

    def each(
        self,
        volumes: InMemoryStore,
        limit: int = LIMIT,
        threshold: float = 0.0,
        lungs: Lungs | None = None,
        progress: bool = False,
    ) -> Iterator[Candidates]:
        """Yield the candidates of each CT, by series; the CT's volume is still in memory then.

        Args:
            volumes: the CTs.
            limit: the most candidates of a CT.
            threshold: the least probability of a candidate.
            lungs: of each CT; None finds them.
            progress: show a bar.

        Raises:
            ValueError: a CT can't be read, no lungs are found in one, a limit below 1, a threshold outside 0 to 1.
        """
        check_limits(limit, threshold)
        for error in volumes.wrong.values():
            raise error
        for uid in tqdm(volumes.series_uids, desc="detect", unit="CT", disable=not progress):
            warnings = []
            require_spacing(uid, volumes.cts[uid].geometry)
            if (thickest := max(volumes.cts[uid].geometry.spacing_zyx)) > THICK_MM:
                thick = f"series {uid} has slices {thickest:.1f} mm apart"
                warnings.append(f"{thick}: thick slices multiply false candidates")
            if (short := volumes.shorter_than(uid)) is not None:
                warnings.append(short)
            require_memory(uid, volumes.cts[uid].geometry, VOXEL_BYTES)
            volume = volumes.volume(uid)
            require_memory(uid, volume.geometry, VOXEL_BYTES)
            # voxels that are resampled on demand would be resampled anew for each box
            volume = volume.in_memory()
            found = self.find(volume, (lungs or found_lungs)(uid, volume), limit)
            yield Candidates.of(uid, found.select(found.probability >= threshold), warnings, self.weights)

    def write(self, volumes: InMemoryStore, output: Path | str, limit: int = LIMIT, threshold: float = 0.0) -> None:
        """Write the table of candidates; arguments and errors as `candidates`."""
        self.candidates(volumes, limit, threshold).write(output)


def check_limits(limit: int, threshold: float) -> None:
    """Refuse a limit below 1, and a threshold that is no probability."""
    if limit < 1 or not 0 <= threshold <= 1:
        raise ValueError(f"max {limit}, threshold {threshold:g}: give 1 or more, and a probability from 0 to 1")


def require_spacing(uid: str, geometry: Geometry) -> None:
    """Refuse a CT whose voxels are so small or large that no nodule of it can be recognised.

    Raises:
        ValueError: a side outside `SPACING_MM`.
    """
    low, high = SPACING_MM
    sides = geometry.spacing_zyx
    if not all(low <= side <= high for side in sides):
        told = " x ".join(f"{side:g}" for side in sides)
        raise ValueError(
            f"series {uid} has voxels of {told} mm: the detector takes {low:g} to {high:g} mm; mend the "
            "header, or give another reconstruction"
        )


def require_memory(uid: str, geometry: Geometry, voxel_bytes: int) -> None:
    """Refuse a volume that does not fit into the memory that is left; where that is not known, nothing is.

    Raises:
        ValueError: it needs more.
    """
    try:
        available, *_ = memory.left()
    except FileNotFoundError:  # no Linux
        return
    if (needed := math.prod(geometry.shape_zyx) * voxel_bytes) > available:
        shape, spacing = " x ".join(map(str, geometry.shape_zyx)), " x ".join(f"{mm:g}" for mm in geometry.spacing_zyx)
        raise ValueError(
            f"series {uid} has {shape} voxels of {spacing} mm, which take {needed / 1e9:.1f} GB, and "
            f"{available / 1e9:.1f} GB of memory are left: mend the header's spacing if that is wrong, or give the "
            "process more memory"
        )


def found_lungs(uid: str, volume: Volume, cure: str = NO_LUNGS) -> LungMask:
    """Return the lungs that are found in a volume.

    Args:
        uid: the volume's series.
        volume: its voxels are in memory.
        cure: what the error offers where there are none.

    Raises:
        ValueError: there are none.
    """
    lungs = lung_mask(np.asarray(volume.voxels), volume.geometry)
    if not lungs.voxels.any():
        raise ValueError(f"no lungs are found in series {uid}: {cure}")
    return lungs


def lungs_from(mask: Path | None, whole: bool = False) -> Lungs:
    """Return what gives the lungs: a mask's file or folder, the whole scan, or what is found."""
    if whole:
        return lambda uid, volume: whole_scan(volume.geometry)
    if mask is None:
        return found_lungs
    return lambda uid, volume: read_lung_mask(mask, volume.geometry, uid)


def detects(bundle: Path) -> bool:
    """Return whether a bundle is one that detects."""
    file = bundle / "configs" / "inference.yaml"
    return file.is_file() and "detector" in ConfigParser.load_config_file(str(file))


def read_network(bundle: Path, weights: Path | None = None) -> tuple[NoduleDetector, dict[str, Any], Path]:
    """Return a bundle's network as it was trained, for other programs; its inference.yaml, and the file of its weights.

    Args:
        bundle: that detects.
        weights: a model.pt; None takes the bundle's own.

    Raises:
        FileNotFoundError, ValueError: as `read_detector`.
    """
    config = _config(bundle)
    config.update(bundle_root=bundle, **({} if weights is None else {"weights": weights}))
    parser = ConfigParser(config)
    network: NoduleDetector = parser.get_parsed_content("network_def")
    path = Path(parser.get_parsed_content("weights"))
    load_state(network, read_state(path), f"the weights {path}")
    return network.eval(), config, path


def read_detector(
    bundle: Path,
    device: torch.device | str = "cpu",
    weights: Path | None = None,
    backend: str = "auto",
    views: int | None = None,
) -> tuple[Detector, Callable[[Sequence[Path], bool], InMemoryStore]]:
    """Return a bundle's detector, and what prepares CTs for it (paths, whether links may leave their folder).

    Args:
        bundle: its folder.
        device: where the network runs.
        weights: a model.pt; None takes the bundle's own.
        backend: ``torch``, ``openvino`` on a CPU, or ``auto``, which takes OpenVINO where it is installed.
        views: how many flips and turns are averaged; None takes the bundle's setting.

    Raises:
        FileNotFoundError: the bundle has no inference.yaml, or there are no weights.
        ValueError: it is the bundle of no detector, or the weights belong to another network.
    """
    config = _config(bundle)
    # paths, not texts, in which MONAI would read # as ::
    given = {"weights": weights, "views": views}
    config.update(bundle_root=bundle, device=str(device), backend=backend)
    config.update({name: value for name, value in given.items() if value is not None})
    parser = ConfigParser(config)
    detector: Detector = parser.get_parsed_content("detector")
    detector.bundle = bundle
    recipe, spacing = Path(parser.get_parsed_content("recipe")), config["spacing_zyx"]
    return detector, lambda paths, links: InMemoryStore(paths, recipe, spacing, allow_symlinks=links)


def report_threshold(bundle: Path) -> float | None:
    """Return from which probability of both stages on a bundle's candidates are reported; None where it does not say.

    Raises:
        ValueError: it is no probability.
    """
    value = _config(bundle).get("report_threshold")
    if value is not None and not (isinstance(value, int | float) and 0 <= value <= 1):
        raise ValueError(f"report_threshold {value} in {bundle.name}: give a probability from 0 to 1, or null")
    return value


def _config(bundle: Path) -> dict[str, Any]:
    """Return what inference.yaml of a bundle that detects says, without its steps."""
    file = bundle / "configs" / "inference.yaml"
    if not file.is_file():
        raise FileNotFoundError(f"no {file}: name the folder of a bundle that detects")
    config = without_steps(ConfigParser.load_config_file(str(file)))
    if "detector" not in config:
        raise ValueError(f"bundle {bundle.name} has no detector: name one that detects, such as nodule_detection")
    return config
