"""The report: complete runs -> one CCC per head, set of options and target -> `ReportTable`. Imports no torch.

The score of a run is computed here from its per-frame predictions, never taken from its record: the frames of all
recordings of the validation partition are concatenated, unrated ones left out, and give one CCC per target.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from avfuse import registry
from avfuse.options import ReportOptions, format_assignments
from avfuse.paper import SOURCE, paper_ccc, paper_dataset
from avfuse.runs import RunRecord, find_runs, read_predictions, read_run
from avfuse.schema import Predictions, ReportTable, UsageError

log = logging.getLogger(__name__)

PARTITION = "validation"
PROPOSED, BASELINE = "recursive_joint_attention", "concat"
NOTHING = "\N{EN DASH}"


@dataclass(frozen=True)
class _Scored:
    """A run with its CCC and what it was scored on: {target: CCC}, {target: rated frames}."""

    run: Path
    record: RunRecord
    ccc: Mapping[str, float]
    num_rated: Mapping[str, int]
    num_recordings: int
    num_frames: int


@dataclass(frozen=True)
class _Row:
    """Runs that differ in their seed alone; `ccc_SE` is (seeds, targets)."""

    head: str
    head_options: Mapping[str, Any]
    options: str
    ccc_SE: npt.NDArray[np.float64]

    @property
    def label(self) -> str:
        return f"{self.head} ({self.options})" if self.options else self.head

    @property
    def mean_ccc_S(self) -> npt.NDArray[np.float64]:
        """The mean over the targets, per seed."""
        return np.asarray(self.ccc_SE.mean(axis=1))


def report(options: ReportOptions) -> ReportTable:
    """Tabulate the validation CCC of complete runs: mean and standard deviation over seeds, beside the paper's.

    Rows come in the registry's order of heads, then in the order in which the runs or folders were given, then by
    options: runs named one by one keep their order.

    Raises
    ------
    UsageError
        If there is no complete run, the runs stem from different features, data sets or targets, one training is
        there twice, or a run's predictions cannot be scored.
    """
    places = {run: place for place, given in reversed(list(enumerate(options.runs))) for run in find_runs([given])}
    found = [(run, read_run(run)) for run in find_runs(options.runs)]
    complete = [(run, record) for run, record in found if record.complete]
    if not complete:
        raise UsageError(f"none of {len(found)} runs is complete; finish one with: avfuse fuse-train")
    _check_comparable(complete)
    groups = _grouped(complete)
    scored = {key: [_score(run, record) for run, record in group] for key, group in groups.items()}
    rows = _rows(sorted(scored.values(), key=lambda group: _order(group, places)))
    targets = complete[0][1].targets
    runs = [item for group in scored.values() for item in group]
    log.info("%d complete runs in %d rows", len(runs), len(rows))
    return ReportTable(
        title=f"Validation CCC on {complete[0][1].dataset}",
        columns=_columns(targets),
        rows=tuple(_cells(row, targets) for row in rows),
        records=tuple(_record(row, index, target) for row in rows for index, target in enumerate(targets)),
        notes=tuple(_notes(rows, runs, targets, num_incomplete=len(found) - len(complete))),
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
            raise UsageError(
                f"the runs are of different {what}: {one} ({run}) and {other} ({other_run}); report each by itself"
            )


def _grouped(runs: Sequence[tuple[Path, RunRecord]]) -> dict[str, list[tuple[Path, RunRecord]]]:
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
    return groups


def _score(run: Path, record: RunRecord) -> _Scored:
    """Compute the CCC per target over the concatenated validation frames of one run."""
    predictions = [item for item in read_predictions(run) if item.partition == PARTITION]
    if not predictions:
        raise UsageError(f"{run} holds no predictions of the {PARTITION} partition; train it again")
    if predictions[0].targets != record.targets:
        names = f"{', '.join(predictions[0].targets)}, its record {', '.join(record.targets)}"
        raise UsageError(f"{run} is damaged: its predictions are of {names}; train it again")
    target_FE = np.concatenate([item.target_FE for item in predictions])
    return _Scored(
        run=run,
        record=record,
        ccc=_ccc(run, predictions, target_FE),
        num_rated=dict(zip(record.targets, (~np.isnan(target_FE)).sum(axis=0).tolist(), strict=True)),
        num_recordings=len(predictions),
        num_frames=len(target_FE),
    )


def _ccc(run: Path, predictions: Sequence[Predictions], target_FE: npt.NDArray[np.float32]) -> dict[str, float]:
    metric = registry.load("metric", "ccc")
    prediction_FE = np.concatenate([item.prediction_FE for item in predictions])
    scores: dict[str, float] = {}
    for index, target in enumerate(predictions[0].targets):
        try:
            scores[target] = float(metric(prediction_FE[:, index], target_FE[:, index]))
        except ValueError as error:
            raise UsageError(f"{run} cannot be scored on {target}: {error}; train it again, or leave it out") from error
    return scores


def _order(group: Sequence[_Scored], places: Mapping[Path, int]) -> tuple[int, str, str]:
    """Return where a group stands among those of its head: by the first place that named it, then by its options."""
    record = group[0].record
    first = min(places[item.run] for item in group)
    return first, format_assignments(record.head_options), format_assignments(record.options)


def _rows(groups: Sequence[Sequence[_Scored]]) -> list[_Row]:
    """Turn groups of runs into rows: heads in the registry's order, their groups in the order given."""
    differing = _differing_options([group[0].record for group in groups])
    rows = []
    for group in groups:
        record = group[0].record
        training = {key: value for key, value in record.options.items() if key in differing}
        rows.append(
            _Row(
                head=record.head,
                head_options=record.head_options,
                options=format_assignments({**training, **record.head_options}),
                ccc_SE=np.array([[item.ccc[target] for target in record.targets] for item in group]),
            )
        )
    order = {head: place for place, head in enumerate(registry.HEADS)}
    return sorted(rows, key=lambda row: order.get(row.head, len(order)))


