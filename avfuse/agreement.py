"""In what two caches agree: settings, recordings and sources, and how near the features of the same recordings are.

Bytes are turned into the values that they stand for, and maps are pooled where the other cache holds pooled ones, so
that caches of one data set compare whatever they were made with. Of several views each is compared with the other
cache's of its number.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from avfuse.cache import FeatureCache
from avfuse.cache_options import CacheDiffOptions
from avfuse.cached import CachedRecording, view_name
from avfuse.encoding import decode, pool
from avfuse.spec import differences

_BLOCK_CLIPS = 64
_SCALES = {"video_scale", "video_offset"}
_Pair = tuple[npt.NDArray[Any], npt.NDArray[Any]]


@dataclass(frozen=True)
class Nearness:
    """How near two features are: the largest difference, and the cosine per clip, its mean and the worst.

    A cosine is 1 where both are zero, 0 where one of them is.
    """

    max_difference: float
    mean_cosine: float
    worst_cosine: float


@dataclass(frozen=True)
class RecordingAgreement:
    """One recording of two caches.

    Attributes
    ----------
    recording : str
    is_equal : bool
        Whether source, clock and every value are.
    source : tuple of str
        What of the source differs.
    arrays : tuple of str
        Arrays whose values differ, or that only one of them has.
    equal : tuple of str
        Of ``video`` and ``audio`` what is equal: video, if every view is that both have.
    video, audio : Nearness or None
        None where they are equal, or do not compare, as `note` says. That of video is over the clips of all views that
        both have and that are not equal.
    note : str
        What does not compare, other rates of the clip grid, and views that only one of them has; A is the first cache,
        B the second.
    """

    recording: str
    is_equal: bool
    source: tuple[str, ...]
    arrays: tuple[str, ...]
    equal: tuple[str, ...]
    video: Nearness | None
    audio: Nearness | None
    note: str


@dataclass(frozen=True)
class CacheAgreement:
    """What two caches have in common.

    Attributes
    ----------
    first, second : str
    is_equal : bool
        Whether training from one is training from the other.
    settings : dict
        Settings that differ: (value of the first, value of the second), by name.
    only_first, only_second : tuple of str
        Recordings that only one of them holds.
    recordings : tuple of RecordingAgreement
        Those that both hold.
    video, audio : Nearness or None
        Over the recordings that are not equal: the largest difference, the mean of their means, the worst of all.
    """

    first: str
    second: str
    is_equal: bool
    settings: dict[str, tuple[Any, Any]]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    recordings: tuple[RecordingAgreement, ...]
    video: Nearness | None
    audio: Nearness | None


def compare_caches(
    options: CacheDiffOptions, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> CacheAgreement:
    """Compare two caches, calling ``on_progress(done, total)`` by the recordings that both hold.

    Raises
    ------
    UsageError
        If one of them is not there, or damaged.
    """
    first, second = FeatureCache.find(options.first), FeatureCache.find(options.second)
    here = {item.name: item for item in first.recordings()}
    there = {item.name: item for item in second.recordings()}
    common = [name for name in here if name in there]
    compared = []
    for done, name in enumerate(common):
        on_progress(done, len(common))
        compared.append(_compare_recordings(here[name], there[name]))
    on_progress(len(common), len(common))
    settings = differences(first.spec.to_json(), second.spec.to_json())
    is_equal = not settings and here.keys() == there.keys() and all(item.is_equal for item in compared)
    return CacheAgreement(
        first=str(first.path),
        second=str(second.path),
        is_equal=is_equal,
        settings=settings,
        only_first=tuple(name for name in here if name not in there),
        only_second=tuple(name for name in there if name not in here),
        recordings=tuple(compared),
        video=_over([item.video for item in compared]),
        audio=_over([item.audio for item in compared]),
    )


def _compare_recordings(one: CachedRecording, other: CachedRecording) -> RecordingAgreement:
    source, other_source = asdict(one.source), asdict(other.source)
    names = sorted({*one.arrays, *other.arrays})
    differing = tuple(name for name in names if one.arrays.get(name) != other.arrays.get(name))
    views = _find_other_views(one, other, differing)
    equal = tuple(name for name, is_equal in (("video", not views), ("audio", "audio" not in differing)) if is_equal)
    video = audio = None
    notes = [] if one.fps == other.fps else [f"{one.fps:g} and {other.fps:g} slots per second"]
    if one.num_clips != other.num_clips:
        notes.append(f"{one.num_clips} and {other.num_clips} clips")
    else:
        if "video" not in equal:
            maps = itertools.chain.from_iterable(_maps(one, other, view) for view in views)
            video = _nearness(maps) if _are_alike(one, other) else None
            notes += [] if video else [_describe_shapes(one, other, "video")]
        if "audio" not in equal:
            audio = _nearness(_sounds(one, other)) if _shape(one, "audio") == _shape(other, "audio") else None
            notes += [] if audio else [_describe_shapes(one, other, "audio")]
    notes += _name_single_views(one, other)
    return RecordingAgreement(
        recording=one.name,
        is_equal=source == other_source and one.fps == other.fps and not differing,
        source=tuple(key for key, value in source.items() if other_source[key] != value),
        arrays=differing,
        equal=equal,
        video=video,
        audio=audio,
        note="; ".join(notes),
    )


def _find_other_views(one: CachedRecording, other: CachedRecording, differing: Collection[str]) -> list[int]:
    """Return the numbers of the views that both have and that are not equal."""
    is_scaled_otherwise = not _SCALES.isdisjoint(differing)  # and so what every byte stands for
    num_common = min(one.num_views, other.num_views)
    return [view for view in range(num_common) if is_scaled_otherwise or view_name(view) in differing]


def _name_single_views(one: CachedRecording, other: CachedRecording) -> list[str]:
    """Say which views only one of two recordings has, if there are such."""
    first, last = sorted((one.num_views, other.num_views))
    where = "A" if one.num_views == last else "B"
    return [f"{', '.join(map(view_name, range(first, last)))} only in {where}"] if first < last else []


def _shape(item: CachedRecording, name: str) -> tuple[int, ...]:
    """Return the shape of one clip's feature."""
    return tuple(item.arrays[name]["shape"][1:])


