"""Packages of extras that are missing are named with the command that installs them."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

from luna16_monai.machine.extras import hidden, is_installed, require

ROOT = Path(__file__).parents[2]


def test_require_accepts_what_is_installed_and_imports_nothing(monkeypatch):
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    require("report", "the report", "json", "wave")
    assert "wave" not in sys.modules
    assert is_installed("json", "wave")


def test_require_names_the_first_missing_package_what_needs_it_and_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    message = r"^scikit-learn is not installed, and the report needs it: pip install 'luna16_monai\[tune,ray\]'$"
    with pytest.raises(ModuleNotFoundError, match=message) as caught:
        require("tune,ray", "the report", "json", "sklearn", "no_such_package")
    assert caught.value.name == "sklearn"
    assert not is_installed("json", "sklearn")


def test_every_extra_that_the_package_requires_is_declared():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    used = set()
    for path in (ROOT / "luna16_monai").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        calls = re.findall(r'\b(?:require|install)\("([a-z,]+)"', text)
        used |= {extra for call in calls for extra in call.split(",")}
        assert "pip install 'luna16_monai" not in text or path.name == "extras.py", path
    assert used == {"demo", "export", "baselines", "mlflow", "report", "dicom", "ray", "tune", "idc"}
    assert used <= set(declared)


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
