"""Pictures and sound lie on the container's clock: a flash and a beep are found where they were put."""

import contextlib
import struct
from collections.abc import Callable
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
    remux,
    repeat_stamps,
    write_changing_sound,
    write_video,
)

from avfuse import media
from avfuse.encoders.spectrogram_resnet import MIN_SAMPLES, SpectrogramResNetEncoder
from avfuse.media import ClipGrid, SoundReader, Timeline, probe, read_frames
from avfuse.schema import Annotation, RecordingError

RATE_HZ = media.SAMPLE_RATE_HZ
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


def every_frame(path: Path, timeline: Timeline) -> dict[int, npt.NDArray[np.uint8]]:
    return dict(read_frames(path, timeline, np.ones(timeline.num_frames, np.bool_)))


def grid_of(num_frames: int, hop: int, fps: float = 30.0) -> ClipGrid:
    return ClipGrid.lay(Timeline.from_pts(np.arange(num_frames), 1 / fps), hop)


@every_recording
def test_flash_is_in_its_frame(name: str, tmp_path: Path) -> None:
    path, flash_s = write_flash_and_beep(tmp_path, name)
    timeline = probe(path)
    frames = every_frame(path, timeline)
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
    with SoundReader(path) as sound:
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
    with SoundReader(path) as sound:
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
    with SoundReader(path) as sound:
        whole_S = sound.read(4.0, 6 * RATE_HZ)  # from two seconds before the recording to one after
    assert np.abs(whole_S[2 * RATE_HZ : 5 * RATE_HZ]).max() > 0.3
    for hop_s in (1 / 30, 8 / 30, 2.0):  # far overlapping, overlapping and apart
        with SoundReader(path) as sound:
            for end_s in np.arange(hop_s, 4.0, hop_s):
                end = round(end_s * RATE_HZ) + 2 * RATE_HZ
                np.testing.assert_array_equal(sound.read(end_s, 45_570), whole_S[end - 45_570 : end])


def test_sound_is_streamed(tmp_path: Path) -> None:
    noise_S = np.random.default_rng(0).uniform(-0.5, 0.5, 30 * RATE_HZ).astype(np.float32)
    path = write_video(tmp_path / "long.mkv", [0.0, 1.0], sound_CS=noise_S)
    with SoundReader(path) as sound:
        held = []
        for end_s in np.arange(0.2, 30, 0.2):
            sound.read(end_s, 45_570)
            held.append(len(sound._held_S))
        assert sound.num_decoded >= 29 * RATE_HZ
    assert max(held) <= 45_570 + 2 * 1024  # a window and the packets that it ends and begins in


def test_frames_are_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", CONSTANT_S)
    decoded = []
    decode = media._decode
    monkeypatch.setattr(media, "_decode", lambda path: (decoded.append(frame) or frame for frame in decode(path)))
    wanted_F = np.zeros(120, np.bool_)
    wanted_F[[3, 100]] = True
    frames = read_frames(path, Timeline.from_pts(probe(path).frame_pts, 1 / 15_360), wanted_F)
    assert next(frames)[0] == 3
    assert len(decoded) == 4
    assert [index for index, _ in frames] == [100]


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
    with SoundReader(path) as sound:
        window_S = sound.read(4.0, 4 * RATE_HZ)
    packet_s = 1024 / RATE_HZ  # the gap begins and ends at a packet
    silent_s = np.flatnonzero(np.convolve(np.abs(window_S), np.ones(100), "valid") == 0) / RATE_HZ
    assert abs(silent_s[0] - 1.0) < packet_s
    assert abs(silent_s[-1] + 100 / RATE_HZ - 2.0) < packet_s
    # Matroska's milliseconds shift the second part by half a millisecond at most: 440 Hz moves by 0.7 of the amplitude.
    np.testing.assert_allclose(window_S[: RATE_HZ - 1024], tone_S[: RATE_HZ - 1024], atol=1e-3)
    np.testing.assert_allclose(window_S[3 * RATE_HZ :], tone_S[3 * RATE_HZ :], atol=0.7 * 0.5 * 2)


