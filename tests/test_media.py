"""Pictures and sound lie on the container's clock: a flash and a beep are found where they were put."""

import contextlib
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import (
    BRIGHT,
    DARK,
    FRAME_PX,
    beep,
    flash,
    frames_of,
    remux,
    repeat_stamps,
    sound_of,
    write_changing_sound,
    write_video,
)

from avfuse import media, survey
from avfuse.encoders.spectrogram_resnet import MIN_SAMPLES, SpectrogramResNetEncoder
from avfuse.media import NO_PICTURE, Frame, Losses, Reading, probe, probe_sound
from avfuse.schema import Annotation, RecordingError
from avfuse.sound import GAP_TOLERANCE_S, NO_MORE, Sound, SoundBuffer
from avfuse.timeline import SAMPLE_RATE_HZ as RATE_HZ
from avfuse.timeline import ClipGrid, Timeline

CONSTANT_S = np.arange(120) / 30
# Frames 20 to 100 ms apart; the flash's frame is shown long enough to own a slot.
VARIABLE_S = np.concatenate([[0.0], np.cumsum(np.random.default_rng(0).uniform(0.02, 0.1, 70))])
VARIABLE_S[52:] += 0.1
FLASH, BEEP_S, TONE_S = 51, 2.3, 0.05
RECORDINGS = {
    "constant.mp4": {"frame_time_s": CONSTANT_S},
    "constant.mkv": {"frame_time_s": CONSTANT_S},
    "variable.mp4": {"frame_time_s": VARIABLE_S},
    "variable.mkv": {"frame_time_s": VARIABLE_S},
    "sound_late.mp4": {"frame_time_s": CONSTANT_S, "sound_start_s": 1.0},
    "sound_late.mkv": {"frame_time_s": CONSTANT_S, "sound_start_s": 1.0},
    "video_late.mp4": {"frame_time_s": CONSTANT_S + 1.0},
    "video_late.mkv": {"frame_time_s": CONSTANT_S + 1.0},
    "resampled.mp4": {"frame_time_s": CONSTANT_S, "rate_hz": 16_000},
    # AVI has no presentation times; FFmpeg puts the first frame one interval late where there are B-frames.
    "b_frames.avi": {
        "frame_time_s": CONSTANT_S,
        "video_codec": "mpeg4",
        "video_options": {"bf": "2"},
        "sound_codec": "pcm_s16le",
    },
}
every_recording = pytest.mark.parametrize("name", list(RECORDINGS))


def write_flash_and_beep(folder: Path, name: str) -> tuple[Path, float]:
    """Write a recording of `RECORDINGS`; return its path and when its flash is shown."""
    settings = dict(RECORDINGS[name])
    rate_hz, late_s = settings.get("rate_hz", RATE_HZ), settings.get("sound_start_s", 0.0)
    sound_S = beep(BEEP_S - late_s, 5.0 - late_s, rate_hz)
    write_video(folder / name, image=flash(FLASH), sound_CS=sound_S, **settings)
    return folder / name, float(settings["frame_time_s"][FLASH])


@every_recording
def test_flash_is_in_its_frame(name: str, tmp_path: Path) -> None:
    path, flash_s = write_flash_and_beep(tmp_path, name)
    timeline = probe(path)
    frames = frames_of(path, timeline)
    assert list(frames) == list(range(len(RECORDINGS[name]["frame_time_s"])))
    assert [i for i, image in frames.items() if image.mean() > (DARK + BRIGHT) / 2] == [FLASH]
    assert timeline.variable == name.startswith("variable")
    # Matroska rounds to milliseconds, MP4 keeps the muxer's time base; AVI is one interval late, see above.
    assert abs(timeline.frame_time_s[FLASH] - flash_s) <= (1 / 30 + 1e-6 if name.endswith(".avi") else 0.001)


@every_recording
def test_flash_is_in_its_clip(name: str, tmp_path: Path) -> None:
    path, flash_s = write_flash_and_beep(tmp_path, name)
    timeline = probe(path)
    grid = ClipGrid.lay(timeline, hop=1)
    first = int(np.flatnonzero((grid.frame_NK == FLASH).any(axis=1))[0])
    assert grid.frame_NK[first, -1] == grid.end_frame_N[first] == FLASH
    assert -0.001 <= grid.end_time_s[first] - flash_s <= 1 / timeline.fps + 0.001  # milliseconds in Matroska


@every_recording
def test_beep_is_where_it_was_put(name: str, tmp_path: Path) -> None:
    path, _ = write_flash_and_beep(tmp_path, name)
    grid = ClipGrid.lay(probe(path), hop=8)
    num_heard = 0
    sound = sound_of(path)
    for end_s in grid.end_time_s:
        window_S = sound.read(end_s, grid.num_samples)
        start_s = end_s - grid.num_samples / RATE_HZ
        loud = np.flatnonzero(np.abs(window_S) > 0.1)  # the tone's peak is 0.5; coding noise stays below 0.1
        if start_s < BEEP_S and end_s > BEEP_S + TONE_S:
            num_heard += 1
            # The tone is at 0.1 within 0.04 ms; MP4 starts a late stream on a whole millisecond.
            assert abs(start_s + loud[0] / RATE_HZ - BEEP_S) < 0.002
            assert abs(start_s + loud[-1] / RATE_HZ - BEEP_S - TONE_S) < 0.002
        elif start_s > BEEP_S + TONE_S + 0.01 or end_s < BEEP_S - 0.01:
            assert len(loud) == 0
    assert num_heard >= 2


