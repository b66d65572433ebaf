"""Extraction on a GPU: clips per second by stage, the share of the matrix peak that the encoders reach, what limits it.

The peak is measured in the same run, by one large product of matrices. Every stage is measured alone, with as many
threads as an extraction has recordings side by side, and then the extraction as a whole. A stage that deals with frames
counts as clips what `HOP` frames of the video give. Without a GPU there is nothing to measure: exit code 2, unless
--device cpu is given, for trying this program out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from filming import film
from machine import describe_machine, positive, read_arguments

from avfuse import footage, media
from avfuse.cache import FeatureCache
from avfuse.detection import FaceDetector, Image, place
from avfuse.device import choose_device, choose_precision, keep_fp32
from avfuse.encoders.r3d import ARCHITECTURES, R3DEncoder
from avfuse.encoders.spectrogram_resnet import SpectrogramResNetEncoder
from avfuse.faces import FaceTrack
from avfuse.gpu_decoding import refuse_unusable
from avfuse.media import Frame
from avfuse.options import ExtractOptions
from avfuse.preparation import prepare
from avfuse.schema import Recording, ReportTable, UsageError
from avfuse.terminal import print_table
from avfuse.timeline import CLIP_FRAMES, SAMPLE_RATE_HZ, SOUND_INTERVALS, ClipGrid

WEIGHTS = "random:0"
SIZES_PX = {"180p": (180, 320), "360p": (360, 640), "720p": (720, 1280), "1080p": (1080, 1920)}
GFLOP_PER_CLIP = {"r3d_18": 40.7, "r2plus1d_18": 40.5}
HOP, FPS, CROP_PX, LOOKS = 8, 25, 112, (1, 8, 16, 32, 64)
PEAK_SIDES = {"cuda": 8192, "cpu": 1024}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class Bench:
    """What all measurements share: the device, its precision, and how often each is repeated."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device, self.repeats = device, repeats
        self.precision = choose_precision("auto", device)

    def wait(self) -> None:
        """Wait until the device has done what was asked of it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, act: Callable[[], object]) -> float:
        """Return how long an act takes: of several, after one to warm up, the middle one."""
        taken = []
        for _ in range(self.repeats + 1):
            self.wait()
            started_s = time.perf_counter()
            act()
            self.wait()
            taken.append(time.perf_counter() - started_s)
        return sorted(taken[1:])[len(taken[1:]) // 2]

    def reset_memory(self) -> None:
        """Begin to count the most memory taken anew."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_bytes(self) -> int | None:
        """Return the most memory that PyTorch took on the device since then; None on a CPU."""
        return torch.cuda.max_memory_reserved(self.device) if self.device.type == "cuda" else None


def measure_peak(bench: Bench) -> dict[str, float]:
    """Return the TFLOP/s of a product of matrices, by precision."""
    side = PEAK_SIDES[bench.device.type]
    found = {}
    for name, dtype in DTYPES.items():
        a, b = (torch.randn(side, side, device=bench.device).to(dtype) for _ in range(2))
        found[name] = 2 * side**3 / bench.seconds(lambda a=a, b=b: a @ b) / 1e12
    return found


def measure_encoder(bench: Bench, arch: str, sizes: list[int], peak: dict[str, float]) -> list[dict[str, Any]]:
    """Return the speed of a video encoder by the size of its batches, up to the first that does not fit."""
    encoder = R3DEncoder(WEIGHTS, arch=arch)
    encoder.place(bench.device, bench.precision)
    rows: list[dict[str, Any]] = []
    for size in sizes:
        bench.reset_memory()
        try:
            clips = torch.randint(
                0, 256, (size, CLIP_FRAMES, CROP_PX, CROP_PX, 3), dtype=torch.uint8, device=bench.device
            )
            with torch.inference_mode():
                taken_s = bench.seconds(lambda clips=clips: encoder(clips))
        except torch.OutOfMemoryError:
            rows.append({"batch": size, "clips_per_s": None})
            break
        tflops = size / taken_s * GFLOP_PER_CLIP[arch] / 1e3
        share = tflops / peak[bench.precision]
        rows.append(
            {
                "batch": size,
                "clips_per_s": size / taken_s,
                "tflop_per_s": tflops,
                "share_of_peak": share,
                "peak_bytes": bench.peak_bytes(),
            }
        )
    return rows


def measure_sound(bench: Bench, size: int) -> float:
    """Return clips per second of spectrogram and audio encoder, with the copy to the device."""
    encoder = SpectrogramResNetEncoder(WEIGHTS)
    encoder.place(bench.device, bench.precision)
    sound_BS = torch.rand(size, round(SOUND_INTERVALS / FPS * SAMPLE_RATE_HZ))
    with torch.inference_mode():
        return size / bench.seconds(lambda: encoder(sound_BS.to(bench.device)))


