"""Time an epoch of training from the feature cache, and the same epoch with the frozen encoders in its loop.

Both sides train the same head by the same code on the same number of windows; they differ in where a batch comes from:
out of a cache of random features, or out of the encoders, which see random crops and sound that lie in memory. So the
second side is spared decoding and face detection, which a training without a cache repeats as well. The encoders are
those of `avfuse extract`, in the arithmetic of the head: float32 for float32, bfloat16 for autocast.

Waiting is the time that the training loop spends asking for the next batch.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import avfuse  # noqa: F401  sets what must be set before torch is imported

# isort: split
import torch
from bench_cache import NUM_CLIPS, SPACING, make_cache
from machine import describe_machine, positive, read_arguments

from avfuse import checkpoint, registry
from avfuse.crops import CROP_PX
from avfuse.dataset import WindowedPartition
from avfuse.device import choose_device, keep_freed_memory
from avfuse.encoders import Encoder
from avfuse.moments import feature_moments
from avfuse.options import TrainOptions
from avfuse.passes import train_once
from avfuse.schema import Batch, ReportTable, UsageError
from avfuse.terminal import print_json, print_table
from avfuse.timeline import CLIP_FRAMES, SAMPLE_RATE_HZ, SOUND_INTERVALS

ENCODED_AT_ONCE = 8  # clips per forward pass, as avfuse extract has it
SOUND_SAMPLES = round(SOUND_INTERVALS / 30 * SAMPLE_RATE_HZ)  # about a second, at 30 frames a second


class WithEncoders:
    """The windows of a partition whose features are computed anew for every batch."""

    def __init__(self, partition: WindowedPartition, precision: str) -> None:
        self.partition, self.num_views, self.device = partition, 1, partition.device
        generator = torch.Generator().manual_seed(0)
        shape = (ENCODED_AT_ONCE, CLIP_FRAMES, CROP_PX, CROP_PX, 3)
        self._crops = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).to(self.device)
        self._sound = torch.rand(ENCODED_AT_ONCE, SOUND_SAMPLES, generator=generator).sub(0.5).to(self.device)
        self._video, self._audio = (self._encoder(name, precision) for name in ("r3d", "spectrogram_resnet"))

    def _encoder(self, name: str, precision: str) -> Encoder:
        encoder: Encoder = registry.load("encoder", name)("random:0")
        encoder.place(self.device, precision)
        return encoder

    def batches(self, places: Sequence[int], size: int, views: Any = None) -> Iterator[tuple[Sequence[int], Batch]]:
        """Yield batches as the partition does, with features of the encoders."""
        for chosen, batch in self.partition.batches(places, size, views):
            is_clip_BT = batch.mask_BT.to(self.device)
            num_clips = int(batch.mask_BT.sum())  # padding is not encoded
            video_BTCHW, audio_BTA = batch.video_BTCHW.float(), batch.audio_BTA.clone()
            video_BTCHW[is_clip_BT], audio_BTA[is_clip_BT] = self.encode(num_clips)
            yield chosen, dataclasses.replace(batch, video_BTCHW=video_BTCHW, audio_BTA=audio_BTA)

    def encode(self, num_clips: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the features of so many clips."""
        with torch.inference_mode():
            parts = range(0, num_clips, ENCODED_AT_ONCE)
            video_NCHW = torch.cat([self._video(self._crops) for _ in parts])[:num_clips]
            audio_NA = torch.cat([self._audio(self._sound) for _ in parts])[:num_clips]
        return video_NCHW, audio_NA


class Watched:
    """A partition that counts the seconds in which its next batch is waited for."""

    def __init__(self, partition: WindowedPartition) -> None:
        self.partition, self.num_views, self.device = partition, partition.num_views, partition.device
        self.waited_s = 0.0

    def batches(self, places: Sequence[int], size: int, views: Any = None) -> Iterator[tuple[Sequence[int], Batch]]:
        """Yield the partition's batches."""
        inner = self.partition.batches(places, size, views)
        while True:
            started_s = time.perf_counter()
            item = next(inner, None)
            self.waited_s += time.perf_counter() - started_s
            if item is None:
                return
            yield item


def make_epoch(
    cache: Any, partition: WindowedPartition, head_name: str, amp: str, batch_size: int
) -> Callable[[Any], float]:
    """Return what trains an epoch on batches of a source, and gives its seconds."""
    torch.manual_seed(0)
    sizes = {"audio_size": cache.spec.audio_shape[0], "video_size": cache.spec.video_shape[0]}
    arguments = {"targets": ["valence", "arousal"], **sizes, "map_size": cache.spec.video_shape[1]}
    head = checkpoint.build_head(head_name, {**arguments, "num_clips": NUM_CLIPS})
    moments = feature_moments(partition)
    head.standardise(*moments)
    head.to(partition.device)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-4, fused=True)
    options = TrainOptions(head=head_name, amp=amp, batch_size=batch_size)
    places = torch.randperm(len(partition.windows)).tolist()

    def epoch(source: Any) -> float:
        started_s = time.perf_counter()
        train_once(head, optimizer, source, places, moments, options, lambda done, loss: None)
        return time.perf_counter() - started_s

    return epoch


