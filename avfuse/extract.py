"""Stage 1: every recording of a corpus to features, once.

Per recording: lay the clips on the clock, decode, follow the face, encode batches of clips with the sound under them,
and commit the result to the cache. A recording that cannot be used is kept with its reason, and the others go on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from avfuse import media, registry
from avfuse.cache import FeatureCache, RecordingWriter
from avfuse.corpora import Corpus
from avfuse.device import choose_device, choose_precision
from avfuse.encoders import Encoder
from avfuse.faces import CROP_PX, TEMPLATE_PX, FaceDetector, FaceTrack
from avfuse.options import ExtractOptions, cache_home, parse_assignments
from avfuse.schema import Failure, Recording, RecordingError, UsageError
from avfuse.spec import CacheSpec, Source

log = logging.getLogger(__name__)

PIPELINE_VERSION = 1  # to be raised whenever the same settings give other features


@dataclass(frozen=True)
class ExtractProgress:
    """How far an extraction is: recordings dealt with and in all, clips encoded, and the recording at hand."""

    num_done: int
    num_recordings: int
    num_clips: int
    num_failed: int
    recording: str
    share_of_recording: float


@dataclass(frozen=True)
class ExtractSummary:
    """What an extraction did.

    Attributes
    ----------
    store : Path
        The feature store.
    fingerprint : str
    num_recordings, num_extracted, num_present : int
        In the corpus; extracted now; in the store before and left as they were.
    num_clips : int
        Clips encoded now.
    face_share : float
        Share of the frames of those clips that show a face; NaN when none were encoded.
    failures : tuple of Failure
    elapsed_s : float
    """

    store: Path
    fingerprint: str
    num_recordings: int
    num_extracted: int
    num_present: int
    num_clips: int
    face_share: float
    failures: tuple[Failure, ...]
    elapsed_s: float


@dataclass(frozen=True)
class _Tools:
    """What every recording needs, made once."""

    corpus: Corpus
    cache: FeatureCache
    detector: FaceDetector
    video: Encoder
    audio: Encoder
    device: torch.device
    options: ExtractOptions


def extract(
    options: ExtractOptions, on_progress: Callable[[ExtractProgress], None] = lambda progress: None
) -> ExtractSummary:
    """Extract the features of every recording that the cache does not hold yet.

    Raises
    ------
    UsageError
        If the corpus, the weights or the cache cannot be used; no video has been opened then.
    """
    started_s = time.monotonic()
    tools = _prepare(options)
    recordings = tools.corpus.recordings()
    _refuse_strangers(tools.cache, recordings)
    done = ExtractProgress(0, len(recordings), 0, 0, "", 0.0)
    num_present, failures, face_shares = 0, [], []
    for recording in recordings:
        done = replace(done, recording=recording.name)
        on_progress(done)
        source = None
        try:
            source = Source.of(recording, options.root)
            if tools.cache.holds(recording.name, source):
                num_present += 1
            else:
                share_N = _extract_recording(recording, source, tools, _relative(on_progress, done))
                done = replace(done, num_clips=done.num_clips + len(share_N))
                face_shares.append(share_N)
            tools.cache.clear_failure(recording.name)
        except OSError:  # the cache cannot be written to: no later recording could be kept either
            raise
        except Exception as error:  # whatever one recording does, its reason is kept and the others go on
            failures.append(_describe_failure(recording, error))
            if source is not None:
                tools.cache.remove(recording.name)  # what is there was made from other files than those of now
            tools.cache.record_failure(failures[-1])
        done = replace(done, num_done=done.num_done + 1, num_failed=len(failures))
        on_progress(done)
    return ExtractSummary(
        store=tools.cache.path,
        fingerprint=tools.cache.spec.fingerprint,
        num_recordings=len(recordings),
        num_extracted=len(face_shares),
        num_present=num_present,
        num_clips=done.num_clips,
        face_share=float(np.concatenate(face_shares).mean()) if face_shares else float("nan"),
        failures=tuple(failures),
        elapsed_s=time.monotonic() - started_s,
    )


def _relative(on_progress: Callable[[ExtractProgress], None], before: ExtractProgress) -> Callable[[int, int], None]:
    """Return a callback that adds the clips of the recording at hand to what was done before it."""
    return lambda num_clips, total: on_progress(
        replace(before, num_clips=before.num_clips + num_clips, share_of_recording=num_clips / total)
    )


def _prepare(options: ExtractOptions) -> _Tools:
    """Build everything that can be refused, in the order of what it costs the user to be refused late."""
    corpus: Corpus = registry.load("corpus", options.corpus)(options.root)
    device = choose_device(options.device)
    video = _encoder("video", options.video_encoder, options.video_weights, options.video_option, options)
    audio = _encoder("audio", options.audio_encoder, options.audio_weights, options.audio_option, options)
    precision = choose_precision(options.precision, device)
    for encoder in (video, audio):
        encoder.place(device, precision)
    detector = FaceDetector(options.min_face_px, device)
    spec = CacheSpec(
        dataset=options.dataset or options.root.resolve().name,
        corpus=options.corpus,
        targets=corpus.targets,
        decoder=media.library_versions(),
        detector={**detector.fingerprint, "detect_every": options.detect_every},
        clip={
            "pipeline": PIPELINE_VERSION,
            "frames": media.CLIP_FRAMES,
            "dilation": media.CLIP_DILATION,
            "hop": options.hop,
            "crop_px": CROP_PX,
            "template_px": [list(point) for point in TEMPLATE_PX],
            "sound_intervals": media.SOUND_INTERVALS,
            "sample_rate_hz": media.SAMPLE_RATE_HZ,
        },
        video=video.fingerprint,
        audio=audio.fingerprint,
        precision=precision,
        libraries={name: version(name) for name in ("torch", "torchvision", "torchaudio")},
        video_shape=video.feature_shape,
        audio_shape=audio.feature_shape,
    )
    provenance = {"video": video.provenance, "audio": audio.provenance, "avfuse": version("avfuse")}
    cache = FeatureCache.create(cache_home(options.cache), spec, provenance)
    return _Tools(corpus, cache, detector, video, audio, device, options)


def _encoder(modality: str, name: str, weights: str, assignments: tuple[str, ...], options: ExtractOptions) -> Encoder:
    plug = registry.load("encoder", name)
    if plug.modality != modality:
        raise UsageError(f"encoder '{name}' is for {plug.modality}, not for {modality}")
    arguments = registry.check_arguments(
        "encoder", name, parse_assignments(assignments), reserved=("weights", "allow_download")
    )
    encoder: Encoder = plug(weights, options.allow_download, **arguments)
    return encoder


def _refuse_strangers(cache: FeatureCache, recordings: list[Recording]) -> None:
    """Refuse to add a corpus to a store that holds recordings of another: training would mix the two."""
    known = {recording.name for recording in recordings}
    strangers = [name for name in cache.names() if name not in known]
    if strangers:
        raise UsageError(
            f"{cache.path} holds {len(strangers)} recordings that this corpus does not have, such as {strangers[0]}; "
            f"name the data set otherwise with --dataset, or remove their folders below {cache.path / 'recordings'}"
        )


def _extract_recording(
    recording: Recording, source: Source, tools: _Tools, on_batch: Callable[[int, int], None]
) -> npt.NDArray[np.float32]:
    """Extract and commit one recording; return the share of each clip's frames that show the face, (N,)."""
    timeline = media.probe(recording.path)
    grid = media.ClipGrid.lay(timeline, tools.options.hop)
    target_FE = _frame_targets(recording, timeline, tools.corpus)
    track = FaceTrack(tools.detector, timeline.num_frames, tools.options.detect_every)
    with media.SoundReader(recording.path) as sound, RecordingWriter(tools.cache, recording.name, source) as writer:
        writer.begin(grid.num_clips)
        num_done = 0
        for video_BKYXC in _clip_batches(recording, timeline, grid, track, tools.options.batch_size):
            end_s = grid.end_time_s[num_done : num_done + len(video_BKYXC)]
            sound_BS = np.stack([sound.read(at_s, grid.num_samples) for at_s in end_s])
            writer.append(_encode(tools.video, video_BKYXC, tools), _encode(tools.audio, sound_BS, tools))
            num_done += len(end_s)
            on_batch(num_done, grid.num_clips)
        if sound.num_decoded == 0:
            raise RecordingError("no_audio_stream", f"{recording.path}: no sample of its audio stream can be decoded")
        face_share_N = track.found_F[grid.frame_NK].mean(axis=1, dtype=np.float32)
        writer.commit(
            {
                "target": target_FE[grid.end_frame_N],
                "face_share": face_share_N,
                "end_frame": grid.end_frame_N,
                "end_time_s": grid.end_time_s,
                "frame_time_s": timeline.frame_time_s,
                "frame_target": target_FE,
                "frame_face": track.found_F,
                "frame_face_probability": track.probability_F,
            },
            fps=timeline.fps,
        )
    return np.asarray(face_share_N)


