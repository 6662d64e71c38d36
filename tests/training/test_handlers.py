"""Handlers of a training: what stops it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events
from point_tables import point_table
from small_scores import ROWS

from luna16_monai.dataset.candidates import CandidateList
from luna16_monai.training.handlers import FiniteLoss


class TestFiniteLoss:
    def test_finite_loss_stops_and_names_the_batch(self, tmp_path: Path) -> None:
        candidates = CandidateList(point_table(ROWS))
        losses = iter([0.5, math.nan])
        trainer = Engine(lambda _, __: {"loss": torch.tensor(next(losses))})
        FiniteLoss(str(tmp_path), candidates).attach(trainer)
        trainer.add_event_handler(Events.ITERATION_STARTED, lambda engine: None)
        batches = [{"candidate": torch.tensor([0, 1])}, {"candidate": torch.tensor([6, 2])}]
        with pytest.raises(FloatingPointError, match=r"the loss is nan in iteration 2"):
            trainer.run(batches, max_epochs=1)
        written = json.loads((tmp_path / "nonfinite_loss.json").read_text(encoding="utf-8"))
        # positives come first in the list: row 6 is the first negative, at 60 mm in scan 1.0
        assert written["batch"][0] == {"series_uid": "1.0", "point_xyz": [60.0, 0.0, 0.0]}
        assert written["iteration"] == 2
