"""What an engine costs: tiny recordings through each of them, against a loop that commits the same recordings.

Every recording is one clip of random features, without networks and without a video, committed to a feature cache as
an extraction does. Shares are processes that know nothing of each other and write into one folder, as in a job array.
In the end all caches must hold the same bytes. The engine's own cost is measured once more, with recordings of which
nothing is committed, from the first that is done to the last; the time until the first is the start.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import avfuse  # noqa: F401  sets what must be set before torch is imported

# isort: split
from kill_extract import content

from avfuse import registry
from avfuse.engines.local import num_cores
from avfuse.schema import Recording, ReportTable
from avfuse.terminal import print_json, print_table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from commits import CommitJob
from machine import describe_machine, positive, read_arguments

NUM_SHARES = 4
MAX_LOOP = 1000  # recordings of the loop, whose time per recording does not depend on their number


def make_recordings(number: int) -> list[Recording]:
    """Return recordings that stand for themselves."""
    return [Recording(f"{i:06d}", Path(f"{i}.mp4"), "train", f"{i}") for i in range(number)]


def loop(home: Path, recordings: Sequence[Recording]) -> None:
    """Commit recordings one after the other, with nothing around it."""
    worker = CommitJob(home)(0)
    for recording in recordings:
        worker.process(recording, lambda *_: None)


def run(engine: str, job: CommitJob, recordings: Sequence[Recording], num_workers: int) -> tuple[float, float]:
    """Put recordings through an engine; return when the first was done and when the last, in seconds."""
    started_s = time.perf_counter()
    first_s = last_s = 0.0
    seen: set[str] = set()
    for receipt in registry.load("engine", engine)().run(job, recordings, num_workers, lambda *_: None):
        last_s = time.perf_counter() - started_s
        first_s = first_s or last_s
        if receipt.outcome != "extracted" or receipt.recording in seen:
            sys.exit(f"bench_engines: {engine} says {receipt}")
        seen.add(receipt.recording)
    if len(seen) != len(recordings):
        sys.exit(f"bench_engines: {engine} tells of {len(seen)} of {len(recordings)} recordings")
    return first_s, last_s


def run_shares(job: CommitJob, recordings: Sequence[Recording], num_workers: int) -> None:
    """Put recordings through processes that know nothing of each other."""
    spawn = multiprocessing.get_context("spawn")
    shares = [spawn.Process(target=run, args=("serial", job, recordings[i::NUM_SHARES], 1)) for i in range(NUM_SHARES)]
    for share in shares:
        share.start()
    for share in shares:
        share.join()
    if any(share.exitcode for share in shares):
        sys.exit("bench_engines: a share failed")


def time_of(action: Callable[[], Any]) -> tuple[float, Any]:
    """Return how long something took in seconds, and what came of it."""
    started_s = time.perf_counter()
    found = action()
    return time.perf_counter() - started_s, found


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what each engine took; end with an error where the caches differ."""
    recordings = make_recordings(arguments.recordings)
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        home = Path(name)
        sample = recordings[:MAX_LOOP]
        loop_s, _ = time_of(lambda: loop(home / "loop", sample))
        loop_ms = 1000 * loop_s / len(sample)
        held: dict[str, str] = {}
        for engine in arguments.engine or (*registry.ENGINES, "shares"):
            job, empty = CommitJob(home / engine), CommitJob(home / "none", commits=False)
            given = recordings, arguments.workers
            if engine == "shares":
                wall_s, _ = time_of(lambda job=job, given=given: run_shares(job, *given))
            else:
                wall_s, _ = time_of(lambda engine=engine, job=job, given=given: run(engine, job, *given))
            found[engine] = {
                "wall_s": wall_s,
                "recordings_per_s": len(recordings) / wall_s,
                "ms_per_recording": 1000 * wall_s / len(recordings),
            }
            if engine != "shares":
                first_s, last_s = run(engine, empty, *given)
                alone_ms = 1000 * (last_s - first_s) / len(recordings)
                found[engine] |= {"start_s": first_s, "engine_ms_per_recording": alone_ms}
            there = content(home / engine)
            num_there = sum(path.startswith("recordings/") and path.count("/") == 2 for path in there)
            if num_there != len(recordings) or (held and there != held):
                sys.exit(f"bench_engines: the cache of {engine} holds {num_there} recordings, or other bytes")
            held = there
            shutil.rmtree(home / engine)
    return {"loop_ms_per_recording": loop_ms, "engines": found, "machine": describe_machine()}


def main() -> None:
    """Print the table, or one object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recordings", type=positive, default=10_000)
    parser.add_argument("--workers", type=positive, default=num_cores())
    parser.add_argument(
        "--engine", action="append", choices=(*registry.ENGINES, "shares"), help="only this; repeatable"
    )
    arguments = read_arguments(parser)
    found = measure(arguments)
    if arguments.json:
        print_json(found)
        return
    rows = tuple(
        (
            engine,
            f"{item['wall_s']:.1f}",
            f"{item['recordings_per_s']:.1f}",
            f"{item['ms_per_recording']:.1f}",
            f"{item['ms_per_recording'] - found['loop_ms_per_recording']:+.1f}",
            *(f"{item[name]:.2f}" if name in item else "-" for name in ("engine_ms_per_recording", "start_s")),
        )
        for engine, item in found["engines"].items()
    )
    columns = ("engine", "s", "recordings/s", "ms each", "to the loop, ms", "engine alone, ms", "start, s")
    notes = (
        f"a commit in a loop takes {found['loop_ms_per_recording']:.1f} ms; {arguments.workers} workers, "
        f"{NUM_SHARES} shares; all caches hold the same bytes",
        found["machine"],
    )
    print_table(ReportTable(f"{arguments.recordings:,} tiny recordings", columns, rows, (), notes))


if __name__ == "__main__":
    main()
