"""What identifies the files that a volume was made of, so that a CT that was replaced is noticed.

Size and time are looked at first: where both are as they were, the files are. Where the time alone differs, as after a
copy, the checksum decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any

from luna16_monai.ct.opening import CT
from luna16_monai.machine.files import sha256

KEY = "source_files"
"""Of the record beside a volume; a store that was made before it was kept has none."""


class State(Enum):
    """How the files of a CT compare with a record of them."""

    SAME = "same"
    UNSURE = "another time"
    CHANGED = "changed"


def identify(ct: CT) -> dict[str, Any]:
    """Return what identifies the files of a CT, header and voxels, by their names."""
    return {
        path.name: {"bytes": (stat := path.stat()).st_size, "modified_ns": stat.st_mtime_ns, "sha256": sha256(path)}
        for path in ct.files
    }


def compare(ct: CT, entry: dict[str, Any]) -> State:
    """Return whether the files of a CT are those of a record, by size and time alone."""
    if KEY not in entry:
        return State.SAME
    record = entry[KEY]
    if {path.name for path in ct.files} != set(record):
        return State.CHANGED
    stats = {path.name: path.stat() for path in ct.files}
    if any(stat.st_size != record[name]["bytes"] for name, stat in stats.items()):
        return State.CHANGED
    same = all(stat.st_mtime_ns == record[name]["modified_ns"] for name, stat in stats.items())
    return State.SAME if same else State.UNSURE


def changed_files(now: dict[str, Any], entry: dict[str, Any]) -> Sequence[str]:
    """Return the names of the files whose content is not that of a record, sorted.

    Args:
        now: what `identify` gives.
        entry: the record beside the volume.
    """
    before = entry.get(KEY, now)
    return sorted(
        name for name in {**before, **now} if before.get(name, {}).get("sha256") != now.get(name, {}).get("sha256")
    )
