"""The report: complete runs -> scores per head, set of options and target -> `ReportTable`. Imports no torch.

Every row stands beside the paper's value where the paper measured it, and says which runs it was computed from, how
sure its score is and how it stands to a rival row. The notes below say on what and by which rules it was scored, and
what the comparison of the rows does not support.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from avfuse import notes, registry
from avfuse.comparison import Comparison, choose_rival, compare
from avfuse.notes import BASELINE, moments, paper_targets
from avfuse.options import ReportOptions
from avfuse.paper import paper_ccc
from avfuse.runs import common_folder
from avfuse.schema import ReportTable
from avfuse.scores import Row, score
from avfuse.statistics import check_unit

log = logging.getLogger(__name__)

NOTHING = "\N{EN DASH}"

Comparisons = Mapping[tuple[int, str, str], Comparison]


def report(options: ReportOptions) -> ReportTable:
    """Tabulate the validation scores of complete runs: mean and standard deviation over seeds, beside the paper's.

    Rows stand in the order of `avfuse.scores.score`: runs named one by one keep theirs. With `by`, every row is divided
    into its recordings, its subjects, or its frames by how far they show the face.

    Raises
    ------
    UsageError
        If there is no complete run, the runs stem from different features, data sets or targets, one training is
        there twice, a run's predictions cannot be scored, or an option cannot be used.
    """
    rows, num_incomplete = score(options.runs, options.protocol, options.smoothing, options.by)
    log.info("%d complete runs in %d rows", sum(len(row.runs) for row in rows), len(rows))
    folder = common_folder([place for row in rows for item in row.runs for place in item.places])
    said = [*notes.scoring_notes(rows, options.metric, options.by), *notes.data_notes(rows, folder, num_incomplete)]
    record, rival = rows[0].record, choose_rival(rows, options.against, BASELINE)
    check_unit(options.resample)
    if options.by is not None:
        return _breakdown(rows, options, said)
    compared = compare(rows, rival, options.metric, options.resample, options.seed)
    said += notes.statistics_notes(rows, rival, options.resample, compared)
    said += notes.undefined_notes(rows, options.metric)
    if _compares_with_paper(options):
        said += [*notes.baseline_notes(rows), *notes.reliability_notes(rows), *notes.paper_notes(record.targets)]
    return ReportTable(
        title=options.title or _title(options, record.dataset),
        columns=_columns(options, record.targets),
        rows=tuple(_cells(row, place, options, compared, folder) for place, row in enumerate(rows)),
        records=tuple(
            _record(row, place, target, rival, compared) for place, row in enumerate(rows) for target in record.targets
        ),
        notes=tuple(said),
    )


def _title(options: ReportOptions, dataset: str) -> str:
    scores = "CCC" if options.metric == ("ccc",) else "scores"
    return f"Validation {scores} on {dataset}" + (f", by {options.by}" if options.by else "")


def _compares_with_paper(options: ReportOptions) -> bool:
    return "ccc" in options.metric


def _columns(options: ReportOptions, targets: Sequence[str]) -> tuple[str, ...]:
    """Return the headings; line feeds keep the columns of a terminal narrow."""
    columns = ["head,\noptions"]
    for target in targets:
        for metric in options.metric:
            columns.append(f"{registry.load('metric', metric).label}\n{target}")
            if metric == "ccc" and target in paper_targets(targets):
                columns.append(f"paper\n{target}\n(diff.)")
    mean = ["mean\nCCC"] if _compares_with_paper(options) else []
    return (*columns, *mean, "runs,\ncode")


def _cells(row: Row, place: int, options: ReportOptions, compared: Comparisons, folder: Path) -> tuple[str, ...]:
    targets = row.record.targets
    cells = [_name(row)]
    for target in targets:
        for metric in options.metric:
            cell = _score_cell(row, metric, target, compared.get((place, metric, target)))
            cells.append(cell if len(options.metric) == 1 else cell.replace(" ±", "\n±").replace(", ", ",\n"))
            if metric == "ccc" and target in paper_targets(targets):
                cells.append(_paper_cell(row, target))
    mean = [_mean_and_sd(row.values_SE().mean(axis=1))] if _compares_with_paper(options) else []
    return (*cells, *mean, _runs_cell(row, folder))


def _name(row: Row) -> str:
    return "\n".join(filter(None, (row.head, row.options.replace(", ", ",\n"))))


def _score_cell(row: Row, metric: str, target: str, comparison: Comparison | None) -> str:
    """Return mean and deviation over seeds, the interval below, and how the row stands to the rival's."""
    lines = [_part_cell(row, metric, target)]
    if lines == [NOTHING] or comparison is None:
        return NOTHING
    interval = comparison.interval
    if not np.isnan(interval.low):
        lines.append(f"[{interval.low:.3f}, {interval.high:.3f}]")
    if not np.isnan(comparison.p_holm):
        p = "p < 0.001" if comparison.p_holm < 0.001 else f"p {comparison.p_holm:.3f}"
        lines.append(f"{comparison.gain:+.3f}, {p}")
    return "\n".join(lines)


