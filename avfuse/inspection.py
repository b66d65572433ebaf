"""What a media file is like: its picture and its sound, counted and timed as extraction will use them.

`inspect_media` decodes both streams of a file in one pass, packet by packet, so that a damaged packet costs that packet
alone, and holds a few frames at a time. The frames that count are those of `avfuse.media.probe`, on whose timeline
extraction works; what decoding gives is counted beside them.

Every number is defined in docs/audit.md; all times are on the container's clock. A length ends behind the last frame or
sample: of the picture by one median frame interval, as the durations that containers give for a last frame are guesses.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from avfuse import media
from avfuse.container import Extent, Packets, audio_stream, check_sound, decode, open_file, video_stream
from avfuse.schema import RecordingError
from avfuse.sound import GAP_TOLERANCE_S, SAMPLE_FORMAT, kind_of, to_samples
from avfuse.timeline import ClipGrid, Timeline

GAP_INTERVALS = 2.5
SILENCE_DBFS = -60.0
SILENCE_WINDOW_S = 0.1


@dataclass(frozen=True)
class Picture:
    """The video stream of a file.

    Attributes
    ----------
    num_frames : int
        Frames that extraction uses: one per time stamp, without those that an edit list discards.
    num_decoded, num_lost : int
        Frames that decoding gave, and frames of extraction that it did not give.
    num_unplaced : int
        Frames that extraction leaves out, because another has their time stamp or they carry none.
    num_advertised : int or None
        Frames in the container's header, discarded ones included; None where it only guesses.
    num_packets, num_failed, num_discarded : int
        Packets, those that could not be decoded, and those that the container marks as not to be shown.
    fps : float
        The frame rate, or the mean of a variable one; NaN for a single frame.
    is_variable : bool
        Whether extraction lays its clips in seconds instead of frames.
    jitter_sd_ms, jitter_max_ms : float
        Standard deviation of the frame intervals, and largest deviation from their median, in milliseconds.
    start_s, end_s : float
    num_gaps, longest_gap_s, longest_gap_at_s : int, float, float or None
        Gaps, the longest in seconds, and where it begins.
    rotation_deg : int
        What the file says about how to turn the picture, counter-clockwise.
    """

    num_frames: int
    num_decoded: int
    num_lost: int
    num_unplaced: int
    num_advertised: int | None
    num_packets: int
    num_failed: int
    num_discarded: int
    fps: float
    is_variable: bool
    jitter_sd_ms: float
    jitter_max_ms: float
    start_s: float
    end_s: float
    num_gaps: int
    longest_gap_s: float
    longest_gap_at_s: float | None
    rotation_deg: int

    @property
    def length_s(self) -> float:
        """From the first frame to the end of the last, in seconds."""
        return self.end_s - self.start_s


@dataclass(frozen=True)
class Sound:
    """The audio stream of a file; packets, times and gaps are as those of `Picture`.

    Attributes
    ----------
    num_samples, rate_hz : int
        Decoded samples per channel, and the sample rate of the first.
    clock_s : float
        How far the time stamps run ahead of the samples, in seconds, steps left out.
    num_overlaps : int
        Steps back of more than 5 ms.
    silent_share, digital_silence_share : float
        Share of the windows that are silent, and of those in which every sample is 0.
    """

    num_packets: int
    num_failed: int
    num_samples: int
    rate_hz: int
    start_s: float
    end_s: float
    clock_s: float
    num_gaps: int
    longest_gap_s: float
    longest_gap_at_s: float | None
    num_overlaps: int
    silent_share: float
    digital_silence_share: float

    @property
    def length_s(self) -> float:
        """From the first sample to the end of the last, in seconds."""
        return self.end_s - self.start_s


@dataclass(frozen=True)
class Inspection:
    """What was found in one file.

    Attributes
    ----------
    timeline : Timeline or None
        The frames that extraction uses; None where `media.probe` refuses the picture.
    picture : Picture or None
        None without a decoded frame.
    sound : Sound or None
        None without a decoded sample.
    errors : tuple of RecordingError
        Why extraction would refuse the file, or that its end is missing; empty for a file that can be used.
    """

    timeline: Timeline | None = None
    picture: Picture | None = None
    sound: Sound | None = None
    errors: tuple[RecordingError, ...] = ()

    @property
    def offset_s(self) -> float | None:
        """Start of the sound minus start of the picture: positive where the sound begins later."""
        return self.sound.start_s - self.picture.start_s if self.picture and self.sound else None

    @property
    def drift_s(self) -> float | None:
        """Length of the sound minus length of the picture: positive where the sound is longer."""
        return self.sound.length_s - self.picture.length_s if self.picture and self.sound else None

    @property
    def end_offset_s(self) -> float | None:
        """End of the sound minus end of the picture: positive where the sound ends later."""
        return self.sound.end_s - self.picture.end_s if self.picture and self.sound else None


def inspect_media(path: Path, on_packet: Callable[[], object] = lambda: None) -> Inspection:
    """Measure a media file; what is wrong with it is in `Inspection.errors`, and nothing is raised for it.

    `on_packet` is called with every packet; what it raises ends the inspection.
    """
    errors: list[RecordingError] = []
    timeline = None
    try:
        timeline = media.probe(path, on_packet)
        ClipGrid.lay(timeline, hop=1)
    except RecordingError as error:
        if error.reason in {"missing_file", "unreadable", "over_limit"}:
            return Inspection(errors=(error,))
        errors.append(error)
    try:
        scan = _Scan.of(path, on_packet)
    except RecordingError as error:
        return Inspection(timeline, errors=(*errors, error))
    picture, sound = scan.picture.measure(timeline), scan.sound.measure()
    if picture is None and timeline is not None:
        errors.append(RecordingError("unreadable", f"{path}: no frame of its video stream can be decoded"))
    if sound is None:
        what = "no sample of its audio stream can be decoded" if scan.sound.num_packets else "it holds no sound"
        errors.append(RecordingError("no_audio_stream", f"{path}: {what}"))
    if not any(error.reason == "truncated" for error in errors):
        errors += scan.missing_end()
    return Inspection(timeline, picture, sound, tuple(errors))


class _Scan:
    """One pass over the packets of a file: its first video and its first audio stream are decoded."""

    def __init__(self, container: Any, path: Path) -> None:
        video, audio = _stream(video_stream, container, path), _stream(audio_stream, container, path)
        self.picture = _PictureScan(video, is_exact="mov" in container.format.name)
        self.sound = _SoundScan(path)
        parts = ((video, self.picture), (audio, self.sound))
        self._parts = {stream.index: (stream, part) for stream, part in parts if stream is not None}
        self._extent = Extent(container, path)
        self._break_off: str | None = None

    @classmethod
    def of(cls, path: Path, on_packet: Callable[[], object]) -> _Scan:
        """Read a file to its end, or to where it breaks off."""
        with open_file(path) as container:
            scan = cls(container, path)
            packets = Packets(container, list(container.streams), on_packet)
            for packet in packets:
                scan._extent.add(packet)
                if packet.stream_index in scan._parts:
                    stream, part = scan._parts[packet.stream_index]
                    part.add(packet, decode(stream, packet))
            for stream, part in scan._parts.values():
                part.add(None, decode(stream, None))
        scan._break_off = packets.break_off
        return scan

    def missing_end(self) -> list[RecordingError]:
        """Return an error if the file ends, in any of its streams, before its header says."""
        return self._extent.missing_end(self._break_off)


def _stream(find: Callable[[Any, Path], Any], container: Any, path: Path) -> Any:
    """Return a stream of a file, None where there is none that can be decoded."""
    try:
        return find(container, path)
    except RecordingError:
        return None


class _PictureScan:
    """The decoded frames of a video stream, as far as they are counted."""

    def __init__(self, stream: Any, is_exact: bool) -> None:
        self._unit_s = float(stream.time_base) if stream else 0.0
        self._num_advertised = stream.frames or None if stream and is_exact else None
        self._num_packets = self._num_failed = self._num_discarded = self._num_decoded = 0
        self._stamps = array("q")
        self._rotation_deg = 0

    def add(self, packet: Any, frames: list[Any] | None) -> None:
        """Count a packet, and take in the frames that it completes, None if it failed; the last ones have no packet."""
        if packet is not None:
            self._num_packets += 1
            self._num_discarded += packet.is_discard
            self._num_failed += frames is None
        for frame in frames or ():
            if self._num_decoded == 0:
                self._rotation_deg = frame.rotation
            self._num_decoded += 1
            if frame.pts is not None:
                self._stamps.append(frame.pts)

    def measure(self, timeline: Timeline | None) -> Picture | None:
        """Describe the stream by the timeline of extraction or, where there is none, by the decoded frames."""
        if not self._stamps:
            return None
        stamps_F = np.array(self._stamps, np.int64)
        timeline = timeline or Timeline.from_pts(stamps_F, self._unit_s)
        time_s = timeline.frame_time_s
        # A single frame has no interval: that of the timeline stands for it.
        interval_s = np.diff(time_s) if len(time_s) > 1 else np.array([1 / timeline.fps])
        inner_s = interval_s[1:-1] if len(interval_s) > 2 else interval_s
        median_s = float(np.median(inner_s))
        steady_s = inner_s[inner_s <= GAP_INTERVALS * median_s]
        is_gap = interval_s > GAP_INTERVALS * median_s
        longest = int(np.argmax(interval_s)) if is_gap.any() else None
        return Picture(
            num_frames=timeline.num_frames,
            num_decoded=self._num_decoded,
            num_lost=int(np.isin(timeline.frame_pts, stamps_F, invert=True).sum()),
            num_unplaced=timeline.num_unplaced,
            num_advertised=self._num_advertised,
            num_packets=self._num_packets,
            num_failed=self._num_failed,
            num_discarded=self._num_discarded,
            fps=timeline.fps if len(time_s) > 1 else math.nan,
            is_variable=timeline.variable,
            jitter_sd_ms=1000 * float(steady_s.std()),
            jitter_max_ms=1000 * float(np.abs(steady_s - median_s).max()),
            start_s=float(time_s[0]),
            end_s=float(time_s[-1]) + median_s,
            num_gaps=int(is_gap.sum()),
            longest_gap_s=0.0 if longest is None else float(interval_s[longest]),
            longest_gap_at_s=None if longest is None else float(time_s[longest]),
            rotation_deg=self._rotation_deg,
        )


class _SoundScan:
    """The decoded pieces of an audio stream, as far as they are counted."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.num_packets = 0
        self._num_failed = self._num_samples = self._rate_hz = 0
        self._start_s = self._end_s = self._samples_s = self._steps_s = 0.0
        self._num_gaps = self._num_overlaps = 0
        self._longest_gap: tuple[float, float | None] = (0.0, None)  # its length, and where it begins
        self._level = _Level()

    def add(self, packet: Any, frames: list[Any] | None) -> None:
        """Count a packet, and take in the pieces that it completes, None if it failed; the last ones have no packet."""
        if packet is not None:
            self.num_packets += 1
            self._num_failed += frames is None
        for frame in frames or ():
            check_sound(frame.sample_rate, frame.layout.nb_channels, self._path)
            self._place(frame)
            self._level.add(frame)

    def _place(self, frame: Any) -> None:
        """Put a piece on the clock: behind the one before it, or a step away."""
        start_s, length_s = frame.time, frame.samples / frame.sample_rate
        if self._num_samples == 0:
            self._rate_hz, self._start_s, self._end_s = frame.sample_rate, start_s or 0.0, start_s or 0.0
        start_s = self._end_s if start_s is None else start_s
        step_s = start_s - self._end_s
        if abs(step_s) > GAP_TOLERANCE_S:
            self._steps_s += step_s
            self._num_gaps += step_s > 0
            self._num_overlaps += step_s < 0
            if step_s > self._longest_gap[0]:
                self._longest_gap = step_s, self._end_s
        self._num_samples += frame.samples
        self._samples_s += length_s
        self._end_s = start_s + length_s

    def measure(self) -> Sound | None:
        """Describe the stream; None without a sample."""
        if self._num_samples == 0:
            return None
        silent_share, digital_silence_share = self._level.shares()
        return Sound(
            num_packets=self.num_packets,
            num_failed=self._num_failed,
            num_samples=self._num_samples,
            rate_hz=self._rate_hz,
            start_s=self._start_s,
            end_s=self._end_s,
            clock_s=self._end_s - self._start_s - self._samples_s - self._steps_s,
            num_gaps=self._num_gaps,
            longest_gap_s=self._longest_gap[0],
            longest_gap_at_s=self._longest_gap[1],
            num_overlaps=self._num_overlaps,
            silent_share=silent_share,
            digital_silence_share=digital_silence_share,
        )


