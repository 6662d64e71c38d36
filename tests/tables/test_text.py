"""A CSV file is opened and its header checked in one place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from luna16_monai.tables.text import require_columns


def test_require_columns_gives_their_positions_in_the_order_asked_for():
    assert require_columns(["x", "class", "y"], ("y", "class"), Path("t.csv")) == [2, 1]


@pytest.mark.parametrize(
    ("header", "cure", "message"),
    [
        (["a", "c"], None, "t.csv, line 1: column b is missing (found: 'a, c'): the header must name a, b"),
        (["a", "b", "a"], None, "t.csv, line 1: column a stands there twice (found: 'a, b, a'): the header"),
        (None, "name another file", "t.csv, line 1: column a is missing (found: ''): name another file"),
    ],
)
def test_require_columns_names_file_column_and_cure(header, cure, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        require_columns(header, ("a", "b"), Path("t.csv"), cure)
