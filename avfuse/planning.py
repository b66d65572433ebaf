"""What an extraction would do, how long it would take and how many bytes: ``avfuse extract --dry-run``.

Nothing is written to the cache. Lengths come from the headers of the files, of an even sample of them where there are
many; times and bytes from a trial of the stages on some of them (`avfuse.probing`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from avfuse.cache import FeatureCache, asking, store_for
from avfuse.cached import RECORDINGS, CachedRecording
from avfuse.engines import num_cores
from avfuse.lengths import Extent, Header, measure_extent, num_bytes, tell_reasons
from avfuse.options import ExtractOptions, cache_home
from avfuse.preparation import Preparation, prepare, refuse_strangers
from avfuse.probing import DECODE, FACES, PICTURE, READ, SOUND, STAGES, WRITE, Trial, try_stages
from avfuse.sizing import known_ways
from avfuse.stores import Store

PROBE_S = 20.0
MAX_TRIED_BYTES = 2**30  # a larger file takes too long to digest for a trial
MUCH_WAITING = 1.5  # time that passes to time of processor, from which on it is told
_UNITS = {READ: ("MB", 1e6), DECODE: ("frames", 1), FACES: ("frames", 1), WRITE: ("MB", 1e6)}

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Stage:
    """What a stage costs per clip, on one thread: milliseconds of processor, and that pass; its share in all stages.

    The share is one of processor time or, on a GPU, of the time that passes; so is the speed, in words.
    """

    name: str
    cpu_ms_per_clip: float
    wall_ms_per_clip: float
    share: float
    unit_speed: str


@dataclass(frozen=True)
class Size:
    """What the recordings take when their maps are kept in one way: per clip, in all views, and altogether."""

    dtype: str
    maps: str
    compress: str
    num_bytes_per_clip: float
    num_bytes: int


@dataclass(frozen=True)
class ExtractPlan:
    """What an extraction would do.

    Attributes
    ----------
    store : Path or str
        Where the features would go; it need not be there.
    device, precision : str
    num_workers : int
        0 where only the engine knows.
    num_recordings, num_present, num_set_aside, num_unreadable, num_to_do : int
        Recordings in the corpus, or the share of it that was asked for; of these, those that the store holds by name;
        those that failed before and are not tried again; those whose headers say that they cannot be used; and the
        rest, which all of the following is about.
    num_minutes : float
    num_clips : int
    num_probed : int
        Clips that stages and sizes were measured on.
    stages : tuple of Stage
        Empty where nothing could be measured.
    total_s : float
        Time for all of it, in seconds, with the processors to itself; NaN where it cannot be told.
    sizes : tuple of Size
        Of every way of keeping maps that can be had here; empty where nothing could be measured.
    notes : tuple of str
        What else there is to know, in sentences.
    """

    store: Path | str
    device: str
    precision: str
    num_workers: int
    num_recordings: int
    num_present: int
    num_set_aside: int
    num_unreadable: int
    num_to_do: int
    num_minutes: float
    num_clips: int
    num_probed: int
    stages: tuple[Stage, ...]
    total_s: float
    sizes: tuple[Size, ...]
    notes: tuple[str, ...]


def plan(
    options: ExtractOptions,
    on_progress: Callable[[float, float, str], None] = lambda done, total, told: None,
    probe_s: float = PROBE_S,
) -> ExtractPlan:
    """Find out what an extraction would do; nothing is written to the cache, and nothing is left elsewhere.

    Parameters
    ----------
    options : ExtractOptions
    on_progress : callable
        Told how much is done, of how much, and what, in words.
    probe_s : float
        About how long to measure, in seconds.

    Raises
    ------
    UsageError
        If the corpus, its partitions, the weights, the engine or the cache cannot be used.
    """
    ready = prepare(options)
    store = store_for(cache_home(options.cache), ready.spec)
    present, set_aside = _look(store, ready)
    waiting = [item for item in ready.share if item.name not in present | set_aside]
    notes = []
    if present or set_aside:
        notes.append("What is there or set aside is told by name; a recording whose files changed is extracted again.")
    extent = measure_extent(waiting, options, on_progress)
    trials, told = _try(ready, extent, probe_s, on_progress)
    notes += [*extent.notes, *told]
    if trials and not ready.engine.is_here:
        where = f"on this machine ({ready.networks.device}), not where the workers are ({ready.device})"
        notes.append(f"Engine '{options.engine}' has workers elsewhere: time and bytes were measured {where}.")
    if not ready.num_workers:
        told_of = "takes as many workers as it finds room for; the time is that of this machine alone"
        notes.append(f"Engine '{options.engine}' {told_of}.")
    costs = {stage: _cost(trials, stage) for stage in STAGES} if trials else {}
    return ExtractPlan(
        store=store.location,
        device=ready.device,
        precision=ready.options.precision,
        num_workers=ready.num_workers,
        num_recordings=len(ready.share),
        num_present=len(present),
        num_set_aside=len(set_aside),
        num_unreadable=extent.num_unreadable,
        num_to_do=extent.num_to_do,
        num_minutes=extent.length_s / 60,
        num_clips=extent.num_clips,
        num_probed=sum(trial.num_probed for trial in trials),
        stages=_describe_stages(costs, ready.networks.device.type == "cuda"),
        total_s=_total_s(costs, ready, extent) if trials else (math.nan if extent.num_to_do else 0.0),
        sizes=_describe_sizes(trials, extent) if trials else (),
        notes=tuple(notes),
    )


def _look(store: Store, ready: Preparation) -> tuple[set[str], set[str]]:
    """Return the names of recordings that are in the store, whole, and of those that are not to be tried again."""
    names = {recording.name for recording in ready.share}
    with asking():
        if store.metadata("") is None:
            return set(), set()
        cache = FeatureCache.open(store.location)
        refuse_strangers(cache, ready.recordings)
        surveyed = cache.store.survey(RECORDINGS)
        found = [CachedRecording(cache.store, group, known) for group, known in surveyed.items()]
        failed = set() if ready.options.retry_failed else {failure.recording for failure in cache.ledger.failures()}
    present = names & {item.name for item in found if item.is_whole}
    return present, names & failed - present


def _try(
    ready: Preparation, extent: Extent, probe_s: float, on_progress: Callable[[float, float, str], None]
) -> tuple[list[Trial], list[str]]:
    """Measure the stages on some recordings, those of middle size first; return notes beside what was measured."""
    if not extent.headers:
        return [], ["No recording can be measured: time and bytes are not known."] if extent.num_to_do else []
    notes = []
    small = [header for header in extent.headers if num_bytes(header.recording) <= MAX_TRIED_BYTES]
    if len(small) < len(extent.headers):
        which = "none" if small else "only the smallest"
        notes.append(f"Of files larger than {MAX_TRIED_BYTES / 1e9:.1f} GB {which} is measured.")
    chosen: list[Header] = _spread(small or extent.headers[:1])
    recordings = [(header.recording, header.lacking) for header in chosen]
    trials, failures = try_stages(ready.trial_options, ready.corpus, ready.networks, recordings, probe_s, on_progress)
    if failures:
        notes.append(f"Recordings that were to be measured cannot be used: {tell_reasons(failures)}.")
    if not trials:
        notes.append("No recording could be measured: time and bytes are not known.")
    return trials, [*notes, *_tell_waiting(trials, ready.networks.device.type == "cuda")]


def _tell_waiting(trials: Sequence[Trial], is_gpu: bool) -> list[str]:
    """Return a note if the stages waited long for processors, or for the disk."""
    cpu_s = sum(sum(trial.cpu_s.values()) for trial in trials)
    wall_s = sum(sum(trial.wall_s.values()) for trial in trials)
    if is_gpu or wall_s < MUCH_WAITING * cpu_s or not trials:
        return []
    told = f"The stages took {wall_s / cpu_s:.1f} times as long as they computed, kept by other programs or by the disk"
    return [f"{told}; the time for all is that of processors that have nothing else to do."]


def _spread(items: Sequence[_Item]) -> list[_Item]:
    """Return items in an order that begins in the middle and halves what is left between, however far one comes."""
    num_bits = max(1, (len(items) - 1).bit_length())
    order = (int(f"{number:0{num_bits}b}"[::-1], 2) for number in (*range(1, 2**num_bits), 0))
    return [items[place] for place in dict.fromkeys(number * len(items) >> num_bits for number in order)]


@dataclass(frozen=True)
class _Cost:
    """What a clip costs in a stage: seconds of processor, seconds that pass, and how many units there are of it."""

    cpu_s: float
    wall_s: float
    units: float


def _cost(trials: Sequence[Trial], stage: str) -> _Cost:
    """Return what a clip of the corpus costs: a recording counts by the clips that it has."""
    num_clips = sum(trial.num_clips for trial in trials)
    parts = [(trial.num_clips / num_clips, trial) for trial in trials]
    return _Cost(
        sum(weight * trial.cpu_s[stage] for weight, trial in parts),
        sum(weight * trial.wall_s[stage] for weight, trial in parts),
        sum(weight * trial.units[stage] for weight, trial in parts),
    )


def _describe_stages(costs: dict[str, _Cost], is_gpu: bool) -> tuple[Stage, ...]:
    spent_s = {stage: cost.wall_s if is_gpu else cost.cpu_s for stage, cost in costs.items()}
    whole_s = sum(spent_s.values())
    stages = []
    for stage, cost in costs.items():
        unit, factor = _UNITS.get(stage, ("clips", 1))
        speed = cost.units / factor / max(spent_s[stage], 1e-9)
        told = f"{speed:,.0f} {unit}/s" if speed >= 10 else f"{speed:.1f} {unit}/s"
        stages.append(Stage(stage, 1e3 * cost.cpu_s, 1e3 * cost.wall_s, spent_s[stage] / whole_s, told))
    return tuple(stages)


def _total_s(costs: dict[str, _Cost], ready: Preparation, extent: Extent) -> float:
    """Return the time of all clips on all cores; where there is a GPU, the longer of its time and theirs."""
    count, num_workers = num_cores(), ready.num_workers
    if num_workers > 1:
        count = min(count, num_workers * max(1, count // num_workers))
    device, on_gpu = ready.networks.device, set[str]()
    if device.type == "cuda":
        on_gpu = {PICTURE, SOUND} if ready.networks.detector is None else {FACES, PICTURE, SOUND}
    num_gpus = torch.cuda.device_count() if device.type == "cuda" and device.index is None else 1
    apart = {DECODE} if ready.trial_options.decode == "gpu" else set[str]()  # which a GPU does beside its computing
    gpu_s = max(sum(cost.wall_s for stage, cost in costs.items() if stage in part) for part in (on_gpu, apart))
    cpu_s = sum(cost.cpu_s for stage, cost in costs.items() if stage not in on_gpu | apart)
    return extent.num_clips * max(gpu_s / min(num_gpus, num_workers or num_gpus), cpu_s / count)


def _describe_sizes(trials: Sequence[Trial], extent: Extent) -> tuple[Size, ...]:
    sized = [trial for trial in trials if trial.sizes]
    num_clips = sum(trial.num_clips for trial in sized)
    sizes = []
    for way in known_ways():
        fixed = sum(trial.sizes[way].fixed for trial in sized) / len(sized)
        per_clip = sum(trial.num_clips / num_clips * trial.sizes[way].per_clip for trial in sized)
        num_bytes = extent.num_to_do * fixed + extent.num_clips * per_clip
        sizes.append(Size(*way, num_bytes / max(1, extent.num_clips), round(num_bytes)))
    return tuple(sizes)
