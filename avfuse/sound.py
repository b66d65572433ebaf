"""Sound on the clock of its recording: mono, at one rate, in pieces that know where they lie.

A `Resampler` makes such pieces of what a decoder gives. A `SoundBuffer` takes them in their order and gives the windows
under clips: silence before the sound starts, after it ends, and in gaps between its pieces.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import av
import numpy as np
import numpy.typing as npt

from avfuse.timeline import SAMPLE_RATE_HZ

SAMPLE_FORMAT = "s32p"  # FFmpeg mixes channels down to full scale for integers only; for floats stereo would exceed 1
GAP_TOLERANCE_S = 0.005  # a jump in the sound's time stamps below this is rounding, above it a gap or an overlap
_BEFORE = -(2**62)


class Sound(NamedTuple):
    """A piece of sound: samples (S,), mono float32 at 44.1 kHz, the first at `position`, in samples from time 0.

    Nothing that lies before a piece comes after it, so that one without samples says how far everything has come.
    """

    position: int
    samples_S: npt.NDArray[np.float32]


NO_MORE = Sound(2**62, np.zeros(0, np.float32))
"""The piece that says that no other comes."""


class Resampler:
    """Makes pieces of sound of decoded frames: mono, at 44.1 kHz, where their time stamps put them.

    A frame whose time stamp leaps is held until the next one is there. Where that goes on from before the leap, or lies
    before it, the stamp was wrong: the frame belongs where the one before it ended.
    """

    def __init__(self) -> None:
        self._resampler: Any = None
        self._kind: tuple[str, str, int] | None = None
        self._position = 0
        self._expected_s: float | None = None
        self._leap: Any = None  # a frame that is held

    def add(self, frame: Any) -> Iterator[Sound]:
        """Yield what is ready after a decoded frame of the sound."""
        leap, self._leap = self._leap, None
        if leap is not None:
            yield from self._take(leap, self._start_of(leap, frame.time))
        if frame.time is None:
            yield from self._take(frame, self._expected_s or 0.0)
        elif self._expected_s is not None and abs(frame.time - self._expected_s) <= GAP_TOLERANCE_S:
            yield from self._take(frame, frame.time)
        else:
            self._leap = frame

    def end(self) -> Iterator[Sound]:
        """Yield what is still held back, at the end of the sound."""
        if self._leap is not None:
            yield from self._take(self._leap, self._leap.time)
            self._leap = None
        yield from self._flush()

    def _start_of(self, leap: Any, next_s: float | None) -> float:
        """Return where a frame begins whose time stamp leaps, by that of the frame behind it."""
        start_s: float = leap.time
        if next_s is None:
            return start_s
        if self._expected_s is None:  # there is none before it
            return start_s if start_s <= next_s else next_s - _length_s(leap)
        goes_on = abs(next_s - self._expected_s - _length_s(leap)) <= GAP_TOLERANCE_S
        return self._expected_s if goes_on or next_s < start_s else start_s

    def _take(self, frame: Any, start_s: float) -> Iterator[Sound]:
        is_apart = self._expected_s is None or abs(start_s - self._expected_s) > GAP_TOLERANCE_S
        if self._resampler is None or kind_of(frame) != self._kind or is_apart:
            yield from self._flush()
            self._resampler = av.AudioResampler(format=SAMPLE_FORMAT, layout="mono", rate=SAMPLE_RATE_HZ)
            self._kind = kind_of(frame)
            self._position = round(start_s * SAMPLE_RATE_HZ)
            self._expected_s = start_s
        self._expected_s = (start_s if self._expected_s is None else self._expected_s) + _length_s(frame)
        yield from self._placed(frame)

    def _flush(self) -> Iterator[Sound]:
        """Yield what the resampler holds back, before a gap."""
        if self._resampler is not None:
            yield from self._placed(None)
            self._resampler = None

    def _placed(self, frame: Any) -> Iterator[Sound]:
        samples_S = to_samples(self._resampler.resample(frame))
        if len(samples_S):
            yield Sound(self._position, samples_S)
        self._position += len(samples_S)


class SoundBuffer:
    """The sound that has come and may still be asked for, read forwards in windows.

    Of pieces that overlap the first counts. A gap costs no memory.

    Parameters
    ----------
    first_s : float
        Where the first window begins, in seconds; what lies before is not held.

    Attributes
    ----------
    num_decoded : int
        Samples that have come.
    """

    def __init__(self, first_s: float = -math.inf) -> None:
        self._first = -math.inf if first_s == -math.inf else math.floor(first_s * SAMPLE_RATE_HZ) - 1
        self._pieces: deque[Sound] = deque()  # in order, none overlapping another
        self._end = _BEFORE  # up to where everything has come
        self.num_decoded = 0

    def add(self, position: int, samples_S: npt.NDArray[np.float32]) -> None:
        """Take in the next piece of sound."""
        self.num_decoded += len(samples_S)
        kept_S = samples_S[max(0, self._end - position) :]
        if len(kept_S) and position + len(samples_S) > self._first:
            self._pieces.append(Sound(position + len(samples_S) - len(kept_S), kept_S))
        self._end = max(self._end, position + len(samples_S))

    def end(self) -> None:
        """Say that no piece comes any more."""
        self.add(*NO_MORE)

    def has(self, end_s: float) -> bool:
        """Tell whether all sound before time `end_s` has come, if there is any."""
        return self._end >= round(end_s * SAMPLE_RATE_HZ)

    def read(self, end_s: float, num_samples: int) -> npt.NDArray[np.float32]:
        """Return the `num_samples` samples that end at time `end_s`; windows may overlap but never start earlier."""
        end = round(end_s * SAMPLE_RATE_HZ)
        start = end - num_samples
        while self._pieces and self._pieces[0].position + len(self._pieces[0].samples_S) <= start:
            self._pieces.popleft()
        window_S = np.zeros(num_samples, np.float32)
        for position, samples_S in self._pieces:
            if position >= end:
                break
            first, behind = max(start, position), min(end, position + len(samples_S))
            window_S[first - start : behind - start] = samples_S[first - position : behind - position]
        return window_S


def _length_s(frame: Any) -> float:
    return float(frame.samples / frame.sample_rate)


def kind_of(frame: Any) -> tuple[str, str, int]:
    """Return what a resampler is made for, and what may change within a sound: format, channels and sample rate."""
    return frame.format.name, frame.layout.name, frame.sample_rate


def to_samples(frames: list[Any]) -> npt.NDArray[np.float32]:
    """Return resampled frames of `SAMPLE_FORMAT`, mono, as samples (S,) from -1 to 1."""
    pieces = [frame.to_ndarray()[0] for frame in frames]
    return np.concatenate(pieces).astype(np.float32) / np.float32(2**31) if pieces else np.zeros(0, np.float32)
