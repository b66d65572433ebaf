"""What engines of several workers share: who gets which recording, and what a worker's death means for what it had.

A worker is given as many recordings as it deals with side by side. When it dies, one of them killed it, or none did:
each is tried again in a worker that has nothing else meanwhile, so that guilt is certain and the innocent succeed.
"""

from __future__ import annotations

import errno
import logging
import math
import time
from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field

from avfuse.engines import MAX_RETRIES, OnProgress, Worker
from avfuse.schema import Failure, Receipt, Recording, UsageError

log = logging.getLogger(__name__)

PROGRESS_S = 0.1  # between two messages about one recording
MAKING_S = 60.0  # a worker is given at least so long to be made
LISTEN_S = 1.0  # at a time: a suspension of all processes counts for no longer
MAX_ACCUSED = 5  # recordings that killed their workers before any was finished, from which it is the machine


@dataclass(frozen=True)
class Made:
    """A worker is there, and deals with so many recordings side by side."""

    num_side_by_side: int


@dataclass(frozen=True)
class Moved:
    """So many clips of a recording are done."""

    recording: str
    num_done: int
    total: int


@dataclass(frozen=True)
class Done:
    """A recording is dealt with."""

    receipt: Receipt


@dataclass(frozen=True)
class Said:
    """A worker logs a message."""

    logger: str
    level: int
    message: str


@dataclass(frozen=True)
class Gone:
    """A worker is no more: how it ended, as "was ...", or the error for which it could not be made."""

    how: str
    error: Exception | None = None


Event = Made | Moved | Done | Said | Gone


class Crew(ABC):
    """The workers of an engine, each under its number; an ended worker's number may be given to another."""

    @abstractmethod
    def start(self, rank: int) -> None:
        """Begin to make a worker; `Made` or `Gone` tells how that went."""

    @abstractmethod
    def give(self, rank: int, recording: Recording) -> bool:
        """Hand a recording to a worker; False where that is impossible, since it is about to be `Gone`."""

    @abstractmethod
    def wait(self, timeout_s: float | None) -> Iterator[tuple[int, Event]]:
        """Yield what has happened, waiting for it if nothing has, but not longer than the timeout.

        Nothing is told of a worker after it is `Gone` or was killed, until its number is given to another.
        """

    @abstractmethod
    def kill(self, rank: int) -> None:
        """End a worker at once."""

    @abstractmethod
    def close(self, *, in_order: bool) -> None:
        """End all workers: in order when they have nothing left to do, else as soon as they can let go."""


def deal_with(worker: Worker, recording: Recording, on_progress: Callable[[int, int], None]) -> Receipt:
    """Let a worker process a recording; an error that should not have left it becomes the recording's failure."""
    try:
        return worker.process(recording, on_progress)
    except Exception as error:
        return receipt_of_error(recording, error)


def receipt_of_error(recording: Recording, error: BaseException) -> Receipt:
    """Return the receipt of a recording whose processing raised what it should have kept to itself."""
    log.error("%s: unexpected %s", recording.name, type(error).__name__, exc_info=error)
    reason = "out_of_memory" if isinstance(error, MemoryError) else "unexpected"
    return failed(recording, reason, f"{type(error).__name__}: {error}")


def failed(recording: Recording, reason: str, message: str) -> Receipt:
    """Return the receipt of a failure that is in no ledger yet."""
    return Receipt(recording.name, "failed", failure=Failure(recording.name, reason, message), is_recorded=False)