@every_recording
def test_beep_is_in_its_spectrogram_column(name: str, tmp_path: Path) -> None:
    path, _ = write_flash_and_beep(tmp_path, name)
    grid = ClipGrid.lay(probe(path), hop=8)
    end_s = float(grid.end_time_s[np.searchsorted(grid.end_time_s, BEEP_S + 0.2)])
    sound = sound_of(path)
    window_S = sound.read(end_s, grid.num_samples)
    level_MW = SpectrogramResNetEncoder("random:0").log_mel(torch.from_numpy(window_S)[None])[0, 0]
    power_W = (10 ** (level_MW * 19.895 / 10)).sum(dim=0).numpy()
    centre = (power_W * np.arange(len(power_W))).sum() / power_W.sum()
    before_end_s = end_s - (BEEP_S + TONE_S / 2)
    expected = (max(MIN_SAMPLES, grid.num_samples) - before_end_s * RATE_HZ) / 441
    assert abs(centre - expected) < 0.5  # half a column is 5 ms


def test_windows_equal_one_whole_read(tmp_path: Path) -> None:
    noise_S = np.random.default_rng(0).uniform(-0.5, 0.5, 3 * 16_000).astype(np.float32)
    path = write_video(tmp_path / "a.mp4", CONSTANT_S, sound_CS=noise_S, rate_hz=16_000)
    sound = sound_of(path)
    whole_S = sound.read(4.0, 6 * RATE_HZ)  # from two seconds before the recording to one after
    assert np.abs(whole_S[2 * RATE_HZ : 5 * RATE_HZ]).max() > 0.3
    for hop_s in (1 / 30, 8 / 30, 2.0):  # far overlapping, overlapping and apart
        sound = sound_of(path)
        for end_s in np.arange(hop_s, 4.0, hop_s):
            end = round(end_s * RATE_HZ) + 2 * RATE_HZ
            np.testing.assert_array_equal(sound.read(end_s, 45_570), whole_S[end - 45_570 : end])


def test_frames_are_streamed(tmp_path: Path) -> None:
    """A frame is there as soon as its packet, and what it depends on, has been read."""
    path = write_video(tmp_path / "a.mp4", CONSTANT_S, video_options={"bf": "0", "tune": "zerolatency"})
    timeline, wanted_F = probe(path), np.zeros(120, np.bool_)
    wanted_F[[3, 100]] = True
    with Reading(path, timeline, wanted_F, sound=False) as reading:
        items = iter(reading)
        assert next(items) is NO_MORE
        first = next(items)
        assert isinstance(first, Frame)
        assert first.index == 3
        assert reading.losses.num_video_packets < 10
        assert [item.index for item in items if isinstance(item, Frame)] == [100]
        assert reading.losses == Losses(num_video_packets=120)


def test_gap_in_sound_is_silence(tmp_path: Path) -> None:
    tone_S = 0.5 * np.sin(2 * np.pi * 440 * np.arange(4 * RATE_HZ) / RATE_HZ).astype(np.float32)
    whole = write_video(tmp_path / "whole.mkv", CONSTANT_S, sound_CS=tone_S, sound_codec="pcm_s16le")
    path = tmp_path / "gap.mkv"
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is None:  # the end
                continue
            if packet.stream.type == "video" or not 1.0 <= packet.pts * packet.time_base < 2.0:
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    sound = sound_of(path)
    window_S = sound.read(4.0, 4 * RATE_HZ)
    packet_s = 1024 / RATE_HZ  # the gap begins and ends at a packet
    silent_s = np.flatnonzero(np.convolve(np.abs(window_S), np.ones(100), "valid") == 0) / RATE_HZ
    assert abs(silent_s[0] - 1.0) < packet_s
    assert abs(silent_s[-1] + 100 / RATE_HZ - 2.0) < packet_s
    # Matroska's milliseconds shift the second part by half a millisecond at most: 440 Hz moves by 0.7 of the amplitude.
    np.testing.assert_allclose(window_S[: RATE_HZ - 1024], tone_S[: RATE_HZ - 1024], atol=1e-3)
    np.testing.assert_allclose(window_S[3 * RATE_HZ :], tone_S[3 * RATE_HZ :], atol=0.7 * 0.5 * 2)


