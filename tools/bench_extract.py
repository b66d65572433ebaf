"""Extraction as it comes against the straightforward pipeline, on the same files in one run.

The straightforward pipeline decodes every frame, runs MTCNN with facenet-pytorch's defaults on it, aligns the face,
and passes clips through torchvision's network in float32, one stage after the other. What is compared: CPU time, the
boxes, and the feature maps; besides, the encoder alone, the share of each stage, the wall time against the slowest
stage, and, with --memory, the memory of a long recording against that of a short one. The exit code is 1 where a target
is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from facenet_pytorch import MTCNN
from filming import film, repeat
from machine import describe_machine, read_arguments

from avfuse import media
from avfuse.cache import FeatureCache
from avfuse.crops import align
from avfuse.detection import Face, overlap
from avfuse.device import choose_device, choose_precision
from avfuse.encoders.r3d import MEAN, STD, R3DEncoder
from avfuse.encoders.spectrogram_resnet import SpectrogramResNetEncoder
from avfuse.engines import Worker
from avfuse.options import ExtractOptions
from avfuse.preparation import prepare
from avfuse.schema import Recording, ReportTable
from avfuse.sound import SoundBuffer
from avfuse.terminal import print_table
from avfuse.timeline import ClipGrid

WEIGHTS = "random:0"
SIZES_PX = {"360p": (360, 640), "720p": (720, 1280)}
BATCH, HOP, WARM_UP_S = 8, 8, 4.0
MIN_OVERLAP = 0.2


@dataclass(frozen=True)
class Outcome:
    """What one pipeline made of one recording, and the CPU and wall time that it took."""

    cpu_s: float
    wall_s: float
    video_NCHW: npt.NDArray[np.float32]
    box_F4: npt.NDArray[np.float64]


def timed(act: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return what an act gives, its CPU seconds over all threads, and its wall seconds."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    result = act()
    return result, time.process_time() - cpu_s, time.perf_counter() - wall_s


class Straightforward:
    """The pipeline that one writes first."""

    def __init__(self) -> None:
        self.mtcnn = MTCNN(keep_all=True, device="cpu")
        self.video = R3DEncoder(WEIGHTS).eval().network
        self.audio = SpectrogramResNetEncoder(WEIGHTS).eval()
        self.mean_C = torch.tensor(MEAN).view(1, 3, 1, 1, 1) * 255
        self.std_C = torch.tensor(STD).view(1, 3, 1, 1, 1) * 255

    def __call__(self, path: Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
        """Return the maps of all clips and the box of every frame, NaN where there is no face."""
        timeline = media.probe(path)
        grid = ClipGrid.lay(timeline, HOP)
        frames, sound = [], SoundBuffer()
        with media.Reading(path, timeline, np.ones(timeline.num_frames, np.bool_)) as reading:
            for item in reading:
                if isinstance(item, media.Frame):
                    frames.append(item.pixels_YXC)
                else:
                    sound.add(item.position, item.samples_S)
        sound.end()
        box_F4, crops, last = np.full((len(frames), 4), np.nan), [], None
        for index, pixels in enumerate(frames):
            face = last = self._find(pixels, last)
            crops.append(align([torch.from_numpy(pixels)], [face and face.landmark_px])[0].numpy())
            if face is not None:
                box_F4[index] = face.box_px
        clips = [np.stack([crops[i] for i in frame_K]) for frame_K in grid.frame_NK]
        maps = [self._encode(np.stack(clips[start : start + BATCH])) for start in range(0, len(clips), BATCH)]
        sounds = np.stack([sound.read(end_s, grid.num_samples) for end_s in grid.end_time_s])
        with torch.inference_mode():
            for start in range(0, len(sounds), BATCH):
                self.audio(torch.from_numpy(sounds[start : start + BATCH]))
        return np.concatenate(maps), box_F4

    def _find(self, pixels: npt.NDArray[np.uint8], last: Face | None) -> Face | None:
        boxes, probabilities, landmarks = self.mtcnn.detect(pixels[None], landmarks=True)
        if boxes[0] is None:
            return None
        found = [
            Face(np.asarray(box, np.float64), np.asarray(points, np.float64), float(probability))
            for box, points, probability in zip(boxes[0], landmarks[0], probabilities[0], strict=True)
        ]
        nearest = max(found, key=lambda face: overlap(face.box_px, last.box_px)) if last else found[0]
        return nearest if last is None or overlap(nearest.box_px, last.box_px) >= MIN_OVERLAP else found[0]

    def _encode(self, clips_BKYXC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            video_BCKYX = torch.from_numpy(clips_BKYXC).permute(0, 4, 1, 2, 3).float()
            maps: npt.NDArray[np.float32] = self.video((video_BCKYX - self.mean_C) / self.std_C).mean(dim=2).numpy()
        return maps


def default_options(root: Path, cache: Path, **changes: Any) -> ExtractOptions:
    """Return the default settings, but for weights that need no file."""
    given: dict[str, Any] = {"corpus": "folder", "engine": "serial", "hop": HOP, "num_workers": 1}
    weights = {"video_weights": WEIGHTS, "audio_weights": WEIGHTS}
    return ExtractOptions(root=root, cache=cache, **{**given, **weights, **changes})


def start_worker(options: ExtractOptions) -> tuple[Worker, FeatureCache, list[Recording]]:
    """Return a worker of an extraction with its cache and its recordings."""
    ready = prepare(options)
    cache = FeatureCache.create(options.cache or "", ready.spec, ready.networks.provenance)
    return ready.job(cache.path)(0), cache, ready.share


def boxes_of(options: ExtractOptions, path: Path) -> npt.NDArray[np.float64]:
    """Return the box of every frame as the default settings find it."""
    from avfuse.detection import FaceDetector
    from avfuse.faces import FaceTrack

    timeline = media.probe(path)
    detector = FaceDetector(options.min_face_px, torch.device("cpu"))
    track = FaceTrack(detector, timeline.num_frames, options.detect_every, None, options.detection)
    wanted_F = track.detected_F()
    wanted_F[ClipGrid.lay(timeline, options.hop).frame_NK] = True
    with media.Reading(path, timeline, wanted_F, sound=False) as reading:
        for _ in track.crops((item.index, item.pixels_YXC) for item in reading if isinstance(item, media.Frame)):
            pass
    return np.asarray(track.box_F4, np.float64)


def compare(plain: Outcome, fast: Outcome) -> dict[str, Any]:
    """Return how much faster the default is, and how far boxes and maps agree."""
    both_F = np.isfinite(plain.box_F4[:, 0]) & np.isfinite(fast.box_F4[:, 0])
    ious = np.array([overlap(a, b) for a, b in zip(plain.box_F4[both_F], fast.box_F4[both_F], strict=True)])
    one, other = (item.video_NCHW.reshape(len(item.video_NCHW), -1).astype(np.float64) for item in (plain, fast))
    cosine_N, strangers_N = cosines(one, other), cosines(one, np.roll(other, len(other) // 2, axis=0))
    found = [np.isfinite(item.box_F4[:, 0]) for item in (plain, fast)]
    return {
        "cpu_ratio": plain.cpu_s / fast.cpu_s,
        "wall_ratio": plain.wall_s / fast.wall_s,
        "plain_cpu_ms_per_clip": 1000 * plain.cpu_s / len(plain.video_NCHW),
        "cpu_ms_per_clip": 1000 * fast.cpu_s / len(fast.video_NCHW),
        "box_iou_median": float(np.median(ious)),
        "box_iou_1_percent": float(np.quantile(ious, 0.01)),
        "frames_missed": int((found[0] & ~found[1]).sum()),
        "frames_added": int((found[1] & ~found[0]).sum()),
        "num_frames": len(plain.box_F4),
        "cosine_median": float(np.median(cosine_N)),
        "cosine_1_percent": float(np.quantile(cosine_N, 0.01)),
        "cosine_of_other_clips_median": float(np.median(strangers_N)),
    }


def cosines(one_ND: npt.NDArray[np.float64], other_ND: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the cosine of each row with the row beside it."""
    norms_N = np.linalg.norm(one_ND, axis=1) * np.linalg.norm(other_ND, axis=1)
    return np.asarray((one_ND * other_ND).sum(axis=1) / np.maximum(norms_N, 1e-9))


