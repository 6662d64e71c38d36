"""Our own tables with all their columns."""

from __future__ import annotations

import numpy as np
import pytest
from point_tables import write

from luna16_monai.interchange.luna16 import read_table, write_table
from luna16_monai.interchange.points import CLASS, DIAMETER, PROBABILITY, Points


def test_read_table_takes_every_column_of_numbers(tmp_path):
    header = "seriesuid,coordX,coordY,coordZ,probability,who,diameter_mm,name"
    text = f"{header}\na,1,2,3,0.5,Anna,-1,first\n\nb,4,5,6,,Bert,7,\n"
    points = read_table(write(tmp_path, text, "a.csv"))
    assert list(points.values) == [PROBABILITY, DIAMETER]
    assert (points.names, points.place(1)) == (("first", ""), f"{tmp_path / 'a.csv'}, line 4")
    assert points.value(PROBABILITY)[0] == 0.5
    assert np.isnan([points.value(PROBABILITY)[1], points.value(DIAMETER)[0]]).all()
    assert points.notes == ("column 'who' left out: it holds other things than numbers",)


@pytest.mark.parametrize("cell", ["high", "inf", "1_0", "nan"])
def test_read_table_refuses_what_is_no_number(tmp_path, cell):
    text = f"seriesuid,coordX,coordY,coordZ,class\na,1,2,3,1\na,1,2,4,{cell}\n"
    with pytest.raises(ValueError, match=f"a.csv, line 3: class is '{cell}', not a finite number: mend it"):
        read_table(write(tmp_path, text, "a.csv"))


def test_write_table_keeps_a_name_on_its_line(tmp_path):
    points = Points("rows", ("a",), np.zeros((1, 3)), {CLASS: np.ones(1)}, ("two\nlines, one cell",))
    write_table(tmp_path / "a.csv", points)
    assert read_table(tmp_path / "a.csv").names == ("two lines, one cell",)
