"""Scores: complete runs -> their validation CCC, gathered into rows of runs that differ in their seed alone.

The score of a run is computed here from its per-frame predictions, never taken from its record: the frames of all
recordings of the validation partition are concatenated, unrated ones left out, and give one CCC per target.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from avfuse import registry
from avfuse.options import format_assignments
from avfuse.runs import RunRecord, ccc_by_target, find_runs, read_predictions, read_run
from avfuse.schema import UsageError

PARTITION = "validation"


@dataclass(frozen=True)
class ScoredRun:
    """A run with its CCC and what it was scored on: {target: CCC}, {target: rated frames}."""

    run: Path
    record: RunRecord
    ccc: Mapping[str, float]
    num_rated: Mapping[str, int]
    num_recordings: int
    num_frames: int


@dataclass(frozen=True)
class Row:
    """Runs that differ in their seed alone, seeds in order; `options` tell the row from others of its head."""

    runs: tuple[ScoredRun, ...]
    options: str

    @property
    def record(self) -> RunRecord:
        """What the runs share, and the first one's seed."""
        return self.runs[0].record

    @property
    def head(self) -> str:
        """Name of the fusion head."""
        return self.record.head

    @property
    def label(self) -> str:
        """Head and options, for a sentence."""
        return f"{self.head} ({self.options})" if self.options else self.head

    @property
    def revisions(self) -> list[str]:
        """The code that made the runs, as far as it is known."""
        known = [revision for item in self.runs for revision in item.record.revision.split(", ") if revision]
        return list(dict.fromkeys(known))

    @property
    def ccc_SE(self) -> npt.NDArray[np.float64]:
        """The CCC of every run, (seeds, targets)."""
        return np.array([[item.ccc[target] for target in self.record.targets] for item in self.runs])

    @property
    def mean_ccc(self) -> dict[int, float]:
        """The mean over the targets, by seed."""
        seeds = [item.record.seed for item in self.runs]
        return dict(zip(seeds, self.ccc_SE.mean(axis=1).tolist(), strict=True))

    @property
    def overall_ccc(self) -> float:
        """The mean over targets and seeds."""
        return float(self.ccc_SE.mean())


def score(places: Sequence[Path]) -> tuple[list[Row], int]:
    """Score the complete runs in some folders; return their rows, and how many runs are incomplete.

    Rows come in the order in which the runs or folders were given, those of one folder in the registry's order of
    heads, then by options.

    Raises
    ------
    UsageError
        If there is no complete run, the runs stem from different features, data sets or targets, one training is
        there twice, or a run's predictions cannot be scored.
    """
    order = {run: number for number, place in reversed(list(enumerate(places))) for run in find_runs([place])}
    found = [(run, read_run(run)) for run in find_runs(places)]
    complete = [(run, record) for run, record in found if record.complete]
    if not complete:
        raise UsageError(f"none of {len(found)} runs is complete; finish one with: avfuse fuse-train")
    _check_comparable(complete)
    groups = [[_score(run, record) for run, record in group] for group in _grouped(complete)]
    return _rows(sorted(groups, key=lambda group: _order(group, order))), len(found) - len(complete)


def _check_comparable(runs: Sequence[tuple[Path, RunRecord]]) -> None:
    """Refuse runs that were not scored against the same ratings on the same features."""
    properties: dict[str, Callable[[RunRecord], str]] = {
        "feature caches": lambda record: record.fingerprint,
        "states of that cache": lambda record: record.features,
        "data sets": lambda record: record.dataset,
        "targets": lambda record: ", ".join(record.targets),
    }
    for what, value in properties.items():
        first: dict[str, Path] = {}
        for run, record in runs:
            first.setdefault(value(record), run)
        if len(first) > 1:
            (one, run), (other, other_run), *_ = first.items()
            raise UsageError(
                f"the runs are of different {what}: {one} ({run}) and {other} ({other_run}); report each by itself"
            )


def _grouped(runs: Sequence[tuple[Path, RunRecord]]) -> list[list[tuple[Path, RunRecord]]]:
    """Gather the runs that differ in their seed alone, seeds in order."""
    groups: dict[str, list[tuple[Path, RunRecord]]] = {}
    for run, record in runs:
        key = json.dumps([record.head, record.head_options, record.options], sort_keys=True)
        groups.setdefault(key, []).append((run, record))
    for group in groups.values():
        group.sort(key=lambda item: item[1].seed)
        for (run, record), (other_run, other) in pairwise(group):
            if record.seed == other.seed:
                raise UsageError(f"{run} and {other_run} are the same training, seed {other.seed}; give one of them")
    return list(groups.values())


def _score(run: Path, record: RunRecord) -> ScoredRun:
    """Compute the CCC per target over the concatenated validation frames of one run."""
    predictions = [item for item in read_predictions(run) if item.partition == PARTITION]
    if not predictions:
        raise UsageError(f"{run} holds no predictions of the {PARTITION} partition; train it again")
    if predictions[0].targets != record.targets:
        names = f"{', '.join(predictions[0].targets)}, its record {', '.join(record.targets)}"
        raise UsageError(f"{run} is damaged: its predictions are of {names}; train it again")
    try:
        ccc = ccc_by_target(predictions)
    except ValueError as error:
        raise UsageError(f"{run} cannot be scored on {error}; train it again, or leave it out") from error
    target_FE = np.concatenate([item.target_FE for item in predictions])
    return ScoredRun(
        run=run,
        record=record,
        ccc=ccc,
        num_rated=dict(zip(record.targets, (~np.isnan(target_FE)).sum(axis=0).tolist(), strict=True)),
        num_recordings=len(predictions),
        num_frames=len(target_FE),
    )


def _order(group: Sequence[ScoredRun], places: Mapping[Path, int]) -> tuple[int, int, str, str]:
    """Return where a group stands: by the first place that named it, then by head as registered, then by options."""
    record, heads = group[0].record, list(registry.HEADS)
    return (
        min(places[item.run] for item in group),
        heads.index(record.head) if record.head in heads else len(heads),
        format_assignments(record.head_options),
        format_assignments(record.options),
    )


def _rows(groups: Sequence[Sequence[ScoredRun]]) -> list[Row]:
    """Turn groups of runs into rows, each with the options that tell it from the others."""
    records = [group[0].record for group in groups]
    keys = {key for record in records for key in record.options}
    values = {key: {json.dumps(record.options.get(key), sort_keys=True) for record in records} for key in keys}
    rows = []
    for group, record in zip(groups, records, strict=True):
        differing = {key: value for key, value in record.options.items() if len(values[key]) > 1}
        rows.append(Row(tuple(group), format_assignments({**differing, **record.head_options})))
    return rows
