"""Files whose clocks, gaps and damage are known by construction measure as they were made."""

import contextlib
import struct
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
from conftest import FRAME_PX, flash, frames_of, remux, repeat_stamps, write_changing_sound, write_video

from avfuse import inspection as inspection_module
from avfuse import media
from avfuse.container import open_file
from avfuse.inspection import Inspection, Picture, Sound, inspect_media
from avfuse.schema import Annotation
from avfuse.timeline import ClipGrid

RATE_HZ = 44_100
FPS = 25
CONSTANT_S = np.arange(100) / FPS
# AAC fills its last piece of 1024 samples (23 ms), and MP4 keeps the piece that it puts before a late start.
PADDING_S = 1024 / RATE_HZ + 0.002
MATROSKA_S = 0.001  # it rounds time stamps to milliseconds, up at one end and down at the other
PCM = {"sound_codec": "pcm_s16le"}


def noise(duration_s: float, level: float = 0.5, rate_hz: int = RATE_HZ) -> npt.NDArray[np.float32]:
    samples_S = np.random.default_rng(0).uniform(-level, level, round(duration_s * rate_hz))
    return samples_S.astype(np.float32)


def busy(index: int) -> npt.NDArray[np.uint8]:
    """Return a picture of its own for every index, hard to compress, so that damage to the file is damage to it."""
    return np.random.default_rng(index).integers(0, 255, (FRAME_PX, FRAME_PX, 3), np.uint8)


def measured(path: Path) -> tuple[Picture, Sound, Inspection]:
    inspection = inspect_media(path)
    assert inspection.picture is not None
    assert inspection.sound is not None
    return inspection.picture, inspection.sound, inspection


def reasons(inspection: Inspection) -> list[str]:
    return [error.reason for error in inspection.errors]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov", "a.ts", "a.webm"])
def test_a_good_file(name: str, tmp_path: Path) -> None:
    codecs: dict[str, Any] = {"video_options": {"bf": "2"}}
    if name.endswith("webm"):
        codecs = {"video_codec": "libvpx-vp9", "sound_codec": "libopus", "rate_hz": 48_000}
    sound_S = noise(4.0, rate_hz=codecs.get("rate_hz", RATE_HZ))
    picture, sound, inspection = measured(write_video(tmp_path / name, CONSTANT_S, flash(3), sound_S, **codecs))
    assert inspection.errors == ()
    assert inspection.timeline is not None
    assert picture.num_frames == picture.num_decoded == inspection.timeline.num_frames == 100
    assert picture.num_advertised == (100 if name[2:] in {"mp4", "mov"} else None)  # elsewhere the header only guesses
    assert (picture.num_lost, picture.num_failed, sound.num_failed, picture.num_gaps, sound.num_gaps) == (0, 0, 0, 0, 0)
    assert (picture.is_variable, picture.fps) == (False, pytest.approx(25))
    assert picture.jitter_max_ms < 1e-6  # 40 ms is a whole number of every container's ticks
    assert picture.length_s == pytest.approx(4.0, abs=MATROSKA_S)
    assert abs(sound.clock_s) < MATROSKA_S
    assert (sound.silent_share, sound.digital_silence_share) == (0.0, 0.0)
    # MPEG-TS and Opus add the codec's delay of one piece at the start as well.
    assert inspection.offset_s == pytest.approx(0.0, abs=PADDING_S)
    assert inspection.drift_s == pytest.approx(0.0, abs=2 * PADDING_S)


