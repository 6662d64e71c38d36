"""A store in memory: CTs prepared as ``luna16 prepare`` would, when they are first asked for."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from monai.transforms import LoadImaged

from luna16_monai.ct.folders import cts_at
from luna16_monai.ct.opening import CT
from luna16_monai.ct.units import FEWEST_SLICES
from luna16_monai.geometry.grid import require_inside
from luna16_monai.geometry.volume import Volume
from luna16_monai.machine.folder_lists import Folders, folder_list
from luna16_monai.store.preparation import Preparation, prepare_volume
from luna16_monai.tables.points import PointTable


class InMemoryStore:
    """CTs, each sent through a recipe when it is first asked for; what ``LoadCutoutd`` takes in place of a store.

    Args:
        paths: CT files, folders of DICOM files, or data folders in LUNA16's layout; a text as `folder_list` reads it.
        recipe: a bundle's ``prepare.yaml``.
        spacing_zyx: mm; None for each CT's own.
        kept: volumes that stay in memory; candidates come series by series.
        allow_symlinks: take CTs that are linked into place.

    Attributes:
        cts: the opened CT of each series; none is opened again.
        way: the recipe and the spacing: CTs in two stores of one way are prepared alike.
        wrong: why a series that lies beside others in a folder can't be read.

    Raises:
        FileNotFoundError: a path does not exist, or a folder holds no CT.
        ValueError: two CTs have the same identifier, or one has headers that can't be trusted.
    """

    def __init__(
        self,
        paths: Folders,
        recipe: Path | str,
        spacing_zyx: Sequence[float] | str | None = "file",
        kept: int = 1,
        allow_symlinks: bool = False,
    ) -> None:
        self.cts: dict[str, CT] = {}
        self.wrong: dict[str, ValueError] = {}
        for path in folder_list(paths) if isinstance(paths, Path | str) else paths:
            opened, wrong = cts_at(Path(path), allow_symlinks)
            self.wrong.update(wrong)
            for uid, found in opened:
                if uid in self.cts:
                    raise ValueError(
                        f"{found.name} and {self.cts[uid].name} are both series {uid}: "
                        "name one of them, or rename a file"
                    )
                self.cts[uid] = found
        self.way = (str(Path(recipe).resolve()), str(spacing_zyx))
        self.transform = Preparation.read(Path(recipe), spacing_zyx).build()
        for step in getattr(self.transform, "transforms", ()):
            if isinstance(step, LoadImaged):
                # no float32 copy of a whole CT of which a few boxes are taken
                step._loader.dtype = None
        self.kept = kept
        self._volumes: OrderedDict[str, Volume] = OrderedDict()

    def holding(self, cts: Mapping[str, CT]) -> InMemoryStore:
        """Return a store of the same recipe with other CTs, which are open already."""
        other = copy.copy(self)
        other.cts, other.wrong, other._volumes = dict(cts), {}, OrderedDict()
        return other

    @property
    def series_uids(self) -> tuple[str, ...]:
        """The series of the CTs, sorted."""
        return tuple(sorted(self.cts))

    def volume(self, uid: str) -> Volume:
        """Return a CT on the recipe's grid.

        Raises:
            KeyError: none of the CTs is this series.
        """
        if uid not in self.cts:
            known = ", ".join(self.series_uids[:5])
            raise KeyError(f"series {uid} is none of the CTs ({known}): name its CT with --ct")
        if uid not in self._volumes:
            while len(self._volumes) >= self.kept:
                self._volumes.popitem(last=False)
            self._volumes[uid] = prepare_volume(self.cts[uid], self.transform, True)
        return self._volumes[uid]

    def shorter_than(self, uid: str, shape_zyx: Sequence[int] = (32, 48, 48)) -> str | None:
        """Return a warning of a CT that is shorter than a cutout; None where it is not.

        None too for one of a few slices: the warning of `units.check_hounsfield` is enough.

        Raises:
            KeyError: as `volume`.
        """
        volume = self.volume(uid)
        short = volume.shorter_than(shape_zyx)
        return f"series {uid} {short}" if short and min(volume.scan.shape_zyx) >= FEWEST_SLICES else None

    def require_inside(self, table: PointTable) -> None:
        """Check that every row's series is among the CTs and its point inside.

        Raises:
            ValueError: names the first row for which that is not so.
        """
        for uid in table.series_uids:
            if uid in self.wrong:
                raise self.wrong[uid]
        known = ", ".join(self.series_uids[:3]) + (", ..." if len(self.series_uids) > 3 else "")
        table.require_series(self.series_uids, f"the CTs that were named, which are known by the names {known}")
        for code in np.unique(table.series):
            uid = table.series_uids[code]
            part = table.select(table.series == code)
            question = "does this table belong to this CT, and are its points LPS (else --ras)?"
            require_inside(part.points_xyz, self.cts[uid].geometry, uid, part.place, question)
