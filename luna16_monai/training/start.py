"""Claim the output folder of a run before it starts."""

from __future__ import annotations

from pathlib import Path

import ignite.distributed as idist


def claim(output_dir: Path | str, resume: bool) -> None:
    """Make the output folder, and refuse one that holds a run which is not to be continued; rank 0 does.

    What TensorBoard's writers leave of a run that was refused for its settings, and so never began, is no run.

    Raises:
        FileExistsError: the folder is in use and ``resume`` is off.
    """
    if idist.get_rank() > 0:
        return
    folder = Path(output_dir)
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    used = [name for name in there if name != "validation" and not name.startswith("events.out.tfevents")]
    if used and not resume:
        raise FileExistsError(
            f"output_dir {folder} is in use (it holds {', '.join(used[:5])}): continue that run with --resume true, "
            "or name another output_dir"
        )
    folder.mkdir(parents=True, exist_ok=True)
