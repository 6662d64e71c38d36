"""The page of ``luna16 predict --report``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from luna16_monai.inference.predict import Page
    from luna16_monai.inference.structured_report import Algorithm
    from luna16_monai.tables.points import PointTable


def page_about(options: argparse.Namespace) -> Page:
    """Return the page of ``predict --report``; what cannot be made is refused before the networks run.

    Raises:
        ValueError: --ct names no CT or several, or the page would lie on the table or a folder.
        ModuleNotFoundError: jinja2 is missing.
    """
    from luna16_monai.bundle.folders import bundle_dir
    from luna16_monai.inference.predict import Page
    from luna16_monai.inference.structured_report import require_threshold
    from luna16_monai.machine.extras import require
    from luna16_monai.report.scan_page import algorithm_lines, scan_page
    from luna16_monai.store.in_memory import InMemoryStore

    require("report", "--report", "jinja2")
    require_threshold(options.threshold)
    if options.report.is_dir() or options.report.resolve() == options.output.resolve():
        raise ValueError(f"--report {options.report}: name a file of its own for the page")
    # on the CT's own grid: what was scanned is what is read
    volumes = InMemoryStore(
        options.ct, bundle_dir() / "configs" / "prepare.yaml", None, allow_symlinks=options.allow_symlinks
    )
    if len(volumes.series_uids) != 1:
        raise ValueError(f"--report is about one CT, and --ct names {len(volumes.series_uids)}: give one")
    uid = volumes.series_uids[0]

    def render(points: PointTable, columns: Mapping[str, NDArray[np.float64]], about: Algorithm) -> tuple[str, int]:
        lines = algorithm_lines(about.name, about.version, about.parameters)
        return scan_page(uid, volumes.volume(uid), points.points_xyz, columns, options.threshold, lines)

    return Page(options.report, render)