def test_avi_without_presentation_times(tmp_path: Path) -> None:
    avi = {"video_codec": "mpeg4", "video_options": {"bf": "2"}, **PCM}
    path = write_video(tmp_path / "a.avi", CONSTANT_S, flash(3), noise(4.0), **avi)
    picture, sound, inspection = measured(path)
    assert picture.num_frames == picture.num_decoded == media.probe(path).num_frames == 100
    assert picture.num_advertised is None
    assert (picture.fps, picture.is_variable) == (pytest.approx(25), False)
    assert picture.jitter_max_ms < 1e-6  # of the frames between the two ends, whose stamps are guesses
    assert sound.num_samples == 4 * RATE_HZ
    assert inspection.drift_s == pytest.approx(0.0, abs=1 / FPS)  # the first stamp is a frame late
    assert inspection.errors == ()


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("offset_s", [-1.0, -0.2, 0.2, 1.0])
def test_sound_that_begins_apart(offset_s: float, suffix: str, tmp_path: Path) -> None:
    """The whole sound is moved: its length, and so the drift, stays as it is."""
    frame_time_s = CONSTANT_S + max(0.0, -offset_s)
    start_s = max(0.0, offset_s)
    path = write_video(tmp_path / f"a.{suffix}", frame_time_s, flash(3), noise(4.0), sound_start_s=start_s)
    _, _, inspection = measured(path)
    assert inspection.offset_s == pytest.approx(offset_s, abs=PADDING_S)
    assert inspection.drift_s == pytest.approx(0.0, abs=2 * PADDING_S)
    assert inspection.end_offset_s == pytest.approx(offset_s, abs=PADDING_S)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("drift_s", [-2.0, -0.6, 0.6, 2.0])
def test_sound_of_another_length(drift_s: float, suffix: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / f"a.{suffix}", CONSTANT_S, flash(3), noise(4.0 + drift_s))
    _, _, inspection = measured(path)
    assert inspection.drift_s == pytest.approx(drift_s, abs=PADDING_S)
    assert inspection.offset_s == pytest.approx(0.0, abs=MATROSKA_S)
    assert inspection.end_offset_s == pytest.approx(drift_s, abs=PADDING_S)


@pytest.mark.parametrize("clock", [0.98, 1.001, 1.02])
def test_sound_whose_clock_is_stretched(clock: float, tmp_path: Path) -> None:
    """Each step is far below 5 ms, so that none is a gap; together they are the drift of the clock."""
    path = write_video(tmp_path / "a.mkv", np.arange(250) / FPS, sound_CS=noise(10.0), sound_clock=clock, **PCM)
    _, sound, _ = measured(path)
    assert sound.num_samples == 10 * RATE_HZ
    assert sound.clock_s == pytest.approx(10.0 * (clock - 1), abs=2 * MATROSKA_S)
    assert (sound.num_gaps, sound.num_overlaps) == (0, 0)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_jitter(suffix: str, tmp_path: Path) -> None:
    """Intervals of 30, 40 and 50 ms in turn: the median is 40, the standard deviation 10 sqrt(2/3)."""
    interval_s = np.tile([0.03, 0.04, 0.05], 33)
    frame_time_s = np.concatenate([[0.0], np.cumsum(interval_s)])
    picture, _, _ = measured(write_video(tmp_path / f"a.{suffix}", frame_time_s, flash(3), noise(4.0)))
    # The two end intervals, of 30 and 50 ms, are left out; MP4 keeps ticks of 1/12800 s.
    assert picture.jitter_sd_ms == pytest.approx(1000 * interval_s[1:-1].std(), abs=0.2)
    assert picture.jitter_max_ms == pytest.approx(10.0, abs=0.2)
    assert picture.fps == pytest.approx(25.0, abs=0.01)
    assert picture.num_gaps == 0


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_variable_frame_rate(suffix: str, tmp_path: Path) -> None:
    interval_s = np.random.default_rng(0).uniform(0.02, 0.1, 99)
    frame_time_s = np.concatenate([[0.5], 0.5 + np.cumsum(interval_s)])
    path = write_video(tmp_path / f"a.{suffix}", frame_time_s, flash(3), noise(6.0))
    picture, _, inspection = measured(path)
    assert picture.is_variable
    assert (picture.num_frames, picture.num_gaps) == (100, 0)
    assert picture.fps == pytest.approx(99 / interval_s.sum(), rel=1e-3)
    inner_s = interval_s[1:-1]
    assert picture.jitter_sd_ms == pytest.approx(1000 * inner_s.std(), abs=0.5)  # rounded to milliseconds
    assert picture.jitter_max_ms == pytest.approx(1000 * np.abs(inner_s - np.median(inner_s)).max(), abs=1.0)
    assert picture.end_s == pytest.approx(frame_time_s[-1] + np.median(inner_s), abs=2 * MATROSKA_S)
    assert inspection.offset_s == pytest.approx(-0.5, abs=PADDING_S)


