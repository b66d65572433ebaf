"""Actors of a Ray cluster, or of a Ray that is started on this machine for the run.

Ray places the workers and tells of those that died, with their process or with their machine; what becomes of their
recordings is decided here, as for every engine. Recordings go out and receipts come back, features never.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import pickle
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from threading import Lock
from typing import Any, NamedTuple, TypeVar, cast

from avfuse.engines import MAX_RETRIES, Engine, Job, OnProgress, Worker
from avfuse.engines._cluster import connected, first_line, room_for
from avfuse.engines._dispatch import (
    MAKING_S,
    Crew,
    Done,
    Event,
    Gone,
    Made,
    Moved,
    deal_with,
    dispatch,
    receipt_of_error,
    sparse,
)
from avfuse.engines._process import Letters, portable
from avfuse.schema import Receipt, Recording, UsageError

# Behind _cluster, which says what to do where it is missing.
# isort: split
import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError

log = logging.getLogger(__name__)

MAX_SIDE_BY_SIDE = 32  # threads of an actor, which Ray wants to know before there is a worker to ask
NEWS_S = 2.0  # between two questions how far an actor is
ROOM_S = 30.0  # between two looks for room in a cluster
CLOSE_S = 10.0
_Answer = TypeVar("_Answer")


class RayEngine(Engine):
    """Actors, wherever Ray has room for them.

    Parameters
    ----------
    address : str
        Of a cluster to join: ``auto`` on one of its machines, or HOST:PORT. Without it Ray is started here for the run.
    num_cpus, num_gpus : float
        What each worker takes of its machine.
    stall_s : float
        An actor of which nothing is heard for so long, while it has recordings, is killed, as if it had died; 0 never.
    """

    def __init__(self, address: str = "", num_cpus: float = 1.0, num_gpus: float = 0.0, stall_s: float = 900.0) -> None:
        for name, value in (("num_cpus", num_cpus), ("num_gpus", num_gpus), ("stall_s", stall_s)):
            if not value >= 0:
                raise UsageError(f"engine 'ray': {name}={value:g}; give a number from 0")
        if num_cpus == num_gpus == 0:
            raise UsageError("engine 'ray': num_cpus=0 num_gpus=0; a worker takes something of its machine")
        self.is_here = not address
        self._address, self._stall_s = address, stall_s
        self._takes = {"CPU": num_cpus, "GPU": num_gpus}

    def run(
        self, job: Job, recordings: Sequence[Recording], num_workers: int, on_progress: OnProgress
    ) -> Generator[Receipt, None, None]:
        """Yield the receipt of every recording; without a number of workers there are as many as the cluster holds."""
        if not recordings:
            return
        num_workers = min(num_workers, len(recordings))
        with self._connected(num_workers):
            room = room_for(self._takes)
            if num_workers > room:
                log.warning("the Ray cluster has room for %d of %d workers", room, num_workers)
            crew = _Actors(job, self._takes)
            yield from dispatch(crew, recordings, min(num_workers or room, room), on_progress, self._stall_s)

    def ask(self, function: Callable[[], _Answer]) -> _Answer:
        """Return what a function returns in an actor, which takes of its machine what a worker does.

        One that dies is replaced as often as one with a recording is.
        """
        with self._connected(1):
            for _ in range(MAX_RETRIES):
                try:
                    return self._ask_once(function)
                except RayError as ending:
                    log.warning("the worker that was asked %s", _tell_end(ending))
            try:
                return self._ask_once(function)
            except RayError as ending:
                told = f"no worker could be made to extract with: the one that was asked {_tell_end(ending)}"
                raise ChildProcessError(errno.ECHILD, told) from ending

    def _ask_once(self, function: Callable[[], _Answer]) -> _Answer:
        room_for(self._takes)
        post = _hire(self._takes).remote(logging.getLogger().getEffectiveLevel())
        try:
            self._await_room(post)
            answer, error = ray.get(post.answer.remote(pickle.dumps(function), sys.path))
        finally:
            with suppress(RayError):
                ray.kill(post)
        if error is not None:
            raise error
        return cast(_Answer, answer)

    def _connected(self, num_workers: int) -> AbstractContextManager[None]:
        return connected(self._address, max(os.cpu_count() or 1, math.ceil(num_workers * self._takes["CPU"])))

    def _await_room(self, post: Any) -> None:
        """Wait for an actor to be there: as long as for a worker."""
        there = [post.news.remote()]
        limit_s = max(self._stall_s, MAKING_S) if self._stall_s else math.inf
        end_s = time.monotonic() + limit_s
        while not ray.wait(there, timeout=ROOM_S)[0]:
            room_for(self._takes)  # machines may have left
            if time.monotonic() >= end_s:
                raise UsageError(
                    f"the Ray cluster had no room for a worker for {limit_s:g} s: others take all of it; try again "
                    "later, give less with --engine-option num_cpus or num_gpus, or wait longer, with stall_s"
                )
            log.warning("the Ray cluster has no room for a worker yet; waiting")
        ray.get(there)


class _Post:
    """The actor: a worker on some machine, with what it has to tell."""

    def __init__(self, level: int) -> None:
        self._lock = Lock()
        self._news: list[Event] = []
        Letters(self._keep, level).receive_all()

    def make(self, job: bytes, rank: int, path: Sequence[str]) -> int | Gone:
        """Make the worker by a pickled job, whose modules may be on `path`; return how much it takes side by side."""
        try:
            self._worker: Worker = _unpickled(job, path)(rank)
        except Exception as error:
            return Gone(f"could not be made: {type(error).__name__}: {error}", portable(error))
        num_side_by_side: int = self._worker.num_side_by_side
        return min(MAX_SIDE_BY_SIDE, num_side_by_side)

    def answer(self, function: bytes, path: Sequence[str]) -> tuple[Any, Exception | None]:
        """Return what a pickled function returns, whose modules may be on `path`, or what it raises."""
        try:
            return _unpickled(function, path)(), None
        except Exception as error:
            return None, portable(error)

    def process(self, recording: Recording) -> list[Event]:
        """Deal with a recording; return the news, its receipt last."""
        name = recording.name
        tell = sparse(lambda num_done, total: self._keep(Moved(name, num_done, total)))
        try:
            receipt = deal_with(self._worker, recording, tell)
        except SystemExit as error:  # would end the actor
            receipt = receipt_of_error(recording, error)
        return [*self.news(), Done(receipt)]

    def news(self) -> list[Event]:
        """Return what has happened since the last time."""
        with self._lock:
            news, self._news = self._news, []
        return news

    def close(self) -> None:
        """Let the worker go."""
        self._worker.close()

    def _keep(self, event: Event) -> None:
        with self._lock:
            self._news.append(event)


def _unpickled(function: bytes, path: Sequence[str]) -> Callable[..., Any]:
    sys.path.extend(folder for folder in path if folder not in sys.path)
    return cast(Callable[..., Any], pickle.loads(function))


def _hire(takes: Mapping[str, float]) -> Any:
    """Return the actor's class for Ray, which finds room for each that is made."""
    return ray.remote(concurrency_groups={"news": 1})(_Post).options(
        num_cpus=takes["CPU"],
        num_gpus=takes["GPU"],
        max_restarts=0,
        max_task_retries=0,
        max_concurrency=MAX_SIDE_BY_SIDE,
    )


