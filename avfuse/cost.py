"""What other maps of the same recordings cost a run, without training again: its validation CCC from either."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from avfuse import registry, runs
from avfuse.cache import FeatureCache
from avfuse.checkpoint import load_head
from avfuse.dataset import WindowedPartition, find_residence
from avfuse.knobs import parse_fold
from avfuse.metrics import Metric
from avfuse.passes import call_head
from avfuse.schema import Batch, UsageError
from avfuse.spec import tell_differences

log = logging.getLogger(__name__)

BATCH_SIZE = 32  # windows per forward pass


@dataclass(frozen=True)
class RunCost:
    """What smaller maps cost a run that was trained on the larger ones, without training again.

    Attributes
    ----------
    run, head : str
    seed : int
    before, after : dict
        CCC of the validation partition by target, from the maps as they were and from the smaller ones.
    """

    run: str
    head: str
    seed: int
    before: dict[str, float]
    after: dict[str, float]


def read_runs(places: Sequence[Path], source: FeatureCache) -> list[tuple[Path, runs.RunRecord]]:
    """Return the runs in some places, with their records.

    Raises
    ------
    UsageError
        If there is none in a place, or one is incomplete or was not trained on the features of this store.
    """
    found = [(place, runs.read_run(place)) for place in runs.find_runs(places)]
    digest = source.digest(("train", "validation")) if found else ""
    for place, record in found:
        if not record.complete:
            raise UsageError(f"{place} is incomplete; finish it with: avfuse fuse-train")
        if record.fingerprint != source.spec.fingerprint:
            told = tell_differences(record.settings, source.spec.to_json())
            raise UsageError(
                f"{place} was trained on features {record.fingerprint or 'of others'}, not on those of {source.path}"
                f"{f' ({told})' if told else ''}; give runs of that store"
            )
        if record.features != digest:
            log.warning("%s: recordings of %s have changed since it was trained", place, source.path)
    return found


def find_cost(
    place: Path, record: runs.RunRecord, source: FeatureCache, target: FeatureCache, device: torch.device
) -> RunCost:
    """Let the head of a run predict what it was validated on, from either store.

    A head that takes maps of several cells is given, for pooled ones, the mean map of its training moved by as much as
    the mean over the cells is another; one that does not know that map, as a released form, the mean in every cell.
    """
    before, after = (_score(place, record, cache, device) for cache in (source, target))
    return RunCost(str(place), record.head, record.seed, before, after)


def _score(place: Path, record: runs.RunRecord, cache: FeatureCache, device: torch.device) -> dict[str, float]:
    """Return the CCC of each target over what the run was validated on, from the maps of a store."""
    head = load_head(place).to(device)
    fold = record.options.get("fold")
    partitions = ("train", "validation") if fold else ("validation",)
    recordings = cache.recordings()
    partition = WindowedPartition(
        cache,
        "validation",
        head.num_clips,
        int(record.options["spacing"]),
        overlap=int(record.options.get("overlap", 0)),
        fold=parse_fold(fold) if fold else None,
        targets=record.targets,
        resident=find_residence(recordings, "auto", device, dict.fromkeys(partitions, 1)),
        device=device,
        recordings=recordings,
    )
    amp = str(record.options.get("amp", "off"))
    partition.set_missing_sound(head.inputs.audio_mean)
    trace_NE = partition.trace(lambda batch: call_head(head, _spread(batch, head.inputs.video_mean), amp), BATCH_SIZE)
    ccc: Metric = registry.load("metric", "ccc")
    return {target: float(ccc.of(sums)) for target, sums in partition.sums(trace_NE).items()}


def _spread(batch: Batch, mean_CHW: Tensor) -> Batch:
    """Make whole maps of pooled ones, with the differences between cells that the mean map has."""
    if batch.video_BTCHW.shape[3:] == mean_CHW.shape[1:]:
        return batch
    difference_CHW = mean_CHW - mean_CHW.mean(dim=(1, 2), keepdim=True)
    return replace(batch, video_BTCHW=batch.video_BTCHW.float() + difference_CHW)
