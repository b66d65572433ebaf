"""What each way of keeping maps takes and costs: bytes per clip, speed per core, and how far off the values are.

The maps of a store, which are halves and whole, are re-encoded by avfuse cache shrink into temporary stores: as halves
or bytes, whole or pooled, plain or compressed. Each is then read chunk by chunk into one buffer, everything being in
the page cache. Times are of processor, whatever else the machine does and however many cores take part; medians count.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import avfuse  # noqa: F401  sets what must be set before torch is imported

# isort: split
import numpy as np
from machine import describe_machine, positive, read_arguments

from avfuse.cache import FeatureCache
from avfuse.cache_options import CacheShrinkOptions
from avfuse.cached import CachedRecording
from avfuse.encoding import decode
from avfuse.options import COMPRESSIONS, DTYPES, MAPS
from avfuse.schema import ReportTable
from avfuse.shrinking import shrink
from avfuse.terminal import print_json, print_table

HALVES = {"dtype": "float16", "maps": "whole"}
COLUMNS = (
    "maps",
    "numbers",
    "compression",
    "bytes/clip",
    "smaller by",
    "written, clips/s",
    "read, clips/s",
    "GB/s",
    "off",
)


def read_all(recordings: Sequence[CachedRecording], buffer: np.ndarray[Any, Any]) -> float:
    """Copy the maps of all recordings into a buffer, chunk by chunk; return the seconds of processor it takes."""
    started_s = time.process_time()
    for item in recordings:
        for values in item.video.chunks():
            buffer[: len(values)] = values
    return time.process_time() - started_s


def largest_error(original: FeatureCache, smaller: FeatureCache, is_pooled: bool) -> float:
    """Return the largest relative error of a clip: the norm of what its map is off, in that of the map."""
    worst = 0.0
    for item in original.recordings():
        other = smaller.recording(item.name)
        for first in range(0, item.num_clips, 64):
            count = min(64, item.num_clips - first)
            pieces = [[part for _, part in of.video.strided(first, 1, count)] for of in (item, other)]
            expected_NCHW, found_NCHW = (np.concatenate(part) for part in pieces)
            expected_NCHW = expected_NCHW.astype(np.float64)
            if is_pooled:
                expected_NCHW = expected_NCHW.mean(axis=(2, 3), keepdims=True)
            off_NCHW = decode(found_NCHW, other.scale()).numpy() - expected_NCHW
            norms = [np.linalg.norm(values.reshape(count, -1), axis=1) for values in (off_NCHW, expected_NCHW)]
            worst = max(worst, float((norms[0] / np.maximum(norms[1], 1e-30)).max()))
    return worst


def measure_one(store: FeatureCache, knobs: dict[str, str], folder: Path | None, rounds: int) -> dict[str, Any]:
    """Return what one way of keeping the maps of a store takes and costs."""
    with tempfile.TemporaryDirectory(dir=folder) as home:
        started_s = time.process_time()
        summary = shrink(CacheShrinkOptions(store.path, **knobs, out=Path(home), num_workers=1, device="cpu"))
        written_s = time.process_time() - started_s
        smaller = FeatureCache.open(summary.store)
        items = smaller.recordings()
        files = [entry for item in items for file, entry in item.files.items() if file.startswith("video")]
        video = items[0].video
        buffer = np.empty((max(item.video.chunk_clips for item in items), *video.shape[1:]), video.dtype)
        read_all(items, buffer)
        read_s = statistics.median(read_all(items, buffer) for _ in range(rounds))
        error = largest_error(store, smaller, knobs["maps"] == "pooled")
        num_bytes = sum(item.video.num_bytes for item in items)
    return {
        **knobs,
        "bytes_per_clip": sum(entry["bytes"] for entry in files) / summary.num_clips,
        "written_clips_per_s": summary.num_clips / written_s,
        "read_clips_per_s": summary.num_clips / read_s,
        "read_gigabytes_per_s": num_bytes / 1e9 / read_s,
        "largest_relative_error": error,
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure every way in which maps can be kept."""
    store = FeatureCache.find(arguments.store)
    recordings = store.recordings()
    if store.spec.storage != HALVES or store.spec.views["count"] != 1:
        sys.exit(f"bench_sizes: {store.path} does not keep halves, whole, in one view")
    shares = [float(np.mean(values == 0)) for item in recordings for values in item.video.chunks()]
    ways = [
        dict(zip(("maps", "dtype", "compress"), way, strict=True))
        for way in itertools.product(MAPS, DTYPES, COMPRESSIONS)
    ]
    found = [
        measure_one(store, way, arguments.folder, arguments.rounds)
        for way in ways
        if (way["dtype"], way["compress"]) != ("uint8", "pcodec")  # there is no such thing
    ]
    return {
        "ways": found,
        "num_clips": sum(item.num_clips for item in recordings),
        "num_recordings": len(recordings),
        "shape": list(store.spec.video_shape),
        "share_of_zeros": statistics.mean(shares),
        "precision": store.spec.precision,
        "machine": describe_machine(("torch", "numpy", "zarr", "numcodecs", "pcodec")),
    }


def main() -> None:
    """Print the table, or one object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=Path, help="a feature store whose maps are halves, whole and in one view")
    parser.add_argument("--rounds", type=positive, default=5)
    arguments = read_arguments(parser)
    found = measure(arguments)
    if arguments.json:
        print_json(found)
        return
    largest = max(way["bytes_per_clip"] for way in found["ways"])
    rows = tuple(
        (
            way["maps"],
            way["dtype"],
            way["compress"],
            f"{way['bytes_per_clip']:,.0f}",
            f"{largest / way['bytes_per_clip']:.1f}",
            f"{way['written_clips_per_s']:,.0f}",
            f"{way['read_clips_per_s']:,.0f}",
            f"{way['read_gigabytes_per_s']:.2f}",
            f"{way['largest_relative_error']:.1e}",
        )
        for way in found["ways"]
    )
    notes = (
        f"{found['num_clips']:,} clips in {found['num_recordings']} recordings, {found['share_of_zeros']:.0%} zeros, "
        f"encoders in {found['precision']}; speeds are of one core",
        f"off: the largest error of a clip's map in that of its norm; {found['machine']}",
    )
    print_table(ReportTable(f"Maps of {' x '.join(map(str, found['shape']))}", COLUMNS, rows, (), notes))


if __name__ == "__main__":
    main()
