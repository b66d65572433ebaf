"""Media files as containers: opened within limits, read packet by packet.

A file may come from anybody. It is opened as a local file of one of the `FORMATS`, none of which makes FFmpeg open
another file or an address, as playlists would. What it may ask for is limited, and refused as ``over_limit`` before
anything of that size is allocated:

- `MAX_STREAMS` streams,
- `MAX_PIXELS` pixels in a picture,
- `MAX_DURATION_S` seconds, by its header and by its time stamps, and `MAX_FRAMES` frames,
- a sound of `MIN_RATE_HZ` to `MAX_RATE_HZ`, of `MAX_CHANNELS` channels.

Decoders run on one thread each, so that what they give, and what damage costs, does not depend on the number of cores;
files are decoded side by side instead.
"""

from __future__ import annotations

import logging
import math
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import av.error
from av.stream import Disposition

from avfuse.schema import PassingError, RecordingError

log = logging.getLogger(__name__)

MAX_STREAMS = 64
MAX_PIXELS = 8192 * 8192
MAX_DURATION_S = 24 * 3600.0
MAX_FRAMES = 24 * 3600 * 240
MIN_RATE_HZ, MAX_RATE_HZ = 4_000, 768_000
MAX_CHANNELS = 64
MAX_PIECE_SAMPLES = 2**22  # of one decoded piece of sound, per channel
FORMATS = (
    *("mov", "mp4", "m4a", "3gp", "3g2", "matroska", "webm", "avi", "mpegts", "mpeg", "mpegvideo", "m4v", "h264"),
    *("hevc", "flv", "asf", "mxf", "ogg", "wav", "mp3", "aac", "flac"),
)
TRUNCATED_SHARE, TRUNCATED_S = 0.02, 1.0
"""A file that is shorter than its header says by more than both, this share and these seconds, has lost its end."""
MAX_FAILURES = 8  # to read a packet, one after the other, before a file is taken to break off

_NO_PICTURE = Disposition.attached_pic | Disposition.timed_thumbnails  # a cover, or previews
_CODEC = {"threads": "1", "max_pixels": str(MAX_PIXELS), "max_samples": str(MAX_PIECE_SAMPLES)}
_CONTAINER = {
    "protocol_whitelist": "file",
    "format_whitelist": ",".join(FORMATS),
    "max_streams": str(MAX_STREAMS + 1),  # one more than is allowed, to be seen
}
# A title that is no UTF-8 is no reason to refuse a video. From PyAV 19 on it never is one, and the argument is gone.
_OPEN: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


def open_file(path: Path) -> Any:
    """Open a container, for a ``with`` statement.

    Raises
    ------
    RecordingError
        With reason ``missing_file``, ``unreadable`` or ``over_limit``.
    """
    _check_file(path)
    try:
        # As a URL, no name is taken for one of another protocol. FFmpeg hands on to codecs what is not the container's.
        container = av.open(f"file:{path.absolute()}", options=_CODEC | _CONTAINER, **_OPEN)
    except av.error.MemoryError as error:  # of an MP4 with too many streams, or an index of absurd size, or just now
        if _has_many_streams(path):
            raise RecordingError("over_limit", f"{path} holds more streams than the {MAX_STREAMS} allowed") from error
        raise PassingError("over_limit", f"{path} has an index larger than the memory that is there now") from error
    except (av.error.FFmpegError, OSError, ValueError) as error:
        found = f"{path} is not a video that can be opened ({getattr(error, 'strerror', None) or error})"
        hint = "it may be of another kind, damaged, or a playlist, which is not followed"
        raise RecordingError("unreadable", f"{found}; {hint}") from error
    try:
        _check_limits(container, path)
    except RecordingError:
        container.close()
        raise
    return container


def video_stream(container: Any, path: Path) -> Any:
    """Return the stream of the picture, the first that is no cover; raises `RecordingError`: ``no_video_stream``."""
    return _first(container.streams.video, path, "video")


