"""Doing a task for many items on a Ray cluster: the same as `processes.run_tasks`, on one machine or many.

Ray gives a task to another node when its own fails, so a task must be one that can be done twice. What it reads and
writes has to lie where every node sees it under the same path. Ray's reports of its use are switched off, its
dashboard too; where it is wanted it listens to this machine alone.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from luna16_monai.machine.errors import root_cause
from luna16_monai.machine.extras import require

Item = TypeVar("Item")

Result = TypeVar("Result")

LOCAL = "local"
LOOPBACK = "127.0.0.1"
SECONDS_TO_ANSWER = 10.0
RETRIES = 5
"""How often an item is begun anew because the node or the process at work on it died."""


@contextmanager
def connected(address: str, dashboard: bool = False) -> Iterator[Any]:
    """Ray, connected to a cluster; what is connected already stays so.

    Args:
        address: of the cluster's head, or "local" for one of this machine's cores alone, which ends with the context.
        dashboard: whether the local one has a dashboard, at http://127.0.0.1:8265.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        ConnectionError: no cluster answers there.
    """
    # before Ray is imported: it asks no one
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    require("ray", "--ray", "ray")
    import ray

    if ray.is_initialized():
        yield ray
        return
    _require_answer(address)
    local = {"include_dashboard": dashboard, "dashboard_host": LOOPBACK}
    try:
        ray.init(
            address=address,
            logging_level=logging.WARNING,
            log_to_driver=False,
            **(local if address == LOCAL else {}),
        )
    except (ConnectionError, ValueError) as error:
        raise ConnectionError(_nobody(address, error)) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _require_answer(address: str) -> None:
    """Ask whether anybody listens there: Ray itself would go on asking for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not (colon and port.isdecimal()):
        return
    try:
        socket.create_connection((host, int(port)), SECONDS_TO_ANSWER).close()
    except OSError as error:
        raise ConnectionError(_nobody(address, error)) from error


def _nobody(address: str, error: Exception) -> str:
    return (
        f"no Ray cluster answers at {address} ({type(error).__name__}): start one with ray start --head, or use "
        "--ray local"
    )


def run_tasks(
    task: Callable[[Item], Result],
    items: Sequence[Item],
    address: str = LOCAL,
    cpus: float = 1,
    gpus: float = 0,
    dashboard: bool = False,
) -> Iterator[Result]:
    """Do a task for each item on a cluster; the results come as they are ready.

    Args:
        task: can be pickled, as the items can; done twice it gives the same.
        items: what to do.
        address: see `connected`.
        cpus: that each item takes of a node.
        gpus: likewise.
        dashboard: see `connected`.

    Raises:
        ValueError: no node has so many of a resource.
        RuntimeError: nodes died under an item again and again.
    """
    if not items:
        return
    with connected(address, dashboard) as ray:
        _require_room(ray, cpus, gpus)

        def work(item: Item) -> Result:
            try:
                return task(item)
            except Exception as error:
                # as in workers.py: the causes of an error do not travel
                raise root_cause(error) from None

        remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(work)
        pending = [remote.remote(item) for item in items]
        try:
            while pending:
                (done,), pending = ray.wait(pending, num_returns=1)
                yield _result(ray, done)
        finally:
            for one in pending:
                ray.cancel(one)


def _result(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise RuntimeError(
            f"the cluster lost an item {RETRIES + 1} times ({type(error).__name__}), perhaps for want of memory: run "
            "the same command again, what is finished stays"
        ) from error


def _require_room(ray: Any, cpus: float, gpus: float) -> None:
    """Ray would wait for ever for a node that has enough."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        return
    found = ", ".join(f"{node.get('CPU', 0):g} cores and {node.get('GPU', 0):g} GPUs" for node in nodes)
    raise ValueError(f"no node of the cluster has {cpus:g} cores and {gpus:g} GPUs (found: {found}): ask for less")