def frames_of(path: Path, detector: FaceDetector, decode: str) -> Iterator[tuple[int, Image]]:
    """Yield the frames of a video that an extraction decodes; the sound is decoded as well."""
    timeline = media.probe(path)
    options = ExtractOptions(path.parent, hop=HOP, decode=decode)
    track = FaceTrack(detector, timeline.num_frames, options.detect_every)
    recording = Recording(path.stem, path, "train", path.stem)
    with footage.open_reading(recording, timeline, ClipGrid.lay(timeline, HOP), track, options) as reading:
        for item in reading:
            if isinstance(item, Frame):
                yield item.index, item.pixels_YXC


def measure_decoding(bench: Bench, paths: list[Path], num_threads: int, decode: str) -> float:
    """Return clips per second of decoding picture and sound, several videos side by side."""
    num_frames = sum(media.probe(path).num_frames for path in paths)
    detector = FaceDetector(40, bench.device)

    def decode_all() -> None:
        with ThreadPoolExecutor(num_threads) as pool:
            list(pool.map(lambda path: sum(1 for _ in frames_of(path, detector, decode)), paths))

    return num_frames / HOP / bench.seconds(decode_all)


def measure_faces(bench: Bench, path: Path, num_threads: int) -> dict[str, Any]:
    """Return clips per second of detection and alignment, by one thread and by several, and of detection alone."""
    timeline, detector = media.probe(path), FaceDetector(40, bench.device)
    placed = [(index, place(pixels, bench.device)) for index, pixels in frames_of(path, detector, "cpu")]

    def follow(_: int = 0) -> float:
        track = FaceTrack(detector, timeline.num_frames, 4)
        for _ in track.crops(iter(placed)):
            pass
        return float(track.found_F.mean())

    def follow_all() -> None:
        with ThreadPoolExecutor(num_threads) as pool:
            list(pool.map(follow, range(num_threads)))

    num_clips, images = timeline.num_frames / HOP, [pixels for _, pixels in placed]
    looks = {}
    for size in LOOKS:
        given = (images * (size // len(images) + 1))[:size]
        looks[str(size)] = size / bench.seconds(lambda given=given: detector.detect(given))
    return {
        "face_share": follow(),
        "clips_per_s_1_thread": num_clips / bench.seconds(follow),
        "clips_per_s": num_threads * num_clips / bench.seconds(follow_all),
        "pictures_per_s_by_batch": looks,
    }


def measure_whole(bench: Bench, root: Path, cache: Path, batch_size: int, decode: str) -> dict[str, Any]:
    """Return clips per second of an extraction by one worker, after one recording to warm up, and its memory."""
    options = ExtractOptions(
        root=root,
        cache=cache,
        corpus="folder",
        hop=HOP,
        video_weights=WEIGHTS,
        audio_weights=WEIGHTS,
        batch_size=batch_size,
        device=str(bench.device),
        decode=decode,
        engine="serial",
    )
    ready = prepare(options)
    store = FeatureCache.create(cache, ready.spec, ready.networks.provenance)
    worker = ready.job(store.path)(0)
    first, *others = ready.share

    def process(recording: Any) -> Any:
        receipt = worker.process(recording, lambda done, total: None)
        if receipt.outcome != "extracted":
            sys.exit(f"{recording.path} was not extracted: {receipt}")
        return receipt

    try:
        process(first)
        bench.reset_memory()
        cpu_s, started_s = time.process_time(), time.perf_counter()
        with ThreadPoolExecutor(worker.num_side_by_side) as pool:
            receipts = list(pool.map(process, others))
        wall_s, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_s
    finally:
        worker.close()
    num_clips = sum(receipt.num_clips for receipt in receipts)
    return {
        "num_clips": num_clips,
        "side_by_side": worker.num_side_by_side,
        "clips_per_s": num_clips / wall_s,
        "cores_busy": cpu_s / wall_s,
        "peak_bytes": bench.peak_bytes(),
    }


def why_not_on_gpu(device: torch.device) -> str | None:
    """Return why the device decodes no pictures; None where it does."""
    try:
        refuse_unusable(device)
    except UsageError as error:
        return str(error)
    return None


def find_limit(found: dict[str, Any], decode: str) -> dict[str, Any]:
    """Return the slowest stage beside the whole; on a GPU, stages that compute there take turns, and count together."""
    encode = found["best"]["r3d_18"]["clips_per_s"]
    faces, sound = found["faces"]["clips_per_s"], found["sound_clips_per_s"]
    together = 1 / (1 / encode + 1 / faces + 1 / sound)
    stages = {"decode": found["decode"][decode], "detect, align and encode": together}
    slowest = min(stages, key=lambda name: stages[name])
    whole = found["whole"][decode]["clips_per_s"]
    return {"stages": stages, "limit": slowest, "whole_over_limit": whole / stages[slowest]}


def measure(arguments: argparse.Namespace, device: torch.device, folder: Path) -> dict[str, Any]:
    """Measure everything."""
    bench = Bench(device, arguments.repeats)
    keep_fp32(device)
    root = folder / "root"
    root.mkdir()
    first = film(root / "000.mp4", *SIZES_PX[arguments.size], arguments.seconds)
    others = [root / f"{number:03d}.mp4" for number in range(1, arguments.videos + 1)]
    for path in others:
        shutil.copy(first, path)
        with path.open("ab") as file:  # no two files are the same, as they would be refused
            file.write(b"\0\0\0\x10free" + f"{path.stem:>8}".encode())
    peak = measure_peak(bench)
    encoders = {arch: measure_encoder(bench, arch, arguments.batches, peak) for arch in ARCHITECTURES}
    best = {
        arch: max((row for row in rows if row["clips_per_s"]), key=lambda row: row["clips_per_s"])
        for arch, rows in encoders.items()
    }
    why_not = why_not_on_gpu(device)
    ways = ["cpu"] if why_not else ["cpu", "gpu"]
    size, num_threads = best["r3d_18"]["batch"], arguments.threads
    found = {
        "machine": describe_machine(("torch", "torchvision", "facenet-pytorch", "av")),
        "size": arguments.size,
        "precision": bench.precision,
        "threads": num_threads,
        "peak_tflop_per_s": peak,
        "encoders": encoders,
        "best": best,
        "sound_clips_per_s": measure_sound(bench, size),
        "decode": {way: measure_decoding(bench, others, num_threads, way) for way in ways},
        "decode_gpu_missing": why_not,
        "faces": measure_faces(bench, first, num_threads),
        "whole": {way: measure_whole(bench, root, folder / f"cache-{way}", size, way) for way in ways},
    }
    return {**found, "limits": {way: find_limit(found, way) for way in ways}}


def show(found: dict[str, Any]) -> None:
    """Print the figures as tables."""
    rows = []
    for arch, measured in found["encoders"].items():
        for row in measured:
            if row["clips_per_s"] is None:
                rows.append((arch, str(row["batch"]), "out of memory", "", "", ""))
                continue
            memory = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e9:.2f} GB"
            speed = f"{row['clips_per_s']:,.1f}", f"{row['tflop_per_s']:.2f}", f"{100 * row['share_of_peak']:.1f} %"
            rows.append((arch, str(row["batch"]), *speed, memory))
    columns = ("encoder", "batch", "clips/s", "TFLOP/s", "of the peak", "memory")
    print_table(ReportTable(f"Video encoders, {found['precision']}", columns, tuple(rows), ()))
    peaks = ", ".join(f"{name} {value:.2f}" for name, value in found["peak_tflop_per_s"].items())
    print(f"peak of a matrix product, TFLOP/s: {peaks}")
    faces = found["faces"]
    stages = [(f"decode, {way}", value) for way, value in found["decode"].items()]
    stages.append(("detect and align, one thread", faces["clips_per_s_1_thread"]))
    stages.append(("detect and align", faces["clips_per_s"]))
    stages += [(f"encode picture, {arch}", row["clips_per_s"]) for arch, row in found["best"].items()]
    stages.append(("encode sound", found["sound_clips_per_s"]))
    stages += [(f"whole, decoded by {way}", row["clips_per_s"]) for way, row in found["whole"].items()]
    table = tuple((name, f"{value:,.1f}") for name, value in stages)
    print_table(ReportTable(f"{found['size']}, {found['threads']} threads", ("stage", "clips/s"), table, ()))
    looks = ", ".join(f"{size}: {value:,.0f}" for size, value in faces["pictures_per_s_by_batch"].items())
    print(f"detection alone, pictures/s by batch: {looks}; faces in {100 * faces['face_share']:.0f} % of the frames")
    for way, limit in found["limits"].items():
        whole = found["whole"][way]
        memory = "" if whole["peak_bytes"] is None else f", {whole['peak_bytes'] / 1e9:.2f} GB"
        reached = f"the whole reaches {100 * limit['whole_over_limit']:.0f} % of it"
        print(f"decoded by {way}: '{limit['limit']}' limits, {reached}; {whole['cores_busy']:.1f} cores busy{memory}")
    if found["decode_gpu_missing"]:
        print(f"nothing is decoded on a GPU: {found['decode_gpu_missing']}")
    print(found["machine"])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu to try this program out")
    parser.add_argument("--size", default="360p", choices=list(SIZES_PX), help="of the videos")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each video")
    parser.add_argument("--videos", type=positive, default=32, help="number of videos, besides one to warm up")
    parser.add_argument("--batches", type=positive, nargs="+", default=[1, 8, 16, 32, 64, 128, 256], help="clips each")
    parser.add_argument("--threads", type=positive, default=16, help="threads that decode and detect")
    parser.add_argument("--repeats", type=positive, default=3, help="times that each thing is measured")
    arguments = read_arguments(parser)
    try:
        device = choose_device(arguments.device)
        if device.type == "cpu" != arguments.device:
            raise UsageError("there is no GPU here; --device cpu tries this program out")
    except UsageError as error:
        print(f"nothing to measure: {error}", file=sys.stderr)
        sys.exit(2)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        found = measure(arguments, device, Path(name))
    if arguments.json:
        print(json.dumps(found))
    else:
        show(found)


if __name__ == "__main__":
    main()