def measure_size(name: str, folder: Path, length_s: float) -> dict[str, Any]:
    """Run both pipelines on one file of a size."""
    height_px, width_px = SIZES_PX[name]
    root = folder / name
    root.mkdir()
    film(root / "a_warm_up.mp4", height_px, width_px, WARM_UP_S, seed=1)
    path = film(root / "b.mp4", height_px, width_px, length_s, seed=2)
    options = default_options(root, folder / "cache", dataset=name)
    worker, cache, (first, second) = start_worker(options)
    plain = Straightforward()
    try:
        worker.process(first, lambda done, total: None)
        plain(first.path)
        (maps, boxes), plain_cpu_s, plain_wall_s = timed(lambda: plain(path))
        receipt, cpu_s, wall_s = timed(lambda: worker.process(second, lambda done, total: None))
    finally:
        worker.close()
    if receipt.outcome != "extracted":
        sys.exit(f"{path} was not extracted: {receipt}")
    kept = np.concatenate(list(cache.recording(second.name).video.chunks())).astype(np.float32)
    fast = Outcome(cpu_s, wall_s, kept, boxes_of(options, path))
    return compare(Outcome(plain_cpu_s, plain_wall_s, maps, boxes), fast)


def measure_encoder(repeats: int) -> dict[str, Any]:
    """Time the video encoder as extraction places it against torchvision's own form in float32, in turns."""
    device = choose_device("cpu")
    precision = choose_precision("auto", device)
    plain, fast = Straightforward(), R3DEncoder(WEIGHTS)
    fast.place(device, precision)
    clips = np.random.default_rng(0).integers(0, 256, (BATCH, 8, 112, 112, 3), np.uint8)
    times: dict[str, list[float]] = {"plain": [], "fast": []}
    with torch.inference_mode():
        given = torch.from_numpy(clips)
        for _ in range(repeats + 1):
            one, plain_s, _ = timed(lambda: plain._encode(clips))
            other, fast_s, _ = timed(lambda: fast(given))
            times["plain"].append(plain_s)
            times["fast"].append(fast_s)
    one, other = one.ravel().astype(np.float64), other.numpy().ravel().astype(np.float64)
    plain_s, fast_s = (statistics.median(values[1:]) for values in times.values())
    cosine = float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
    per_clip_ms = {"plain_ms_per_clip": 1000 * plain_s / BATCH, "ms_per_clip": 1000 * fast_s / BATCH}
    return {"precision": precision, "ratio": plain_s / fast_s, "cosine": cosine, **per_clip_ms}


