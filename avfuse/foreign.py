"""Features that others extracted, as a mapping says where they lie, into a feature cache.

Everything that can be refused without reading the features is refused before the first recording is written: shapes,
lengths, ratings, partitions. Then one recording after the other is put in place whole, so that an import that was
stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt

from avfuse import partitions
from avfuse.alignment import Plan, end_frames, frame_target, open_feature, plan_recording, read_ratings
from avfuse.cache import FeatureCache
from avfuse.cache_options import CacheImportOptions
from avfuse.clips import digest_of
from avfuse.mapping import MODALITIES, FeatureMapping, read_mapping
from avfuse.options import cache_home
from avfuse.schema import PARTITIONS, Recording, UsageError
from avfuse.sealed import read_sealed, seal
from avfuse.spec import CacheSpec, Source
from avfuse.writer import RecordingWriter

log = logging.getLogger(__name__)

CORPUS = "mapping"
_BLOCK_BYTES = 2**24
_ABSENT = {"video": (1, 1, 1), "audio": (1,)}  # what stands for a modality that there is not: a feature of one zero
_KEPT_AS: dict[str, np.finfo[Any]] = {"video": np.finfo(np.float16), "audio": np.finfo(np.float32)}
_LIMITS = {"video": float(np.finfo(np.float16).max), "audio": math.inf}
_FEW_RATED = 0.5  # of the clips of a recording
_MAX_LOST = 0.01  # of a recording's numbers other than zero


@dataclass(frozen=True)
class ForeignSummary:
    """What came of importing features of others.

    Attributes
    ----------
    store, fingerprint : str
    num_recordings, num_imported, num_present : int
        In the mapping; put into the store now; there before, made from the same values.
    num_clips : int
        Of what was imported now.
    num_cut : int
        Recordings whose features and ratings differ in length, and were cut to the shortest.
    num_unrated : int
        Recordings of which no frame has a rating.
    """

    store: str
    fingerprint: str
    num_recordings: int
    num_imported: int
    num_present: int
    num_clips: int
    num_cut: int
    num_unrated: int


def import_features(
    options: CacheImportOptions, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> ForeignSummary:
    """Put the features that a mapping names into a store of their own.

    Raises
    ------
    UsageError
        If the mapping, what it names, the partitions or the cache cannot be used; the message names file and key.
    """
    mapping = read_mapping(options.file)
    plans = [plan_recording(mapping, recording) for recording in mapping.recordings]
    _check_shapes(mapping, plans)
    partitions.refuse_leaks(_find_leaks(mapping, plans), options.allow_leaks)
    text = mapping.path.read_text(encoding="utf-8")
    provenance = {"mapping": text, "avfuse": version("avfuse")}
    cache = FeatureCache.create(cache_home(options.cache), _spec(mapping, plans[0].shapes), provenance)
    _refuse_strangers(cache, plans, mapping)
    _tell_origin(cache, provenance)
    if cut := [plan.recording.name for plan in plans if plan.is_cut]:
        log.warning("%d recordings are cut to what is shortest of them, such as %s", len(cut), cut[0])
    _warn_of_gaps(plans)
    imported = []
    for number, plan in enumerate(plans):
        on_progress(number, len(plans))
        if _import_recording(mapping, plan, cache):
            imported.append(plan)
    on_progress(len(plans), len(plans))
    return ForeignSummary(
        store=str(cache.path),
        fingerprint=cache.spec.fingerprint,
        num_recordings=len(plans),
        num_imported=len(imported),
        num_present=len(plans) - len(imported),
        num_clips=sum(plan.num_clips for plan in imported),
        num_cut=len(cut),
        num_unrated=sum(not plan.is_rated for plan in plans),
    )


def _spec(mapping: FeatureMapping, shapes: dict[str, tuple[int, ...]]) -> CacheSpec:
    """Return the settings of the store: what the mapping declares of the features."""
    encoders = {
        key: {"encoder": mapping.encoders[key] or "of others", "location": mapping.places.get(key, "by recording")}
        if key in shapes
        else {"encoder": "none"}
        for key in MODALITIES
    }
    return CacheSpec(
        dataset=mapping.dataset,
        corpus=CORPUS,
        targets=mapping.targets,
        decoder={},
        detector={},
        clip={
            "hop": mapping.hop,
            "frames": mapping.hop,
            "dilation": 1,
            "first_frame": mapping.first_frame,
            "fps": mapping.fps,
        },
        video=encoders["video"],
        audio=encoders["audio"],
        precision="of others",
        libraries={},
        video_shape=_even(shapes["video"]) if "video" in shapes else _ABSENT["video"],
        audio_shape=_even(shapes["audio"]) if "audio" in shapes else _ABSENT["audio"],
        ranges=mapping.ranges,
    )


def _even(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of features as stored: heads halve their size, so an odd number of them gets one zero more."""
    return (shape[0] + shape[0] % 2, *shape[1:])


