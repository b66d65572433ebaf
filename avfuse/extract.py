"""Stage 1: every recording of a corpus to features, once.

What can be refused is refused before any video is opened: the corpus, partitions that share a subject or a file, the
weights, the cache. Then an engine hands the recordings to workers (`avfuse.worker`), and what is kept here is a receipt
of each. A recording that cannot be used is kept in the cache's ledger with its reason, and the others go on.
"""

from __future__ import annotations

import logging
import queue
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from avfuse import footage
from avfuse.cache import FeatureCache
from avfuse.options import ExtractOptions, cache_home
from avfuse.preparation import Preparation, prepare, refuse_strangers
from avfuse.schema import Failure, Receipt, Recording, RecordingError, UsageError
from avfuse.spec import FileDigests, Source

log = logging.getLogger(__name__)

SOURCE_S = 60.0  # for reading the files of a recording whose workers died


@dataclass(frozen=True)
class ExtractProgress:
    """How far an extraction is: recordings dealt with and in all, clips encoded, and what is under way.

    `share_under_way` is the sum, over the recordings under way, of the share of each that is done.
    """

    num_done: int
    num_recordings: int
    num_clips: int
    num_failed: int
    recording: str
    share_under_way: float


@dataclass(frozen=True)
class ExtractSummary:
    """What an extraction did.

    Attributes
    ----------
    store : Path or str
        The feature store.
    fingerprint : str
    share : str
        Which of several jobs this was, as ``2/3``; empty where it was the only one.
    num_recordings, num_extracted, num_present, num_left : int
        In the corpus, or the share of it that was asked for; extracted now; in the store before and left as they were;
        not come to, after a failure that was to stop the run.
    num_clips, num_views : int
        Clips encoded now; views of each.
    face_share : float
        Share of the frames of those clips that show a face; NaN when none were encoded.
    num_uneven : int
        Recordings extracted now whose annotation rows and frames differ, beyond what is refused.
    num_rows_dropped, num_frames_without_row : int
        Their annotation rows that rate no frame, and their frames that no row rates.
    failures : tuple of Failure
    num_set_aside : int
        Of the failures, those of before that were not tried again, as their files are what they were.
    elapsed_s : float
    """

    store: Path | str
    fingerprint: str
    share: str
    num_recordings: int
    num_extracted: int
    num_present: int
    num_left: int
    num_clips: int
    num_views: int
    face_share: float
    num_uneven: int
    num_rows_dropped: int
    num_frames_without_row: int
    failures: tuple[Failure, ...]
    num_set_aside: int
    elapsed_s: float


def extract(
    options: ExtractOptions, on_progress: Callable[[ExtractProgress], None] = lambda progress: None
) -> ExtractSummary:
    """Extract the features of every recording that the cache does not hold yet.

    Raises
    ------
    UsageError
        If the corpus, its partitions, the weights, the engine or the cache cannot be used.
    OSError
        If the cache cannot be written to any more. What was committed by then is whole, and stays.
    """
    started_s = time.monotonic()
    ready = prepare(options)
    cache = FeatureCache.create(cache_home(options.cache), ready.spec, ready.networks.provenance, options.compress)
    refuse_strangers(cache, ready.recordings)
    _forget_strangers(cache, ready.recordings)
    tally = _Tally(len(ready.share), on_progress)
    by_name = {recording.name: recording for recording in ready.share}
    running = ready.engine.run(ready.job(cache.path), ready.share, ready.num_workers, tally.move)
    try:
        for receipt in running:
            if receipt.error is not None:
                raise _as_error(receipt.error)
            if receipt.failure is not None and not receipt.is_recorded:
                source = _source_of(by_name[receipt.recording], options, ready.digest)
                cache.ledger.record(receipt.failure, source)
            tally.add(receipt)
            if receipt.outcome == "failed" and options.on_error == "stop":
                break
    finally:
        running.close()
        if not isinstance(sys.exception(), OSError):  # a disk, or server, that fails is not asked for more
            _sweep(cache)
    return _summarise(cache, ready, tally.receipts, time.monotonic() - started_s)


