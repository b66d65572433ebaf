"""The demo corpus: real video files whose valence and arousal are known, in the layout of Aff-Wild2.

One photograph of a face is warped, lit and moved; a voice is synthesised. Every cue is a rated trace plus a smooth
nuisance of its own: light and expression carry valence and little arousal, the voice carries arousal and next to no
valence, and each fails for part of the time, never both at once. So encoders with random weights can show that the
machinery works; results say nothing about people. A recording depends on the seed and on its own number only.
"""

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import skimage.data
import torch
import torch.nn.functional as F

from avfuse.atomic import write_atomically
from avfuse.options import DemoOptions
from avfuse.schema import UsageError

MARKER_FILE, FORMAT_VERSION = "demo.json", 1
VIDEO_DIR, NAME = Path("videos"), "subject-{:02d}"
ANNOTATION_DIR = Path("annotations/VA_Estimation_Challenge")
PARTITION_DIRS = {"train": ANNOTATION_DIR / "Train_Set", "validation": ANNOTATION_DIR / "Validation_Set"}
TEST_LIST = Path("names_of_videos_in_each_test_set/Valence_Arousal_Estimation_Challenge_test_set_release.txt")
FPS, SIZE_PX, SAMPLE_RATE_HZ, AAC_FRAME = 25, 256, 16_000, 1024
TRACE_PERIOD_S, UNRATED_SHARE = 5.0, 0.05
FAILURES = {"face": ("blurred", "covered", "gone"), "sound": ("mute", "noisy")}
FAILED_SHARE = {"face": 0.23, "sound": 0.21}  # of the time
FAILURE_EVERY_S, FAILURE_GAP_S = 11.0, 0.5

CROP_PX, CROP_X_PX, CROP_Y_PX = 210, 119, 4  # side and upper left corner of the square taken from the photograph
SCALE = SIZE_PX / CROP_PX
WARP_CELLS = 64  # a side: displacements are smooth, so their grid is computed coarsely and interpolated
LIGHT_RGB = (0.20, 0.05, -0.16)  # change of red, green and blue on the face per unit of the light cue
RUN_FRAMES, HARMONICS = 8, 36

README_TEXT = """\
Demo corpus of avfuse, in the layout of Aff-Wild2.

All "subjects" are ONE face, the astronaut photograph of scikit-image (NASA, public domain), warped and coloured
differently for each recording; the voices are synthesised. Both follow random traces, which are the annotations.
The corpus shows that the machinery works. It is no evidence about people, nor about which model reads them better.
"""

FloatArray = npt.NDArray[np.float64]
Rng = np.random.Generator


@dataclass(frozen=True)
class DemoSummary:
    """What was written: `frames`, `seconds` and `bytes` of video add up over all recordings."""

    root: Path
    recordings: int
    frames: int
    seconds: float
    bytes: int


@dataclass(frozen=True)
class Corruption:
    """A stretch of frames, `stop` not included, in which one modality ("face" or "sound") fails in one way."""

    modality: str
    kind: str
    start: int
    stop: int


@dataclass(frozen=True)
class Plan:
    """What happens in a recording: traces within (-1, 1), what drives picture and voice, failures, unrated frames."""

    valence_F: FloatArray
    arousal_F: FloatArray
    cues_F: dict[str, FloatArray]
    failures: tuple[Corruption, ...]
    unrated_F: npt.NDArray[np.bool_]