def sparse(on_progress: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """Return a callback that passes on the first, the last, and now and then one of those between."""
    last_s, was_end = -PROGRESS_S, False

    def tell(num_done: int, total: int) -> None:
        nonlocal last_s, was_end
        now_s, is_end = time.monotonic(), num_done == total
        if is_end > was_end or now_s - last_s >= PROGRESS_S:
            last_s, was_end = now_s, is_end
            on_progress(num_done, total)

    return tell


def dispatch(
    crew: Crew, recordings: Sequence[Recording], num_workers: int, on_progress: OnProgress, stall_s: float
) -> Generator[Receipt, None, None]:
    """Yield the receipt of every recording, as the engines' contract has it; the crew is closed then, or before.

    Workers of which nothing is heard for `stall_s` while they should be busy are killed; 0 lets them be. Time in which
    this process does not listen, being suspended or busy with receipts, does not count.

    Raises
    ------
    UsageError
        If a worker says, when it is to be made, that something the user gave cannot be used.
    ChildProcessError
        If recordings kill their workers, one after the other, and none is finished: it is not they who are to blame.
    Exception
        What else keeps workers from being made: at once if none was ever there, or when there is none left.
    """
    desk = _Desk(crew, recordings, num_workers, on_progress, stall_s)
    in_order = False
    try:
        while desk.is_open:
            desk.hand_out()
            desk.start_workers()
            for rank, event in desk.listen():
                receipts = list(desk.take(rank, event))
                desk.hand_out()  # before anybody looks at the receipts: workers need not wait for that
                yield from receipts
            yield from desk.end_stalled()
        yield from desk.condemn()
        in_order = True
    finally:
        crew.close(in_order=in_order)
    if desk.stopped is not None:
        yield desk.stopped


@dataclass
class _Hand:
    """A worker, as seen from the desk."""

    heard_s: float  # by the desk's clock
    capacity: int = 0  # 0 until it is made
    held: dict[str, Recording] = field(default_factory=dict)
    is_alone: bool = False  # with a suspect: it is given nothing else meanwhile

    def stalls_s(self, stall_s: float) -> float:
        """Return when it is to be heard of at the latest, by the desk's clock."""
        if self.capacity == 0:
            return self.heard_s + max(stall_s, MAKING_S)
        return self.heard_s + stall_s if self.held else math.inf


class _Desk:
    """Where recordings are given out and receipts come in."""

    def __init__(
        self, crew: Crew, recordings: Sequence[Recording], num_workers: int, on_progress: OnProgress, stall_s: float
    ) -> None:
        self._crew, self._on_progress, self._stall_s = crew, on_progress, stall_s
        self._waiting = deque(recordings)
        self._suspects: deque[Recording] = deque()
        self._deaths: defaultdict[str, list[str]] = defaultdict(list)  # of workers, by what they had
        self._hands: dict[int, _Hand] = {}
        self._free = list(reversed(range(min(num_workers, len(recordings)))))  # numbers of workers to be
        self._num_unmade: defaultdict[int, int] = defaultdict(int)  # workers in a row that ended before any receipt
        self._was_made = self._has_any_worked = False
        self._accused: list[Receipt] = []  # of recordings that killed their workers, while none was finished
        self._clock_s = 0.0  # the time spent listening
        self.stopped: Receipt | None = None

    @property
    def is_open(self) -> bool:
        """Whether a receipt is still to come."""
        return bool(self._waiting or self._suspects or any(hand.held for hand in self._hands.values()))

    def start_workers(self) -> None:
        """Start as many workers as there is work for that nobody is about to take."""
        num_starting = sum(hand.capacity == 0 for hand in self._hands.values())
        for _ in range(min(len(self._free), len(self._waiting) + len(self._suspects) - num_starting)):
            rank = self._free.pop()
            self._hands[rank] = _Hand(self._clock_s)
            self._crew.start(rank)

    def hand_out(self) -> None:
        """Give every worker what it can take."""
        for rank, hand in sorted(self._hands.items(), key=lambda item: len(item[1].held)):
            while (source := self._source_for(hand)) and self._crew.give(rank, source[0]):
                recording = source.popleft()
                if not hand.held:
                    hand.heard_s = self._clock_s
                hand.is_alone = source is self._suspects
                hand.held[recording.name] = recording

    def _source_for(self, hand: _Hand) -> deque[Recording] | None:
        """Return where a worker's next recording comes from; None where it takes none now."""
        if hand.capacity and not hand.held and self._suspects:
            return self._suspects
        if not self._waiting or (hand.held and hand.is_alone):
            return None
        # When little is left, a worker takes no more than its share, though it could; others may still be starting.
        num_left = len(self._waiting) + sum(len(other.held) for other in self._hands.values())
        share = -(-num_left // len(self._hands))
        return self._waiting if len(hand.held) < min(hand.capacity, share) else None

    def take(self, rank: int, event: Event) -> Iterator[Receipt]:
        """Take note of an event; yield the receipts that come of it."""
        hand = self._hands[rank]
        match event:
            case Said():
                logger = logging.getLogger(event.logger)
                if logger.isEnabledFor(event.level):
                    logger.log(event.level, "%s", event.message)
                return
            case Made():
                hand.capacity, self._was_made = max(1, event.num_side_by_side), True
            case Moved():
                self._has_any_worked |= event.num_done > 0
                self._on_progress(event.recording, event.num_done, event.total)
            case Done():
                self._num_unmade[rank] = 0
                hand.held.pop(event.receipt.recording, None)
                yield from self._note(event.receipt)
            case Gone():
                yield from self._bury(rank, event)
        hand.heard_s = self._clock_s

    def _note(self, receipt: Receipt) -> Iterator[Receipt]:
        """Yield a receipt, or begin to stop with it: it is the last one then."""
        if receipt.outcome in ("extracted", "failed"):
            self._has_any_worked = True
            yield from self.condemn()
        if receipt.outcome != "stopped":
            yield receipt
        elif self.stopped is None:
            self.stopped = receipt
            self._waiting.clear()
            self._suspects.clear()

    def listen(self) -> Iterator[tuple[int, Event]]:
        """Yield what has happened, or nothing when it is time to look for workers that have stalled."""
        patience_s, begun_s = self._patience_s(), time.monotonic()
        patience_s = None if patience_s is None else min(patience_s, LISTEN_S)
        events = self._crew.wait(patience_s)
        first = next(events, None)
        if patience_s is not None:
            self._clock_s += min(patience_s, time.monotonic() - begun_s)
        if first is not None:
            yield first
            yield from events

    def _patience_s(self) -> float | None:
        """Return how long to wait before looking for workers that have stalled."""
        if not self._stall_s or not self._hands:
            return None
        first_s = min(hand.stalls_s(self._stall_s) for hand in self._hands.values())
        return None if first_s == math.inf else max(0.0, first_s - self._clock_s)

    def end_stalled(self) -> Iterator[Receipt]:
        """Kill the workers of which nothing has been heard for too long."""
        if not self._stall_s:
            return
        for rank in [rank for rank, hand in self._hands.items() if hand.stalls_s(self._stall_s) <= self._clock_s]:
            self._crew.kill(rank)
            yield from self._bury(rank, Gone(f"gave no sign of life for {self._stall_s:g} s and was killed"))

    def _bury(self, rank: int, gone: Gone) -> Iterator[Receipt]:
        """Let a worker's number go to another; try again what it had, unless that has been done often enough."""
        hand = self._hands.pop(rank)
        self._free.append(rank)
        had = f"; it had {', '.join(hand.held)}" if hand.held else ""
        log.warning("worker %d %s%s", rank, gone.how, had)
        if not hand.held:
            self._give_up_number(rank, gone)
        if self.stopped is not None:
            return
        for recording in hand.held.values():
            deaths = self._deaths[recording.name]
            deaths.append(gone.how)
            if len(deaths) <= MAX_RETRIES:
                self._suspects.append(recording)
            else:
                self._accused.append(failed(recording, "worker_died", tell_deaths(deaths)))
        if self._has_any_worked:
            yield from self.condemn()
        elif len(self._accused) >= MAX_ACCUSED and self.is_open and not self._is_any_untried():
            told = f"{len(self._accused)} recordings killed their workers, none was finished: it may be this machine"
            raise ChildProcessError(errno.ECHILD, f"{told}; the last worker {gone.how}")

    def _is_any_untried(self) -> bool:
        """Whether a worker is at a recording that has killed none yet: it may be finished."""
        return any(name not in self._deaths for hand in self._hands.values() for name in hand.held)

    def condemn(self) -> Iterator[Receipt]:
        """Yield the receipts of recordings that killed their workers."""
        accused, self._accused = self._accused, []
        yield from accused

    def _give_up_number(self, rank: int, gone: Gone) -> None:
        """Count a worker that ended with nothing to do; make none in its place where that is of no use."""
        self._num_unmade[rank] += 1
        is_hopeless = gone.error is not None and (isinstance(gone.error, UsageError) or not self._was_made)
        if self._num_unmade[rank] > MAX_RETRIES:
            self._free.remove(rank)
            is_hopeless |= not self._hands and not self._free
        if is_hopeless and (self._waiting or self._suspects):
            told = f"no worker could be made to extract with: the last one {gone.how}"
            raise gone.error or ChildProcessError(errno.ECHILD, told)


def tell_deaths(deaths: Sequence[str]) -> str:
    """Say how the workers ended that had one recording."""
    ways = list(dict.fromkeys(deaths))
    if len(ways) == 1:
        how = f"the process that worked at it {ways[0]}, {len(deaths)} times"
    else:
        how = f"{len(deaths)} processes that worked at it ended: one {', one '.join(deaths)}"
    return f"{how}; the last {len(deaths) - 1} had nothing else to work at"
