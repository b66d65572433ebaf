"""What the stages of an extraction cost on this machine, by way of trial.

The stages are those of `avfuse.worker`, on some recordings of the corpus, but one after the other on one thread, so
that the time of each can be told.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from avfuse import atomic, footage, media, views
from avfuse.batching import Batcher, User, choose_size
from avfuse.corpora import Corpus
from avfuse.device import keep_fp32
from avfuse.networks import Networks
from avfuse.options import ExtractOptions
from avfuse.reasons import describe_failure
from avfuse.schema import Recording
from avfuse.sizing import Sample, Taken, TrialStores, Way
from avfuse.spec import FileDigests, Source
from avfuse.stopwatch import Stopwatch
from avfuse.timeline import ClipGrid

READ, DECODE, FACES, PICTURE, SOUND, WRITE = STAGES = (
    "read and digest",
    "decode",
    "detect and align",
    "encode picture",
    "encode sound",
    "write",
)
NUM_PARTS = 5  # the clips of one recording take no more than such a part of the time
MAX_CLIPS = 256  # of one recording, whose features are held
NUM_SIZED = 2  # recordings that are kept in every way


@dataclass(frozen=True)
class Trial:
    """What was measured on one recording.

    Attributes
    ----------
    num_clips, num_probed : int
        Clips that it has, and those that were measured.
    cpu_s, wall_s, units : mapping of str to float
        By stage and per clip: seconds of processor, seconds that passed, and what was dealt with: bytes that were read
        or written, frames or clips.
    sizes : mapping of Way to Taken
        Empty where it was not measured.
    """

    num_clips: int
    num_probed: int
    cpu_s: Mapping[str, float]
    wall_s: Mapping[str, float]
    units: Mapping[str, float]
    sizes: Mapping[Way, Taken]


def try_stages(
    options: ExtractOptions,
    corpus: Corpus,
    networks: Networks,
    recordings: Sequence[tuple[Recording, str]],
    limit_s: float,
    on_progress: Callable[[float, float, str], None],
) -> tuple[list[Trial], Counter[str]]:
    """Measure the stages on one recording after the other, until the time is up or there is none left.

    The networks are placed. Nothing is left behind on disk.

    Parameters
    ----------
    options : ExtractOptions
        With the precision that was chosen.
    corpus : Corpus
    networks : Networks
    recordings : sequence of (Recording, str)
        In the order in which to try them, with the modality that each lacks and may lack, or "".
    limit_s : float
        Seconds after which no other recording is begun, from when the networks are placed.
    on_progress : callable
        Told seconds, of how many, and what was measured so far.

    Returns
    -------
    list of Trial, and Counter
        The reasons of recordings that could not be used.
    """
    trials: list[Trial] = []
    failures: Counter[str] = Counter()
    with _prober(options, corpus, networks) as prober:
        started_s = time.monotonic()
        for recording, lacking in recordings:
            elapsed_s = time.monotonic() - started_s
            told = f"{sum(trial.num_probed for trial in trials)} clips of {len(trials)} recordings measured"
            on_progress(min(elapsed_s, limit_s), limit_s, told)
            if elapsed_s >= limit_s:
                break
            is_sized = sum(bool(trial.sizes) for trial in trials) < NUM_SIZED
            try:
                trials.append(prober.measure(recording, lacking, limit_s / NUM_PARTS, is_sized))
            except Exception as error:
                failure = describe_failure(recording, error)
                if failure is None:
                    raise
                failures[failure.reason] += 1
    return trials, failures


@contextmanager
def _prober(options: ExtractOptions, corpus: Corpus, networks: Networks) -> Iterator[_Prober]:
    """Make what measures; PyTorch computes on one thread meanwhile, where a CPU's time counts."""
    encoders = {"video": networks.video, "audio": networks.audio}
    with ExitStack() as stack:
        if networks.device.type == "cpu":
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(1)
        keep_fp32(networks.device)
        home = Path(tempfile.mkdtemp(prefix="avfuse-plan-"))
        stack.callback(atomic.remove_tree, home)
        for encoder in encoders.values():
            encoder.place(networks.device, options.precision)
        options = replace(options, batch_size=choose_size(options.batch_size, networks.device))
        batcher = stack.enter_context(Batcher(encoders, options.batch_size, networks.device))
        yield _Prober(options, corpus, networks, batcher, TrialStores(options, corpus, networks, home))


