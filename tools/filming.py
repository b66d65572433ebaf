"""Videos of one moving face in a still picture, of any size, for the benchmarks of extraction."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import skimage.data
import torch
from torch.nn import functional

from avfuse.synthesis import SAMPLE_RATE_HZ, Corruption, Script, render_frames, smooth_trace

FPS = 25
FACE_SHARE = 0.7  # of the height of the picture, with the surroundings that move along
_FROM_S, _TO_S = (0.55, 0.75), (0.65, 0.80)  # when, in shares of the length, the face is covered, and when it is gone


def render(height_px: int, width_px: int, num_frames: int, seed: int, speed: float) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield the frames (Y, X, 3) of a face that wanders at a speed, is covered for a while, and is gone for another."""
    rng = np.random.default_rng(seed)
    cues = {name: smooth_trace(rng, num_frames, FPS, 2.0) for name in ("light", "smile", "brow", "mouth")}
    spans = [(round(start * num_frames), round(stop * num_frames)) for start, stop in zip(_FROM_S, _TO_S, strict=True)]
    kinds = ("covered", "gone")
    hidden = tuple(Corruption("face", kind, *span) for kind, span in zip(kinds, spans, strict=True))
    behind = _resize(np.asarray(skimage.data.coffee())[None], height_px, width_px)[0]
    side_px = int(FACE_SHARE * height_px)
    way_F2 = np.stack([smooth_trace(rng, num_frames, FPS, period_s / speed) for period_s in (4.0, 5.0)], axis=1)
    corner_F2 = ((1 + 0.9 * way_F2) * (np.array([width_px, height_px]) - side_px) / 2).astype(int)
    place = iter(corner_F2.tolist())
    for faces in render_frames(Script(cues, hidden, FPS), rng):
        for face in _resize(faces, side_px, side_px):
            x_px, y_px = next(place)
            frame = behind.copy()
            frame[y_px : y_px + side_px, x_px : x_px + side_px] = face
            yield frame


def film(path: Path, height_px: int, width_px: int, length_s: float, seed: int = 0, speed: float = 1.0) -> Path:
    """Write such a video with sound, as H.264 and AAC, or with plain samples in Matroska; see `repeat`."""
    num_frames = round(length_s * FPS)
    rng, is_plain = np.random.default_rng(seed), path.suffix == ".mkv"
    with av.open(str(path), "w") as container:
        picture = container.add_stream(
            "libx264", rate=FPS, options={"preset": "veryfast", "crf": "20", "bf": "0" if is_plain else "3"}
        )
        picture.width, picture.height, picture.pix_fmt = width_px, height_px, "yuv420p"
        sound = container.add_stream("pcm_s16le" if is_plain else "aac", rate=SAMPLE_RATE_HZ, layout="mono")
        per_frame = SAMPLE_RATE_HZ // FPS
        for index, pixels in enumerate(render(height_px, width_px, num_frames, seed, speed)):
            container.mux(picture.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            noise = (0.1 * rng.standard_normal((1, per_frame))).astype(np.float32)
            noise = (noise * 32767).astype(np.int16) if is_plain else noise
            piece = av.AudioFrame.from_ndarray(noise, format="s16" if is_plain else "fltp", layout="mono")
            piece.sample_rate, piece.pts = SAMPLE_RATE_HZ, index * per_frame
            container.mux(sound.encode(piece))
        container.mux(picture.encode())
        container.mux(sound.encode())
    return path


def repeat(source: Path, path: Path, count: int) -> Path:
    """Write a video that shows another one, a Matroska file of `film`, `count` times, without encoding it again."""
    with av.open(str(source)) as one, av.open(str(path), "w") as container:
        streams = {stream.index: container.add_stream_from_template(stream) for stream in one.streams}
        packets = [packet for packet in one.demux() if packet.size]
        length_s = Fraction(sum(packet.stream.type == "video" for packet in packets), FPS)
        kept = [(packet.stream.index, packet.pts, packet.dts, packet.time_base, bytes(packet)) for packet in packets]
        keys = [packet.is_keyframe for packet in packets]
        for number in range(count):
            for (index, pts, dts, time_base, content), is_key in zip(kept, keys, strict=True):
                packet, shift = av.Packet(content), round(number * length_s / time_base)
                packet.stream, packet.time_base, packet.is_keyframe = streams[index], time_base, is_key
                packet.pts, packet.dts = pts + shift, dts + shift
                container.mux(packet)
    return path


def _resize(images: npt.NDArray[np.uint8], height_px: int, width_px: int) -> npt.NDArray[np.uint8]:
    images_NCYX = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    size = (height_px, width_px)
    resized_NCYX = functional.interpolate(images_NCYX, size=size, mode="bilinear", antialias=True)
    resized: npt.NDArray[np.uint8] = resized_NCYX.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return resized
