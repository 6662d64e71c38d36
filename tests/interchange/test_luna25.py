"""LUNA25's cases."""

from __future__ import annotations

import json

import pytest

from luna16_monai.interchange.formats import format_of, read
from luna16_monai.interchange.luna25 import Clinical, read_clinical


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"age": 61, "gender": "Female"}, Clinical(61.0, "Female")),
        ({"Age_at_StudyDate": 61.5, "Gender": None}, Clinical(61.5, None)),
        ({}, Clinical(None, None)),
    ],
)
def test_read_clinical(tmp_path, document, expected):
    (tmp_path / "c.json").write_text(json.dumps(document))
    assert read_clinical(tmp_path / "c.json") == expected


@pytest.mark.parametrize(("document", "message"), [([], "is no JSON object"), ({"age": "old"}, "'age' is 'old'")])
def test_read_clinical_refuses(tmp_path, document, message):
    (tmp_path / "c.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=message):
        read_clinical(tmp_path / "c.json")


def test_training_table_is_told_by_its_header_and_read_as_points(tmp_path):
    header = "SeriesInstanceUID,StudyDate,CoordX,CoordY,CoordZ,PatientID,NoduleID,AnnotationID,label"
    (tmp_path / "a.csv").write_text(f"{header}\na,19990102,1,2,3,100570,1,100570_1_19990102,1\n")
    assert format_of(tmp_path / "a.csv") == "luna25"
    points = read(tmp_path / "a.csv")
    assert (points.series, points.names) == (("a",), ("100570_1_19990102",))
    assert points.value("malignant").tolist() == [1]
