"""What scores support: an interval for each row, and how it stands to a rival row.

Whom a sample stands for decides what is resampled. Intervals resample subjects, as the next subject is what a head will
meet. Two rows are compared by exchanging their predictions at random, on the seeds that both have: recording by
recording, or rather subject by subject, since the recordings of one subject are not independent.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import numpy.typing as npt

from avfuse import registry, statistics
from avfuse.metrics import Metric, Sums
from avfuse.schema import UsageError
from avfuse.scores import WHOLE, Row, ScoredRun
from avfuse.statistics import UNDEFINED, Interval

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """What one row's metric of one target supports.

    Attributes
    ----------
    interval : Interval
        Of the mean over the row's seeds.
    gain : float
        Mean over the common seeds of the row's metric minus the rival's; NaN for the rival itself and where the two
        cannot be compared.
    gain_interval : Interval
    p, p_holm : float
        Of the paired permutation test, alone and corrected for all tests of the table.
    num_common : int
        Seeds that row and rival share.
    """

    interval: Interval
    gain: float = float("nan")
    gain_interval: Interval = UNDEFINED
    p: float = float("nan")
    p_holm: float = float("nan")
    num_common: int = 0


def choose_rival(rows: Sequence[Row], against: str | None, default: str) -> Row | None:
    """Return the row to compare with: the one named, by label or head, else the default head's, else the first.

    Of several rows of the default head it is one without options, if there is one.

    Raises
    ------
    UsageError
        If no row is named so.
    """
    named = [row for row in rows if against == row.label] or [row for row in rows if against == row.head]
    if against is not None and not named:
        raise UsageError(f"no row is called '{against}'; there are: {'; '.join(row.label for row in rows)}")
    defaults = [row for row in rows if row.head == default]
    plain = [row for row in defaults if not row.record.head_options]
    candidates = named or plain or defaults or list(rows)
    return candidates[0] if len(rows) > 1 else None


def compare(
    rows: Sequence[Row], rival: Row | None, metrics: Sequence[str], unit: str, seed: int
) -> dict[tuple[int, str, str], Comparison]:
    """Return the comparison of every row (by its place), metric and target; p-values are corrected over all of them.

    Agreement of signs is left out where a target's range has one sign only.

    Raises
    ------
    UsageError
        If `unit` is not what an interval may resample.
    """
    statistics.check_unit(unit)
    found = {
        (place, metric, target): _compare(row, rival, metric, target, unit, seed)
        for (place, row), metric in product(enumerate(rows), metrics)
        for target in row.record.targets
        if metric != "sagr" or row.has_signs(target)
    }
    corrected = statistics.holm([item.p for item in found.values()])
    return {key: replace(item, p_holm=p) for (key, item), p in zip(found.items(), corrected, strict=True)}


def num_groups(row: Row, unit: str, target: str) -> int:
    """Return how many subjects, or recordings, a row was scored on: those with a scored frame."""
    run = row.runs[0]
    num_R = run.sums[WHOLE][target].num
    return len({name for name, number in zip(_group_names(run, unit), num_R, strict=True) if number})


def _compare(row: Row, rival: Row | None, metric: str, target: str, unit: str, seed: int) -> Comparison:
    if not are_paired(row.runs):
        return Comparison(UNDEFINED)
    plug = registry.load("metric", metric)
    score = _score_from(plug, row.runs[0].sums[WHOLE][target].origin)
    own_SGK = _grouped(_stack(row.runs, target), row.runs[0], unit)
    interval = statistics.bootstrap_interval(own_SGK, score, seed=seed, scale=plug.scale)
    runs = {item.record.seed: item for item in row.runs}
    rivals = {} if rival is None or rival is row else {item.record.seed: item for item in rival.runs}
    common = sorted(runs.keys() & rivals.keys())
    if not common or not are_paired([*row.runs, *rivals.values()]):
        return Comparison(interval)
    row_SRK = _stack([runs[number] for number in common], target)
    rival_SRK = _stack([rivals[number] for number in common], target)
    row_SGK, rival_SGK = (_grouped(sums_SRK, row.runs[0], unit) for sums_SRK in (row_SRK, rival_SRK))
    return Comparison(
        interval=interval,
        gain=float(np.mean(score(row_SRK.sum(axis=1)) - score(rival_SRK.sum(axis=1)))),
        gain_interval=statistics.bootstrap_difference(row_SGK, rival_SGK, score, seed=seed),
        p=statistics.paired_permutation(row_SGK, rival_SGK, score, seed=seed),
        num_common=len(common),
    )


def _score_from(plug: Metric, origin: tuple[float, float]) -> Callable[[FloatArray], FloatArray]:
    return lambda values: plug.of(Sums(values, origin))


def are_paired(runs: Sequence[ScoredRun]) -> bool:
    """Whether runs were scored on the same frames of the same recordings."""
    first = runs[0]
    return all(item.recordings == first.recordings and _scored_on(item) == _scored_on(first) for item in runs)


def _scored_on(run: ScoredRun) -> list[tuple[tuple[float, float], list[float]]]:
    """Return, for each target, the origin of the sums and the number of frames of each recording."""
    return [(sums.origin, sums.num.tolist()) for sums in run.sums[WHOLE].values()]


def _stack(runs: Sequence[ScoredRun], target: str) -> FloatArray:
    """Return the sums of all runs, (S, R, K)."""
    return np.stack([item.sums[WHOLE][target].values for item in runs])


def _group_names(run: ScoredRun, unit: str) -> tuple[str, ...]:
    return run.subjects if unit == "subjects" else run.recordings


def _grouped(sums_SRK: FloatArray, run: ScoredRun, unit: str) -> FloatArray:
    """Add the recordings of each subject up: (S, R, K) to (S, G, K)."""
    names = _group_names(run, unit)
    places: Mapping[str, int] = {name: place for place, name in enumerate(dict.fromkeys(names))}
    member_GR = np.zeros((len(places), len(names)))
    member_GR[[places[name] for name in names], np.arange(len(names))] = 1.0
    return np.asarray(np.einsum("gr,srk->sgk", member_GR, sums_SRK))
