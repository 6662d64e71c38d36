"""What the pages say is there: links, commands, flags, settings and defaults; and the site builds without a warning."""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import importlib
import importlib.util
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import SimpleITK as sitk
import yaml
from drawn_scans import random_hu, write_scan

from luna16_monai import __version__
from luna16_monai.bundle.folders import bundle_dir
from luna16_monai.cli import main as cli
from luna16_monai.cli.demo import KEYS
from luna16_monai.geometry.grid import Geometry

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
CONFIGS = ROOT / "bundles" / "nodule_classification" / "configs"
MALIGNANCY = ROOT / "bundles" / "malignancy_classification" / "configs"
DETECTION = ROOT / "bundles" / "nodule_detection" / "configs"
OTHERS = {"malignancy": MALIGNANCY, "detection": DETECTION}
FILES = ("train.yaml", "evaluate.yaml", "inference.yaml")
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *DOCS.glob("*.md"),
        *(ROOT / "bundles").rglob("*.md"),
        ROOT / "data" / "README.md",
        ROOT / "tools" / "README.md",
        ROOT / "tests" / "fuzz" / "README.md",
    ]
)
# the verbs of the parser; argparse shows them nowhere else
VERBS: dict[str, argparse.ArgumentParser] = next(
    action.choices for action in cli.parser()._actions if isinstance(action, argparse._SubParsersAction)
)
COMMON = ("--json", "--quiet", "--debug")


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def code_lines(page: str) -> list[str]:
    """The lines of a page's code blocks, fenced or indented, those that end in a backslash joined to the next."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^ {4,}(.*)$", re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL), re.M)
    lines = [line.strip() for block in fenced for line in block.replace("\\\n", " ").splitlines()]
    return lines + "\n".join(indented).replace("\\\n", " ").splitlines()


def commands(program: str) -> Iterator[tuple[str, list[str]]]:
    """Page and words of every command in a code block that starts with ``program``, the program's words left out."""
    for path in PAGES:
        for line in code_lines(text(path)):
            if line.strip().startswith(f"{program} "):
                # a comment starts behind a space: train#handlers is a word
                words = shlex.split(re.sub(r"\s#.*", "", line.strip().removeprefix(program)))
                # what a table of the terminal's output says is no command
                if words and "->" not in words:
                    yield name(path), words


def table(page: str, heading: str) -> dict[str, tuple[str, str]]:
    """First column to the others, of all tables between a heading and the next of its kind."""
    section = re.split(r"^## ", page.split(f"## {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    return rows(section)


def rows(section: str) -> dict[str, tuple[str, str]]:
    found = {}
    for line in section.splitlines():
        # a bar with a backslash before it stands for itself
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)]
        if len(cells) == 5 and cells[1].startswith("`"):
            assert cells[1] not in found, f"{cells[1]} has two rows"
            found[cells[1]] = (cells[2], cells[3])
    return found


# --- the pages ------------------------------------------------------------------------------------------------------


def test_code_lines_finds_both_kinds_of_blocks():
    page = "text `a b`\n\n    one \\\n        two\n\n```bash\nthree\n```\n"
    assert [line.split() for line in code_lines(page)] == [["three"], ["one", "two"]]


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_links_lead_to_files_that_are_there(path):
    targets = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text(path)))
    for target in targets:
        if re.match(r"https?://|#|mailto:", target):
            continue
        found = path.parent / unquote(target.split("#")[0])
        assert found.exists(), f"{name(path)} links to {target}"
        assert found.resolve().is_relative_to(ROOT)


def test_every_page_is_in_the_navigation():
    def files(entry: Any) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        return [file for inner in (entry if isinstance(entry, list) else entry.values()) for file in files(inner)]

    listed = files(yaml.safe_load(text(ROOT / "mkdocs.yml"))["nav"])
    assert len(listed) == len(set(listed))
    assert set(listed) == {path.name for path in DOCS.glob("*.md")}


