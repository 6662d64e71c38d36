"""From CTs and points to probabilities: the bundle's network on anybody's scan.

The same code as in training: the recipe of ``prepare.yaml`` makes the volume (in memory instead of in a store), the
same ``Volume.cutout`` takes the box, the same transforms of the bundle's YAML make the network's input.
"""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.data import get_track_meta, set_track_meta
from monai.engines.workflow import Workflow
from numpy.typing import NDArray
from torch import Tensor, nn

from luna16_monai.calibration import Calibration
from luna16_monai.candidates import PointTable, read_candidates, write_points
from luna16_monai.checkpoint import read_weights
from luna16_monai.ct import find_cts, read_geometry, series_uid
from luna16_monai.cutouts import Volume, prepare_volume
from luna16_monai.datalist import CandidateList
from luna16_monai.prepare import Recipe
from luna16_monai.transforms import VolumeSource

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "torch", "openvino")


class PreparedInMemory:
    """CTs, each sent through a recipe when it is first asked for; what ``LoadCutoutd`` takes in place of a store.

    Args:
        paths: CT files, folders of DICOM files, or one data folder in LUNA16's layout.
        recipe: a bundle's ``prepare.yaml``.
        spacing_zyx: mm; None for each CT's own.
        kept: volumes that stay in memory; candidates come series by series.

    Raises:
        FileNotFoundError: a path does not exist, or a folder holds no CT.
        ValueError: two CTs have the same identifier.
    """

    def __init__(
        self,
        paths: Sequence[Path | str] | Path | str,
        recipe: Path | str,
        spacing_zyx: Sequence[float] | str | None = "file",
        kept: int = 1,
    ) -> None:
        self.paths: dict[str, Path] = {}
        for path in [paths] if isinstance(paths, Path | str) else paths:
            for uid, found in _cts_at(Path(path)):
                if uid in self.paths:
                    raise ValueError(
                        f"{found.name} and {self.paths[uid].name} are both series {uid}: "
                        "name one of them, or rename a file"
                    )
                self.paths[uid] = found
        self.transform = Recipe.read(Path(recipe), spacing_zyx).build()
        self.kept = kept
        self._volumes: OrderedDict[str, Volume] = OrderedDict()

    @property
    def series_uids(self) -> tuple[str, ...]:
        """The series of the CTs, sorted."""
        return tuple(sorted(self.paths))

    def volume(self, uid: str) -> Volume:
        """A CT on the recipe's grid.

        Raises:
            KeyError: none of the CTs is this series.
        """
        if uid not in self.paths:
            known = ", ".join(self.series_uids[:5])
            raise KeyError(f"series {uid} is none of the CTs ({known}): name its CT with --ct")
        if uid not in self._volumes:
            while len(self._volumes) >= self.kept:
                self._volumes.popitem(last=False)
            self._volumes[uid] = prepare_volume(self.paths[uid], self.transform)
        return self._volumes[uid]

    def require_inside(self, table: PointTable) -> None:
        """Check that every row's series is among the CTs and its point inside.

        Raises:
            ValueError: names the first row for which that is not so.
        """
        table.require_series(self.series_uids, "the CTs that were named")
        for code in np.unique(table.series):
            uid = table.series_uids[code]
            rows = np.flatnonzero(table.series == code)
            outside = rows[~read_geometry(self.paths[uid]).contains(table.points_xyz[rows])]
            if len(outside):
                point = ", ".join(f"{value:.1f}" for value in table.points_xyz[outside[0]])
                raise ValueError(
                    f"candidate ({point}) mm ({table.source}, line {table.lines[outside[0]]}) lies outside series "
                    f"{uid}: does this table belong to this CT, and are its points LPS (else --ras)?"
                )


