"""The sentences below a table of scores: how and on what it was scored, and what its rows do not support."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from avfuse import registry
from avfuse.comparison import Comparison, are_paired, num_groups
from avfuse.paper import SOURCE, paper_dataset
from avfuse.protocols import SPAN
from avfuse.scores import PARTITION, Row
from avfuse.statistics import UNITS, cautions

PROPOSED, BASELINE, RELIABILITY = "recursive_joint_attention", "concat", "reliability_joint_attention"
MIN_COMMON_SEEDS = 5
"""Fewer paired seeds say nothing about which of two heads is better."""


def moments(values_S: npt.NDArray[np.float64]) -> tuple[float, float | None]:
    """Return mean and standard deviation (n - 1) over the seeds; one seed has no deviation."""
    return float(values_S.mean()), float(values_S.std(ddof=1)) if len(values_S) > 1 else None


def paper_targets(targets: Sequence[str]) -> dict[str, str]:
    """Return {target: the paper's data set} for the targets that the paper rates."""
    datasets = {target: paper_dataset(target) for target in targets}
    return {target: dataset for target, dataset in datasets.items() if dataset is not None}


def scoring_notes(rows: Sequence[Row], metrics: Sequence[str], by: str | None) -> list[str]:
    """Say how frames became scores: the metrics, the protocol of each target, and where predictions come from."""
    record, evaluation = rows[0].record, rows[0].evaluation
    notes = [_scored_on(by)]
    for name in metrics:
        plug = registry.load("metric", name)
        notes.append(f"{plug.label}: {(plug.__doc__ or '').strip().splitlines()[0]}")
    named: dict[str, list[str]] = {}
    for target in record.targets:
        named.setdefault(evaluation.describe(target), []).append(target)
    notes += [
        f"Protocol{' of ' + ' and '.join(targets) if len(named) > 1 else ''}: {described}."
        for described, targets in named.items()
    ]
    hops = sorted({item.record.hop for row in rows for item in row.runs} - {0})
    if hops == [1]:
        notes.append("A clip ends at every frame, and the frame has its prediction (of a variable rate, interpolated).")
    elif hops:
        every = " or ".join(map(str, hops))
        notes.append(
            f"One clip ends every {every} frames (of a variable rate, at its mean); predictions of the frames between "
            "are interpolated linearly."
        )
    notes += [
        f"Signs of {target} cannot agree or disagree: its ratings go from {low:g} to {high:g}."
        for target, (low, high) in record.declared_ranges.items()
        if "sagr" in metrics and not rows[0].has_signs(target)
    ]
    return notes


def _scored_on(by: str | None) -> str:
    """Say which frames make one score."""
    if by in ("recording", "subject"):
        return f"Each score is over the frames of one {by} of the {PARTITION} partition."
    whole = f"over the frames of all {PARTITION} recordings together"
    if by == "coverage":
        return f"Scored {whole}, by the share of the {SPAN} frames up to each frame that show the face."
    return f"Scored {whole}, by whether the frame shows the face." if by else f"Scored {whole}."


def data_notes(rows: Sequence[Row], folder: Path, num_incomplete: int) -> list[str]:
    """Say what was scored, where it is, and whether data and code were the same for all runs."""
    runs = [item for row in rows for item in row.runs]
    record, first = runs[0].record, runs[0]
    rated = ", ".join(f"{target} {number:,}" for target, number in first.num_rated.items())
    notes = [
        f"{count(len(first.recordings), 'recording')} of {count(len(set(first.subjects)), 'subject')}, "
        f"{first.num_frames:,} frames; rated frames: {rated}. "
        f"Data set {record.dataset}, feature cache {record.fingerprint}; runs in {folder}."
    ]
    scored_on = {(len(run.recordings), run.num_frames, tuple(run.num_rated.values())): run.places[0] for run in runs}
    if len(scored_on) > 1:
        sizes = ", ".join(f"{size[0]:,} recordings with {size[1]:,} frames ({run})" for size, run in scored_on.items())
        notes.append(f"The runs were not scored on the same frames and do not compare: {sizes}.")
    revisions = Counter(revision or "an unknown one" for item in runs for revision in item.revisions)
    if len(revisions) > 1:
        counts = "; ".join(f"{revision} ({count(number, 'run')})" for revision, number in revisions.items())
        notes.append(f"The runs stem from several revisions of the code: {counts}.")
    if any(len(item.places) > 1 for item in runs):
        notes.append("Runs of several folds count as one: each subject is predicted by the head that did not see it.")
    if num_incomplete:
        notes.append(
            f"{count(num_incomplete, 'run')} {'is' if num_incomplete == 1 else 'are'} incomplete, or without the "
            "runs of the other folds, and left out."
        )
    return notes


def statistics_notes(
    rows: Sequence[Row], rival: Row | None, unit: str, compared: Mapping[tuple[int, str, str], Comparison]
) -> list[str]:
    """Say what stands behind the numbers, what intervals and tests are of, and what is too little for them."""
    notes = []
    if any(len(row.runs) > 1 for row in rows):
        notes.append("Behind ± stands the standard deviation over seeds (n - 1).")
    if any(not math.isnan(item.interval.low) for item in compared.values()):
        notes.append(
            f"In square brackets stands the 95 % bootstrap interval of the mean over seeds, over {unit}: where the "
            f"score would lie for other {unit} of the kind, with these trainings."
        )
    num_tests = sum(not math.isnan(item.p) for item in compared.values())
    if rival is not None and num_tests:
        notes.append(
            f"Below it stands the difference to {rival.label} on the seeds that both have, and its two-sided p: a "
            f"paired permutation test that exchanges {_exchanged(rows[0], unit)}, Holm-corrected for "
            f"{count(num_tests, 'test')}."
        )
    if rival is not None:
        apart = [row.label for row in rows if row is not rival and not set(row.seeds) & set(rival.seeds)]
        notes += [f"{label} and {rival.label} have no seed in common, and are not compared." for label in apart]
    return [*notes, *_caution_notes(rows, unit)]


def _caution_notes(rows: Sequence[Row], unit: str) -> list[str]:
    """Say what is too few, of the row and the target that have least; name the target where others have more."""
    num_seeds = min(len(row.runs) for row in rows)
    least = {target: min(num_groups(row, unit, target) for row in rows) for target in rows[0].record.targets}
    said = list(cautions(num_groups=max(least.values()), num_seeds=num_seeds, unit=unit))
    for target, number in least.items():
        of_target = cautions(num_groups=number, num_seeds=num_seeds, unit=unit)
        said += [f"{target}: {sentence}" for sentence in of_target if sentence not in said]
    return said


def _exchanged(row: Row, unit: str) -> str:
    """Say what a test exchanges: recordings, or all recordings of a subject together."""
    numbers = {unit: max(num_groups(row, unit, target) for target in row.record.targets) for unit in UNITS}
    recordings = count(numbers["recordings"], "recording")
    if unit == "recordings" or numbers["subjects"] == numbers["recordings"]:
        return recordings
    return f"{count(numbers['subjects'], 'subject')} ({recordings}; those of a subject together)"


def paper_notes(targets: Sequence[str]) -> list[str]:
    """Say what the paper's values were measured on."""
    datasets = list(dict.fromkeys(paper_targets(targets).values()))
    if not datasets:
        return []
    return [
        f"The paper's values ({SOURCE}; in brackets: ours - the paper's) were measured on the {PARTITION} "
        f"partition of {' and '.join(datasets)} with encoders trained for the task; they are not comparable to "
        "results on another data set or with other encoders."
    ]


def undefined_notes(rows: Sequence[Row], metrics: Sequence[str]) -> list[str]:
    """Say which scores are undefined, and of what that may come."""
    return [
        f"{registry.load('metric', metric).label} {target} is undefined for {row.label}: no frame is rated, "
        "predictions or ratings are constant, or a training diverged."
        for row in rows
        for metric in metrics
        for target in row.record.targets
        if np.isnan(row.values(metric, target)).any() and (metric != "sagr" or row.has_signs(target))
    ]


def baseline_notes(rows: Sequence[Row]) -> list[str]:
    """Say so where the proposed head does not beat the best row of the plain concatenation."""
    if not are_paired([item for row in rows for item in row.runs]):
        return []
    baseline = [(row.overall_ccc, row.label) for row in rows if row.head == BASELINE and not np.isnan(row.overall_ccc)]
    if not baseline:
        return []
    best, label = max(baseline)
    return [
        f"{row.label} does not beat {label} here: mean CCC {row.overall_ccc:.3f} against {best:.3f}."
        for row in rows
        if row.head == PROPOSED and row.overall_ccc <= best
    ]


def reliability_notes(rows: Sequence[Row]) -> list[str]:
    """Say whether weighing modalities by their reliability is better than the proposed head, over the same seeds."""
    notes = []
    for row in rows:
        rival = _rival(row, rows) if row.head == RELIABILITY else None
        if rival is None:
            continue
        runs, rivals = ({item.record.seed: item for item in each.runs} for each in (row, rival))
        common = [seed for seed in sorted(runs.keys() & rivals.keys()) if are_paired([runs[seed], rivals[seed]])]
        difference_S = np.array([row.mean_ccc[seed] - rival.mean_ccc[seed] for seed in common])
        notes.append(f"{row.label} against {rival.label}: {_verdict(difference_S)}")
    return notes


def _rival(row: Row, rows: Sequence[Row]) -> Row | None:
    """Return the proposed head's row to compare with, trained alike: with its defaults, else the best."""
    alike = [other for other in rows if other.head == PROPOSED and other.record.options == row.record.options]
    defaults = [other for other in alike if not other.record.head_options]
    return max(defaults or alike, key=lambda other: other.overall_ccc, default=None)


def _verdict(difference_S: npt.NDArray[np.float64]) -> str:
    """Say what paired differences of mean CCC tell: better is what is more than two standard errors above 0."""
    if not len(difference_S):
        return "no seed in common, nothing to tell."
    if num_undefined := int(np.isnan(difference_S).sum()):
        return f"undefined in {num_undefined} of {count(len(difference_S), 'common seed')}; not recommended."
    mean, sd = moments(difference_S)
    deviation = "" if sd is None else f" ± {sd:.3f}"
    found = f"paired difference of mean CCC {mean:+.3f}{deviation} over {count(len(difference_S), 'common seed')}"
    if sd is None or len(difference_S) < MIN_COMMON_SEEDS:
        return f"{found}; too few to tell, it takes {MIN_COMMON_SEEDS}."
    standard_error = sd / math.sqrt(len(difference_S))
    if mean <= 2 * standard_error:
        return (
            f"{found}, not above twice its standard error ({2 * standard_error:.3f}); over seeds it is not better, and "
            "therefore not recommended."
        )
    return (
        f"{found}, above twice its standard error ({2 * standard_error:.3f}); over seeds, on these recordings, it is "
        f"better by {mean:.3f}."
    )


def count(number: int, noun: str) -> str:
    """Return "1 run" or "2 runs"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
