"""Scores: complete runs -> what they got right, gathered into rows of runs that differ in their seed alone.

The score of a run is computed here from its per-frame predictions, never taken from its record. Each recording is
reduced to sums of which every metric is a function (`avfuse.metrics.Sums`), by a protocol that says which frames count
(`avfuse.protocols`). A metric of many recordings is that of the sum of their sums, as if their frames were one trace.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from avfuse import protocols, registry
from avfuse.knobs import format_assignments, parse_fold
from avfuse.metrics import Sums, gather_groups
from avfuse.protocols import Evaluation
from avfuse.runs import RunRecord, find_runs, read_predictions, read_run
from avfuse.schema import Predictions, UsageError
from avfuse.spec import tell_differences

log = logging.getLogger(__name__)

PARTITION = "validation"
WHOLE = "all frames"

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ScoredRun:
    """A run, or the runs of all folds of one seed as if they were one, reduced to what every metric needs.

    Attributes
    ----------
    places : tuple of Path
        The run, or the runs in the order of their folds.
    record : RunRecord
        Of the first.
    recordings, subjects : tuple of str
        Name and subject of each scored recording (R).
    sums : {part: {target: Sums}}
        The sums of each recording, (R, K); NaN but for the number of frames where a prediction is not finite. `WHOLE`
        is the part of all frames.
    num_rated : {target: int}
        Rated frames.
    num_frames : int
    revisions : tuple of str
        The code that made each of the runs, as recorded.
    """

    places: tuple[Path, ...]
    record: RunRecord
    recordings: tuple[str, ...]
    subjects: tuple[str, ...]
    sums: Mapping[str, Mapping[str, Sums]]
    num_rated: Mapping[str, int]
    num_frames: int
    revisions: tuple[str, ...]

    def names(self, by: str) -> tuple[str, ...]:
        """Return the subject of each recording, or its own name, (R,)."""
        return self.subjects if by == "subject" else self.recordings

    def restricted(self, by: str, name: str) -> "ScoredRun":
        """Return the run with the sums of one subject's recordings, or of one recording, alone."""
        chosen_R = np.array([other == name for other in self.names(by)], np.bool_)
        sums = {target: replace(whole, values=whole.values[chosen_R]) for target, whole in self.sums[WHOLE].items()}
        return replace(self, sums={WHOLE: sums})


@dataclass(frozen=True)
class Row:
    """Runs that differ in their seed alone, seeds in order; `options` tell the row from others of its head."""

    runs: tuple[ScoredRun, ...]
    options: str
    evaluation: Evaluation

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
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the runs (S)."""
        return tuple(item.record.seed for item in self.runs)

    @property
    def revisions(self) -> list[str]:
        """The code that made the runs, as far as it is known."""
        known = [revision for item in self.runs for text in item.revisions for revision in text.split(", ")]
        return list(dict.fromkeys(filter(None, known)))

    def values(self, metric: str, target: str) -> FloatArray:
        """Return a metric of every run, (S,), over the frames of all recordings together."""
        of = registry.load("metric", metric).of
        return np.array([float(of(item.sums[WHOLE][target].pooled())) for item in self.runs])

    def values_SE(self, metric: str = "ccc") -> FloatArray:
        """Return a metric of every run and target, (S, E)."""
        return np.stack([self.values(metric, target) for target in self.record.targets], axis=1)

    def num_scored(self, target: str) -> int:
        """Return how many frames each run was scored on."""
        return int(self.runs[0].sums[WHOLE][target].num.sum())

    def has_signs(self, target: str) -> bool:
        """Whether a target's ratings have signs to agree on; one without a declared range may have."""
        low, high = self.record.declared_ranges.get(target, (-1.0, 1.0))
        return low < 0 < high

    def divided(self, by: str) -> dict[str, "Row"]:
        """Return the row once per recording or subject, or per part that it was scored by and for the whole."""
        if by not in ("recording", "subject"):
            names = [*(part for part in self.runs[0].sums if part != WHOLE), WHOLE]
            runs = [[replace(item, sums={WHOLE: item.sums[name]}) for item in self.runs] for name in names]
        else:
            names = list(dict.fromkeys(self.runs[0].names(by)))
            runs = [[item.restricted(by, name) for item in self.runs] for name in names]
        return {name: replace(self, runs=tuple(part)) for name, part in zip(names, runs, strict=True)}

    @property
    def mean_ccc(self) -> dict[int, float]:
        """The mean over the targets, by seed."""
        return dict(zip(self.seeds, self.values_SE().mean(axis=1).tolist(), strict=True))

    @property
    def overall_ccc(self) -> float:
        """The mean over targets and seeds."""
        return float(self.values_SE().mean())


