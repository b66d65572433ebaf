"""How many bytes features take, by way of trial: the first clips of a recording, in every way of keeping them.

They are written as extraction writes them, into temporary stores.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from avfuse.cache import FeatureCache
from avfuse.cached import group_of
from avfuse.corpora import Corpus
from avfuse.encoding import codecs
from avfuse.networks import Networks
from avfuse.options import COMPRESSIONS, DTYPES, MAPS, ExtractOptions
from avfuse.schema import Recording, UsageError
from avfuse.spec import Source
from avfuse.stores import METADATA
from avfuse.timeline import ClipGrid, Timeline
from avfuse.writer import RecordingWriter

MAX_SIZED_CLIPS = 64  # that are kept in every way: a chunk of those that are compressed
_TEMPORARY = "$TMPDIR"


class Way(NamedTuple):
    """One way of keeping maps; see `ExtractOptions`."""

    dtype: str
    maps: str
    compress: str


def known_ways() -> list[Way]:
    """Return the ways of keeping maps that can be had here."""
    return [way for way in map(Way._make, product(DTYPES, MAPS, COMPRESSIONS)) if _can_be_had(way)]


def _can_be_had(way: Way) -> bool:
    try:
        codecs(way.compress, way.dtype)
    except UsageError:
        return False
    return True


@dataclass
class Sample:
    """The first clips of a recording.

    `lacking` is the modality that it lacks, or ""; `target_FE` holds the rating of each frame. Each of the batches is
    the audio and the maps of each view, (B, ...), of the next clips.
    """

    recording: Recording
    lacking: str
    source: Source
    timeline: Timeline
    grid: ClipGrid
    target_FE: npt.NDArray[np.float32]
    batches: list[tuple[npt.NDArray[np.float32], ...]] = field(default_factory=list)

    @property
    def num_clips(self) -> int:
        """Number of clips in the batches."""
        return sum(len(batch[0]) for batch in self.batches)

    @property
    def num_frames(self) -> int:
        """Number of frames up to the end of these clips; of all clips, that of the recording."""
        return self._num_frames(self.num_clips)

    def first(self, num_clips: int) -> list[npt.NDArray[np.float32]]:
        """Return audio, and the maps of each view, of the first clips."""
        return [np.concatenate(parts)[:num_clips] for parts in zip(*self.batches, strict=True)]

    def small_arrays(self, num_clips: int) -> dict[str, npt.NDArray[Any]]:
        """Return what is kept of the first clips besides features; of their faces, arrays of the right length."""
        num_frames, end_frame_N = self._num_frames(num_clips), self.grid.end_frame_N[:num_clips]
        return {
            "target": self.target_FE[end_frame_N],
            "face_share": np.zeros(num_clips, np.float32),
            "end_frame": end_frame_N,
            "end_time_s": self.grid.end_time_s[:num_clips],
            "frame_time_s": self.timeline.frame_time_s[:num_frames],
            "frame_target": self.target_FE[:num_frames],
            "frame_face": np.zeros(num_frames, np.bool_),
            "frame_face_probability": np.zeros(num_frames, np.float32),
        }

    def _num_frames(self, num_clips: int) -> int:
        is_all = num_clips == self.grid.num_clips
        return self.timeline.num_frames if is_all else int(self.grid.end_frame_N[num_clips - 1]) + 1


@dataclass(frozen=True)
class Taken:
    """Bytes that a recording takes besides those of its clips, and bytes of each clip."""

    fixed: float
    per_clip: float


class TrialStores:
    """Temporary stores below a folder, one for each way of keeping maps."""

    def __init__(self, options: ExtractOptions, corpus: Corpus, networks: Networks, home: Path) -> None:
        self._options = options
        self._corpus = corpus
        self._networks = networks
        self._home = home
        self._stores: dict[Way, FeatureCache] = {}

    def write(self, way: Way, sample: Sample, num_clips: int) -> dict[str, int]:
        """Write the first clips of a recording as extraction would; return every file with its length.

        Raises
        ------
        OSError
            If they cannot be written.
        """
        cache, name = self._store(way), sample.recording.name
        audio_NA, *maps = sample.first(num_clips)
        with RecordingWriter(cache, name, sample.source) as writer:
            writer.begin(num_clips)
            writer.append(maps[0], audio_NA, *maps[1:])
            writer.commit(sample.small_arrays(num_clips), fps=sample.timeline.fps, missing=sample.lacking)
        files = cache.store.files(group_of(name)) or {}
        cache.remove(name)
        return files

    def sizes(self, sample: Sample) -> dict[Way, Taken]:
        """Return what is taken, by the way in which maps are kept."""
        num_clips = min(sample.num_clips, MAX_SIZED_CLIPS)
        sizes = {}
        for way in known_ways():
            files = self.write(way, sample, num_clips)
            fixed = sum(length for file, length in files.items() if file.rpartition("/")[2] == METADATA)
            sizes[way] = Taken(fixed, (sum(files.values()) - fixed) / num_clips)
        return sizes

    def _store(self, way: Way) -> FeatureCache:
        if way not in self._stores:
            options = replace(self._options, dtype=way.dtype, maps=way.maps, compress=way.compress)
            spec, home = self._networks.describe(options, self._corpus), self._home / way.compress
            self._stores[way] = FeatureCache.create(home, spec, {}, way.compress, _TEMPORARY)
        return self._stores[way]
