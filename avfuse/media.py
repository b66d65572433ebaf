"""Video frames and sound of one file, on one clock.

The clock is the container's own: a frame's time is its presentation time stamp (PTS) in seconds, a sound sample's time
follows from the PTS of its packet. Nothing is ever computed as ``index / fps`` of a header.

`probe` reads the packets once without decoding and lays a `Timeline`: the presentation time of every frame, and a
regular grid of slots on which clips are cut. With a constant frame rate slot i is frame i. With a variable one the
slots are laid in seconds at the mean frame rate, and a slot shows the last frame presented by then. `ClipGrid` cuts the
slots into clips. `read_frames` and `SoundReader` then stream pixels and sound, a few frames or seconds at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
import numpy.typing as npt

from avfuse.schema import MAX_ROW_DIFFERENCE, RecordingError

log = logging.getLogger(__name__)

# A title that is no UTF-8 is no reason to refuse a video. From PyAV 19 on it never is one, and the argument is gone.
_OPEN: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
SAMPLE_RATE_HZ = 44_100
CLIP_FRAMES = 8
CLIP_DILATION = 4
CLIP_SPAN = CLIP_FRAMES * CLIP_DILATION
MAX_SOUND_S = 30.0
SOUND_INTERVALS = CLIP_SPAN - 1  # frame intervals of sound under a clip: from its first slot to its last
SAMPLE_FORMAT = "s32p"  # FFmpeg mixes channels down to full scale for integers only; for floats stereo would exceed 1
GAP_TOLERANCE_S = 0.005  # a jump in the sound's time stamps below this is rounding, above it a gap or an overlap
MAX_UNSTAMPED_SHARE = 0.02


@dataclass(frozen=True)
class Timeline:
    """When the frames of a recording are shown.

    Attributes
    ----------
    frame_time_s : ndarray, (F,), float64
        Presentation time of each frame in seconds, increasing.
    frame_pts : ndarray, (F,), int64
        The same in the stream's own time base, by which decoded frames are recognised.
    fps : float
        Slots per second: the constant frame rate, or the mean of a variable one.
    variable : bool
        Whether the frame rate varies, so that slots and frames differ.
    zero_s : float
        When a player starts to show the file, the start of its first stream, in seconds: what ratings count from.
    num_unplaced : int
        Frames that are left out, because another has their time stamp or they carry none.
    is_ordered : bool
        Whether decoded frames are recognised by their decoding times instead, as the others are guesses.
    """

    frame_time_s: npt.NDArray[np.float64]
    frame_pts: npt.NDArray[np.int64]
    fps: float
    variable: bool
    zero_s: float = 0.0
    num_unplaced: int = 0
    is_ordered: bool = False

    @classmethod
    def from_pts(cls, frame_pts: npt.NDArray[np.int64], time_base_s: float) -> Timeline:
        """Lay the timeline of frames with the given presentation time stamps."""
        num_stamps = len(frame_pts)
        frame_pts = np.unique(frame_pts)
        time_s = frame_pts.astype(np.float64) * time_base_s
        num_frames = len(time_s)
        if num_frames < 2:
            return cls(time_s, frame_pts, fps=25.0, variable=False, num_unplaced=num_stamps - num_frames)
        # The demuxer guesses the first and the last stamp of an AVI with B-frames, up to an interval early or late: the
        # frames between them tell whether the rate is constant, and the two ends only have to be near.
        ends = 1 if num_frames > 3 else 0
        inner_s = time_s[ends : num_frames - ends]
        interval_s = float(inner_s[-1] - inner_s[0]) / (len(inner_s) - 1)
        drift_s = np.abs(time_s - inner_s[0] - (np.arange(num_frames) - ends) * interval_s)
        inner_drift_s = drift_s[ends : num_frames - ends]
        # Time stamps rounded to milliseconds, as Matroska's are, stay well within half an interval of the grid.
        variable = bool(inner_drift_s.max() >= 0.5 * interval_s or drift_s.max() >= 1.25 * interval_s)
        if variable:
            interval_s = float(time_s[-1] - time_s[0]) / (num_frames - 1)
        return cls(time_s, frame_pts, 1.0 / interval_s, variable, num_unplaced=num_stamps - num_frames)

    @property
    def rated_time_s(self) -> npt.NDArray[np.float64]:
        """Time of each frame since the start that a player shows, (F,): the clock of ratings with times."""
        return self.frame_time_s - self.zero_s

    @property
    def num_frames(self) -> int:
        """Number of frames (F)."""
        return len(self.frame_time_s)

    @property
    def num_slots(self) -> int:
        """Number of slots, which for a constant frame rate is the number of frames."""
        if not self.variable:
            return self.num_frames
        return int((self.frame_time_s[-1] - self.frame_time_s[0]) * self.fps + 1e-6) + 1

    def slot_time_s(self, slot: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Return the time of slots in seconds; slots before the first lie before the recording."""
        if not self.variable:
            inside = np.clip(slot, 0, self.num_frames - 1)
            return np.asarray(self.frame_time_s[inside] + (slot - inside) / self.fps)
        return np.asarray(self.frame_time_s[0] + slot / self.fps)

    def slot_frame(self, slot: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the index of the frame that each slot shows; before the start it is the first frame."""
        if not self.variable:
            return np.clip(slot, 0, self.num_frames - 1)
        time_s = self.slot_time_s(slot) + 1e-3  # time stamps may be rounded to milliseconds
        return np.clip(np.searchsorted(self.frame_time_s, time_s, side="right") - 1, 0, None)


@dataclass(frozen=True)
class ClipGrid:
    """Where the clips of a recording lie.

    A clip is 8 frames with dilation 4 out of the last 32 slots: it ends at slot e and holds e - 28, e - 24, ..., e.
    Clips end at the slots hop - 1, 2 hop - 1, ... (a recording shorter than a hop has one clip, which ends at its last
    slot). Where a clip reaches back before the recording, the first frame stands for the missing ones and the sound is
    silence there, so that the first seconds are predicted too.

    Attributes
    ----------
    end_frame_N : ndarray, (N,), int64
        Index of the last frame of each clip.
    end_time_s : ndarray, (N,), float64
        Time of its last slot in seconds; the clip's sound ends there.
    frame_NK : ndarray, (N, 8), int64
        Indices of its frames.
    num_samples : int
        Sound samples under a clip: 31 frame intervals.
    """

    end_frame_N: npt.NDArray[np.int64]
    end_time_s: npt.NDArray[np.float64]
    frame_NK: npt.NDArray[np.int64]
    num_samples: int

    @classmethod
    def lay(cls, timeline: Timeline, hop: int) -> ClipGrid:
        """Lay the clips of a recording, `hop` slots apart.

        Raises
        ------
        RecordingError
            With reason ``too_slow``, when the sound under a clip would last longer than 30 s.
        """
        if SOUND_INTERVALS / timeline.fps > MAX_SOUND_S:
            raise RecordingError("too_slow", f"{timeline.fps:.3g} frames per second are too few for clips of 32 frames")
        end_slot_N = np.arange(hop - 1, timeline.num_slots, hop)
        if len(end_slot_N) == 0:
            end_slot_N = np.array([timeline.num_slots - 1])
        back_K = CLIP_DILATION * np.arange(CLIP_FRAMES - 1, -1, -1)
        slot_NK = np.maximum(end_slot_N[:, None] - back_K, 0)
        return cls(
            end_frame_N=timeline.slot_frame(end_slot_N),
            end_time_s=timeline.slot_time_s(end_slot_N),
            frame_NK=timeline.slot_frame(slot_NK),
            num_samples=round(SOUND_INTERVALS / timeline.fps * SAMPLE_RATE_HZ),
        )

    @property
    def num_clips(self) -> int:
        """Number of clips (N)."""
        return len(self.end_frame_N)


def open_file(path: Path) -> Any:
    """Open a container, for a ``with`` statement; raises `RecordingError`: ``missing_file`` or ``unreadable``."""
    if not path.is_file():
        raise RecordingError("missing_file", f"{path} does not exist")
    if path.stat().st_size == 0:
        raise RecordingError("unreadable", f"{path} is empty (0 bytes)")
    try:
        return av.open(str(path), **_OPEN)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise RecordingError("unreadable", f"{path} is not a video that can be opened ({error})") from error


def _video_stream(container: Any, path: Path) -> Any:
    if not container.streams.video:
        raise RecordingError("no_video_stream", f"{path} holds no video stream")
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    return stream


def probe(path: Path, on_packet: Callable[[], object] = lambda: None) -> Timeline:
    """Read the time stamps of a file's video packets, without decoding.

    `on_packet` is called with every packet; what it raises ends the reading.

    Raises
    ------
    RecordingError
        With reason ``missing_file``, ``unreadable``, ``no_video_stream`` or ``truncated``.
    """
    with open_file(path) as container:
        stream = _video_stream(container, path)
        # The packets themselves are let go of one by one: together they are the whole file.
        stamps = [(packet.pts, packet.is_discard) for packet in _demux(container, stream, on_packet) if packet.size]
        pts = [stamp for stamp, is_discarded in stamps if not is_discarded]
        time_base_s = float(stream.time_base)
        num_advertised = stream.frames if "mov" in container.format.name else 0  # elsewhere the header may only guess
        zero_s = max(0, container.start_time or 0) / av.time_base
        # An AVI has no stamps, and begins at 0: FFmpeg may guess late, and wrongly where B-frames stand between.
        is_avi, has_b_frames = "avi" in container.format.name, stream.codec_context.has_b_frames
    if any(value is None for value in pts):
        # Containers such as AVI may carry decoding times only; the presentation times then come from decoding.
        pts = [frame.pts for frame in _decode(path, on_packet)]
    if not pts:
        raise RecordingError("no_video_stream", f"{path} holds a video stream without frames")
    if len(stamps) < 0.98 * num_advertised - MAX_ROW_DIFFERENCE:
        raise RecordingError("truncated", f"{path} breaks off: it holds {len(stamps)} of {num_advertised} frames")
    num_unstamped = pts.count(None)
    if num_unstamped > MAX_UNSTAMPED_SHARE * len(pts):
        raise RecordingError(
            "unreadable",
            f"{path}: {num_unstamped} of {len(pts)} frames carry no time stamp; rewrite it, for example with ffmpeg "
            "-fflags +genpts -i IN -c copy OUT.mkv, or encode it anew where that fails",
        )
    known = [value for value in pts if value is not None]
    timeline, is_ordered = Timeline.from_pts(np.array(known, np.int64), time_base_s), known == sorted(known)
    zero_s = float(timeline.frame_time_s[0]) if is_avi else zero_s
    num_unplaced, is_ordered = timeline.num_unplaced + num_unstamped, bool(is_avi and has_b_frames and is_ordered)
    return replace(timeline, zero_s=zero_s, num_unplaced=num_unplaced, is_ordered=is_ordered)


def _demux(container: Any, stream: Any, on_packet: Callable[[], object] = lambda: None) -> Iterator[Any]:
    """Yield the packets of a stream up to the end, or up to where the file breaks off."""
    try:
        for packet in container.demux(stream):
            on_packet()
            yield packet
    except (av.error.FFmpegError, IndexError) as error:  # PyAV has no place for a stream that appears midway
        log.warning("%s breaks off: %s", container.name, error)


def _decode(path: Path, on_packet: Callable[[], object] = lambda: None) -> Iterator[Any]:
    """Yield the decoded video frames."""
    with open_file(path) as container:
        stream = _video_stream(container, path)
        yield from _decode_packets(_demux(container, stream, on_packet), path, "video")


def _decode_packets(packets: Iterable[Any], path: Path, kind: str) -> Iterator[Any]:
    """Yield the decoded frames of a stream; a packet that cannot be decoded costs that packet alone."""
    num_lost = 0
    for packet in packets:
        try:
            yield from packet.decode()
        except av.error.FFmpegError:
            num_lost += 1
    if num_lost:
        log.warning("%s: %d %s packets could not be decoded", path, num_lost, kind)


def read_frames(
    path: Path, timeline: Timeline, wanted_F: npt.NDArray[np.bool_]
) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """Yield index and pixels (Y, X, 3), RGB, upright, of the wanted frames that can be decoded, in order.

    Raises
    ------
    RecordingError
        With reason ``unreadable`` when no frame at all can be decoded.
    """
    num_decoded, last, index, lead = 0, -1, -1, None if timeline.is_ordered else 0
    for frame in _decode(path):
        num_decoded += 1
        stamp = frame.dts if timeline.is_ordered else frame.pts
        if stamp is None and not timeline.is_ordered:
            continue
        found = index + 1 + (lead or 0) if stamp is None else int(np.searchsorted(timeline.frame_pts, stamp))
        lead = found if lead is None else lead  # of the decoding times, which rise with the frames, on their showing
        index = found - lead
        if index <= last or index >= timeline.num_frames or not wanted_F[index]:
            continue
        last = index
        pixels_YXC = frame.to_ndarray(format="rgb24")
        yield index, np.ascontiguousarray(np.rot90(pixels_YXC, frame.rotation // 90))
    if num_decoded == 0:
        raise RecordingError("unreadable", f"{path}: no frame of its video stream can be decoded")


class SoundReader:
    """The sound of a file as mono float32 at 44.1 kHz, read forwards in windows on the container's clock.

    Before the stream starts, after it ends, and in gaps between its packets, the sound is silence.

    Parameters
    ----------
    path : Path

    Raises
    ------
    RecordingError
        With reason ``missing_file``, ``unreadable`` or ``no_audio_stream``.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._container = open_file(path)
        if not self._container.streams.audio:
            self.close()
            raise RecordingError("no_audio_stream", f"{path} holds no audio stream")
        self._pieces = self._decode()
        self._pending: tuple[int, npt.NDArray[np.float32]] | None = None  # decoded, but not yet reached
        self._held_S = np.zeros(0, np.float32)
        self._held_start = 0  # position of the first held sample on the clock, in samples
        self.num_decoded = 0

    def __enter__(self) -> SoundReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def read(self, end_s: float, num_samples: int) -> npt.NDArray[np.float32]:
        """Return the `num_samples` samples that end at time `end_s`; windows may overlap but never start earlier."""
        start = round(end_s * SAMPLE_RATE_HZ) - num_samples
        end = start + num_samples
        while self._held_start + len(self._held_S) < end:
            self._pending = self._pending or next(self._pieces, None)
            if self._pending is None or self._pending[0] >= end:
                break
            self._hold(*self._pending, keep_from=start)
            self._pending = None
        window_S = np.zeros(num_samples, np.float32)
        overlap_start, overlap_end = max(start, self._held_start), min(end, self._held_start + len(self._held_S))
        if overlap_start < overlap_end:
            held = slice(overlap_start - self._held_start, overlap_end - self._held_start)
            window_S[overlap_start - start : overlap_end - start] = self._held_S[held]
        return window_S

    def _hold(self, position: int, samples_S: npt.NDArray[np.float32], keep_from: int) -> None:
        """Put a piece behind the held samples, silence in a gap between, and let go of what lies before `keep_from`."""
        self.num_decoded += len(samples_S)
        drop = min(max(0, keep_from - self._held_start), len(self._held_S))
        held_S, held_start = self._held_S[drop:], self._held_start + drop
        if len(held_S) == 0:
            self._held_S, self._held_start = samples_S, position
            return
        gap = position - held_start - len(held_S)
        self._held_S = np.concatenate([held_S, np.zeros(max(0, gap), np.float32), samples_S[max(0, -gap) :]])
        self._held_start = held_start

    def _decode(self) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """Yield pieces of sound with their position on the clock, in samples."""
        stream = self._container.streams.audio[0]
        resampler, kind, position, expected_s = None, None, 0, 0.0
        for frame in _decode_packets(_demux(self._container, stream), self._path, "audio"):
            start_s = frame.time if frame.time is not None else expected_s
            if resampler is None or kind_of(frame) != kind or abs(start_s - expected_s) > GAP_TOLERANCE_S:
                if resampler is not None:
                    yield position, to_samples(resampler.resample(None))
                resampler = av.AudioResampler(format=SAMPLE_FORMAT, layout="mono", rate=SAMPLE_RATE_HZ)
                kind = kind_of(frame)
                position = round(start_s * SAMPLE_RATE_HZ)
                expected_s = start_s
            expected_s += frame.samples / frame.sample_rate
            samples_S = to_samples(resampler.resample(frame))
            yield position, samples_S
            position += len(samples_S)
        if resampler is not None:
            yield position, to_samples(resampler.resample(None))


def kind_of(frame: Any) -> tuple[str, str, int]:
    """Return what a resampler is made for, and what may change within a sound: format, channels and sample rate."""
    return frame.format.name, frame.layout.name, frame.sample_rate


def to_samples(frames: list[Any]) -> npt.NDArray[np.float32]:
    """Return resampled frames of `SAMPLE_FORMAT`, mono, as samples (S,) from -1 to 1."""
    pieces = [frame.to_ndarray()[0] for frame in frames]
    return np.concatenate(pieces).astype(np.float32) / np.float32(2**31) if pieces else np.zeros(0, np.float32)


def library_versions() -> dict[str, str]:
    """Return the versions of the decoder that the pixels and samples depend on."""
    codec = ".".join(str(part) for part in av.library_versions["libavcodec"])
    return {"pyav": av.__version__, "libavcodec": codec}