class _Level:
    """How much of a sound is silent, in windows of 0.1 s of its mono mix, which is what the encoder hears."""

    def __init__(self) -> None:
        self._kind: tuple[str, str, int] | None = None  # of the sound that the resampler takes
        self._num_windows = self._num_silent = self._num_zero = 0

    def add(self, frame: Any) -> None:
        """Take in a decoded piece of sound."""
        if kind_of(frame) != self._kind:  # what is left of a window of the other kind is let go of
            self._kind, self._held_S = kind_of(frame), np.zeros(0, np.float32)
            self._resampler = av.AudioResampler(format=SAMPLE_FORMAT, layout="mono")
        window = round(SILENCE_WINDOW_S * frame.sample_rate)
        sound_S = np.concatenate([self._held_S, to_samples(self._resampler.resample(frame))])
        whole = len(sound_S) // window * window
        self._count(sound_S[:whole].reshape(-1, window))
        self._held_S = sound_S[whole:]

    def shares(self) -> tuple[float, float]:
        """Return the shares of silent and digitally silent windows; a rest counts as one if there is no other."""
        if self._num_windows == 0:
            self._count(self._held_S[None])
        return self._num_silent / self._num_windows, self._num_zero / self._num_windows

    def _count(self, sound_NS: npt.NDArray[np.float32]) -> None:
        power_N = np.square(sound_NS, dtype=np.float64).mean(axis=1)
        self._num_windows += len(power_N)
        self._num_silent += int((power_N < 10 ** (SILENCE_DBFS / 10)).sum())
        self._num_zero += int((power_N == 0).sum())
