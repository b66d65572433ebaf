"""One function deals with one recording, `ExtractWorker.process`: the same under every engine, however often.

A worker is one process. Several recordings are under way in it at once, each in a thread of its own::

    decode (thread)  ->  detect, align  ->  encode (threads, batches across recordings)  ->  write
         a few frames ahead           a few batches ahead

so that every stage has something to do and nothing is held of a recording but what lies between two stages. Networks
are made when the first recording needs them.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from avfuse import footage, media, registry, views
from avfuse.ahead import Ahead
from avfuse.batching import Batcher, Ticket, User, choose_size
from avfuse.cache import FeatureCache
from avfuse.corpora import Corpus
from avfuse.device import choose_device, is_broken, keep_fp32
from avfuse.engines import Worker, num_cores
from avfuse.networks import Networks
from avfuse.options import ExtractOptions
from avfuse.reasons import LACKING, describe_error, describe_failure, is_overruled, may_pass
from avfuse.schema import Receipt, Recording, RecordingError, RowCount, UsageError
from avfuse.spec import FileDigests, Source, tell_differences
from avfuse.timeline import ClipGrid, Timeline
from avfuse.writer import RecordingWriter

log = logging.getLogger(__name__)

DECODED_AHEAD = 8  # frames, or pieces of sound, between the decoder and the detector
DECODED_AHEAD_PX = DECODED_AHEAD * 1920 * 1080  # of these frames, of which there are fewer where they are larger
BATCHES_AHEAD = 1  # of one recording, between the detector and the writer, beside one for each thread that encodes
CLIPS_AT_ONCE = 8  # that a recording hands in, for batches of any size
SIDE_BY_SIDE_CPU, SIDE_BY_SIDE_GPU = 2, 16
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class ExtractJob:
    """Makes a worker in the process of an engine.

    Attributes
    ----------
    options : ExtractOptions
        With the precision that was chosen.
    corpus : Corpus
    store : Path or str
        Where the features go; it is there.
    encoders : mapping of str to str
        The rows of the registry, to which a program may have added some.
    num_threads : int or None
        Batches that a worker encodes side by side on a CPU; None for as many as PyTorch has threads.
    """

    options: ExtractOptions
    corpus: Corpus
    store: Path | str
    encoders: Mapping[str, str]
    num_threads: int | None = None

    def __call__(self, rank: int) -> ExtractWorker:
        """Return the worker of this process."""
        registry.ENCODERS.update(self.encoders)
        return ExtractWorker(self, rank)


class ExtractWorker(Worker):
    """Turns recordings into features and commits them, one by one.

    Parameters
    ----------
    job : ExtractJob
    rank : int
        Its number among the workers: of several GPUs it takes the one of this number.
    """

    def __init__(self, job: ExtractJob, rank: int) -> None:
        self._options, self._corpus = job.options, job.corpus
        self._cache = FeatureCache.open(job.store)
        self._cache.compress = job.options.compress
        self._cache.store.prepare()
        self._digest = FileDigests()
        self._device = _device_of(job.options.device, rank)
        keep_fp32(self._device)
        self._making = threading.Lock()
        self._open = ExitStack()
        self.num_side_by_side, self._num_threads = SIDE_BY_SIDE_CPU, 1
        if self._device.type == "cuda":
            self.num_side_by_side = max(4, min(SIDE_BY_SIDE_GPU, num_cores()))
        else:
            # What an operation gives depends, in its last bits, on how many threads share it: each has one, and cores
            # are kept busy by several batches.
            self._num_threads = job.num_threads or torch.get_num_threads()
            self._open.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(1)
        self._batch_size = choose_size(job.options.batch_size, self._device)
        self.clips_at_once = min(CLIPS_AT_ONCE, self._batch_size)
        self.parts_ahead = (BATCHES_AHEAD + self._num_threads) * -(-self._batch_size // self.clips_at_once)

    def close(self) -> None:
        """End the thread of the encoders."""
        self._open.close()

    def process(self, recording: Recording, on_progress: Callable[[int, int], None]) -> Receipt:
        """Extract one recording and commit it, unless it is there; keep the reason if it cannot be used."""
        source, with_crops = None, self._options.faces != "detect"
        try:
            alive = partial(on_progress, 0, 1)  # nothing is done yet, but something is going on
            source = Source.of(recording, self._options.root, self._digest, with_crops, alive)
            name, ledger = recording.name, self._cache.ledger
            if self._cache.holds(name, source) or self._cache.relabel(name, source):
                ledger.clear(name)
                return Receipt(name, "present")
            failure = None if self._options.retry_failed else ledger.find(name, source)
            if failure is not None and not is_overruled(failure, self._options):
                return Receipt(name, "set_aside", failure=failure)
            receipt = self._extract(recording, source, on_progress)
            ledger.clear(name)
            return receipt
        except Exception as error:  # whatever one recording does, its reason is kept and the others go on
            return self._account(recording, source, error)

    def _account(self, recording: Recording, source: Source | None, error: Exception) -> Receipt:
        """Record why a recording could not be used, or say that the machine failed."""
        name, failure = recording.name, describe_failure(recording, error)
        if failure is None:
            return Receipt(name, "stopped", error=describe_error(error))
        if is_broken(self._device):
            told = f"{self._device} has failed and computes nothing any more ({error}); what was committed stays"
            return Receipt(name, "stopped", error=(0, told, ""))
        try:
            if source is not None:
                self._cache.remove(name)  # what is there was made from other files than those of now
            self._cache.ledger.record(failure, None if may_pass(error) else source)
        except (OSError, UsageError) as stopping:
            return Receipt(name, "stopped", error=describe_error(stopping))
        return Receipt(name, "failed", failure=failure)

    @property
    def _ready(self) -> tuple[Networks, Batcher]:
        with self._making:
            return self._networks, self._batcher

    @cached_property
    def _networks(self) -> Networks:
        networks = Networks.make(self._options, self._device)
        spec, wanted = networks.describe(self._options, self._corpus), self._cache.spec
        if spec.fingerprint != wanted.fingerprint:
            told = tell_differences(wanted.to_json(), spec.to_json(), ("in the store", "here"))
            raise UsageError(f"{self._cache.path} cannot be written to from here, where features would differ ({told})")
        for encoder in (networks.video, networks.audio):
            encoder.place(self._device, self._options.precision)
        return networks

    @cached_property
    def _batcher(self) -> Batcher:
        encoders = {"video": self._networks.video, "audio": self._networks.audio}
        return self._open.enter_context(Batcher(encoders, self._batch_size, self._device, self._num_threads))

    def _extract(self, recording: Recording, source: Source, on_progress: Callable[[int, int], None]) -> Receipt:
        """Extract and commit one recording, without sound or without picture if it lacks that and may."""
        try:
            return _Extraction(self, recording, source, on_progress).run()
        except RecordingError as error:
            lacking = LACKING.get(error.reason)
            if not self._options.allow_missing or lacking is None:
                raise
        return _Extraction(self, recording, source, on_progress, lacking).run()

    def extraction(self) -> tuple[ExtractOptions, Corpus, FeatureCache, Networks, Batcher]:
        """Return what an extraction works with."""
        return self._options, self._corpus, self._cache, *self._ready


class _Extraction:
    """One recording on its way into the cache."""

    def __init__(
        self,
        worker: ExtractWorker,
        recording: Recording,
        source: Source,
        on_progress: Callable[[int, int], None],
        lacking: str = "",
    ) -> None:
        self._options, self._corpus, self._cache, self._networks, self._batcher = worker.extraction()
        self._clips_at_once, self._parts_ahead = worker.clips_at_once, worker.parts_ahead
        self._recording, self._source, self._on_progress, self._lacking = recording, source, on_progress, lacking
        self._pending: deque[tuple[list[Ticket], Ticket | None, int]] = deque()
        self._num_submitted = self._num_written = 0

    def run(self) -> Receipt:
        """Decode, detect, encode, write, commit."""
        options, recording = self._options, self._recording
        timeline = self._timeline()
        grid = ClipGrid.lay(timeline, options.hop)
        target_FE, rows = footage.frame_targets(recording, timeline, self._corpus)
        alive = partial(self._tell, grid.num_clips)
        faces = footage.open_faces(recording, timeline.num_frames, self._networks.detector, options)
        with ExitStack() as stack:
            reading = footage.open_reading(recording, timeline, grid, faces, options, self._lacking)
            stack.callback(reading.close)
            num_ahead = max(1, min(DECODED_AHEAD, DECODED_AHEAD_PX // max(1, reading.num_pixels)))
            ahead = stack.enter_context(Ahead(reading, num_ahead, f"decode {recording.name}"))
            writer = stack.enter_context(RecordingWriter(self._cache, recording.name, self._source, alive))
            user = stack.enter_context(self._batcher.user())
            writer.begin(grid.num_clips)
            items = _telling(ahead, alive)
            for video_BKYXC, sound_BS in footage.clips(recording, timeline, grid, faces, self._clips_at_once, items):
                self._submit(user, video_BKYXC, sound_BS)
                if len(self._pending) > self._parts_ahead:
                    self._write(user, writer, grid.num_clips)
            while self._pending:
                self._write(user, writer, grid.num_clips)
            footage.check_losses(reading.losses, options.max_corrupt)
            if self._lacking == "video":  # whatever aligned images there are: none of them is in the maps
                faces.found_F[:], faces.probability_F[:] = False, 0.0
            else:
                footage.check_faces(faces, options.min_face_share)
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
                missing=self._lacking,
                losses=reading.losses.counted(),
            )
        return _receipt(recording, face_share_N, rows)

    def _timeline(self) -> Timeline:
        probe = media.probe_sound if self._lacking == "video" else media.probe
        return probe(self._recording.path, partial(self._on_progress, 0, 1))

    def _tell(self, num_clips: int) -> None:
        self._on_progress(self._num_written, num_clips)

    def _submit(self, user: User, video_BKYXC: Tensor, sound_BS: npt.NDArray[np.float32]) -> None:
        """Hand a batch of clips to the encoders, in all views."""
        maps: list[Ticket] = []
        if self._lacking != "video":
            maps.append(user.submit("video", video_BKYXC))
            if self._options.views > 1:
                maps += self._submit_views(user, video_BKYXC.cpu().numpy())
        sound = user.submit("audio", torch.from_numpy(sound_BS)) if self._lacking != "audio" else None
        self._pending.append((maps, sound, len(sound_BS)))
        self._num_submitted += len(sound_BS)

    def _submit_views(self, user: User, plain_BKYXC: npt.NDArray[np.uint8]) -> list[Ticket]:
        shown = (
            views.show(plain_BKYXC, self._recording.name, self._num_submitted, view, self._options.flip)
            for view in range(1, self._options.views)
        )
        return [user.submit("video", torch.from_numpy(clips_BKYXC)) for clips_BKYXC in shown]

    def _write(self, user: User, writer: RecordingWriter, num_clips: int) -> None:
        """Write the features of the oldest batch, zeros for a modality that is missing."""
        tickets, sound, count = self._pending.popleft()
        shapes = self._networks.video.feature_shape, self._networks.audio.feature_shape
        maps = [user.wait(ticket) for ticket in tickets]
        if not maps:
            maps = [np.zeros((count, *shapes[0]), np.float32)] * self._options.views
        audio_BA = np.zeros((count, *shapes[1]), np.float32) if sound is None else user.wait(sound)
        writer.append(maps[0], audio_BA, *maps[1:])
        self._num_written += count
        self._tell(num_clips)


def _telling(items: Iterable[_Item], tell: Callable[[], None]) -> Iterator[_Item]:
    """Yield items, and tell of each: clips may lie far apart."""
    for item in items:
        tell()
        yield item


def _receipt(recording: Recording, face_share_N: npt.NDArray[np.float32], rows: RowCount | None) -> Receipt:
    return Receipt(recording.name, "extracted", len(face_share_N), float(face_share_N.mean()), rows)


def _device_of(name: str, rank: int) -> torch.device:
    """Return the device of a worker: of several GPUs, where none was named, the one of its number."""
    device = choose_device(name)
    if device.type == "cuda" and ":" not in name:
        return torch.device("cuda", rank % torch.cuda.device_count())
    return device
