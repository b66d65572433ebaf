"""What the packets of a media file tell without being decoded: its time stamps, and how picture and sound alternate."""

from __future__ import annotations

import re
import stat
from array import array
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from avfuse.container import MAX_FRAMES, Extent, Packets, decode, open_file, video_stream
from avfuse.schema import PassingError, RecordingError

_Found = TypeVar("_Found")
_READ_BYTES = 2**19
_DAMAGED = ("truncated", "unreadable")
_VP8_SHOWN = 0x10  # of the first byte of a frame
_PACKED = re.compile(rb"DivX\d+(?:Build|b)\d+p")  # how encoders say that packets of MPEG-4 hold several frames
_REORDERED_FRAMES = 32  # that may lie between a frame's place in the file and the one in which it shows, and more
_MAX_STAND_IN_BYTES = 19  # of a packet of MPEG-4 that says that the picture before it goes on


class Survey:
    """What the packets of a file tell without being decoded; they are let go of one by one.

    Parameters
    ----------
    container : av.container.InputContainer
    path : Path
    video : av.VideoStream or None
        The stream of the picture; None leaves the picture out.
    on_packet : callable
        Called with every packet; what it raises ends the reading.

    Raises
    ------
    RecordingError
        With reason ``over_limit``, for more frames or a longer time than is allowed.

    Attributes
    ----------
    num_packets : int
        Of the picture; those that only hold what others refer to, as VP8 has them, are left out.
    num_stand_ins : int
        Of these packets, those that may say no more than that the picture before them goes on, as MPEG-4 can.
    is_packed : bool
        Whether the picture is MPEG-4 with several frames in a packet, and empty ones behind it.
    decoding_stamps : array of int
        Of these packets, where it is.
    lag_s : float
        How far picture and sound lie apart in the order of the file, in seconds; see `Timeline.sound_lag_s`.
    sound_start_s, sound_end_s : float or None, float
        Where the sound begins, None if it has no packet with a time, and where it ends.
    """

    def __init__(self, container: Any, path: Path, video: Any, on_packet: Callable[[], object] = lambda: None) -> None:
        self._path = path
        self._extent = Extent(container, path)
        self._stamps = array("q")  # of the frames that are shown
        self._num_unstamped = 0
        self.is_packed = False
        self.num_packets = self.num_stand_ins = 0
        self.decoding_stamps = array("q")
        self._codec = "" if video is None or video.codec_context is None else video.codec_context.name
        self.lag_s = 0.0
        self.sound_start_s: float | None = None
        self.sound_end_s = 0.0
        self._picture_s: tuple[float, float] | None = None  # where the picture begins, and how far it has come
        audio = next(iter(container.streams.audio), None)
        self._has_both = video is not None and audio is not None
        packets = Packets(container, list(container.streams), on_packet)
        for packet in packets:
            self._extent.add(packet)
            if video is not None and packet.stream_index == video.index:
                self._add_picture(packet, float(video.time_base))
            elif audio is not None and packet.stream_index == audio.index:
                self._add_sound(packet, float(audio.time_base))
        self._compare()
        self._break_off = packets.break_off

    def stamps(self) -> tuple[npt.NDArray[np.int64], int]:
        """Return the presentation time stamps in the order of the file, and the number of frames without one.

        One that lies far from both of its neighbours, which lie together, is damage: it is moved to the gap that it
        left.
        """
        return _without_strays(np.array(self._stamps, np.int64)), self._num_unstamped

    def refuse_missing_end(self) -> None:
        """Raise `RecordingError` with reason ``truncated`` if the file breaks off, or ends before it should."""
        for error in self._extent.missing_end(self._break_off):
            raise error

    def _add_picture(self, packet: Any, unit_s: float) -> None:
        if self._codec == "vp8" and not memoryview(packet)[0] & _VP8_SHOWN:
            return
        self.num_packets += 1
        if self.num_packets == 1 and self._codec == "mpeg4":
            self.is_packed = _PACKED.search(bytes(packet)) is not None
        self.num_stand_ins += self._codec == "mpeg4" and packet.size <= _MAX_STAND_IN_BYTES
        if self.is_packed and packet.dts is not None:
            self.decoding_stamps.append(packet.dts)
        if self.num_packets > MAX_FRAMES:
            raise RecordingError("over_limit", f"{self._path} holds more frames than the {MAX_FRAMES} that are allowed")
        if not packet.is_discard and packet.pts is None:
            self._num_unstamped += 1
        elif not packet.is_discard:
            self._stamps.append(packet.pts)
        stamp = packet.pts if packet.dts is None else packet.dts
        if stamp is not None:
            self._compare()
            first_s, last_s = self._picture_s or (stamp * unit_s, stamp * unit_s)
            self._picture_s = first_s, max(last_s, stamp * unit_s)

    def _add_sound(self, packet: Any, unit_s: float) -> None:
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is None:
            return
        self._compare()
        end_s = (stamp + (packet.duration or 0)) * unit_s
        self.sound_end_s = end_s if self.sound_start_s is None else max(self.sound_end_s, end_s)
        self.sound_start_s = stamp * unit_s if self.sound_start_s is None else self.sound_start_s

    def _compare(self) -> None:
        """Note how far picture and sound are apart before one of them goes on: so long the other one waited."""
        if self._picture_s is None or not self._has_both:
            return
        first_s, last_s = self._picture_s
        heard_s = first_s if self.sound_start_s is None else max(first_s, self.sound_end_s)
        self.lag_s = max(self.lag_s, abs(last_s - heard_s))


