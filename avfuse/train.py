"""Stage 2: a fusion head, trained from the cache.

Every epoch visits each rated window of the training partition once, in an order drawn from the seed and the epoch (or
as the protocol has it; see `avfuse.options.PROTOCOLS`). The validation partition is then predicted, clips that stand in
several windows by their mean, and scored as a report scores it: CCC over its rated frames. The best epoch's head is
kept. An epoch is the unit of resumption: whatever it draws follows from (seed, epoch), so a run that was killed
anywhere ends with the very weights of one that was not. A training whose loss is no longer finite ends there.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from avfuse import checkpoint, registry, runs
from avfuse.atomic import digest_json, locked, sweep
from avfuse.augment import Moments
from avfuse.cache import FeatureCache
from avfuse.dataset import WindowedPartition, find_residence, warn_of_leaks
from avfuse.device import choose_device, keep_freed_memory
from avfuse.fusion import FusionHead
from avfuse.knobs import parse_assignments, parse_fold
from avfuse.metrics import Metric
from avfuse.moments import feature_moments
from avfuse.options import TrainOptions, cache_home
from avfuse.passes import predict_clips, train_once
from avfuse.schema import UsageError

log = logging.getLogger(__name__)

MAX_SEED = 2**53  # whole numbers up to here survive JSON
_PROGRESS = ("epoch", "best_epoch", "best_ccc", "elapsed_s", "diverged")
_PER_RUN = ("head", "head_option", "seed")  # recorded by name in a run's record, not among its other options


@dataclass(frozen=True)
class TrainProgress:
    """How far a training is.

    `epoch` counts from 1, `loss` is the last step's; `metrics` are the epoch's own once it has been scored, and empty
    until then.
    """

    run: str
    seed: int
    epoch: int
    num_epochs: int
    share_of_epoch: float
    loss: float
    metrics: dict[str, Any]


@dataclass(frozen=True)
class TrainSummary:
    """What a training made; `ccc` is the best epoch's validation CCC by target."""

    run: str
    head: str
    seed: int
    num_parameters: int
    best_epoch: int
    num_epochs: int
    ccc: dict[str, float]
    mean_ccc: float
    elapsed_s: float
    was_complete: bool


@dataclass(frozen=True)
class _Data:
    """What every run of a call reads: the windows, and the constants that standardise the inputs."""

    train: WindowedPartition
    validation: WindowedPartition
    moments: Moments
    device: torch.device


@dataclass(frozen=True)
class _Run:
    """One run: where it is, what it is, and what it works on."""

    place: Path
    record: runs.RunRecord
    arguments: dict[str, Any]
    options: TrainOptions
    data: _Data
    on_progress: Callable[[TrainProgress], None]

    def report(self, epoch: int, share: float, loss: float, metrics: dict[str, Any]) -> None:
        self.on_progress(
            TrainProgress(str(self.place), self.record.seed, epoch, self.options.epochs, share, loss, metrics)
        )