def _check_shapes(mapping: FeatureMapping, plans: list[Plan]) -> None:
    for plan, key in itertools.product(plans[1:], plans[0].shapes):
        if plan.shapes[key] != plans[0].shapes[key]:
            raise UsageError(
                f"{mapping.path}: {key} of '{plan.recording.name}' has features of shape {plan.shapes[key]}, that of "
                f"'{plans[0].recording.name}' {plans[0].shapes[key]}; all recordings have the same"
            )


def _warn_of_gaps(plans: list[Plan]) -> None:
    """Warn of ratings that miss most clips: their times may be in another unit, or on another clock."""
    gaps = [plan for plan in plans if plan.is_rated and plan.num_rated_clips < _FEW_RATED * plan.num_clips]
    if gaps:
        worst = min(gaps, key=lambda plan: plan.num_rated_clips / plan.num_clips)
        log.warning(
            "%d recordings are rated at less than half of their clips, such as %s, at %d of %d; do the times, or the "
            "rows, of target belong to these features?",
            *(len(gaps), worst.recording.name, worst.num_rated_clips, worst.num_clips),
        )


def _find_leaks(mapping: FeatureMapping, plans: list[Plan]) -> list[partitions.Leak]:
    """Return every subject that stands in two partitions, and all features that do, whatever file they lie in."""
    items = [plan.recording for plan in plans]
    # No file is compared: many recordings may lie in one.
    people = [Recording(item.name, mapping.folder, item.partition, item.subject) for item in items]
    leaks = partitions.find_leaks(people, lambda path: "")
    alike: dict[Any, list[Plan]] = {}
    for plan, key in itertools.product(plans, plans[0].shapes):
        alike.setdefault((key, plan.num_clips), []).append(plan)
    for (key, _), group in alike.items():
        if _is_spread(group):
            same: dict[str, list[Plan]] = {}
            for plan in group:
                same.setdefault(_digest(mapping, plan, key), []).append(plan)
            leaks += [_leak(key, found) for found in same.values() if _is_spread(found)]
    return leaks


def _is_spread(plans: list[Plan]) -> bool:
    return len({plan.recording.partition for plan in plans}) > 1


def _leak(key: str, plans: list[Plan]) -> partitions.Leak:
    found = sorted((plan.recording for plan in plans), key=lambda item: (PARTITIONS.index(item.partition), item.name))
    names, parts = zip(*((item.name, item.partition) for item in found), strict=True)
    return partitions.Leak("file", str(found[0].places[key]), names, parts)


def _refuse_strangers(cache: FeatureCache, plans: list[Plan], mapping: FeatureMapping) -> None:
    """Refuse to add to a store that holds recordings of another mapping: training would mix the two."""
    known = {plan.recording.name for plan in plans}
    strangers = [name for name in cache.names() if name not in known]
    if strangers:
        raise UsageError(
            f"{cache.path} holds {len(strangers)} recordings that {mapping.path} does not have, such as {strangers[0]}"
            "; name the data set otherwise, with dataset in the mapping"
        )


def _tell_origin(cache: FeatureCache, provenance: dict[str, str]) -> None:
    """Keep the mapping's text in the root, in place of that of an earlier import whose settings were the same."""
    known = cache.provenance
    attributes = read_sealed(cache.store.metadata(""))
    if attributes is not None and known.get("mapping") != provenance["mapping"]:
        cache.store.write_metadata("", seal({**attributes, "provenance": {**known, **provenance}}))


