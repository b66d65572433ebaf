"""A face and a voice that follow cues, written as a video file.

The face is one photograph, warped, lit and moved; the voice is a sum of harmonics. A `Script` says what drives them:
traces around (-1, 1) by the name of the cue, and the stretches in which picture or sound fails.

    light               the face turns warm and bright, or pale, by up to a fifth
    smile, brow, mouth  the corners of the mouth and the brows rise, the jaw drops
    x, y, roll, zoom    added to the head's own random movement; optional
    voice               pitch, level, syllable rate and brightness
    formant             the centres of the vocal tract's resonances

Shape of the face, colours, background and the voice's own pitch are drawn from a seeded generator: a person's identity.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import skimage.data
import torch
import torch.nn.functional as F

SIZE_PX, SAMPLE_RATE_HZ, AAC_FRAME = 256, 16_000, 1024
FAILURES = {"face": ("blurred", "covered", "gone"), "sound": ("mute", "noisy")}

CROP_PX, CROP_X_PX, CROP_Y_PX = 210, 119, 4  # side and upper left corner of the square taken from the photograph
SCALE = SIZE_PX / CROP_PX
WARP_CELLS = 64  # a side: displacements are smooth, so their grid is computed coarsely and interpolated
LIGHT_RGB = (0.20, 0.05, -0.16)  # change of red, green and blue on the face per unit of the light cue
HEAD_PERIODS_S = {"x": 2.0, "y": 2.0, "roll": 3.0, "zoom": 4.0}
RUN_FRAMES, HARMONICS = 8, 36

FloatArray = npt.NDArray[np.float64]
Rng = np.random.Generator


@dataclass(frozen=True)
class Corruption:
    """A stretch of frames, `stop` not included, in which one modality fails in one way, both out of `FAILURES`."""

    modality: str
    kind: str
    start: int
    stop: int


@dataclass(frozen=True)
class Script:
    """What drives picture and voice: cues (F,) by name, failures in order of time, frames per second."""

    cues_F: dict[str, FloatArray]
    failures: tuple[Corruption, ...]
    fps: int

    @property
    def num_frames(self) -> int:
        """Number of frames (F)."""
        return len(self.cues_F["light"])


def smooth_trace(rng: Rng, num_frames: int, fps: int, period_s: float) -> FloatArray:
    """Draw a trace (F,) within (-1, 1) whose periods lie around `period_s`."""
    frequency_hz = rng.uniform(0.3, 1.6, size=(6, 1)) / period_s
    turns_KF = frequency_hz * np.arange(num_frames) / fps + rng.uniform(size=(6, 1))
    trace_F = rng.normal(size=6) @ np.sin(2 * np.pi * turns_KF)
    return np.asarray(np.tanh(0.75 * trace_F / np.sqrt(np.mean(trace_F**2))))


@dataclass(frozen=True)
class _Looks:
    """One subject's picture; a source (1, 5, Y, X) holds red, green, blue, the person's and the face's mask."""

    source: torch.Tensor
    covered_source: torch.Tensor
    background_CYX: torch.Tensor
    identity_2HW: torch.Tensor
    zoom: float
    stretch: float


