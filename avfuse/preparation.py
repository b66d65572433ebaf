"""What an extraction is about to do, with everything refused that can be, before any video is opened."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from avfuse import partitions, registry
from avfuse.cache import FeatureCache
from avfuse.corpora import Corpus
from avfuse.device import choose_device, choose_precision
from avfuse.encoding import codecs
from avfuse.engines import Engine, num_cores
from avfuse.knobs import parse_assignments, parse_shard
from avfuse.networks import Networks
from avfuse.options import ExtractOptions
from avfuse.schema import Recording, UsageError
from avfuse.spec import CacheSpec, FileDigests
from avfuse.worker import ExtractJob

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preparation:
    """What an extraction is about to do.

    Attributes
    ----------
    options : ExtractOptions
        With the precision that was chosen where the workers are.
    corpus : Corpus
    recordings, share : list of Recording
        All of the corpus, and those that this job deals with.
    shard : str
        Which of several jobs this is, as ``2/3``; empty where it is the only one.
    digest : FileDigests
    networks : Networks
        Made here, and not placed yet; their device is the workers' one if that is here, too, and the CPU if not.
    trial_options : ExtractOptions
        Those for a trial of these networks here; what the workers' device does in its way (precision, decoding) may
        differ.
    spec : CacheSpec
        Of what the workers make.
    device : str
        Where they compute.
    engine : Engine
    num_workers : int
        0 where only the engine knows.
    """

    options: ExtractOptions
    corpus: Corpus
    recordings: list[Recording]
    share: list[Recording]
    shard: str
    digest: FileDigests
    networks: Networks
    trial_options: ExtractOptions
    spec: CacheSpec
    device: str
    engine: Engine
    num_workers: int

    def job(self, store: Path | str) -> ExtractJob:
        """Return what makes the workers that write to a store."""
        are_neighbours = self.engine.is_here and self.num_workers > 1
        num_threads = max(1, num_cores() // self.num_workers) if are_neighbours else None
        return ExtractJob(self.options, self.corpus, store, dict(registry.ENCODERS), num_threads)


def prepare(options: ExtractOptions) -> Preparation:
    """Build everything that can be refused, in the order of what it costs the user to be refused late.

    Raises
    ------
    UsageError
        If the corpus, its partitions, the weights or the engine cannot be used.
    """
    codecs(options.compress, options.dtype)  # whether it can be had
    engine = _make_engine(options)
    corpus, recordings = _open_corpus(options)
    digest = FileDigests()
    partitions.refuse_leaks(partitions.find_leaks(recordings, digest), options.allow_leaks)
    named = replace(options, dataset=options.dataset or options.root.resolve().name)  # a folder here, whatever is there
    question = _Question(named, corpus, dict(registry.ENCODERS))
    # Without a GPU here, workers that are here have nothing that this process has not.
    told = question() if engine.is_here and not torch.cuda.is_available() else engine.ask(question)
    networks, trial_options = question.on_trial(told)
    index, count = parse_shard(options.shard) if options.shard is not None else _slurm_share()
    share = _choose_share(recordings, index, count)
    return Preparation(
        options=replace(options, precision=told.spec.precision),
        corpus=corpus,
        recordings=recordings,
        share=share,
        shard=f"{index + 1}/{count}" if count > 1 else "",
        digest=digest,
        networks=networks,
        trial_options=trial_options,
        spec=told.spec,
        device=told.device,
        engine=engine,
        num_workers=_count_workers(options, engine, torch.device(told.device), len(share)),
    )


@dataclass(frozen=True)
class _Told:
    """What a worker's place says: the spec of what is made there, and its device."""

    spec: CacheSpec
    device: str


@dataclass
class _Question:
    """What is asked where workers are to be: what features they would make."""

    options: ExtractOptions
    corpus: Corpus
    encoders: Mapping[str, str]
    _made: Networks | None = None  # when it was answered in this process

    def __call__(self) -> _Told:
        """Make the networks, on the device that the options name, and describe them."""
        registry.ENCODERS.update(self.encoders)
        device = choose_device(self.options.device)
        self._made = Networks.make(self.options, device)
        chosen = replace(self.options, precision=choose_precision(self.options.precision, device))
        return _Told(self._made.describe(chosen, self.corpus), str(device))

    def on_trial(self, told: _Told) -> tuple[Networks, ExtractOptions]:
        """Return networks that are here, and options with which they can be tried, whatever is elsewhere."""
        if self._made is not None:
            return self._made, replace(self.options, precision=told.spec.precision)
        on_gpu = told.device.startswith("cuda") and torch.cuda.is_available()
        device = torch.device("cuda" if on_gpu else "cpu")
        precision = choose_precision(self.options.precision, device)
        options = replace(self.options, precision=precision, decode=self.options.decode if on_gpu else "cpu")
        return Networks.make(options, device), options


def refuse_strangers(cache: FeatureCache, recordings: list[Recording]) -> None:
    """Refuse to add a corpus to a store that holds recordings of another: training would mix the two.

    Raises
    ------
    UsageError
        If it does; the message names one of them.
    """
    known = {recording.name for recording in recordings}
    strangers = [name for name in cache.names() if name not in known]
    if strangers:
        raise UsageError(
            f"{cache.path} holds {len(strangers)} recordings that this corpus does not have, such as {strangers[0]}; "
            f"name the data set otherwise with --dataset, or remove what is there below {cache.path}/recordings"
        )


def _make_engine(options: ExtractOptions) -> Engine:
    arguments = registry.check_arguments("engine", options.engine, parse_assignments(options.engine_option))
    engine: Engine = registry.load("engine", options.engine)(**arguments)
    return engine


def _count_workers(options: ExtractOptions, engine: Engine, device: torch.device, num_recordings: int) -> int:
    """Return the number of workers: one per GPU or core, and no more than recordings; 0 where only the engine knows."""
    if engine.most_workers is not None:
        return engine.most_workers
    if options.num_workers or not engine.is_here:
        return options.num_workers
    num_places = torch.cuda.device_count() if device.type == "cuda" else num_cores()
    return max(1, min(num_places, num_recordings))


def _choose_share(recordings: list[Recording], index: int, count: int) -> list[Recording]:
    """Return the recordings of one of several jobs: dealt out by size, so that the shares take about as long."""
    if count == 1:
        return recordings
    by_size = sorted(recordings, key=lambda recording: (-_num_bytes(recording.path), recording.name))
    return by_size[index::count]


def _slurm_share() -> tuple[int, int]:
    """Return number, from 0, and count of the jobs of this SLURM array; (0, 1) outside one.

    Raises
    ------
    UsageError
        If the array's numbers are not evenly spaced, as those of ``--array=3,7,8``: nothing tells which share is whose.
    """
    given = {name: os.environ.get(f"SLURM_ARRAY_TASK_{name}", "") for name in ("ID", "COUNT", "MIN", "MAX", "STEP")}
    number, count, first, last, step = (int(text) if text.isdecimal() else None for text in given.values())
    if number is None or count is None or count < 2:
        return 0, 1
    first, step = first or 0, step or 1
    index, rest = divmod(number - first, step)
    is_even = last is None or last - first == (count - 1) * step
    if not (is_even and rest == 0 and 0 <= index < count):
        told = ", ".join(f"SLURM_ARRAY_TASK_{name}={text}" for name, text in given.items() if text)
        raise UsageError(f"{told}: nothing tells which share of the recordings this job does; say it with --shard I/N")
    log.warning("this job of a SLURM array does share %d/%d of the recordings; else give --shard 1/1", index + 1, count)
    return index, count


def _num_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


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
