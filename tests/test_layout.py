"""The package's floors: a module imports from lower floors, or from its own without a loop."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "luna16_monai"
FLOORS = {
    1: "errors files workers ranks cluster geometry metaimage hits froc candidates calibration networks seeds "
    "resampling roc spacing",
    2: "ct dicom datalist augmentation bundle evaluation results scores handlers checkpoint malignancy decisions "
    "tracking",
    3: "cutouts prepare slices trees anatomy scanner lesions placement detector synthesis phantom background baselines "
    "archives download doctor ruler",
    4: "transforms export inference charts report review explanation structured_report prediction jobs crossval trials "
    "tune",
    5: "console verbs job_verbs cli demo __main__",
}
FLOOR = {name: floor for floor, names in FLOORS.items() for name in names.split()}
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


def imported(source: str) -> set[str]:
    """The modules of the package that a source imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import hides the module's name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("luna16_monai.")}
    return found & set(MODULES)


IMPORTS = {name: imported((PACKAGE / f"{name}.py").read_text(encoding="utf-8")) for name in MODULES}


def test_imported_finds_every_form_of_an_import():
    source = (
        "import luna16_monai.machine.files\n"
        "import luna16_monai.ct as reading, os\n"
        "from luna16_monai import __version__, hits\n"
        "from luna16_monai.store.reading import Store\n"
        "def later():\n    from luna16_monai.store.prepare import prepare\n"
        "from monai import bundle\n"
    )
    assert imported(source) == {"files", "ct", "hits", "cutouts", "prepare"}
    with pytest.raises(AssertionError, match="a relative import"):
        imported("from . import files")


def test_every_module_has_its_floor():
    assert set(MODULES) - set(FLOOR) == set(), "name its floor in FLOORS"
    assert set(FLOOR) - set(MODULES) == set(), "it is gone: take it out of FLOORS"
    assert len(FLOOR) == sum(len(names.split()) for names in FLOORS.values()), "a module stands on two floors"


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_from_its_own_floor_and_below(module):
    above = {name for name in IMPORTS[module] if FLOOR[name] > FLOOR[module]}
    assert not above, f"{module} (floor {FLOOR[module]}) imports {above} from above"


def test_modules_import_each_other_without_a_loop():
    remaining = {name: set(names) for name, names in IMPORTS.items()}
    while remaining:
        free = {name for name, names in remaining.items() if not names & remaining.keys()}
        assert free, f"these import each other in a circle: {sorted(remaining)}"
        remaining = {name: names for name, names in remaining.items() if name not in free}


def test_no_module_is_a_drawer_for_everything():
    names = {path.stem for path in PACKAGE.rglob("*.py")}
    assert not names & {"utils", "util", "base", "common", "helpers", "misc", "core", "dto", "registry", "factory"}
    assert not [path for path in PACKAGE.iterdir() if path.is_dir() and (path / "__init__.py").exists()]


def test_init_holds_the_version_and_nothing_else():
    docstring, version = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")).body
    assert isinstance(docstring, ast.Expr)
    assert isinstance(docstring.value, ast.Constant)
    assert isinstance(version, ast.Assign)
    assert [target.id for target in version.targets if isinstance(target, ast.Name)] == ["__version__"]


@pytest.mark.parametrize("module", MODULES)
def test_module_says_what_it_is(module):
    assert ast.get_docstring(ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8")))


def test_bundles_have_no_scripts():
    assert not list((PACKAGE.parent / "bundles").rglob("*.py"))
