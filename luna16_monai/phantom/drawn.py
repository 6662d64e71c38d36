"""What each scan of a drawn data set was drawn from: ``drawn.json``.

Two drawn sets of one seed give their scans other identifiers as soon as they hold different numbers of scans, and share
the anatomy all the same. This file says which scans are the same in that sense.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from luna16_monai.machine.files import write_json
from luna16_monai.machine.folder_lists import Folders, folder_list

DRAWN = "drawn.json"


@dataclass(frozen=True, order=True)
class Drawn:
    """What a scan was drawn from.

    Attributes:
        kind: ``synthetic``, or ``background`` for nodules drawn into a real CT.
        recipe: version of what a seed gives.
        seed: of the data set.
        number: of the scan in the data set; with recipe and seed it fixes the anatomy.
        background: SHA-256 of the real CT's voxels; empty where there is none.
        patients: LIDC-IDRI's patients whose nodules' shapes the scan may hold, sorted.
    """

    kind: str
    recipe: int
    seed: int
    number: int
    background: str
    patients: tuple[str, ...]

    @property
    def anatomy(self) -> tuple[str, int, int, int, str]:
        """What two scans share that are drawn alike: all but the patients of the shapes."""
        return self.kind, self.recipe, self.seed, self.number, self.background

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Drawn:
        """Return the record that an object of JSON holds.

        Raises:
            KeyError, ValueError, TypeError: it holds none.
        """
        return cls(
            kind=str(values["kind"]),
            recipe=int(values["recipe"]),
            seed=int(values["seed"]),
            number=int(values["number"]),
            background=str(values["background"]),
            patients=tuple(map(str, values["patients"])),
        )

    def as_json(self) -> dict[str, Any]:
        """Return the object of JSON."""
        return {**asdict(self), "patients": list(self.patients)}


def write_drawn(data_dir: Path, drawn: Mapping[str, Drawn]) -> None:
    """Write ``drawn.json``, by series."""
    write_json(data_dir / DRAWN, {uid: one.as_json() for uid, one in sorted(drawn.items())})


def read_drawn(data_dir: Folders) -> dict[str, Drawn]:
    """Return what each series of a data folder, or of several, was drawn from; nothing where the folder does not say.

    Raises:
        ValueError: the file is damaged.
    """
    return {uid: one for folder in folder_list(data_dir) for uid, one in _read(folder / DRAWN).items()}


def _read(path: Path) -> dict[str, Drawn]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {uid: Drawn.parse(values) for uid, values in content.items()}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} does not say what the scans were drawn from ({error}): remove it, and luna16 phantom writes it "
            "again"
        ) from error


def drawn_near(paths: Iterable[Path]) -> dict[str, Drawn]:
    """Return what the series at some CT files or data folders were drawn from, as far as a file near them says.

    A CT lies in a data folder itself, or one folder deeper, in its subset.
    """
    folders = dict.fromkeys(folder for path in paths for folder in (path, path.parent, path.parent.parent))
    return {uid: one for folder in folders for uid, one in read_drawn(folder).items()}
