"""Hidden modules are not found, and are afterwards."""

from __future__ import annotations

import sys

import pytest

from luna16_monai.machine.hidden import hidden


def test_hidden_modules_are_found_afterwards_only(tmp_path, monkeypatch):
    (tmp_path / "once_hidden.py").write_text("here = 1\n")
    (tmp_path / "beside_it.py").write_text("here = 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    with hidden("once_hidden"):
        with pytest.raises(ModuleNotFoundError, match="No module named 'once_hidden'"):
            import once_hidden
        import beside_it
    import once_hidden

    assert (once_hidden.here, beside_it.here) == (1, 2)


def test_hiding_ends_where_the_import_fails():
    before = list(sys.meta_path)
    with pytest.raises(ZeroDivisionError), hidden("once_hidden"):
        _ = 1 / 0
    assert sys.meta_path == before


def test_a_module_that_is_loaded_is_not_hidden():
    with hidden("json"):
        import json
    assert json.loads("1") == 1