def test_overlapping_sound_is_heard_once(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", [0.0, 1.0], sound_CS=beep(0.1, 1.0))
    with SoundReader(path) as sound:
        # Time stamps that step back: what was there first stays, and nothing later is moved.
        pieces = [(0, 1), (500, 2), (100, 3), (1700, 4)]
        sound._pieces = iter((position, np.full(1000, value, np.float32)) for position, value in pieces)
        window_S = sound.read(3000 / RATE_HZ, 3000)
    np.testing.assert_array_equal(window_S, np.repeat([1, 2, 0, 4, 0], [1000, 500, 200, 1000, 300]))


def test_resampling_keeps_the_frequency(tmp_path: Path) -> None:
    tone_S = 0.5 * np.sin(2 * np.pi * 1234 * np.arange(2 * 16_000) / 16_000).astype(np.float32)
    path = write_video(tmp_path / "a.mkv", [0.0, 2.0], sound_CS=tone_S, rate_hz=16_000)
    with SoundReader(path) as sound:
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
    assert max(map(abs, steps_s)) < media.GAP_TOLERANCE_S  # else a new resampler would be made for the gap
    with SoundReader(path) as sound:
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
    with SoundReader(path) as sound:
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
    upright_YXC = every_frame(path, probe(path))[0]
    assert upright_YXC.shape == ((64, 48, 3) if rotation % 180 else (48, 64, 3))
    x, y = _corner_after_rotation(path)
    near, far = slice(None, 16), slice(-16, None)
    corner_YXC = upright_YXC[near if y < 0 else far, near if x < 0 else far]
    assert corner_YXC.mean() > 0.9 * BRIGHT
    assert upright_YXC.flags.c_contiguous


def test_colours_are_rgb(tmp_path: Path) -> None:
    image_YXC = np.broadcast_to(np.array([200, 100, 30], np.uint8), (FRAME_PX, FRAME_PX, 3)).copy()
    path = write_video(tmp_path / "a.mp4", [0.0, 0.04], lambda _: image_YXC)
    np.testing.assert_allclose(every_frame(path, probe(path))[0].mean(axis=(0, 1)), [200, 100, 30], atol=8)  # lossy


def test_clips_follow_the_paper() -> None:
    grid = grid_of(100, hop=8)
    np.testing.assert_array_equal(grid.end_frame_N, np.arange(7, 100, 8))
    for end, frame_K in zip(grid.end_frame_N, grid.frame_NK, strict=True):
        np.testing.assert_array_equal(frame_K, [max(0, end - 4 * k) for k in (7, 6, 5, 4, 3, 2, 1, 0)])
    np.testing.assert_allclose(grid.end_time_s, grid.end_frame_N / 30, atol=1e-12)
    assert grid.num_samples == 45_570
    assert grid_of(100, hop=8, fps=15).num_samples == 91_140


@pytest.mark.parametrize(
    ("num_frames", "hop", "ends"),
    [(1, 8, [0]), (7, 8, [6]), (8, 8, [7]), (15, 8, [7]), (16, 8, [7, 15]), (5, 1, [0, 1, 2, 3, 4]), (31, 32, [30])],
)
def test_every_recording_has_a_clip(num_frames: int, hop: int, ends: list[int]) -> None:
    grid = grid_of(num_frames, hop)
    assert grid.end_frame_N.tolist() == ends
    assert grid.num_clips == len(ends)
    assert grid.frame_NK.shape == (len(ends), 8)
    assert grid.frame_NK[:, 0].tolist() == [max(0, end - 28) for end in ends]


@pytest.mark.parametrize("num_frames", [1, 7])
def test_short_recording(num_frames: int, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", CONSTANT_S[:num_frames], flash(num_frames - 1), beep(0.0, 0.5))
    timeline = probe(path)
    assert timeline.num_frames == timeline.num_slots == num_frames
    assert not timeline.variable
    frames = every_frame(path, timeline)
    assert list(frames) == list(range(num_frames))
    assert frames[num_frames - 1].mean() > 200
    grid = ClipGrid.lay(timeline, hop=8)
    with SoundReader(path) as sound:
        assert sound.read(grid.end_time_s[0], grid.num_samples).shape == (grid.num_samples,)


def test_slots_of_a_variable_frame_rate() -> None:
    timeline = Timeline.from_pts(np.array([1000, 1010, 1020, 1500, 1510, 2000]), 0.001)
    assert timeline.variable
    assert timeline.fps == pytest.approx(5 / (2 * 0.5))
    slot = np.arange(-2, timeline.num_slots)
    np.testing.assert_allclose(timeline.slot_time_s(slot), 1.0 + slot / timeline.fps)
    shown = [
        max(np.flatnonzero(timeline.frame_time_s <= time_s + 1e-3), default=0) for time_s in timeline.slot_time_s(slot)
    ]
    np.testing.assert_array_equal(timeline.slot_frame(slot), shown)
    assert timeline.slot_frame(slot)[-1] == 5


@pytest.mark.parametrize("fps", [23.976, 25, 29.97, 59.94])
def test_milliseconds_do_not_make_a_rate_variable(fps: float) -> None:
    timeline = Timeline.from_pts(np.round(np.arange(1000) / fps * 1000).astype(np.int64), 0.001)
    assert not timeline.variable
    assert timeline.fps == pytest.approx(fps, rel=2e-5)  # 1 ms in 999 intervals


def test_a_dropped_frame_makes_the_rate_variable() -> None:
    pts = np.delete(np.arange(300), 100)
    timeline = Timeline.from_pts(pts, 1 / 30)
    assert timeline.variable
    shown = timeline.slot_frame(np.arange(timeline.num_slots))
    assert abs(timeline.frame_time_s[shown] - timeline.slot_time_s(np.arange(timeline.num_slots))).max() < 1.01 * 2 / 30


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
        ("index_damaged", "no_video_stream"),
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
        ("index_damaged", "no_audio_stream"),
    ],
)
def test_unusable_sound(kind: str, reason: str, tmp_path: Path) -> None:
    path = _broken(tmp_path, kind)
    with pytest.raises(RecordingError, match=str(path)) as caught:
        SoundReader(path)
    assert caught.value.reason == reason