def test_site_builds_without_a_warning_and_fetches_nothing(tmp_path):
    pytest.importorskip("material", reason="the extra docs is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    pages = list((tmp_path / "site").glob("*.html"))
    assert {path.stem for path in pages} == {path.stem for path in DOCS.glob("*.md")} | {"404"}
    for path in pages:
        page = text(path)
        # pictures, scripts, styles and fonts come from the site itself; only links in the text lead elsewhere
        fetched = re.findall(r"<(?:img|script|iframe)[^>]+src=\"?([^\">\s]+)", page)
        fetched += re.findall(r"<link[^>]+rel=\"?(?:stylesheet|preconnect|icon)[^>]+href=\"?([^\">\s]+)", page)
        assert fetched
        assert not [address for address in fetched if "//" in address], path.name
        assert "--8&lt;--" not in page
        assert "--8<--" not in page


# --- commands -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "words"), [pytest.param(*found, id=f"{found[0]}: {' '.join(found[1])}") for found in commands("luna16")]
)
def test_luna16_commands_of_the_pages_can_be_called(page, words, capsys):
    if words[-1] in ("--help", "--version") or "VERB" in words:
        return
    try:
        cli.parser().parse_args(words)
    except SystemExit:
        pytest.fail(f"{page}: {capsys.readouterr().err}")


def test_verbs_and_flags_that_the_text_mentions_are_there():
    known = {
        verb: {flag for action in parser._actions for flag in action.option_strings} for verb, parser in VERBS.items()
    }
    seen = 0
    for path in PAGES:
        for verb, words in re.findall(r"`luna16\s+([a-z]+)\b([^`]*)`", text(path)):
            assert verb in VERBS, f"{name(path)} speaks of luna16 {verb}"
            flags = set(re.findall(r"--[a-z][a-z-]*", words))
            assert flags <= known[verb], f"{name(path)}: luna16 {verb} {words}"
            seen += 1
    assert seen > 20


def test_settings_that_the_pages_give_to_the_bundle_are_there():
    settings = {file: set(top(CONFIGS / file)) for file in FILES}
    settings["evaluate.yaml"] |= settings["train.yaml"]
    seen = 0
    for page, words in commands("python -m monai.bundle run"):
        files = [file for word in words for file in settings if file in word] or ["train.yaml"]
        allowed = {"config_file", "args_file", "tracking"}.union(*(settings[file] for file in files))
        if any("malignancy_classification" in word for word in words):
            allowed = allowed.union(*(top(MALIGNANCY / file) for file in (*files, "train.yaml")))
        given = {word.removeprefix("--").split("=")[0] for word in words if word.startswith("--")}
        # a part of an object below the settings, such as train#random_transforms#4#std, or the network whole
        parts = {word for word in given if "#" in word or word == "network_def"}
        objects = set().union(*(yaml.safe_load(text(CONFIGS / file)) for file in files))
        assert {word.split("#")[0] for word in parts} <= objects, f"{page}: {parts} for {files}"
        given -= parts
        assert given <= allowed, f"{page}: {given - allowed} for {files}"
        seen += 1
    assert seen > 8


def test_config_files_that_the_pages_give_to_torchrun_are_there():
    given = {
        (page, file) for page, words in commands("torchrun") for file in re.findall(r"'([^']+\.yaml)'", " ".join(words))
    }
    written_out = {(page, file) for page, file in given if not file.startswith("...")}
    assert len({page for page, _ in written_out}) == 2
    assert {page: file for page, file in written_out if not (ROOT / file).is_file()} == {}


def test_make_targets_that_the_pages_name_are_there():
    targets = set(re.findall(r"^([a-z-]+):", text(ROOT / "Makefile"), re.MULTILINE))
    named = {target for path in PAGES for target in re.findall(r"(?:`|^ {4})make ([a-z-]+)", text(path), re.MULTILINE)}
    assert {"demo", "test", "docs", "setup"} <= named <= targets


def documented(section: dict[str, tuple[str, str]]) -> dict[str, str]:
    """Flag with its metavar to the default as written."""
    return {flag.strip("`"): default for flag, (default, _) in section.items()}


