"""Make again what the weights that come with the bundles were trained on: ``models/model.pt.seen.json``.

Both were trained on phantoms before such a record was written. A phantom's plan gives the names of its scans, their
patients and what they are drawn from without drawing them, and the split is that of the training. The plan has not
changed since the phantom's first recipe, nor has the bank of shapes; the cards in the bundles' ``models`` say which set
and which split it was.
"""

from __future__ import annotations

from pathlib import Path

from luna16_monai.dataset.splits import split_by_stride
from luna16_monai.phantom.data_set import drawn_from, plan_scans
from luna16_monai.phantom.lesions import load_shape_bank
from luna16_monai.runs.folder import RunFolder
from luna16_monai.runs.seen import Seen, write_seen
from luna16_monai.tables.lidc import Patients

BUNDLES = Path(__file__).parents[1] / "bundles"
# the phantom's recipe, its scans, the stride of the split, the series held out; all of seed 0. The malignancy
# bundle's weights went on from those of a demo on the same set and split.
TRAININGS = {"nodule_classification": (2, 200, 5, 40), "malignancy_classification": (1, 60, 3, 20)}
SEED = 0


def record(recipe: int, scans: int, stride: int, held_out: int) -> Seen:
    """Return what a training on a phantom has seen.

    Raises:
        ValueError: the split holds out another number of series than it did.
    """
    plans = plan_scans(scans, SEED, load_shape_bank())
    patients = Patients({plan.series_uid: plan.patient_id for plan in plans})
    train, validation = split_by_stride([plan.series_uid for plan in plans], stride, patients)
    if len(validation) != held_out:
        raise ValueError(f"{len(validation)} series are held out, not {held_out}: the plan or the split has changed")
    return Seen.of(train, drawn_from({"kind": "synthetic", "recipe": recipe, "seed": SEED}, plans))


def main() -> None:
    """Write both records."""
    for bundle, training in TRAININGS.items():
        seen = record(*training)
        run = RunFolder(BUNDLES / bundle / "models")
        write_seen(run.weights, seen)
        print(f"{bundle}: {len(seen.series)} series, {len(seen.drawn)} drawn scans")


if __name__ == "__main__":
    main()
