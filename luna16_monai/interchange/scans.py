"""The CTs that points belong to: which series a file is about, and whether its points lie in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from luna16_monai.geometry.grid import require_inside
from luna16_monai.interchange.points import Points
from luna16_monai.tables.text import is_series_uid

if TYPE_CHECKING:
    from luna16_monai.ct.opening import CT

NAMELESS = ("nodule-locations", "lung-nodule-malginancy-likelihoods")
"""Names of files that are the same for every CT."""


@dataclass(frozen=True)
class Scans:
    """The CTs that were named, by series; none where nothing is known of them.

    Attributes:
        cts: each opened CT.
        wrong: why a series that lies beside others in a folder cannot be read.
    """

    cts: Mapping[str, CT] = field(default_factory=dict)
    wrong: Mapping[str, ValueError] = field(default_factory=dict)

    @classmethod
    def open(cls, paths: Sequence[Path], allow_symlinks: bool = False) -> Scans:
        """Open CTs.

        Raises:
            FileNotFoundError: a path does not exist, or a folder holds no CT.
            ValueError: a header that cannot be trusted, or one series twice.
        """
        # it brings SimpleITK, nibabel and pydicom along, which points without CTs do without
        from luna16_monai.ct.folders import cts_at

        cts: dict[str, CT] = {}
        wrong: dict[str, ValueError] = {}
        for path in paths:
            found, failed = cts_at(path, allow_symlinks)
            wrong.update(failed)
            for uid, ct in found:
                if uid in cts:
                    raise ValueError(f"{ct.name} and {cts[uid].name} are both series {uid}: name one of them")
                cts[uid] = ct
        return cls(cts, wrong)

    def series_of_file(self, path: Path, name: str) -> str:
        """Return which series a file of one image's points is about.

        That is the one CT that was named; of several the one that the file is named after; without any the file's name.

        Args:
            path: of the file, for the message.
            name: its name without the suffix.

        Raises:
            ValueError: none of the CTs, or no series at all.
        """
        if len(self.cts) == 1:
            return next(iter(self.cts))
        if not self.cts and (name in NAMELESS or not is_series_uid(name)):
            raise ValueError(f"{path} does not say which CT its points belong to: name that with --ct")
        return self.known(name, str(path)) if self.cts else name

    def series_of_image(self, image: str, where: str) -> str:
        """Return the series of an image that a list names: its name without folders and suffix.

        Args:
            image: a path, in any system's way of writing it.
            where: for the message.

        Raises:
            ValueError: it is none of the CTs that were named, or no name.
        """
        from luna16_monai.ct.opening import SUFFIXES

        name = image.replace("\\", "/").rstrip("/").rpartition("/")[2]
        name = next((name[: -len(end)] for end in SUFFIXES if name.lower().endswith(end)), name)
        if not is_series_uid(name):
            raise ValueError(f"{where}: image {image[:60]!r} names no file: mend it")
        return self.known(name, where) if self.cts else name

    def known(self, series_uid: str, where: str) -> str:
        """Return a series that is among the CTs that were named.

        Raises:
            ValueError: it is not.
        """
        if series_uid in self.wrong:
            raise self.wrong[series_uid]
        if series_uid not in self.cts:
            names = ", ".join(list(self.cts)[:3]) + (", ..." if len(self.cts) > 3 else "")
            raise ValueError(f"{where}: {series_uid} is none of the CTs ({names}): name its CT with --ct")
        return series_uid

    def require(self, points: Points) -> None:
        """Check that each point belongs to a CT and lies in it; without any CT there is nothing to check.

        Raises:
            ValueError: names the first point for which that is not so.
        """
        if not self.cts:
            return
        series = np.array(points.series, object)
        for uid in dict.fromkeys(points.series):
            rows = np.flatnonzero(series == uid)
            self.known(uid, points.place(int(rows[0])))
            question = "does this file belong to this CT, and are its points LPS (else --ras)?"
            part = points.select(rows)
            require_inside(part.points_xyz, self.cts[uid].geometry, uid, part.place, question)
