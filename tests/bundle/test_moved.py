"""Names of before: the table is right, and what older versions have written is read by it."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
from pathlib import Path

import pytest

from luna16_monai.bundle.moved import (
    MODULES,
    NEW,
    as_before,
    new_name,
    old_name,
    recorded_network,
    refuse_moved,
    renamed,
    spelled_out,
)

# written by the last version before the package had packages
BEFORE = Path(__file__).parent / "before"
# nothing has taken their place: two protocols with one user each, a program that is a verb now, and a writer of what is
# made and written in two steps now
GONE = {"checkpoint.Stateful", "datalist.PreparedStore", "demo.main", "structured_report.write_structured_report"}
PACKAGE = Path(__file__).parents[2] / "luna16_monai"


def written(name: str) -> dict:
    return json.loads((BEFORE / name).read_text(encoding="utf-8"))


def names_of_before() -> list[str]:
    """Each public function and class that there was, as module.name."""
    text = re.sub(r"\n +", " ", (BEFORE / "names.txt").read_text(encoding="utf-8"))
    modules = (line.split(": ") for line in text.splitlines())
    return [f"{module}.{name}" for module, names in modules for name in names.split()]


def is_there(name: str) -> bool:
    """Whether a dotted name leads to something."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.util.find_spec(".".join(parts[:length]))
        except ModuleNotFoundError:
            found = None
        if found is not None:
            value = importlib.import_module(".".join(parts[:length]))
            for part in parts[length:]:
                value = getattr(value, part, None)
            return value is not None
    return False


def test_every_name_of_before_has_one_that_is_there():
    names = names_of_before()
    assert len(names) > 340
    moved = {name: new_name(f"luna16_monai.{name}") for name in names}
    assert {name for name, now in moved.items() if not is_there(now)} == GONE
    # what stands where it stood is not in the table
    assert {name for name, now in moved.items() if now == f"luna16_monai.{name}"} == {"cli.main"}


def test_every_module_of_the_table_is_there():
    assert {new for new in MODULES.values() if not is_there(f"luna16_monai.{new}")} == set()
    assert not {new for new in NEW.values() if not is_there(f"luna16_monai.{new}")}


def test_names_of_today_have_not_moved():
    modules = [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in PACKAGE.rglob("*.py")]
    assert len(modules) > 100
    assert {name: new_name(name) for name in modules if new_name(name) != name} == {}
    for name in NEW.values():
        assert new_name(f"luna16_monai.{name}") == f"luna16_monai.{name}"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("networks.NoduleNet", "networks.nodule_net.NoduleNet"),
        ("networks.on_device", "networks.backends.on_device"),
        ("handlers.RunRecord", "training.results.RunRecord"),
        ("handlers.Progress", "training.handlers.Progress"),
        ("ct.CTReader", "store.reader.CTReader"),
        ("spacing.SeparableSpacingd", "store.resampling.SeparableSpacingd"),
        ("datalist", "dataset.candidates"),
        ("geometry.Geometry.from_axes", "geometry.grid.Geometry.from_axes"),
        ("prepare.Recipe.read", "store.preparation.Preparation.read"),
    ],
)
def test_new_name_and_old_name_lead_to_each_other(old, new):
    assert new_name(f"luna16_monai.{old}") == f"luna16_monai.{new}"
    assert old_name(f"luna16_monai.{new}") == f"luna16_monai.{old}"


def test_a_name_of_between_leads_to_that_of_today_and_back_to_the_oldest():
    now = "luna16_monai.evaluation.submission.validation_reference"
    assert new_name("luna16_monai.evaluation.submission.validation_truth") == now
    assert old_name(now) == "luna16_monai.evaluation.validation_truth"


def test_names_of_others_stay():
    for name in (
        "torch.nn.Linear",
        "my.luna16_monai.handlers.Progress",
        "luna16_monai",
        "luna16_monai.mine.handlers.X",
    ):
        assert (new_name(name), old_name(name)) == (name, name)


def test_renamed_changes_names_in_all_texts_and_back():
    before = {"a": ["$import luna16_monai.seeds as seeds", {"_target_": "luna16_monai.cutouts.Store"}], "b": 3}
    now = {
        "a": ["$import luna16_monai.training.seeds as seeds", {"_target_": "luna16_monai.store.reading.Store"}],
        "b": 3,
    }
    assert renamed(before) == now
    assert as_before(now) == before
    assert renamed("my.luna16_monai.seeds") == "my.luna16_monai.seeds"


def test_refuse_moved_names_the_new_one():
    refuse_moved({"_target_": "luna16_monai.networks.nodule_net.NoduleNet", "of": "torch.nn.Linear"}, "mine.yaml")
    with pytest.raises(ValueError) as caught:
        refuse_moved({"network": {"_target_": as_before("luna16_monai.networks.backends.on_device")}}, "mine.yaml")
    assert str(caught.value) == (
        "mine.yaml: luna16_monai." + "networks.on_device has moved: write luna16_monai.networks.backends.on_device"
    )


def test_spelled_out_says_in_full_what_imports_shorten():
    one = {
        "imports": ["$import ignite.distributed as idist", "$import os", "$from a.b import c"],
        "x": "$idist.get_rank() > 0 and midist.idist.x('idist.y') and @idist.z and os.name or c(1) + abc(2)",
        "part": [{"y": "$c.d", "text": "idist.get_rank()"}],
    }
    told = spelled_out(one)
    assert told["x"] == (
        "$ignite.distributed.get_rank() > 0 and midist.idist.x('idist.y') and @idist.z and os.name or a.b.c(1) + abc(2)"
    )
    assert told["part"] == [{"y": "$a.b.c.d", "text": "idist.get_rank()"}]
    assert spelled_out({"x": "$idist.get_rank()"}) == {"x": "$idist.get_rank()"}


def test_recorded_network_is_that_of_an_older_run():
    settings = written("run.json")["settings"]
    network = {"spatial_shape_zyx": [16, 24, 24], "channels": [8, 16, 32, 64], "norm": None, "dropout": 0.0}
    assert recorded_network(settings) == {
        "network_def": network,
        "shape_zyx": [16, 24, 24],
        "spacing_zyx": [1.25, 0.7, 0.7],
    }
    assert recorded_network({**settings, "network_def": {"_target_": "DenseNet121"}}) == {}
    assert recorded_network({**settings, "network_def": None}) == {}
    assert recorded_network({**settings, "shape_zyx": "[16, 24, 24]"}) == {}


def test_the_page_names_what_the_table_gives():
    page = (Path(__file__).parents[2] / "docs" / "coming-from-0.1.md").read_text(encoding="utf-8")
    pairs = re.findall(r"^\| `(luna16_monai\.[\w.]+)` \| `(luna16_monai\.[\w.]+)` \|$", page, re.MULTILINE)
    assert len(pairs) == 11
    assert [new_name(old) for old, _ in pairs] == [new for _, new in pairs]
    assert all(is_there(new) for _, new in pairs)
    example, told = re.search(r'^print\(new_name\("(\S+)"\)\)  # (\S+)$', page, re.MULTILINE).groups()
    assert new_name(example) == told