def demo(options: DemoOptions, progress: Callable[[int, int], None] = lambda done, total: None) -> DemoSummary:
    """Write the demo corpus, calling ``progress(done, total)`` after each recording.

    A finished corpus made with the same options is left as it is, a begun one is finished.

    Raises
    ------
    UsageError
        If the folder holds anything that is not a demo corpus, or a demo corpus made with other options.
    """
    root, subjects, num_frames = options.root, range(options.subjects), round(options.duration_s * FPS)
    identity = {"subjects": options.subjects, "duration_s": float(options.duration_s), "seed": options.seed}
    marker_text = json.dumps({"format": FORMAT_VERSION, **identity}) + "\n"
    if not _is_finished(root, marker_text):
        for folder in (VIDEO_DIR, *PARTITION_DIRS.values(), TEST_LIST.parent):
            (root / folder).mkdir(parents=True, exist_ok=True)
        begun_marker = _aside(root / MARKER_FILE)  # says whose the folder is if the rendering is interrupted
        begun_marker.write_text(marker_text, encoding="utf-8")
        render = partial(_render_recording, root, options.seed, num_frames)
        for done, _ in enumerate(_run_all(render, subjects, options.num_workers), start=1):
            progress(done, len(subjects))
        tested = [NAME.format(subject) + "\n" for subject in subjects if partition_of(subject) == "test"]
        write_atomically(root / TEST_LIST, "".join(tested).encode())
        write_atomically(root / "README.txt", README_TEXT.encode())
        begun_marker.replace(root / MARKER_FILE)
    num_bytes = sum((root / VIDEO_DIR / f"{NAME.format(subject)}.mp4").stat().st_size for subject in subjects)
    return DemoSummary(root, len(subjects), num_frames * len(subjects), num_frames * len(subjects) / FPS, num_bytes)


def partition_of(subject: int) -> str:
    """Return the partition of a subject: one in 18 is test, a quarter of the others validation."""
    if subject % 18 == 2:
        return "test"
    return "validation" if subject % 4 == 3 else "train"


def _is_finished(root: Path, marker_text: str) -> bool:
    """Tell a finished corpus (True) from a folder to write to (False); refuse any other folder."""
    for marker, finished in ((root / MARKER_FILE, True), (_aside(root / MARKER_FILE), False)):
        if marker.is_file():
            found = marker.read_text(encoding="utf-8", errors="replace")
            if found != marker_text:
                asked = f"{found.strip()[:200]}, asked for {marker_text.strip()}; give another folder"
                raise UsageError(f"{root} holds a demo corpus made with other options: {asked}")
            return finished
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UsageError(f"{root} is there and is no demo corpus; give a folder that is new or empty")
    return False


def _run_all(render: Callable[[int], None], subjects: range, num_workers: int) -> Iterator[None]:
    num_workers = min(num_workers or os.cpu_count() or 1, len(subjects))
    if num_workers > 1:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(num_workers, context, torch.set_num_threads, (1,)) as executor:
            yield from executor.map(render, subjects)
        return
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the workers: the same arithmetic to the last bit
    try:
        yield from map(render, subjects)
    finally:
        torch.set_num_threads(num_threads)


def _render_recording(root: Path, seed: int, num_frames: int, subject: int) -> None:
    """Write annotation and video of one subject; the video comes last, so where it is the annotation is too."""
    name, partition = NAME.format(subject), partition_of(subject)
    path = root / VIDEO_DIR / f"{name}.mp4"
    if not path.exists():
        plan_rng, picture_rng, voice_rng = np.random.default_rng([seed, subject]).spawn(3)
        plan = plan_recording(plan_rng, num_frames)
        if partition in PARTITION_DIRS:
            rows = zip(plan.valence_F, plan.arousal_F, plan.unrated_F, strict=True)
            lines = ["-5,-5" if unrated else f"{valence:.3f},{arousal:.3f}" for valence, arousal, unrated in rows]
            annotation = "\n".join(("valence,arousal", *lines, "")).encode()
            write_atomically(root / PARTITION_DIRS[partition] / f"{name}.txt", annotation)
        _write_mp4(_aside(path), render_frames(plan, picture_rng), render_voice(plan, voice_rng))
        _aside(path).replace(path)


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def plan_recording(rng: Rng, num_frames: int) -> Plan:
    """Draw what happens in a recording; valence and arousal are uncorrelated within it."""
    smooth = partial(_smooth_trace, rng, num_frames)
    valence_F, arousal_F = smooth(TRACE_PERIOD_S), smooth(TRACE_PERIOD_S)
    centred_F = valence_F - valence_F.mean()
    arousal_F = np.clip(arousal_F - centred_F * (centred_F @ arousal_F) / (centred_F @ centred_F), -0.98, 0.98)
    cues_F = {
        "light": valence_F + 0.5 * smooth(3.0),
        "smile": valence_F + 0.3 * smooth(3.0),
        "brow": 0.7 * arousal_F + 0.7 * smooth(3.0),
        "mouth": 0.5 * arousal_F + 0.6 * smooth(1.0),
        "voice": arousal_F + 0.2 * smooth(3.0),
        "formant": 0.3 * valence_F + smooth(3.0),
    }
    failures = plan_failures(rng, num_frames)
    for failure in failures:
        if failure.modality == "face":
            cues_F["light"][failure.start : failure.stop] = 0.0  # what hides the face hides its light
    num_unrated = round(UNRATED_SHARE * num_frames)
    since_F = np.arange(num_frames) - rng.integers(num_frames - num_unrated + 1)
    return Plan(valence_F, arousal_F, cues_F, failures, (since_F >= 0) & (since_F < num_unrated))