def audio_stream(container: Any, path: Path) -> Any:
    """Return the stream of the sound, the first; raises `RecordingError`: ``no_audio_stream``."""
    return _first(container.streams.audio, path, "audio")


def decode(stream: Any, packet: Any) -> list[Any] | None:
    """Return the frames that a packet completes, or without a packet those held back; None if it cannot be decoded."""
    if packet is None:
        packet = av.Packet()
        packet.time_base = stream.time_base  # else the last frames would not know theirs
    try:
        return list(stream.decode(packet))
    except av.error.MemoryError:
        raise
    except av.error.FFmpegError:
        return None


def count_pixels(stream: Any) -> int:
    """Return the number of pixels of a picture of a video stream, as its header tells."""
    return int(stream.codec_context.width * stream.codec_context.height)


def check_pixels(width_px: int, height_px: int, path: Path) -> None:
    """Refuse a picture of more than `MAX_PIXELS` pixels."""
    if width_px * height_px > MAX_PIXELS:
        found = f"{path} has pictures of {width_px} x {height_px} pixels"
        raise RecordingError("over_limit", f"{found}, {MAX_PIXELS} pixels are allowed")


def check_sound(rate_hz: int, num_channels: int, path: Path) -> None:
    """Refuse a sound whose rate or channels are none that anybody records."""
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ or num_channels > MAX_CHANNELS:
        found = f"{path} has a sound of {rate_hz} Hz in {num_channels} channels"
        allowed = f"{MIN_RATE_HZ} to {MAX_RATE_HZ} Hz and {MAX_CHANNELS} channels are allowed"
        raise RecordingError("over_limit", f"{found}, {allowed}")


class Packets:
    """The packets of some streams in the order of the file, for one iteration; those without content are left out.

    Reading goes on behind what cannot be read. `on_packet` is called with every packet; what it raises ends it.

    Attributes
    ----------
    break_off : str or None
        What ended the reading before the end of the file.
    """

    def __init__(self, container: Any, streams: Sequence[Any], on_packet: Callable[[], object] = lambda: None) -> None:
        self._container = container
        self._name = container.name.removeprefix("file:")
        self._streams = streams
        self._on_packet = on_packet
        self.break_off: str | None = None

    def __iter__(self) -> Iterator[Any]:
        num_failures = 0
        while num_failures < MAX_FAILURES:
            try:
                for packet in self._container.demux(self._streams):
                    self._on_packet()
                    if packet.size:
                        self.break_off, num_failures = None, 0
                        yield packet
            except av.error.FFmpegError as error:
                self.break_off, num_failures = str(error), num_failures + 1
                continue
            except IndexError:  # at the end PyAV stumbles over streams that appeared midway, of which it knows nothing
                log.warning("%s has streams that appear midway; they are left out", self._name)
            break
        if self.break_off is not None:
            log.warning("%s breaks off: %s", self._name, self.break_off)


class Extent:
    """How far a file reaches by the packets that were read, against what its header says."""

    def __init__(self, container: Any, path: Path) -> None:
        self._path = path
        self._unit_s = {stream.index: float(stream.time_base or 0) for stream in container.streams}
        self._told_s = _header_length_s(container)
        self._start_s, self._end_s = math.inf, 0.0

    def add(self, packet: Any) -> None:
        """Take in a packet; raises `RecordingError` with reason ``over_limit`` if it lies too far from the others."""
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is None:
            return
        unit_s = self._unit_s[packet.stream_index]
        self._start_s = min(self._start_s, stamp * unit_s)
        self._end_s = max(self._end_s, (stamp + (packet.duration or 0)) * unit_s)
        if stamp * unit_s - self._start_s > MAX_DURATION_S or self._start_s < self._end_s - 2 * MAX_DURATION_S:
            _refuse_length(self._path, "its time stamps", max(self._end_s, stamp * unit_s) - self._start_s)

    def missing_end(self, break_off: str | None) -> list[RecordingError]:
        """Return an error if the file breaks off, or ends, in all its streams, before its header says."""
        if break_off is not None:
            return [RecordingError("truncated", f"{self._path} breaks off at {self._end_s:.3f} s: {break_off}")]
        # The header tells the end or the length, which differ where the first stream does not begin at 0.
        reached_s = self._end_s - min(self._start_s, 0.0)
        if self._told_s - reached_s <= max(TRUNCATED_S, TRUNCATED_SHARE * self._told_s):
            return []
        found = f"{self._path} breaks off: it holds {reached_s:.3f} s of {self._told_s:.3f} s"
        return [RecordingError("truncated", found)]


