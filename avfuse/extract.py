"""Stage 1: every recording of a corpus to features, once.

Per recording: lay the clips on the clock, decode and follow the face or read its aligned images, encode batches of
clips, in as many views as are wanted, with the sound under them, and commit the result to the cache. A recording that
cannot be used is kept with its reason, and the others go on. Partitions that share a subject or a file are refused
before anything is made.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from avfuse import footage, media, partitions, registry, views
from avfuse.cache import FeatureCache
from avfuse.corpora import Corpus
from avfuse.device import choose_device, choose_precision
from avfuse.encoders import Encoder
from avfuse.encoding import codecs
from avfuse.faces import CROPPED, FaceDetector
from avfuse.knobs import parse_assignments
from avfuse.options import ExtractOptions, cache_home
from avfuse.schema import Failure, Recording, RecordingError, RowCount, UsageError
from avfuse.spec import CacheSpec, FileDigests, Source
from avfuse.writer import RecordingWriter

log = logging.getLogger(__name__)

PIPELINE_VERSION = 2  # to be raised whenever the same settings give other features


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
    store : Path or str
        The feature store.
    fingerprint : str
    num_recordings, num_extracted, num_present : int
        In the corpus; extracted now; in the store before and left as they were.
    num_clips, num_views : int
        Clips encoded now; views of each.
    face_share : float
        Share of the frames of those clips that show a face; NaN when none were encoded.
    num_uneven : int
        Recordings extracted now whose annotation rows and frames differ, beyond what is refused.
    num_rows_dropped, num_frames_without_row : int
        Their annotation rows that rate no frame, and their frames that no row rates.
    failures : tuple of Failure
    elapsed_s : float
    """

    store: Path | str
    fingerprint: str
    num_recordings: int
    num_extracted: int
    num_present: int
    num_clips: int
    num_views: int
    face_share: float
    num_uneven: int
    num_rows_dropped: int
    num_frames_without_row: int
    failures: tuple[Failure, ...]
    elapsed_s: float


@dataclass(frozen=True)
class _Tools:
    """What every recording needs, made once."""

    corpus: Corpus
    recordings: list[Recording]
    digest: FileDigests
    cache: FeatureCache
    detector: FaceDetector | None  # None where faces come from aligned images
    video: Encoder
    audio: Encoder
    device: torch.device
    options: ExtractOptions


@dataclass(frozen=True)
class _Extracted:
    """What came of one recording: the share of each clip's frames that show the face, and how its rows met frames."""

    face_share_N: npt.NDArray[np.float32]
    rows: RowCount | None


def extract(
    options: ExtractOptions, on_progress: Callable[[ExtractProgress], None] = lambda progress: None
) -> ExtractSummary:
    """Extract the features of every recording that the cache does not hold yet.

    Raises
    ------
    UsageError
        If the corpus, its partitions, the weights or the cache cannot be used; no video has been decoded then.
    """
    started_s = time.monotonic()
    tools = _prepare(options)
    _refuse_strangers(tools.cache, tools.recordings)
    done = ExtractProgress(0, len(tools.recordings), 0, 0, "", 0.0)
    num_present = 0
    failures: list[Failure] = []
    extracted: list[_Extracted] = []
    for recording in tools.recordings:
        done = replace(done, recording=recording.name)
        on_progress(done)
        source = None
        try:
            source = Source.of(recording, options.root, tools.digest, with_crops=tools.detector is None)
            if tools.cache.holds(recording.name, source) or tools.cache.relabel(recording.name, source):
                num_present += 1
            else:
                extracted.append(_extract_recording(recording, source, tools, _relative(on_progress, done)))
                done = replace(done, num_clips=done.num_clips + len(extracted[-1].face_share_N))
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
    return _summarise(tools, extracted, num_present, failures, time.monotonic() - started_s)


def _summarise(
    tools: _Tools, extracted: Sequence[_Extracted], num_present: int, failures: Sequence[Failure], elapsed_s: float
) -> ExtractSummary:
    share_N = np.concatenate([item.face_share_N for item in extracted]) if extracted else np.zeros(0, np.float32)
    uneven = [item.rows for item in extracted if item.rows is not None and footage.is_uneven(item.rows)]
    return ExtractSummary(
        store=tools.cache.path,
        fingerprint=tools.cache.spec.fingerprint,
        num_recordings=len(tools.recordings),
        num_extracted=len(extracted),
        num_present=num_present,
        num_clips=len(share_N),
        num_views=tools.options.views,
        face_share=float(share_N.mean()) if len(share_N) else float("nan"),
        num_uneven=len(uneven),
        num_rows_dropped=sum(rows.num_dropped for rows in uneven),
        num_frames_without_row=sum(rows.num_without for rows in uneven),
        failures=tuple(failures),
        elapsed_s=elapsed_s,
    )


def _relative(on_progress: Callable[[ExtractProgress], None], before: ExtractProgress) -> Callable[[int, int], None]:
    """Return a callback that adds the clips of the recording at hand to what was done before it."""
    return lambda num_clips, total: on_progress(
        replace(before, num_clips=before.num_clips + num_clips, share_of_recording=num_clips / total)
    )


