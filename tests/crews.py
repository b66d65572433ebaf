"""Jobs for engines: a recording's name says what becomes of it, as "03-segfault"; a folder keeps what was tried."""

import logging
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from avfuse import registry
from avfuse.engines import Engine, Worker
from avfuse.schema import Failure, Receipt, Recording, UsageError

FOREVER_S = 120.0  # so long that a test which waits for it fails
log = logging.getLogger(__name__)


def recordings(*fates: str) -> list[Recording]:
    """Return recordings with these fates, numbered."""
    return [Recording(f"{i:02d}-{fate}", Path(f"{i}.mp4"), "train", f"{i}") for i, fate in enumerate(fates)]


def tries(folder: Path, name: str) -> list[tuple[int, int]]:
    """Return, for every time that a recording was tried, the process, and how many recordings that was at."""
    notes = sorted(folder.glob(f"{name}.try-*"))
    return [(int(pid), int(count)) for pid, count in (path.read_text().split() for path in notes)]


def processes(folder: Path) -> set[int]:
    """Return the processes of all workers that were made."""
    return {int(path.name.partition("-")[2]) for path in folder.glob("worker-*")}


@dataclass(frozen=True)
class ToyJob:
    """Makes toy workers, whose notes go to a folder; `trouble` says what making one leads to."""

    folder: Path
    num_side_by_side: int = 1
    trouble: str = ""

    def __call__(self, rank: int) -> "ToyWorker":
        (self.folder / f"worker-{os.getpid()}").write_text(f"{rank}")
        if self.trouble == "usage":
            raise UsageError("these weights are none")
        if self.trouble == "memory":
            raise MemoryError("no room for the weights")
        if self.trouble == "death" or (self.trouble == "second" and rank == 1):
            os._exit(7)
        return ToyWorker(self)


class ToyWorker(Worker):
    """Does what the name of a recording says."""

    def __init__(self, job: ToyJob) -> None:
        self.folder, self.num_side_by_side = job.folder, job.num_side_by_side
        self._num_under_way, self._lock = 0, threading.Lock()

    def process(self, recording: Recording, on_progress: Callable[[int, int], None]) -> Receipt:
        """Keep a note of the try, follow the recording's fate, and say that it is done."""
        number = len(tries(self.folder, recording.name))
        with self._lock:
            self._num_under_way += 1
        (self.folder / f"{recording.name}.try-{number}").write_text(f"{os.getpid()} {self._num_under_way}")
        try:
            on_progress(1, 2)
            receipt = _FATES[recording.name.partition("-")[2]](self, recording, number, on_progress)
            on_progress(2, 2)
            return receipt or Receipt(recording.name, "extracted", num_clips=2)
        finally:
            with self._lock:
                self._num_under_way -= 1

    def close(self) -> None:
        """Keep a note of it."""
        (self.folder / f"closed-{os.getpid()}").touch()

    def await_marks(self, *marks: str) -> None:
        """Wait until all of these notes are there."""
        end_s = time.monotonic() + FOREVER_S / 2
        while not all((self.folder / mark).exists() for mark in marks):
            assert time.monotonic() < end_s, f"waited in vain for {marks}"
            time.sleep(0.005)


class GpuEngine(Engine):
    """Has its workers where there is a GPU, and says so; none is ever made."""

    def __init__(self, is_here: bool = False) -> None:
        self.is_here = is_here

    def ask(self, function: Callable[[], Any]) -> Any:
        """Answer as on a CPU, and change it into what would be answered on a GPU."""
        question: Any = function
        there = replace(question, options=replace(question.options, device="cpu", decode="cpu"))()
        libraries = {**there.spec.libraries, "device": "cuda", "batch_size": "64"}
        return replace(there, device="cuda:1", spec=replace(there.spec, precision="bf16", libraries=libraries))

    def run(self, *_: object) -> Generator[Receipt, None, None]:
        """Do nothing."""
        yield from ()


Fate = Callable[[ToyWorker, Recording, int, Callable[[int, int], None]], Receipt | None]