def measure_stages(folder: Path, length_s: float) -> dict[str, Any]:
    """Return the share of each stage, and the wall time of one worker against its slowest stage."""
    from avfuse.planning import plan

    root = folder / "stages"
    root.mkdir()
    for name, seed in (("a_warm_up", 1), ("b", 3), ("c", 4)):
        film(root / f"{name}.mp4", *SIZES_PX["360p"], WARM_UP_S if seed == 1 else length_s, seed=seed)
    options = default_options(root, folder / "cache", dataset="stages")
    found = plan(options, lambda done, total, note: None)
    shares = {stage.name: stage.share for stage in found.stages}
    slowest = max(found.stages, key=lambda stage: stage.cpu_ms_per_clip)
    worker, _, (first, *others) = start_worker(options)
    try:
        worker.process(first, lambda done, total: None)
        with ThreadPoolExecutor(worker.num_side_by_side) as pool:  # as engines have it work
            process = partial(worker.process, on_progress=lambda done, total: None)
            receipts, cpu_s, wall_s = timed(lambda: list(pool.map(process, others)))
    finally:
        worker.close()
    num_clips = sum(receipt.num_clips for receipt in receipts)
    busy = sum(share for name, share in shares.items() if "detect" in name or "encode picture" in name)
    return {
        "shares": shares,
        "neither_detection_nor_encoding": 1 - busy,
        "wall_over_slowest_stage": wall_s / (num_clips * slowest.cpu_ms_per_clip / 1000),
        "cpu_over_wall": cpu_s / wall_s,
    }


_PEAK = """
import json, re, sys
from pathlib import Path
import avfuse
import torch
torch.set_num_threads(int(sys.argv[4]))
from avfuse.extract import extract
from avfuse.options import ExtractOptions
summary = extract(ExtractOptions(root=Path(sys.argv[1]), cache=Path(sys.argv[2]), corpus="folder", engine="serial",
    hop=int(sys.argv[3]), video_weights="random:0", audio_weights="random:0", min_face_share=0.0))
assert summary.num_extracted == 1, summary
status = Path("/proc/self/status").read_text()  # what getrusage tells begins with the memory of the parent
peak_bytes = 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1])
print(json.dumps([peak_bytes, summary.num_clips, summary.elapsed_s]))
"""


