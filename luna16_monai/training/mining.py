"""False positives of a detector, found on its own training scans during the run, for its further crops."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Events
from monai.engines.workflow import Workflow
from numpy.typing import NDArray
from torch import Tensor, nn

from luna16_monai.detection.crops import CropList, lung_box
from luna16_monai.detection.peaks import candidates_of
from luna16_monai.detection.targets import Labels
from luna16_monai.detection.tiles import TiledInferer
from luna16_monai.networks.nodule_detector import NoduleDetector
from luna16_monai.training import distributed

logger = logging.getLogger(__name__)

APART_MM = 2.0


class MinedNegatives:
    """Give the crops the points where the network is most sure of nodules that are not there.

    At the end of some epochs it runs over all training scans; what lies on no nodule and no excluded finding becomes
    ``CropList.mined``. It belongs to a checkpoint, so a run that goes on has the same points. Rank 0 looks, and the
    others take what it found.

    Args:
        crops: which scans, and where the points go to.
        network: runs on the whole lung boxes.
        epochs: after which it looks anew.
        per_scan: the most candidates of a scan that are looked at.
        inferer: applies the network.
        device: where to.
    """

    def __init__(
        self,
        crops: CropList,
        network: NoduleDetector,
        epochs: Sequence[int],
        per_scan: int = 40,
        inferer: TiledInferer | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if per_scan < 1 or any(epoch < 1 for epoch in epochs):
            raise ValueError(f"mining {per_scan} a scan after epochs {list(epochs)}: give numbers from 1 on")
        self.crops, self.network, self.epochs, self.per_scan = crops, network, set(epochs), per_scan
        self.inferer, self.device = inferer or TiledInferer(), device

    def attach(self, engine: Workflow) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Workflow) -> None:
        """Look, if it is time; not after the last epoch."""
        if engine.state.epoch not in self.epochs or engine.state.epoch == engine.state.max_epochs:
            return
        content = self._mine().tobytes() if idist.get_rank() == 0 else None
        self.crops.mined = np.frombuffer(distributed.from_first(content) or b"").reshape(-1, 4)
        logger.info("%d false positives mined in %d scans", len(self.crops.mined), len(self.crops.series_uids))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the points."""
        return {"mined": torch.from_numpy(self.crops.mined.copy())}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Take the points of a checkpoint."""
        self.crops.mined = state_dict["mined"].numpy()

    def _mine(self) -> NDArray[np.float64]:
        network: Any = self.network
        network = network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
        was_training = network.training
        network.eval()
        parts = [np.zeros((0, 4))]
        with torch.inference_mode():
            for number, uid in enumerate(self.crops.series_uids):
                points = self._of_scan(network, uid)
                parts.append(np.column_stack([np.full(len(points), float(number)), points]))
        network.train(was_training)
        return np.concatenate(parts)

    def _of_scan(self, network: NoduleDetector, uid: str) -> NDArray[np.floating]:
        scans = self.crops.scans
        volume, labels = scans.volume(uid), scans.labels(uid)
        image, start = lung_box(volume, labels.lungs, network.total_stride_zyx)
        output = self.inferer(torch.from_numpy(image)[None, None].to(self.device), network)[0].float().cpu().numpy()
        found = candidates_of(
            output, start.tolist(), network.stride_zyx, volume.geometry, volume.scan, labels.lungs, self.per_scan
        )
        return found.points_xyz[~near_findings(found.points_xyz, labels)]


def near_findings(points_xyz: NDArray[np.floating], labels: Labels) -> NDArray[np.bool_]:
    """Return which points lie on a nodule or an excluded finding, or within 2 mm of one, (n,)."""
    findings = np.concatenate([labels.nodules, labels.excluded])
    places = labels.geometry.world_from_voxel(findings[:, :3])
    gaps = np.linalg.norm(points_xyz[:, None] - places[None], axis=2)
    return (gaps < findings[:, 3] / 2 + APART_MM).any(1)


def as_handler(mining: MinedNegatives) -> MinedNegatives:
    """Return the same object: MONAI's check of a bundle wants a mapping with ``_target_`` for each handler."""
    return mining
