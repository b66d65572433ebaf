"""The demo corpora: real video files whose ratings are known, as Aff-Wild2 or as sessions rated for fatigue.

A recording is planned before it is rendered. Every cue of face and voice is a rated trace plus a smooth nuisance of its
own, and each modality fails for part of the time, never both at once: neither suffices alone.

- ``aff_wild2``: valence and arousal of each frame. Light and expression carry valence and little arousal, the voice
  carries arousal and next to no valence.
- ``fatigue``: one rating from 0 to 10 per interval of a long session. Fatigue rises slowly, with dips when the subject
  rests; it takes the colour from the face, lowers brows, mouth and head, and makes the voice low, faint and slow.

So encoders with random weights can show that the machinery works; results say nothing about people. A recording depends
on the seed and on its own number only.
"""

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from avfuse.atomic import write_atomically
from avfuse.options import DEMO_DURATION_S, DEMO_SUBJECTS, DemoOptions
from avfuse.schema import UsageError
from avfuse.synthesis import (
    FAILURES,
    Corruption,
    FloatArray,
    Rng,
    Script,
    render_frames,
    render_voice,
    smooth_trace,
    write_mp4,
)

MARKER_FILE, FORMAT_VERSION = "demo.json", 1
VIDEO_DIR, NAME = Path("videos"), "subject-{:02d}"
ANNOTATION_DIR = Path("annotations/VA_Estimation_Challenge")
PARTITION_DIRS = {"train": ANNOTATION_DIR / "Train_Set", "validation": ANNOTATION_DIR / "Validation_Set"}
TEST_LIST = Path("names_of_videos_in_each_test_set/Valence_Arousal_Estimation_Challenge_test_set_release.txt")
AFF_WILD2_FPS, TRACE_PERIOD_S, UNRATED_SHARE = 25, 5.0, 0.05
RATINGS, RATINGS_HEADER = Path("ratings.csv"), "recording,subject,partition,start,end,value"
FATIGUE_FPS, INTERVAL_S, RATING_STEP = 10, 25, 0.5
LEVELS, LEVEL_STEP = 16, 5  # subjects take turns at the levels of fatigue, so that those held out are spread as well
SLOW_S = 40.0  # period of the nuisances of a session, which no rated interval averages out
FAILED_SHARE = {"face": 0.23, "sound": 0.21}  # of the time
FAILURE_EVERY_S, FAILURE_GAP_S = 11.0, 0.5

README_TEXT = """\
Demo corpus of avfuse, {layout}.

All "subjects" are ONE face, the astronaut photograph of scikit-image (NASA, public domain), warped and coloured
differently for each recording; the voices are synthesised. Both follow random traces, which are the annotations.
The corpus shows that the machinery works. It is no evidence about people, nor about which model reads them better.
"""


@dataclass(frozen=True)
class DemoSummary:
    """What was written: `frames`, `seconds` and `bytes` of video add up over all recordings."""

    root: Path
    recordings: int
    frames: int
    seconds: float
    bytes: int


@dataclass(frozen=True)
class Plan:
    """What happens in a recording: the rated traces (F,) within (-1, 1), NaN where unrated, and what follows them."""

    traces_F: dict[str, FloatArray]
    script: Script


@dataclass(frozen=True)
class Kind:
    """A corpus that the demo can write: frames per second, how to plan a subject, the text files around the videos."""

    fps: int
    plan: Callable[[Rng, int, int], Plan]
    texts: Callable[[Mapping[int, Plan]], dict[Path, str]]


