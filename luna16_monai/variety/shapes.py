"""The shapes of nodules that recipe 3 draws from.

They are those of recipe 2 with rows and columns as they lie in the patient, since the shipped file has them exchanged;
and without the shapes of patients whose CTs and nodules real benchmarks are measured on (``measured_patients.txt``), so
that weights that are trained on recipe 3 have seen nothing of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from luna16_monai.phantom.lesions import ShapeBank, load_shape_bank


@dataclass(frozen=True)
class AllowedShapes:
    """Shapes that may be used.

    Attributes:
        bank: of all shapes, (z, y, x) each; numbers are those of the shipped file.
        numbers: of the allowed ones, (n,).
    """

    bank: ShapeBank
    numbers: NDArray[np.intp]

    @property
    def patient(self) -> NDArray[np.str_]:
        """The patient of each allowed shape, (n,)."""
        return self.bank.patient[self.numbers]


def measured_patients() -> frozenset[str]:
    """Return LIDC-IDRI's patients whose shapes are left out."""
    text = files("luna16_monai").joinpath("resources", "measured_patients.txt").read_text("utf-8")
    return frozenset(line for line in text.split("\n") if line and not line.startswith("#"))


@cache
def load_allowed_shapes() -> AllowedShapes:
    """Return the shapes that recipe 3 draws from."""
    bank, left_out = load_shape_bank(), measured_patients()
    turned = replace(bank, masks=tuple(np.ascontiguousarray(mask.swapaxes(1, 2)) for mask in bank.masks))
    return AllowedShapes(turned, np.flatnonzero(~np.isin(bank.patient, sorted(left_out))))