class _Asked(NamedTuple):
    rank: int
    method: str


class _Actors(Crew):
    """Actors, and what they were asked and have not answered yet."""

    def __init__(self, job: Job, takes: dict[str, float]) -> None:
        self._job = ray.put(pickle.dumps(job))
        self._post = _hire(takes)
        self._actors: dict[int, Any] = {}
        self._asked: dict[Any, _Asked] = {}
        self._news_s: dict[int, float] = {}  # when each actor was asked for news

    def start(self, rank: int) -> None:
        """Ask Ray for an actor; it comes when there is room."""
        self._actors[rank] = self._post.remote(logging.getLogger().getEffectiveLevel())
        self._news_s[rank] = time.monotonic()
        self._ask(rank, "make", self._job, rank, sys.path)

    def give(self, rank: int, recording: Recording) -> bool:
        """Send a recording."""
        self._ask(rank, "process", recording)
        return True

    def _ask(self, rank: int, name: str, *arguments: Any) -> None:
        method = getattr(self._actors[rank], name)
        if name == "news":
            method = method.options(concurrency_group="news")
        self._asked[method.remote(*arguments)] = _Asked(rank, name)

    def wait(self, timeout_s: float | None) -> Iterator[tuple[int, Event]]:
        """Yield what actors answer."""
        self._ask_for_news()
        patience_s = NEWS_S if timeout_s is None else min(NEWS_S, timeout_s)
        ready, _ = ray.wait(list(self._asked), num_returns=1, timeout=patience_s)
        for ref in ready:
            rank, method = self._asked.pop(ref)
            for event in self._answer(ref, method):
                if isinstance(event, Gone):
                    self.kill(rank)
                yield rank, event

    def _ask_for_news(self) -> None:
        """Ask the actors that are at work, each now and then, and none twice before it has answered."""
        busy = {asked.rank for asked in self._asked.values() if asked.method == "process"}
        waited_for = {asked.rank for asked in self._asked.values() if asked.method == "news"}
        now_s = time.monotonic()
        for rank in busy - waited_for:
            if now_s - self._news_s[rank] >= NEWS_S:
                self._news_s[rank] = now_s
                self._ask(rank, "news")

    @staticmethod
    def _answer(ref: Any, method: str) -> list[Event]:
        """Return what came of a question."""
        try:
            answer = ray.get(ref)
        except RayTaskError as error:  # the actor is there, but what it was asked failed outside of the worker's own
            return [Gone(f"failed: {first_line(error.cause)}", portable(error.cause))]
        except RayError as error:
            return [Gone(_tell_end(error))]
        if method == "make":
            return [answer if isinstance(answer, Gone) else Made(answer)]
        return list(answer)

    def kill(self, rank: int) -> None:
        """Kill an actor, or give up waiting for it."""
        self._asked = {ref: asked for ref, asked in self._asked.items() if asked.rank != rank}
        with suppress(RayError):
            ray.kill(self._actors.pop(rank), no_restart=True)

    def close(self, *, in_order: bool) -> None:
        """End all actors; a Ray that was started for them ends later."""
        if in_order:
            made = self._actors.keys() - {asked.rank for asked in self._asked.values() if asked.method == "make"}
            ray.wait([self._actors[rank].close.remote() for rank in made], num_returns=len(made), timeout=CLOSE_S)
        for rank in list(self._actors):
            self.kill(rank)


def _tell_end(error: RayError) -> str:
    """Say how an actor ended, in a line."""
    text = str(error)
    said = text.partition("Worker exit detail")[0]
    if isinstance(error, ActorUnavailableError):
        return "could not be reached any more"
    if "running low on memory" in said:
        return "was ended by Ray, as its machine ran low on memory"
    if "its node has died" in said:
        return "was lost with its machine"
    kind = text.partition("Worker exit type: ")[2].split(maxsplit=1)
    return f"died, of what Ray cannot tell ({kind[0] if kind else type(error).__name__})"
