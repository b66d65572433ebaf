"""Trained heads on the recordings of a cache: per-frame predictions, as a table or as a challenge wants them.

Several runs are an ensemble: each predicts for itself, on its own windows, and the mean of their predictions counts.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from avfuse import runs
from avfuse.atomic import write_atomically
from avfuse.cache import FeatureCache
from avfuse.cached import CachedRecording
from avfuse.checkpoint import load_head
from avfuse.dataset import WindowedPartition, find_residence
from avfuse.device import choose_device
from avfuse.options import PredictOptions, cache_home
from avfuse.passes import predict_clips
from avfuse.protocols import seconds_by_target, smooth
from avfuse.schema import Predictions, Range, UsageError
from avfuse.spec import tell_differences
from avfuse.submission import Template, check_submission, read_template, write_submission

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PredictSummary:
    """What was predicted: by how many runs, of how much, and how many rows each file holds (0 if not written)."""

    num_runs: int
    partition: str
    targets: tuple[str, ...]
    num_recordings: int
    num_frames: int
    num_csv_rows: int
    num_submission_rows: int


def predict(
    options: PredictOptions, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> PredictSummary:
    """Predict every frame of a partition and write what was asked for, calling ``on_progress(done, total)`` by runs.

    Predictions are interpolated from clips to frames, averaged over the runs, smoothed where asked for, and held to the
    range of each target where the corpus declares one.

    Raises
    ------
    UsageError
        If nothing is to be written, a run is incomplete or was trained on other features or targets, the cache holds no
        recording of the partition, or template or folder cannot be used.
    """
    template = _check_options(options)
    cache = FeatureCache.find(cache_home(options.cache))
    places, recordings = runs.find_runs(options.runs), cache.recordings()
    digest = cache.digest(("train", "validation"), recordings)
    records = [_check_run(place, cache, digest, options.partition) for place in places]
    targets = records[0].targets
    if any(record.targets != targets for record in records):
        raise UsageError(f"the runs predict different targets: {_listed(record.targets for record in records)}")
    windows_s = seconds_by_target(options.smoothing, targets, default_s=0.0)
    if options.submission is not None:
        names = [item.name for item in recordings if item.source.partition == options.partition]
        check_submission(options.submission, targets, names, template)
    device = choose_device(options.device)
    traces = []
    for done, (place, record) in enumerate(zip(places, records, strict=True), start=1):
        traces.append(_predict(place, record, cache, recordings, options, device))
        on_progress(done, len(places))
    ranges = cache.spec.ranges or (None,) * len(targets)
    predictions = [_finish(items, ranges, list(windows_s.values())) for items in zip(*traces, strict=True)]
    num_submission_rows = num_csv_rows = 0
    if options.submission is not None:
        num_submission_rows = write_submission(options.submission, predictions, template)
    if options.csv is not None:
        num_csv_rows = _write_csv(options.csv, predictions)
    return PredictSummary(
        num_runs=len(places),
        partition=options.partition,
        targets=targets,
        num_recordings=len(predictions),
        num_frames=sum(len(item.time_s) for item in predictions),
        num_csv_rows=num_csv_rows,
        num_submission_rows=num_submission_rows,
    )


def _check_options(options: PredictOptions) -> Template:
    """Refuse what cannot be written; return the organisers' rows, none if they are not given."""
    if options.csv is None and options.submission is None:
        raise UsageError("nothing to write; give --csv FILE, --submission DIR, or both")
    if options.template is not None and options.submission is None:
        raise UsageError("--template lists the rows of a submission; give --submission DIR with it")
    if options.csv is not None and not options.csv.parent.is_dir():
        raise UsageError(f"--csv {options.csv}: the folder {options.csv.parent} does not exist")
    return Template() if options.template is None else read_template(options.template)


def _listed(targets: Iterable[tuple[str, ...]]) -> str:
    return "; ".join(dict.fromkeys(", ".join(names) for names in targets))


def _check_run(place: Path, cache: FeatureCache, digest: str, partition: str) -> runs.RunRecord:
    """Return the record of a run that can predict this partition of this cache, of which this is the digest."""
    record = runs.read_run(place)
    if not record.complete:
        raise UsageError(f"{place} is incomplete; finish it with: avfuse fuse-train")
    if record.targets != cache.spec.targets and cache.spec.targets:
        raise UsageError(
            f"{place} predicts {', '.join(record.targets)}; {cache.path} is rated for {', '.join(cache.spec.targets)}"
        )
    if record.fingerprint not in ("", cache.spec.fingerprint):
        told = tell_differences(record.settings, cache.spec.to_json())
        raise UsageError(
            f"{place} was trained on features {record.fingerprint}, {cache.path} holds others"
            f"{f' ({told})' if told else ''}; extract the recordings with the settings of its training, into the same "
            "store"
        )
    if record.fingerprint and record.features != digest:
        log.warning("%s: training or validation recordings of %s have changed since it was trained", place, cache.path)
    if record.options.get("fold") and partition != "test":
        raise UsageError(
            f"{place} held out fold {record.options['fold']} and was trained on others of the {partition} partition; "
            "its predictions of what it held out are in the run itself"
        )
    return record


def _predict(
    place: Path,
    record: runs.RunRecord,
    cache: FeatureCache,
    recordings: Sequence[CachedRecording],
    options: PredictOptions,
    device: torch.device,
) -> list[Predictions]:
    """Predict the partition with one run, on windows as in its validation."""
    head = load_head(place).to(device)
    spacing, overlap = int(record.options["spacing"]), int(record.options.get("overlap", 0))
    partition = WindowedPartition(
        cache,
        options.partition,
        head.num_clips,
        spacing,
        overlap=overlap,
        targets=record.targets,
        resident=find_residence(recordings, "auto", device, {options.partition: 1}),
        device=device,
        recordings=recordings,
    )
    amp = str(record.options.get("amp", "off"))
    return partition.predictions(predict_clips(head, partition, amp, options.batch_size))


def _finish(items: Sequence[Predictions], ranges: Sequence[Range | None], windows_s: Sequence[float]) -> Predictions:
    """Return the mean of several predictions of one recording, smoothed and held to the targets' ranges."""
    mean_FE = np.asarray(np.mean([item.prediction_FE for item in items], axis=0, dtype=np.float64))
    for index, (declared, window_s) in enumerate(zip(ranges, windows_s, strict=True)):
        if window_s:
            mean_FE[:, index] = smooth(mean_FE[:, index], items[0].time_s, window_s)
        if declared is not None:
            mean_FE[:, index] = mean_FE[:, index].clip(*declared)
    if not np.isfinite(mean_FE).all():
        raise UsageError(f"{items[0].recording}: a prediction is not finite; a training diverged, leave that run out")
    return replace(items[0], prediction_FE=np.asarray(mean_FE, np.float32))


def _write_csv(path: Path, predictions: Sequence[Predictions]) -> int:
    """Write one line per frame, frames counted from 0 and times in seconds; return their number."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("recording", "subject", "frame", "time_s", *predictions[0].targets, "face"))
    for item in predictions:
        columns = zip(item.time_s.tolist(), item.prediction_FE, item.face_F.tolist(), strict=True)
        for frame, (time_s, values, face) in enumerate(columns):
            writer.writerow(
                (item.recording, item.subject, frame, f"{time_s:.6f}", *(f"{value:.6g}" for value in values), int(face))
            )
    write_atomically(path, text.getvalue().encode())
    return sum(len(item.time_s) for item in predictions)