def render_frames(script: Script, rng: Rng) -> Iterator[npt.NDArray[np.uint8]]:
    """Render the frames of a recording in order, a few at a time, each array (F, 256, 256, 3) uint8."""
    looks, num_frames = _draw_looks(rng), script.num_frames
    drives = {name: torch.from_numpy(cue_F).float().clamp(-1.5, 1.5) for name, cue_F in script.cues_F.items()}
    for name, period_s in HEAD_PERIODS_S.items():
        moved_F = smooth_trace(rng, num_frames, script.fps, period_s) + script.cues_F.get(name, 0.0)
        drives[name] = torch.from_numpy(moved_F).float()
    hidden = [failure for failure in script.failures if failure.modality == "face"]
    edges = {num_frames, *range(0, num_frames, RUN_FRAMES), *(f.start for f in hidden), *(f.stop for f in hidden)}
    for start, stop in pairwise(sorted(edges)):
        kind = next((failure.kind for failure in hidden if failure.start <= start < failure.stop), "")
        run = {name: drive_F[start:stop, None, None] for name, drive_F in drives.items()}
        frame_FCYX = looks.background_CYX.expand(stop - start, -1, -1, -1)
        if kind != "gone":
            source = (looks.covered_source if kind == "covered" else looks.source).expand(stop - start, -1, -1, -1)
            warped = F.grid_sample(source, _sampling_grid(looks, run), padding_mode="border", align_corners=False)
            light_FCYX = 1 + warped[:, 4:] * run["light"][:, None] * torch.tensor(LIGHT_RGB)[:, None, None]
            frame_FCYX = torch.lerp(frame_FCYX, warped[:, :3] * light_FCYX, warped[:, 3:4])
        if kind == "blurred":
            small = F.interpolate(frame_FCYX, size=(12, 12), mode="area")
            frame_FCYX = F.interpolate(small, size=(SIZE_PX, SIZE_PX), mode="bilinear", align_corners=False)
        yield (frame_FCYX * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()


def _sampling_grid(looks: _Looks, run: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return where in the source each pixel comes from, (F, Y, X, 2) as `grid_sample` wants it; drives are (F, 1, 1).

    The head moves as a whole; displacement fields d, in its own coordinates, make a point x show the source at x - d.
    """
    middle_px = SIZE_PX / 2
    x_px = _centres_px(WARP_CELLS) - middle_px - 6.0 * run["x"]
    y_px = _centres_px(WARP_CELLS)[:, None] - middle_px - 5.0 * run["y"]
    cosine, sine, zoom = torch.cos(0.08 * run["roll"]), torch.sin(0.08 * run["roll"]), looks.zoom + 0.05 * run["zoom"]
    head_x_px = looks.stretch * (cosine * x_px + sine * y_px) / zoom
    head_F2HW = torch.stack([head_x_px, (cosine * y_px - sine * x_px) / zoom], dim=1) / middle_px
    moved_F2HW = sum((run[name][..., None] * field for name, field in _expressions().items()), looks.identity_2HW)
    moved_F2HW = F.grid_sample(moved_F2HW, head_F2HW.movedim(1, 3), padding_mode="border", align_corners=False)
    grid_F2HW = head_F2HW - moved_F2HW / middle_px
    return F.interpolate(grid_F2HW, size=(SIZE_PX, SIZE_PX), mode="bilinear", align_corners=False).movedim(1, 3)


def _centres_px(cells: int) -> torch.Tensor:
    return (torch.arange(cells) + 0.5) * (SIZE_PX / cells)


def _offsets(cells: int, x_px: float, y_px: float, width_px: float, height_px: float) -> list[torch.Tensor]:
    """Return distances (cells,) across and (cells, 1) down from a point of the photograph, in widths and heights."""
    across = (_centres_px(cells) / SCALE + CROP_X_PX - x_px) / width_px
    return [across, (_centres_px(cells)[:, None] / SCALE + CROP_Y_PX - y_px) / height_px]


def _bump(*place_px: float) -> torch.Tensor:
    """Return a Gaussian (H, W) of height 1, given by x, y, width and height."""
    across, down = _offsets(WARP_CELLS, *place_px)
    return torch.exp(-0.5 * (across**2 + down**2))


def _ellipse(*place_px: float, softness: float = 0.03) -> torch.Tensor:
    """Return a soft-edged mask (1, Y, X), given by x, y and half axes."""
    across, down = _offsets(SIZE_PX, *place_px)
    return torch.sigmoid((1 - torch.hypot(across, down)) / softness)[None]


@cache
def _expressions() -> dict[str, torch.Tensor]:
    """Return the displacement (2, H, W) in pixels that one unit of each facial cue stands for."""
    across, _ = _offsets(WARP_CELLS, 224, 143, 16, 10)
    lips = _bump(224, 143, 16, 10)
    cheeks, brows = _bump(198, 122, 10, 8) + _bump(250, 123, 10, 8), _bump(202, 88, 13, 7) + _bump(248, 90, 13, 7)
    jaw, still = 7.0 * _bump(224, 156, 18, 9) - 2.0 * _bump(224, 137, 16, 6), torch.zeros_like(brows)
    smile = torch.stack([4.0 * across * lips, (4.0 - 14.0 * across**2) * lips - 3.0 * cheeks])
    return {"smile": smile, "brow": torch.stack([still, -6.0 * brows]), "mouth": torch.stack([still, jaw])}


def _draw_looks(rng: Rng) -> _Looks:
    """Draw a subject: the shape of the face, its colours, what covers it, the background and the camera."""
    crop_YXC = skimage.data.astronaut()[CROP_Y_PX : CROP_Y_PX + CROP_PX, CROP_X_PX : CROP_X_PX + CROP_PX]
    photo = torch.from_numpy(crop_YXC.astype(np.float32) / 255).movedim(2, 0)[None]
    photo_CYX = F.interpolate(photo, size=(SIZE_PX, SIZE_PX), mode="bilinear", align_corners=False)[0]
    gain, cloth = torch.from_numpy(rng.uniform([[0.94], [0.15]], [[1.06], [0.75]], (2, 3))).float()[..., None, None]
    gain *= 0.82 * np.exp(rng.uniform(-0.1, 0.1))  # leaves room for the light
    photo_CYX = gain * photo_CYX ** float(rng.uniform(0.88, 1.14))
    identity_2HW = torch.zeros(2, WARP_CELLS, WARP_CELLS)
    for _ in range(8):
        x_px, y_px, width_px = rng.uniform((170, 30, 15), (270, 190, 37))
        shift_px = torch.from_numpy(rng.normal(scale=3.5, size=(2, 1, 1))).float()
        identity_2HW += shift_px * _bump(x_px, y_px, width_px, width_px)
    covered_CYX = torch.lerp(photo_CYX, cloth.expand_as(photo_CYX), _ellipse(225, 128, 50, 58))
    person = torch.maximum(_ellipse(228, 92, 75, 80), _ellipse(215, 245, 110, 88))
    face = _ellipse(225, 121, 46, 58, softness=0.15)
    blotches = torch.from_numpy(rng.uniform(0.3, 0.65) + rng.uniform(-0.15, 0.15, size=(1, 3, 4, 4))).float()
    background = F.interpolate(blotches, size=(SIZE_PX, SIZE_PX), mode="bicubic", align_corners=False)
    source, covered_source = (torch.cat([picture, person, face])[None] for picture in (photo_CYX, covered_CYX))
    stretch = rng.choice((-1, 1)) * rng.uniform(0.93, 1.07)  # negative: mirrored
    return _Looks(source, covered_source, background[0].clamp(0, 1), identity_2HW, rng.uniform(0.88, 1.12), stretch)


def render_voice(script: Script, rng: Rng) -> npt.NDArray[np.float32]:
    """Synthesise a voice whose pitch, level, rate and brightness follow the voice cue, (S,) float32 in [-1, 1]."""
    num_samples = script.num_frames * SAMPLE_RATE_HZ // script.fps
    time_S, time_F = np.arange(num_samples) / SAMPLE_RATE_HZ, np.arange(script.num_frames) / script.fps
    voice_F, formant_F = script.cues_F["voice"].clip(-1.4, 1.4), script.cues_F["formant"].clip(-1.4, 1.4)
    voice_S = np.interp(time_S, time_F, voice_F)
    pitch_hz_F = rng.uniform(100, 200) * 2 ** (0.45 * voice_F)
    pitch_hz_S = np.interp(time_S, time_F, pitch_hz_F) * (1 + 0.02 * np.sin(2 * np.pi * 5.5 * time_S))
    phase_S = 2 * np.pi * np.cumsum(pitch_hz_S) / SAMPLE_RATE_HZ
    tone_S = np.zeros(num_samples)
    for number, level_F in enumerate(_harmonic_levels(rng, script.fps, pitch_hz_F, voice_F, formant_F), start=1):
        tone_S += np.interp(time_S, time_F, level_F) * np.sin(number * phase_S)
    syllables_S = 0.55 + 0.6 * np.sin(2 * np.pi * np.cumsum(3.5 + 1.5 * voice_S) / SAMPLE_RATE_HZ)
    level_db_S = 6.0 * voice_S + rng.uniform(-1.5, 1.5) - 26.0
    sound_S = tone_S / np.sqrt(np.mean(tone_S**2)) * syllables_S.clip(0, 1) ** 0.7 * 10 ** (level_db_S / 20)
    sound_S += 0.003 * rng.normal(size=num_samples)
    for failure in script.failures:
        if failure.modality == "sound":
            start, stop = (frame * SAMPLE_RATE_HZ // script.fps for frame in (failure.start, failure.stop))
            noise = rng.uniform(0.03, 0.2) if failure.kind == "noisy" else 0.0
            sound_S[start:stop] = noise * rng.normal(size=stop - start)
    return np.asarray(sound_S.clip(-1, 1), dtype=np.float32)


def _harmonic_levels(
    rng: Rng, fps: int, pitch_hz_F: FloatArray, voice_F: FloatArray, formant_F: FloatArray
) -> FloatArray:
    """Return the amplitude of each harmonic over time, (harmonics, F): a spectral tilt times a moving vocal tract."""
    phase_F = 2 * np.pi * 1.1 * np.arange(len(pitch_hz_F)) / fps + rng.uniform(0, 2 * np.pi)
    formants = (
        (520 + 130 * np.sin(phase_F) + 25 * formant_F, 90, 1.0),  # centre in Hz, width in Hz, strength
        (1500 + 350 * np.cos(2.1 * phase_F) + 80 * formant_F, 130, 0.6),
        (2600 + 50 * formant_F, 180, 0.35),
    )
    tract = rng.uniform(0.92, 1.12)
    number_H1 = np.arange(1, HARMONICS + 1)[:, None]
    frequency_hz_HF = number_H1 * pitch_hz_F
    level_HF: FloatArray = 0.03 * np.ones_like(frequency_hz_HF)
    for centre_hz_F, width_hz, strength in formants:
        level_HF += strength / (1 + ((frequency_hz_HF - tract * centre_hz_F) / width_hz) ** 2)
    level_HF *= 10 ** (-(11 - 4 * voice_F) * np.log2(number_H1) / 20)
    return level_HF * (frequency_hz_HF < 0.48 * SAMPLE_RATE_HZ)


def write_mp4(path: Path, fps: int, frames: Iterable[npt.NDArray[np.uint8]], sound_S: npt.NDArray[np.float32]) -> None:
    """Write an MP4 file of H.264 and AAC, a stretch of sound after each stretch of frames (F, Y, X, 3)."""
    with av.open(str(path), "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=fps)
        video.width, video.height, video.pix_fmt = SIZE_PX, SIZE_PX, "yuv420p"
        video.options = {"crf": "23", "preset": "veryfast", "threads": "1"}  # one thread: the same bytes each time
        audio = container.add_stream("aac", rate=SAMPLE_RATE_HZ)
        audio.layout = "mono"
        num_frames = position = 0
        for frame_FYXC in frames:
            for frame_YXC in frame_FYXC:
                container.mux(video.encode(av.VideoFrame.from_ndarray(frame_YXC, format="rgb24")))
            num_frames += len(frame_FYXC)
            shown = num_frames * SAMPLE_RATE_HZ // fps
            while position + AAC_FRAME <= shown or position < shown == len(sound_S):
                block = av.AudioFrame.from_ndarray(sound_S[None, position : position + AAC_FRAME], "fltp", "mono")
                block.sample_rate, block.pts = SAMPLE_RATE_HZ, position
                container.mux(audio.encode(block))
                position += AAC_FRAME
        container.mux(video.encode(None))
        container.mux(audio.encode(None))
