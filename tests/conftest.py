"""What several test files share."""

import contextlib
import logging
import os
import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

# Tests that run side by side share the cores: one thread each, of what is imported below and in their subprocesses.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tables are as wide as in a file: readline, which pytest imports, tells what it starts of a terminal of 80 columns.
os.environ.pop("COLUMNS", None)
os.unsetenv("COLUMNS")

# isort: split
import av
import numpy as np
import numpy.typing as npt
import pytest

import avfuse  # noqa: F401  sets what must be set before any test imports torch
from avfuse.media import Frame, Reading, probe, probe_sound
from avfuse.sound import Sound, SoundBuffer
from avfuse.timeline import Timeline

pytest_plugins = ["s3"]  # the fixtures of a server

FRAME_PX = 64
DARK, BRIGHT = 30, 225
every_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
_TICKS_HZ = 12_800  # of the video's time base, fine enough for any frame time used in a test


def flash(index: int) -> Callable[[int], npt.NDArray[np.uint8]]:
    """Return the images of a recording that is dark but for one bright frame."""
    return lambda i: np.full((FRAME_PX, FRAME_PX, 3), BRIGHT if i == index else DARK, np.uint8)


def beep(
    at_s: float, duration_s: float, rate_hz: int = 44_100, frequency_hz: float = 1000.0
) -> npt.NDArray[np.float32]:
    """Return silence (S,) with a tone of 50 ms that begins at `at_s`."""
    time_s = np.arange(round(duration_s * rate_hz)) / rate_hz
    sounding = (time_s >= at_s) & (time_s < at_s + 0.05)
    return np.asarray(np.where(sounding, 0.5 * np.sin(2 * np.pi * 1000 * time_s), 0), np.float32)


@contextlib.contextmanager
def logging_and_signals_kept() -> Iterator[None]:
    """Leave log handlers and signal handlers as they were before avfuse's command line set its own."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    root = logging.getLogger()
    level, before = root.level, list(root.handlers)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        root.setLevel(level)
        root.handlers[:] = before


@contextlib.contextmanager
def files_limited(num_bytes: int) -> Iterator[None]:
    """Let no file grow beyond so many bytes: as on a full disk, what is written then fails and names no file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


_no_flash = flash(-1)


def write_video(
    path: Path,
    frame_time_s: Sequence[float] | npt.NDArray[np.float64],
    image: Callable[[int], npt.NDArray[np.uint8]] = _no_flash,
    sound_CS: npt.NDArray[np.float32] | None = None,
    *,
    rate_hz: int = 44_100,
    sound_start_s: float = 0.0,
    sound_clock: float = 1.0,
    video_codec: str = "libx264",
    sound_codec: str = "aac",
    video_options: dict[str, str] | None = None,
    rotation: int = 0,
) -> Path:
    """Write a recording whose frames and sound carry exactly the given time stamps; return its path.

    `sound_CS` holds one row per channel, or is flat for one channel; its first sample sounds at `sound_start_s`.
    By its time stamps the sound lasts `sound_clock` times as long as by its samples.
    """
    with av.open(str(path), "w") as container:
        if len(frame_time_s):
            height_px, width_px = image(0).shape[:2]
            video = container.add_stream(video_codec, rate=30, options=video_options or {})
            video.width, video.height, video.pix_fmt = width_px, height_px, "yuv420p"
            video.codec_context.time_base = Fraction(1, _TICKS_HZ)
            if rotation:
                video.set_display_rotation(rotation)
        if sound_CS is not None:
            sound_CS = np.atleast_2d(sound_CS)
            sound = container.add_stream(sound_codec, rate=rate_hz, layout="mono" if len(sound_CS) == 1 else "stereo")
        for i, time_s in enumerate(frame_time_s):
            frame = av.VideoFrame.from_ndarray(image(i), format="rgb24")
            frame.pts, frame.time_base = round(time_s * _TICKS_HZ), Fraction(1, _TICKS_HZ)
            container.mux(video.encode(frame))
        if len(frame_time_s):
            container.mux(video.encode(None))
        if sound_CS is not None:
            for start in range(0, sound_CS.shape[1], 1024):
                piece = av.AudioFrame.from_ndarray(
                    np.ascontiguousarray(sound_CS[:, start : start + 1024]), format="fltp", layout=sound.layout.name
                )
                piece.sample_rate, piece.time_base = rate_hz, Fraction(1, rate_hz)
                piece.pts = round(sound_start_s * rate_hz + start * sound_clock)
                container.mux(sound.encode(piece))
            container.mux(sound.encode(None))
    return path


