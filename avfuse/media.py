"""Video frames and sound of one file, on one clock, in one pass.

The clock is the container's own: a frame's time is its presentation time stamp (PTS) in seconds, a sound sample's time
follows from the PTS of its packet. Nothing is ever computed as ``index / fps`` of a header.

`probe` reads the packets once without decoding and lays the `Timeline` of a recording. A `Reading` then decodes the
file packet by packet and yields frames and pieces of sound as they come: a packet that cannot be decoded costs that
packet alone, and is counted in its `Losses`. What a file may ask for is limited; see `avfuse.container`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from avfuse.container import (
    Packets,
    audio_stream,
    check_pixels,
    check_sound,
    count_pixels,
    decode,
    open_file,
    video_stream,
)
from avfuse.schema import MAX_ROW_DIFFERENCE, RecordingError
from avfuse.sound import NO_MORE, Resampler, Sound
from avfuse.survey import Survey, certainly, decoded_stamps
from avfuse.timeline import SAMPLE_RATE_HZ, Timeline

log = logging.getLogger(__name__)

MAX_UNSTAMPED_SHARE, MAX_REPEATED_SHARE = 0.02, 0.1  # of the frames that are left out, as they have no place in time
MAX_LAG_S = 10.0  # between picture and sound in the order of the file, above which it is opened twice
SOUND_FPS = 25.0  # of the timeline of a recording without picture
_AHEAD_S = 1.0  # how far the sound runs ahead of the picture where the file is opened twice


@dataclass(frozen=True, eq=False, slots=True)
class Frame:
    """A decoded frame: its index on the timeline, and its pixels (Y, X, 3), uint8, RGB, upright.

    The pixels are an array, or a tensor where a GPU decoded it.
    """

    index: int
    pixels_YXC: Any


NO_PICTURE = Frame(2**62, np.zeros((0, 0, 3), np.uint8))
"""The frame that says that none comes."""


@dataclass(frozen=True)
class Losses:
    """Packets of picture and sound, how many gave nothing, or no frame in its place, and if the file breaks off."""

    num_video_packets: int = 0
    num_video_lost: int = 0
    num_audio_packets: int = 0
    num_audio_lost: int = 0
    breaks_off: bool = False

    def counted(self) -> dict[str, int]:
        """Return the counts by name, as a cache keeps them; nothing where nothing was lost."""
        if not (self.num_video_lost or self.num_audio_lost):
            return {}
        return {name: count for name, count in asdict(self).items() if name != "breaks_off"}


def probe(path: Path, on_packet: Callable[[], object] = lambda: None) -> Timeline:
    """Read the time stamps of a file's video packets, without decoding.

    `on_packet` is called with every packet; what it raises ends the reading. A file that is damaged is looked at twice,
    and read to its end: it may be the disk, or a server, that failed.

    Raises
    ------
    RecordingError
        With reason ``missing_file``, ``unreadable``, ``over_limit``, ``no_video_stream`` or ``truncated``; it may pass
        (`PassingError`) where the file cannot be read.
    """
    return certainly(lambda: _probe(path, on_packet), path, on_packet)


def _probe(path: Path, on_packet: Callable[[], object]) -> Timeline:
    with open_file(path) as container:
        stream = video_stream(container, path)
        survey = Survey(container, path, stream, on_packet)
        num_advertised = stream.frames if "mov" in container.format.name else 0  # elsewhere the header may only guess
        zero_s = max(0, container.start_time or 0) / av.time_base
        # An AVI has no stamps, and begins at 0: FFmpeg may guess late, and wrongly where B-frames stand between.
        is_avi, has_b_frames = "avi" in container.format.name, stream.codec_context.has_b_frames
        time_base_s = float(stream.time_base)
    pts_F, num_unstamped = survey.stamps()
    if num_unstamped:
        # Containers such as AVI may carry decoding times only; the presentation times then come from decoding.
        pts_F, num_unstamped = decoded_stamps(path, on_packet)
    if len(pts_F) + num_unstamped == 0:
        raise RecordingError("no_video_stream", f"{path} holds a video stream without frames")
    num_packets = survey.num_packets
    is_packed = is_avi and has_b_frames and survey.is_packed
    if is_packed:  # what shows when is told by nothing but the order of decoding
        pts_F = np.array(survey.decoding_stamps, np.int64)
    if num_packets < 0.98 * num_advertised - MAX_ROW_DIFFERENCE:
        raise RecordingError("truncated", f"{path} breaks off: it holds {num_packets} of {num_advertised} frames")
    survey.refuse_missing_end()
    if num_unstamped > MAX_UNSTAMPED_SHARE * (len(pts_F) + num_unstamped):
        raise RecordingError(
            "unreadable",
            f"{path}: {num_unstamped} of {len(pts_F) + num_unstamped} frames carry no time stamp; rewrite it, for "
            "example with ffmpeg -fflags +genpts -i IN -c copy OUT.mkv, or encode it anew where that fails",
        )
    timeline = Timeline.from_pts(pts_F, time_base_s)
    if timeline.num_unplaced > MAX_REPEATED_SHARE * len(pts_F):
        found = f"{path}: {timeline.num_unplaced} of {len(pts_F)} frames have the time stamp of another"
        raise RecordingError("unreadable", f"{found}, as where two recordings were joined; encode it anew")
    return replace(
        timeline,
        zero_s=float(timeline.frame_time_s[0]) if is_avi else zero_s,
        num_unplaced=timeline.num_unplaced + num_unstamped,
        num_stand_ins=survey.num_stand_ins,
        is_ordered=bool(is_packed or (is_avi and has_b_frames and (np.diff(pts_F) >= 0).all())),
        sound_lag_s=survey.lag_s,
    )


def probe_sound(path: Path, on_packet: Callable[[], object] = lambda: None) -> Timeline:
    """Lay a timeline of 25 frames per second over the sound of a file whose picture cannot be used.

    `on_packet` is called with every packet; what it raises ends the reading.

    Raises
    ------
    RecordingError
        With reason ``missing_file``, ``unreadable``, ``over_limit``, ``no_audio_stream`` or ``truncated``; as `probe`.
    """
    return certainly(lambda: _probe_sound(path, on_packet), path, on_packet)


def _probe_sound(path: Path, on_packet: Callable[[], object]) -> Timeline:
    with open_file(path) as container:
        audio_stream(container, path)
        survey = Survey(container, path, None, on_packet)
        zero_s = max(0, container.start_time or 0) / av.time_base
    if survey.sound_start_s is None:
        raise RecordingError("no_audio_stream", f"{path} holds an audio stream without samples")
    survey.refuse_missing_end()
    start, num_frames = (
        round(SOUND_FPS * s) for s in (survey.sound_start_s, survey.sound_end_s - survey.sound_start_s)
    )
    pts_F = start + np.arange(max(1, num_frames), dtype=np.int64)
    return replace(Timeline.from_pts(pts_F, 1 / SOUND_FPS), zero_s=zero_s)


class Reading:
    """One pass over a file: what is wanted of its picture, and its sound, in the order of decoding.

    It is a context manager, and iterable once. Where picture and sound lie so far apart in the file that one would have
    to be held while the other is awaited, the file is opened a second time for the sound, which then runs a second
    ahead of the picture: whatever the file, little is held.

    Parameters
    ----------
    path : Path
    timeline : Timeline
        Of the file, by which frames are recognised.
    wanted_F : ndarray, (F,), bool
        Which frames to yield.
    sound, picture : bool
        Whether to decode them; `NO_MORE` stands for a sound, and `NO_PICTURE` for a picture, that is not decoded.

    Raises
    ------
    RecordingError
        On opening with reason ``missing_file``, ``unreadable``, ``over_limit``, ``no_video_stream`` or
        ``no_audio_stream``; at the end of the iteration with reason ``unreadable`` or ``no_audio_stream``, when no
        frame at all or no sample of the sound could be decoded.

    Attributes
    ----------
    num_pixels : int
        Of a picture, as the header tells; 0 without one.
    """

    def __init__(
        self,
        path: Path,
        timeline: Timeline,
        wanted_F: npt.NDArray[np.bool_],
        *,
        sound: bool = True,
        picture: bool = True,
    ) -> None:
        self._path = path
        self._timeline = timeline
        self._containers: list[Any] = []
        self._breaks_off = False
        is_apart = sound and picture and timeline.sound_lag_s > MAX_LAG_S
        try:
            container = self._open()
            self._picture = _Picture(video_stream(container, path), path, timeline, wanted_F) if picture else None
            container = self._open() if is_apart else container
            self._sound = _Voice(audio_stream(container, path), path) if sound else None
        except BaseException:
            self.close()
            raise
        self.num_pixels = count_pixels(self._picture.stream) if self._picture else 0

    def __enter__(self) -> Reading:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        for container in self._containers:
            container.close()

    @property
    def losses(self) -> Losses:
        """What could not be decoded, after the end of the iteration."""
        picture, sound = self._picture, self._sound
        return Losses(
            num_video_packets=picture.num_packets if picture else 0,
            num_video_lost=picture.num_lost if picture else 0,
            num_audio_packets=sound.num_packets if sound else 0,
            num_audio_lost=sound.num_lost if sound else 0,
            breaks_off=self._breaks_off,
        )

    def __iter__(self) -> Iterator[Frame | Sound]:
        parts = [part for part in (self._picture, self._sound) if part is not None]
        if self._picture is None:
            yield NO_PICTURE
        if self._sound is None:
            yield NO_MORE
        if len(self._containers) == 2:
            assert self._picture is not None
            assert self._sound is not None
            frames = self._read(self._containers[0], [self._picture])
            yield from side_by_side(frames, self._read(self._containers[1], [self._sound]), self._timeline)
        else:
            yield from self._read(self._containers[0], parts)
        self._tell_losses()
        if self._picture and self._picture.num_decoded == 0:
            raise RecordingError("unreadable", f"{self._path}: no frame of its video stream can be decoded")
        if self._sound and self._sound.num_decoded == 0:
            raise RecordingError("no_audio_stream", f"{self._path}: no sample of its audio stream can be decoded")

    def _open(self) -> Any:
        self._containers.append(open_file(self._path))
        return self._containers[-1]

    def _read(self, container: Any, parts: list[_Picture | _Voice]) -> Iterator[Frame | Sound]:
        """Yield what the packets of some streams give, and then what their decoders held back."""
        part_of = {part.stream.index: part for part in parts}
        packets = Packets(container, [part.stream for part in parts])
        for packet in packets:
            yield from part_of[packet.stream_index].decode(packet)
        for part in parts:
            yield from part.decode(None)
        self._breaks_off |= packets.break_off is not None

    def _tell_losses(self) -> None:
        for part, kind in ((self._picture, "video"), (self._sound, "audio")):
            if part is not None and part.num_lost:
                log.warning("%s: %d %s packets give nothing, or not in their place", self._path, part.num_lost, kind)


def side_by_side(
    frames: Iterable[Frame | Sound], sounds: Iterable[Frame | Sound], timeline: Timeline
) -> Iterator[Frame | Sound]:
    """Yield frames, each behind the sound up to a second after it; sound behind the last frame is only counted.

    Parameters
    ----------
    frames, sounds : iterable
        Of frames alone, and of sound alone, each with a reader of its own.
    timeline : Timeline
    """
    coming, come_s = chain(sounds, (NO_MORE,)), -math.inf
    for item in chain(frames, (None,)):
        shown = item.index if isinstance(item, Frame) else -1  # behind the frames: up to the last one
        while come_s < timeline.frame_time_s[shown] + _AHEAD_S:
            piece = next(coming)
            assert isinstance(piece, Sound)
            come_s = (piece.position + len(piece.samples_S)) / SAMPLE_RATE_HZ
            yield piece
        if item is not None:
            yield item
    for _ in coming:
        pass


class _Picture:
    """The frames of a video stream that are wanted, and how many packets failed."""

    def __init__(self, stream: Any, path: Path, timeline: Timeline, wanted_F: npt.NDArray[np.bool_]) -> None:
        self.stream = stream
        self.num_packets = self.num_decoded = 0
        self._num_failed = self._num_placed = 0
        self._path = path
        self._timeline = timeline
        self._wanted_F = wanted_F
        self._last = self._index = -1
        self._leap: tuple[int, Any] | None = None  # a frame behind a gap, until the next shows that it belongs there
        self._lead = None if timeline.is_ordered else 0  # of the decoding times, which rise with the frames, on showing
        self._reformatter = VideoReformatter()

    def decode(self, packet: Any) -> Iterator[Frame]:
        """Yield the wanted frames that a packet completes, or at the end those held back."""
        frames = decode(self.stream, packet)
        self.num_packets += packet is not None
        self._num_failed += packet is not None and frames is None
        for frame in frames or ():
            self.num_decoded += 1
            index = self._index_of(frame)
            if index is not None:
                yield from self._place(index, frame)
        if packet is None and self._leap is not None:
            yield from self._show(*self._leap)

    @property
    def num_lost(self) -> int:
        """Packets that failed, or frames that did not come, at the end; whichever are more."""
        num_missing = self._timeline.num_frames - self._num_placed - self._timeline.num_stand_ins
        return max(self._num_failed, num_missing)

    def _place(self, index: int, frame: Any) -> Iterator[Frame]:
        """Yield what is wanted of the frames that are known to be in their place."""
        leap, self._leap = self._leap, None
        if leap is not None and index > leap[0]:
            yield from self._show(*leap)
        elif leap is not None and index <= self._last:
            self._leap = leap
        if index == self._last + 1:
            yield from self._show(index, frame)
        elif index > self._last:
            self._leap = index, frame

    def _show(self, index: int, frame: Any) -> Iterator[Frame]:
        self._last = index
        self._num_placed += 1
        if self._wanted_F[index]:
            check_pixels(frame.width, frame.height, self._path)
            pixels_YXC = self._reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
            yield Frame(index, np.ascontiguousarray(np.rot90(pixels_YXC, frame.rotation // 90)))

    def _index_of(self, frame: Any) -> int | None:
        """Return the index of a decoded frame, None where it has none."""
        stamp = frame.dts if self._timeline.is_ordered else frame.pts
        if stamp is None and not self._timeline.is_ordered:
            return None
        following = self._index + 1 + (self._lead or 0)
        found = following if stamp is None else int(np.searchsorted(self._timeline.frame_pts, stamp))
        self._lead = found if self._lead is None else self._lead
        self._index = found - self._lead
        return self._index if self._index < self._timeline.num_frames else None


class _Voice:
    """The sound of an audio stream, and how many packets failed."""

    def __init__(self, stream: Any, path: Path) -> None:
        self.stream = stream
        self.num_packets = self.num_lost = self.num_decoded = 0
        self._path = path
        self._resampler = Resampler()

    def decode(self, packet: Any) -> Iterator[Sound]:
        """Yield the sound that a packet completes, or at the end what was held back."""
        frames = decode(self.stream, packet)
        self.num_packets += packet is not None
        self.num_lost += packet is not None and frames is None
        for frame in frames or ():
            self.num_decoded += frame.samples
            check_sound(frame.sample_rate, frame.layout.nb_channels, self._path)
            yield from self._resampler.add(frame)
        if packet is None:
            yield from self._resampler.end()


def library_versions() -> dict[str, str]:
    """Return the versions of the decoder that the pixels and samples depend on."""
    codec = ".".join(str(part) for part in av.library_versions["libavcodec"])
    return {"pyav": av.__version__, "libavcodec": codec}