def test_resampling_keeps_the_frequency(tmp_path: Path) -> None:
    tone_S = 0.5 * np.sin(2 * np.pi * 1234 * np.arange(2 * 16_000) / 16_000).astype(np.float32)
    path = write_video(tmp_path / "a.mkv", [0.0, 2.0], sound_CS=tone_S, rate_hz=16_000)
    sound = sound_of(path)
    spectrum = np.abs(np.fft.rfft(sound.read(1.5, RATE_HZ)))  # one second: a bin is 1 Hz
    assert np.argmax(spectrum) == 1234


@pytest.mark.parametrize(
    "parts", [((44_100, 1), (44_100, 2)), ((44_100, 1), (22_050, 1)), ((22_050, 2), (48_000, 1)), ((44_100, 2),) * 2]
)
def test_a_sound_may_change_midway(parts: tuple[tuple[int, int], ...], tmp_path: Path) -> None:
    """The tone goes on at its pitch and its level through a change of channels or rate that is no gap."""
    path = write_changing_sound(tmp_path / "a.ts", parts)
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
        start_s = frames[0].time
    assert [
        (rate_hz, channels) for rate_hz, channels in dict.fromkeys((f.rate, f.layout.nb_channels) for f in frames)
    ] == (list(dict.fromkeys(parts)))
    steps_s = [b.time - a.time - a.samples / a.rate for a, b in pairwise(frames)]
    assert max(map(abs, steps_s)) < GAP_TOLERANCE_S  # else a new resampler would be made for the gap
    sound = sound_of(path)
    sound_S = sound.read(start_s + 4.0, 4 * RATE_HZ)
    for second in (0.5, 2.5):
        part_S = sound_S[round(second * RATE_HZ) : round((second + 1) * RATE_HZ)]
        assert np.argmax(np.abs(np.fft.rfft(part_S))) == 440  # one second: a bin is 1 Hz
        assert np.sqrt(np.square(part_S).mean()) == pytest.approx(0.5 / np.sqrt(2), rel=0.02)
    # The encoder fades each part in and out over the 2048 samples of its window; nothing more is silent.
    window = round(0.1 * RATE_HZ)
    level = np.abs(sound_S[window : len(sound_S) // window * window]).reshape(-1, window).max(axis=1)
    assert level.min() > 0.3


@pytest.mark.parametrize(("right", "peak"), [(1.0, 0.5), (-1.0, 0.0), (0.0, 0.25)])
def test_stereo_is_averaged(right: float, peak: float, tmp_path: Path) -> None:
    tone_S = 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE_HZ) / RATE_HZ).astype(np.float32)
    sound_CS = np.stack([tone_S, right * tone_S]).astype(np.float32)
    path = write_video(tmp_path / "a.mkv", [0.0, 1.0], sound_CS=sound_CS, sound_codec="pcm_s16le")
    sound = sound_of(path)
    assert np.abs(sound.read(1.0, RATE_HZ)).max() == pytest.approx(peak, abs=1e-3)  # 16 bits


def _corner_after_rotation(path: Path) -> tuple[float, float]:
    """Return where the file's own display matrix brings the top left corner: the signs of x and y from the centre."""
    content = path.read_bytes()
    at = content.index(b"tkhd") + 4 + 40
    a, b, _, c, d = (number / 65_536 for number in struct.unpack(">5i", content[at : at + 20]))
    return -a - c, -b - d


@pytest.mark.parametrize("rotation", [0, 90, 180, 270, -90])
def test_frames_are_upright(rotation: int, tmp_path: Path) -> None:
    image_YXC = np.full((48, 64, 3), DARK, np.uint8)
    image_YXC[:16, :16] = BRIGHT
    path = write_video(tmp_path / "a.mp4", [0.0, 0.04], lambda _: image_YXC, rotation=rotation)
    upright_YXC = frames_of(path, probe(path))[0]
    assert upright_YXC.shape == ((64, 48, 3) if rotation % 180 else (48, 64, 3))
    x, y = _corner_after_rotation(path)
    near, far = slice(None, 16), slice(-16, None)
    corner_YXC = upright_YXC[near if y < 0 else far, near if x < 0 else far]
    assert corner_YXC.mean() > 0.9 * BRIGHT
    assert upright_YXC.flags.c_contiguous


def test_colours_are_rgb(tmp_path: Path) -> None:
    image_YXC = np.broadcast_to(np.array([200, 100, 30], np.uint8), (FRAME_PX, FRAME_PX, 3)).copy()
    path = write_video(tmp_path / "a.mp4", [0.0, 0.04], lambda _: image_YXC)
    np.testing.assert_allclose(frames_of(path, probe(path))[0].mean(axis=(0, 1)), [200, 100, 30], atol=8)  # lossy


