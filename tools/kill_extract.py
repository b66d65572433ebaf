"""Kill an extraction without warning at random moments, and show that nothing broken is ever left.

A small demo corpus is extracted twice: once without a break, and once with SIGKILLs at random moments. What is killed
depends on the engine: of ``local`` the process that was started, or one of its workers; of ``ray`` a worker, the
process that was started, or a machine of a cluster of two on this one; of ``shards`` one of three extractions that
share a folder. What was killed is started again, and where nothing is left to do, recordings are taken away. After
every kill the store is verified as by ``avfuse cache verify``. In the end ``--retry-failed`` completes it, and the two
stores must hold the same bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from avfuse.cache import FeatureCache
from avfuse.demo import demo
from avfuse.options import DemoOptions
from avfuse.schema import UsageError
from avfuse.verification import verify_store

WEIGHTS = ("--video-weights", "random:0", "--audio-weights", "random:0")
NUM_SHARES, NUM_WORKERS = 3, 2
ORPHAN_S = 10.0  # a worker must have ended by then after its parent
MIDWAY_SHARE, WRITING_S = 0.75, 1.5  # of the kills, and about how long a recording is written
DONE = (0, 3)  # exit codes: all is there, or some recordings could not be used


def content(cache: Path) -> dict[str, str]:
    """Return the digest of every file of the store, by its path."""
    store = FeatureCache.find(cache).path
    files = [path for path in Path(store).rglob("*") if path.is_file()]
    return {str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def asides(cache: Path) -> list[Path]:
    """Return the recordings that are being written, or were when their writer was killed."""
    return [path for path in cache.glob("features/*.tmp/*") if path.is_dir()]


def start_extract(corpus: Path, cache: Path, *more: str) -> subprocess.Popen[bytes]:
    """Start `avfuse extract` in a process of its own."""
    command = [sys.executable, "-m", "avfuse", "-q", "extract", str(corpus), "--cache", str(cache), *WEIGHTS, "--json"]
    return subprocess.Popen([*command, "--retry-failed", *more], stdout=subprocess.DEVNULL)


def extract_to_the_end(corpus: Path, cache: Path) -> float:
    """Extract without a break; return the seconds that it took."""
    started_s = time.monotonic()
    if start_extract(corpus, cache).wait():
        sys.exit("kill_extract: an extraction that nobody killed failed")
    return time.monotonic() - started_s


def processes() -> dict[int, tuple[int, str]]:
    """Return the parent and the command line of every process that lives."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if state != "Z":
                found[int(folder.name)] = int(parent), command
    return found


def below(ancestor: int, having: str) -> list[int]:
    """Return the processes below one whose command line has a word."""
    there = processes()

    def ancestors(pid: int) -> Iterator[int]:
        while pid in there:
            pid = there[pid][0]
            yield pid

    return [pid for pid, (_, command) in there.items() if having in command and ancestor in ancestors(pid)]