@dataclass
class _Training:
    """One run in progress: everything that its state on disk must restore."""

    head: FusionHead
    optimizer: torch.optim.Optimizer
    schedule: ReduceLROnPlateau
    epoch: int = 0
    best_epoch: int = 0
    best_ccc: float = -math.inf
    elapsed_s: float = 0.0
    diverged: bool = False

    def is_over(self, options: TrainOptions) -> bool:
        """Whether there is nothing left to train for: weights that are not finite never become finite again."""
        is_stale = self.epoch - self.best_epoch >= options.patience
        return self.epoch >= options.epochs or is_stale or self.diverged

    def state(self) -> dict[str, Any]:
        return {
            "head": self.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            **{name: getattr(self, name) for name in _PROGRESS},
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        for name in _PROGRESS:
            setattr(self, name, state[name])


def train(
    options: TrainOptions, on_progress: Callable[[TrainProgress], None] = lambda progress: None
) -> list[TrainSummary]:
    """Train one run per seed; a run that is complete is left as it is, an interrupted one goes on.

    From then on this process keeps the memory that it frees (`avfuse.device.keep_freed_memory`).

    Raises
    ------
    UsageError
        If the cache, the head or an option cannot be used, or `out` holds a run with other options.
    """
    cache = FeatureCache.find(cache_home(options.cache))
    if not cache.spec.targets:
        raise UsageError(f"{cache.path} holds no targets: its recordings have no annotations to train on")
    if max(options.seed) > MAX_SEED:
        raise UsageError(f"--seed {max(options.seed)} is too large; seeds go up to {MAX_SEED}")
    arguments = _cache_arguments(options, cache)
    head_options = registry.check_arguments("head", options.head, parse_assignments(options.head_option), arguments)
    arguments |= head_options
    checkpoint.build_head(options.head, arguments)  # a wrong argument is refused before any data is read
    record = _record(options, head_options, cache)
    records = [dataclasses.replace(record, seed=seed) for seed in options.seed]
    places = [_place(options, cache, record) for record in records]
    data: _Data | None = None
    summaries = []
    for record, place in zip(records, places, strict=True):
        if not runs.is_complete(place, record):
            data = data or _load_data(options, cache)
            runs.make_folder(place)
            with locked(place), _deterministic(data.device):
                if not runs.is_complete(place, record):  # another process may have trained it meanwhile
                    run = _Run(place, _going_on(place, record), arguments, options, data, on_progress)
                    summaries.append(_train_run(run))
                    continue
        summaries.append(_summarise(place, runs.read_run(place), was_complete=True))
    return summaries


def _record(options: TrainOptions, head_options: dict[str, Any], cache: FeatureCache) -> runs.RunRecord:
    """Return what the runs of all seeds share; every recording of the cache is looked at for it."""
    recorded = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(options)
        if field.metadata["record"] and field.name not in _PER_RUN
    }
    return runs.RunRecord(
        head=options.head,
        head_options=head_options,
        targets=cache.spec.targets,
        seed=options.seed[0],
        options=recorded,
        fingerprint=cache.spec.fingerprint,
        dataset=cache.spec.dataset,
        features=cache.digest(("train", "validation")),
        versions={name: version(name) for name in ("avfuse", "torch", "numpy", "zarr")},
        revision=runs.code_revision(),
        ranges=cache.spec.ranges,
        hop=int(cache.spec.clip["hop"]),
        settings=cache.spec.to_json(),
    )


def _place(options: TrainOptions, cache: FeatureCache, record: runs.RunRecord) -> Path:
    """Return the folder of a run, below that of all: named by head, seed, fold and a digest of what else makes it."""
    folder = options.out or cache.home / "runs" / cache.name
    identity = {key: value for key, value in record.identity.items() if key != "seed"}
    identity["options"] = {key: value for key, value in record.options.items() if key != "fold"}
    fold = "-fold-" + options.fold.replace("/", "-of-") if options.fold else ""
    return folder / f"{record.head}-{digest_json(identity)[:8]}" / f"seed-{record.seed}{fold}"


def _going_on(place: Path, record: runs.RunRecord) -> runs.RunRecord:
    """Return the record of a run that starts now; where an interrupted one goes on, its code is named first."""
    if not all((place / name).is_file() for name in (runs.RUN_FILE, runs.STATE_FILE)):
        return record
    revisions = [*runs.read_run(place).revision.split(", "), record.revision]
    return dataclasses.replace(record, revision=", ".join(filter(None, dict.fromkeys(revisions))))


def _cache_arguments(options: TrainOptions, cache: FeatureCache) -> dict[str, Any]:
    """Return the arguments of a head that follow from the features and the windows."""
    return {
        "targets": list(cache.spec.targets),
        "audio_size": cache.spec.audio_shape[0],
        "video_size": cache.spec.video_shape[0],
        "map_size": cache.spec.video_shape[1],
        "num_clips": options.num_clips,
    }