def described(action: argparse.Action) -> str:
    """A flag as commands.md writes it."""
    if not action.option_strings:
        return action.dest
    metavar = action.metavar if isinstance(action.metavar, tuple) else (action.metavar,)
    return " ".join([*action.option_strings, *(part for part in metavar if part and action.nargs != 0)])


def test_commands_page_has_every_verb_once():
    headings = re.findall(r"^## luna16 ([a-z]+)$", text(DOCS / "commands.md"), re.MULTILINE)
    assert sorted(headings) == sorted(VERBS)


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_commands_page_has_every_flag_and_its_default(verb):
    actions = [action for action in VERBS[verb]._actions if action.dest != "help"]
    page = documented(table(text(DOCS / "commands.md"), f"luna16 {verb}"))
    common = documented(rows(text(DOCS / "commands.md").split("\n## ")[0]))
    assert {described(action) for action in actions} == {*page, *COMMON}
    assert set(COMMON) <= set(common)
    for action in actions:
        if action.option_strings and action.option_strings[0] in COMMON:
            continue
        default = page[described(action)]
        if action.required:
            assert default == "required"
        elif action.default not in (None, False):
            assert default == str(action.default)
        elif action.nargs == 0:
            assert default == ""


@pytest.fixture(scope="module")
def answers(phantom_dir, store_dir, tmp_path_factory) -> dict[str, Any]:
    """What each verb prints with --json; those that need or are a server, or train, from their source."""
    folder = tmp_path_factory.mktemp("answers")
    write_scan(folder / "ct", "a", random_hu(0, (10, 12, 14)), None, (0, 0, 0), (1, 1, 1))
    (folder / "points.csv").write_text("seriesuid,coordX,coordY,coordZ\na,1,2,3\n")
    nodules = [line.split(",") for line in text(phantom_dir / "annotations.csv").split()[1:]]
    marks = [",".join([*row[:4], "0.5"]) for row in nodules]
    (folder / "submission.csv").write_text("\n".join(["seriesuid,coordX,coordY,coordZ,probability", *marks]))
    tables = ["--annotations", phantom_dir / "annotations.csv", "--excluded", phantom_dir / "annotations_excluded.csv"]
    tables += ["--seriesuids", phantom_dir / "seriesuids.csv", "--subsets", phantom_dir, "--bootstrap", 20]
    submission = ["--submission", folder / "submission.csv"]
    calls = {
        "phantom": ["--output", folder / "phantom", "--scans", 1, "--workers", 1],
        "doctor": ["--data", phantom_dir, "--store", store_dir],
        "prepare": ["--data", folder / "ct", "--store", folder / "store", "--native", "--workers", 1],
        "verify": ["--store", store_dir],
        "evaluate": [*submission, *tables, "--output", folder / "run"],
        "compare": [*submission, *submission, *tables],
        "predict": [
            *("--ct", folder / "ct" / "a.mhd", "--candidates", folder / "points.csv", "--device", "cpu"),
            *("--backend", "torch", "--output", folder / "out.csv"),
        ],
        "benchmark": ["--cutouts", cutouts(folder / "cutouts"), "--device", "cpu", "--bootstrap", 20],
        "convert": ["--input", folder / "submission.csv", "--output", folder / "points.json", "--to", "slicer"],
        "challenge": ["--input", challenge_case(folder / "case"), "--output", folder, "--device", "cpu"],
        "export": ["--format", "torchscript", "--output", folder / "model.ts"],
        "bundle": ["--output", folder / "bundle"],
        "report": ["--run", folder / "run", "--store", store_dir],
    }
    found: dict[str, Any] = {"download": None}
    for verb, words in calls.items():
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            code = cli.main([verb, "--json", *map(str, words)])
        assert verb == "doctor" or code == 0, verb
        found[verb] = list(json.loads(printed.getvalue()))
    found["download"] = keys_in_source("setup/download", "download", ast.Return)
    found["tune"] = keys_in_source("experiments/tune", "write_trials", ast.Return)
    found["crossval"] = keys_in_source("experiments/crossval", "pool", ast.AnnAssign)
    found["demo"] = ["output", "data", "store", *KEYS]
    found["review"] = keys_in_source("cli/reviewing", "run_review", ast.Assign)
    found["detect"] = keys_in_source("cli/detection", "run_detect", ast.Assign)
    found["bank"] = keys_in_source("cli/data", "run_bank", ast.Assign)
    return found


