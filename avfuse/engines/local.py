"""Processes of this machine, each with threads for the recordings that its worker deals with side by side.

They are started anew (spawned), so that a process that crashes takes no other with it; they end when this one does,
however it ends.
"""

from __future__ import annotations

import logging
import multiprocessing
import pickle
import signal
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import NamedTuple

from avfuse.engines import Engine, Job, OnProgress, num_cores
from avfuse.engines._dispatch import Crew, Event, Gone, Made, dispatch
from avfuse.engines._process import END, LET_GO, serve
from avfuse.schema import Receipt, Recording, UsageError

CLOSE_S, LET_GO_S = 10.0, 1.0  # a process has so long to end by itself
_spawn = multiprocessing.get_context("spawn")


class LocalEngine(Engine):
    """Processes here.

    Parameters
    ----------
    stall_s : float
        A process of which nothing is heard for so long, while it has recordings, is killed, as if it had died; 0 never.
    """

    def __init__(self, stall_s: float = 900.0) -> None:
        if not stall_s >= 0:
            raise UsageError(f"engine 'local': stall_s={stall_s:g}; give seconds, or 0 to wait for ever")
        self._stall_s = stall_s

    def run(
        self, job: Job, recordings: Sequence[Recording], num_workers: int, on_progress: OnProgress
    ) -> Generator[Receipt, None, None]:
        """Yield the receipt of every recording; without a number of workers there is one for each core."""
        crew = _Processes(pickle.dumps(job))
        yield from dispatch(crew, recordings, num_workers or num_cores(), on_progress, self._stall_s)


class _Process(NamedTuple):
    process: SpawnProcess
    pipe: Connection


class _Processes(Crew):
    """Spawned processes; a pipe leads to each."""

    def __init__(self, job: bytes) -> None:
        self._job = job
        self._processes: dict[int, _Process] = {}
        self._made: set[int] = set()  # numbers of those that have a worker

    def start(self, rank: int) -> None:
        """Spawn a process; until it can ignore Ctrl-C, that is kept from it."""
        ours, its = _spawn.Pipe()
        level = logging.getLogger().getEffectiveLevel()
        process = _spawn.Process(target=serve, args=(its, self._job, rank, level), name=f"avfuse-{rank}", daemon=True)
        resource_tracker.ensure_running()  # which would let the signal through again, if it were started meanwhile
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
            self._processes[rank] = _Process(process, ours)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            its.close()

    def give(self, rank: int, recording: Recording) -> bool:
        """Send a recording."""
        try:
            self._processes[rank].pipe.send(recording)
        except OSError:
            return False
        return True

    def wait(self, timeout_s: float | None) -> Iterator[tuple[int, Event]]:
        """Yield what has come through the pipes; the end of one is the end of its process."""
        ranks = {item.pipe: rank for rank, item in self._processes.items()}
        for pipe in connection.wait(list(ranks), timeout_s):
            assert isinstance(pipe, Connection)
            rank = ranks[pipe]
            try:
                event: Event = pipe.recv()
            except (EOFError, OSError):
                event = Gone(self._bury(rank))
            else:
                if isinstance(event, Made):
                    self._made.add(rank)
                elif isinstance(event, Gone):
                    self._bury(rank)
            yield rank, event

    def _bury(self, rank: int) -> str:
        """Take leave of a process that has ended, or is about to; return how it ended."""
        process, pipe = self._pop(rank)
        process.join(CLOSE_S)
        return _put_away(process, pipe)

    def kill(self, rank: int) -> None:
        """Kill a process."""
        process, pipe = self._pop(rank)
        process.kill()
        _put_away(process, pipe)

    def _pop(self, rank: int) -> _Process:
        self._made.discard(rank)
        return self._processes.pop(rank)

    def close(self, *, in_order: bool) -> None:
        """Ask all processes to end, and kill those that have not done so in time, or hold nothing yet."""
        for rank in self._processes.keys() - self._made:
            self.kill(rank)
        for _, pipe in self._processes.values():
            with suppress(OSError):
                pipe.send(END if in_order else LET_GO)
        end_s = time.monotonic() + (CLOSE_S if in_order else LET_GO_S)
        for process, _ in self._processes.values():
            process.join(max(0.0, end_s - time.monotonic()))
        for process, _ in self._processes.values():  # all of them before any is waited for
            process.kill()
        for rank in list(self._processes):
            self.kill(rank)


def _put_away(process: SpawnProcess, pipe: Connection) -> str:
    """Let go of a process that has ended, killing it if it has not; return how it ended."""
    if process.is_alive():
        process.kill()
    process.join()
    exit_code = process.exitcode or 0
    process.close()
    pipe.close()
    if exit_code >= 0:
        return f"ended with exit code {exit_code}"
    name = signal.Signals(-exit_code).name if -exit_code in set(signal.Signals) else "unknown"
    hint = "; somebody killed it, or the system did, out of memory" if name == "SIGKILL" else ""
    return f"was ended by signal {-exit_code} ({name}{hint})"
