"""From CTs and points to probabilities: the bundle's network on anybody's scan.

The same code as in training: the recipe of ``prepare.yaml`` makes the volume (in memory instead of in a store), the
same ``Volume.cutout`` takes the box, the same transforms of the bundle's YAML make the network's input.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import get_track_meta, set_track_meta
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from luna16_monai.bundle.bases import read_whole
from luna16_monai.bundle.config import without_steps
from luna16_monai.bundle.moved import refuse_moved
from luna16_monai.dataset.candidates import CandidateList
from luna16_monai.dataset.cutouts import VolumeSource
from luna16_monai.inference.views import check_views, views_of
from luna16_monai.runs.calibrated import Calibrated, read_calibrated
from luna16_monai.runs.folder import RunFolder
from luna16_monai.store.in_memory import InMemoryStore
from luna16_monai.tables.points import PointTable

logger = logging.getLogger(__name__)

SHAPE_ZYX = (32, 48, 48)
"""Voxels of a cutout where a bundle's config does not say it."""

Preprocessing = Callable[[Any], Mapping[str, Any]]
"""A bundle's transforms of a candidate, which know where its CT comes from."""


class Classifier:
    """A bundle's network and preprocessing, for any CT.

    Args:
        bundle: the bundle's folder.
        device: where the network runs.
        weights: model.pt files, whose probabilities are averaged; none takes the bundle's own.
        backend: as `backends.load_weights`.
        calibrated: whether the calibration beside the weights is read.

    Attributes:
        views: how many flips and turns are averaged where nothing else is said: ``views`` of inference.yaml, or 1.
        calibration: of the probabilities; None where it is not known, as for an ensemble.
        calibrated: the same, with the thresholds that ``luna16 calibrate`` chose.

    Raises:
        FileNotFoundError: the bundle has no inference.yaml, or there are no weights.
        ValueError: the weights belong to another network, or the config names something as it was called before.
    """

    def __init__(
        self,
        bundle: Path,
        device: torch.device | str = "cpu",
        weights: Sequence[Path] = (),
        backend: str = "auto",
        calibrated: bool = True,
    ) -> None:
        config = bundle / "configs" / "inference.yaml"
        if not config.is_file():
            raise FileNotFoundError(f"no {config}: name the folder of a bundle with --bundle")
        self.bundle, self.device = bundle, device
        whole = read_whole(config)
        refuse_moved(whole, str(config))
        self.config = without_steps(whole)
        # paths, not texts, in which MONAI would read # as ::
        self.config.update(bundle_root=bundle, device=str(device), backend=backend)
        self._as_trained(weights)
        parts = [{"weights": path} for path in weights] or [{}]
        parsers = [ConfigParser({**self.config, **part}) for part in parts]
        self.networks: list[nn.Module] = [parser.get_parsed_content("network") for parser in parsers]
        self.weights = [Path(parser.get_parsed_content("weights")) for parser in parsers]
        self.views = check_views(self.config.get("views", 1))
        alone = calibrated and len(self.weights) == 1
        self.calibrated = read_calibrated(self.weights[0]) if alone else Calibrated(None, None, None)
        self.calibration = self.calibrated.calibration

    def _as_trained(self, weights: Sequence[Path]) -> None:
        """Take the network, the cutouts' size and spacing from the record beside the weights, where there is one."""
        records = [RunFolder(path.parent).read_network() for path in weights]
        if not any(records):
            return
        if any(record != records[0] for record in records):
            raise ValueError(
                f"the weights {', '.join(map(str, weights))} belong to different networks or cutouts, as the run.json "
                "beside each says: score them one by one"
            )
        definition = self.config.get("network_def", {})
        if not str(definition.get("_target_", "")).endswith(".NoduleNet"):
            return  # a bundle with a network of its own knows it
        self.config.update(records[0], network_def={**definition, **records[0]["network_def"]})

    def volumes(self, paths: Sequence[Path], allow_symlinks: bool = False) -> InMemoryStore:
        """CTs, as the bundle's recipe makes them."""
        return InMemoryStore(paths, self.recipe, self.config["spacing_zyx"], allow_symlinks=allow_symlinks)

    @property
    def way(self) -> tuple[str, str]:
        """By what two bundles are known to prepare a CT alike; as `InMemoryStore.way`."""
        return str(self.recipe.resolve()), str(self.config["spacing_zyx"])

    @property
    def recipe(self) -> Path:
        """The transforms that make a volume of a CT: those that the bundle's inference.yaml names for its volumes."""
        return Path(ConfigParser(dict(self.config)).get_parsed_content("volumes#recipe"))

    def probabilities(
        self, table: PointTable, volumes: InMemoryStore, views: int | None = None, batch_size: int = 32
    ) -> NDArray[np.float64]:
        """The probability of class 1 at each point: a nodule, or what else the bundle looks for.

        Args:
            table: the points; their values do not matter.
            volumes: the CTs.
            views: how many flips and turns are averaged, see `views_of`; None takes the bundle's setting.
            batch_size: cutouts scored at once.

        Returns:
            (n,) in the order of the table's rows.

        Raises:
            ValueError: a point's series is not among the CTs, or it lies outside its scan.
        """
        volumes.require_inside(table)
        for code in np.unique(table.series):
            self.warn_of_short(volumes, table.series_uids[code])
        order = np.argsort(table.series, kind="stable")
        result = np.empty(len(table))
        result[order] = self.score_rows(table, order, self.preprocessing(volumes), views, batch_size)
        return result

    def warn_of_short(self, volumes: InMemoryStore, uid: str) -> None:
        """Log a warning where a CT is shorter than a cutout, most of which is air then."""
        if (short := volumes.shorter_than(uid, self.config.get("shape_zyx", SHAPE_ZYX))) is not None:
            logger.warning("%s", short)

    def score_rows(
        self,
        table: PointTable,
        rows: NDArray[np.intp],
        preprocessing: Preprocessing,
        views: int | None = None,
        batch_size: int = 32,
        done: Callable[[int], object] = int,
    ) -> NDArray[np.float64]:
        """Score some rows of a table, batch by batch; gives (n,) in the order of the rows.

        After each batch ``done`` is called with its number of rows.
        """
        result = np.empty(len(rows))
        for start in range(0, len(rows), batch_size):
            part = slice(start, start + batch_size)
            result[part] = self.score(self.images(table, rows[part], preprocessing), views).numpy()
            done(len(rows[part]))
        return result

    def preprocessing(self, volumes: VolumeSource) -> Preprocessing:
        """Build the bundle's transforms of a candidate, for CTs from this source; it takes a while, so once for all."""
        return ConfigParser({**self.config, "volumes": volumes}).get_parsed_content("preprocessing")

    def images(self, table: PointTable, rows: Sequence[int] | NDArray[np.intp], preprocessing: Preprocessing) -> Tensor:
        """What the network is given of some rows of a table: (n, 1, z, y, x) float32, in the order of the rows."""
        # of these rows alone: a list of the whole table for each batch would cost its square
        candidates = CandidateList(table.select(np.asarray(rows)), positives_first=False)
        tracked = get_track_meta()
        set_track_meta(False)
        try:
            return torch.stack([preprocessing(one)["image"] for one in candidates])
        finally:
            set_track_meta(tracked)

    @torch.inference_mode()
    def score(self, images: Tensor, views: int | None = None) -> Tensor:
        """Score a batch (n, 1, z, y, x) float32 HU; gives (n,) float64."""
        images = images.to(self.device)
        seen = list(views_of(images, self.views if views is None else views))
        scored = [torch.softmax(network(view).double(), dim=1)[:, 1] for network in self.networks for view in seen]
        return torch.stack(scored).mean(0).cpu()


