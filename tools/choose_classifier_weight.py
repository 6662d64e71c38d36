"""Score each ``classifier_weight`` of the detection bundle on one list of candidates, to choose it on training folds.

    luna16 detect --ct HELD_OUT --weights DETECTOR/model.pt --output detected.csv --max 200
    luna16 predict --ct HELD_OUT --candidates detected.csv --weights CLASSIFIER/model.pt --output classified.csv
    python tools/choose_classifier_weight.py detected.csv classified.csv --annotations annotations.csv \
        --excluded annotations_excluded.csv --seriesuids held_out.csv

The scans must be ones that neither network was trained on, and none of those that the result is reported on. Each
weight is that of the classifier's logit, the detector's has the rest; 0 is the detector alone, 1 the classifier alone.
The chosen one goes into the bundle's inference.yaml.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from luna16_monai.evaluation.submission import ReferenceStandard, evaluate, read_reference
from luna16_monai.inference.combination import combine
from luna16_monai.tables.points import PointTable, read_points

WEIGHTS = tuple(round(0.1 * step, 1) for step in range(11))


def require_same_points(detected: PointTable, classified: PointTable) -> None:
    """Check that both tables list the same points in the same order."""
    same = len(detected) == len(classified) and detected.row_series() == classified.row_series()
    if not same or not np.allclose(detected.points_xyz, classified.points_xyz, atol=1e-5):
        raise ValueError(
            f"{classified.source} lists other points than {detected.source}: score that very list with luna16 predict "
            "--candidates"
        )


def weigh(
    detected: PointTable, classified: PointTable, truth: ReferenceStandard, weights: Sequence[float] = WEIGHTS
) -> list[dict[str, Any]]:
    """Return of each weight the CPM and the sensitivity by the number of candidates, without intervals."""
    require_same_points(detected, classified)
    rows = []
    for weight in weights:
        both = combine(detected.values, classified.values, weight)
        scores = evaluate(replace(detected, values=both), truth, draws=0).scores
        at = {number: scores["sensitivity_at_candidates"][number] for number in ("10", "25", "50")}
        rows.append({"classifier_weight": weight, "cpm": scores["cpm"], "sensitivity_at_candidates": at})
    return rows


def main() -> None:
    """Print the table, or with --json its rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("detected", type=Path, help="of luna16 detect")
    parser.add_argument("classified", type=Path, help="the same list, scored by luna16 predict --candidates")
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--excluded", type=Path)
    parser.add_argument("--seriesuids", type=Path, required=True, help="the held-out scans")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    truth = read_reference(options.annotations, options.excluded, options.seriesuids)
    detected, classified = (read_points(path, "probability") for path in (options.detected, options.classified))
    rows = weigh(detected, classified, truth)
    best = max(rows, key=lambda row: row["cpm"])["classifier_weight"]
    if options.json:
        print(json.dumps({"best": best, "rows": rows}, indent=2))
        return
    print("weight    CPM   at 10     25     50")
    for row in rows:
        at = "".join(f"{value:7.3f}" for value in row["sensitivity_at_candidates"].values())
        mark = "   highest CPM" if row["classifier_weight"] == best else ""
        print(f"{row['classifier_weight']:6.1f}  {row['cpm']:.3f} {at}{mark}")


if __name__ == "__main__":
    main()
