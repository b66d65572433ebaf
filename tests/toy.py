"""A small feature cache whose targets follow from its features, for tests of everything behind the cache."""

import hashlib
from pathlib import Path

import numpy as np

from avfuse.cache import FeatureCache
from avfuse.spec import CacheSpec, Source
from avfuse.writer import RecordingWriter

CHANNELS, MAP, AUDIO = 32, 2, 32
HOP, FPS = 8, 25.0


def toy_spec(**changes: object) -> CacheSpec:
    """Return the spec of the toy cache."""
    values = {
        "dataset": "toy",
        "corpus": "folder",
        "targets": ("valence", "arousal"),
        "decoder": {},
        "detector": {},
        "clip": {"hop": HOP, "frames": 8, "dilation": 4},
        "video": {},
        "audio": {},
        "precision": "fp32",
        "libraries": {},
        "video_shape": (CHANNELS, MAP, MAP),
        "audio_shape": (AUDIO,),
        "ranges": ((-1.0, 1.0), (-1.0, 1.0)),
    }
    return CacheSpec(**{**values, **changes})


def add_recording(
    store: FeatureCache,
    name: str,
    partition: str,
    num_clips: int,
    seed: int,
    rated: bool = True,
    frame_target: np.ndarray | None = None,
    file: str | None = None,
) -> dict[str, np.ndarray]:
    """Add a recording in which valence shows in the map and arousal in the sound; return its arrays.

    Further views have maps that are higher by 1, 2, ... Its ratings are a random walk, or `frame_target`, with NaN
    where unrated. It stems from a file of its own, unless `file` says that others share it.
    """
    rng = np.random.default_rng(seed)
    num_frames = num_clips * HOP + 3
    end_frame = np.arange(1, num_clips + 1) * HOP - 1
    if frame_target is None:
        walk = np.cumsum(rng.normal(size=(num_frames, 2)), axis=0) / 8
        frame_target = np.tanh(walk - walk.mean(axis=0)).astype(np.float32)
        at_end = frame_target[end_frame]
        frame_target[::17] = np.nan
    else:
        at_end = np.nan_to_num(frame_target[end_frame])
    video = rng.normal(scale=0.3, size=(num_clips, CHANNELS, MAP, MAP)) + at_end[:, 0, None, None, None]
    audio = rng.normal(scale=0.3, size=(num_clips, AUDIO)) + at_end[:, 1, None]
    if not rated:
        frame_target[:] = np.nan
    frame_target = frame_target[:, : len(store.spec.targets)]
    arrays = {
        "target": frame_target[end_frame],
        "face_share": np.clip(rng.uniform(0.5, 1.5, num_clips), 0, 1).astype(np.float32),
        "end_frame": end_frame,
        "end_time_s": end_frame / FPS,
        "frame_time_s": np.arange(num_frames) / FPS,
        "frame_target": frame_target,
        "frame_face": rng.uniform(size=num_frames) > 0.1,
        "frame_face_probability": np.ones(num_frames, np.float32),
    }
    half = video.astype(np.float32).astype(np.float16)
    digest = hashlib.sha256((file or name).encode()).hexdigest()
    with RecordingWriter(store, name, Source(partition, name, f"{name}.mp4", digest, None)) as writer:
        writer.begin(num_clips)
        views = [(half + np.float16(view)).astype(np.float32) for view in range(1, store.spec.views["count"])]
        writer.append(video.astype(np.float32), audio.astype(np.float32), *views)
        writer.commit(arrays, fps=FPS)
    return {**arrays, "video": half, "audio": audio.astype(np.float32)}


def left_aside(store: Path | str) -> list[Path]:
    """Return what is being written beside a store, without the empty notes by which writers show that they live."""
    beside = Path(store).with_suffix(".tmp")
    found = beside.iterdir() if beside.exists() else ()  # it goes with the last of the notes
    return [path for path in found if path.is_dir() or path.stat().st_size]


def toy_cache(home: Path) -> FeatureCache:
    """Make a store with six recordings for training, two for validation and one without ratings."""
    store = FeatureCache.create(home, toy_spec(), {})
    for number, num_clips in enumerate((40, 33, 64, 17, 9, 50)):
        add_recording(store, f"train-{number}", "train", num_clips, seed=number)
    add_recording(store, "validation-0", "validation", 45, seed=100)
    add_recording(store, "validation-1", "validation", 70, seed=101)
    add_recording(store, "unrated", "test", 12, seed=102, rated=False)
    return store
