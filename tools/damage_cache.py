"""Damage a copy of a feature cache at random, and show that nobody is ever given a value that was not written.

One thing is damaged at a time: a byte changed, a file cut, removed, lengthened by a byte, or one added that nobody
wrote. `avfuse cache verify` must then find it, and what training reads must be refused, or be the values that were
written; then it is mended. Given no cache, small ones are made, as halves and as bytes, mapped and compressed, of one
view and of two, and one in HDF5. In such a file bytes that nothing is stored in may change unnoticed: h5py must then
read everything in it as it was.
"""

import argparse
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from avfuse.cache import FeatureCache, locate, open_store
from avfuse.cache_options import CacheExportOptions
from avfuse.cached import RECORDINGS, CachedRecording
from avfuse.clips import digest_of
from avfuse.hdf5 import export_cache
from avfuse.schema import Failure, UsageError
from avfuse.spec import CacheSpec, Source
from avfuse.stores import Store
from avfuse.verification import verify_store
from avfuse.writer import RecordingWriter

KINDS = ("changed", "cut", "removed", "lengthened", "added")
TOYS: dict[str, dict[str, Any]] = {
    "halves": {},
    "bytes, compressed, two views": {"dtype": "uint8", "compress": "zstd", "views": 2},
    "halves, pooled, compressed": {"maps": "pooled", "compress": "zstd"},
}


@dataclass(frozen=True)
class Change:
    """What was damaged: how, where, the group that it is in ("" beside all groups), and what mends it."""

    kind: str
    file: Path
    group: str
    told: str
    mend: Callable[[], None]


class Harness:
    """A store that is damaged, and what it held before."""

    def __init__(self, store: Store, rng: random.Random) -> None:
        self.store, self.rng = store, rng
        self.top = Path(store.location)
        self.is_one_file = store.files("") is None
        self.root = store.metadata("")
        self.groups = store.groups(RECORDINGS)
        self.held = {group: read(store, group) for group in self.groups}
        self.in_hdf5 = read_hdf5(self.top) if self.is_one_file else None
        if verify_store(store).damages:
            sys.exit(f"{store.location} is damaged before anything was done to it")

    def damage(self) -> Change:
        """Damage one thing; of the files of a folder each is as likely as any other."""
        files = [self.top] if self.is_one_file else [path for path in sorted(self.top.rglob("*")) if path.is_file()]
        file = self.rng.choice(files)
        kind = self.rng.choice(KINDS[:2] + KINDS[3:4] if self.is_one_file else KINDS)
        if kind == "added":
            file = file.with_name(self.rng.choice(("0", "1", "9", "zarr.json", ".zarr.json", "stray")))
            while file.exists():
                file = file.with_name(f"{file.name}{self.rng.randrange(10)}")
        before = file.read_bytes() if file.exists() else None
        told = damage_file(file, kind, before or b"", self.rng)

        def mend() -> None:
            if before is None:
                file.unlink()
            else:
                file.write_bytes(before)

        parts = file.relative_to(self.top).parts
        group = "/".join(parts[:2]) if len(parts) > 2 else ""
        return Change(kind, file, group, told, mend)

    def is_found(self, change: Change) -> bool:
        """Whether verifying the root, the containers and the group that was damaged finds something."""
        store = open_store(self.store.location)
        return bool(verify_store(store, None if self.is_one_file else [change.group], num_workers=1).damages)

    def is_harmless(self) -> bool:
        """Whether h5py reads all of the file as it was, every chunk with its checksum."""
        return self.is_one_file and read_hdf5(self.top) == self.in_hdf5

    def outcome(self, change: Change) -> str:
        """Read the store as training does: "refused", "equal", or what was given that had not been written."""
        try:
            opened = FeatureCache.open(self.store.location)
            if opened.store.metadata("") != self.root:
                return "other settings"
            opened.recordings()
            opened.ledger.failures()
            outcome = "equal"
        except UsageError:
            outcome = "refused"
        # Further on, past the first refusal: each reader by itself gives what was written, or nothing.
        store = open_store(self.store.location)
        for group in self.groups if self.is_one_file else [change.group] if change.group in self.held else []:
            for name, value in read(store, group).items():
                if value is None:
                    outcome = "refused"
                elif value != self.held[group].get(name):
                    return f"another {name} of {group}"
        return outcome


def damage_file(file: Path, kind: str, before: bytes, rng: random.Random) -> str:
    """Damage a file, and say how."""
    place = rng.randrange(max(1, len(before)))
    if kind == "removed":
        file.unlink()
        return kind
    if kind == "added":
        file.write_bytes(rng.randbytes(rng.choice((0, 1, 40))))
        return kind
    if kind == "cut" or not before:
        file.write_bytes(before[:place] if before else b"\0")
        return f"{kind} to {place} of {len(before)} bytes"
    if kind == "lengthened":
        place = rng.choice((0, place, len(before)))
        file.write_bytes(before[:place] + rng.randbytes(1) + before[place:])
    else:
        byte = rng.choice((before[place] ^ (1 << rng.randrange(8)), rng.randrange(256), 0, 255))
        byte = byte if byte != before[place] else byte ^ 1
        file.write_bytes(before[:place] + bytes([byte]) + before[place + 1 :])
    return f"{kind} at byte {place}"


