"""Time the statistics of a report against naive loops, and measure how far they can be trusted.

Without options: an interval of 10,000 resamples over 60 and over 300 subjects, and a permutation test of as many
exchanges, against loops that concatenate the frames of every resample and score them anew. Both give the scores of the
same resamples, which are compared; the exit status is 1 if they differ. The loops are run for fewer resamples, and
their time is multiplied. With --coverage, --errors or --frames, simulated subjects whose population is known
(`tests/simulated.py`) say how often intervals hold the true score, how often the test finds a difference that is not
there, and how much narrower an interval over frames is.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy
from scipy import stats

from avfuse import statistics
from avfuse.metrics import Sums, gather_groups
from avfuse.metrics.ccc import ccc
from avfuse.schema import ReportTable
from avfuse.terminal import print_table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from simulated import Head, draw, extreme, strong, weak

Values = npt.NDArray[np.float64]
Pairs = list[tuple[Values, Values]]
NUM_RESAMPLES, NUM_LOOPS, TOLERANCE = 10_000, 200, 1e-9
TRIAL_RESAMPLES, NUM_EXCHANGES = 999, 399
SUBJECTS, CONCORDANCES = (5, 8, 12, 20, 40, 100), (0.3, 0.6, 0.85)
KINDS: dict[str, Callable[[float], Head]] = {"weak": weak, "strong": strong, "extreme": extreme}


def gather(pairs: Pairs, *shape: int) -> tuple[Values, statistics.Score]:
    """Return the sums of pairs, of a shape and (..., 9), and the CCC as a score of such sums."""
    sums = gather_groups(pairs)
    return sums.values.reshape(*shape, -1), lambda values: ccc.of(Sums(values, sums.origin))


def timed(work: Callable[[], Values]) -> tuple[float, Values]:
    """Return the seconds that a piece of work takes, and what it gives."""
    started_s = time.perf_counter()
    found = work()
    return time.perf_counter() - started_s, found


def loop(pairs: Pairs, drawn_NG: npt.NDArray[np.int64]) -> Values:
    """Return the CCC of every resample by concatenating its frames."""
    scores = []
    for drawn_G in drawn_NG:
        prediction, target = (np.concatenate([pairs[group][side] for group in drawn_G]) for side in (0, 1))
        scores.append(ccc(prediction, target))
    return np.array(scores)


def time_both(num_subjects: int) -> Iterator[dict[str, object]]:
    """Yield what interval and permutation test of so many subjects take, and their loops.

    Raises
    ------
    ArithmeticError
        If sums and frames give different scores of the same resamples.
    """
    generator = np.random.default_rng(num_subjects)
    row = draw(generator, num_subjects, [strong(0.6)])
    rival = [(0.5 * prediction, target) for prediction, target in row]
    sums_RGK, score = gather(row + rival, 2, num_subjects)
    drawn_NG = generator.integers(0, num_subjects, (NUM_LOOPS, num_subjects))
    swapped_NG = generator.integers(0, 2, (NUM_LOOPS, num_subjects))
    first_NG = np.arange(num_subjects) + num_subjects * swapped_NG
    second_NG = np.arange(num_subjects) + num_subjects * (1 - swapped_NG)
    interval_s, _ = timed(lambda: statistics.bootstrap_interval(sums_RGK[:1], score, seed=0, scale="correlation"))
    test_s, _ = timed(lambda: statistics.paired_permutation(sums_RGK[:1], sums_RGK[1:], score, seed=0))
    slow_s, slow = timed(lambda: loop(row, drawn_NG))
    slow_test_s, slow_test = timed(lambda: loop(row + rival, first_NG) - loop(row + rival, second_NG))
    flat = sums_RGK.reshape(2 * num_subjects, -1)
    fast = score(flat[drawn_NG].sum(axis=1))
    fast_test = score(flat[first_NG].sum(axis=1)) - score(flat[second_NG].sum(axis=1))
    difference = max(np.abs(slow - fast).max(), np.abs(slow_test - fast_test).max())
    if not difference <= TOLERANCE:
        raise ArithmeticError(f"{num_subjects} subjects: sums and frames give scores that differ by {difference:.1e}")
    for what, fast_s, loop_s in (("interval", interval_s, slow_s), ("permutation test", test_s, slow_test_s)):
        loop_s *= NUM_RESAMPLES / NUM_LOOPS
        yield {"what": what, "subjects": num_subjects, "seconds": fast_s, "loop_s": loop_s, "ratio": loop_s / fast_s}


def scipys(sums_GK: Values, score: statistics.Score, seed: int, method: str) -> tuple[float, float]:
    """Return SciPy's own interval over groups."""
    found = stats.bootstrap(
        (np.arange(len(sums_GK)),),
        lambda drawn, axis: score(sums_GK[drawn].sum(axis=-2)),
        n_resamples=TRIAL_RESAMPLES,
        method=method,
        rng=np.random.default_rng(seed),
    )
    return tuple(found.confidence_interval)


