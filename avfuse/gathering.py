"""Feature maps of windows, gathered from where they lie: mapped files, decoded chunks, or the memory of a device.

Whichever it is, the values were compared with their digests before the first is handed out, and are the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from itertools import cycle
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from avfuse.cached import CachedRecording
from avfuse.clips import ClipArray
from avfuse.device import free_bytes
from avfuse.schema import UsageError
from avfuse.windows import Window

MAX_MAPPED_CHUNKS = 16_384  # a process may hold some 65,000 maps of files
MAX_DECODED_BYTES = 2**28
_AT_ONCE = 4  # recordings that are read and compared with their digests
_COPIES_AT_ONCE = min(4, os.cpu_count() or 1)
_SHARE_OF_DEVICE, _SHARE_OF_RAM = 0.75, 0.5  # of what is free, for maps that are held without being asked for

Item = TypeVar("Item")
Result = TypeVar("Result")


def choose_residence(wanted: str, num_bytes: int, is_mapped: bool, device: torch.device) -> str:
    """Return where maps of so many bytes are held: ``no``, ``ram`` or ``device``.

    ``auto`` is the memory of a GPU if they take no more than three quarters of what is free there. Else maps that can
    be mapped stay in their files, which the system keeps in memory as far as it has some; others, which would be
    decoded again and again, are read into memory if they take no more than half of what is free.

    Raises
    ------
    UsageError
        If they do not fit where they are wanted.
    """
    cpu = torch.device("cpu")
    if wanted == "auto":
        if device.type == "cuda" and num_bytes <= _SHARE_OF_DEVICE * free_bytes(device):
            return "device"
        return "ram" if not is_mapped and num_bytes <= _SHARE_OF_RAM * free_bytes(cpu) else "no"
    if wanted != "no":
        free = free_bytes(device if wanted == "device" else cpu)
        if num_bytes > free:
            raise UsageError(
                f"--resident {wanted}: the maps take {num_bytes / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free; "
                "take --resident auto, or make the cache smaller with: avfuse cache shrink"
            )
    return wanted


class StreamedMaps:
    """Maps copied window by window: out of mapped files, of chunks decoded for it, or of the memory of this machine.

    Parameters
    ----------
    recordings : sequence of CachedRecording
    num_views : int
        How many views of each clip are asked for.
    device : torch.device
        Where batches are wanted.
    in_memory : bool
        Whether they are read into memory first.

    Raises
    ------
    UsageError
        If a recording is damaged.
    """

    def __init__(
        self, recordings: Sequence[CachedRecording], num_views: int, device: torch.device, *, in_memory: bool = False
    ) -> None:
        def take(item: CachedRecording) -> list[ClipArray]:
            return [_read_in(item, view) if in_memory else _checked(item, view) for view in range(num_views)]

        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._buffers: dict[tuple[int, ...], list[Tensor]] = {}
        views = self._views = each_once(take, recordings)
        first = views[0][0]
        self._shape, self._dtype = first.shape[1:], getattr(torch, first.dtype.name)

        def read(recording: int, view: int, number: int) -> npt.NDArray[Any]:
            return views[recording][view].chunk(number)

        # They hold the views and not this object, so that what is kept goes with the object.
        self._mapped, self._decoded = lru_cache(MAX_MAPPED_CHUNKS)(read), _Decoded(read, MAX_DECODED_BYTES)

    def gather_all(self, batches: Sequence[Sequence[tuple[Window, int]]], num_clips: int) -> Iterator[Tensor]:
        """Yield the maps (B, T, C, H, W) of batches of windows, each window with its view; padding is zero.

        A thread gathers the next batch into one of two buffers while the other is used, so that maps in the memory of
        this machine hold until the next are asked for. On their way to a GPU they wait for nothing computed there.
        """
        size = (max(map(len, batches), default=0), num_clips, *self._shape)
        kept = self._buffers.pop(size, None)  # a new buffer costs as much as a batch: the system hands out its pages
        is_pinned = self._stream is not None
        buffers = kept or [torch.empty(size, dtype=self._dtype, pin_memory=is_pinned) for _ in range(2)]
        with ThreadPoolExecutor(_COPIES_AT_ONCE) as copying:
            pairs = zip(batches, cycle(buffers), strict=False)
            filled = (self._fill_side_by_side(part, buffer[: len(part)], copying) for part, buffer in pairs)
            yield from ahead(filled if self._stream is None else self._move(filled, self._stream))
        self._buffers = {size: buffers}

    def _move(self, batches: Iterator[Tensor], stream: torch.cuda.Stream) -> Iterator[Tensor]:
        """Yield batches on the GPU, copied there by a stream of their own: nothing that is computed is waited for."""
        user = torch.cuda.current_stream(self._device)
        for maps_BTCHW in batches:
            with torch.cuda.stream(stream):
                moved_BTCHW = maps_BTCHW.to(self._device, non_blocking=True)
            stream.synchronize()  # for the copy alone, after which the buffer may be filled again
            moved_BTCHW.record_stream(user)
            yield moved_BTCHW

    def _fill_side_by_side(
        self, part: Sequence[tuple[Window, int]], maps_BTCHW: Tensor, executor: ThreadPoolExecutor
    ) -> Tensor:
        """Fill a batch, each thread a share of its windows: one core does not use all that the memory gives."""
        share = max(1, -(-len(part) // _COPIES_AT_ONCE))
        starts = range(0, len(part), share)
        list(
            executor.map(self._fill, (part[i : i + share] for i in starts), (maps_BTCHW[i : i + share] for i in starts))
        )
        return maps_BTCHW

    def _fill(self, part: Sequence[tuple[Window, int]], maps_BTCHW: Tensor) -> None:
        """Copy the maps of windows out of their chunks, several clips at a time."""
        for row, (window, view) in zip(maps_BTCHW.numpy(), part, strict=True):
            for at, values in self._runs(window.recording, view, window.start, window.step, window.count):
                row[at : at + len(values)] = values
            row[window.count :] = 0

    def _runs(
        self, recording: int, view: int, start: int, step: int, count: int
    ) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Yield the maps of a recording's clips start, start + step, ... as `ClipArray.strided` does."""
        clips = self._views[recording][view]
        chunk = self._mapped if clips.is_mapped else self._decoded
        return ((at, chunk(recording, view, number)[part]) for at, number, part in clips.runs(start, step, count))

    def some(self, recording: int, start: int, step: int, count: int) -> npt.NDArray[Any]:
        """Return maps of a recording's clips start, start + step, ..., (count, C, H, W), as stored; the first view."""
        if not count:
            return np.empty((0, *self._shape), self._views[recording][0].dtype)
        return np.concatenate([values for _, values in self._runs(recording, 0, start, step, count)])


