"""JSON is read strictly, and what is wrong is said with its place."""

from __future__ import annotations

import re

import pytest

from luna16_monai.interchange import files
from luna16_monai.interchange.files import member, number, numbers, read_json, shown


def test_read_json_takes_a_byte_order_mark(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": [1, 2.5]}')
    assert read_json(tmp_path / "a.json") == {"a": [1, 2.5]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{\n"a": }', "a.json, line 2: Expecting value: save it as JSON anew"),
        (b"[NaN]", "a.json holds NaN, which is no number in JSON: mend or remove it"),
        (b"[-Infinity]", "a.json holds -Infinity, which is no number in JSON"),
        (b'"\xff"', "a.json is no text in UTF-8 (invalid start byte)"),
        (b"[" * 200_000, "a.json is nested too deep"),
    ],
)
def test_read_json_refuses(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_json(tmp_path / "a.json")


def test_read_json_refuses_a_large_file_before_it_is_read(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_bytes(b'["123456"]')
    monkeypatch.setattr(files, "LARGEST_BYTES", 10)
    assert read_json(tmp_path / "a.json") == ["123456"]
    monkeypatch.setattr(files, "LARGEST_BYTES", 9)
    with pytest.raises(ValueError, match=r"a.json has more than 9 bytes"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("of", "kind", "message"),
    [
        ([1], str, "point 1: [1] is no JSON object"),
        ({"b": 1, "c": 2}, str, "point 1: 'a' is missing (found: 'b', 'c'): add it"),
        ({"a": 3}, str, "point 1: 'a' is 3, a text was expected: mend it"),
        ({"a": True}, int, "point 1: 'a' is True, a number was expected"),
        ({"a": None}, (list, dict), "point 1: 'a' is None, a list or an object was expected"),
        ({"a": "x"}, (int, float), "point 1: 'a' is 'x', a number was expected"),
    ],
)
def test_member_refuses(of, kind, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        member(of, "a", kind, "point 1")


def test_member_gives_what_is_there():
    assert member({"a": 2}, "a", (int, float), "point 1") == 2


def test_numbers_are_as_many_as_asked_and_finite():
    assert numbers([1, 2.5], 2, "f", "point") == [1.0, 2.5]
    assert number(3, "f", "diameter") == 3.0
    for values, message in (
        ([1], "f: point is [1], 2 numbers were expected"),
        ("12", "f: point is '12', 2 numbers were expected"),
        ([1, True], "f: point is [1, True], 2 numbers were expected"),
        ([1, 10**400], "which is not finite"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            numbers(values, 2, "f", "point")


def test_shown_cuts_a_long_value_to_sixty_letters():
    assert shown("a" * 58) == f"'{'a' * 58}'"
    assert shown("a" * 59) == f"'{'a' * 56}..."
    assert len(shown(list(range(100)))) == 60
