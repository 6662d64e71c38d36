"""Write the predictions of ``run inference`` to a table, and give a bundle its candidate list."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from ignite.engine import Events
from monai.engines.workflow import Workflow

from luna16_monai.dataset.candidates import CandidateList
from luna16_monai.machine.folder_lists import Folders
from luna16_monai.store.in_memory import InMemoryStore
from luna16_monai.tables.data_sets import DataSets
from luna16_monai.tables.points import write_points

logger = logging.getLogger(__name__)


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
        uids = table.row_series()
        write_points(self.output_file, uids, table.points_xyz, self.probabilities, "probability")
        logger.info("%d probabilities in %s", len(table), self.output_file)


def candidates_of(dataset_dir: Folders, volumes: InMemoryStore) -> CandidateList:
    """The candidates of a data folder, series by series, checked against the CTs."""
    table = DataSets.of(dataset_dir).candidates()
    volumes.require_inside(table)
    return CandidateList(table.select(np.argsort(table.series, kind="stable")), positives_first=False)
