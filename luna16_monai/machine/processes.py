"""Doing a task for many items in worker processes, which end with the process that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing.process import BaseProcess
from typing import TypeVar

from luna16_monai.machine.errors import root_cause

Item = TypeVar("Item")

Result = TypeVar("Result")

SECONDS_TO_END = 2
"""What a worker is given before it is killed."""


def run_tasks(task: Callable[[Item], Result], items: Sequence[Item], workers: int | None = None) -> Iterator[Result]:
    """Do a task for each item; the results come as they are ready.

    Args:
        task: can be pickled, as the items can.
        items: what to do.
        workers: processes; None takes one a core, and where one is enough it is this one.

    An interruption of this process ends the workers at once, whatever they are at.

    Raises:
        RuntimeError: a worker process died.
    """
    workers = min(workers if workers is not None else os.cpu_count() or 1, len(items))
    if workers <= 1:
        yield from map(task, items)
        return
    # spawned, not forked: a fork of a process that already runs torch's threads may hang
    others = multiprocessing.active_children()
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin)
    try:
        with _interruption_held_back():
            pending = [pool.submit(partial(_do, task), item) for item in items]
        for done in as_completed(pending):
            yield done.result()
    except (KeyboardInterrupt, GeneratorExit):
        for worker in multiprocessing.active_children():
            if worker not in others:
                worker.terminate()
        raise
    except BrokenProcessPool as error:
        raise RuntimeError(
            f"one of {workers} worker processes died, perhaps for want of memory: run the same command again with "
            "fewer workers, what is finished stays"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def end_workers() -> None:
    """End the daemonic processes that this one has started, as loaders' workers are, and wait for their end.

    To be called in the main thread, where the process itself is about to end.
    """
    workers = [process for process in multiprocessing.active_children() if process.daemon]
    if not workers:
        return
    # torch's handler raises an error for each loader's worker that ended unasked
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        for end in (BaseProcess.terminate, BaseProcess.kill):
            for process in workers:
                end(process)
            for process in workers:
                process.join(SECONDS_TO_END)
            workers = [process for process in workers if process.is_alive()]
    finally:
        signal.signal(signal.SIGCHLD, before)


@contextmanager
def _interruption_held_back() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back; the processes that are started meanwhile never get the first.

    Ctrl-C in a terminal reaches every process of the command: this one alone answers it, and ends the others. An
    answer while a process is being started would leave that without the task it waits for.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _do(task: Callable[[Item], Result], item: Item) -> Result:
    try:
        return task(item)
    except Exception as error:
        # the causes of an error do not travel from one process to another, so the root goes alone
        raise root_cause(error) from None


def _begin() -> None:
    """Begin as a worker, to be ended by SIGTERM, and with the parent: if that is killed, it would wait for ever."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])

    def watch() -> None:
        if (parent := multiprocessing.parent_process()) is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
