"""Engines: how recordings are spread over workers.

Contract
--------
``Plug(**arguments)`` takes what a user gives as ``--engine-option KEY=VALUE``: plain keywords with defaults of type
bool, int, float or str. ``run(job, recordings, num_workers, on_progress)`` yields one `Receipt` for every recording, in
the order in which they are done. A job is a picklable callable: ``job(rank)`` makes, in the process of each worker, a
`Worker`, whose `process` deals with one recording and commits what came of it. Only recordings travel to a worker, and
only receipts and progress back.

What a recording does wrong is its receipt's affair; an engine sees to what a recording cannot say itself. One whose
worker died is tried again at most `MAX_RETRIES` times, alone from then on, and then has a failure ``worker_died`` for
its receipt, with ``is_recorded`` False, as nobody could record it. The others go on. A receipt ``stopped`` ends the
run: nothing new is begun, what is under way is left to end, and that receipt is the last. Closing the generator ends
the workers: what is under way then is given up, and nothing of it is committed.

``ask(function)`` answers a question where workers are to be: what they have, a GPU say, the first process may lack.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from avfuse.schema import Receipt, Recording

MAX_RETRIES = 2
_CPU_SHARE = Path("/sys/fs/cgroup/cpu.max")
_Answer = TypeVar("_Answer")
OnProgress = Callable[[str, int, int], None]
"""Told the name of a recording, how many of its clips are done, and of how many."""


class Worker(ABC):
    """What deals with recordings in one process.

    Attributes
    ----------
    num_side_by_side : int
        Recordings that it deals with at once, each in a thread of its own.
    """

    num_side_by_side: int = 1

    @abstractmethod
    def process(self, recording: Recording, on_progress: Callable[[int, int], None]) -> Receipt:
        """Deal with one recording and commit what came of it; again, it does nothing but say so.

        Whatever is wrong with the recording, or with the machine, is in the receipt; nothing is raised.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of everything; nothing is processed then."""


Job = Callable[[int], Worker]
"""Makes a worker in its process, from the worker's number, counted from 0; picklable."""


class Engine(ABC):
    """How recordings are spread over workers; see the module's contract.

    Raises
    ------
    UsageError
        If an argument cannot be used, or what the engine stands on is not installed.

    Attributes
    ----------
    is_here : bool
        Whether its workers share this machine, so that it is known how many there is room for.
    most_workers : int or None
        How many it can have; None for any number.
    """

    is_here: bool = True
    most_workers: ClassVar[int | None] = None

    @abstractmethod
    def __init__(self, **arguments: Any) -> None: ...

    def ask(self, function: Callable[[], _Answer]) -> _Answer:
        """Return what a function returns in a place such as a worker's: here, unless workers are to be elsewhere.

        Parameters
        ----------
        function : callable
            Picklable, as its answer.

        Raises
        ------
        UsageError
            If there is no such place.
        OSError
            If what was asked ended without an answer.
        Exception
            What the function raises.
        """
        return function()

    @abstractmethod
    def run(
        self, job: Job, recordings: Sequence[Recording], num_workers: int, on_progress: OnProgress
    ) -> Generator[Receipt, None, None]:
        """Yield the receipt of every recording.

        Parameters
        ----------
        job : callable
        recordings : sequence of Recording
        num_workers : int
            Workers side by side; 0 lets the engine choose.
        on_progress : callable
            May be called from the thread that iterates; an engine whose workers are far away need not call it.
        """


def num_cores() -> int:
    """Return the number of cores that this process may use: of its affinity, and of its container's share of time."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CPU_SHARE.read_text(encoding="ascii").split()
        return max(1, min(count, round(int(quota) / int(period))))
    except (OSError, ValueError):  # there is no such file, or no limit
        return count