def _load_data(options: TrainOptions, cache: FeatureCache) -> _Data:
    device, recordings = choose_device(options.device), cache.recordings()
    grid = (options.num_clips, options.spacing)
    num_views = int(cache.spec.views["count"])
    # With folds, what is held out may be of either partition.
    held = {"train": num_views, "validation": 1 if options.fold is None else num_views}
    common: dict[str, Any] = {
        "fold": None if options.fold is None else parse_fold(options.fold),
        "resident": find_residence(recordings, options.resident, device, held),
        "device": device,
        "recordings": recordings,
    }
    is_complete = options.windows == "complete"
    training = WindowedPartition(cache, "train", *grid, complete=is_complete, num_views=num_views, **common)
    validation = WindowedPartition(cache, "validation", *grid, overlap=options.overlap, **common)
    warn_of_leaks(training, validation)
    for partition, name in ((training, "train"), (validation, "validation")):
        for target, values_N in zip(cache.spec.targets, partition.target_NE.cpu().T, strict=True):
            if len(values_N[~values_N.isnan()].unique()) < 2:
                place = f"fold {options.fold}, as the {name} partition," if options.fold else f"the {name} partition"
                raise UsageError(
                    f"{place} of {cache.path} has no ratings of '{target}', or equal ones only; add recordings with "
                    "annotations to that partition and extract them" + (", or take fewer folds" if options.fold else "")
                )
    if failures := cache.ledger.failures():
        log.warning("%d recordings could not be extracted and take no part, such as %s", len(failures), failures[0])
    mean_A, std_A, mean_CHW, std_CHW = (values.to(device) for values in feature_moments(training))
    return _Data(training, validation, (mean_A, std_A, mean_CHW, std_CHW), device)


@contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """Ask torch for reproducible algorithms while a run trains; on CUDA a few have none, which is warned of."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=device.type != "cpu")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _train_run(run: _Run) -> TrainSummary:
    keep_freed_memory()  # before the first step
    training = _start(run)
    while not training.is_over(run.options):
        started_s = time.monotonic()
        epoch = training.epoch + 1
        loss = _train_epoch(run, training, epoch)
        ccc = _score(training.head, run)
        metrics = {
            "epoch": epoch,
            "loss": loss,
            "learning_rate": training.optimizer.param_groups[0]["lr"],
            **{f"ccc_{target}": value for target, value in ccc.items()},
            "mean_ccc": float(np.mean(list(ccc.values()))),
            "elapsed_s": round(time.monotonic() - started_s, 3),
        }
        _keep(run, training, metrics)
        run.report(epoch, 1.0, loss, metrics)
    return _finish(run, training)


def _start(run: _Run) -> _Training:
    """Build the run from its seed, or from the state that an interrupted one left."""
    torch.manual_seed(run.record.seed)
    head = checkpoint.build_head(run.record.head, run.arguments)
    head.standardise(*run.data.moments)
    head.to(run.data.device)
    optimizer = torch.optim.Adam(head.parameters(), lr=run.options.learning_rate, fused=True)
    schedule = ReduceLROnPlateau(optimizer, mode="max", factor=0.5, patience=run.options.plateau)
    training = _Training(head, optimizer, schedule)
    sweep(run.place)
    if (run.place / runs.STATE_FILE).is_file():
        training.restore(checkpoint.load_state(run.place / runs.STATE_FILE))
        log.info("%s goes on after epoch %d", run.place, training.epoch)
    runs.write_run(run.place, run.record)
    return training


def _train_epoch(run: _Run, training: _Training, epoch: int) -> float:
    """Visit every rated window of the training partition once; return the mean loss."""
    options, partition = run.options, run.data.train
    torch.manual_seed(_epoch_seed(run.record.seed, epoch))
    places = partition.rated_windows()
    if options.order == "recorded":
        places.sort(key=lambda place: partition.windows[place])
    else:
        places = [places[i] for i in torch.randperm(len(places)).tolist()]
    if options.schedule == "released":  # whatever the plateau made of it, as in the release
        training.optimizer.param_groups[0]["lr"] = _released_rate(options.learning_rate, epoch - 1)

    def on_step(num_done: int, loss: float) -> None:
        run.report(epoch, num_done / len(places), loss, {})

    return train_once(training.head, training.optimizer, partition, places, run.data.moments, options, on_step)


def _released_rate(learning_rate: float, epoch: int) -> float:
    """Return the step size that the released code sets at the start of an epoch, counted from 0."""
    return learning_rate if epoch <= 5 else 10 * learning_rate * 0.8 ** ((epoch - 5) // 2)


def _keep(run: _Run, training: _Training, metrics: dict[str, Any]) -> None:
    """Take an epoch's result into account and put the state on disk; the state comes last, so it is never ahead."""
    # An undefined CCC (a constant trace) is never better than a defined one.
    ccc = metrics["mean_ccc"] if math.isfinite(metrics["mean_ccc"]) else -1.0
    training.epoch = metrics["epoch"]
    training.diverged = not math.isfinite(metrics["loss"])
    if training.diverged:
        log.warning("%s diverged: its loss is not finite in epoch %d; training ends", run.place, training.epoch)
    training.elapsed_s += metrics["elapsed_s"]
    training.schedule.step(ccc)
    if ccc > training.best_ccc:
        training.best_epoch, training.best_ccc = training.epoch, ccc
        checkpoint.save_head(run.place / runs.HEAD_FILE, run.record.head, run.arguments, training.head)
    runs.write_history(run.place, [*runs.read_history(run.place)[: training.epoch - 1], metrics])
    checkpoint.save_state(run.place / runs.STATE_FILE, training.state())


