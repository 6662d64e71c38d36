"""Lengths, docstrings and test files of the package's modules; import-linter (``make check``) holds the layers."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE, TESTS = Path(__file__).parents[1] / "luna16_monai", Path(__file__).parent
MODULES = sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))
LINES, FUNCTION_LINES, MODULES_OF_A_PACKAGE = 400, 60, 12


@pytest.mark.parametrize("module", MODULES)
def test_module_has_one_idea_and_says_it(module):
    source = (PACKAGE / module).read_text(encoding="utf-8")
    tree = ast.parse(source)
    assert ast.get_docstring(tree)
    assert len(source.splitlines()) <= LINES, "a second idea has moved in: give it a module of its own"
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    long = {f.name: n for f in functions if (n := (f.end_lineno or 0) - f.lineno + 1) > FUNCTION_LINES}
    assert not long, "part these at their paragraphs"


@pytest.mark.parametrize("package", sorted({path.parent for path in PACKAGE.glob("*/__init__.py")}))
def test_package_lists_its_modules_and_holds_nothing_else(package):
    tree = ast.parse((package / "__init__.py").read_text(encoding="utf-8"))
    docstring = ast.get_docstring(tree)
    assert docstring
    assert len(tree.body) == 1
    modules = {path.stem for path in package.glob("*.py")} - {"__init__"}
    assert modules == {line.split("``")[1] for line in docstring.splitlines() if line.startswith("- ``")}
    assert len(modules) <= MODULES_OF_A_PACKAGE


@pytest.mark.parametrize("module", [name for name in MODULES if "/" in name and not name.endswith("__init__.py")])
def test_module_has_a_test_file_of_its_name(module):
    package, name = module.split("/")
    assert (TESTS / package / f"test_{name}").is_file()


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_no_private_name_of_another(module):
    tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    ours = [
        node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and "luna16_monai" in (node.module or "")
    ]
    names = {one.name for node in ours for one in node.names} - {"__version__"}
    assert not {name for name in names if name.startswith("_")}


def test_no_test_file_imports_another():
    for path in TESTS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [one.name for one in node.names] if isinstance(node, ast.Import) else []
            assert not [name for name in names if name.split(".")[-1].startswith("test_")], path.name


def test_no_module_is_a_drawer_for_everything():
    names = {path.stem for path in PACKAGE.rglob("*.py")}
    assert not names & {"utils", "util", "base", "common", "helpers", "misc", "core", "dto", "registry", "factory"}


def test_bundles_have_no_scripts():
    assert not list((PACKAGE.parent / "bundles").rglob("*.py"))
