"""Files as they come from cameras, downloads, full disks and strangers, each with the reason that a person would give.

``python bad_files.py FOLDER`` judges one file of the folder for every name that it reads, and writes a line of JSON, so
that whoever started it sees which one hangs, or kills.
"""

import json
import os
import select
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from PIL import Image

from avfuse import footage
from avfuse.media import Reading, probe
from avfuse.schema import RecordingError
from avfuse.timeline import ClipGrid

FPS, NUM_FRAMES, RATE_HZ = 25, 40, 16_000
LENGTH_S = NUM_FRAMES / FPS
_REGULAR = np.arange(NUM_FRAMES) / FPS
MAX_CORRUPT = 0.05
NEEDS_ENCODER = {"ten_bit.mkv": "libx265", "av1.mkv": "libsvtav1", "vp9_444.webm": "libvpx-vp9"}
NO_READING = "no_reading.mp4"  # whoever is root may read it

os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder says nothing but errors
_Maker = Callable[[Path], object]


def picture(index: int, width_px: int = 64, height_px: int = 64) -> npt.NDArray[np.uint8]:
    """Return a picture of its own for every index, not too easy to compress."""
    coarse = np.random.default_rng(index).integers(0, 255, ((height_px + 7) // 8, (width_px + 7) // 8, 3), np.uint8)
    return np.ascontiguousarray(coarse.repeat(8, axis=0).repeat(8, axis=1)[:height_px, :width_px])


def record(
    path: Path,
    *,
    frame_time_s: Any = _REGULAR,
    size_px: tuple[int, int] = (64, 64),
    video: str = "libx264",
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
    sound: str = "aac",
    sound_s: float = LENGTH_S,
    sound_start_s: float = 0.0,
    rate_hz: int = RATE_HZ,
    channels: tuple[float, ...] = (1.0,),
    rotation: int = 0,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Write a recording; without frames, or with a sound of 0 s, it lacks the one or the other."""
    with av.open(str(path), "w", options=container_options or {}) as container:
        if len(frame_time_s):
            stream = container.add_stream(video, rate=FPS, options=options or {})
            stream.width, stream.height, stream.pix_fmt = *size_px, pixels
            stream.codec_context.time_base = Fraction(1, 1000)
            if rotation:
                stream.set_display_rotation(rotation)
        if sound_s:
            voice = container.add_stream(sound, rate=rate_hz, layout="mono" if len(channels) == 1 else "stereo")
        for index, time_s in enumerate(frame_time_s):
            frame = av.VideoFrame.from_ndarray(picture(index, *size_px), format="rgb24")
            frame.pts, frame.time_base = round(time_s * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        if len(frame_time_s):
            container.mux(stream.encode(None))
        if sound_s:
            for piece in _tone(sound_s, rate_hz, channels, sound_start_s):
                container.mux(voice.encode(piece))
            container.mux(voice.encode(None))
    return path


def _tone(sound_s: float, rate_hz: int, channels: tuple[float, ...], start_s: float) -> Iterator[Any]:
    tone_S = 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(sound_s * rate_hz)) / rate_hz)
    sound_CS = np.stack([gain * tone_S for gain in channels]).astype(np.float32)
    for start in range(0, sound_CS.shape[1], 1024):
        piece = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(sound_CS[:, start : start + 1024]),
            format="fltp",
            layout="mono" if len(channels) == 1 else "stereo",
        )
        piece.sample_rate, piece.time_base = rate_hz, Fraction(1, rate_hz)
        piece.pts = round(start_s * rate_hz) + start
        yield piece


def _cut(share: float, **settings: Any) -> _Maker:
    def make(path: Path) -> None:
        content = record(path, **settings).read_bytes()
        path.write_bytes(content[: int(share * len(content))])

    return make


def _spoil(change: Callable[[bytearray], object], **settings: Any) -> _Maker:
    def make(path: Path) -> None:
        content = bytearray(record(path, **settings).read_bytes())
        change(content)
        path.write_bytes(content)

    return make


def _packets(path: Path, kind: str) -> list[tuple[int, int]]:
    with av.open(str(path)) as container:
        stream = container.streams.get({kind: 0})[0]
        return [(packet.pos, packet.size) for packet in container.demux(stream) if packet.size]


def _damage(kind: str, places: Callable[[int], list[int]], **settings: Any) -> _Maker:
    """Return what makes nonsense of some packets of a kind, of so many."""

    def make(path: Path) -> None:
        packets = _packets(record(path, **settings), kind)
        content = bytearray(path.read_bytes())
        for place in places(len(packets)):
            start, size = packets[place]
            content[start : start + size] = b"\xff" * size
        path.write_bytes(content)

    return make


def _replace(old: bytes, new: bytes) -> Callable[[bytearray], object]:
    def change(content: bytearray) -> None:
        assert content.count(old), f"{old!r} is not in the file"
        content[:] = content.replace(old, new)

    return change


def _no_index(content: bytearray) -> None:
    del content[content.index(b"moov") - 4 :]


def _broken_index(content: bytearray) -> None:
    start = content.index(b"trak") - 4
    content[start:] = bytes(len(content) - start)


def _zero_middle(content: bytearray) -> None:
    """Clear the middle of the packets, as where a download left a hole."""
    start, end = content.index(b"mdat") + 4, content.index(b"moov") - 4
    hole = slice(start + (end - start) // 3, start + 2 * (end - start) // 3)
    content[hole] = bytes(hole.stop - hole.start)


def _zero_packets(content: bytearray) -> None:
    start, end = content.index(b"mdat") + 4, content.index(b"moov") - 4
    content[start:end] = bytes(end - start)


def _long_frames(content: bytearray) -> None:
    """Let every frame of an MP4 last for days."""
    at = content.index(b"stts") + 12
    content[at + 4 : at + 8] = struct.pack(">I", 2**31 - 1)


def _absurd_length(content: bytearray) -> None:
    """Let the header of a Matroska file tell of a thousand years: the element Duration, in milliseconds."""
    at = content.index(b"\x44\x89\x88") + 3
    content[at : at + 8] = struct.pack(">d", 1000 * 365.25 * 86_400 * 1000)


def _sample_rate(rate_hz: float) -> Callable[[bytearray], object]:
    def change(content: bytearray) -> None:
        at = content.index(b"\xb5\x88" + struct.pack(">d", RATE_HZ)) + 2
        content[at : at + 8] = struct.pack(">d", rate_hz)

    return change


def _huge_picture(content: bytearray) -> None:
    """Let a Matroska file of 320 x 320 declare 60000 x 60000: the elements PixelWidth and PixelHeight."""
    for element in (b"\xb0", b"\xba"):
        _replace(element + b"\x82\x01\x40", element + b"\x82\xea\x60")(content)


def _large_picture(content: bytearray) -> None:
    """Let it declare 12000 x 12000, which FFmpeg itself would decode."""
    for element in (b"\xb0", b"\xba"):
        _replace(element + b"\x82\x01\x40", element + b"\x82\x2e\xe0")(content)


def _many_streams(path: Path) -> None:
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("aac", rate=RATE_HZ, layout="mono") for _ in range(70)]
        for stream in streams:
            for piece in _tone(0.1, RATE_HZ, (1.0,), 0.0):
                container.mux(stream.encode(piece))
        for stream in streams:
            container.mux(stream.encode(None))


def _no_frames(path: Path) -> None:
    """Write a track for a picture that no frame came for, as where a camera did not start."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        voice = container.add_stream("pcm_s16le", rate=RATE_HZ, layout="mono")
        for piece in _tone(LENGTH_S, RATE_HZ, (1.0,), 0.0):
            container.mux(voice.encode(piece))


def _remux(source: Path, path: Path, change: Callable[[Any], object], **options: str) -> None:
    with av.open(str(source)) as old, av.open(str(path), "w", options=options) as new:
        streams = {stream.index: new.add_stream_from_template(stream) for stream in old.streams}
        for packet in old.demux():
            if packet.size:
                packet.stream = streams[packet.stream.index]
                change(packet)
                new.mux(packet)


def _earlier(path: Path) -> None:
    """Move a recording half a second forward: an MP4 hides what lies before 0, a Matroska file loses its stamps."""

    def move(packet: Any) -> None:
        ticks = round(0.5 / packet.time_base)
        packet.pts, packet.dts = packet.pts - ticks, packet.dts - ticks

    source = record(path.with_name(f"source{path.suffix}"), options={"bf": "0"})
    _remux(source, path, move, avoid_negative_ts="disabled")
    source.unlink()


def _repeated_recording(path: Path) -> None:
    """Put a recording behind itself: its time stamps jump back."""
    path.write_bytes(2 * record(path, options={"bf": "0"}).read_bytes())


def _sound_with_cover(path: Path) -> None:
    song, cover = path.with_name("song.mp3"), path.with_name("cover.png")
    record(song, frame_time_s=(), sound="libmp3lame")
    Image.fromarray(picture(0)).save(cover)
    body = b"\x00image/png\x00\x03\x00" + cover.read_bytes()
    frame = b"APIC" + struct.pack(">I", len(body)) + b"\x00\x00" + body
    size = bytes(len(frame) >> shift & 127 for shift in (21, 14, 7, 0))
    path.write_bytes(b"ID3\x03\x00\x00" + size + frame + song.read_bytes())
    song.unlink()
    cover.unlink()


def _subtitles(path: Path) -> None:
    text = path.with_name("text.srt")
    text.write_text("1\n00:00:00,000 --> 00:00:01,000\nA word.\n\n2\n00:00:01,000 --> 00:00:02,000\nAnother.\n")
    _remux(text, path, lambda packet: None)
    text.unlink()


def _archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.mp4", b"no video" * 100)


def _playlist(text: str) -> _Maker:
    """Return what writes a list that names a good recording beside it."""

    def make(path: Path) -> None:
        other = path.with_name("named_by_a_list.mp4")
        if not other.exists():
            record(other)
        path.write_text(text.format(name=other.name, path=other))

    return make


_HLS = "#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-TARGETDURATION:10\n#EXTINF:1.6,\n{path}\n#EXT-X-ENDLIST\n"
_DASH = (
    '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT2S" '
    'profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period><AdaptationSet mimeType="video/mp4">'
    '<Representation id="0" bandwidth="1000"><BaseURL>{path}</BaseURL>'
    "</Representation></AdaptationSet></Period></MPD>\n"
)
_SDP = (
    "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=a\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
)
_LATE = _REGULAR + 0.5
_UNEVEN = np.concatenate([[0.0], np.cumsum(np.random.default_rng(0).uniform(0.02, 0.1, NUM_FRAMES - 1))])
_PCM: dict[str, Any] = {"sound": "pcm_s16le"}
_FRONT: dict[str, Any] = {"container_options": {"movflags": "faststart"}}

FILES: dict[str, tuple[str | None, _Maker]] = {
    # no media at all
    "empty.mp4": ("unreadable", lambda path: path.write_bytes(b"")),
    "text.mp4": ("unreadable", lambda path: path.write_text("this is no video\n" * 100)),
    "error_page.mp4": (
        "unreadable",
        lambda path: path.write_text("<!DOCTYPE html><html><body>404</body></html>\n" * 20),
    ),
    "archive.mp4": ("unreadable", _archive),
    "image.mp4": ("unreadable", lambda path: Image.fromarray(picture(0)).save(path, "png")),
    "photo.mp4": ("unreadable", lambda path: Image.fromarray(picture(0)).save(path, "jpeg")),
    "noise.mp4": ("unreadable", lambda path: path.write_bytes(np.random.default_rng(0).bytes(20_000))),
    # no file at all
    "missing.mp4": ("missing_file", lambda path: None),
    "broken_link.mp4": ("missing_file", lambda path: path.symlink_to("nowhere.mp4")),
    "link_to_itself.mp4": ("unreadable", lambda path: path.symlink_to(path.name)),
    "folder.mp4": ("unreadable", lambda path: path.mkdir()),
    "pipe.mp4": ("unreadable", os.mkfifo),
    "endless.mp4": ("unreadable", lambda path: path.symlink_to("/dev/zero")),
    NO_READING: ("unreadable", lambda path: record(path).chmod(0)),
    # lists of other files, which must not be followed
    "list_hls.mp4": ("unreadable", _playlist(_HLS)),
    "list_concat.mp4": ("unreadable", _playlist("ffconcat version 1.0\nfile {name}\n")),
    "list_dash.mp4": ("unreadable", _playlist(_DASH)),
    "list_sdp.mp4": ("unreadable", _playlist(_SDP)),
    # damaged
    "no_index.mp4": ("unreadable", _spoil(_no_index)),
    "broken_index.mp4": ("unreadable", _spoil(_broken_index)),
    "cut_off.mp4": ("truncated", _cut(0.6, sound_s=8.0, frame_time_s=np.arange(200) / FPS, **_FRONT)),
    "cut_off.mkv": ("truncated", _cut(0.6, sound_s=8.0, frame_time_s=np.arange(200) / FPS)),
    "cut_off.avi": ("truncated", _cut(0.6, sound_s=8.0, frame_time_s=np.arange(200) / FPS, video="mpeg4", **_PCM)),
    "hole.mp4": ("corrupt_packets", _spoil(_zero_middle)),
    "nothing_but_holes.mp4": ("unreadable", _spoil(_zero_packets)),
    "damaged_picture.mp4": ("corrupt_packets", _damage("video", lambda count: list(range(1, count, 4)))),
    "damaged_sound.mp4": ("corrupt_packets", _damage("audio", lambda count: list(range(1, count, 4)), sound="flac")),
    "one_bad_packet.mp4": (None, _damage("video", lambda count: [count // 2], options={"bf": "0"})),
    # of another content than is wanted
    "no_sound.mp4": ("no_audio_stream", lambda path: record(path, sound_s=0.0)),
    "no_picture.mp4": ("no_video_stream", lambda path: record(path, frame_time_s=())),
    "no_frames.mkv": ("no_video_stream", _no_frames),
    "song_with_cover.mp4": ("no_video_stream", _sound_with_cover),
    "subtitles.mkv": ("no_video_stream", _subtitles),
    "one_frame.mp4": ("too_short", lambda path: record(path, frame_time_s=[0.0])),
    "seven_frames.mp4": ("too_short", lambda path: record(path, frame_time_s=np.arange(7) / FPS)),
    "time_lapse.mp4": ("too_slow", lambda path: record(path, frame_time_s=1.5 * np.arange(12), sound_s=16.0)),
    "stamps_below_zero.mkv": ("unreadable", _earlier),
    "stamps_jump_back.ts": ("unreadable", _repeated_recording),
    "no_stamps.mpg": ("unreadable", lambda path: record(path, video="mpeg4", sound="mp2")),
    # hostile
    "huge_picture.mkv": ("over_limit", _spoil(_huge_picture, video="ffv1", size_px=(320, 320))),
    "large_picture.mkv": ("over_limit", _spoil(_large_picture, video="ffv1", size_px=(320, 320))),
    "many_streams.mp4": ("over_limit", _many_streams),
    "many_streams.mkv": ("over_limit", _many_streams),
    "thousand_years.mkv": ("over_limit", _spoil(_absurd_length)),
    "days_per_frame.mp4": ("over_limit", _spoil(_long_frames)),
    "slow_sound.mkv": ("over_limit", _spoil(_sample_rate(1.0), **_PCM)),
    "fast_sound.mkv": ("over_limit", _spoil(_sample_rate(1e9), **_PCM)),
    # odd, but good
    "good.mp4": (None, record),
    "eight_frames.mp4": (None, lambda path: record(path, frame_time_s=np.arange(8) / FPS)),
    "variable_rate.mkv": (None, lambda path: record(path, frame_time_s=_UNEVEN, sound_s=3.0)),
    "late_sound.mp4": (None, lambda path: record(path, sound_start_s=0.5)),
    "late_picture.mp4": (None, lambda path: record(path, frame_time_s=_LATE)),
    "half_sound.mp4": (None, lambda path: record(path, sound_s=LENGTH_S / 2)),
    "rotated.mp4": (None, lambda path: record(path, rotation=90, size_px=(96, 64))),
    "ten_bit.mkv": (None, lambda path: record(path, video="libx265", pixels="yuv420p10le", options=_QUIET)),
    "high_ten.mp4": (None, lambda path: record(path, pixels="yuv420p10le")),
    "full_colour.mp4": (None, lambda path: record(path, pixels="yuv444p")),
    "vp9_444.webm": (
        None,
        lambda path: record(path, video="libvpx-vp9", pixels="yuv444p", sound="libopus", rate_hz=48_000),
    ),
    "av1.mkv": (None, lambda path: record(path, video="libsvtav1", options={"preset": "12"})),
    "grey.mkv": (None, lambda path: record(path, video="ffv1", pixels="gray")),
    "odd_size.avi": (None, lambda path: record(path, video="mjpeg", pixels="yuvj420p", size_px=(253, 255), **_PCM)),
    "tiny.mp4": (None, lambda path: record(path, size_px=(16, 16))),
    "sound_8k.mp4": (None, lambda path: record(path, rate_hz=8_000)),
    "sound_96k.mkv": (None, lambda path: record(path, rate_hz=96_000, sound="flac")),
    "antiphase.mkv": (None, lambda path: record(path, channels=(1.0, -1.0), **_PCM)),
    "begins_before_zero.mp4": (None, _earlier),
    "http:name.mp4": (None, record),
    "two\nlines.mp4": (None, record),
    os.fsdecode(b"latin\xe9.mp4"): (None, record),
}
"""Name -> the reason that a person would give, None for a good file, and what writes it."""
_QUIET = {"x265-params": "log-level=none", "preset": "ultrafast"}


def write_files(folder: Path) -> dict[str, str | None]:
    """Write all files that can be made here; return the reason of each, None for a good one."""
    reasons = {}
    for name, (reason, make) in FILES.items():
        if NEEDS_ENCODER.get(name, "libx264") in av.codecs_available and not (name == NO_READING and os.geteuid() == 0):
            make(folder / name)
            reasons[name] = reason
    return reasons


def judge(path: Path) -> dict[str, Any]:
    """Return what reading a file to its end says, as extraction reads it: the reason, a message, and what was lost."""
    try:
        timeline = probe(path)
        grid = ClipGrid.lay(timeline, hop=8)
        with Reading(path, timeline, np.ones(timeline.num_frames, np.bool_)) as reading:
            num_items = sum(1 for _ in reading)
            footage.check_losses(reading.losses, MAX_CORRUPT)
    except RecordingError as error:
        return {"reason": error.reason, "message": str(error), "share": error.share}
    return {"reason": None, "num_items": num_items, "num_clips": grid.num_clips, "losses": asdict(reading.losses)}


class Judge:
    """Judges files in a process of its own; a file that takes longer than `limit_s`, or kills it, is told by its name.

    For a ``with`` statement.
    """

    def __init__(self, folder: Path, limit_s: float = 20.0) -> None:
        command = [sys.executable, __file__, str(folder)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._limit_s = limit_s

    def __enter__(self) -> "Judge":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def __call__(self, name: str) -> dict[str, Any]:
        """Return what `judge` says of a file."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(name).encode() + b"\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], self._limit_s)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            self._process.kill()
            raise AssertionError(f"{name!r} took more than {self._limit_s} s" if not ready else f"{name!r} kills")
        found: dict[str, Any] = json.loads(line)
        return found


if __name__ == "__main__":
    for line in sys.stdin:
        sys.stdout.write(json.dumps(judge(Path(sys.argv[1]) / json.loads(line))) + "\n")
        sys.stdout.flush()