def test_video_without_sound(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", CONSTANT_S)
    with pytest.raises(RecordingError, match=r"a\.mp4 holds no audio stream") as caught:
        SoundReader(path)
    assert caught.value.reason == "no_audio_stream"


def test_video_without_one_good_frame(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", CONSTANT_S)
    timeline, content = probe(path), bytearray(path.read_bytes())
    start, end = content.index(b"mdat") + 4, content.index(b"moov") - 4
    content[start:end] = bytes(end - start)
    path.write_bytes(content)
    with pytest.raises(RecordingError, match=r"a\.mp4: no frame") as caught:
        every_frame(path, timeline)
    assert caught.value.reason == "unreadable"


def _noise(i: int) -> npt.NDArray[np.uint8]:
    """Return a picture of its own for every index, hard to compress."""
    return np.random.default_rng(i).integers(0, 255, (8, 8, 3), np.uint8).repeat(8, axis=0).repeat(8, axis=1)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_damage_in_the_middle_costs_its_frames_alone(suffix: str, tmp_path: Path) -> None:
    path = write_video(
        tmp_path / f"a.{suffix}", CONSTANT_S, _noise, beep(2.3, 4.0), video_options={"g": "12", "bf": "2"}
    )
    pristine = every_frame(path, probe(path))
    content = bytearray(path.read_bytes())
    start = len(content) // 2
    content[start : start + 3000] = bytes(3000)
    path.write_bytes(content)
    timeline = probe(path)
    frames = every_frame(path, timeline)
    assert all(a < b for a, b in pairwise(frames))
    by_time = {round(float(timeline.frame_time_s[i]), 3): image for i, image in frames.items()}
    same = [np.array_equal(by_time.get(round(i / 30, 3)), image) for i, image in pristine.items()]
    assert same[0]
    assert same[-1]
    assert 120 - 3 * 12 <= sum(same) < 120  # the damage touches at most three groups of 12 frames
    with SoundReader(path) as sound:
        assert sound.read(4.0, 4 * RATE_HZ).shape == (4 * RATE_HZ,)
        assert sound.num_decoded > 3 * RATE_HZ


def test_file_that_breaks_off(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", CONSTANT_S, _noise, beep(0.3, 4.0), video_options={"bf": "2"})
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    timeline = probe(path)
    assert 30 < timeline.num_frames < 90
    frames = every_frame(path, timeline)
    assert len(frames) >= timeline.num_frames - 1  # the last packet is cut
    with SoundReader(path) as sound:
        window_S = sound.read(4.0, 4 * RATE_HZ)
    assert np.abs(window_S[: RATE_HZ // 2]).max() > 0.3
    assert not window_S[3 * RATE_HZ :].any()


def test_a_stream_that_appears_midway_ends_the_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Damage to a transport stream can look like a new stream, of which PyAV knows nothing."""
    content = bytearray(write_video(tmp_path / "whole.ts", np.arange(100) / 25, sound_CS=beep(1.0, 4.0)).read_bytes())
    rng, num_broken_off = np.random.default_rng(0), 0
    for _ in range(40):
        damaged = bytearray(content)
        for place in rng.integers(len(content), size=40):
            damaged[place] = rng.integers(256)
        path = tmp_path / "damaged.ts"
        path.write_bytes(damaged)
        caplog.clear()
        with contextlib.suppress(RecordingError):  # nothing worse comes of it
            assert 0 < media.probe(path).num_frames <= 100
        num_broken_off += "list index out of range" in caplog.text
    assert num_broken_off  # the damage that is meant was among it


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
        monkeypatch.setattr(media, "_decode", lambda *_, frames=decoded: iter(frames))
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

    total = count(10**9)
    assert total == num_passes * 121  # the last packet is empty
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
    timeline = media.probe(path)
    assert (timeline.num_frames, timeline.is_ordered) == (100, is_ordered)
    read = list(media.read_frames(path, timeline, np.ones(100, np.bool_)))
    assert [index for index, _ in read] == list(range(100))
    # The grey levels of a fade, two apart from frame to frame, blurred by coding at low quality in MPEG-4.
    levels = np.array([pixels.mean() for _, pixels in read])
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
    timeline, everything = media.probe(path), np.ones(120, np.bool_)
    assert [_number_of(pixels) for _, pixels in media.read_frames(path, timeline, everything)] == list(range(120))
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    start, size = places[50]
    content[start + 8 : start + size] = bytes(size - 8)
    path.write_bytes(content)
    read = {index: _number_of(pixels) for index, pixels in media.read_frames(path, timeline, everything)}
    # The group of 24 pictures with the damage is concealed as the decoder may; the others are where they were.
    behind = [index for index in read if index >= 72]
    assert len(behind) == 48
    assert all(read[index] == index for index in behind)


def test_ratings_of_an_avi_count_from_its_first_frame(tmp_path: Path) -> None:
    """It has no time stamps; those that FFmpeg gives its frames may begin an interval late."""
    for codec, tolerance_s in (("libx264", 1e-6), ("mpeg4", 0.04)):
        path = write_video(tmp_path / f"{codec}.avi", np.arange(50) / 25, sound_CS=beep(0.5, 2.0), video_codec=codec)
        # The first stamp and the last, too, may be guessed, up to an interval off.
        rated_s = media.probe(path).rated_time_s[:-1]
        np.testing.assert_allclose(rated_s, np.arange(49) / 25, rtol=0, atol=tolerance_s)