def certainly(look: Callable[[], _Found], path: Path, on_read: Callable[[], object]) -> _Found:
    """Return what a look at a file finds; where that is damage, look again, and see if the file can be read at all.

    Raises
    ------
    PassingError
        With reason ``truncated`` or ``unreadable``, if the file cannot be read to its end.
    RecordingError
        What the look raises.
    """
    try:
        return look()
    except RecordingError as error:
        if error.reason not in _DAMAGED:
            raise
    try:
        return look()
    except RecordingError as error:
        if error.reason in _DAMAGED:
            _read_through(path, error.reason, on_read)
        raise


def _read_through(path: Path, reason: str, on_read: Callable[[], object]) -> None:
    try:
        if stat.S_ISREG(path.stat().st_mode):  # a pipe may never end
            with path.open("rb", buffering=0) as file:
                while file.read(_READ_BYTES):
                    on_read()
    except OSError as error:
        raise PassingError(reason, f"{path} cannot be read to its end ({error.strerror})") from error


def decoded_stamps(path: Path, on_packet: Callable[[], object]) -> tuple[npt.NDArray[np.int64], int]:
    """Return the presentation time stamps that decoding gives, and the number of frames without one."""
    stamps, num_unstamped = array("q"), 0
    with open_file(path) as container:
        stream = video_stream(container, path)
        packets = Packets(container, [stream], on_packet)
        for packet in chain(packets, (None,)):
            for frame in decode(stream, packet) or ():
                if frame.pts is None:
                    num_unstamped += 1
                else:
                    stamps.append(frame.pts)
    return np.array(stamps, np.int64), num_unstamped


def _without_strays(stamps_F: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return time stamps, in the order of the file, with those moved to where one is missing that are damaged.

    Damaged is one that lies farther from both of its neighbours than frames are ever moved by their order of decoding;
    where none is missing, it gets that of its neighbour. So is one that meets another frame's, while its own is missing
    between its neighbours.
    """
    steps = np.diff(np.unique(stamps_F))
    if len(steps) < 2:
        return stamps_F
    interval, turns = float(np.median(steps)), np.diff(stamps_F)
    least = np.minimum(np.abs(turns[:-1]), np.abs(turns[1:]))
    is_spike = (np.sign(turns[:-1]) != np.sign(turns[1:])) & (least > 1.5 * interval)
    is_spike &= np.abs(turns[:-1] + turns[1:]) <= _REORDERED_FRAMES * interval
    repaired_F = stamps_F.copy()
    for place in (1 + np.flatnonzero(is_spike)).tolist():
        before, stamp, after = stamps_F[place - 1 : place + 2].tolist()
        if least[place - 1] > _REORDERED_FRAMES * interval and _is_alone(stamps_F, place):
            around_F = repaired_F[max(0, place - 2 * _REORDERED_FRAMES) : place + 2 * _REORDERED_FRAMES]
            near = np.unique(around_F[np.abs(around_F - before) <= _REORDERED_FRAMES / 2 * interval])
            gaps = np.diff(near)
            widest = int(np.argmax(gaps)) if len(gaps) else -1
            is_missing = widest >= 0 and gaps[widest] > 1.5 * interval
            repaired_F[place] = (near[widest] + near[widest + 1]) // 2 if is_missing else before
        elif after - before > 1.5 * interval and np.sum(np.abs(stamps_F - stamp) <= interval / 4) > 1:
            repaired_F[place] = (before + after) // 2
    return repaired_F


def _is_alone(stamps_F: npt.NDArray[np.int64], place: int) -> bool:
    """Whether frames shown between others never come as far as a time stamp that leaps ahead, or came from as far."""
    if stamps_F[place] > stamps_F[place - 1]:
        others_F = stamps_F[place + 1 : place + 1 + _REORDERED_FRAMES]
        return len(others_F) == _REORDERED_FRAMES and bool((others_F < stamps_F[place]).all())
    others_F = stamps_F[max(0, place - _REORDERED_FRAMES) : place]
    return len(others_F) == _REORDERED_FRAMES and bool((others_F > stamps_F[place]).all())