def _smooth_trace(rng: Rng, num_frames: int, period_s: float) -> FloatArray:
    """Draw a trace (F,) within (-1, 1) whose periods lie around `period_s`."""
    frequency_hz = rng.uniform(0.3, 1.6, size=(6, 1)) / period_s
    turns_KF = frequency_hz * np.arange(num_frames) / FPS + rng.uniform(size=(6, 1))
    trace_F = rng.normal(size=6) @ np.sin(2 * np.pi * turns_KF)
    return np.asarray(np.tanh(0.75 * trace_F / np.sqrt(np.mean(trace_F**2))))


def plan_failures(rng: Rng, num_frames: int) -> tuple[Corruption, ...]:
    """Draw when face and sound fail, in order of time; any two stretches are at least half a second apart."""
    count = max(1, round(num_frames / FPS / FAILURE_EVERY_S))
    kinds = []
    for modality, choices in FAILURES.items():
        first = int(rng.integers(len(choices)))  # the kinds take turns
        kinds += [(modality, choices[(first + turn) % len(choices)]) for turn in range(count)]
    kinds = [kinds[index] for index in rng.permutation(len(kinds))]
    lengths = [round(FAILED_SHARE[modality] * num_frames / count * rng.uniform(0.8, 1.2)) for modality, _ in kinds]
    gap = round(FAILURE_GAP_S * FPS) + 1
    spare = num_frames - sum(lengths) - gap * (len(kinds) - 1)
    spare_before = np.sort(rng.integers(spare + 1, size=len(kinds)))
    failures, used = [], 0
    for (modality, kind), length, lead in zip(kinds, lengths, spare_before, strict=True):
        failures.append(Corruption(modality, kind, used + int(lead), used + int(lead) + length))
        used += length + gap
    return tuple(failures)


@dataclass(frozen=True)
class _Looks:
    """One subject's picture; a source (1, 5, Y, X) holds red, green, blue, the person's and the face's mask."""

    source: torch.Tensor
    covered_source: torch.Tensor
    background_CYX: torch.Tensor
    identity_2HW: torch.Tensor
    zoom: float
    stretch: float


def render_frames(plan: Plan, rng: Rng) -> Iterator[npt.NDArray[np.uint8]]:
    """Render the frames of a recording in order, a few at a time, each array (F, 256, 256, 3) uint8."""
    looks, num_frames = _draw_looks(rng), len(plan.valence_F)
    drives = {name: torch.from_numpy(cue_F).float().clamp(-1.5, 1.5) for name, cue_F in plan.cues_F.items()}
    for name, period_s in (("x", 2.0), ("y", 2.0), ("roll", 3.0), ("zoom", 4.0)):
        drives[name] = torch.from_numpy(_smooth_trace(rng, num_frames, period_s)).float()
    hidden = [failure for failure in plan.failures if failure.modality == "face"]
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