def _describe_shapes(one: CachedRecording, other: CachedRecording, name: str) -> str:
    shapes = (" x ".join(map(str, _shape(item, name))) for item in (one, other))
    return f"{name} of {' and '.join(shapes)}"


def _are_alike(one: CachedRecording, other: CachedRecording) -> bool:
    """Whether maps compare: they are of one shape, or of one number of channels where one cache holds pooled ones."""
    shape, other_shape = _shape(one, "video"), _shape(other, "video")
    return shape == other_shape or (shape[0] == other_shape[0] and (1, 1) in (shape[1:], other_shape[1:]))


def _sounds(one: CachedRecording, other: CachedRecording) -> Iterator[_Pair]:
    yield one.array("audio"), other.array("audio")


def _maps(one: CachedRecording, other: CachedRecording, view: int) -> Iterator[_Pair]:
    """Yield a view of both as float32, some clips at a time, pooled where one of the caches holds pooled maps."""
    for item in (one, other):
        item.check(view)
    is_pooled = _shape(one, "video") != _shape(other, "video")
    scales = one.scale(), other.scale()
    for start in range(0, one.num_clips, _BLOCK_CLIPS):
        count = min(_BLOCK_CLIPS, one.num_clips - start)
        here, there = (
            decode(np.concatenate([values for _, values in item.view(view).strided(start, 1, count)]), scale).numpy()
            for item, scale in zip((one, other), scales, strict=True)
        )
        yield (pool(here), pool(there)) if is_pooled else (here, there)


def _nearness(pairs: Iterator[_Pair]) -> Nearness:
    """Compare features clip by clip, in double precision."""
    largest, cosines = 0.0, []
    for one, other in pairs:
        a, b = (values.reshape(len(values), -1).astype(np.float64) for values in (one, other))
        largest = max(largest, float(np.abs(a - b).max(initial=0.0)))
        norms = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
        product = norms[0] * norms[1]
        cosine = np.divide((a * b).sum(axis=1), product, out=np.zeros(len(a)), where=product > 0)
        cosines.append(np.where((norms[0] == 0) & (norms[1] == 0), 1.0, cosine))
    every = np.concatenate(cosines)
    return Nearness(largest, float(every.mean()), float(every.min()))


def _over(found: Sequence[Nearness | None]) -> Nearness | None:
    """Return the nearness over several recordings; None if none differs."""
    known = [item for item in found if item is not None]
    if not known:
        return None
    return Nearness(
        max(item.max_difference for item in known),
        math.fsum(item.mean_cosine for item in known) / len(known),
        min(item.worst_cosine for item in known),
    )
