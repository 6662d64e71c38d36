"""Marks, nodules and excluded findings of two scans, made by hand.

All points lie on the x axis. Scan 1.1 has nodules at 0 (diameter 6) and 50 mm (diameter 8) and an excluded finding at
100 mm; scan 1.2 has no nodule; 1.9 is in the tables, but not in the list of series.
"""

from __future__ import annotations

from point_tables import point_table

from luna16_monai.evaluation.submission import ReferenceStandard

NODULES = [("1.1", 0.0, 0, 0, 6.0), ("1.1", 50.0, 0, 0, 8.0), ("1.9", 0.0, 0, 0, 9.0)]
EXCLUDED = [("1.1", 100.0, 0, 0, -1.0), ("1.9", 9.0, 0, 0, -1.0)]
# a hit, its double, one on the excluded finding, a false positive in each scan
MARKS = [
    ("1.1", 1.0, 0, 0, 0.9),
    ("1.1", 2.0, 0, 0, 0.3),
    ("1.1", 101.0, 0, 0, 0.8),
    ("1.1", 200.0, 0, 0, 0.4),
    ("1.2", 5.0, 0, 0, 0.2),
]


def truth(series: tuple[str, ...] = ("1.1", "1.2"), excluded: bool = True, **more: object) -> ReferenceStandard:
    return ReferenceStandard(series, point_table(NODULES), point_table(EXCLUDED) if excluded else None, **more)  # type: ignore[arg-type]
