"""Ray: the same results as a pool's, also where a node dies in the middle of preparing CTs and of a fold."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from small_crossval import TINY, plan

from luna16_monai.experiments.crossval import crossval
from luna16_monai.machine import cluster
from luna16_monai.machine.processes import run_tasks
from luna16_monai.store.preparation import Preparation
from luna16_monai.store.prepare import prepare
from luna16_monai.store.reading import Store

ROOT = Path(__file__).parents[2]
try:
    import ray
    from ray.cluster_utils import Cluster
except ModuleNotFoundError:
    ray = None
needs_ray = pytest.mark.skipif(ray is None, reason="Ray is not installed: make test-all, or pip install '.[ray]'")


needs_dashboard = pytest.mark.skipif(
    ray is None or find_spec("aiohttp_cors") is None,
    reason="no Ray with a dashboard: make test-all, pip install '.[ray]'",
)


def square(number: int) -> int:
    return number * number


def refuse(number: int) -> None:
    raise FileNotFoundError(f"no {number}")


def environment(_: int) -> tuple[str | None, str | None]:
    return os.environ.get("RAY_USAGE_STATS_ENABLED"), os.environ.get("OMP_NUM_THREADS")


@pytest.fixture
def nodes() -> Iterator[tuple[Any, Any]]:
    """A cluster whose head does no work, and a node of one core, which is there to be killed."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        yield made, made.add_node(num_cpus=1)
    finally:
        ray.shutdown()
        made.shutdown()


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def running(run_id: str, output_dir: Path) -> list[int]:
    """The processes that run a part of a bundle into a folder."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (place / "cmdline").read_text(encoding="utf-8").split("\0")
            if {run_id, str(output_dir)} <= set(words):
                found.append(int(place.name))
    return found


def parent_of(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[1])


def test_connected_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r"ray is not installed, and --ray needs it: pip install 'luna16_m"):
        list(cluster.run_tasks(square, [1]))
    assert list(cluster.run_tasks(square, [])) == []


@needs_ray
@pytest.mark.slow
def test_run_tasks_on_a_local_cluster_gives_results_and_errors_and_no_reports_of_use():
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with cluster.connected(cluster.LOCAL) as ray_:
        assert sorted(cluster.run_tasks(square, [3, 1, 2])) == [1, 4, 9]
        with pytest.raises(FileNotFoundError, match=r"^no 7$"):
            list(cluster.run_tasks(refuse, [7]))
        with pytest.raises(ValueError, match=r"no node of the cluster has 999 cores and 0 GPUs \(found: \d+ cores"):
            list(cluster.run_tasks(square, [1], cpus=999))
        assert list(cluster.run_tasks(environment, [0])) == [("0", "1")]
        assert ray_._private.worker.get_dashboard_url() in (None, "")
    assert not ray_.is_initialized()


@needs_dashboard
@pytest.mark.slow
def test_dashboard_listens_to_this_machine_alone():
    with cluster.connected(cluster.LOCAL, dashboard=True) as ray_:
        host, port = ray_._private.worker.get_dashboard_url().split(":")
        with urllib.request.urlopen(f"http://{host}:{port}", timeout=60) as answer:
            assert b"<html" in answer.read()
        # /proc/net names local address and state; 0A is listening, 0100007F is 127.0.0.1
        tables = [Path("/proc/net", name).read_text(encoding="ascii").splitlines()[1:] for name in ("tcp", "tcp6")]
        rows = [line.split() for table in tables for line in table]
        listening = [row[1].split(":") for row in rows if row[3] == "0A"]
        assert [address for address, number in listening if int(number, 16) == int(port)] == ["0100007F"]


@needs_ray
@pytest.mark.slow
def test_connected_says_that_nobody_answers():
    with pytest.raises(ConnectionError, match=r"no Ray cluster answers at 127.0.0.1:1 .*use --ray local"):
        list(cluster.run_tasks(square, [1], address="127.0.0.1:1"))


@needs_ray
@pytest.mark.slow
def test_prepare_survives_the_death_of_a_node(nodes, phantom_dir, store_dir, tmp_path):
    made, victim = nodes
    made.add_node(num_cpus=1)
    recipe = Preparation.read(ROOT / "bundles" / "nodule_classification" / "configs" / "prepare.yaml")
    begun = tmp_path / "logs"
    killed = []

    def execute(task: Any, items: Any) -> Iterator[None]:
        for done in cluster.run_tasks(task, items, made.address):
            if not killed:
                # in the middle: one CT is done, both nodes are at work on others
                made.remove_node(victim, allow_graceful=False)
                killed.append(victim)
            yield done

    store = prepare(phantom_dir, tmp_path / "store", recipe, progress=False, execute=execute, log_dir=begun)
    assert killed
    assert store.index == Store(store_dir).index
    for uid in store.series_uids:
        one, other = (folder / f"{uid}.b2nd" for folder in (tmp_path / "store", store_dir))
        assert one.read_bytes() == other.read_bytes()
        assert "finished" in (begun / f"{uid}.log").read_text(encoding="utf-8")


@needs_ray
@pytest.mark.slow
def test_a_fold_survives_the_death_of_its_node(nodes, phantom_dir, store_dir, tmp_path):
    made, victim = nodes
    settings = {**TINY, "max_epochs": "4", "samples_per_epoch": "60", "checkpoint_iterations": "1"}
    one, other = (plan(phantom_dir, store_dir, tmp_path / name, (2,), settings=settings) for name in "ab")
    crossval(one, partial(run_tasks, workers=1), progress=False, draws=20)

    execute = partial(cluster.run_tasks, address=made.address)
    # Ray's test cluster gets nodes from the main thread alone
    with cluster.connected(made.address), ThreadPoolExecutor(1) as threads:
        whole = threads.submit(crossval, other, execute, False, 20)
        wait_for(lambda: list((other.fold_dir(2) / "checkpoints").glob("iteration_*.pt")) or whole.done())
        assert not whole.done(), whole.result()
        # held, so that it cannot end before its node's death has reached it
        (training,) = running("training", other.fold_dir(2))
        os.kill(training, signal.SIGSTOP)
        before = parent_of(training)
        made.remove_node(victim, allow_graceful=False)
        wait_for(lambda: parent_of(training) != before)
        os.kill(training, signal.SIGCONT)
        made.add_node(num_cpus=1)
        whole.result()
    log = (tmp_path / "b" / "logs" / "fold_2.log").read_text(encoding="utf-8")
    assert log.count("run training") >= 2
    assert "going on after iteration" in log
    assert (tmp_path / "a" / "submission.csv").read_text() == (tmp_path / "b" / "submission.csv").read_text()
