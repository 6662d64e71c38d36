"""Tasks in worker processes: the results, the errors, and the end of everybody."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from luna16_monai.machine import processes
from luna16_monai.machine.processes import end_workers, run_tasks

# Two workers that sleep; the parent prints their ids and waits.
PARENT = """
from luna16_monai.machine.processes import run_tasks
if __name__ == "__main__":
    from test_processes import say_and_sleep
    list(run_tasks(say_and_sleep, [0, 1], workers=2))
"""


@contextmanager
def parent_of_two() -> Iterator[tuple[subprocess.Popen[bytes], list[int]]]:
    """A parent in a process group of its own, and the ids of its two workers, which sleep for a minute."""
    here = Path(__file__).parent
    parent = subprocess.Popen(
        # as from a terminal: what a shell starts in the background ignores SIGINT
        ["env", "--default-signal=INT", sys.executable, "-c", PARENT],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parents[1])])},
    )
    try:
        assert parent.stdout is not None
        yield parent, [int(parent.stdout.readline()) for _ in range(2)]
    finally:
        parent.kill()
        parent.wait()


def square(number: int) -> int:
    return number * number


def divide(number: int) -> float:
    return 1 / number


def die(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def say_and_sleep(_: int) -> None:
    os.write(1, f"{os.getpid()}\n".encode())  # in one piece, as two of them write at once
    time.sleep(600)


@pytest.mark.parametrize("workers", [1, 2])
def test_run_tasks_gives_every_result(workers):
    assert sorted(run_tasks(square, [3, 1, 2], workers)) == [1, 4, 9]


def test_run_tasks_stays_in_this_process_where_one_worker_is_enough():
    seen: list[int] = []
    list(run_tasks(seen.append, [7], workers=8))
    assert seen == [7]
    assert list(run_tasks(square, [], workers=8)) == []


def test_run_tasks_raises_a_tasks_error():
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        list(run_tasks(divide, [1, 0], workers=2))


def test_run_tasks_says_that_a_worker_died():
    with pytest.raises(RuntimeError, match=r"one of 2 worker processes died.*fewer workers"):
        list(run_tasks(die, [1, 2], workers=2))


def test_run_tasks_leaves_no_worker_behind_a_parent_that_is_killed():
    with parent_of_two() as (_, workers):
        pass
    until = time.monotonic() + 120
    while any(alive(worker) for worker in workers):
        assert time.monotonic() < until, "a worker lives on"
        time.sleep(0.05)


@pytest.mark.parametrize("to_all", [True, False])
def test_run_tasks_ends_the_workers_when_it_is_interrupted(to_all):
    with parent_of_two() as (parent, workers):
        if to_all:  # as Ctrl-C in a terminal does
            os.killpg(parent.pid, signal.SIGINT)
        else:
            parent.send_signal(signal.SIGINT)
        _, told = parent.communicate(timeout=120)  # they would sleep for 600 s
    assert parent.returncode == -signal.SIGINT
    # the parent's own traceback, and nothing of the workers
    assert told.count(b"Traceback") == 1
    assert told.rstrip().endswith(b"KeyboardInterrupt")
    assert not any(alive(worker) for worker in workers)


def test_a_signal_while_a_worker_starts_leaves_none_without_its_task():
    """Interrupted between a worker's start and the sending of its task, the parent left it with an EOFError."""
    code = """
import math, os, signal
from multiprocessing import util
from luna16_monai.machine.processes import run_tasks

start = util.spawnv_passfds

def start_and_signal(*words):
    process = start(*words)
    if "spawn_main" in str(words):  # and not the tracker of resources
        os.kill(os.getpid(), signal.SIGTERM)
    return process

def end(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGTERM, end)
util.spawnv_passfds = start_and_signal
try:
    list(run_tasks(math.sqrt, [1, 4], workers=2))
except KeyboardInterrupt:
    print("ended")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.stderr) == ("ended\n", "")


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def sleep_deaf(ready: Event) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ready.set()
    time.sleep(60)


def sleep(ready: Event) -> None:
    ready.set()
    time.sleep(60)


def test_end_workers_ends_daemons_alone_deaf_ones_too(monkeypatch):
    monkeypatch.setattr(processes, "SECONDS_TO_END", 1.5)
    spawn, called = multiprocessing.get_context("spawn"), []
    before = signal.signal(signal.SIGCHLD, lambda *_: called.append(True))
    others = multiprocessing.active_children()
    events = [spawn.Event() for _ in range(3)]
    kinds = ((sleep, True), (sleep_deaf, True), (sleep, False))
    started = [spawn.Process(target=do, args=(e,), daemon=d) for e, (do, d) in zip(events, kinds, strict=True)]
    try:
        for process in started:
            process.start()
        assert all(event.wait(120) for event in events)
        end_workers()
        assert [process.exitcode for process in started] == [-signal.SIGTERM, -signal.SIGKILL, None]
        assert not called, "the handler of a dead worker must not be called for those that are ended here"
        assert callable(signal.getsignal(signal.SIGCHLD))
    finally:
        signal.signal(signal.SIGCHLD, before)
        started[2].kill()
        started[2].join()
    # of a test before, one may have ended meanwhile
    assert set(multiprocessing.active_children()) <= set(others)
