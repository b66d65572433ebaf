"""Face and voice follow their cues, fail where they are to, and reach the file on one clock."""

from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest

from avfuse.synthesis import (
    AAC_FRAME,
    SAMPLE_RATE_HZ,
    SIZE_PX,
    Corruption,
    Script,
    render_frames,
    render_voice,
    smooth_trace,
    write_mp4,
)

FACE_BOX = np.s_[80:150, 95:160]  # rows and columns that lie on the face wherever it moves
CUES = ("light", "smile", "brow", "mouth", "voice", "formant")


def still(num_frames: int = 8, fps: int = 25, failures: tuple[Corruption, ...] = (), **cues: float) -> Script:
    """Return a script in which every cue keeps one value, 0 unless it is given."""
    values = {**dict.fromkeys(CUES, 0.0), **cues}
    return Script({name: np.full(num_frames, value) for name, value in values.items()}, failures, fps)


def moving(num_frames: int, fps: int, failures: tuple[Corruption, ...] = ()) -> Script:
    rng = np.random.default_rng(7)
    return Script({name: smooth_trace(rng, num_frames, fps, 2.0) for name in CUES}, failures, fps)


def frames_of(script: Script, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.concatenate(list(render_frames(script, np.random.default_rng(seed))))


def picture_of(**cues: float) -> npt.NDArray[np.float64]:
    """Return the first frame (Y, X, 3) of the same person under constant cues."""
    return frames_of(still(1, **cues))[0].astype(float)


def voice_of(script: Script, seed: int = 0) -> npt.NDArray[np.float32]:
    return render_voice(script, np.random.default_rng(seed))


def clean_frames(script: Script, modality: str) -> npt.NDArray[np.bool_]:
    clean_F = np.ones(script.num_frames, dtype=bool)
    for failure in script.failures:
        if failure.modality == modality:
            clean_F[failure.start : failure.stop] = False
    return clean_F


def decode(path: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32], list[str]]:
    """Return frames (F, Y, X, 3), sound (S,) and the names of the codecs."""
    with av.open(str(path)) as container:
        codecs = [stream.codec_context.name for stream in container.streams]
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    with av.open(str(path)) as container:
        sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    return frames, sound, codecs


def best_lag(planned_S: npt.NDArray[np.float32], decoded_S: npt.NDArray[np.float32]) -> int:
    """Return by how many samples the decoded sound lags, within 0.1 s and in steps of 5 ms."""
    lags = range(-1600, 1601, 80)
    loudness = np.abs(planned_S[1600:-1600])
    ends = [(1600 + lag, len(planned_S) - 1600 + lag) for lag in lags]
    match = [np.corrcoef(loudness, np.abs(decoded_S[start:stop]))[0, 1] for start, stop in ends]
    return lags[int(np.argmax(match))]


@pytest.mark.parametrize(("fps", "period_s"), [(25, 5.0), (10, 40.0)])
def test_a_smooth_trace_is_bounded_and_as_slow_as_asked(fps: int, period_s: float) -> None:
    for seed in range(20):
        trace_F = smooth_trace(np.random.default_rng(seed), 40 * fps, fps, period_s)
        assert np.abs(trace_F).max() < 1
        # Six sines of at most 1.6 / period, of which tanh(0.75 ...) has three quarters of the slope.
        assert np.abs(np.diff(trace_F)).max() * fps < 0.75 * np.sqrt(12) * 2 * np.pi * 1.6 / period_s