@dataclass
class _Prober:
    """Measures one recording at a time; the very first batch, on which everything warms up, is made twice."""

    options: ExtractOptions
    corpus: Corpus
    networks: Networks
    batcher: Batcher
    stores: TrialStores
    is_warm: bool = False

    def measure(self, recording: Recording, lacking: str, limit_s: float, is_sized: bool) -> Trial:
        """Measure the stages on the first clips of a recording, encoding for so many seconds at most."""
        watch, once = Stopwatch(self.networks.device), Stopwatch(self.networks.device)
        with watch.during(READ):
            sample = self._read(recording, lacking)
        chosen = Way(self.options.dtype, self.options.maps, self.options.compress)
        if not self.is_warm:
            warm = replace(sample, batches=[])
            self._encode(Stopwatch(self.networks.device), warm, 0.0)
            self.stores.write(chosen, warm, 1)
            self.is_warm = True
        self._encode(watch, sample, limit_s)
        with once.during(WRITE):
            self.stores.write(chosen, sample, 1)
        with watch.during(WRITE):
            files = self.stores.write(chosen, sample, sample.num_clips)
        return Trial(
            num_clips=sample.grid.num_clips,
            num_probed=sample.num_clips,
            cpu_s=self._per_clip(sample, watch.cpu_s, once.cpu_s),
            wall_s=self._per_clip(sample, watch.wall_s, once.wall_s),
            units={
                READ: recording.path.stat().st_size / sample.grid.num_clips,
                **dict.fromkeys((DECODE, FACES), sample.num_frames / sample.num_clips),
                **dict.fromkeys((PICTURE, SOUND), 1.0),
                WRITE: sum(files.values()) / sample.num_clips,
            },
            sizes=self.stores.sizes(sample) if is_sized else {},
        )

    def _read(self, recording: Recording, lacking: str) -> Sample:
        """Find out what is known of a recording before its first frame, as a worker does."""
        with_crops = self.options.faces != "detect"
        source = Source.of(recording, self.options.root, FileDigests(), with_crops=with_crops)
        timeline = media.probe_sound(recording.path) if lacking == "video" else media.probe(recording.path)
        grid = ClipGrid.lay(timeline, self.options.hop)
        target_FE, _ = footage.frame_targets(recording, timeline, self.corpus)
        return Sample(recording, lacking, source, timeline, grid, target_FE)

    def _encode(self, watch: Stopwatch, sample: Sample, limit_s: float) -> None:
        """Decode, detect and encode batch by batch, until the time is up; there is one batch at least."""
        options, timeline, grid = self.options, sample.timeline, sample.grid
        ends_s = time.monotonic() + limit_s
        faces = footage.open_faces(sample.recording, timeline.num_frames, self.networks.detector, options)
        with ExitStack() as stack:
            reading = footage.open_reading(sample.recording, timeline, grid, faces, options, sample.lacking)
            stack.callback(reading.close)
            decoded = watch.iterate(DECODE, reading)
            user = stack.enter_context(self.batcher.user())
            made = footage.clips(sample.recording, timeline, grid, faces, options.batch_size, decoded)
            for video_BKYXC, sound_BS in watch.iterate(FACES, made):
                with watch.during(PICTURE):
                    maps = self._encode_picture(user, sample, video_BKYXC)
                with watch.during(SOUND):
                    audio_BA = self._encode_sound(user, sample, sound_BS)
                sample.batches.append((audio_BA, *maps))
                if time.monotonic() >= ends_s or sample.num_clips >= MAX_CLIPS:
                    break

    def _encode_picture(self, user: User, sample: Sample, video_BKYXC: Tensor) -> list[npt.NDArray[np.float32]]:
        """Return the maps of the next clips in all views; zeros stand for a picture that is missing, as in a store."""
        options = self.options
        if sample.lacking == "video":
            shape = len(video_BKYXC), *self.networks.video.feature_shape
            return [np.zeros(shape, np.float32)] * options.views
        shown = [video_BKYXC]
        for view in range(1, options.views):
            plain_BKYXC = video_BKYXC.cpu().numpy()
            seen_BKYXC = views.show(plain_BKYXC, sample.recording.name, sample.num_clips, view, options.flip)
            shown.append(torch.from_numpy(seen_BKYXC))
        return [user.wait(user.submit("video", clips_BKYXC)) for clips_BKYXC in shown]

    def _encode_sound(self, user: User, sample: Sample, sound_BS: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if sample.lacking == "audio":
            return np.zeros((len(sound_BS), *self.networks.audio.feature_shape), np.float32)
        return user.wait(user.submit("audio", torch.from_numpy(sound_BS)))

    def _per_clip(self, sample: Sample, spent_s: Mapping[str, float], once_s: Mapping[str, float]) -> dict[str, float]:
        """Return what a clip costs by stage, where writing one clip alone costs `once_s`."""
        num_clips, num_probed = sample.grid.num_clips, sample.num_clips
        is_padded = self.networks.device.type == "cuda"  # other recordings fill up a batch in an extraction
        num_encoded = len(sample.batches) * self.options.batch_size if is_padded else num_probed
        counts = {READ: num_clips, PICTURE: num_encoded, SOUND: num_encoded}
        told = {stage: spent_s[stage] / counts.get(stage, num_probed) for stage in STAGES}
        if num_probed == 1:
            return {**told, WRITE: once_s[WRITE] / num_clips}
        each_s = max(0.0, (spent_s[WRITE] - once_s[WRITE]) / (num_probed - 1))
        return {**told, WRITE: each_s + max(0.0, once_s[WRITE] - each_s) / num_clips}
