"""A store's index and the records of its volumes: read where they are whole, refused or left out where not."""

from __future__ import annotations

import json

import pytest

from luna16_monai.store.index import FORMAT, INDEX, read_entry, read_index


def test_read_index_gives_what_stands_there(tmp_path):
    content = {"format": FORMAT, "series": ["1.2"], "more": None}
    (tmp_path / INDEX).write_text(json.dumps(content), encoding="utf-8")
    assert read_index(tmp_path) == content


def test_read_index_of_a_prepared_store_names_its_format(store_dir):
    assert read_index(store_dir)["format"] == FORMAT


def test_read_index_without_a_store_says_how_to_make_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no store in .*: run luna16 prepare --data DIR --store "):
        read_index(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"store\.json is damaged \(.*\): remove it and run luna16 prepare again"),
        (b'{"format": 1', "is damaged"),
        (b"\xff\xfe", "is damaged"),
        (b"[1]", "is of another version"),
        (b"{}", "is of another version"),
        (b'{"format": 2}', r"is of another version \(this one reads format 1\): prepare the store anew"),
    ],
)
def test_read_index_refuses(tmp_path, content, message):
    (tmp_path / INDEX).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_index(tmp_path)


def test_read_entry_gives_an_object_and_nothing_else(tmp_path):
    sidecar = tmp_path / "1.2.json"
    assert read_entry(sidecar) is None
    for content in ("", "{", "[]", '"text"', "null"):
        sidecar.write_text(content, encoding="utf-8")
        assert read_entry(sidecar) is None
    sidecar.write_text('{"sha256": "00"}', encoding="utf-8")
    assert read_entry(sidecar) == {"sha256": "00"}