class PredictionWriter:
    """Collect the probabilities of an evaluator's run and write them as a submission.

    Args:
        output_file: the CSV; whole or absent.
        candidates: what the evaluator's loader goes through.
    """

    def __init__(self, output_file: Path | str, candidates: CandidateList) -> None:
        self.output_file, self.candidates = Path(output_file), candidates

    def attach(self, engine: Workflow) -> None:
        """Attach to the evaluator."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def start(self, _: Workflow) -> None:
        """Begin anew."""
        self.probabilities = np.full(len(self.candidates), np.nan)

    def collect(self, engine: Workflow) -> None:
        """Keep one batch."""
        rows = engine.state.batch["candidate"].cpu().numpy()
        self.probabilities[rows] = engine.state.output["pred"][:, 1].double().cpu().numpy()

    def write(self, _: Workflow) -> None:
        """Write the file."""
        table = self.candidates.table
        uids = [table.series_uids[code] for code in table.series]
        write_points(self.output_file, uids, table.points_xyz, self.probabilities, "probability")
        logger.info("%d probabilities in %s", len(table), self.output_file)


def candidates_of(dataset_dir: Path | str, volumes: PreparedInMemory) -> CandidateList:
    """The candidates of a data folder, series by series, checked against the CTs."""
    table = read_candidates(Path(dataset_dir))
    volumes.require_inside(table)
    return CandidateList(table.select(np.argsort(table.series, kind="stable")), positives_first=False)


def load_weights(
    network: nn.Module,
    path: Path | str,
    device: torch.device | str = "cpu",
    backend: str = "torch",
    shape_zyx: Sequence[int] = (32, 48, 48),
) -> nn.Module:
    """The network with its weights, ready to score.

    Args:
        network: gives logits.
        path: a bare state dict.
        device: where it runs.
        backend: ``torch``; ``openvino``, which is faster on a CPU and gives the same within 1e-5; ``auto`` takes
            OpenVINO on a CPU where it is installed.
        shape_zyx: voxels of a cutout.

    Raises:
        FileNotFoundError: there are no weights.
        ValueError: they belong to another network, the file holds more than weights, or the backend does not fit.
        ModuleNotFoundError: OpenVINO was asked for and is missing.
    """
    on_cpu = torch.device(device).type == "cpu"
    if backend not in BACKENDS or (backend == "openvino" and not on_cpu):
        raise ValueError(f"backend {backend} on {device}: name one of {', '.join(BACKENDS)}; openvino runs on a CPU")
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights {path}: train the bundle and put its model.pt there, or name a file")
    try:
        network.load_state_dict(read_weights(path))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"the weights {path} belong to another network: {reason}") from error
    if backend == "openvino" or (backend == "auto" and on_cpu and find_spec("openvino") is not None):
        from luna16_monai.export import OpenVinoNetwork

        return OpenVinoNetwork(network.eval(), shape_zyx)
    return network.to(device=device, memory_format=torch.channels_last_3d).eval()  # type: ignore[call-overload]


def read_calibration(weights: Path) -> Calibration | None:
    """The calibration that belongs to weights: the ``metrics.json`` beside them tells; None where it does not.

    Raises:
        ValueError: the file is damaged.
    """
    path = weights.parent / "metrics.json"
    if not path.is_file():
        return None
    try:
        line = json.loads(path.read_text(encoding="utf-8")).get("calibration", {}).get("platt")
        return None if line is None else Calibration(float(line["slope"]), float(line["offset"]))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} holds no calibration that can be read: remove it, or train anew") from error


class Classifier:
    """A bundle's network and preprocessing, for any CT.

    Args:
        bundle: the bundle's folder.
        device: where the network runs.
        weights: model.pt files, whose probabilities are averaged; none takes the bundle's own.
        backend: as `load_weights`.

    Attributes:
        calibration: of the probabilities; None where it is not known, as for an ensemble.

    Raises:
        FileNotFoundError: the bundle has no inference.yaml, or there are no weights.
        ValueError: the weights belong to another network.
    """

    def __init__(
        self,
        bundle: Path,
        device: torch.device | str = "cpu",
        weights: Sequence[Path] = (),
        backend: str = "auto",
    ) -> None:
        config = bundle / "configs" / "inference.yaml"
        if not config.is_file():
            raise FileNotFoundError(f"no {config}: name the folder of a bundle with --bundle")
        self.bundle, self.device = bundle, device
        self.config = ConfigParser.load_config_file(str(config))
        # paths, not texts, in which MONAI would read # as ::
        self.config.update(bundle_root=bundle, device=str(device), backend=backend)
        parts = [{"weights": path} for path in weights] or [{}]
        parsers = [ConfigParser({**self.config, **part}) for part in parts]
        self.networks: list[nn.Module] = [parser.get_parsed_content("network") for parser in parsers]
        self.weights = [Path(parser.get_parsed_content("weights")) for parser in parsers]
        self.calibration = read_calibration(self.weights[0]) if len(self.weights) == 1 else None

    def volumes(self, paths: Sequence[Path]) -> PreparedInMemory:
        """CTs, as the bundle's recipe makes them."""
        return PreparedInMemory(paths, self.recipe, self.config["spacing_zyx"])

    @property
    def recipe(self) -> Path:
        """The transforms that make a volume of a CT: those that the bundle's inference.yaml names for its volumes."""
        return Path(ConfigParser(dict(self.config)).get_parsed_content("volumes#recipe"))

    def probabilities(
        self, table: PointTable, volumes: PreparedInMemory, tta: bool = False, batch_size: int = 32
    ) -> NDArray[np.float64]:
        """The probability of class 1 at each point: a nodule, or what else the bundle looks for.

        Args:
            table: the points; their values do not matter.
            volumes: the CTs.
            tta: average over flips and quarter turns, 16 views.
            batch_size: cutouts scored at once.

        Returns:
            (n,) in the order of the table's rows.

        Raises:
            ValueError: a point's series is not among the CTs, or it lies outside its scan.
        """
        volumes.require_inside(table)
        order = np.argsort(table.series, kind="stable")
        result = np.empty(len(table))
        for start in range(0, len(table), batch_size):
            rows = order[start : start + batch_size]
            result[rows] = self.score(self.images(table, rows, volumes), tta).numpy()
        return result

    def images(self, table: PointTable, rows: Sequence[int] | NDArray[np.intp], volumes: VolumeSource) -> Tensor:
        """What the network is given of some rows of a table: (n, 1, z, y, x) float32, in the order of the rows."""
        candidates = CandidateList(table, positives_first=False)
        preprocessing = ConfigParser({**self.config, "volumes": volumes}).get_parsed_content("preprocessing")
        tracked = get_track_meta()
        set_track_meta(False)
        try:
            return torch.stack([preprocessing(candidates[row])["image"] for row in rows])
        finally:
            set_track_meta(tracked)

    @torch.inference_mode()
    def score(self, images: Tensor, tta: bool = False) -> Tensor:
        """Score a batch (n, 1, z, y, x) float32 HU; gives (n,) float64."""
        images = images.to(self.device)
        views = list(_views(images)) if tta else [images]
        scored = [torch.softmax(network(view).double(), dim=1)[:, 1] for network in self.networks for view in views]
        return torch.stack(scored).mean(0).cpu()