def cutouts(folder: Path) -> Path:
    """Two labelled cutouts of two patients."""
    folder.mkdir()
    voxels = np.concatenate([random_hu(seed, (20, 20, 20)).ravel() for seed in (0, 1)])
    np.savez(folder / "a.npz", vox=voxels, shape=[[20] * 3] * 2, spacing=[[2.0] * 3] * 2, center=[[9.5] * 3] * 2)
    (folder / "a.csv").write_text("patient,label\nA,1\nB,0\n", encoding="utf-8")
    return folder


def challenge_case(folder: Path) -> Path:
    """A CT of 1 mm that begins at (0, 0, 0) mm, and a nodule in it."""
    (folder / "images" / "ct").mkdir(parents=True)
    sitk.WriteImage(sitk.GetImageFromArray(random_hu(0, (10, 12, 14))), str(folder / "images" / "ct" / "a.mha"))
    points = {"type": "Multiple points", "points": [{"point": [1, 2, 3]}], "version": {"major": 1, "minor": 0}}
    (folder / "nodule-locations.json").write_text(json.dumps(points), encoding="utf-8")
    return folder


def keys_in_source(module: str, name: str, kind: type[ast.Return | ast.Assign | ast.AnnAssign]) -> list[str]:
    """Keys of the one dictionary that a function returns or assigns."""
    tree = ast.parse(text(ROOT / "luna16_monai" / f"{module}.py"))
    (function,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    values = [node.value for node in ast.walk(function) if isinstance(node, kind)]
    (value,) = (value for value in values if isinstance(value, ast.Dict) and value.keys)
    return [ast.literal_eval(key) for key in value.keys if key is not None]


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_commands_page_has_every_key_of_the_json(verb, answers):
    section = text(DOCS / "commands.md").split(f"## luna16 {verb}\n", 1)[1].split("\n## ")[0]
    told = section.split("JSON", 1)[1].split(": ", 1)[1]
    # what stands in brackets explains a key; doctor's second sentence lists the keys of a check
    keys = re.findall(r"`([a-z0-9_]+)`", re.sub(r"\([^)]*\)|: a list of.*", "", told, flags=re.DOTALL))
    assert sorted(keys) == sorted(answers[verb])


# --- configuration --------------------------------------------------------------------------------------------------


NO_SETTINGS = ("builds_on", "imports", "+imports", "initialize")


def top(path: Path) -> dict[str, Any]:
    """The settings of a YAML file: what stands above the line of dashes, or, in prepare.yaml, above the transforms."""
    settings = yaml.safe_load(re.split(r"^# -{20,}$|^transforms:$", text(path), maxsplit=1, flags=re.MULTILINE)[0])
    return {key: value for key, value in settings.items() if key not in NO_SETTINGS}


@pytest.mark.parametrize(
    "file",
    [
        *sorted(path.name for path in CONFIGS.glob("*.yaml")),
        *(f"{name}: {path.name}" for name, configs in OTHERS.items() for path in sorted(configs.glob("*.yaml"))),
    ],
)
def test_configuration_page_has_every_setting_and_its_default(file):
    told = {key.strip("`"): default for key, (default, _) in table(text(DOCS / "configuration.md"), file).items()}
    other, _, same = file.rpartition(": ")
    if other:
        below = top(CONFIGS / same)
        # only what differs from the bundle that it lies over is told again
        settings = {key: value for key, value in top(OTHERS[other] / same).items() if below.get(key, ...) != value}
    else:
        settings = top(CONFIGS / file)
    assert list(told) == list(settings)
    for key, value in settings.items():
        if isinstance(value, str) and value.startswith("$"):
            # an expression is told in words: they have to name each of its texts and keys
            parts = re.findall(r"'([^']+)'|@(\w+)", value)
            missing = [
                part
                for pair in parts
                for part in pair
                if part and part not in told[key].replace("/", " ") and part not in told[key]
            ]
            assert not missing, f"{file}, {key}: {told[key]} leaves out {missing}"
        else:
            assert told[key].startswith("`"), f"{file}, {key}: {told[key]}"
            assert yaml.safe_load(told[key].strip("`")) == value, f"{file}, {key}"


# --- figures that the pages work out --------------------------------------------------------------------------------


def test_coordinates_page_works_its_example_out_right():
    page = text(DOCS / "coordinates.md")
    picture = text(DOCS / "images" / "coordinates.svg")
    straight = Geometry.from_axes((512, 512, 121), (0.7, 0.7, 1.25), (-200.0, -190.0, -340.0), np.eye(3))
    np.testing.assert_allclose(straight.voxel_from_world((-130.0, -106.0, -290.0)), (40, 120, 100), atol=1e-9)
    assert "hu[40, 120, 100]" in picture
    assert "hu[24:56, 96:144, 76:124]" in picture
    (example,) = re.findall(r"^ {4}from luna16_monai.*\n\n(?: {4}.*\n)+", page, re.MULTILINE)
    names: dict[str, Any] = {}
    exec("\n".join(line[4:] for line in example.splitlines() if not line.startswith("    scan.")), names)
    flipped = names["scan"]
    np.testing.assert_allclose(flipped.voxel_from_world((-130.0, -106.0, -290.0)), (40, 391, 411), atol=1e-9)
    np.testing.assert_allclose(flipped.world_from_voxel((40, 391, 411)), (-130, -106, -290), atol=1e-9)
    # both headers describe the same voxels: the flipped one's last voxel is the other's first
    np.testing.assert_allclose(flipped.world_from_voxel((0, 511, 511)), (-200, -190, -340), atol=1e-9)


# --- names of the package -------------------------------------------------------------------------------------------


def dotted_names() -> dict[str, list[str]]:
    """Every ``luna16_monai.a.b`` on pages, in notebooks, YAML, sources and project files, to where it stands."""
    found: dict[str, list[str]] = {}
    for path in sorted(
        [
            *PAGES,
            *DOCS.rglob("*.ipynb"),
            *(ROOT / "bundles").rglob("*.yaml"),
            *(ROOT / "docker").iterdir(),
            *(DOCS / "slurm").iterdir(),
            *(ROOT / "luna16_monai").rglob("*.py"),
            *(ROOT / "tools").glob("*.py"),
            *(ROOT / "benchmarks").glob("*.py"),
            ROOT / "Makefile",
            ROOT / "pyproject.toml",
        ]
    ):
        # what changed earlier is told in the names of then; those on the page are compared in bundle/test_moved.py
        if path.name in ("CHANGELOG.md", "coming-from-0.1.md"):
            continue
        named = re.findall(r"\bluna16_monai(?:\.[A-Za-z_]\w*)+", text(path))
        # mypy looks at the imports of the sources
        imported = (
            []
            if path.suffix == ".py"
            else re.findall(r"\bfrom (luna16_monai[\w.]*) import ([A-Za-z_]\w*(?:, \w+)*)", text(path))
        )
        named += [f"{module}.{part}" for module, parts in imported for part in parts.split(", ")]
        for one in named:
            found.setdefault(one, []).append(name(path))
    return found


def resolve(dotted: str) -> Any:
    """The module or object of a dotted name; raises AttributeError where there is none."""
    path, *parts = dotted.split(".")
    found = importlib.import_module(path)
    while parts and hasattr(found, "__path__") and importlib.util.find_spec(f"{path}.{parts[0]}"):
        path = f"{path}.{parts.pop(0)}"
        found = importlib.import_module(path)
    return functools.reduce(getattr, parts, found)


def test_resolve_tells_a_name_that_is_gone():
    assert resolve("luna16_monai.geometry.grid.Geometry.from_axes") == Geometry.from_axes
    for gone in ("geometry.no_such_module", "geometry.grid.no_such_class", "geometry.grid.Geometry.no_such_method"):
        with pytest.raises(AttributeError, match="no_such"):
            resolve(f"luna16_monai.{gone}")


def test_dotted_names_of_pages_and_configs_are_there():
    names = dotted_names()
    assert len(names) > 40
    gone = {}
    for one, places in names.items():
        try:
            resolve(one)
        except AttributeError as error:
            gone[one] = (str(error), places)
    assert not gone


def test_paths_of_sources_that_the_pages_name_are_there():
    missing = {}
    for path in PAGES:
        if path.name == "CHANGELOG.md":
            continue
        for one in re.findall(r"`((?:luna16_monai|tools|tests|bundles|docker|benchmarks)/[\w./-]+)`", text(path)):
            if not (ROOT / one).exists():
                missing[one] = name(path)
    assert not missing


def test_readme_has_every_package_once_on_its_layer():
    contract = tomllib.loads(text(ROOT / "pyproject.toml"))["tool"]["importlinter"]["contracts"][0]
    layers = [entry.split(" | ") for entry in contract["layers"] if entry != "__main__"][::-1]
    expected = {package: str(number) for number, layer in enumerate(layers, start=1) for package in layer}
    found = table(text(ROOT / "README.md"), "What is inside")
    assert {package.strip("`"): layer for package, (_, layer) in found.items()} == expected
    assert len(expected) == 23
    agents = re.findall(r"^\| (\d) \| (.+) \|$", text(ROOT / "AGENTS.md"), re.MULTILINE)
    assert {package: number for number, names in agents for package in re.findall(r"`(\w+)`", names)} == expected


# --- releases -------------------------------------------------------------------------------------------------------


def test_version_is_the_same_everywhere():
    citation = yaml.safe_load(text(ROOT / "CITATION.cff"))
    assert str(citation["version"]) == __version__
    assert json.loads(text(CONFIGS / "metadata.json"))["version"] == __version__
    newest = re.findall(r"^## (\S+)", text(ROOT / "CHANGELOG.md"), re.MULTILINE)[0]
    assert newest.strip("[],") == __version__


def test_citation_has_what_the_format_asks_for():
    citation = yaml.safe_load(text(ROOT / "CITATION.cff"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert citation["license"] == tomllib.loads(text(ROOT / "pyproject.toml"))["project"]["license"]
    assert {"message", "title", "authors"} <= set(citation)
    for reference in [citation, *citation["references"]]:
        assert {"type", "title", "authors"} <= set(reference)
        assert all("name" in author or "family-names" in author for author in reference["authors"])
    dois = [reference["doi"] for reference in citation["references"] if "doi" in reference]
    assert "10.1016/j.media.2017.06.015" in dois
    assert all(re.fullmatch(r"10\.\d{4,9}(\.\d+)*/[-._;()/:a-zA-Z0-9]+", doi) for doi in dois)


def test_public_ci_runs_what_ci_runs():
    (job,) = yaml.safe_load(text(ROOT / ".github" / "workflows" / "ci.yml"))["jobs"].values()
    assert "bash .ci/run" in [step.get("run") for step in job["steps"]]
    (python,) = (step for step in job["steps"] if step.get("uses", "").startswith("actions/setup-python@"))
    assert python["with"]["python-version"] == "${{ matrix.python }}"
    pythons = job["strategy"]["matrix"]["python"]
    assert job["env"]["PYTHON"] == "python${{ matrix.python }}"
    named = tomllib.loads(text(ROOT / "pyproject.toml"))["project"]["classifiers"]
    assert pythons == re.findall(r"Python :: (3\.\d+)", "\n".join(named)) == ["3.11", "3.12", "3.13"]
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"]) for step in job["steps"] if "uses" in step)
    assert "make check" in text(ROOT / ".ci" / "run")
    (prerequisites,) = re.findall(r"^check:(.*)$", text(ROOT / "Makefile"), re.MULTILINE)
    assert "docs" in prerequisites.split()
    assert bundle_dir().samefile(CONFIGS.parent)