@pytest.mark.parametrize("fps", [10, 25])
def test_frames_are_rgb_and_as_many_as_scripted(fps: int) -> None:
    frames = frames_of(moving(19, fps))
    assert frames.shape == (19, SIZE_PX, SIZE_PX, 3)
    assert frames.dtype == np.uint8
    assert voice_of(moving(19, fps)).shape == (19 * SAMPLE_RATE_HZ // fps,)


def test_the_generator_is_the_person() -> None:
    script = moving(9, 25)
    np.testing.assert_array_equal(frames_of(script), frames_of(script))
    np.testing.assert_array_equal(voice_of(script), voice_of(script))
    assert (frames_of(script) != frames_of(script, seed=1)).mean() > 0.5
    assert not np.array_equal(voice_of(script), voice_of(script, seed=1))


def test_light_warms_and_brightens_the_face_alone() -> None:
    pale, plain, warm = (picture_of(light=light) for light in (-1.0, 0.0, 1.0))
    red, _, blue = np.moveaxis(warm[FACE_BOX] / plain[FACE_BOX].clip(1), -1, 0)
    assert np.median(red) == pytest.approx(1.20, abs=0.03)  # frames are whole numbers, the mask's edge is soft
    assert np.median(blue) == pytest.approx(0.84, abs=0.03)
    assert pale[FACE_BOX].mean() < plain[FACE_BOX].mean() < warm[FACE_BOX].mean()
    assert np.abs(pale[:20] - warm[:20]).max() <= 3  # grey levels: the mask fades out


@pytest.mark.parametrize(
    ("cue", "rows"), [("brow", slice(0, 128)), ("smile", slice(128, 256)), ("mouth", slice(128, 256))]
)
def test_expressions_move_their_part_of_the_face(cue: str, rows: slice) -> None:
    changed_Y = np.abs(picture_of(**{cue: 1.0}) - picture_of()).sum(axis=(1, 2))
    assert changed_Y.sum() > 1e4
    assert changed_Y[rows].sum() > 0.8 * changed_Y.sum()


def test_a_movement_cue_adds_to_the_heads_own() -> None:
    plain, sunk = picture_of(), picture_of(y=1.0)
    rows, columns = FACE_BOX
    moved = np.roll(plain, 5, axis=0)[rows, columns]
    assert np.abs(sunk[rows, columns] - moved).mean() < 2.0  # grey levels; interpolated between pixels
    assert np.abs(sunk[rows, columns] - plain[rows, columns]).mean() > 5.0


def test_failures_show_in_the_picture() -> None:
    failures = (
        Corruption("face", "blurred", 0, 8),
        Corruption("face", "covered", 16, 24),
        Corruption("face", "gone", 32, 40),
    )
    frames = frames_of(moving(60, 25, failures)).astype(float)
    detail_F = np.abs(np.diff(frames[:, *FACE_BOX], axis=1)).mean(axis=(1, 2, 3))
    failed_F = ~clean_frames(moving(60, 25, failures), "face")
    assert detail_F[failed_F].max() < 0.5 * detail_F[~failed_F].min()
    assert np.ptp(frames[32:40], axis=0).max() == 0  # nobody is there, nothing moves


def pitch_hz(sound_S: npt.NDArray[np.float32]) -> float:
    """Return the pitch of a voice as the strongest period between 60 and 400 Hz."""
    spectrum = np.abs(np.fft.rfft(sound_S, 2 * len(sound_S))) ** 2
    correlation = np.fft.irfft(spectrum)
    low, high = SAMPLE_RATE_HZ // 400, SAMPLE_RATE_HZ // 60
    return SAMPLE_RATE_HZ / (low + int(np.argmax(correlation[low:high])))


def syllables_hz(sound_S: npt.NDArray[np.float32]) -> float:
    """Return the strongest rhythm below 10 Hz of a voice's loudness, without the formants' own."""
    loudness_L = np.abs(sound_S[: len(sound_S) // 160 * 160]).reshape(-1, 160).mean(axis=1)  # 100 a second
    spectrum = np.abs(np.fft.rfft(loudness_L - loudness_L.mean()))
    rhythm_hz = np.fft.rfftfreq(len(loudness_L), 0.01)
    return float(rhythm_hz[np.argmax(np.where((rhythm_hz > 1.5) & (rhythm_hz < 10), spectrum, 0))])


def test_the_voice_follows_its_cue_in_pitch_level_and_pace() -> None:
    weary, lively = (voice_of(still(100, voice=voice)) for voice in (-1.0, 1.0))
    assert pitch_hz(lively) / pitch_hz(weary) == pytest.approx(2**0.9, rel=0.05)  # a vibrato of 2 % goes with it
    level_db = 10 * np.log10(np.mean(lively**2) / np.mean(weary**2))
    assert level_db == pytest.approx(12.0, abs=1.5)  # syllables of different pace are cut differently
    assert syllables_hz(weary) == pytest.approx(2.0, abs=0.3)
    assert syllables_hz(lively) == pytest.approx(5.0, abs=0.3)
    for sound in (weary, lively):
        assert 0.02 < np.abs(sound).max() < 1  # neither faint nor clipped


def test_sound_fails_as_scripted() -> None:
    failures = (
        Corruption("sound", "mute", 10, 20),
        Corruption("face", "gone", 30, 40),
        Corruption("sound", "noisy", 50, 60),
    )
    whole = voice_of(moving(80, 10)).reshape(80, -1)
    failing = voice_of(moving(80, 10, failures)).reshape(80, -1)
    assert not failing[10:20].any()
    clean_F = clean_frames(moving(80, 10, failures), "sound")
    np.testing.assert_array_equal(failing[clean_F], whole[clean_F])
    noise = failing[50:60].ravel()
    assert 0.02 < noise.std() < 0.25
    assert abs(np.corrcoef(noise[1:], noise[:-1])[0, 1]) < 0.05  # no tone in it


@pytest.mark.parametrize(("fps", "num_frames"), [(25, 100), (10, 40)])
def test_the_file_holds_picture_and_sound_on_one_clock(fps: int, num_frames: int, tmp_path: Path) -> None:
    script = moving(num_frames, fps, (Corruption("sound", "mute", num_frames // 4, num_frames // 2),))
    written, voice = frames_of(script), voice_of(script)
    write_mp4(tmp_path / "a.mp4", fps, iter([written]), voice)
    frames, sound, codecs = decode(tmp_path / "a.mp4")
    assert codecs[0] in {"h264", "libx264"}
    assert codecs[1] == "aac"
    assert frames.shape == written.shape
    assert np.abs(frames[:, *FACE_BOX].astype(float) - written[:, *FACE_BOX]).mean() < 6.0  # grey levels, of H.264
    assert len(voice) <= len(sound) < len(voice) + 2 * AAC_FRAME
    assert best_lag(voice, sound) == 0
    muted = slice(len(voice) // 4 + 2 * AAC_FRAME, len(voice) // 2 - 2 * AAC_FRAME)  # AAC smears the edges
    assert np.abs(sound[muted]).max() < 1e-3
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream: Any = container.streams.video[0]
        time_s = [frame.time for frame in container.decode(stream)]
    np.testing.assert_allclose(time_s, np.arange(num_frames) / fps, atol=1e-9)