def read(store: Store, group: str) -> dict[str, Any]:
    """Read a recording as training does; what is refused is None."""
    item = CachedRecording(store, group)
    found: dict[str, Any] = {"attributes": item.attributes or None}
    if not item.attributes:
        return found
    for number in range(item.num_views):
        found[f"view {number}"] = _values(lambda number=number: _view(item, number))
    for name in item.arrays:
        if not name.startswith("video") or name in ("video_scale", "video_offset"):
            found[name] = _values(lambda name=name: item.array(name))
    return found


def read_hdf5(file: Path) -> dict[str, Any] | None:
    """Return all attributes and values of a file as plain h5py reads them, by their paths; None if it cannot."""
    found: dict[str, Any] = {}

    def take(name: str, item: Any) -> None:
        found[name] = {key: str(value) for key, value in item.attrs.items()}
        if isinstance(item, h5py.Dataset):
            found[f"{name}/"] = (item.shape, item.dtype.str, item.chunks, digest_of(np.ascontiguousarray(item[()])))

    try:
        with h5py.File(file, "r") as opened:
            take("", opened["/"])
            opened.visititems(take)
    except (OSError, ValueError, LookupError, TypeError, RuntimeError):
        return None
    return found


def _view(item: CachedRecording, number: int) -> np.ndarray[Any, Any]:
    item.check(number)
    return np.concatenate([np.array(values) for values in item.view(number).chunks()])


def _values(give: Callable[[], Any]) -> tuple[Any, ...] | None:
    try:
        values = give()
    except UsageError:
        return None
    return values.shape, values.dtype.name, digest_of(values)


def make_toy(home: Path, dtype: str = "float16", maps: str = "whole", views: int = 1, compress: str = "none") -> Store:
    """Make a small cache: three recordings, one of them in two chunks, and a failure."""
    shape = (8, 2, 2) if maps == "whole" else (8, 1, 1)
    spec = CacheSpec(
        "toy", "folder", ("valence",), {}, {}, {"hop": 8}, {}, {}, "fp32", {}, video_shape=shape, audio_shape=(5,),
        storage={"dtype": dtype, "maps": maps}, views={"count": views},
    )  # fmt: skip
    cache = FeatureCache.create(home, spec, {}, compress)
    rng = np.random.default_rng(0)
    for name, num_clips in (("a", 9), ("b/c", 40), ("d", 300)):
        source = Source("train", name, f"{name}.mp4", "0" * 64, None)
        with RecordingWriter(cache, name, source) as writer:
            writer.begin(num_clips)
            maps_VNCHW = [np.maximum(rng.normal(size=(num_clips, 8, 2, 2)), 0).astype(np.float32) for _ in range(views)]
            writer.append(maps_VNCHW[0], rng.normal(size=(num_clips, 5)).astype(np.float32), *maps_VNCHW[1:])
            time_s = np.arange(num_clips * 8) / 25
            writer.commit({"target": np.zeros((num_clips, 1), np.float32), "frame_time_s": time_s}, fps=25.0)
    cache.ledger.record(Failure("e", "unreadable", "it was not to be read"), None)
    return cache.store


def export_toy(store: Store, file: Path) -> Store:
    """Return a cache as one HDF5 file."""
    export_cache(CacheExportOptions(file=file, cache=store.location))
    return open_store(file)


def run(store: Store, num_changes: int, rng: random.Random, show: Callable[[str], None] = lambda line: None) -> Counter:
    """Damage and mend a store so many times; return counts by (kind, outcome), outcome "MISSED" being a failure."""
    harness = Harness(store, rng)
    counts: Counter[tuple[str, str]] = Counter()
    for number in range(num_changes):
        change = harness.damage()
        try:
            found, outcome = harness.is_found(change), harness.outcome(change)
            is_harmless = outcome == "equal" and harness.is_harmless()
        except Exception as error:  # nothing but a refusal may come of damage
            found, is_harmless, outcome = False, False, f"{type(error).__name__}: {error}"
        finally:
            change.mend()
        is_right = outcome in ("refused", "equal") and (found or is_harmless)
        if not is_right:
            show(
                f"MISSED: {change.file} {change.told}: verify {'found it' if found else 'did not'}, reading: {outcome}"
            )
        counts[change.kind, ("found, " if found else "") + outcome if is_right else "MISSED"] += 1
        if not (number + 1) % 500:
            show(f"{number + 1} of {num_changes}")
    if verify_store(store).damages:
        sys.exit(f"{store.location} was not mended")
    return counts


def main() -> int:
    """Damage the store that is given, or small ones; return 1 if anything was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, help="a store, or the folder that holds it; a copy of it is damaged")
    parser.add_argument("--changes", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    counts: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory() as name:
        if arguments.cache is None:
            stores = [make_toy(Path(name) / str(i), **toy) for i, toy in enumerate(TOYS.values())]
            stores.append(export_toy(stores[0], Path(name) / "toy.h5"))
        else:
            source = Path(locate(arguments.cache).location)
            copy = Path(name) / source.name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, copy)
            stores = [open_store(copy)]
        for number, store in enumerate(stores):
            share = (arguments.changes + number) // len(stores)
            counts += run(store, share, rng, lambda line: print(line, flush=True))
    for (kind, outcome), count in sorted(counts.items()):
        print(f"{kind:>10}  {outcome:<16} {count:6}")
    num_missed = sum(count for (_, outcome), count in counts.items() if outcome == "MISSED")
    print(f"{sum(counts.values())} changes, {num_missed} missed")
    return int(num_missed > 0)


if __name__ == "__main__":
    sys.exit(main())