def volumes_of(
    classifiers: Sequence[Classifier],
    paths: Sequence[Path],
    allow_symlinks: bool = False,
    opened: Sequence[InMemoryStore] = (),
) -> list[InMemoryStore]:
    """Open the CTs for each of several bundles; bundles that prepare a CT alike share theirs.

    Args:
        classifiers: the bundles.
        paths: the CTs.
        allow_symlinks: take CTs that are linked into place.
        opened: the same CTs, as somebody has opened them already.
    """
    shared = {one.way: one for one in opened}
    for one in classifiers:
        if one.way not in shared:
            shared[one.way] = one.volumes(paths, allow_symlinks)
    return [shared[one.way] for one in classifiers]


class Scorer:
    """Scores points of CTs with several bundles; each CT is prepared once for all that share their volumes.

    Args:
        classifiers: the bundles.
        volumes: of each bundle, see `volumes_of`.
        views: as `Classifier.probabilities`.
        progress: show a bar with the time that is left.
        warn: of CTs that are shorter than a cutout.
    """

    def __init__(
        self,
        classifiers: Sequence[Classifier],
        volumes: Sequence[InMemoryStore],
        views: int | None = None,
        progress: bool = False,
        warn: bool = True,
    ) -> None:
        self.classifiers, self.volumes, self.views = tuple(classifiers), tuple(volumes), views
        self.progress, self.warn = progress, warn
        self._built = [one.preprocessing(prepared) for one, prepared in zip(classifiers, volumes, strict=True)]

    def __call__(self, table: PointTable) -> list[NDArray[np.float64]]:
        """Return (n,) probabilities of each classifier, series by series.

        Raises:
            ValueError: a point's series is not among the CTs, or it lies outside its scan.
        """
        for prepared in dict.fromkeys(self.volumes):
            prepared.require_inside(table)
        scored = [np.empty(len(table)) for _ in self.classifiers]
        total = len(table) * len(scored)
        with tqdm(total=total, desc="predict", unit="candidate", disable=not self.progress) as bar:
            for code in np.unique(table.series):
                rows = np.flatnonzero(table.series == code)
                if self.warn:
                    self.classifiers[0].warn_of_short(self.volumes[0], table.series_uids[code])
                for one, preprocessing, result in zip(self.classifiers, self._built, scored, strict=True):
                    result[rows] = one.score_rows(table, rows, preprocessing, self.views, done=bar.update)
        return scored


def score_in_turn(
    classifiers: Sequence[Classifier], table: PointTable, volumes: Sequence[InMemoryStore], views: int | None = None
) -> list[NDArray[np.float64]]:
    """Return (n,) probabilities of each of several bundles; see `Scorer`."""
    return Scorer(classifiers, volumes, views)(table)