def _frame_targets(recording: Recording, timeline: media.Timeline, corpus: Corpus) -> npt.NDArray[np.float32]:
    """Return the rating of each frame, (F, E), NaN where unrated."""
    annotation = corpus.annotation(recording)
    if annotation is None:
        return np.full((timeline.num_frames, len(corpus.targets)), np.nan, np.float32)
    num_rows = len(annotation.values_FE)
    if annotation.time_s is None and num_rows != timeline.num_frames:
        log.warning("%s: %d annotation rows for %d frames", recording.name, num_rows, timeline.num_frames)
    return annotation.at(timeline.frame_time_s)


def _clip_batches(
    recording: Recording, timeline: media.Timeline, grid: media.ClipGrid, track: FaceTrack, size: int
) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield the crops (B, K, 112, 112, 3) of up to `size` clips at a time; only frames of clips to come are held."""
    wanted_F = track.detected_F()
    wanted_F[grid.frame_NK] = True
    crops = track.crops(media.read_frames(recording.path, timeline, wanted_F))
    held: dict[int, npt.NDArray[np.uint8]] = {}
    black = np.zeros((CROP_PX, CROP_PX, 3), np.uint8)
    last_read, clips = -1, []
    for frame_K in grid.frame_NK:
        while last_read < frame_K[-1]:
            last_read, crop = next(crops, (timeline.num_frames, black))
            held[last_read] = crop
        lost = [frame for frame in frame_K.tolist() if frame not in held]
        track.found_F[lost], track.probability_F[lost] = False, 0.0  # it could not be decoded: nobody saw its face
        clips.append(np.stack([held.get(frame, black) for frame in frame_K.tolist()]))
        # The next clip begins no earlier than this one; before the start several begin with the first frame.
        held = {frame: crop for frame, crop in held.items() if frame >= frame_K[0]}
        if len(clips) == size:
            yield np.stack(clips)
            clips = []
    for _ in crops:
        pass  # frames behind the last clip belong to no clip, but whether they show a face is recorded
    if clips:
        yield np.stack(clips)


def _encode(encoder: Encoder, clips: npt.NDArray[Any], tools: _Tools) -> npt.NDArray[np.float32]:
    with torch.inference_mode():
        feature: npt.NDArray[np.float32] = encoder(torch.from_numpy(clips).to(tools.device)).cpu().numpy()
    return feature


def _describe_failure(recording: Recording, error: Exception) -> Failure:
    """Turn what a recording ended with into a typed reason; an unknown error keeps its type and its message."""
    if isinstance(error, RecordingError):
        return Failure(recording.name, error.reason, str(error))
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return Failure(recording.name, "out_of_memory", str(error) or "the machine ran out of memory")
    log.error("%s: unexpected %s", recording.name, type(error).__name__, exc_info=error)
    return Failure(recording.name, "unexpected", f"{type(error).__name__}: {error}")