def _blocks(mapping: FeatureMapping, plan: Plan, key: str) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the features of a recording's clips, (n, C, H, W) or (n, A), as they may be stored."""
    shape = plan.shapes[key]
    num_rows = max(1, _BLOCK_BYTES // (4 * math.prod(shape)))
    num_lost = num_given = 0
    with open_feature(mapping, plan.recording, key) as opened:
        for start in range(0, plan.num_clips, num_rows):
            rows = opened.rows(start, min(start + num_rows, plan.num_clips))
            with np.errstate(over="ignore"):
                values = np.ascontiguousarray(rows, np.float32).reshape(-1, *shape)
            largest_n = np.abs(values).reshape(len(values), -1).max(axis=1)
            unusable_n = ~np.isfinite(largest_n) | (largest_n > _LIMITS[key])
            if unusable_n.any():
                row = int(np.argmax(unusable_n))
                raise UsageError(
                    f"row {start + row} holds {largest_n[row]:g}; features are finite"
                    + (f", and up to {_LIMITS[key]:g} in size: scale them" if np.isfinite(largest_n[row]) else "")
                )
            num_lost += _count_lost(rows, key)
            num_given += int(np.count_nonzero(rows))
            yield values
        if num_lost > _MAX_LOST * num_given:
            raise UsageError(
                f"{num_lost / num_given:.0%} of its numbers other than zero are smaller than "
                f"{_KEPT_AS[key].tiny:.2g}, where numbers of {_KEPT_AS[key].bits} bits lose their digits: scale them"
            )


def _count_lost(rows: npt.NDArray[Any], key: str) -> int:
    """Return how many numbers are so small that they lose digits, or become zero, as they will be kept."""
    if rows.dtype.kind != "f":
        return 0
    small = rows[np.abs(rows) < _KEPT_AS[key].tiny]
    return int(np.count_nonzero(small.astype(_KEPT_AS[key].dtype) != small))


def _digest(mapping: FeatureMapping, plan: Plan, key: str) -> str:
    """Return the sha256 of a recording's features, as 32-bit numbers, whatever file they lie in."""
    digest = hashlib.sha256()
    for values in _blocks(mapping, plan, key):
        digest.update(values.data)
    return digest.hexdigest()


def _import_recording(mapping: FeatureMapping, plan: Plan, cache: FeatureCache) -> bool:
    """Put a recording into the store, unless it is there, made from the same values; return whether it was put."""
    item = plan.recording
    frame_target_FE = frame_target(mapping, plan, read_ratings(mapping, item))
    digests = "".join(f"{key} {_digest(mapping, plan, key)}\n" for key in plan.shapes)
    source = Source(
        partition=item.partition,
        subject=item.subject,
        file=str(item.places[next(iter(plan.shapes))]),
        sha256=hashlib.sha256(digests.encode()).hexdigest(),
        annotation_sha256=digest_of(frame_target_FE) if plan.is_rated else None,
    )
    if cache.holds(item.name, source) or cache.relabel(item.name, source):
        return False
    end_frame_N, sees_face = end_frames(mapping, plan), "video" in plan.shapes
    with RecordingWriter(cache, item.name, source) as writer:
        writer.begin(plan.num_clips)
        for video_NCHW, audio_NA in _clips(mapping, plan):
            writer.append(video_NCHW, audio_NA)
        writer.commit(
            {
                "target": frame_target_FE[end_frame_N],
                "face_share": np.full(plan.num_clips, sees_face, np.float32),
                "end_frame": end_frame_N,
                "end_time_s": end_frame_N / mapping.fps,
                "frame_time_s": np.arange(plan.num_frames) / mapping.fps,
                "frame_target": frame_target_FE,
                "frame_face": np.full(plan.num_frames, sees_face),
                "frame_face_probability": np.full(plan.num_frames, sees_face, np.float32),
            },
            fps=mapping.fps,
        )
    return True


def _clips(mapping: FeatureMapping, plan: Plan) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
    """Yield video (n, C, H, W) and audio (n, A) of consecutive clips."""
    audio_NA = np.zeros((plan.num_clips, *_ABSENT["audio"]), np.float32)
    if "audio" in plan.shapes:
        audio_NA = np.concatenate([_padded(block) for block in _blocks(mapping, plan, "audio")])
    if "video" not in plan.shapes:
        yield np.zeros((plan.num_clips, *_ABSENT["video"]), np.float32), audio_NA
        return
    num_done = 0
    for video_NCHW in _blocks(mapping, plan, "video"):
        yield _padded(video_NCHW), audio_NA[num_done : num_done + len(video_NCHW)]
        num_done += len(video_NCHW)


def _padded(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return features with a zero more if their number is odd; see `_even`."""
    return np.pad(values, [(0, 0), (0, values.shape[1] % 2), *[(0, 0)] * (values.ndim - 2)])