def test_gap_in_the_picture(tmp_path: Path) -> None:
    frame_time_s = np.concatenate([CONSTANT_S[:50], CONSTANT_S[50:] + 1.0, [8.0]])
    picture, _, _ = measured(write_video(tmp_path / "a.mp4", frame_time_s, flash(3), noise(8.0)))
    assert picture.num_gaps == 2
    assert picture.longest_gap_s == pytest.approx(8.0 - 4.96, abs=1e-3)
    assert picture.longest_gap_at_s == pytest.approx(4.96, abs=1e-3)
    assert picture.jitter_max_ms < 0.1  # gaps are no jitter
    assert picture.is_variable


@pytest.mark.parametrize(("num_missing", "num_gaps"), [(1, 0), (2, 1), (3, 1)])
def test_two_missing_frames_are_a_gap(num_missing: int, num_gaps: int, tmp_path: Path) -> None:
    frame_time_s = np.delete(CONSTANT_S, np.arange(50, 50 + num_missing))
    picture, _, _ = measured(write_video(tmp_path / "a.mp4", frame_time_s, flash(3), noise(4.0)))
    assert picture.num_gaps == num_gaps
    assert picture.longest_gap_s == pytest.approx(num_gaps * (num_missing + 1) / FPS, abs=1e-3)