def _prepare(options: ExtractOptions) -> _Tools:
    """Build everything that can be refused, in the order of what it costs the user to be refused late."""
    codecs(options.compress, options.dtype)  # whether it can be had
    corpus, recordings = _open_corpus(options)
    digest = FileDigests()
    partitions.refuse_leaks(partitions.find_leaks(recordings, digest), options.allow_leaks)
    device = choose_device(options.device)
    video = _encoder("video", options.video_encoder, options.video_weights, options.video_option, options)
    audio = _encoder("audio", options.audio_encoder, options.audio_weights, options.audio_option, options)
    precision = choose_precision(options.precision, device)
    for encoder in (video, audio):
        encoder.place(device, precision)
    detector = FaceDetector(options.min_face_px, device) if options.faces == "detect" else None
    spec = CacheSpec(
        dataset=options.dataset or options.root.resolve().name,
        corpus=options.corpus,
        targets=corpus.targets,
        decoder=media.library_versions(),
        detector=CROPPED if detector is None else {**detector.fingerprint, "detect_every": options.detect_every},
        clip={
            "pipeline": PIPELINE_VERSION,
            "frames": media.CLIP_FRAMES,
            "dilation": media.CLIP_DILATION,
            "hop": options.hop,
            "sound_intervals": media.SOUND_INTERVALS,
            "sample_rate_hz": media.SAMPLE_RATE_HZ,
        },
        video=video.fingerprint,
        audio=audio.fingerprint,
        precision=precision,
        libraries={name: version(name) for name in ("torch", "torchvision", "torchaudio")},
        video_shape=video.feature_shape if options.maps == "whole" else (video.feature_shape[0], 1, 1),
        audio_shape=audio.feature_shape,
        ranges=corpus.ranges,
        storage={"dtype": options.dtype, "maps": options.maps},
        views=views.describe(options.views, options.flip),
    )
    provenance = {"video": video.provenance, "audio": audio.provenance, "avfuse": version("avfuse")}
    cache = FeatureCache.create(cache_home(options.cache), spec, provenance, options.compress)
    return _Tools(corpus, recordings, digest, cache, detector, video, audio, device, options)


def _open_corpus(options: ExtractOptions) -> tuple[Corpus, list[Recording]]:
    """Return the corpus with the arguments that the user gives it, and its recordings."""
    arguments = registry.check_arguments(
        "corpus", options.corpus, parse_assignments(options.corpus_option), reserved=("root",)
    )
    corpus: Corpus = registry.load("corpus", options.corpus)(options.root, **arguments)
    recordings = corpus.recordings()
    if options.faces == "cropped" and not any(recording.crops for recording in recordings):
        raise UsageError(
            f"corpus '{options.corpus}' has no aligned images of any recording of {options.root}; "
            "let faces be found in the videos, with --faces detect"
        )
    return corpus, recordings


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
            f"name the data set otherwise with --dataset, or remove what is there below {cache.path}/recordings"
        )


def _extract_recording(
    recording: Recording, source: Source, tools: _Tools, on_batch: Callable[[int, int], None]
) -> _Extracted:
    """Extract and commit one recording."""
    timeline = media.probe(recording.path)
    grid = media.ClipGrid.lay(timeline, tools.options.hop)
    target_FE, rows = footage.frame_targets(recording, timeline, tools.corpus)
    faces = footage.open_faces(recording, timeline.num_frames, tools.detector, tools.options.detect_every)
    with media.SoundReader(recording.path) as sound, RecordingWriter(tools.cache, recording.name, source) as writer:
        writer.begin(grid.num_clips)
        num_done = 0
        for video_BKYXC in footage.clip_batches(recording, timeline, grid, faces, tools.options.batch_size):
            end_s = grid.end_time_s[num_done : num_done + len(video_BKYXC)]
            sound_BS = np.stack([sound.read(at_s, grid.num_samples) for at_s in end_s])
            first, *others = _encode_views(video_BKYXC, recording.name, num_done, tools)
            writer.append(first, _encode(tools.audio, torch.from_numpy(sound_BS), tools), *others)
            num_done += len(end_s)
            on_batch(num_done, grid.num_clips)
        if sound.num_decoded == 0:
            raise RecordingError("no_audio_stream", f"{recording.path}: no sample of its audio stream can be decoded")
        face_share_N = faces.found_F[grid.frame_NK].mean(axis=1, dtype=np.float32)
        writer.commit(
            {
                "target": target_FE[grid.end_frame_N],
                "face_share": face_share_N,
                "end_frame": grid.end_frame_N,
                "end_time_s": grid.end_time_s,
                "frame_time_s": timeline.frame_time_s,
                "frame_target": target_FE,
                "frame_face": faces.found_F,
                "frame_face_probability": faces.probability_F,
            },
            fps=timeline.fps,
        )
    return _Extracted(face_share_N, rows)


def _encode_views(video_BKYXC: Tensor, recording: str, first_clip: int, tools: _Tools) -> list[npt.NDArray[np.float32]]:
    """Return the maps of a batch of clips in every view, one after the other: one view's pixels are held at a time."""
    maps = [_encode(tools.video, video_BKYXC, tools)]
    if tools.options.views > 1:
        plain_BKYXC = video_BKYXC.cpu().numpy()
        for view in range(1, tools.options.views):
            shown_BKYXC = views.show(plain_BKYXC, recording, first_clip, view, tools.options.flip)
            maps.append(_encode(tools.video, torch.from_numpy(shown_BKYXC), tools))
    return maps


def _encode(encoder: Encoder, clips: Tensor, tools: _Tools) -> npt.NDArray[np.float32]:
    with torch.inference_mode():
        feature: npt.NDArray[np.float32] = encoder(clips.to(tools.device)).cpu().numpy()
    return feature


def _describe_failure(recording: Recording, error: Exception) -> Failure:
    """Turn what a recording ended with into a typed reason; an unknown error keeps its type and its message."""
    if isinstance(error, RecordingError):
        return Failure(recording.name, error.reason, str(error))
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return Failure(recording.name, "out_of_memory", str(error) or "the machine ran out of memory")
    log.error("%s: unexpected %s", recording.name, type(error).__name__, exc_info=error)
    return Failure(recording.name, "unexpected", f"{type(error).__name__}: {error}")