def _differing_options(records: Sequence[RunRecord]) -> set[str]:
    """Return the training options by which the records differ, and which therefore a reader must see."""
    keys = {key for record in records for key in record.options}
    values = {key: {json.dumps(record.options.get(key), sort_keys=True) for record in records} for key in keys}
    return {key for key, seen in values.items() if len(seen) > 1}


def _paper_targets(targets: Sequence[str]) -> dict[str, str]:
    """Return {target: the paper's data set} for the targets that the paper rates."""
    datasets = {target: paper_dataset(target) for target in targets}
    return {target: dataset for target, dataset in datasets.items() if dataset is not None}


def _columns(targets: Sequence[str]) -> tuple[str, ...]:
    own = [f"CCC {target}" for target in targets]
    paper = [f"paper {target}, {dataset} {PARTITION}" for target, dataset in _paper_targets(targets).items()]
    return ("head", "options", "seeds", *own, "mean CCC", *paper)


def _cells(row: _Row, targets: Sequence[str]) -> tuple[str, ...]:
    own = [_mean_and_sd(ccc_S) for ccc_S in (*row.ccc_SE.T, row.mean_ccc_S)]
    figures = [paper_ccc(row.head, row.head_options, target) for target in _paper_targets(targets)]
    paper = [NOTHING if figure is None else f"{figure.ccc:.3f}" for figure in figures]
    return (row.head, row.options or NOTHING, str(len(row.ccc_SE)), *own, *paper)


def _mean_and_sd(ccc_S: npt.NDArray[np.float64]) -> str:
    mean, sd = _moments(ccc_S)
    if np.isnan(mean):
        return NOTHING
    return f"{mean:.3f}" if sd is None else f"{mean:.3f} ± {sd:.3f}"


def _moments(ccc_S: npt.NDArray[np.float64]) -> tuple[float, float | None]:
    """Return mean and standard deviation (n - 1) over the seeds; one seed has no deviation."""
    return float(ccc_S.mean()), float(ccc_S.std(ddof=1)) if len(ccc_S) > 1 else None


def _record(row: _Row, index: int, target: str) -> dict[str, Any]:
    mean, sd = _moments(row.ccc_SE[:, index])
    figure = paper_ccc(row.head, row.head_options, target)
    return {
        "head": row.head,
        "options": row.options,
        "target": target,
        "ccc_mean": mean,
        "ccc_sd": sd,
        "seeds": len(row.ccc_SE),
        "paper_ccc": None if figure is None else figure.ccc,
        "paper_dataset": None if figure is None else figure.dataset,
    }


def _notes(rows: Sequence[_Row], runs: Sequence[_Scored], targets: Sequence[str], num_incomplete: int) -> list[str]:
    notes = [
        "CCC is Lin's concordance correlation coefficient (1989) with the population's variances, over the rated "
        f"frames of all {PARTITION} recordings, concatenated; predictions are not smoothed.",
        *_data_notes(runs),
    ]
    if any(len(row.ccc_SE) > 1 for row in rows):
        notes.append("Behind ± stands the standard deviation over seeds (n - 1).")
    if num_incomplete:
        subject = "1 run is" if num_incomplete == 1 else f"{num_incomplete} runs are"
        notes.append(f"{subject} incomplete and left out.")
    notes += _undefined_notes(rows, targets)
    notes += _comparison_notes(rows)
    datasets = list(dict.fromkeys(_paper_targets(targets).values()))
    if datasets:
        notes.append(
            f"The paper's values ({SOURCE}) were measured on {' and '.join(datasets)} with encoders trained for the "
            "task; they are not comparable to results on another data set or with other encoders."
        )
    return notes


def _data_notes(runs: Sequence[_Scored]) -> list[str]:
    """Say what was scored, and whether it was the same for all runs."""
    record, first = runs[0].record, runs[0]
    rated = ", ".join(f"{target} {count:,}" for target, count in first.num_rated.items())
    notes = [
        f"{first.num_recordings:,} recordings, {first.num_frames:,} frames; rated frames: {rated}. "
        f"Data set {record.dataset}, feature cache {record.fingerprint}."
    ]
    scored_on = {(run.num_recordings, run.num_frames, tuple(run.num_rated.values())): run.run for run in runs}
    if len(scored_on) > 1:
        sizes = ", ".join(f"{size[0]:,} recordings with {size[1]:,} frames ({run})" for size, run in scored_on.items())
        notes.append(f"The runs were not scored on the same frames and do not compare: {sizes}.")
    return notes


def _undefined_notes(rows: Sequence[_Row], targets: Sequence[str]) -> list[str]:
    return [
        f"CCC {target} is undefined for {row.label}: no frame is rated, or prediction and rating are one constant."
        for row in rows
        for index, target in enumerate(targets)
        if np.isnan(row.ccc_SE[:, index]).any()
    ]


def _comparison_notes(rows: Sequence[_Row]) -> list[str]:
    """Say so where the proposed head does not beat the best row of the plain concatenation."""
    means = [(row, float(row.mean_ccc_S.mean())) for row in rows]
    baseline = [(mean, row.label) for row, mean in means if row.head == BASELINE and not np.isnan(mean)]
    if not baseline:
        return []
    best, label = max(baseline)
    return [
        f"{row.label} does not beat {label} here: mean CCC {mean:.3f} against {best:.3f}."
        for row, mean in means
        if row.head == PROPOSED and mean <= best
    ]
