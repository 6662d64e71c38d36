"""grand-challenge's points: their schema holds what we write, and we refuse what it forbids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from ct_files import write_ct
from grand_challenge_schema import MULTIPLE_POINTS
from hypothesis import given
from hypothesis import strategies as st

from luna16_monai.interchange.grand_challenge import as_multiple_points, read_multiple_points
from luna16_monai.interchange.points import PROBABILITY, Points
from luna16_monai.interchange.scans import Scans

DOCUMENT: dict[str, Any] = {
    "name": "Points of interest",
    "type": "Multiple points",
    "points": [
        {"name": "100570_1_19990102", "point": [96.0, 79.8, 0.5], "probability": 0.92},
        {"point": [130.1, 115, -0.5]},
    ],
    "version": {"major": 1, "minor": 0},
}


def saved(folder: Path, document: Any, name: str = "1.3.6.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(document))
    return path


def test_read_multiple_points(tmp_path):
    jsonschema.validate(DOCUMENT, MULTIPLE_POINTS)
    points = read_multiple_points(saved(tmp_path, DOCUMENT), Scans())
    assert points.series == ("1.3.6", "1.3.6")
    assert points.points_xyz.tolist() == [[96, 79.8, 0.5], [130.1, 115, -0.5]]
    assert points.names == ("100570_1_19990102", "")
    assert points.value(PROBABILITY)[0] == 0.92
    assert np.isnan(points.value(PROBABILITY)[1])


@given(
    xyz=st.lists(st.tuples(*[st.floats(-1e4, 1e4)] * 3), max_size=5),
    probability=st.one_of(st.none(), st.floats(0, 1)),
    name=st.text(max_size=20),
)
def test_what_is_written_is_in_the_schema(xyz, probability, name):
    n = len(xyz)
    values = {} if probability is None else {PROBABILITY: np.full(n, probability)}
    document = as_multiple_points(Points("rows", ("a",) * n, np.array(xyz).reshape(n, 3), values, (name,) * n))
    jsonschema.validate(json.loads(json.dumps(document, allow_nan=False)), MULTIPLE_POINTS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "Point"}, "'type' is 'Point', 'Multiple points' was expected: is this the right file?"),
        ({"extra": 1}, "'extra' is no property of 'Multiple points': remove it"),
        ({"version": {"major": 2, "minor": 0}}, "version {'major': 2, 'minor': 0} is not known"),
        ({"version": {"major": 1}}, "version: 'minor' is missing"),
        ({"points": 3}, "'points' is 3, a list was expected"),
        ({"points": [3]}, "point 1: 3 is no JSON object"),
        ({"points": [{}]}, "point 1: 'point' is missing"),
        ({"points": [{"point": [1, 2]}]}, "point 1: 'point' is [1, 2], 3 numbers were expected"),
        ({"points": [{"point": [1, 2, "3"]}]}, "3 numbers were expected"),
        ({"points": [{"point": [1, 2, 3], "diameter": 4}]}, "point 1: 'diameter' is no property"),
        ({"points": [{"point": [1, 2, 3], "probability": 1.5}]}, "point 1: probability is 1.5, expected a probability"),
        ({"points": [{"point": [1, 2, 3], "probability": "high"}]}, "point 1: 'probability' is ['high'], 1 numbers"),
        ({"points": [{"point": [1, 2, 3], "name": 5}]}, "point 1: 'name' is 5, a text was expected"),
    ],
)
def test_read_multiple_points_refuses(tmp_path, change, message):
    with pytest.raises(ValueError, match=r"1\.3\.6\.json") as caught:
        read_multiple_points(saved(tmp_path, {**DOCUMENT, **change}), Scans())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_called_alike_for_each_case_needs_its_ct(tmp_path):
    path = saved(tmp_path, DOCUMENT, "nodule-locations.json")
    with pytest.raises(ValueError, match="does not say which CT its points belong to: name that with --ct"):
        read_multiple_points(path, Scans())
    assert read_multiple_points(path, Scans.open([write_ct(tmp_path / "a.mhd")])).series == ("a", "a")