def score(
    places: Sequence[Path],
    protocol: Sequence[str] = ("strict",),
    smoothing: Sequence[str] = (),
    by: str | None = None,
) -> tuple[list[Row], int]:
    """Score the complete runs in some folders; return their rows, and how many runs are left out as incomplete.

    The runs of all folds of a seed count as one, in which every subject was predicted by a head that did not see it;
    where a fold is missing, they are incomplete.

    Rows come in the order in which the runs or folders were given, those of one folder in the registry's order of
    heads, then by options. `protocol` and `smoothing` are given as a user gives them, for every target or as
    TARGET=VALUE; `by` names the parts that are scored beside the whole.

    Raises
    ------
    UsageError
        If there is no complete run, the runs stem from different features, data sets or targets, one training is
        there twice, a run's predictions cannot be scored, or protocol or smoothing cannot be used.
    """
    order = {run: number for number, place in reversed(list(enumerate(places))) for run in find_runs([place])}
    found = [(run, read_run(run)) for run in find_runs(places)]
    complete = [(run, record) for run, record in found if record.complete]
    if not complete:
        raise UsageError(f"none of {len(found)} runs is complete; finish one with: avfuse fuse-train")
    _check_comparable(complete)
    evaluation = _evaluation(complete[0][1], protocol, smoothing)
    groups = _grouped(complete)
    scored = [[_score(folds, evaluation, by) for folds in group] for group in groups if group]
    if not scored:
        raise UsageError(f"none of {len(found)} runs stands beside those of all other folds; train the missing folds")
    num_scored = sum(len(item.places) for group in scored for item in group)
    return _rows(sorted(scored, key=lambda group: _order(group, order)), evaluation), len(found) - num_scored


def _evaluation(record: RunRecord, protocol: Sequence[str], smoothing: Sequence[str]) -> Evaluation:
    """Read how each target of some runs is to be scored."""
    chosen = protocols.by_target(protocol, record.targets, "protocol")
    if smoothing and "smoothed" not in chosen.values():
        raise UsageError(f"--smoothing {smoothing[0]} applies to the smoothed protocol; add --protocol smoothed")
    return Evaluation(
        protocols=chosen,
        smoothing_s=protocols.seconds_by_target(smoothing, record.targets, protocols.SMOOTHING_S),
        ranges=record.declared_ranges,
    )


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
            settings = dict(runs)
            told = tell_differences(
                settings[run].settings, settings[other_run].settings, ("in the first", "in the second")
            )
            raise UsageError(
                f"the runs are of different {what}: {one} ({run}) and {other} ({other_run})"
                f"{f': {told}' if told else ''}; report each by itself"
            )


def _grouped(runs: Sequence[tuple[Path, RunRecord]]) -> list[list[list[tuple[Path, RunRecord]]]]:
    """Gather the runs that differ in seed and fold alone: for each row and seed, seeds in order, its folds in order."""
    groups: dict[str, dict[int, list[tuple[Path, RunRecord]]]] = {}
    for run, record in runs:
        key = json.dumps([record.head, record.head_options, _options(record)], sort_keys=True)
        groups.setdefault(key, {}).setdefault(record.seed, []).append((run, record))
    return [[folds for _, folds in sorted(by_seed.items()) if _are_all_folds(folds)] for by_seed in groups.values()]


def _options(record: RunRecord) -> dict[str, Any]:
    """Return the options that tell rows apart: of a fold, only how many there are."""
    options = {key: value for key, value in record.options.items() if key != "fold"}
    fold = record.options.get("fold")
    return options if fold is None else {**options, "folds": parse_fold(fold)[1]}


def _are_all_folds(runs: list[tuple[Path, RunRecord]]) -> bool:
    """Put the runs of one seed in the order of their folds; tell whether none is missing, refuse one given twice.

    A run without folds is the only one.
    """
    runs.sort(key=lambda item: _fold(item[1]))
    for (run, record), (other_run, other) in pairwise(runs):
        if _fold(record) == _fold(other):
            raise UsageError(f"{run} and {other_run} are the same training, seed {other.seed}; give one of them")
    num_folds = _fold(runs[0][1])[1]
    missing = sorted(set(range(num_folds)) - {_fold(record)[0] for _, record in runs})
    if missing:
        names = ", ".join(f"{index + 1}/{num_folds}" for index in missing)
        log.warning("%s and its other folds are left out: fold %s is missing", runs[0][0], names)
    return not missing


def _fold(record: RunRecord) -> tuple[int, int]:
    fold = record.options.get("fold")
    return (0, 1) if fold is None else parse_fold(fold)