def _check_file(path: Path) -> None:
    """Refuse what is no file with content; nothing is opened, as a pipe would wait for who writes into it."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # a name with a zero byte is a ValueError
        link = f" is a link to {path.readlink()}, which" if path.is_symlink() else ""
        raise RecordingError("missing_file", f"{path}{link} does not exist") from error
    except OSError as error:
        raise RecordingError("unreadable", f"{path} cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe or a device"
        raise RecordingError("unreadable", f"{path} is {kind}, no file")
    if found.st_size == 0:
        raise RecordingError("unreadable", f"{path} is empty (0 bytes)")


def _has_many_streams(path: Path) -> bool:
    """Whether a file that could not be opened with as many streams as are allowed can be with many more."""
    options = _CODEC | _CONTAINER | {"max_streams": str(64 * MAX_STREAMS)}
    try:
        with av.open(f"file:{path.absolute()}", options=options, **_OPEN) as container:
            return len(container.streams) > MAX_STREAMS
    except (av.error.FFmpegError, OSError, ValueError):
        return False


def _check_limits(container: Any, path: Path) -> None:
    if not container.streams:
        raise RecordingError("unreadable", f"{path} holds no stream at all; it may be damaged")
    if len(container.streams) > MAX_STREAMS:
        raise RecordingError("over_limit", f"{path} holds more streams than the {MAX_STREAMS} that are allowed")
    told_s = _header_length_s(container)
    if told_s > MAX_DURATION_S:
        _refuse_length(path, "its header", told_s)
    tells_sizes = any(name in container.format.name for name in ("mov", "matroska", "avi"))
    for stream in container.streams.video:
        if (codec := stream.codec_context) is not None:
            check_pixels(codec.width, codec.height, path)
            if tells_sizes and not codec.width:  # FFmpeg drops what it is not to decode
                raise RecordingError("over_limit", f"{path} has pictures of more than the {MAX_PIXELS} pixels allowed")
            codec.thread_count, codec.options = 1, _CODEC
    for stream in container.streams.audio:
        if (codec := stream.codec_context) is not None:
            if codec.sample_rate:  # else no packet has told it yet
                check_sound(codec.sample_rate, codec.layout.nb_channels, path)
            codec.thread_count, codec.options = 1, _CODEC


def _refuse_length(path: Path, teller: str, length_s: float) -> None:
    allowed = f"{MAX_DURATION_S / 3600:g} are allowed"
    raise RecordingError("over_limit", f"{path} lasts {length_s / 3600:.1f} hours by {teller}, {allowed}")


def _first(streams: Sequence[Any], path: Path, kind: str) -> Any:
    shown = [stream for stream in streams if not stream.disposition & _NO_PICTURE]
    if not shown:
        cover = ", but for a cover" if streams else ""
        raise RecordingError(f"no_{kind}_stream", f"{path} holds no {kind} stream{cover}")
    if shown[0].codec_context is None:
        raise RecordingError(f"no_{kind}_stream", f"{path}: there is no decoder for its {kind} stream")
    return shown[0]


def _header_length_s(container: Any) -> float:
    """Return the length that a file's header tells; 0 where it tells none, or what FFmpeg tells is its own estimate."""
    if "avi" in container.format.name:  # FFmpeg scales the length by the size of the file, but keeps the counts
        return max((stream.frames * float(stream.time_base or 0) for stream in container.streams), default=0.0)
    is_told = any(name in container.format.name for name in ("mov", "matroska"))
    return (container.duration or 0) / av.time_base if is_told else 0.0