class ResidentMaps:
    """Maps of all clips in one tensor, in the memory of the device that computes, from which windows are gathered.

    Parameters and errors are those of `StreamedMaps`; `device` is the one whose memory it is.
    """

    def __init__(self, recordings: Sequence[CachedRecording], num_views: int, device: torch.device) -> None:
        first = recordings[0].video
        self._device, self._shape = device, first.shape[1:]
        *self._first_R, num_clips = np.cumsum([0, *(item.num_clips for item in recordings)]).tolist()
        self._num_rows = num_clips + 1  # the last is what padding is gathered from
        dtype = getattr(torch, first.dtype.name)
        self._maps_NCHW = torch.empty(num_views * self._num_rows, *self._shape, dtype=dtype, device=device)
        self._maps_NCHW[self._num_rows - 1 :: self._num_rows] = 0
        self._spare: list[Tensor] = []

        def load(place: int) -> None:
            for view in range(num_views):
                row = view * self._num_rows + self._first_R[place]
                for values in recordings[place].checked_chunks(view):
                    self._maps_NCHW[row : row + len(values)] = torch.from_numpy(np.array(values, order="C"))
                    row += len(values)

        each_once(load, range(len(recordings)))

    def some(self, recording: int, start: int, step: int, count: int) -> npt.NDArray[Any]:
        """Return maps as `StreamedMaps.some` does."""
        first = self._first_R[recording] + start
        maps_NCHW: npt.NDArray[Any] = self._maps_NCHW[first : first + count * step : step][:count].cpu().numpy()
        return maps_NCHW

    def gather_all(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
        """Yield the maps (B, T, C, H, W) of batches of clips, given by their places among all, (B, T), and views, (B,).

        The number of clips stands for padding. On a CPU maps hold until the next are asked for.
        """
        # A new tensor costs as much as what is gathered into it; a GPU keeps the memory of those that are gone.
        buffer = self._spare.pop() if self._spare else self._maps_NCHW.new_empty(0)
        for index_BT, view_B in batches:
            rows_N = (index_BT + view_B.unsqueeze(-1) * self._num_rows).flatten().to(self._device, non_blocking=True)
            if self._device.type == "cpu":
                buffer.resize_(len(rows_N), *self._shape)
                maps_NCHW = torch.index_select(self._maps_NCHW, 0, rows_N, out=buffer)
            else:
                maps_NCHW = self._maps_NCHW.index_select(0, rows_N)
            yield maps_NCHW.reshape(*index_BT.shape, *self._shape)
        self._spare = [buffer]


class _Decoded:
    """Chunks that `read` gives by a key: those asked for last stay, as many as fit in so many bytes.

    Threads that ask for the same chunk at once wait for one of them to read it.
    """

    def __init__(self, read: Callable[[int, int, int], npt.NDArray[Any]], max_bytes: int) -> None:
        self._read, self._max_bytes = read, max_bytes
        self._held: dict[tuple[int, int, int], Future[npt.NDArray[Any]]] = {}  # in the order of use
        self._num_bytes = 0
        self._lock = Lock()

    def __call__(self, recording: int, view: int, number: int) -> npt.NDArray[Any]:
        key = recording, view, number
        with self._lock:
            known = self._held.pop(key, None)
            pending = self._held[key] = known or Future()
        if known is None:
            self._fill(key, pending)
        return pending.result()

    def _fill(self, key: tuple[int, int, int], pending: Future[npt.NDArray[Any]]) -> None:
        try:
            values = self._read(*key)
        except BaseException as error:
            with self._lock:
                del self._held[key]
            pending.set_exception(error)
            return
        pending.set_result(values)
        with self._lock:
            self._num_bytes += values.nbytes
            for oldest in [other for other, its in self._held.items() if its.done() and other != key]:
                if self._num_bytes <= self._max_bytes:
                    break
                self._num_bytes -= self._held.pop(oldest).result().nbytes


def each_once(act: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Return what comes of each item, several at once in threads; the first error, in the order of items, is raised."""
    with ThreadPoolExecutor(_AT_ONCE) as executor:
        return list(executor.map(act, items))


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Yield items, of which the next is made in a thread while the last is used."""
    with ThreadPoolExecutor(1) as executor:
        pending = executor.submit(next, items, None)
        while (item := pending.result()) is not None:
            pending = executor.submit(next, items, None)
            yield item


def _checked(recording: CachedRecording, view: int) -> ClipArray:
    """Return a view of which every value was compared with its digest."""
    recording.check(view)
    return recording.view(view)


def _read_in(recording: CachedRecording, view: int) -> ClipArray:
    """Return a view in memory, as one chunk, compared with its digest."""
    clips = recording.view(view)
    values, row = np.empty(clips.shape, clips.dtype), 0
    for chunk in recording.checked_chunks(view):
        values[row : row + len(chunk)] = chunk
        row += len(chunk)
    return ClipArray(clips.shape, clips.dtype, max(1, len(clips)), lambda _: values, is_mapped=True)