def _score(runs: Sequence[tuple[Path, RunRecord]], evaluation: Evaluation, by: str | None) -> ScoredRun:
    """Reduce the validation predictions of one run, or of the folds of one seed, to sums."""
    predictions = [item for run, record in runs for item in _read(run, record)]
    run, record = runs[0]
    if len({item.recording for item in predictions}) < len(predictions):
        raise UsageError(f"{run} and its other folds hold out the same recording; train them again on one machine")
    masks = [{WHOLE: np.ones(len(item.time_s), np.bool_), **_parts(item, by)} for item in predictions]
    sums: dict[str, dict[str, Sums]] = {part: {} for part in masks[0]}
    for target in record.targets:
        traces = [evaluation.frames(item, target) for item in predictions]
        for part in sums:
            chosen = [(mask[part], *trace) for mask, trace in zip(masks, traces, strict=True)]
            try:
                traces_of_part = [(prediction_F[of_F], target_F[of_F]) for of_F, prediction_F, target_F in chosen]
                sums[part][target] = _gather(traces_of_part, _origin(predictions, target))
            except ValueError as error:
                problem = f"{run} cannot be scored on {target}: {error}"
                raise UsageError(f"{problem}; train it again, or leave it out") from error
    target_FE = np.concatenate([item.target_FE for item in predictions])
    return ScoredRun(
        places=tuple(run for run, _ in runs),
        record=record,
        recordings=tuple(item.recording for item in predictions),
        subjects=tuple(item.subject for item in predictions),
        sums=sums,
        num_rated=dict(zip(record.targets, (~np.isnan(target_FE)).sum(axis=0).tolist(), strict=True)),
        num_frames=len(target_FE),
        revisions=tuple(record.revision for _, record in runs),
    )


def _read(run: Path, record: RunRecord) -> list[Predictions]:
    """Return the validation predictions of a run."""
    predictions = [item for item in read_predictions(run) if item.partition == PARTITION]
    if not predictions:
        raise UsageError(f"{run} holds no predictions of the {PARTITION} partition; train it again")
    if predictions[0].targets != record.targets:
        names = f"{', '.join(predictions[0].targets)}, its record {', '.join(record.targets)}"
        raise UsageError(f"{run} is damaged: its predictions are of {names}; train it again")
    return predictions


def _parts(item: Predictions, by: str | None) -> dict[str, npt.NDArray[np.bool_]]:
    """Return the frames of the parts that divide a recording; recordings and subjects are sums already."""
    return protocols.parts(item, by) if by in ("face", "coverage") else {}


def _origin(predictions: Sequence[Predictions], target: str) -> tuple[float, float]:
    """Return from where sums are taken: the first rating, which is the same for all runs that can be compared."""
    for item in predictions:
        target_F = item.target_FE[:, item.targets.index(target)]
        rated_F = target_F[np.isfinite(target_F)]
        if rated_F.size:
            return float(rated_F[0]), float(rated_F[0])
    return 0.0, 0.0


def _gather(traces: Sequence[tuple[FloatArray, FloatArray]], origin: tuple[float, float]) -> Sums:
    """Return the sums of each recording; NaN where a head diverged, and what it predicts is not finite."""
    if all(np.isfinite(prediction_F).all() for prediction_F, _ in traces):
        return gather_groups(traces, origin)
    undefined = gather_groups([(target_F, target_F) for _, target_F in traces], origin)
    undefined.values[:, 1:] = np.nan
    return undefined


def _order(group: Sequence[ScoredRun], places: Mapping[Path, int]) -> tuple[int, int, str, str]:
    """Return where a group stands: by the first place that named it, then by head as registered, then by options."""
    record, heads = group[0].record, list(registry.HEADS)
    return (
        min(places[place] for item in group for place in item.places),
        heads.index(record.head) if record.head in heads else len(heads),
        format_assignments(record.head_options),
        format_assignments(record.options),
    )


def _rows(groups: Sequence[Sequence[ScoredRun]], evaluation: Evaluation) -> list[Row]:
    """Turn groups of runs into rows, each with the options that tell it from the others."""
    options = [_options(group[0].record) for group in groups]
    keys = {key for known in options for key in known}
    values = {key: {json.dumps(known.get(key), sort_keys=True) for known in options} for key in keys}
    rows = []
    for group, known in zip(groups, options, strict=True):
        differing = {key: value for key, value in known.items() if len(values[key]) > 1}
        shown = format_assignments({**differing, **group[0].record.head_options})
        rows.append(Row(tuple(group), shown, evaluation))
    return rows