def _mean_and_sd(values_S: npt.NDArray[np.float64]) -> str:
    mean, sd = moments(values_S)
    if np.isnan(mean):
        return NOTHING
    return f"{mean:.3f}" if sd is None else f"{mean:.3f} ± {sd:.3f}"


def _paper_cell(row: Row, target: str) -> str:
    """Return the paper's value and, in brackets, ours minus the paper's."""
    figure = paper_ccc(row.head, row.record.head_options, target)
    if figure is None:
        return NOTHING
    difference = float(row.values("ccc", target).mean()) - figure.ccc
    return f"{figure.ccc:.3f}" if np.isnan(difference) else f"{figure.ccc:.3f}\n({difference:+.3f})"


def _runs_cell(row: Row, folder: Path) -> str:
    """Return the runs of a row as a shell would read them, concat-3fa9c1d2/seed-{0,1}, and the code that made them."""
    names: dict[Path, list[str]] = {}
    for place in (place for item in row.runs for place in item.places):
        names.setdefault(place.parent.relative_to(folder), []).append(place.name)
    places = [str(parent / _in_braces(inside)) for parent, inside in names.items()]
    return "\n".join(filter(None, (" ".join(places), " ".join(row.revisions))))


def _in_braces(names: Sequence[str]) -> str:
    """Return "seed-{0,1}" for "seed-0" and "seed-1"."""
    stems = {name.rpartition("-")[0] for name in names}
    start = f"{stems.pop()}-" if len(stems) == 1 and "" not in stems else ""
    return names[0] if len(names) == 1 else f"{start}{{{','.join(name.removeprefix(start) for name in names)}}}"


def _record(row: Row, place: int, target: str, rival: Row | None, compared: Comparisons) -> dict[str, Any]:
    figure = paper_ccc(row.head, row.record.head_options, target)
    return {
        "head": row.head,
        "options": row.options,
        "target": target,
        "protocol": row.evaluation.describe(target),
        **_all_metrics(row, target),
        "seeds": len(row.runs),
        "against": None if rival is None or rival is row else rival.label,
        **{
            f"{metric}_{key}": value
            for (at, metric, of), comparison in compared.items()
            if (at, of) == (place, target)
            for key, value in _statistics(comparison).items()
        },
        "paper_ccc": None if figure is None else figure.ccc,
        "paper_dataset": None if figure is None else figure.dataset,
        "paper_method": None if figure is None else figure.method,
        "difference": None if figure is None else float(row.values("ccc", target).mean()) - figure.ccc,
        **_origin(row),
    }


def _origin(row: Row) -> dict[str, Any]:
    """Say what a row was computed from."""
    return {
        "dataset": row.record.dataset,
        "fingerprint": row.record.fingerprint,
        "revisions": row.revisions,
        "runs": [str(place) for item in row.runs for place in item.places],
    }


def _statistics(comparison: Comparison) -> dict[str, Any]:
    return {
        "low": comparison.interval.low,
        "high": comparison.interval.high,
        "gain": comparison.gain,
        "gain_low": comparison.gain_interval.low,
        "gain_high": comparison.gain_interval.high,
        "gain_seeds": comparison.num_common,
        "p": comparison.p,
        "p_holm": comparison.p_holm,
    }


def _breakdown(rows: Sequence[Row], options: ReportOptions, said: Sequence[str]) -> ReportTable:
    """Tabulate every row by its parts: one line per part, with its scored frames and its scores."""
    assert options.by is not None
    targets = rows[0].record.targets
    parts = [(row, name, part) for row in rows for name, part in row.divided(options.by).items()]
    shown = [(metric, target) for target in targets for metric in options.metric]
    return ReportTable(
        title=options.title or _title(options, rows[0].record.dataset),
        columns=(
            "head,\noptions",
            options.by,
            *(f"frames\n{target}" for target in targets),
            *(f"{registry.load('metric', metric).label}\n{target}" for metric, target in shown),
        ),
        rows=tuple(
            (
                _name(row),
                name,
                *(f"{part.num_scored(target):,}" for target in targets),
                *(_part_cell(part, metric, target) for metric, target in shown),
            )
            for row, name, part in parts
        ),
        records=tuple(
            {
                "head": row.head,
                "options": row.options,
                options.by: name,
                "target": target,
                "frames": part.num_scored(target),
                "protocol": row.evaluation.describe(target),
                "seeds": len(row.runs),
                **_all_metrics(part, target),
                **_origin(row),
            }
            for row, name, part in parts
            for target in targets
        ),
        notes=tuple(said),
    )


def _part_cell(row: Row, metric: str, target: str) -> str:
    return NOTHING if metric == "sagr" and not row.has_signs(target) else _mean_and_sd(row.values(metric, target))


def _all_metrics(row: Row, target: str) -> dict[str, float | None]:
    """Return mean and deviation over seeds of every metric that there is."""
    values: dict[str, float | None] = {}
    for metric in registry.METRICS:
        values[f"{metric}_mean"], values[f"{metric}_sd"] = moments(row.values(metric, target))
    return values
