"""Long jobs as commands of their own: a training, a fold. Each has one log, and goes on where it was stopped.

A job is what a user could type, so that what went wrong can be tried again by hand. Its log is locked for as long as
any process of it lives, also where the one that started it is gone: so nobody starts the same job beside it.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout, lock_descriptor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

logger = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1
LAST_BYTES = 4096
SECONDS_BETWEEN_LOOKS = 2.0
SECONDS_BETWEEN_TRIES = 0.2
"""Between attempts to lock a log that another process has."""


@dataclass(frozen=True)
class Job:
    """A piece of work that runs in processes of its own.

    Attributes:
        name: for the display.
        commands: one after the other, words as for a shell; each does nothing where its work is done.
        log: what they print; added to when the job is run again.
        done: the file that the last command writes last: where it is, the job is finished. None: the commands know.
        folder: in which they run.
        threads: for each process; a training's last bits depend on it.
        gpus: that one run of the job takes for itself; 0 leaves the choice to the command.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    log: Path
    done: Path | None
    folder: Path
    threads: int = 1
    gpus: int = 0


Execute = Callable[[Callable[[Job], str | None], Sequence[Job]], Iterator[str | None]]
"""Runs a function for each job somewhere, and gives the results as they are ready: `processes.run_tasks`, or Ray."""


def run_jobs(jobs: Sequence[Job], execute: Execute, progress: bool = True) -> None:
    """Run the jobs that are not finished; all of them, also where one fails.

    Args:
        jobs: may run at the same time.
        execute: where to.
        progress: whether to show a bar, with the last line of each log.

    Raises:
        RuntimeError: names the jobs that failed, what they said last, and their logs.
    """
    todo = [job for job in jobs if not _is_done(job)]
    failed = []

    def tell() -> str:
        running = [job for job in todo if job.log.is_file() and not _is_done(job)]
        return "; ".join(f"{job.name}: {last_line(job.log)[:60]}" for job in running[:3])

    bar = tqdm(total=len(jobs), initial=len(jobs) - len(todo), desc="jobs", unit="job", disable=not progress)
    with bar, logging_redirect_tqdm(), shown(bar, tell):
        for finished in jobs:
            if finished not in todo:
                logger.info("%s: was finished before", finished.name)
        for failure in execute(run_job, todo):
            bar.update()
            if failure is not None:
                failed.append(failure)
                logger.warning("%s", failure)
    if failed:
        raise RuntimeError(
            f"{len(failed)} of {len(jobs)} jobs failed: {'; '.join(failed)}: mend that and run the same command again, "
            "which goes on where each was stopped"
        )


def run_job(job: Job, watch: Callable[[], None] | None = None) -> str | None:
    """Run one job to its end, here and now.

    Waits where another process is at the same job. The commands get a SIGTERM when this process ends.

    Args:
        job: what to do.
        watch: called every other second meanwhile; what it raises ends the job, in good order.

    Returns:
        None where it is finished, else what went wrong.
    """
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("ab", buffering=0) as log:
        # the commands inherit the open file, and with it the lock
        lock_descriptor(log.fileno(), poll_interval=SECONDS_BETWEEN_TRIES)
        if _is_done(job):
            return None
        with _devices(job) as devices:
            environment = {**os.environ, "OMP_NUM_THREADS": str(job.threads), "PYTHONUNBUFFERED": "1", **devices}
            started = time.monotonic()
            for command in job.commands:
                log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} $ {' '.join(command)}\n".encode())
                tied = [sys.executable, "-m", __name__, str(os.getpid()), *command]
                code = _wait(tied, log, job.folder, environment, watch)
                if code:
                    ended = f"signal {-code}" if code < 0 else f"exit code {code}"
                    return f"{job.name} ended with {ended} ({last_line(job.log) or 'no output'}), see {job.log}"
        if job.done is not None and not job.done.exists():
            return f"{job.name} ended without {job.done.name}, see {job.log}"
        minutes, seconds = divmod(int(time.monotonic() - started), 60)
        logger.info("%s: finished in %d:%02d", job.name, minutes, seconds)
        return None


def last_line(log: Path) -> str:
    """Return what a job said last; empty where it has said nothing yet."""
    if not log.is_file():
        return ""
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - LAST_BYTES))
        lines = stream.read().decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else ""


@contextmanager
def shown(bar: tqdm, tell: Callable[[], str]) -> Iterator[None]:
    """Show beside a bar, every other second, what a function returns."""
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(SECONDS_BETWEEN_LOOKS):
            bar.set_postfix_str(tell())

    watcher = threading.Thread(target=look, daemon=True)
    if not bar.disable:
        watcher.start()
    try:
        yield
    finally:
        ended.set()
        if watcher.is_alive():
            watcher.join()


def _is_done(job: Job) -> bool:
    return job.done is not None and job.done.exists()


def _wait(
    command: Sequence[str],
    log: IO[bytes],
    folder: Path,
    environment: dict[str, str],
    watch: Callable[[], None] | None,
) -> int:
    """Run a command to its end; an interruption of this process is sent on to it as a SIGTERM."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, env=environment)
    try:
        while watch is not None:
            try:
                return process.wait(SECONDS_BETWEEN_LOOKS)
            except subprocess.TimeoutExpired:
                watch()
        return process.wait()
    except BaseException:
        process.send_signal(signal.SIGTERM)
        process.wait()
        raise


@contextmanager
def _devices(job: Job) -> Iterator[dict[str, str]]:
    """Take free GPUs of those that this process may use, and give them back."""
    if not job.gpus:
        yield {}
        return
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = [str(number) for number in range(torch.cuda.device_count())]
    there = visible.split(",")[: len(there)] if visible else there
    if len(there) < job.gpus:
        raise RuntimeError(f"{job.name} wants {job.gpus} GPUs, {len(there)} are here: ask for fewer with --gpus")
    while True:
        with contextlib.ExitStack() as locks:
            taken: list[str] = []
            for name in there:
                # one place for all that this user runs on this machine
                lock = Path(tempfile.gettempdir()) / f"luna16_{os.getuid()}_gpu_{name}.lock"
                if len(taken) < job.gpus and _is_locked(lock, locks):
                    taken.append(name)
            if len(taken) == job.gpus:
                yield {"CUDA_VISIBLE_DEVICES": ",".join(taken)}
                return
        # all or none, so that two jobs that want two each do not wait for each other
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _is_locked(path: Path, locks: contextlib.ExitStack) -> bool:
    """Lock a file until the stack is closed; False where another has it."""
    try:
        locks.enter_context(FileLock(path, timeout=0))
    except Timeout:
        return False
    return True


def main(words: Sequence[str]) -> None:
    """Become a command that ends with the process which started it.

    Called as ``python -m luna16_monai.machine.jobs PID COMMAND...``.
    """
    parent, *command = words
    if sys.platform == "linux":
        # kept across exec; elsewhere a command outlives its parent, and the lock of its log shows it
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):
        sys.exit("the process that started this one is gone")
    # a worker of `processes` is not interrupted by Ctrl-C, a training saves where it is
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
