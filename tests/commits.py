"""A job for engines that commits tiny recordings, to measure what engines cost."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from toy import add_recording, toy_spec

from avfuse.cache import FeatureCache
from avfuse.engines import Worker
from avfuse.schema import Receipt, Recording


@dataclass(frozen=True)
class CommitJob:
    """Makes workers that commit a tiny recording of random features for every one they are given, or do nothing."""

    home: Path
    commits: bool = True

    def __call__(self, rank: int) -> "CommitWorker":
        return CommitWorker(FeatureCache.create(self.home, toy_spec(), {}) if self.commits else None)


class CommitWorker(Worker):
    """Adds recordings to a toy store."""

    def __init__(self, cache: FeatureCache | None) -> None:
        self._cache = cache

    def process(self, recording: Recording, on_progress: Callable[[int, int], None]) -> Receipt:
        """Commit a recording of one clip, which follows from its subject, a number."""
        if self._cache is not None:
            add_recording(self._cache, recording.name, recording.partition, 1, seed=int(recording.subject))
        return Receipt(recording.name, "extracted", num_clips=1)

    def close(self) -> None:
        """Do nothing: the store's note goes with the process."""
