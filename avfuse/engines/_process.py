"""The inside of a worker process: it makes a worker, feeds it from a pipe, and sends back what comes of it.

The pipe is its life: when the other end is gone, so is the process, whatever its threads are at.
"""

from __future__ import annotations

import logging
import os
import pickle
import queue
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection

from avfuse.engines import Worker
from avfuse.engines._dispatch import Done, Event, Gone, Made, Moved, Said, deal_with, receipt_of_error, sparse
from avfuse.schema import Recording

END, LET_GO = "end", "let go"  # what comes through the pipe besides recordings


class Letters(logging.Handler):
    """Log messages become events: text, with the traceback that there may be."""

    def __init__(self, send: Callable[[Event], None], level: int) -> None:
        super().__init__(level)
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record."""
        self._send(Said(record.name, record.levelno, self.format(record)))

    def receive_all(self) -> None:
        """Take every message of this process, and show none."""
        root = logging.getLogger()
        root.handlers[:] = [self]
        root.setLevel(self.level)


def serve(pipe: Connection, job: bytes, rank: int, level: int) -> None:
    """Make a worker by a pickled job and let it work until the pipe says that it is enough.

    Parameters
    ----------
    pipe : Connection
    job : bytes
    rank : int
        The worker's number.
    level : int
        Log messages below it stay here.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; it is for the first to decide
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    _Post(pipe, level).serve(job, rank)


class _Post:
    """One worker between the pipe and its threads."""

    def __init__(self, pipe: Connection, level: int) -> None:
        self._pipe, self._level = pipe, level
        self._lock = threading.Lock()
        self._recordings: queue.SimpleQueue[Recording | None] = queue.SimpleQueue()
        self._is_made, self._lets_go = threading.Event(), threading.Event()

    def serve(self, job: bytes, rank: int) -> None:
        threading.Thread(target=self._read, daemon=True).start()
        Letters(self._send, self._level).receive_all()
        try:
            worker: Worker = pickle.loads(job)(rank)
        except Exception as error:
            self._send(Gone(f"could not be made: {type(error).__name__}: {error}", portable(error)))
            return
        self._is_made.set()
        count = max(1, worker.num_side_by_side)
        threads = [threading.Thread(target=self._work, args=(worker,), daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        self._send(Made(count))
        for thread in threads:
            thread.join()
        worker.close()

    def _read(self) -> None:
        """Take in what comes; without the other end there is nothing to live for."""
        while True:
            try:
                message = self._pipe.recv()
            except (EOFError, OSError):
                _end_at_once()
            if message == LET_GO:
                self._lets_go.set()
                if not self._is_made.is_set():
                    _end_at_once()
            self._recordings.put(message if isinstance(message, Recording) else None)

    def _work(self, worker: Worker) -> None:
        while (recording := self._recordings.get()) is not None:
            try:
                receipt = deal_with(worker, recording, self._reporter(recording.name))
            except BaseException as error:
                if self._lets_go.is_set():
                    break
                receipt = receipt_of_error(recording, error)
            self._send(Done(receipt))
        self._recordings.put(None)  # for the next thread

    def _reporter(self, name: str) -> Callable[[int, int], None]:
        """Return what sends progress, and lets go of the recording when that is asked for."""
        send = sparse(lambda num_done, total: self._send(Moved(name, num_done, total)))

        def report(num_done: int, total: int) -> None:
            if self._lets_go.is_set():
                raise SystemExit
            send(num_done, total)

        return report

    def _send(self, event: Event) -> None:
        try:
            with self._lock:
                self._pipe.send(event)
        except OSError:  # the other end is gone, which is seen to where the pipe is read
            pass


def portable(error: Exception) -> Exception:
    """Return an error as it is where it can be pickled, else one that says the same."""
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:
        copy = None
    return error if type(copy) is type(error) else RuntimeError(f"{type(error).__name__}: {error}")


def _end_at_once() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