def time_two_heads(
    epoch_of: Callable[[], Callable[[Any], float]], partition: WindowedPartition, rounds: int
) -> tuple[float, float]:
    """Return the seconds of an epoch of two heads, one after the other and in two threads with half of the cores each.

    They take turns, after one round that warms up; medians count.
    """
    num_threads = torch.get_num_threads()
    epochs, spent_s = [epoch_of(), epoch_of()], ([], [])
    with ThreadPoolExecutor(2) as executor:
        for _ in range(rounds + 1):
            torch.set_num_threads(num_threads)
            spent_s[0].append(sum(epoch(partition) for epoch in epochs))
            list(executor.map(torch.set_num_threads, [max(1, num_threads // 2)] * 2))
            started_s = time.perf_counter()
            list(executor.map(lambda epoch: epoch(partition), epochs))
            spent_s[1].append(time.perf_counter() - started_s)
    torch.set_num_threads(num_threads)
    in_turn_s, in_threads_s = (statistics.median(times[1:]) for times in spent_s)
    return in_turn_s, in_threads_s


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds of epochs, their ratios and the shares of waiting."""
    keep_freed_memory()
    device = choose_device(arguments.device)
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        cache = make_cache(Path(name), arguments.recordings, arguments.clips)
        partition = WindowedPartition(cache, "train", NUM_CLIPS, SPACING, resident=arguments.resident, device=device)
        for head in arguments.head:
            for amp, precision in (("off", "fp32"), ("bf16", "bf16")):
                epoch = make_epoch(cache, partition, head, amp, arguments.batch_size)
                epoch(partition)  # warms up
                cached_s, waiting = [], []
                for _ in range(arguments.epochs):
                    watched = Watched(partition)
                    cached_s.append(epoch(watched))
                    waiting.append(watched.waited_s / cached_s[-1])
                row = {
                    "head": head,
                    "precision": precision,
                    "cached_s": statistics.median(cached_s),
                    "waiting_share": statistics.median(waiting),
                }
                if arguments.two_heads:
                    again = partial(make_epoch, cache, partition, head, amp, arguments.batch_size)
                    row["two_in_turn_s"], row["two_in_threads_s"] = time_two_heads(again, partition, arguments.epochs)
                if not arguments.no_encoders:
                    source = WithEncoders(partition, precision)
                    source.encode(ENCODED_AT_ONCE)  # warms up
                    row["with_encoders_s"] = epoch(source)
                    row["ratio"] = row["with_encoders_s"] / row["cached_s"]
                rows.append(row)
    ratios = [row["ratio"] for row in rows if "ratio" in row]
    return {
        "epoch_ratio": min(ratios) if ratios else None,
        "waiting_share": max(row["waiting_share"] for row in rows),
        "epochs": rows,
        "num_clips": arguments.recordings * arguments.clips,
        "num_windows": len(partition.windows),
        "batch_size": arguments.batch_size,
        "resident": arguments.resident,
        "machine": describe_machine(),
    }


def main() -> None:
    """Print the table, or one object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recordings", type=positive, default=4)
    parser.add_argument("--clips", type=positive, default=256, help="clips of each recording")
    parser.add_argument("--head", action="append", help="a fusion head; may be given several times")
    parser.add_argument("--batch-size", type=positive, default=32, help="windows per step, as training has it")
    parser.add_argument("--epochs", type=positive, default=5, help="epochs from the cache, of which the median counts")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--resident", choices=("no", "ram", "device"), default="no")
    parser.add_argument("--two-heads", action="store_true", help="also time two heads in two threads of this process")
    parser.add_argument("--no-encoders", action="store_true", help="time the cache alone")
    arguments = read_arguments(parser)
    arguments.head = arguments.head or ["recursive_joint_attention"]
    try:
        found = measure(arguments)
    except UsageError as error:
        parser.error(str(error))
    if arguments.json:
        print_json(found)
        return
    columns = ("head", "arithmetic", "from the cache, s", "waiting", "with encoders, s", "ratio")
    rows = tuple(
        (
            row["head"],
            row["precision"],
            f"{row['cached_s']:.2f}",
            f"{100 * row['waiting_share']:.1f} %",
            f"{row['with_encoders_s']:.1f}" if "ratio" in row else "-",
            f"{row['ratio']:.0f}" if "ratio" in row else "-",
        )
        for row in found["epochs"]
    )
    title = (
        f"An epoch of {found['num_clips']:,} clips, {found['num_windows']:,} windows, batches of {found['batch_size']}"
    )
    notes = [found["machine"], f"resident: {found['resident']}"]
    notes += [
        f"two heads, {row['head']}, {row['precision']}: one after the other {row['two_in_turn_s']:.2f} s, "
        f"in two threads {row['two_in_threads_s']:.2f} s"
        for row in found["epochs"]
        if "two_in_threads_s" in row
    ]
    print_table(ReportTable(title, columns, rows, (), tuple(notes)))


if __name__ == "__main__":
    sys.exit(main())
