"""Handlers of a training: what stops it, and the warm-up of a fresh head."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from point_tables import point_table
from small_scores import ROWS

from luna16_monai.dataset.candidates import CandidateList
from luna16_monai.networks.nodule_net import NoduleNet
from luna16_monai.training.handlers import FiniteLoss, HeadWarmUp


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


class TestHeadWarmUp:
    def test_first_twentieth_of_the_run_trains_the_head_alone(self) -> None:
        network = NoduleNet((8, 8, 8), channels=(2, 4), return_probabilities=False)
        network.fresh_head = True
        optimizer = torch.optim.AdamW(network.parameters(), lr=0.1, weight_decay=0.1)

        def moved(iteration: int) -> set[str]:
            before = {name: value.clone() for name, value in network.named_parameters()}
            optimizer.zero_grad()
            network(torch.randn(2, 1, 8, 8, 8) * 100)[:, 1].sum().backward()
            # 2 epochs of 20 iterations: the first two of 40
            state = SimpleNamespace(iteration=iteration, max_epochs=2, epoch_length=20)
            HeadWarmUp(network)(SimpleNamespace(state=state))  # type: ignore[arg-type]
            optimizer.step()
            return {name.split(".")[0] for name, value in network.named_parameters() if not value.equal(before[name])}

        assert moved(1) == moved(2) == {"head"}
        assert moved(3) == {"tail", "backbone", "head"}

    @pytest.mark.parametrize("fresh", [False, True])
    def test_head_that_goes_on_is_not_warmed_up(self, fresh: bool) -> None:
        network = NoduleNet((8, 8, 8), channels=(2, 4))
        network.fresh_head = fresh
        trainer = Engine(lambda *_: None)
        trainer.register_events(IterationEvents.BACKWARD_COMPLETED)
        handler = HeadWarmUp(network)
        handler.attach(trainer)  # type: ignore[arg-type]
        assert trainer.has_event_handler(handler, IterationEvents.BACKWARD_COMPLETED) == fresh