def measure_memory(folder: Path, lengths_min: tuple[float, float], hop: int, num_threads: int) -> dict[str, Any]:
    """Return the peak of resident memory of a long recording against that of a short one, each in its own process."""
    peaks = []
    minute = film(folder / "minute.mkv", 180, 320, 60.0, seed=5)
    for length_min in lengths_min:
        root = folder / f"{length_min:g}min"
        root.mkdir()
        repeat(minute, root / "a.mkv", round(length_min))
        arguments = (str(root), str(folder / "cache"), str(hop), str(num_threads))
        done = subprocess.run([sys.executable, "-c", _PEAK, *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        peaks.append(json.loads(done.stdout.splitlines()[-1]))
    (short, *_), (long, num_clips, elapsed_s) = peaks
    return {
        "lengths_min": list(lengths_min),
        "hop": hop,
        "peak_bytes": [short, long],
        "ratio": long / short,
        "num_clips": num_clips,
        "elapsed_s": elapsed_s,
    }


def show(found: dict[str, Any]) -> None:
    """Print the figures as tables."""
    rows = [
        (
            name,
            f"{of['plain_cpu_ms_per_clip']:.0f} ms",
            f"{of['cpu_ms_per_clip']:.0f} ms",
            f"{of['cpu_ratio']:.2f}",
            f"{of['wall_ratio']:.2f}",
            f"{of['box_iou_median']:.3f} / {of['box_iou_1_percent']:.3f}",
            f"{of['frames_missed']} / {of['frames_added']} of {of['num_frames']}",
            f"{of['cosine_median']:.4f} / {of['cosine_1_percent']:.4f}",
            f"{of['cosine_of_other_clips_median']:.4f}",
        )
        for name, of in found["sizes"].items()
    ]
    columns = ("size", "plain, CPU per clip", "default", "CPU ratio", "wall ratio", "IoU median / 1 %")
    more = ("missed / added", "cosine median / 1 %", "of other clips")
    print_table(ReportTable("Extraction", (*columns, *more), tuple(rows), ()))
    encoder = found["encoder"]
    told = f"{encoder['plain_ms_per_clip']:.0f} ms / {encoder['ms_per_clip']:.0f} ms = {encoder['ratio']:.2f}"
    print(f"encoder, float32 as it ships / {encoder['precision']}: {told}; cosine {encoder['cosine']:.6f}")
    stages = found["stages"]
    print("stages: " + ", ".join(f"{name} {100 * share:.1f} %" for name, share in stages["shares"].items()))
    print(f"neither detection nor encoding of pictures: {100 * stages['neither_detection_nor_encoding']:.1f} %")
    print(f"wall over slowest stage, one worker: {stages['wall_over_slowest_stage']:.2f}")
    if memory := found.get("memory"):
        short, long = (
            f"{length:g} min {peak / 1e6:,.0f} MB"
            for length, peak in zip(memory["lengths_min"], memory["peak_bytes"], strict=True)
        )
        print(f"peak of memory: {short}, {long} ({memory['num_clips']:,} clips): ratio {memory['ratio']:.3f}")
    print(found["machine"])


def missed_targets(found: dict[str, Any]) -> list[str]:
    """Return in words which of the figures are not what is aimed at."""
    aims = [
        ("encoder's ratio", found["encoder"]["ratio"], 2.5, 1),
        ("encoder's cosine", found["encoder"]["cosine"], 0.9999, 1),
        ("neither detection nor encoding", found["stages"]["neither_detection_nor_encoding"], 0.1, -1),
    ]
    for name, least in (("360p", 4.0), ("720p", 5.5)):
        of = found["sizes"][name]
        aims += [
            (f"CPU ratio of {name}", of["cpu_ratio"], least, 1),
            (f"overlap of boxes of {name}, median", of["box_iou_median"], 0.95, 1),
            (f"overlap of boxes of {name}, 1 %", of["box_iou_1_percent"], 0.8, 1),
        ]
    if memory := found.get("memory"):
        aims.append(("memory's ratio", memory["ratio"], 1.1, -1))
    return [
        f"missed: {name} {value:.4g}, aimed at {'at least' if sign > 0 else 'at most'} {aim:g}"
        for name, value, aim, sign in aims
        if sign * value < sign * aim
    ]


def main() -> int:
    """Measure and print; return 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=12.0, help="length of the recordings")
    parser.add_argument("--repeats", type=int, default=5, help="turns of the encoder alone")
    parser.add_argument("--memory", action="store_true", help="also a recording of --long minutes against one of 2")
    parser.add_argument("--long", type=float, default=120.0, help="minutes of the long recording")
    parser.add_argument("--hop", type=int, default=32, help="of the two recordings whose memory is measured")
    arguments = read_arguments(parser)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        found: dict[str, Any] = {
            "machine": describe_machine(("torch", "torchvision", "facenet-pytorch", "av")),
            "encoder": measure_encoder(arguments.repeats),
            "sizes": {size: measure_size(size, folder, arguments.seconds) for size in SIZES_PX},
            "stages": measure_stages(folder, arguments.seconds),
        }
        if arguments.memory:
            found["memory"] = measure_memory(folder, (2.0, arguments.long), arguments.hop, threads)
    found["missed"] = missed_targets(found)
    if arguments.json:
        print(json.dumps(found))
    else:
        show(found)
        print(*found["missed"], sep="\n")
    return 1 if found["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
