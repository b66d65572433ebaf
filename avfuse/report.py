"""The report: complete runs -> one CCC per head, set of options and target -> `ReportTable`. Imports no torch.

Every row stands beside the paper's value where the paper measured it, and says which runs it was computed from; the
notes below say on what, and what the comparison of the rows does not support.
"""

import logging
import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from avfuse.options import ReportOptions
from avfuse.paper import SOURCE, paper_ccc, paper_dataset
from avfuse.schema import ReportTable
from avfuse.scores import PARTITION, Row, score

log = logging.getLogger(__name__)

PROPOSED, BASELINE, RELIABILITY = "recursive_joint_attention", "concat", "reliability_joint_attention"
MIN_COMMON_SEEDS = 5
"""Fewer paired seeds say nothing about which of two heads is better."""
NOTHING = "\N{EN DASH}"


def report(options: ReportOptions) -> ReportTable:
    """Tabulate the validation CCC of complete runs: mean and standard deviation over seeds, beside the paper's.

    Rows stand in the order of `avfuse.scores.score`: runs named one by one keep theirs.

    Raises
    ------
    UsageError
        If there is no complete run, the runs stem from different features, data sets or targets, one training is
        there twice, or a run's predictions cannot be scored.
    """
    rows, num_incomplete = score(options.runs)
    record, folder = rows[0].record, _common_folder([item.run for row in rows for item in row.runs])
    log.info("%d complete runs in %d rows", sum(len(row.runs) for row in rows), len(rows))
    return ReportTable(
        title=options.title or f"Validation CCC on {record.dataset}",
        columns=_columns(record.targets),
        rows=tuple(_cells(row, record.targets, folder) for row in rows),
        records=tuple(_record(row, index, target) for row in rows for index, target in enumerate(record.targets)),
        notes=tuple(_notes(rows, record.targets, folder, num_incomplete)),
    )


def _common_folder(runs: Sequence[Path]) -> Path:
    """Return the folder below which every run stands as ROW/SEED."""
    return Path(os.path.commonpath([run.parent.parent for run in runs]))


def _paper_targets(targets: Sequence[str]) -> dict[str, str]:
    """Return {target: the paper's data set} for the targets that the paper rates."""
    datasets = {target: paper_dataset(target) for target in targets}
    return {target: dataset for target, dataset in datasets.items() if dataset is not None}


def _columns(targets: Sequence[str]) -> tuple[str, ...]:
    """Return the headings; line feeds keep the columns of a terminal narrow."""
    columns = ["head,\noptions"]
    for target in targets:
        columns.append(f"CCC\n{target}")
        if target in _paper_targets(targets):
            columns.append(f"paper\n{target}\n(diff.)")
    return (*columns, "mean\nCCC", "runs,\ncode")


def _cells(row: Row, targets: Sequence[str], folder: Path) -> tuple[str, ...]:
    cells = ["\n".join(filter(None, (row.head, row.options.replace(", ", ",\n"))))]
    for index, target in enumerate(targets):
        cells.append(_mean_and_sd(row.ccc_SE[:, index]))
        if target in _paper_targets(targets):
            cells.append(_paper_cell(row, index, target))
    return (*cells, _mean_and_sd(row.ccc_SE.mean(axis=1)), _runs_cell(row, folder))


def _mean_and_sd(ccc_S: npt.NDArray[np.float64]) -> str:
    mean, sd = _moments(ccc_S)
    if np.isnan(mean):
        return NOTHING
    return f"{mean:.3f}" if sd is None else f"{mean:.3f}\n± {sd:.3f}"


def _moments(ccc_S: npt.NDArray[np.float64]) -> tuple[float, float | None]:
    """Return mean and standard deviation (n - 1) over the seeds; one seed has no deviation."""
    return float(ccc_S.mean()), float(ccc_S.std(ddof=1)) if len(ccc_S) > 1 else None


def _paper_cell(row: Row, index: int, target: str) -> str:
    """Return the paper's value and, in brackets, ours minus the paper's."""
    figure = paper_ccc(row.head, row.record.head_options, target)
    if figure is None:
        return NOTHING
    difference = float(row.ccc_SE[:, index].mean()) - figure.ccc
    return f"{figure.ccc:.3f}" if np.isnan(difference) else f"{figure.ccc:.3f}\n({difference:+.3f})"


def _runs_cell(row: Row, folder: Path) -> str:
    """Return the runs of a row as a shell would read them, concat-3fa9c1d2/seed-{0,1}, and the code that made them."""
    names: dict[Path, list[str]] = {}
    for item in row.runs:
        names.setdefault(item.run.parent.relative_to(folder), []).append(item.run.name)
    places = [str(parent / _in_braces(inside)) for parent, inside in names.items()]
    return "\n".join(filter(None, (" ".join(places), " ".join(row.revisions))))


def _in_braces(names: Sequence[str]) -> str:
    """Return "seed-{0,1}" for "seed-0" and "seed-1"."""
    stems = {name.rpartition("-")[0] for name in names}
    start = f"{stems.pop()}-" if len(stems) == 1 and "" not in stems else ""
    return names[0] if len(names) == 1 else f"{start}{{{','.join(name.removeprefix(start) for name in names)}}}"