def test_frames_of_one_time_stamp(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mkv", CONSTANT_S, flash(3), noise(4.0), video_options={"bf": "0"})
    picture, _, _ = measured(repeat_stamps(whole, tmp_path / "a.mkv", (20, 21, 60)))
    assert (picture.num_frames, picture.num_decoded, picture.num_unplaced, picture.num_lost) == (97, 100, 3, 0)


def test_gap_in_the_sound(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mkv", CONSTANT_S, flash(3), noise(4.0), **PCM)
    path = remux(whole, tmp_path / "a.mkv", lambda p: p.stream.type == "video" or not 1 <= p.pts * p.time_base < 2)
    _, sound, inspection = measured(path)
    piece_s = 1024 / RATE_HZ  # a gap begins and ends at a packet
    assert (sound.num_gaps, sound.num_overlaps) == (1, 0)
    assert sound.longest_gap_s == pytest.approx(1.0, abs=piece_s)
    assert sound.longest_gap_at_s == pytest.approx(1.0, abs=piece_s)
    assert sound.num_samples / RATE_HZ == pytest.approx(4.0 - sound.longest_gap_s, abs=2 * MATROSKA_S)
    assert sound.clock_s == pytest.approx(0.0, abs=2 * MATROSKA_S)  # a gap is no drift of the clock
    assert inspection.drift_s == pytest.approx(0.0, abs=MATROSKA_S)


def test_overlaps_in_the_sound(tmp_path: Path) -> None:
    """Pieces of 23.2 ms every 13.9 ms."""
    path = write_video(tmp_path / "a.mkv", CONSTANT_S, sound_CS=noise(4.0), sound_clock=0.6, **PCM)
    _, sound, _ = measured(path)
    assert sound.num_overlaps == sound.num_packets - 1 == 172
    assert (sound.num_gaps, sound.longest_gap_s, sound.longest_gap_at_s) == (0, 0.0, None)


@pytest.mark.parametrize("rotation", [0, 90, 180])
def test_rotation(rotation: int, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", CONSTANT_S, sound_CS=noise(4.0), rotation=rotation)
    assert abs(measured(path)[0].rotation_deg) == rotation


@pytest.mark.parametrize(
    ("level", "silent", "zero"),
    [(0.0, 1.0, 1.0), (0.0005, 1.0, 0.0), (0.0014, 1.0, 0.0), (0.0022, 0.0, 0.0), (0.01, 0.0, 0.0), (0.5, 0.0, 0.0)],
)
def test_level(level: float, silent: float, zero: float, tmp_path: Path) -> None:
    """White noise has a root mean square of level / sqrt(3): -70.8, -61.8, -57.9 and -44.8 dB in the middle rows."""
    path = write_video(tmp_path / "a.mkv", CONSTANT_S, sound_CS=noise(4.0, level), **PCM)
    _, sound, _ = measured(path)
    assert (sound.silent_share, sound.digital_silence_share) == (silent, zero)


def test_silence_for_a_part(tmp_path: Path) -> None:
    sound_S = noise(4.0)
    sound_S[: RATE_HZ // 2] = 0
    sound_S[3 * RATE_HZ :] *= 1e-3
    _, sound, _ = measured(write_video(tmp_path / "a.mkv", CONSTANT_S, sound_CS=sound_S, **PCM))
    assert sound.silent_share == pytest.approx(1.5 / 4)
    assert sound.digital_silence_share == pytest.approx(0.5 / 4)


@pytest.mark.parametrize("parts", [((44_100, 1), (44_100, 2)), ((44_100, 1), (22_050, 1)), ((44_100, 2), (48_000, 1))])
def test_a_sound_that_changes_midway(parts: tuple[tuple[int, int], ...], tmp_path: Path) -> None:
    path = write_changing_sound(tmp_path / "a.ts", parts)
    _, sound, inspection = measured(path)
    assert inspection.errors == ()
    assert sound.rate_hz == parts[0][0]
    # Each part is filled up to whole pieces of 1024 samples, of which one comes before it.
    assert sound.length_s == pytest.approx(4.0, abs=2 * sum(1024 / rate_hz for rate_hz, _ in parts))
    assert (sound.num_gaps, sound.num_overlaps, sound.silent_share) == (0, 0, 0.0)
    assert abs(sound.clock_s) < MATROSKA_S


def test_silence_is_told_from_sound_in_each_part(tmp_path: Path) -> None:
    """A window has 0.1 s of samples at the rate of its part."""
    path = write_changing_sound(tmp_path / "a.ts", ((48_000, 1), (8_000, 1)), frequency_hz=0.0)
    _, sound, _ = measured(path)
    assert (sound.silent_share, sound.digital_silence_share) == (1.0, 1.0)


def test_stereo_that_cancels_out_is_silent(tmp_path: Path) -> None:
    """The encoder hears the mono mix."""
    sound_CS = np.stack([noise(4.0), -noise(4.0)])
    _, sound, _ = measured(write_video(tmp_path / "a.mkv", CONSTANT_S, sound_CS=sound_CS, **PCM))
    assert sound.silent_share == 1.0


def test_a_sound_shorter_than_a_window(tmp_path: Path) -> None:
    _, sound, _ = measured(write_video(tmp_path / "a.mkv", CONSTANT_S, sound_CS=noise(0.05), **PCM))
    assert (sound.num_samples, sound.silent_share) == (2205, 0.0)


def test_one_frame(tmp_path: Path) -> None:
    picture, _, _ = measured(write_video(tmp_path / "a.mp4", [0.0], flash(0), noise(1.0)))
    assert (picture.num_frames, picture.jitter_max_ms, picture.num_gaps) == (1, 0.0, 0)
    assert np.isnan(picture.fps)


def _whole(folder: Path, suffix: str) -> Path:
    options = {"g": "12", "bf": "2"}
    return write_video(folder / f"whole.{suffix}", CONSTANT_S, busy, noise(4.0), video_options=options)


def test_discarded_frames_do_not_count(tmp_path: Path) -> None:
    """An edit list hides the first ten frames, as a cut without encoding does."""
    options = {"avoid_negative_ts": "disabled"}
    path = remux(_whole(tmp_path, "mp4"), tmp_path / "cut.mp4", shift_s=-0.4, options=options)
    picture, _, inspection = measured(path)
    assert (picture.num_packets, picture.num_discarded, picture.num_advertised) == (100, 10, 100)
    assert picture.num_frames == picture.num_decoded == media.probe(path).num_frames == 90
    assert inspection.drift_s == pytest.approx(0.0, abs=2 * PADDING_S)
    assert inspection.errors == ()


def test_frames_before_the_first_key_frame_are_lost(tmp_path: Path) -> None:
    """No packet fails there, but the decoder needs a key frame to begin."""
    path = remux(
        _whole(tmp_path, "mkv"), tmp_path / "a.mkv", lambda p: p.stream.type == "audio" or p.pts * p.time_base > 0.19
    )
    picture, _, _ = measured(path)
    timeline = media.probe(path)
    shown = frames_of(path, timeline)
    assert picture.num_frames == timeline.num_frames == 95
    assert picture.num_decoded == len(shown) < 95
    assert picture.num_lost == 95 - len(shown)
    assert picture.num_failed == 0


def _packets(path: Path, kind: str) -> list[tuple[int, int]]:
    """Return where the packets of a stream lie in an MP4 file, and how long they are."""
    with av.open(str(path)) as container:
        stream = container.streams.get({kind: 0})[0]
        return [(packet.pos, packet.size) for packet in container.demux(stream) if packet.size]


@pytest.mark.parametrize("num_damaged", [1, 7])
def test_flipped_bytes(num_damaged: int, tmp_path: Path) -> None:
    """The length that stands before the picture in a packet is made nonsense: that packet fails, and no other."""
    path = _whole(tmp_path, "mp4")
    content = bytearray(path.read_bytes())
    for position, _ in _packets(path, "video")[20::10][:num_damaged]:
        content[position] ^= 0xFF
    path.write_bytes(content)
    picture, _, inspection = measured(path)
    assert (picture.num_packets, picture.num_failed) == (100, num_damaged)
    assert picture.num_decoded == 100 - num_damaged
    assert picture.num_lost == num_damaged
    assert inspection.errors == ()


def test_flipped_bytes_in_the_sound(tmp_path: Path) -> None:
    path = _whole(tmp_path, "mp4")
    content = bytearray(path.read_bytes())
    damaged = _packets(path, "audio")[40:60]
    for position, size in damaged:
        content[position : position + size] = b"\xff" * size
    path.write_bytes(content)
    picture, sound, _ = measured(path)
    assert (picture.num_failed, picture.num_lost) == (0, 0)
    assert sound.num_failed == 20
    assert sound.num_gaps >= 1
    piece_s = 1024 / RATE_HZ
    assert 18 * piece_s <= sound.longest_gap_s <= 21 * piece_s
    assert sound.longest_gap_at_s == pytest.approx(39 * piece_s, abs=2 * piece_s)


def test_nothing_can_be_decoded(tmp_path: Path) -> None:
    path = _whole(tmp_path, "mp4")
    content = bytearray(path.read_bytes())
    for position, size in _packets(path, "video") + _packets(path, "audio"):
        content[position : position + size] = bytes(size)
    path.write_bytes(content)
    inspection = inspect_media(path)
    assert inspection.picture is None
    assert inspection.sound is None
    assert "unreadable" in reasons(inspection)
    assert "no_audio_stream" in reasons(inspection)
    assert "no sample of its audio stream can be decoded" in str(inspection.errors[-1])


@pytest.mark.parametrize("suffix", ["mkv", "avi", "mp4"])
def test_truncated_file(suffix: str, tmp_path: Path) -> None:
    avi = {"video_codec": "mpeg4", **PCM} if suffix == "avi" else {}
    path = write_video(tmp_path / f"a.{suffix}", CONSTANT_S, busy, noise(4.0), **avi)
    assert inspect_media(path).errors == ()
    if suffix == "mp4":  # with its index in front, as for streaming
        path = remux(path, tmp_path / "b.mp4", options={"movflags": "faststart"})
        assert inspect_media(path).errors == ()
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    picture, _, inspection = measured(path)
    assert reasons(inspection) == ["truncated"]
    assert "breaks off" in str(inspection.errors[0])
    assert 30 < picture.num_decoded < 70
    if suffix == "mp4":
        assert picture.num_advertised == 100
        assert picture.num_decoded <= picture.num_packets < 70


@pytest.mark.parametrize("tells_length", [False, True])
@pytest.mark.parametrize("start_s", [-3.0, 3.0])
def test_a_file_that_begins_elsewhere_is_not_truncated(start_s: float, tells_length: bool, tmp_path: Path) -> None:
    """FFmpeg writes into a Matroska header when the file ends; others may write how long it lasts."""
    whole = write_video(tmp_path / "whole.mkv", CONSTANT_S + 3.0, flash(3), noise(7.0), **PCM)
    path = remux(whole, tmp_path / "a.mkv", shift_s=start_s, options={"avoid_negative_ts": "disabled"})
    if tells_length:
        content = path.read_bytes()
        at = content.index(b"\x44\x89\x88") + 3  # the element Duration: a decimal number of 8 bytes, in milliseconds
        path.write_bytes(content[:at] + struct.pack(">d", 7000.0) + content[at + 8 :])
    with av.open(str(path)) as container:
        told_s = container.duration / av.time_base
    assert told_s == pytest.approx(7.0 if tells_length else 7.0 + start_s, abs=0.05)
    _, sound, inspection = measured(path)
    np.testing.assert_allclose([sound.start_s, sound.end_s], [start_s, start_s + 7.0], atol=2 * MATROSKA_S)
    assert inspection.errors == ()


def test_a_few_frames_less_than_advertised(tmp_path: Path) -> None:
    path = remux(_whole(tmp_path, "mp4"), tmp_path / "a.mp4", options={"movflags": "faststart"})
    content = path.read_bytes()
    position = _packets(path, "video")[-3][0]
    path.write_bytes(content[:position])
    picture, _, inspection = measured(path)
    assert picture.num_advertised == 100
    assert 95 <= picture.num_packets < 100
    assert inspection.errors == ()


def test_no_sound(tmp_path: Path) -> None:
    inspection = inspect_media(write_video(tmp_path / "a.mp4", CONSTANT_S))
    assert reasons(inspection) == ["no_audio_stream"]
    assert inspection.picture is not None
    assert inspection.sound is None
    assert (inspection.offset_s, inspection.drift_s, inspection.end_offset_s) == (None, None, None)


def test_no_picture(tmp_path: Path) -> None:
    inspection = inspect_media(write_video(tmp_path / "a.mp4", [], sound_CS=noise(4.0)))
    assert reasons(inspection) == ["no_video_stream"]
    assert inspection.picture is None
    assert inspection.timeline is None
    assert inspection.sound is not None
    assert inspection.sound.length_s == pytest.approx(4.0, abs=PADDING_S)


def _no_index(path: Path) -> None:
    content = write_video(path, CONSTANT_S, sound_CS=noise(4.0)).read_bytes()
    path.write_bytes(content[: content.index(b"moov") - 4])


@pytest.mark.parametrize(
    ("spoil", "reason", "words"),
    [
        (lambda path: None, "missing_file", "does not exist"),
        (lambda path: path.write_bytes(b""), "unreadable", "0 bytes"),
        (lambda path: path.write_text("no video\n" * 99), "unreadable", "not a video that can be opened"),
        (_no_index, "unreadable", "not a video that can be opened"),
    ],
    ids=["missing", "empty", "text", "no index"],
)
def test_what_cannot_be_opened(spoil: Callable[[Path], Any], reason: str, words: str, tmp_path: Path) -> None:
    spoil(tmp_path / "a.mp4")
    inspection = inspect_media(tmp_path / "a.mp4")
    assert reasons(inspection) == [reason]
    assert words in str(inspection.errors[0])
    assert inspection.picture is inspection.sound is inspection.timeline is None


def test_time_lapse(tmp_path: Path) -> None:
    inspection = inspect_media(write_video(tmp_path / "a.mp4", np.arange(10) * 1.5, sound_CS=noise(15.0)))
    assert reasons(inspection) == ["too_slow"]
    assert inspection.timeline is not None


def _offset(folder: Path) -> tuple[Path, npt.NDArray[np.float64]]:
    frame_time_s = 1.0 + np.arange(500) / FPS
    return write_video(folder / "offset.mp4", frame_time_s, sound_CS=noise(20.0)), frame_time_s


def _drifting(folder: Path) -> tuple[Path, npt.NDArray[np.float64]]:
    frame_time_s = np.arange(500) / FPS
    path = write_video(folder / "drift.mkv", frame_time_s, sound_CS=noise(20.0), sound_clock=1.02, **PCM)
    return path, frame_time_s


def _variable(folder: Path) -> tuple[Path, npt.NDArray[np.float64]]:
    frame_time_s = 0.5 + np.concatenate([[0.0], np.cumsum(np.random.default_rng(0).uniform(0.02, 0.1, 333))])
    return write_video(folder / "variable.mkv", frame_time_s, sound_CS=noise(20.0)), frame_time_s


@pytest.mark.parametrize("make", [_offset, _drifting, _variable])
def test_clips_get_the_ratings_of_their_time(
    make: Callable[[Path], tuple[Path, npt.NDArray[np.float64]]], tmp_path: Path
) -> None:
    """A trace in seconds, sampled ten times a second, is read at the very times at which the frames were put.

    Linear interpolation errs by h^2/8 max|f''| = 1e-4 and a millisecond of Matroska by 1e-3 max|f'| = 3e-4.
    """

    def trace(time_s: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.asarray(np.sin(0.3 * time_s))

    path, put_s = make(tmp_path)
    inspection = inspect_media(path)
    assert inspection.timeline is not None
    rated_s = np.arange(0.0, 30.0, 0.1)
    target_FE = Annotation(("valence",), trace(rated_s)[:, None], rated_s).at(inspection.timeline.frame_time_s)
    for hop in (1, 8):
        grid = ClipGrid.lay(inspection.timeline, hop)
        assert grid.num_clips > 300 / hop
        np.testing.assert_allclose(target_FE[grid.end_frame_N, 0], trace(put_s[grid.end_frame_N]), atol=1e-3)
        # A clip ends while its last frame is shown.
        shown_s = grid.end_time_s - put_s[grid.end_frame_N]
        assert shown_s.min() > -2 * MATROSKA_S
        assert shown_s.max() < max(b - a for a, b in pairwise(put_s)) + MATROSKA_S


def test_both_streams_are_decoded_in_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is opened twice, once for the time stamps and once for all that is decoded."""
    path = _whole(tmp_path, "mp4")
    opened: list[Path] = []
    for module in (media, inspection_module):
        monkeypatch.setattr(module, "open_file", lambda path: opened.append(path) or open_file(path))
    inspect_media(path)
    assert opened == [path, path]


def test_an_inspection_can_be_ended_at_any_packet(tmp_path: Path) -> None:
    path = _whole(tmp_path, "mp4")

    class Enough(BaseException):
        pass

    def count(limit: int) -> int:
        seen: list[int] = []

        def on_packet() -> None:
            seen.append(1)
            if len(seen) == limit:
                raise Enough

        with contextlib.suppress(Enough):
            inspect_media(path, on_packet)
        return len(seen)

    total = count(10**9)
    assert total > 2 * 100 + 170  # the video's packets for their time stamps, then all
    assert [count(limit) for limit in (1, 60, 150, total - 1)] == [1, 60, 150, total - 1]