def _broken(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.mp4"
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("this is no video\n" * 100)
    elif kind == "sound_only":
        write_video(path, [], sound_CS=beep(0.1, 1.0))
    elif kind != "missing":
        content = bytearray(write_video(path, CONSTANT_S, sound_CS=beep(0.1, 1.0)).read_bytes())
        if kind == "truncated":
            content = content[: content.index(b"moov") - 4]  # MP4 carries its index at the end
        elif kind == "index_damaged":
            content[content.index(b"trak") - 4 :] = bytes(len(content) - content.index(b"trak") + 4)
        path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "missing_file"),
        ("empty", "unreadable"),
        ("text", "unreadable"),
        ("truncated", "unreadable"),
        ("index_damaged", "unreadable"),
        ("sound_only", "no_video_stream"),
    ],
)
def test_unusable_video(kind: str, reason: str, tmp_path: Path) -> None:
    path = _broken(tmp_path, kind)
    with pytest.raises(RecordingError, match=str(path)) as caught:
        probe(path)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "missing_file"),
        ("empty", "unreadable"),
        ("text", "unreadable"),
        ("index_damaged", "unreadable"),
    ],
)
def test_unusable_sound(kind: str, reason: str, tmp_path: Path) -> None:
    path = _broken(tmp_path, kind)
    with pytest.raises(RecordingError, match=str(path)) as caught:
        sound_of(path)
    assert caught.value.reason == reason


