"""Read a store's index and the record of each volume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FORMAT = 1
INDEX = "store.json"


def read_index(store_dir: Path) -> dict[str, Any]:
    """Return what stands in a store's ``store.json``.

    Raises:
        FileNotFoundError: there is no store.
        ValueError: it is damaged, or of another version.
    """
    path = store_dir / INDEX
    if not path.is_file():
        raise FileNotFoundError(f"no store in {store_dir}: run luna16 prepare --data DIR --store {store_dir}")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): remove it and run luna16 prepare again") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise ValueError(f"{path} is of another version (this one reads format {FORMAT}): prepare the store anew")
    return index


def read_entry(sidecar: Path) -> dict[str, Any] | None:
    """Return what stands beside a volume; None where it is absent or damaged."""
    try:
        entry = json.loads(sidecar.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return entry if isinstance(entry, dict) else None
