"""What the packets of a media file tell without being decoded: its time stamps, and how picture and sound alternate."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from avfuse.container import MAX_FRAMES, Extent, Packets
from avfuse.schema import RecordingError


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
        Of the picture.
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
        self.num_packets = 0
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
        """Return the presentation time stamps in the order of the file, and the number of frames without one."""
        return np.array(self._stamps, np.int64), self._num_unstamped

    def refuse_missing_end(self) -> None:
        """Raise `RecordingError` with reason ``truncated`` if the file breaks off, or ends before it should."""
        for error in self._extent.missing_end(self._break_off):
            raise error

    def _add_picture(self, packet: Any, unit_s: float) -> None:
        self.num_packets += 1
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