def remux(
    source: Path,
    path: Path,
    keep: Callable[[Any], bool] = lambda packet: True,
    shift_s: float = 0.0,
    options: dict[str, str] | None = None,
    restamp: Callable[[int], int] = lambda ticks: ticks,
) -> Path:
    """Copy the packets that are to be kept into another file, moved in time by `shift_s`; return its path.

    `restamp` may give the packets of the video, whose order is that of their frames then, other time stamps.
    """
    with av.open(str(source)) as old, av.open(str(path), "w", options=options or {}) as new:
        streams = {stream.index: new.add_stream_from_template(stream) for stream in old.streams}
        for packet in old.demux():
            if packet.size and keep(packet):
                ticks = round(shift_s / packet.time_base)
                packet.pts += ticks
                packet.dts = None if packet.dts is None else packet.dts + ticks
                if packet.stream.type == "video":
                    packet.pts = restamp(packet.pts)
                    packet.dts = None if packet.dts is None else min(packet.dts, packet.pts)
                packet.stream = streams[packet.stream.index]
                new.mux(packet)
    return path


def write_changing_sound(path: Path, parts: Sequence[tuple[int, int]], frequency_hz: float = 440.0) -> Path:
    """Write a transport stream whose sound, a tone of full length, changes its sample rate and channels midway.

    `parts` are the rate and the number of channels of each part of two seconds; it begins, to the rounding of a time
    stamp, where the sound of the last one ends.
    """
    end_s, content = 0.0, b""
    for rate_hz, num_channels in parts:
        tone_S = 0.5 * np.sin(2 * np.pi * frequency_hz * np.arange(2 * rate_hz) / rate_hz)
        sound_CS = np.stack([tone_S] * num_channels).astype(np.float32)
        made = path.with_name("part.ts")
        write_video(made, np.arange(50) / 25, sound_CS=sound_CS, rate_hz=rate_hz, video_options={"bf": "0"})
        with av.open(str(made)) as container:
            start_s = next(container.decode(audio=0)).time
        moved = remux(made, path.with_name("moved.ts"), shift_s=end_s - start_s)
        with av.open(str(moved)) as container:
            *_, last = container.decode(audio=0)
        end_s, content = last.time + last.samples / last.sample_rate, content + moved.read_bytes()
    path.write_bytes(content)
    return path


def repeat_stamps(source: Path, path: Path, places: Sequence[int]) -> Path:
    """Copy a recording without B-frames, giving the frames at some places the time stamp of the frame before."""
    seen: list[int] = []

    def restamp(ticks: int) -> int:
        seen.append(seen[-1] if len(seen) in places else ticks)
        return seen[-1]

    return remux(source, path, restamp=restamp)


def frames_of(path: Path, timeline: Timeline | None = None) -> dict[int, npt.NDArray[np.uint8]]:
    """Return every frame of a recording that can be decoded, by its index, in the order of decoding."""
    timeline = timeline or probe(path)
    with Reading(path, timeline, np.ones(timeline.num_frames, np.bool_), sound=False) as reading:
        return {item.index: item.pixels_YXC for item in reading if isinstance(item, Frame)}


def sound_of(path: Path) -> SoundBuffer:
    """Return all the sound of a recording."""
    buffer = SoundBuffer()
    with Reading(path, probe_sound(path), np.zeros(0, np.bool_), picture=False) as reading:
        for item in reading:
            if isinstance(item, Sound):
                buffer.add(*item)
    buffer.end()
    return buffer