def cover(kind: str, concordance: float, num_subjects: int, trials: int) -> dict[str, object]:
    """Return how often intervals of 95 % hold the concordance of the population, in percent."""
    generator = np.random.default_rng([num_subjects, round(100 * concordance)])
    held = {"percentile": 0, "BCa": 0, "bootstrap-t": 0}
    below = above = 0
    for trial in range(trials):
        sums_SGK, score = gather(draw(generator, num_subjects, [KINDS[kind](concordance)]), 1, num_subjects)
        for method in ("percentile", "BCa"):
            low, high = scipys(sums_SGK[0], score, trial, method)
            held[method] += low <= concordance <= high
        interval = statistics.bootstrap_interval(
            sums_SGK, score, seed=trial, num_resamples=TRIAL_RESAMPLES, scale="correlation"
        )
        held["bootstrap-t"] += interval.low <= concordance <= interval.high
        below, above = below + (concordance < interval.low), above + (concordance > interval.high)
    shares = {method: 100 * count / trials for method, count in held.items()}
    sides = {"true_below": 100 * below / trials, "true_above": 100 * above / trials}
    return {"variation": kind, "ccc": concordance, "subjects": num_subjects, **shares, **sides}


def find_nothing(
    kinds: tuple[str, str], num_subjects: int, per_subject: int, trials: int, by_subject: bool = False
) -> dict[str, object]:
    """Return how often the test finds a difference between heads of the same concordance, in percent."""
    num_recordings = num_subjects * per_subject
    generator = np.random.default_rng(num_recordings)
    heads = [KINDS[kind](0.6) for kind in kinds]
    found = 0
    for trial in range(trials):
        sums_RGK, score = gather(draw(generator, num_subjects, heads, per_subject), 2, 1, num_recordings)
        if by_subject:
            sums_RGK = sums_RGK.reshape(2, 1, num_subjects, per_subject, -1).sum(axis=3)
        found += statistics.paired_permutation(*sums_RGK, score, seed=trial, num_resamples=NUM_EXCHANGES) <= 0.05
    names = {"heads": " and ".join(kinds), "subjects": num_subjects, "recordings": num_recordings}
    return {**names, "exchanged": "subjects" if by_subject else "recordings", "found": 100 * found / trials}


def resample_frames(kind: str, num_subjects: int, trials: int) -> dict[str, object]:
    """Return how much narrower intervals over frames are than those over subjects, and how often they hold."""
    generator = np.random.default_rng(num_subjects)
    ratios, held = [], 0
    for trial in range(trials):
        pairs = draw(generator, num_subjects, [KINDS[kind](0.6)])
        prediction, target = (np.concatenate(values) for values in zip(*pairs, strict=True))
        frames = list(zip(prediction.reshape(-1, 1), target.reshape(-1, 1), strict=True))
        widths = []
        for groups in (frames, pairs):
            sums_SGK, score = gather(groups, 1, len(groups))
            interval = statistics.bootstrap_interval(sums_SGK, score, seed=trial, num_resamples=TRIAL_RESAMPLES)
            widths.append(interval.high - interval.low)
            held += groups is frames and interval.low <= 0.6 <= interval.high
        ratios.append(widths[1] / widths[0])
    factor = float(np.median(ratios))
    return {"variation": kind, "subjects": num_subjects, "narrower": factor, "held": 100 * held / trials}


def measure(arguments: argparse.Namespace) -> Iterator[tuple[str, list[dict[str, object]]]]:
    """Yield the tables that are asked for: title and records."""
    if trials := arguments.coverage:
        conditions = [(kind, value, num) for kind in KINDS for value in CONCORDANCES for num in SUBJECTS]
        yield f"Intervals of 95 % that hold the CCC, % of {trials}", [cover(*item, trials) for item in conditions]
    if trials := arguments.errors:
        alike = [((kind, kind), num, 1, trials) for kind in ("weak", "strong") for num in (6, 8, 12, 20, 60)]
        unlike = [(("weak", "strong"), num, 1, trials) for num in (12, 20, 60)]
        nested = [(("strong", "strong"), 20, 3, trials, by_subject) for by_subject in (False, True)]
        records = [find_nothing(*item) for item in (*alike, *unlike, *nested)]
        yield f"Tests at 5 % of heads that are equally good, % of {trials} that find a difference", records
    if trials := arguments.frames:
        records = [resample_frames(kind, num, trials) for kind in ("weak", "strong") for num in (20, 60)]
        yield f"Intervals over frames against those over subjects, median of {trials}", records
    if not (arguments.coverage or arguments.errors or arguments.frames):
        title = f"{NUM_RESAMPLES:,} resamples, and loops that concatenate frames"
        yield title, [record for num_subjects in (60, 300) for record in time_both(num_subjects)]


def shown(value: object) -> str:
    """Return a value as a cell."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--coverage", type=int, default=0, metavar="TRIALS", help="how often intervals hold")
    parser.add_argument("--errors", type=int, default=0, metavar="TRIALS", help="how often the test finds nothing real")
    parser.add_argument("--frames", type=int, default=0, metavar="TRIALS", help="how narrow intervals over frames are")
    parser.add_argument("--json", action="store_true", help="print one object for other programs")
    arguments = parser.parse_args()
    versions = {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__}
    try:
        tables = dict(measure(arguments))
    except ArithmeticError as error:
        sys.exit(f"bench_statistics: {error}")
    if arguments.json:
        print(json.dumps({"versions": versions, "tables": tables}, indent=2))
        return 0
    notes = (", ".join(f"{name} {version}" for name, version in versions.items()),)
    for title, records in tables.items():
        rows = tuple(tuple(map(shown, record.values())) for record in records)
        print_table(ReportTable(title, tuple(records[0]), rows, tuple(records), notes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