class _Tally:
    """The receipts so far, and how far the recordings are that are under way."""

    def __init__(self, num_recordings: int, on_progress: Callable[[ExtractProgress], None]) -> None:
        self.receipts: list[Receipt] = []
        self._on_progress = on_progress
        self._under_way: dict[str, tuple[int, int]] = {}
        self._done = ExtractProgress(0, num_recordings, 0, 0, "", 0.0)
        on_progress(self._done)

    def move(self, recording: str, num_clips: int, total: int) -> None:
        """Tell of a recording that is under way."""
        self._under_way[recording] = num_clips, total
        self._tell(recording)

    def add(self, receipt: Receipt) -> None:
        """Count a recording as done."""
        self.receipts.append(receipt)
        self._under_way.pop(receipt.recording, None)
        self._done = replace(
            self._done,
            num_done=self._done.num_done + 1,
            num_clips=self._done.num_clips + receipt.num_clips,
            num_failed=self._done.num_failed + (receipt.failure is not None),
        )
        self._tell(receipt.recording)

    def _tell(self, recording: str) -> None:
        num_clips = self._done.num_clips + sum(count for count, _ in self._under_way.values())
        share = sum(count / total for count, total in self._under_way.values())
        self._on_progress(replace(self._done, recording=recording, num_clips=num_clips, share_under_way=share))


def _summarise(
    cache: FeatureCache, ready: Preparation, receipts: Sequence[Receipt], elapsed_s: float
) -> ExtractSummary:
    count = Counter(receipt.outcome for receipt in receipts)
    num_clips = sum(receipt.num_clips for receipt in receipts)
    num_with_face = sum(receipt.face_share * receipt.num_clips for receipt in receipts)
    uneven = [receipt.rows for receipt in receipts if receipt.rows is not None and footage.is_uneven(receipt.rows)]
    failures = [receipt.failure for receipt in receipts if receipt.failure is not None]
    return ExtractSummary(
        store=cache.path,
        fingerprint=cache.spec.fingerprint,
        share=ready.shard,
        num_recordings=len(ready.share),
        num_extracted=count["extracted"],
        num_present=count["present"],
        num_left=len(ready.share) - len(receipts),
        num_clips=num_clips,
        num_views=ready.options.views,
        face_share=num_with_face / num_clips if num_clips else float("nan"),
        num_uneven=len(uneven),
        num_rows_dropped=sum(rows.num_dropped for rows in uneven),
        num_frames_without_row=sum(rows.num_without for rows in uneven),
        failures=tuple(sorted(failures, key=lambda failure: failure.recording)),
        num_set_aside=count["set_aside"],
        elapsed_s=elapsed_s,
    )


def _sweep(cache: FeatureCache) -> None:
    """Remove what workers left that had to be killed, as far as that can be done now; the next run does the rest."""
    with suppress(OSError):
        for leftover in cache.store.prepare():
            log.info("removed what a killed worker left: %s", leftover)


def _forget_strangers(cache: FeatureCache, recordings: Sequence[Recording]) -> None:
    """Take out of the ledger what failed of recordings that are no longer in the corpus."""
    known = {recording.name for recording in recordings}
    for failure in cache.ledger.failures():
        if failure.recording not in known:
            cache.ledger.clear(failure.recording)
            log.info("%s is not in the corpus any more; its failure is forgotten", failure.recording)


def _source_of(recording: Recording, options: ExtractOptions, digest: FileDigests) -> Source | None:
    """Return what a recording would be made from; None where that cannot be told soon.

    What held up its workers, as a server that does not answer, is not to hold up the others.
    """
    found: queue.SimpleQueue[Source | None] = queue.SimpleQueue()

    def look() -> None:
        source = None
        with suppress(RecordingError, OSError):
            source = Source.of(recording, options.root, digest, with_crops=options.faces != "detect")
        found.put(source)

    threading.Thread(target=look, name=f"read {recording.name}", daemon=True).start()
    with suppress(queue.Empty):
        return found.get(timeout=SOURCE_S)
    return None


def _as_error(error: tuple[int, str, str]) -> Exception:
    """Return the error that ended a run, from what a receipt says of it."""
    number, message, place = error
    return OSError(number, message, place or None) if number else UsageError(message)