def demo(options: DemoOptions, progress: Callable[[int, int], None] = lambda done, total: None) -> DemoSummary:
    """Write a demo corpus, calling ``progress(done, total)`` after each recording.

    A finished corpus made with the same options is left as it is, a begun one is finished.

    Raises
    ------
    UsageError
        If the corpus is not known, or the folder holds anything that is not a demo corpus, or a demo corpus made with
        other options.
    """
    if options.corpus not in KINDS:
        raise UsageError(f"unknown demo corpus '{options.corpus}'; known: {', '.join(KINDS)}")
    root, corpus, seed, kind = options.root, options.corpus, options.seed, KINDS[options.corpus]
    subjects = range(options.subjects or DEMO_SUBJECTS[corpus])
    duration_s = float(options.duration_s or DEMO_DURATION_S[corpus])
    num_frames = round(duration_s * kind.fps)
    identity = {"format": FORMAT_VERSION, "subjects": len(subjects), "duration_s": duration_s, "seed": seed}
    named = {} if corpus == "aff_wild2" else {"corpus": corpus}  # markers are older than the second corpus
    marker_text = json.dumps({**identity, **named}) + "\n"
    if not _is_finished(root, marker_text):
        (root / VIDEO_DIR).mkdir(parents=True, exist_ok=True)
        begun_marker = _aside(root / MARKER_FILE)  # says whose the folder is if the rendering is interrupted
        begun_marker.write_text(marker_text, encoding="utf-8")
        plans = {subject: plan_of(corpus, seed, subject, num_frames) for subject in subjects}
        for path, text in kind.texts(plans).items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(root / path, text.encode())
        render = partial(_render_recording, root, corpus, seed, num_frames)
        for done, _ in enumerate(_run_all(render, subjects, options.num_workers), start=1):
            progress(done, len(subjects))
        begun_marker.replace(root / MARKER_FILE)
    num_bytes = sum((root / VIDEO_DIR / f"{NAME.format(subject)}.mp4").stat().st_size for subject in subjects)
    total_frames = num_frames * len(subjects)
    return DemoSummary(root, len(subjects), total_frames, total_frames / kind.fps, num_bytes)


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


def _render_recording(root: Path, corpus: str, seed: int, num_frames: int, subject: int) -> None:
    path = root / VIDEO_DIR / f"{NAME.format(subject)}.mp4"
    if not path.exists():
        script = plan_of(corpus, seed, subject, num_frames).script
        _, picture_rng, voice_rng = _generators(seed, subject)
        write_mp4(_aside(path), script.fps, render_frames(script, picture_rng), render_voice(script, voice_rng))
        _aside(path).replace(path)


def plan_of(corpus: str, seed: int, subject: int, num_frames: int) -> Plan:
    """Return what happens in the recording of a subject."""
    return KINDS[corpus].plan(_generators(seed, subject)[0], subject, num_frames)


def _generators(seed: int, subject: int) -> list[Rng]:
    """Return the random generators of plan, picture and voice."""
    return np.random.default_rng([seed, subject]).spawn(3)


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def partition_of(corpus: str, subject: int) -> str:
    """Return the partition of a subject: one in four is held out; in Aff-Wild2 one in 18 is not rated at all."""
    if corpus == "aff_wild2" and subject % 18 == 2:
        return "test"
    return "validation" if subject % 4 == 3 else "train"


def plan_recording(rng: Rng, subject: int, num_frames: int) -> Plan:
    """Draw what happens in a recording of Aff-Wild2; valence and arousal are uncorrelated within it."""
    smooth = partial(smooth_trace, rng, num_frames, AFF_WILD2_FPS)
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
    script = _script(rng, cues_F, AFF_WILD2_FPS)
    num_unrated = round(UNRATED_SHARE * num_frames)
    since_F = np.arange(num_frames) - rng.integers(num_frames - num_unrated + 1)
    unrated_F = (since_F >= 0) & (since_F < num_unrated)
    traces_F = {"valence": valence_F, "arousal": arousal_F}
    return Plan({name: np.where(unrated_F, np.nan, trace_F) for name, trace_F in traces_F.items()}, script)


def plan_session(rng: Rng, subject: int, num_frames: int) -> Plan:
    """Draw what happens in a session of the fatigue corpus."""
    smooth = partial(smooth_trace, rng, num_frames, FATIGUE_FPS)
    fatigue_F = _draw_fatigue(rng, subject, num_frames)
    liveliness_F = (1 - fatigue_F) / 2
    cues_F = {
        "light": 0.6 * smooth(SLOW_S) - fatigue_F,
        "smile": 0.6 * smooth(SLOW_S) - 0.6 * fatigue_F + 0.6 * liveliness_F * smooth(3.0),
        "brow": 0.8 * smooth(SLOW_S) - 0.9 * fatigue_F,
        "mouth": liveliness_F * smooth(1.0),
        "y": 0.6 * fatigue_F + (1 - liveliness_F) * smooth(6.0),  # the head sinks, and nods
        "voice": 1.1 * smooth(SLOW_S) - fatigue_F,
        "formant": smooth(3.0),
    }
    return Plan({"fatigue": fatigue_F}, _script(rng, cues_F, FATIGUE_FPS))