def render_voice(plan: Plan, rng: Rng) -> npt.NDArray[np.float32]:
    """Synthesise a voice whose pitch, level, rate and brightness follow the voice cue, (S,) float32 in [-1, 1]."""
    num_frames, num_samples = len(plan.valence_F), len(plan.valence_F) * SAMPLE_RATE_HZ // FPS
    time_S, time_F = np.arange(num_samples) / SAMPLE_RATE_HZ, np.arange(num_frames) / FPS
    voice_F, formant_F = plan.cues_F["voice"].clip(-1.4, 1.4), plan.cues_F["formant"].clip(-1.4, 1.4)
    voice_S = np.interp(time_S, time_F, voice_F)
    pitch_hz_F = rng.uniform(100, 200) * 2 ** (0.45 * voice_F)
    pitch_hz_S = np.interp(time_S, time_F, pitch_hz_F) * (1 + 0.02 * np.sin(2 * np.pi * 5.5 * time_S))
    phase_S = 2 * np.pi * np.cumsum(pitch_hz_S) / SAMPLE_RATE_HZ
    tone_S = np.zeros(num_samples)
    for number, level_F in enumerate(_harmonic_levels(rng, pitch_hz_F, voice_F, formant_F), start=1):
        tone_S += np.interp(time_S, time_F, level_F) * np.sin(number * phase_S)
    syllables_S = 0.55 + 0.6 * np.sin(2 * np.pi * np.cumsum(3.5 + 1.5 * voice_S) / SAMPLE_RATE_HZ)
    level_db_S = 6.0 * voice_S + rng.uniform(-1.5, 1.5) - 26.0
    sound_S = tone_S / np.sqrt(np.mean(tone_S**2)) * syllables_S.clip(0, 1) ** 0.7 * 10 ** (level_db_S / 20)
    sound_S += 0.003 * rng.normal(size=num_samples)
    for failure in plan.failures:
        if failure.modality == "sound":
            start, stop = failure.start * SAMPLE_RATE_HZ // FPS, failure.stop * SAMPLE_RATE_HZ // FPS
            noise = rng.uniform(0.03, 0.2) if failure.kind == "noisy" else 0.0
            sound_S[start:stop] = noise * rng.normal(size=stop - start)
    return np.asarray(sound_S.clip(-1, 1), dtype=np.float32)


def _harmonic_levels(rng: Rng, pitch_hz_F: FloatArray, voice_F: FloatArray, formant_F: FloatArray) -> FloatArray:
    """Return the amplitude of each harmonic over time, (harmonics, F): a spectral tilt times a moving vocal tract."""
    phase_F = 2 * np.pi * 1.1 * np.arange(len(pitch_hz_F)) / FPS + rng.uniform(0, 2 * np.pi)
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


def _write_mp4(path: Path, frames: Iterator[npt.NDArray[np.uint8]], sound_S: npt.NDArray[np.float32]) -> None:
    """Write an MP4 file of H.264 and AAC, a stretch of sound after each stretch of frames."""
    with av.open(str(path), "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=FPS)
        video.width, video.height, video.pix_fmt = SIZE_PX, SIZE_PX, "yuv420p"
        video.options = {"crf": "23", "preset": "veryfast", "threads": "1"}  # one thread: the same bytes each time
        audio = container.add_stream("aac", rate=SAMPLE_RATE_HZ)
        audio.layout = "mono"
        num_frames = position = 0
        for frame_FYXC in frames:
            for frame_YXC in frame_FYXC:
                container.mux(video.encode(av.VideoFrame.from_ndarray(frame_YXC, format="rgb24")))
            num_frames += len(frame_FYXC)
            shown = num_frames * SAMPLE_RATE_HZ // FPS
            while position + AAC_FRAME <= shown or position < shown == len(sound_S):
                block = av.AudioFrame.from_ndarray(sound_S[None, position : position + AAC_FRAME], "fltp", "mono")
                block.sample_rate, block.pts = SAMPLE_RATE_HZ, position
                container.mux(audio.encode(block))
                position += AAC_FRAME
        container.mux(video.encode(None))
        container.mux(audio.encode(None))