def _epoch_seed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> 1)


def _predict(head: FusionHead, run: _Run) -> npt.NDArray[np.float32]:
    """Predict the clips of the validation partition, (N, E)."""
    return predict_clips(head, run.data.validation, run.options.amp, run.options.batch_size)


def _score(head: FusionHead, run: _Run) -> dict[str, float]:
    """Return the CCC of each target over the rated frames of the validation partition; NaN where it is not defined."""
    ccc: Metric = registry.load("metric", "ccc")
    return {target: float(ccc.of(sums)) for target, sums in run.data.validation.sums(_predict(head, run)).items()}


def _finish(run: _Run, training: _Training) -> TrainSummary:
    """Predict with the best head, and mark the run complete as the last step."""
    head = checkpoint.load_head(run.place).to(run.data.device)
    predictions = run.data.validation.predictions(_predict(head, run))
    runs.write_predictions(run.place, predictions)
    ccc = runs.ccc_by_target(predictions)
    summary = {
        "num_parameters": sum(parameter.numel() for parameter in head.parameters()),
        "best_epoch": training.best_epoch,
        "num_epochs": training.epoch,
        "ccc": ccc,
        "mean_ccc": float(np.mean(list(ccc.values()))),
        "elapsed_s": round(training.elapsed_s, 3),
    }
    record = dataclasses.replace(run.record, summary=summary, complete=True)
    runs.write_run(run.place, record)
    (run.place / runs.STATE_FILE).unlink(missing_ok=True)
    return _summarise(run.place, record, was_complete=False)


def _summarise(place: Path, record: runs.RunRecord, was_complete: bool) -> TrainSummary:
    try:
        ccc = {target: _number(record.summary["ccc"][target]) for target in record.targets}
        values = {**record.summary, "ccc": ccc, "mean_ccc": _number(record.summary["mean_ccc"])}
        return TrainSummary(run=str(place), head=record.head, seed=record.seed, was_complete=was_complete, **values)
    except (KeyError, TypeError) as error:
        raise UsageError(f"the summary of {place} is damaged ({error}); remove it and train it again") from error


def _number(value: float | None) -> float:
    """Return what JSON holds; what is undefined it holds as null."""
    return math.nan if value is None else value