def score_in_turn(
    classifiers: Sequence[Classifier], table: PointTable, paths: Sequence[Path], tta: bool = False
) -> list[NDArray[np.float64]]:
    """Score points with several bundles; each CT is prepared once for all that prepare it alike.

    Args:
        classifiers: the bundles.
        table: the points.
        paths: the CTs.
        tta: as `Classifier.probabilities`.

    Returns:
        (n,) for each classifier.

    Raises:
        ValueError: a point's series is not among the CTs, or it lies outside its scan.
    """
    shared: dict[tuple[str, str], PreparedInMemory] = {}
    volumes = []
    for one in classifiers:
        way = (str(one.recipe.resolve()), str(one.config["spacing_zyx"]))
        if way not in shared:
            shared[way] = one.volumes(paths)
            shared[way].require_inside(table)
        volumes.append(shared[way])
    scored = [np.empty(len(table)) for _ in classifiers]
    for code in np.unique(table.series):
        rows = np.flatnonzero(table.series == code)
        for one, prepared, result in zip(classifiers, volumes, scored, strict=True):
            result[rows] = one.probabilities(table.select(rows), prepared, tta)
    return scored


def _views(images: Tensor) -> Iterator[Tensor]:
    """The 16 ways to flip and quarter-turn a cutout that keep z upright or upside down."""
    for in_z in (images, images.flip(2)):
        for in_x in (in_z, in_z.flip(4)):
            for turns in range(4):
                yield torch.rot90(in_x, turns, (3, 4))


def _cts_at(path: Path) -> list[tuple[str, Path]]:
    """The series at a path: a file, a folder of DICOM files, or LUNA16's layout."""
    if not path.exists():
        raise FileNotFoundError(f"no CT {path}: name an .mhd, .mha or .nii(.gz) file, or a folder")
    if path.is_dir() and (any(path.glob("*.mhd")) or any(path.glob("subset*"))):
        return [(ct.series_uid, ct.path) for ct in find_cts(path)]
    return [(series_uid(path), path)]


def from_ras(table: PointTable) -> PointTable:
    """A table whose points were RAS, as LPS: x and y change their signs."""
    flipped: Mapping[str, Any] = {**vars(table), "points_xyz": table.points_xyz * np.array([-1.0, -1.0, 1.0])}
    return PointTable(**flipped)