def _end_by(number: int) -> Fate:
    return lambda *_: signal.raise_signal(number)


def _raise(*_: object) -> None:
    raise KeyError("no such thing")


def _leave(*_: object) -> None:
    sys.exit(3)


def _exit(*_: object) -> None:
    os._exit(3)


def _die_once(worker: ToyWorker, recording: Recording, number: int, on_progress: Callable[[int, int], None]) -> None:
    if number == 0:
        signal.raise_signal(signal.SIGKILL)


def _fail(worker: ToyWorker, recording: Recording, *_: object) -> Receipt:
    return Receipt(recording.name, "failed", failure=Failure(recording.name, "no_face", "nobody"))


def _stop(worker: ToyWorker, recording: Recording, *_: object) -> Receipt:
    return Receipt(recording.name, "stopped", error=(28, "No space left on device", "/there"))


def _eat(*_: object) -> None:
    """Take more memory than there may be; the limit holds for the worker's process, which needs no more later."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 28), hard))
    try:
        np.ones(1 << 30)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _log(worker: ToyWorker, recording: Recording, *_: object) -> None:
    log.warning("%s looks odd", recording.name)


def _hang_once(worker: ToyWorker, recording: Recording, number: int, _: object) -> None:
    if number == 0:
        time.sleep(FOREVER_S)


def _report_slowly(
    worker: ToyWorker, recording: Recording, number: int, on_progress: Callable[[int, int], None]
) -> None:
    """Be at work until somebody asks to let go."""
    (worker.folder / "under-way").touch()
    try:
        for step in range(int(FOREVER_S / 0.01)):
            on_progress(step, step + 2)
            time.sleep(0.01)
    finally:
        (worker.folder / "let-go").touch()


def _meet(worker: ToyWorker, recording: Recording, *_: object) -> None:
    """Wait until another recording is here, too."""
    (worker.folder / f"{recording.name}.here").touch()
    worker.await_marks("00-meet.here", "01-meet.here")


def _die_together(worker: ToyWorker, recording: Recording, number: int, _: object) -> None:
    """Kill the worker when a neighbour is there; alone, each time."""
    if number == 0:
        worker.await_marks("01-neighbour.here")
    signal.raise_signal(signal.SIGSEGV)


def _neighbour(worker: ToyWorker, recording: Recording, number: int, _: object) -> None:
    """Be there while another kills the worker; the second time all is well, with nobody else around."""
    (worker.folder / f"{recording.name}.here").touch()
    if number == 0:
        time.sleep(FOREVER_S)


def _stop_together(worker: ToyWorker, recording: Recording, *_: object) -> Receipt:
    (worker.folder / "stopping").touch()
    worker.await_marks("01-outlast.here")
    return _stop(worker, recording)


def _outlast(worker: ToyWorker, recording: Recording, *_: object) -> None:
    """End after the one that stops."""
    (worker.folder / f"{recording.name}.here").touch()
    worker.await_marks("stopping")
    time.sleep(0.2)


_FATES: dict[str, Fate] = {
    "good": lambda *_: None,
    "fail": _fail,
    "raise": _raise,
    "leave": _leave,
    "exit": _exit,
    "segfault": _end_by(signal.SIGSEGV),
    "kill": _end_by(signal.SIGKILL),
    "once": _die_once,
    "eat": _eat,
    "log": _log,
    "hangonce": _hang_once,
    "slow": _report_slowly,
    "stop": _stop,
    "meet": _meet,
    "together": _die_together,
    "neighbour": _neighbour,
    "stoptogether": _stop_together,
    "outlast": _outlast,
}


def drive(engine: str, folder: str, *fates: str) -> None:
    """Run an engine in a process of its own, for tests that look at it, or end it, from outside."""
    logging.basicConfig(level=logging.ERROR)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which shells have what they run in the background ignore
    for receipt in registry.load("engine", engine)().run(ToyJob(Path(folder)), recordings(*fates), 2, lambda *_: None):
        sys.stdout.write(f"{receipt.recording} {receipt.outcome}\n")
