"""Kill an extraction without warning at random moments, and show that nothing broken is ever left.

A small demo corpus is extracted twice: once without a break, and once with SIGKILLs at random moments, each followed by
a new start. After every kill the store is verified as by ``avfuse cache verify``; at the end the two stores must hold
the same bytes.
"""

import argparse
import hashlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from avfuse.cache import FeatureCache
from avfuse.demo import demo
from avfuse.options import DemoOptions
from avfuse.verification import verify_store

WEIGHTS = ("--video-weights", "random:0", "--audio-weights", "random:0")


def start_extract(corpus: Path, cache: Path) -> subprocess.Popen[bytes]:
    """Start `avfuse extract` in a process of its own."""
    command = [sys.executable, "-m", "avfuse", "-q", "extract", str(corpus), "--cache", str(cache), *WEIGHTS, "--json"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def extract_to_the_end(corpus: Path, cache: Path) -> float:
    """Extract without a break; return the seconds that it took."""
    started_s = time.monotonic()
    if start_extract(corpus, cache).wait():
        sys.exit("extract failed")
    return time.monotonic() - started_s


def asides(cache: Path) -> list[Path]:
    """Return the recordings that are being written, or were when their writer was killed."""
    return [path for path in cache.glob("features/*.tmp/*") if path.is_dir()]


def broken(cache: Path) -> list[str]:
    """Return what of the store is not what it says it is."""
    return [damage.path for damage in verify_store(FeatureCache.find(cache).store).damages]


def content(cache: Path) -> dict[str, str]:
    """Return the digest of every file of the store, by its path."""
    store = FeatureCache.find(cache).path
    files = [path for path in store.rglob("*") if path.is_file()]
    return {str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def kill_at(moment_s: float, corpus: Path, cache: Path) -> bool:
    """Start, wait for the first sign of work, and kill `moment_s` later; return whether it was still running."""
    process = start_extract(corpus, cache)
    before = set(asides(cache))
    while process.poll() is None and not set(asides(cache)) - before:
        time.sleep(0.01)
    try:
        process.wait(timeout=moment_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
    return False


def main() -> int:
    """Run the two extractions and compare them; return 1 when anything is broken or differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--recordings", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    num_broken = num_midway = kills = 0
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        corpus, whole, killed = home / "corpus", home / "whole", home / "killed"
        demo(DemoOptions(root=corpus, subjects=arguments.recordings, duration_s=5.0))
        whole_s = extract_to_the_end(corpus, whole)
        recording_s = whole_s / arguments.recordings
        while kills < arguments.kills:
            if not kill_at(rng.uniform(0, 2 * recording_s), corpus, killed):
                # It was done before the moment came: take something away, so that there is work to be killed at.
                store = FeatureCache.find(killed)
                store.remove(rng.choice(store.recordings()).name)
                continue
            kills += 1
            left, damaged = len(asides(killed)), broken(killed)
            num_midway += bool(left)
            num_broken += len(damaged)
            num_whole = len(FeatureCache.find(killed).recordings())
            print(f"kill {kills:2d}: {num_whole} whole, {len(damaged)} broken, {left} left-over", flush=True)
        extract_to_the_end(corpus, killed)
        equal = content(whole) == content(killed)
        clean = not asides(killed)
        shutil.rmtree(home / "corpus")
    print(f"{kills} kills, {num_midway} in the middle of a recording; broken things: {num_broken}")
    print(f"finished cache equal to one made without a break: {equal}; left-overs swept: {clean}")
    return int(num_broken > 0 or not equal or not clean)


if __name__ == "__main__":
    sys.exit(main())