def _record(row: Row, index: int, target: str) -> dict[str, Any]:
    mean, sd = _moments(row.ccc_SE[:, index])
    figure = paper_ccc(row.head, row.record.head_options, target)
    return {
        "head": row.head,
        "options": row.options,
        "target": target,
        "ccc_mean": mean,
        "ccc_sd": sd,
        "seeds": len(row.runs),
        "paper_ccc": None if figure is None else figure.ccc,
        "paper_dataset": None if figure is None else figure.dataset,
        "paper_method": None if figure is None else figure.method,
        "difference": None if figure is None else mean - figure.ccc,
        "dataset": row.record.dataset,
        "fingerprint": row.record.fingerprint,
        "revisions": row.revisions,
        "runs": [str(item.run) for item in row.runs],
    }


def _notes(rows: Sequence[Row], targets: Sequence[str], folder: Path, num_incomplete: int) -> list[str]:
    notes = [
        "CCC is Lin's concordance correlation coefficient (1989) with the population's variances, over the rated "
        f"frames of all {PARTITION} recordings, concatenated; predictions are not smoothed.",
        *_data_notes(rows, folder),
    ]
    if any(len(row.runs) > 1 for row in rows):
        notes.append("Behind ± stands the standard deviation over seeds (n - 1).")
    if num_incomplete:
        notes.append(
            f"{_count(num_incomplete, 'run')} {'is' if num_incomplete == 1 else 'are'} incomplete and left out."
        )
    notes += _undefined_notes(rows, targets)
    notes += _baseline_notes(rows)
    notes += _reliability_notes(rows)
    datasets = list(dict.fromkeys(_paper_targets(targets).values()))
    if datasets:
        notes.append(
            f"The paper's values ({SOURCE}; in brackets: ours - the paper's) were measured on the {PARTITION} "
            f"partition of {' and '.join(datasets)} with encoders trained for the task; they are not comparable to "
            "results on another data set or with other encoders."
        )
    return notes


def _data_notes(rows: Sequence[Row], folder: Path) -> list[str]:
    """Say what was scored, where it is, and whether data and code were the same for all runs."""
    runs = [item for row in rows for item in row.runs]
    record, first = runs[0].record, runs[0]
    rated = ", ".join(f"{target} {count:,}" for target, count in first.num_rated.items())
    notes = [
        f"{first.num_recordings:,} recordings, {first.num_frames:,} frames; rated frames: {rated}. "
        f"Data set {record.dataset}, feature cache {record.fingerprint}; runs in {folder}."
    ]
    scored_on = {(run.num_recordings, run.num_frames, tuple(run.num_rated.values())): run.run for run in runs}
    if len(scored_on) > 1:
        sizes = ", ".join(f"{size[0]:,} recordings with {size[1]:,} frames ({run})" for size, run in scored_on.items())
        notes.append(f"The runs were not scored on the same frames and do not compare: {sizes}.")
    revisions = Counter(item.record.revision or "an unknown one" for item in runs)
    if len(revisions) > 1:
        counts = "; ".join(f"{revision} ({_count(number, 'run')})" for revision, number in revisions.items())
        notes.append(f"The runs stem from several revisions of the code: {counts}.")
    return notes


def _undefined_notes(rows: Sequence[Row], targets: Sequence[str]) -> list[str]:
    return [
        f"CCC {target} is undefined for {row.label}: no frame is rated, prediction and rating are one constant, "
        "or a training diverged."
        for row in rows
        for index, target in enumerate(targets)
        if np.isnan(row.ccc_SE[:, index]).any()
    ]


def _baseline_notes(rows: Sequence[Row]) -> list[str]:
    """Say so where the proposed head does not beat the best row of the plain concatenation."""
    baseline = [(row.overall_ccc, row.label) for row in rows if row.head == BASELINE and not np.isnan(row.overall_ccc)]
    if not baseline:
        return []
    best, label = max(baseline)
    return [
        f"{row.label} does not beat {label} here: mean CCC {row.overall_ccc:.3f} against {best:.3f}."
        for row in rows
        if row.head == PROPOSED and row.overall_ccc <= best
    ]


def _reliability_notes(rows: Sequence[Row]) -> list[str]:
    """Say whether weighing modalities by their reliability is better than the proposed head, on the same seeds."""
    notes = []
    for row in rows:
        rival = _rival(row, rows) if row.head == RELIABILITY else None
        if rival is None:
            continue
        common = sorted(row.mean_ccc.keys() & rival.mean_ccc.keys())
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
        return f"undefined in {num_undefined} of {_count(len(difference_S), 'common seed')}; not recommended."
    mean, sd = _moments(difference_S)
    deviation = "" if sd is None else f" ± {sd:.3f}"
    found = f"paired difference of mean CCC {mean:+.3f}{deviation} over {_count(len(difference_S), 'common seed')}"
    if sd is None or len(difference_S) < MIN_COMMON_SEEDS:
        return f"{found}; too few to tell, it takes {MIN_COMMON_SEEDS}."
    standard_error = sd / math.sqrt(len(difference_S))
    if mean <= 2 * standard_error:
        return (
            f"{found}, not above twice its standard error ({2 * standard_error:.3f}); it is not better, and therefore "
            "not recommended."
        )
    return f"{found}, above twice its standard error ({2 * standard_error:.3f}); it is better by {mean:.3f}."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