def _draw_fatigue(rng: Rng, subject: int, num_frames: int) -> FloatArray:
    """Draw fatigue (F,) within (-1, 1): the subject's level, a rise, dips when the subject rests, and a slow sway."""
    time_s, duration_s = np.arange(num_frames) / FATIGUE_FPS, num_frames / FATIGUE_FPS
    level = (LEVEL_STEP * subject % LEVELS + rng.uniform()) / LEVELS
    fatigue_F = 1.3 * (level - 0.5) + rng.uniform(0.4, 0.9) * (time_s / duration_s - 0.5)
    fatigue_F += 0.12 * smooth_trace(rng, num_frames, FATIGUE_FPS, 20.0)
    for _ in range(max(1, round(duration_s / 75))):
        fatigue_F -= rng.uniform(0.25, 0.55) * np.exp(-0.5 * ((time_s - rng.uniform(0, duration_s)) / 8.0) ** 2)
    return np.asarray(fatigue_F.clip(-0.98, 0.98))


def _script(rng: Rng, cues_F: dict[str, FloatArray], fps: int) -> Script:
    failures = plan_failures(rng, len(cues_F["light"]), fps)
    for failure in failures:
        if failure.modality == "face":
            cues_F["light"][failure.start : failure.stop] = 0.0  # what hides the face hides its light
    return Script(cues_F, failures, fps)


def plan_failures(rng: Rng, num_frames: int, fps: int) -> tuple[Corruption, ...]:
    """Draw when face and sound fail, in order of time; any two stretches are at least half a second apart."""
    count = max(1, round(num_frames / fps / FAILURE_EVERY_S))
    kinds = []
    for modality, choices in FAILURES.items():
        first = int(rng.integers(len(choices)))  # the kinds take turns
        kinds += [(modality, choices[(first + turn) % len(choices)]) for turn in range(count)]
    kinds = [kinds[index] for index in rng.permutation(len(kinds))]
    lengths = [round(FAILED_SHARE[modality] * num_frames / count * rng.uniform(0.8, 1.2)) for modality, _ in kinds]
    gap = round(FAILURE_GAP_S * fps) + 1
    spare = num_frames - sum(lengths) - gap * (len(kinds) - 1)
    spare_before = np.sort(rng.integers(spare + 1, size=len(kinds)))
    failures, used = [], 0
    for (modality, kind), length, lead in zip(kinds, lengths, spare_before, strict=True):
        failures.append(Corruption(modality, kind, used + int(lead), used + int(lead) + length))
        used += length + gap
    return tuple(failures)


def _aff_wild2_texts(plans: Mapping[int, Plan]) -> dict[Path, str]:
    """Return an annotation file per rated recording, one row per frame, and the list of the others."""
    texts = {Path("README.txt"): README_TEXT.format(layout="in the layout of Aff-Wild2"), TEST_LIST: ""}
    for subject, plan in plans.items():
        name, partition = NAME.format(subject), partition_of("aff_wild2", subject)
        if partition == "test":
            texts[TEST_LIST] += f"{name}\n"
            continue
        rows = zip(plan.traces_F["valence"], plan.traces_F["arousal"], strict=True)
        lines = ["-5,-5" if np.isnan(valence) else f"{valence:.3f},{arousal:.3f}" for valence, arousal in rows]
        texts[PARTITION_DIRS[partition] / f"{name}.txt"] = "\n".join(("valence,arousal", *lines, ""))
    return texts


def _fatigue_texts(plans: Mapping[int, Plan]) -> dict[Path, str]:
    """Return the one file of ratings, a row per interval: the mean of the trace in it, from 0 to 10."""
    lines = [RATINGS_HEADER]
    for subject, plan in plans.items():
        name, partition = NAME.format(subject), partition_of("fatigue", subject)
        fatigue_F, interval = plan.traces_F["fatigue"], INTERVAL_S * FATIGUE_FPS
        for start in range(0, len(fatigue_F), interval):
            rated_F = fatigue_F[start : start + interval]
            rating = RATING_STEP * round((5 + 5 * rated_F.mean()) / RATING_STEP)
            start_s, end_s = start / FATIGUE_FPS, (start + len(rated_F)) / FATIGUE_FPS
            lines.append(f"{(VIDEO_DIR / name).as_posix()},{name},{partition},{start_s:g},{end_s:g},{rating:g}")
    layout = "sessions rated for fatigue from 0 to 10 (ratings.csv)"
    return {Path("README.txt"): README_TEXT.format(layout=layout), RATINGS: "\n".join((*lines, ""))}


KINDS = {
    "aff_wild2": Kind(AFF_WILD2_FPS, plan_recording, _aff_wild2_texts),
    "fatigue": Kind(FATIGUE_FPS, plan_session, _fatigue_texts),
}
