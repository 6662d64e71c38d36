"""DICOM series with changed tags, and what must be said of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest
from ct_files import CANARY, write_dicom
from pydicom.dataset import FileDataset

from luna16_monai.ct.opening import open_ct

Change = Callable[[int, FileDataset], object]


def everywhere(**tags: Any) -> Change:
    """Set tags of every slice; None removes one."""
    return on(range(4), **tags)


def on(slices: Any, **tags: Any) -> Change:
    """Set tags of some slices, counted along the scan (their files are c, a, d and b)."""

    def change(k: int, slice_: FileDataset) -> None:
        for key, value in tags.items() if k in slices else ():
            if value is None:
                delattr(slice_, key)
            else:
                tag = pydicom.datadict.tag_for_keyword(key)
                vr = pydicom.datadict.dictionary_VR(tag).split(" ")[0]
                # written as it is, whether it makes sense or not; only as text can pydicom write what is no number
                vr = "SH" if vr == "DS" and isinstance(value, str) else vr
                slice_[tag] = pydicom.DataElement(tag, vr, value, validation_mode=pydicom.config.IGNORE)

    return change


def write(folder: Path, change: Change) -> Path:
    before = pydicom.config.settings.writing_validation_mode
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    try:
        return write_dicom(folder, change)
    finally:
        pydicom.config.settings.writing_validation_mode = before


def refused(folder: Path, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        open_ct(folder).read()
    assert "\n" not in str(caught.value)
    assert CANARY not in str(caught.value)