class Site:
    """Extractions that run side by side into one cache, and what of them can be killed.

    Without anything else, that is one extraction by local processes.
    """

    def __init__(self, corpus: Path, cache: Path, rng: random.Random) -> None:
        self.corpus, self.cache, self.rng = corpus, cache, rng
        self.commands = [self.engine_options()]
        self.running: dict[int, subprocess.Popen[bytes]] = {}
        self.problems: list[str] = []

    def engine_options(self) -> tuple[str, ...]:
        """Return what chooses the engine."""
        return "--engine", "local", "--num-workers", f"{NUM_WORKERS}"

    def workers(self) -> list[int]:
        """Return the processes of workers."""
        return [pid for run in self.running.values() for pid in below(run.pid, "spawn_main")]

    def victims(self) -> dict[str, list[int]]:
        """Return what can be killed, by its kind."""
        return {"driver": [run.pid for run in self.running.values()], "worker": self.workers()}

    def keep_going(self) -> None:
        """Start what does not run; where nothing is left to do, take a recording away before."""
        for number, command in enumerate(self.commands):
            run = self.running.get(number)
            if run is not None and run.poll() is None:
                continue
            if run is not None and run.returncode in DONE:
                self.take_away()
            elif run is not None and run.returncode != -signal.SIGKILL:
                self.problems.append(f"exit code {run.returncode}")
            self.running[number] = start_extract(self.corpus, self.cache, *command)

    def take_away(self) -> None:
        """Remove half of the recordings, so that there is work to be killed at."""
        with contextlib.suppress(UsageError):
            store = FeatureCache.find(self.cache)
            names = store.names()
            if len(names) == sum(1 for _ in self.corpus.glob("videos/*")):
                for name in self.rng.sample(names, -(-len(names) // 2)):
                    store.remove(name)

    def kill(self) -> str | None:
        """Kill something; return what it was, if there was anything."""
        there = {kind: pids for kind, pids in self.victims().items() if pids}
        if not there:
            return None
        kind = self.rng.choice([kind for kind in sorted(there) for _ in range(1 if kind == "driver" else 3)])
        pid = self.rng.choice(there[kind])
        workers = self.workers() if kind == "driver" else []
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        self.tidy(kind, workers)
        return kind

    def tidy(self, kind: str, workers: list[int]) -> None:
        """See that nothing outlives what was killed."""
        for run in self.running.values():
            if kind in ("driver", "share"):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    run.wait(0.1)
        end_s = time.monotonic() + ORPHAN_S
        while left := set(workers) & set(processes()):
            if time.monotonic() > end_s:
                self.problems.append(f"workers live on without their parent: {left}")
                return
            time.sleep(0.05)

    def close(self) -> None:
        """Let what runs end by itself."""
        for run in self.running.values():
            if run.wait() not in (*DONE, -signal.SIGKILL):
                self.problems.append(f"exit code {run.returncode} at the end")


class SharesSite(Site):
    """Extractions that know nothing of each other."""

    def __init__(self, corpus: Path, cache: Path, rng: random.Random) -> None:
        super().__init__(corpus, cache, rng)
        shares = [f"{i + 1}/{NUM_SHARES}" for i in range(NUM_SHARES)]
        self.commands = [("--engine", "serial", "--shard", share) for share in shares]

    def victims(self) -> dict[str, list[int]]:
        """Return the extractions."""
        return {"share": [run.pid for run in self.running.values() if run.poll() is None]}


class RaySite(Site):
    """One extraction on a cluster of two machines, both of which are this one."""

    def __init__(self, corpus: Path, cache: Path, rng: random.Random) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        from ray.cluster_utils import Cluster

        self.room: dict[str, Any] = {"num_cpus": NUM_WORKERS, "num_gpus": 0, "object_store_memory": 10**8}
        self.cluster = Cluster(initialize_head=True, head_node_args={**self.room, "include_dashboard": False})
        self.node = self.cluster.add_node(**self.room)
        super().__init__(corpus, cache, rng)

    def engine_options(self) -> tuple[str, ...]:
        """Return what joins the cluster; two workers fit on one machine, so that the other may be lost."""
        address = f"address={self.cluster.address}"
        return "--engine", "ray", "--engine-option", address, "--num-workers", f"{NUM_WORKERS + 1}"

    def workers(self) -> list[int]:
        """Return the processes of actors."""
        return below(os.getpid(), "ray::_Post")

    def victims(self) -> dict[str, list[int]]:
        """Return what can be killed, the daemon of the second machine among it."""
        return super().victims() | {"node": [self.node.all_processes["raylet"][0].process.pid]}

    def tidy(self, kind: str, workers: list[int]) -> None:
        """Bring up another machine for one that was lost."""
        super().tidy(kind, workers)
        if kind == "node":
            self.cluster.remove_node(self.node, allow_graceful=False)
            self.node = self.cluster.add_node(**self.room)

    def close(self) -> None:
        """End the cluster, too."""
        super().close()
        self.cluster.shutdown()


SITES = {"local": Site, "ray": RaySite, "shards": SharesSite}


def check(site: Site) -> tuple[int, int, list[str]]:
    """Return how many recordings are whole, how many are being written, and what is broken."""
    try:
        store = FeatureCache.find(site.cache)
    except UsageError:  # nobody came to make it
        return 0, 0, []
    damages = [damage.path for damage in verify_store(store.store).damages]
    names = store.names()
    twice = [name for name, count in Counter(names).items() if count > 1]
    return len(names), len(asides(site.cache)), damages + twice


def wait(site: Site, whole_s: float) -> None:
    """Wait for the moment of a kill: any, or one soon after a recording is seen to be written."""
    moment_s = site.rng.uniform(0, whole_s)
    if site.rng.random() < MIDWAY_SHARE:
        end_s = time.monotonic() + 2 * whole_s
        while not asides(site.cache) and time.monotonic() < end_s:
            time.sleep(0.01)
        moment_s = site.rng.uniform(0, WRITING_S)
    time.sleep(moment_s)


def kill_often(site: Site, num_kills: int, whole_s: float) -> Counter[str]:
    """Kill as often as that, mostly while a recording is being written; return how often what was killed."""
    counts: Counter[str] = Counter()
    while counts["kills"] < num_kills:
        site.keep_going()
        wait(site, whole_s)
        num_left = len(asides(site.cache))
        kind = site.kill()
        if kind is None:
            continue
        num_whole, _, broken = check(site)
        counts.update({"kills": 1, kind: 1, "midway": num_left > 0, "broken": len(broken)})
        print(f"kill {counts['kills']:3d}, {kind}: {num_whole} whole, {len(broken)} broken {broken or ''}", flush=True)
    return counts


def main() -> int:
    """Run the two extractions and compare them; return 1 when anything is broken or differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", choices=SITES, default="local", help="what is killed")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--recordings", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        corpus, whole, killed = (Path(name) / part for part in ("corpus", "whole", "killed"))
        demo(DemoOptions(root=corpus, subjects=arguments.recordings, duration_s=5.0))
        whole_s = extract_to_the_end(corpus, whole)
        site = SITES[arguments.engine](corpus, killed, random.Random(arguments.seed))
        try:
            counts = kill_often(site, arguments.kills, whole_s)
        finally:
            site.close()
        extract_to_the_end(corpus, killed)
        equal, clean = content(whole) == content(killed), not asides(killed)
    kinds = ", ".join(
        f"{kind} {number}" for kind, number in counts.items() if kind in ("driver", "worker", "share", "node")
    )
    print(f"{counts['kills']} kills ({kinds}), {counts['midway']} while a recording was written")
    print(f"broken things: {counts['broken']}; other problems: {'; '.join(site.problems) or 'none'}")
    print(f"finished cache equal to one made without a break: {equal}; left-overs swept: {clean}")
    return int(counts["broken"] > 0 or bool(site.problems) or not equal or not clean)


if __name__ == "__main__":
    sys.exit(main())