def test_video_without_sound(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", CONSTANT_S)
    with pytest.raises(RecordingError, match=r"a\.mp4 holds no audio stream") as caught:
        Reading(path, probe(path), np.ones(120, np.bool_))
    assert caught.value.reason == "no_audio_stream"


def test_video_without_one_good_frame(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", CONSTANT_S)
    timeline, content = probe(path), bytearray(path.read_bytes())
    start, end = content.index(b"mdat") + 4, content.index(b"moov") - 4
    content[start:end] = bytes(end - start)
    path.write_bytes(content)
    with pytest.raises(RecordingError, match=r"a\.mp4: no frame") as caught:
        frames_of(path, timeline)
    assert caught.value.reason == "unreadable"


def _noise(i: int) -> npt.NDArray[np.uint8]:
    """Return a picture of its own for every index, hard to compress."""
    return np.random.default_rng(i).integers(0, 255, (8, 8, 3), np.uint8).repeat(8, axis=0).repeat(8, axis=1)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_damage_in_the_middle_costs_its_frames_alone(suffix: str, tmp_path: Path) -> None:
    path = write_video(
        tmp_path / f"a.{suffix}", CONSTANT_S, _noise, beep(2.3, 4.0), video_options={"g": "12", "bf": "2"}
    )
    pristine = frames_of(path, probe(path))
    content = bytearray(path.read_bytes())
    start = len(content) // 2
    content[start : start + 3000] = bytes(3000)
    path.write_bytes(content)
    timeline = probe(path)
    frames = frames_of(path, timeline)
    assert all(a < b for a, b in pairwise(frames))
    by_time = {round(float(timeline.frame_time_s[i]), 3): image for i, image in frames.items()}
    same = [np.array_equal(by_time.get(round(i / 30, 3)), image) for i, image in pristine.items()]
    assert same[0]
    assert same[-1]
    assert 120 - 3 * 12 <= sum(same) < 120  # the damage touches at most three groups of 12 frames
    sound = sound_of(path)
    assert sound.read(4.0, 4 * RATE_HZ).shape == (4 * RATE_HZ,)
    assert sound.num_decoded > 3 * RATE_HZ


def test_file_that_breaks_off(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", CONSTANT_S, _noise, beep(0.3, 4.0), video_options={"bf": "2"})
    timeline, content = probe(path), path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(RecordingError, match=r"a\.mkv breaks off: it holds 1\.[0-9]* s of 4\.0[0-9]* s") as caught:
        probe(path)
    assert caught.value.reason == "truncated"
    frames = frames_of(path, timeline)  # what is there can be decoded
    assert 30 < len(frames) < 90


def _apart(folder: Path, source: Path) -> Path:
    """Copy a recording so that all of its sound stands behind all of its picture."""
    path = folder / "apart.mkv"
    with av.open(str(source)) as old, av.open(str(path), "w", options={"max_interleave_delta": "1"}) as new:
        streams = {stream.index: new.add_stream_from_template(stream) for stream in old.streams}
        packets = sorted((p for p in old.demux() if p.size), key=lambda packet: packet.stream.type == "audio")
        for packet in packets:
            packet.stream = streams[packet.stream.index]
            new.mux(packet)
    return path


def _whole(path: Path) -> tuple[Timeline, list[Frame | Sound], Losses]:
    timeline = probe(path)
    with Reading(path, timeline, np.ones(timeline.num_frames, np.bool_)) as reading:
        return timeline, list(reading), reading.losses


@pytest.mark.parametrize("sound_s", [4.0, 1.5, 9.0])
def test_a_file_is_read_alike_whatever_the_order_of_its_packets(
    sound_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where sound stands far behind the picture, it is read beside it, a second ahead."""
    monkeypatch.setattr(media, "MAX_LAG_S", 2.0)
    noise_S = np.random.default_rng(0).uniform(-0.5, 0.5, round(sound_s * RATE_HZ)).astype(np.float32)
    path = write_video(tmp_path / "a.mkv", CONSTANT_S, _noise, noise_S, sound_codec="pcm_s16le")
    together, apart = _whole(path), _whole(_apart(tmp_path, path))
    assert together[0].sound_lag_s == pytest.approx(max(0.0, abs(sound_s - 4.0)), abs=0.2)
    assert apart[0].sound_lag_s == pytest.approx(max(4.0, sound_s - 4.0), abs=0.2)
    assert together[2] == apart[2]
    assert together[2].num_video_packets == 120
    buffers = []
    for _, items, _ in (together, apart):
        assert [item.index for item in items if isinstance(item, Frame)] == list(range(120))
        buffers.append(SoundBuffer())
        for item in items:
            if isinstance(item, Sound):
                buffers[-1].add(*item)
    frames = [[item.pixels_YXC for item in items if isinstance(item, Frame)] for _, items, _ in (together, apart)]
    np.testing.assert_array_equal(*frames)
    heard = [buffer.read(4.0, 4 * RATE_HZ) for buffer in buffers]
    np.testing.assert_array_equal(*heard)
    np.testing.assert_allclose(heard[0][:RATE_HZ], noise_S[:RATE_HZ], atol=1e-4)  # 16 bits


@pytest.mark.parametrize("sound_s", [4.0, 1.5, 9.0])
def test_sound_that_is_read_beside_the_picture_keeps_pace(
    sound_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media, "MAX_LAG_S", 0.0)
    path = write_video(tmp_path / "a.mkv", CONSTANT_S, sound_CS=beep(0.3, sound_s), sound_codec="pcm_s16le")
    timeline, items, losses = _whole(_apart(tmp_path, path))
    come_s, num_samples = 0.0, 0
    for item in items:
        if isinstance(item, Sound):
            come_s, num_samples = (item.position + len(item.samples_S)) / RATE_HZ, num_samples + len(item.samples_S)
        else:
            assert come_s >= timeline.frame_time_s[item.index]  # its sound is there
            assert come_s > 1e9 or come_s < timeline.frame_time_s[item.index] + 1.1  # and little more, or no more comes
    assert num_samples / RATE_HZ == pytest.approx(min(sound_s, 5.0), abs=0.1)
    assert losses.num_audio_packets == pytest.approx(sound_s * RATE_HZ / 1024, abs=1)  # what is not yielded is counted


def _damage(path: Path, kind: str, places: Sequence[int]) -> None:
    """Make nonsense of the sizes that stand in some packets of an MP4."""
    with av.open(str(path)) as container:
        stream = container.streams.get({kind: 0})[0]
        packets = [(packet.pos, packet.size) for packet in container.demux(stream) if packet.size]
    content = bytearray(path.read_bytes())
    for place in places:
        start, size = packets[place]
        content[start : start + min(size, 8)] = b"\xff" * min(size, 8)
    path.write_bytes(content)


def test_a_bad_packet_costs_itself_and_is_counted(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", CONSTANT_S, _noise, beep(2.3, 4.0), video_options={"bf": "0"})
    _, whole, losses = _whole(path)
    assert losses == Losses(losses.num_video_packets, 0, losses.num_audio_packets, 0)
    assert losses.counted() == {}
    _damage(path, "video", [7, 60, 61])
    _, items, lossy = _whole(path)
    assert lossy == Losses(120, 3, losses.num_audio_packets, 0)
    assert lossy.counted() == {
        "num_video_packets": 120,
        "num_video_lost": 3,
        "num_audio_packets": losses.num_audio_packets,
        "num_audio_lost": 0,
    }
    indices = [item.index for item in items if isinstance(item, Frame)]
    assert indices == [index for index in range(120) if index not in (7, 60, 61)]
    assert sum(isinstance(item, Sound) for item in items) == sum(isinstance(item, Sound) for item in whole)


def test_what_is_not_wanted_is_not_read(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", CONSTANT_S, sound_CS=beep(2.3, 4.0))
    timeline, all_F = probe(path), np.ones(120, np.bool_)
    with Reading(path, timeline, all_F, sound=False) as reading:
        first, *others = list(reading)
        assert first is NO_MORE
        assert len(others) == 120
        assert reading.losses == Losses(num_video_packets=120)
    with Reading(path, timeline, all_F, picture=False) as reading:
        first, *others = list(reading)
        assert first is NO_PICTURE
        assert all(isinstance(item, Sound) for item in others)
        assert reading.losses.num_video_packets == 0
        assert reading.losses.num_audio_packets > 100


def test_a_recording_of_sound_alone_has_a_regular_timeline(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", [], sound_CS=beep(0.1, 4.0), sound_start_s=1.0, sound_codec="pcm_s16le")
    timeline = probe_sound(path)
    np.testing.assert_allclose(timeline.frame_time_s, 1.0 + np.arange(100) / 25)
    assert (timeline.fps, timeline.variable, timeline.zero_s) == (pytest.approx(25.0), False, 1.0)
    assert timeline.sound_lag_s == 0.0
    silent = write_video(tmp_path / "b.mkv", CONSTANT_S)
    with pytest.raises(RecordingError, match="holds no audio stream") as caught:
        probe_sound(silent)
    assert caught.value.reason == "no_audio_stream"


def test_a_stream_that_appears_midway_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Damage to a transport stream can look like a new stream, of which PyAV knows nothing."""
    content = bytearray(write_video(tmp_path / "whole.ts", np.arange(100) / 25, sound_CS=beep(1.0, 4.0)).read_bytes())
    rng, num_damaged = np.random.default_rng(0), 0
    for _ in range(40):
        damaged = bytearray(content)
        for place in rng.integers(len(content), size=40):
            damaged[place] = rng.integers(256)
        path = tmp_path / "damaged.ts"
        path.write_bytes(damaged)
        caplog.clear()
        with contextlib.suppress(RecordingError):  # nothing worse comes of it
            assert 0 < probe(path).num_frames <= 100
        num_damaged += "streams that appear midway" in caplog.text
    assert num_damaged  # the damage that is meant was among it


# Time stamps


def trace(time_s: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(np.sin(0.9 * time_s))


def rated(timeline: Timeline) -> npt.NDArray[np.float32]:
    """Return what a trace from 0 on, ten times a second, gives the frames."""
    rated_s = np.arange(0.0, 9.0, 0.1)
    return Annotation(("valence",), trace(rated_s)[:, None], rated_s).at(timeline.rated_time_s)[:, 0]


def _transport_stream(folder: Path) -> tuple[Path, float, float]:
    made = write_video(folder / "made.ts", CONSTANT_S, sound_CS=beep(0.1, 4.0), video_options={"bf": "0"})
    # AAC puts a piece of 1024 samples before the sound: with it the recording begins, the picture follows.
    return remux(made, folder / "a.ts", shift_s=1.4), 1.4, 1024 / RATE_HZ


def _late_picture(folder: Path) -> tuple[Path, float, float]:
    return write_video(folder / "a.mp4", CONSTANT_S + 1.0, sound_CS=beep(0.1, 5.0)), 0.0, 1.0


def _late_as_a_whole(folder: Path) -> tuple[Path, float, float]:
    pcm = {"sound_codec": "pcm_s16le", "sound_start_s": 2.0}
    return write_video(folder / "a.mkv", CONSTANT_S + 2.0, sound_CS=beep(0.1, 4.0), **pcm), 2.0, 0.0


def _early_sound(folder: Path) -> tuple[Path, float, float]:
    """What lies before 0, as a codec's lead may, is no part of what a player shows."""
    made = write_video(folder / "made.mkv", CONSTANT_S + 1.0, sound_CS=beep(0.1, 5.0), sound_codec="pcm_s16le")
    return remux(made, folder / "a.mkv", shift_s=-1.0, options={"avoid_negative_ts": "disabled"}), 0.0, 0.0


@pytest.mark.parametrize("make", [_transport_stream, _late_picture, _late_as_a_whole, _early_sound])
def test_ratings_count_from_what_a_player_shows(
    make: Callable[[Path], tuple[Path, float, float]], tmp_path: Path
) -> None:
    path, zero_s, late_s = make(tmp_path)
    timeline = probe(path)
    assert timeline.zero_s == pytest.approx(zero_s, abs=1e-3)
    np.testing.assert_allclose(timeline.frame_time_s, zero_s + late_s + CONSTANT_S, atol=1.5e-3)  # of milliseconds
    np.testing.assert_array_equal(timeline.rated_time_s, timeline.frame_time_s - timeline.zero_s)
    # Linear interpolation errs by h^2/8 max|f''| = 1e-3, a millisecond by 1e-3.
    np.testing.assert_allclose(rated(timeline), trace(late_s + CONSTANT_S), atol=3e-3)


def test_frames_of_one_time_stamp_are_one(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mkv", CONSTANT_S, video_options={"bf": "0"})
    assert probe(whole).num_unplaced == 0
    path = repeat_stamps(whole, tmp_path / "a.mkv", (10, 50, 51))
    timeline = probe(path)
    assert (timeline.num_frames, timeline.num_unplaced) == (117, 3)
    assert Timeline.from_pts(np.array([7, 7, 7]), 0.04).num_unplaced == 2


def _program_stream(path: Path) -> Path:
    """Write MPEG-4 where a stamp goes with each packet of the container, of which each holds many small frames."""
    codecs = {"video_codec": "mpeg4", "sound_codec": "mp2"}
    return write_video(path, CONSTANT_S, sound_CS=beep(0.1, 4.0), **codecs)  # type: ignore[arg-type]


def test_frames_without_time_stamps_are_refused(tmp_path: Path) -> None:
    path = _program_stream(tmp_path / "a.mpg")
    with av.open(str(path)) as container:
        num_unstamped = sum(frame.pts is None for frame in container.decode(video=0))
    assert num_unstamped > 100
    found = rf"{num_unstamped} of 120 frames carry no time stamp; .* \+genpts"
    with pytest.raises(RecordingError, match=found) as caught:
        probe(path)
    assert caught.value.reason == "unreadable"


def test_a_few_frames_may_be_without_time_stamps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _program_stream(tmp_path / "a.mpg")
    for num_unstamped in (0, 1, 2, 3):
        pts = [None] * num_unstamped + list(range(100 - num_unstamped))
        decoded = [SimpleNamespace(pts=value) for value in pts]
        monkeypatch.setattr(survey, "decode", lambda _, packet, frames=decoded: [] if packet else frames)
        if num_unstamped == 3:  # of 100; 2 % are allowed
            with pytest.raises(RecordingError, match="3 of 100 frames carry no time stamp"):
                probe(path)
        else:
            timeline = probe(path)
            assert (timeline.num_frames, timeline.num_unplaced) == (100 - num_unstamped, num_unstamped)


@pytest.mark.parametrize(("name", "num_passes"), [("a.mp4", 1), ("a.mpg", 2)])
def test_probing_can_be_ended_at_any_packet(name: str, num_passes: int, tmp_path: Path) -> None:
    """A program stream without presentation times is decoded too."""
    path = tmp_path / name
    _program_stream(path) if name.endswith("mpg") else write_video(path, CONSTANT_S)

    class Enough(BaseException):
        pass

    def count(limit: int) -> int:
        seen: list[int] = []

        def on_packet() -> None:
            seen.append(1)
            if len(seen) == limit:
                raise Enough

        with contextlib.suppress(Enough, RecordingError):
            probe(path, on_packet)
        return len(seen)

    with av.open(str(path)) as container:
        num_packets = sum(1 for _ in container.demux())  # the last one of each stream is empty
    total = count(10**9)
    num_found = num_packets + (num_passes - 1) * 121
    assert total == (num_found if num_passes == 1 else 2 * num_found + 1)  # refused, looked at again, and read
    assert [count(limit) for limit in (1, 60, total - 1)] == [1, 60, total - 1]


@pytest.mark.parametrize(
    ("suffix", "codec", "is_ordered"), [("avi", "libx264", True), ("avi", "mpeg4", False), ("mp4", "libx264", False)]
)
def test_every_frame_between_b_frames_is_read(suffix: str, codec: str, is_ordered: bool, tmp_path: Path) -> None:
    """In an AVI H.264 frames carry no stamps, and those that FFmpeg guesses are not in the order in which they show."""
    path = write_video(
        tmp_path / f"video.{suffix}",
        np.arange(100) / 25,
        lambda i: np.full((64, 64, 3), 20 + 2 * i, np.uint8),
        video_codec=codec,
        video_options={"bf": "2"},
    )
    timeline = probe(path)
    assert (timeline.num_frames, timeline.is_ordered) == (100, is_ordered)
    read = frames_of(path, timeline)
    assert list(read) == list(range(100))
    # The grey levels of a fade, two apart from frame to frame, blurred by coding at low quality in MPEG-4.
    levels = np.array([pixels.mean() for pixels in read.values()])
    np.testing.assert_allclose(levels, 20 + 2 * np.arange(100), rtol=0, atol=1.9 if codec == "libx264" else 6)


def _numbered(i: int) -> npt.NDArray[np.uint8]:
    """Return a picture whose seven bars say its number in binary."""
    bars = np.array([(i >> bit & 1) * 235 for bit in range(7)], np.uint8)
    return np.broadcast_to(bars.repeat(16)[None, :, None], (64, 112, 3)).copy()


def _number_of(pixels: npt.NDArray[np.uint8]) -> int:
    return sum(int(pixels[:, 16 * bit + 4 : 16 * bit + 12].mean() > 120) << bit for bit in range(7))


def test_a_damaged_packet_between_b_frames_moves_no_frame_far_behind_it(tmp_path: Path) -> None:
    options = {"bf": "2", "g": "24", "crf": "10"}
    path = write_video(tmp_path / "a.avi", np.arange(120) / 25, _numbered, video_codec="libx264", video_options=options)
    timeline = probe(path)
    assert [_number_of(pixels) for pixels in frames_of(path, timeline).values()] == list(range(120))
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    start, size = places[50]
    content[start + 8 : start + size] = bytes(size - 8)
    path.write_bytes(content)
    read = {index: _number_of(pixels) for index, pixels in frames_of(path, timeline).items()}
    # The group of 24 pictures with the damage is concealed as the decoder may; the others are where they were.
    behind = [index for index in read if index >= 72]
    assert len(behind) == 48
    assert all(read[index] == index for index in behind)


def test_ratings_of_an_avi_count_from_its_first_frame(tmp_path: Path) -> None:
    """It has no time stamps; those that FFmpeg gives its frames may begin an interval late."""
    for codec, tolerance_s in (("libx264", 1e-6), ("mpeg4", 0.04)):
        path = write_video(tmp_path / f"{codec}.avi", np.arange(50) / 25, sound_CS=beep(0.5, 2.0), video_codec=codec)
        # The first stamp and the last, too, may be guessed, up to an interval off.
        rated_s = probe(path).rated_time_s[:-1]
        np.testing.assert_allclose(rated_s, np.arange(49) / 25, rtol=0, atol=tolerance_s)


@pytest.mark.parametrize("bf", ["0", "2"])
@pytest.mark.parametrize(("place", "shift_s"), [(60, 4.0), (61, 15.0), (40, 28.0)])
def test_one_wrong_time_stamp_costs_its_frame(bf: str, place: int, shift_s: float, tmp_path: Path) -> None:
    whole = write_video(tmp_path / "a.mkv", np.arange(120) / 25, _numbered, video_options={"bf": bf, "crf": "10"})
    damaged, count = tmp_path / "b.mkv", iter(range(120))
    remux(whole, damaged, restamp=lambda ticks: ticks + round(1000 * shift_s * (next(count) == place)))
    timeline = probe(damaged)
    assert (timeline.num_frames, timeline.num_unplaced) == (120, 0)
    np.testing.assert_allclose(timeline.frame_time_s, np.arange(120) / 25, atol=0.002 if bf == "0" else 0.04)
    with Reading(damaged, timeline, np.ones(120, np.bool_), sound=False) as reading:
        read = {item.index: _number_of(item.pixels_YXC) for item in reading if isinstance(item, Frame)}
        losses = reading.losses
    assert list(read) == list(read.values())
    assert len(read) == 119
    assert (losses.num_video_packets, losses.num_video_lost) == (120, 1)


def test_a_time_stamp_that_leaps_may_be_the_truth(tmp_path: Path) -> None:
    for name, bf in (("a.mkv", "0"), ("b.mp4", "0"), ("c.mp4", "3"), ("d.ts", "3")):
        time_s = np.concatenate([np.arange(50) / 25, 4 + np.arange(3) / 25, 8 + np.arange(40) / 25, [14.0]])
        path = write_video(tmp_path / name, time_s, _numbered, video_options={"bf": bf, "crf": "10"})
        timeline = probe(path)
        np.testing.assert_allclose(timeline.frame_time_s - timeline.frame_time_s[0], time_s, atol=0.002)
        read = {index: _number_of(pixels) for index, pixels in frames_of(path, timeline).items()}
        assert read == {index: index for index in range(94)}


def test_frames_that_do_not_come_are_lost_though_no_packet_fails(tmp_path: Path) -> None:
    """A transport stream that begins between two key frames: until the second, nothing is decoded."""
    options = {"g": "40", "bf": "0", "crf": "10", "x264-params": "scenecut=0"}
    whole = write_video(tmp_path / "a.ts", np.arange(120) / 25, _numbered, video_options=options)
    count = iter(range(200))
    path = remux(whole, tmp_path / "b.ts", keep=lambda packet: next(count) >= 15)
    timeline = probe(path)
    with Reading(path, timeline, np.ones(105, np.bool_), sound=False) as reading:
        read = {item.index: _number_of(item.pixels_YXC) for item in reading if isinstance(item, Frame)}
        losses = reading.losses
    assert read == {index: index + 15 for index in range(25, 105)}
    assert (losses.num_video_packets, losses.num_video_lost) == (105, 25)


def _packed(source: Path, path: Path) -> Path:
    """Write an AVI as XviD does: a frame and the one shown before it in one packet, and an empty one behind it."""
    with av.open(str(source)) as old:
        packets = [bytes(packet) for packet in old.demux(video=0) if packet.size]
    kinds = [packet[packet.index(b"\0\0\1\xb6") + 4] >> 6 for packet in packets]  # 2 for one shown between others
    for i, kind in enumerate(kinds):
        if kind == 2:
            packets[i - 1] += packets[i]
            packets[i] = b"\0\0\1\xb6\x51\x7f\xff"
    start = packets[0].index(b"\0\0\1\xb6")
    packets[0] = packets[0][:start] + b"\0\0\1\xb2DivX503b1393p" + packets[0][start:]
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for i, content in enumerate(packets):
            packet = av.Packet(content)
            packet.stream, packet.time_base, packet.pts, packet.dts = stream, Fraction(1, 25), i, i
            packet.is_keyframe = kinds[i] == 0
            new.mux(packet)
    return path


def test_frames_that_share_a_packet_are_read_in_their_order(tmp_path: Path) -> None:
    options = {"bf": "1", "qscale": "2", "g": "30"}
    plain = write_video(tmp_path / "a.avi", np.arange(100) / 25, _numbered, video_codec="mpeg4", video_options=options)
    path = _packed(plain, tmp_path / "b.avi")
    with av.open(str(path)) as container:
        shown = [_number_of(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    assert shown == list(range(len(shown)))
    timeline = probe(path)
    assert timeline.is_ordered
    with Reading(path, timeline, np.ones(timeline.num_frames, np.bool_), sound=False) as reading:
        read = {item.index: _number_of(item.pixels_YXC) for item in reading if isinstance(item, Frame)}
        losses = reading.losses
    assert read == dict(enumerate(shown))
    assert losses.num_video_lost == timeline.num_frames - len(shown) <= 1  # the first may come twice, or the last not
