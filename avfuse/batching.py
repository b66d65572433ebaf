"""Clips of several recordings in common batches, encoded in threads of their own.

A network is fastest on full batches, and a recording rarely fills its last one. So the recordings that are under way
hand in their clips, and a batch is made of what came first, whosesoever it is. A batch that is not full is encoded only
when everyone waits. What a clip's feature is must not depend on its neighbours: a batch is padded to a size at which
each clip's arithmetic is that of a full one. Where memory runs out, the size of the batches is halved.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

log = logging.getLogger(__name__)

MOST_ON_CPU = 8

# The encoder, the shape of a clip, and the kind of device that it is on: only equal ones share a batch.
_Key = tuple[str, tuple[int, ...], str]
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "ALLOC_FAILED")  # of PyTorch, CUDA, and its libraries


class Ticket:
    """What stands for the features of clips that were handed in."""

    def __init__(self, num_clips: int) -> None:
        self._num_left = num_clips
        self._features: list[npt.NDArray[np.float32] | None] = [None] * num_clips
        self.error: BaseException | None = None

    @property
    def is_done(self) -> bool:
        """Whether all clips are encoded, or one cannot be."""
        return self._num_left == 0 or self.error is not None

    def fill(self, place: int, feature: npt.NDArray[np.float32]) -> None:
        """Put the feature of a clip to its place."""
        self._features[place] = feature
        self._num_left -= 1

    def take(self) -> npt.NDArray[np.float32]:
        """Return the features, (B, ...)."""
        return np.stack([feature for feature in self._features if feature is not None])


@dataclass(frozen=True)
class _Item:
    ticket: Ticket
    place: int
    clip: Tensor


@dataclass(frozen=True)
class _Launched:
    """A batch whose features are on their way from the device."""

    items: list[_Item]
    features: Tensor
    arrived: torch.cuda.Event | None


@dataclass(eq=False)
class User:
    """One recording that hands in clips, by `Batcher.user`."""

    _batcher: Batcher
    awaited: Ticket | None = field(default=None, init=False)

    def submit(self, encoder: str, clips: Tensor) -> Ticket:
        """Hand in clips, (B, ...), for the encoder of that name."""
        return self._batcher.submit(encoder, clips)

    def wait(self, ticket: Ticket) -> npt.NDArray[np.float32]:
        """Return the features of clips that were handed in, (B, ...), float32.

        Raises
        ------
        MemoryError
            If a single clip is too much for the device.
        Exception
            What else the encoder raised.
        """
        return self._batcher.wait(self, ticket)


class Batcher:
    """Encode clips of several users in common batches; for a ``with`` statement.

    Parameters
    ----------
    encoders : mapping of str to callable
        Each maps a batch of clips, (B, ...) on `device`, to features (B, ...), float32.
    batch_size : int
        Clips per batch.
    device : torch.device
    num_threads : int
        Batches that are encoded side by side, each on one core of a CPU.
    """

    def __init__(
        self,
        encoders: Mapping[str, Callable[[Tensor], Tensor]],
        batch_size: int,
        device: torch.device,
        num_threads: int = 1,
    ) -> None:
        self._encoders = encoders
        self._sizes = dict.fromkeys(encoders, batch_size)
        self._device = device
        self._waiting: dict[_Key, deque[_Item]] = {}
        self._users: set[User] = set()
        self._is_closed = False
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._run, name="encode", daemon=True) for _ in range(num_threads)]

    def __enter__(self) -> Batcher:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    @contextmanager
    def user(self) -> Iterator[User]:
        """Count among those whose clips a batch waits for."""
        user = User(self)
        with self._changed:
            self._users.add(user)
        try:
            yield user
        finally:
            with self._changed:
                self._users.remove(user)
                self._changed.notify_all()

    def submit(self, encoder: str, clips: Tensor) -> Ticket:
        """Hand in clips; see `User.submit`."""
        ticket = Ticket(len(clips))
        with self._changed:
            queue = self._waiting.setdefault((encoder, tuple(clips.shape[1:]), clips.device.type), deque())
            queue.extend(_Item(ticket, place, clip) for place, clip in enumerate(clips))
            self._changed.notify_all()
        return ticket

    def wait(self, user: User, ticket: Ticket) -> npt.NDArray[np.float32]:
        """Return features; see `User.wait`."""
        with self._changed:
            user.awaited = ticket
            self._changed.notify_all()
            self._changed.wait_for(lambda: ticket.is_done or self._is_closed)
            user.awaited = None
        if ticket.error is not None:
            raise ticket.error
        if not ticket.is_done:
            raise RuntimeError("the encoders were closed before these clips were encoded")
        return ticket.take()

    def _run(self) -> None:
        on_its_way: _Launched | None = None
        while True:
            found = self._next(wait=on_its_way is None)
            launched = None if found is None else self._launch(*found)
            if on_its_way is not None:  # it was not waited for while there was more to launch
                self._finish(on_its_way)
            on_its_way = launched
            if launched is not None and launched.arrived is None:
                self._finish(launched)
                on_its_way = None
            if found is None and on_its_way is None and self._is_closed:
                return

    def _next(self, wait: bool) -> tuple[str, list[_Item]] | None:
        """Take what can be encoded now; None if there is nothing, or no use for it any more."""
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._is_closed or self._find() is not None)
            return None if self._is_closed else self._take()

    def _find(self) -> _Key | None:
        """Return which clips can be encoded now: a full batch or, where all users wait, the oldest clips."""
        for key, queue in self._waiting.items():
            if len(queue) >= self._sizes[key[0]]:
                return key
        everyone_waits = all(user.awaited is not None and not user.awaited.is_done for user in self._users)
        return next(iter(self._waiting), None) if everyone_waits else None

    def _take(self) -> tuple[str, list[_Item]] | None:
        key = self._find()
        if key is None:
            return None
        queue = self._waiting[key]
        items = [queue.popleft() for _ in range(min(len(queue), self._sizes[key[0]]))]
        if not queue:
            del self._waiting[key]
        return key[0], items

    def _launch(self, encoder: str, items: list[_Item]) -> _Launched | None:
        """Encode a batch; where that fails, its halves or each user's part alone, and return nothing then."""
        try:
            features, arrived = self._encode(encoder, torch.stack([item.clip for item in items]))
        except Exception as error:
            parts = self._halve(encoder, items) if is_out_of_memory(error) else _by_ticket(items)
            if len(parts) == 1:
                self._fail(items, _too_much(error, self._device) if is_out_of_memory(error) else error)
                return None
        else:
            return _Launched(items, features, arrived)
        for part in parts:
            launched = self._launch(encoder, part)
            if launched is not None:
                self._finish(launched)
        return None

    def _halve(self, encoder: str, items: list[_Item]) -> list[list[_Item]]:
        """Return the two halves of a batch that does not fit, and let no batch be larger from now on."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        half = max(1, len(items) // 2)
        if half < self._sizes[encoder]:
            self._sizes[encoder] = half
            told = "%s ran out of memory: the %s encoder has %d clips at a time from now on"
            log.warning(told, self._device, encoder, half)
        return [part for part in (items[:half], items[half:]) if part]

    def _encode(self, encoder: str, clips: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
        """Return the features of clips on this machine, and the event that says when they have come, if it is later."""
        num_clips, size = len(clips), self._padded(encoder, len(clips))
        with torch.inference_mode():
            if self._device.type == "cuda" and clips.device.type == "cpu":
                clips = clips.pin_memory()
            clips = clips.to(self._device, non_blocking=True)
            clips = (
                torch.cat([clips, clips[:1].expand(size - num_clips, *clips.shape[1:])]) if size > num_clips else clips
            )
            features = self._encoders[encoder](clips)[:num_clips]
            if features.device.type == "cpu":
                return features, None
            here = torch.empty(features.shape, dtype=features.dtype, pin_memory=True)
            here.copy_(features, non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record(torch.cuda.current_stream(self._device))  # the device that is current may be another
            return here, arrived

    def _padded(self, encoder: str, num_clips: int) -> int:
        """Return the size that a batch is padded to.

        On a GPU the arithmetic depends on the size, so that all batches are full. On a CPU that of odd sizes differs
        from that of even ones, in the last bits.
        """
        if self._device.type == "cuda":
            return max(num_clips, self._sizes[encoder])
        return num_clips + num_clips % 2

    def _finish(self, launched: _Launched) -> None:
        try:
            if launched.arrived is not None:
                launched.arrived.synchronize()
            features = launched.features.numpy()
        except Exception as error:  # a GPU may say only now what went wrong
            self._fail(launched.items, error)
            return
        with self._changed:
            for item, feature in zip(launched.items, features, strict=True):
                item.ticket.fill(item.place, feature)
            self._changed.notify_all()

    def _fail(self, items: list[_Item], error: BaseException) -> None:
        with self._changed:
            for item in items:
                item.ticket.error = error
            self._changed.notify_all()


def _by_ticket(items: list[_Item]) -> list[list[_Item]]:
    """Return the part of each user, so that one's fault is not the others'."""
    parts: dict[int, list[_Item]] = {}
    for item in items:
        parts.setdefault(id(item.ticket), []).append(item)
    return list(parts.values())


def _too_much(error: BaseException, device: torch.device) -> MemoryError:
    told = MemoryError(f"the smallest batch (a clip, and one that fills it up) is too much for the memory of {device}")
    told.__cause__ = error
    return told


def choose_size(wanted: int, device: torch.device) -> int:
    """Return the size of batches on a device: the one that is wanted or, for 0, one that keeps it busy.

    A CPU gains nothing by more than 8 clips, and some networks have other kernels from 16 on, and other last bits.
    """
    return wanted or 64 if device.type == "cuda" else min(wanted or MOST_ON_CPU, MOST_ON_CPU)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or here."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)
