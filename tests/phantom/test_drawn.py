"""What drawn scans are drawn from."""

from __future__ import annotations

import json

import pytest

from luna16_monai.phantom.drawn import Drawn, drawn_near, read_drawn, write_drawn

ONE = Drawn("synthetic", 2, 5, 11, "", ("LIDC-IDRI-0001", "LIDC-IDRI-0007"))


def test_drawn_comes_back_by_series(tmp_path):
    assert read_drawn(tmp_path) == {}
    write_drawn(tmp_path, {"b": ONE, "a": Drawn("background", 2, 5, 0, "f00", ())})
    assert json.loads((tmp_path / "drawn.json").read_text("utf-8"))["b"] == {
        "kind": "synthetic",
        "recipe": 2,
        "seed": 5,
        "number": 11,
        "background": "",
        "patients": ["LIDC-IDRI-0001", "LIDC-IDRI-0007"],
    }
    assert read_drawn(tmp_path) == {"a": Drawn("background", 2, 5, 0, "f00", ()), "b": ONE}


def test_drawn_near_a_ct_is_found_from_its_subset(tmp_path):
    write_drawn(tmp_path, {"b": ONE})
    (tmp_path / "subset3").mkdir()
    for path in (tmp_path, tmp_path / "b.mhd", tmp_path / "subset3" / "b.mhd"):
        assert drawn_near([path]) == {"b": ONE}
    assert drawn_near([tmp_path.parent / "elsewhere" / "c.mhd"]) == {}


@pytest.mark.parametrize("content", ["{", "[]", '{"a": {}}', '{"a": {"kind": "synthetic", "recipe": "two"}}'])
def test_read_drawn_refuses_damage(content, tmp_path):
    (tmp_path / "drawn.json").write_text(content, "utf-8")
    with pytest.raises(ValueError, match=r"drawn\.json does not say what the scans were drawn from"):
        read_drawn(tmp_path)
