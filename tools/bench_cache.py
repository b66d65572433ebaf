"""Time windows of clips out of a feature cache against a raw np.memmap of the same bytes, and against zarr-python.

A cache of random features in the shape of R3D's maps is written to a temporary folder, and once more as one flat file.
Then the same windows, in one shuffled order, are gathered into batches: by avfuse as in training (maps, sound, targets
and masks), by the plainest loop over the flat file (maps alone), and by zarr-python (maps alone) from the cache itself
and from copies whose chunks suit windows better. Everything is in the page cache. The sides take turns; medians count.
avfuse copies by as many threads as there are cores, four at most; the loops have one.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import avfuse  # noqa: F401  sets what must be set before torch is imported

# isort: split
import numpy as np
import torch
import zarr

from avfuse.cache import FeatureCache
from avfuse.dataset import WindowedPartition
from avfuse.schema import ReportTable
from avfuse.spec import Source
from avfuse.terminal import print_json, print_table
from avfuse.writer import RecordingWriter

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from machine import describe_machine, positive, read_arguments
from toy import FPS, HOP, toy_spec

MAPS, AUDIO, TARGETS = (512, 7, 7), 512, 2
NUM_CLIPS, SPACING = 16, 32
Gather = Callable[[], Iterator[torch.Tensor]]
ZARR_CHUNKS = (16, 64)  # clips; the second is what a window spans
ZARR_WINDOWS = 256  # of which the slow side gathers no more


def make_cache(home: Path, num_recordings: int, num_clips: int, partitions: Sequence[str] = ("train",)) -> FeatureCache:
    """Write a cache of random features, half of them zero as behind a ReLU."""
    cache = FeatureCache.create(home, toy_spec(video_shape=MAPS, audio_shape=(AUDIO,)), {})
    rng = np.random.default_rng(0)
    block = np.maximum(rng.standard_normal((256, *MAPS), dtype=np.float32), 0)
    for number in range(num_recordings):
        target = rng.uniform(-1, 1, (num_clips, TARGETS)).astype(np.float32)
        frames = np.repeat(target, HOP, axis=0)
        with RecordingWriter(
            cache, f"{number}", Source(partitions[number % len(partitions)], f"{number}", "", f"{number}", None)
        ) as writer:
            writer.begin(num_clips)
            for start in range(0, num_clips, len(block)):
                count = min(len(block), num_clips - start)
                audio = rng.standard_normal((count, AUDIO), dtype=np.float32)
                writer.append(np.roll(block, (number + 1) * (start + 7), axis=0)[:count], audio)
            end_frame = np.arange(1, num_clips + 1) * HOP - 1
            writer.commit(
                {
                    "target": target,
                    "face_share": np.ones(num_clips, np.float32),
                    "end_frame": end_frame,
                    "end_time_s": end_frame / FPS,
                    "frame_time_s": np.arange(len(frames)) / FPS,
                    "frame_target": frames,
                    "frame_face": np.ones(len(frames), bool),
                    "frame_face_probability": np.ones(len(frames), np.float32),
                },
                fps=FPS,
            )
    return cache


def gather_by_avfuse(partition: WindowedPartition, order: Sequence[int], batch_size: int) -> Gather:
    """Return what gathers windows as a training does, and yields their maps batch by batch."""
    return lambda: (batch.video_BTCHW for _, batch in partition.batches(order, batch_size))


def gather_by_loop(
    read: Callable[[int], Any], partition: WindowedPartition, order: Sequence[int], batch_size: int
) -> Gather:
    """Return what gathers the maps of windows by a loop over `read`, into one buffer."""
    buffer = np.zeros((batch_size, NUM_CLIPS, *MAPS), np.float16)

    def gather() -> Iterator[torch.Tensor]:
        for start in range(0, len(order), batch_size):
            part = sorted(order[start : start + batch_size], key=lambda place: -partition.windows[place].count)
            for row, place in zip(buffer, part, strict=False):
                count = partition.windows[place].count
                row[:count] = read(place)
                row[count:] = 0
            yield torch.from_numpy(buffer[: len(part)])

    return gather


def digest(gather: Gather, num_batches: int) -> str:
    """Return the sha256 of the first batches."""
    found = hashlib.sha256()
    for maps in itertools.islice(gather(), num_batches):
        found.update(maps.numpy().data)
    return found.hexdigest()


def flat_copy(cache: FeatureCache, path: Path) -> np.memmap[Any, Any]:
    """Return the maps of all recordings as one mapped file, recording by recording."""
    with path.open("wb") as file:
        for item in cache.recordings("train"):
            for values in item.video.chunks():
                np.ascontiguousarray(values).tofile(file)
    return np.memmap(path, np.float16, mode="r").reshape(-1, *MAPS)


def sides(cache: FeatureCache, home: Path, num_windows: int, batch_size: int) -> Iterator[tuple[str, int, Gather]]:
    """Yield every side: its name, how many windows it gathers, and what gathers them."""
    partition = WindowedPartition(cache, "train", NUM_CLIPS, SPACING)
    order = np.random.default_rng(1).permutation(len(partition.windows))[:num_windows].tolist()
    yield "avfuse, mapped", len(order), gather_by_avfuse(partition, order, batch_size)
    resident = WindowedPartition(cache, "train", NUM_CLIPS, SPACING, resident="device")
    yield "avfuse, resident", len(order), gather_by_avfuse(resident, order, batch_size)
    flat = flat_copy(cache, home / "flat")
    first = np.cumsum([0, *(item.num_clips for item in partition.recordings)])

    def read_flat(place: int) -> Any:
        window = partition.windows[place]
        clips = window.clips
        return flat[first[window.recording] + clips.start : first[window.recording] + clips.stop : clips.step]

    yield "np.memmap", len(order), gather_by_loop(read_flat, partition, order, batch_size)
    few = order[:ZARR_WINDOWS]
    arrays = {"the cache": [zarr.open_array(Path(item.path) / "video", mode="r") for item in partition.recordings]}
    for size in ZARR_CHUNKS:
        copies = []
        for number, array in enumerate(arrays["the cache"]):
            place = home / f"copy-{size}-{number}.zarr"
            copy = zarr.create_array(
                place, shape=array.shape, dtype=array.dtype, chunks=(size, *MAPS), compressors=None
            )
            copy[...] = array[...]
            copies.append(copy)
        arrays[f"chunks of {size} clips"] = copies
    for name, opened in arrays.items():

        def read_zarr(place: int, opened: list[Any] = opened) -> Any:
            window = partition.windows[place]
            return opened[window.recording][window.clips]

        yield f"zarr-python, {name}", len(few), gather_by_loop(read_zarr, partition, few, batch_size)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return windows per second of every side, and the two ratios."""
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        home = Path(name)
        cache = make_cache(home, arguments.recordings, arguments.clips)
        found = list(sides(cache, home, arguments.windows, arguments.batch_size))
        shared = min(
            len(range(0, count, arguments.batch_size)) for _, count, _ in found
        )  # batches that all sides gather
        if len({digest(gather, shared) for _, _, gather in found}) > 1:
            sys.exit("bench_cache: the sides gather different maps")
        for _, _, gather in found:
            collections.deque(gather(), maxlen=0)  # warms up
        speeds: dict[str, list[float]] = {side: [] for side, _, _ in found}
        for _ in range(arguments.rounds):
            for side, count, gather in found:
                started_s = time.perf_counter()
                collections.deque(gather(), maxlen=0)
                speeds[side].append(count / (time.perf_counter() - started_s))
        num_bytes = sum(item.video.num_bytes for item in cache.recordings())
    medians = {side: statistics.median(values) for side, values in speeds.items()}
    zarr_best = max(value for side, value in medians.items() if side.startswith("zarr"))
    return {
        "ratio_to_memmap": medians["avfuse, mapped"] / medians["np.memmap"],
        "ratio_to_zarr_python": medians["avfuse, mapped"] / zarr_best,
        "windows_per_s": medians,
        "gigabytes": num_bytes / 1e9,
        "machine": describe_machine(),
    }


def main() -> None:
    """Print the table, or one object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recordings", type=positive, default=8)
    parser.add_argument("--clips", type=positive, default=1000, help="clips of each recording")
    parser.add_argument("--windows", type=positive, default=2048, help="windows gathered per round, at most")
    parser.add_argument("--batch-size", type=positive, default=64)
    parser.add_argument("--rounds", type=positive, default=7)
    arguments = read_arguments(parser)
    found = measure(arguments)
    if arguments.json:
        print_json(found)
        return
    fast = found["windows_per_s"]["avfuse, mapped"]
    rows = tuple((side, f"{speed:,.0f}", f"{fast / speed:.2f}") for side, speed in found["windows_per_s"].items())
    notes = (
        f"{found['gigabytes']:.2f} GB of maps; {found['machine']}",
        f"avfuse to np.memmap {found['ratio_to_memmap']:.2f} (aimed at: 0.9), "
        f"to zarr-python at its best {found['ratio_to_zarr_python']:.1f} (aimed at: 10)",
    )
    print_table(ReportTable("Windows of 16 clips, warm", ("side", "windows/s", "avfuse is faster by"), rows, (), notes))


if __name__ == "__main__":
    main()
