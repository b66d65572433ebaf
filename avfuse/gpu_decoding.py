"""Frames decoded by the decoder of an NVIDIA GPU, through torchcodec; the sound is decoded on the CPU beside them.

The pixels stay on the GPU. Frames are asked for by their numbers, and recognised by their times. What the GPU does not
decode as it should (a codec that it does not know, a damaged packet, a frame that comes with another's time), the CPU
decodes, from that frame on to the end of the recording; so what is lost is counted as it always is. Damage that the GPU
conceals without a word is not counted. Where the GPU lacks memory, the recording fails, and can be tried again. Colours
are converted by other arithmetic than on the CPU, so that pixels differ a little, which is why a cache knows what
decoded them.

torchcodec is loaded when it is needed. It reads a file that `avfuse.media` has probed and found within its limits.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import torch

from avfuse.batching import is_out_of_memory
from avfuse.container import count_pixels, open_file, video_stream
from avfuse.media import Frame, Losses, Reading, side_by_side
from avfuse.schema import UsageError
from avfuse.sound import NO_MORE, Sound
from avfuse.timeline import Timeline

log = logging.getLogger(__name__)

MAX_FRAMES, MAX_PIXELS = 16, 2**24  # that are asked for at a time: of 1080 lines, eight frames
SAMPLE_PX = 256  # the side of the picture on which a GPU shows that it decodes
_BACKENDS = {"cuda": "beta", "cpu": "ffmpeg"}  # of two for CUDA the faster, which has FFmpeg do nothing but read
_FAULTS = (RuntimeError, ValueError, IndexError)  # what torchcodec says of files, of codecs and of its libraries


def refuse_unusable(device: torch.device) -> None:
    """Decode a picture on a GPU, to see that everything is there which that takes.

    Raises
    ------
    UsageError
        If the device is no GPU, or torchcodec, the libraries of FFmpeg, or a decoder for H.264 are missing.
    """
    if device.type != "cuda":
        raise UsageError(f"--decode gpu needs a CUDA device, not {device}; choose one with --device, or --decode cpu")
    _torchcodec()
    try:
        _open(_sample(), 0, device).get_frames_at([0])
    except _FAULTS as error:
        index = f"https://download.pytorch.org/whl/cu{(torch.version.cuda or '').replace('.', '')}"
        raise UsageError(
            f"--decode gpu: torchcodec {version('torchcodec')} cannot decode on {device} ({_first_line(error)}); it "
            f"must be built for CUDA, as from pip install --index-url {index} 'torchcodec<0.12', and the driver must "
            "bring libnvcuvid; or choose --decode cpu"
        ) from error


def library_versions() -> dict[str, str]:
    """Return what a fingerprint holds besides the versions of `media`, by which sound and the rest are decoded."""
    return {"picture": "nvdec", "torchcodec": version("torchcodec")}


class GpuReading:
    """What a `media.Reading` yields, picture and sound, with frames whose pixels are tensors on a device.

    It is a context manager, and iterable once. The sound runs about a second ahead of the picture.

    Parameters
    ----------
    path : Path
    timeline : Timeline
        Of the file, by which frames are recognised.
    wanted_F : ndarray, (F,), bool
        Which frames to yield; those that the CPU has to decode come as arrays.
    device : torch.device
    sound : bool
        Whether to decode it; `NO_MORE` stands for a sound that is not decoded.

    Raises
    ------
    RecordingError
        As `media.Reading`.

    Attributes
    ----------
    num_pixels : int
        Of a picture, as the header tells.
    """

    def __init__(
        self,
        path: Path,
        timeline: Timeline,
        wanted_F: npt.NDArray[np.bool_],
        device: torch.device,
        *,
        sound: bool = True,
    ) -> None:
        self._path, self._timeline, self._device = path, timeline, device
        self._missing_F = wanted_F.copy()
        self._seen = Losses(num_video_packets=int(wanted_F.sum()))  # a frame that is wanted stands for a packet
        with open_file(path) as container:
            stream = video_stream(container, path)
            self._stream_index, self.num_pixels = int(stream.index), count_pixels(stream)
        self._sound = Reading(path, timeline, wanted_F, picture=False) if sound else None

    def __enter__(self) -> GpuReading:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._sound is not None:
            self._sound.close()

    @property
    def losses(self) -> Losses:
        """What could not be decoded, after the end of the iteration."""
        seen, heard = self._seen, Losses() if self._sound is None else self._sound.losses
        return Losses(
            num_video_packets=seen.num_video_packets,
            num_video_lost=seen.num_video_lost,
            num_audio_packets=heard.num_audio_packets,
            num_audio_lost=heard.num_audio_lost,
            breaks_off=seen.breaks_off or heard.breaks_off,
        )

    def __iter__(self) -> Iterator[Frame | Sound]:
        if self._sound is None:
            yield NO_MORE
            yield from self._frames()
        else:
            sounds = (item for item in self._sound if isinstance(item, Sound))
            yield from side_by_side(self._frames(), sounds, self._timeline)

    def _frames(self) -> Iterator[Frame]:
        """Yield the frames, by the GPU as far as it goes."""
        try:
            yield from self._decoded()
        except _FAULTS as error:
            if is_out_of_memory(error):  # which may pass, and then the GPU would decode what the CPU has
                raise
            first = int(np.argmax(self._missing_F))
            told = "%s: from frame %d on pictures are decoded on the CPU, as the GPU does not: %s"
            log.warning(told, self._path, first, _first_line(error))
        else:
            return
        with Reading(self._path, self._timeline, self._missing_F, sound=False) as reading:
            yield from (item for item in reading if isinstance(item, Frame))
            self._seen = reading.losses

    def _decoded(self) -> Iterator[Frame]:
        """Yield frames of the GPU; a fault is raised in place of the first that is not there, or not in its place."""
        time_F = self._timeline.frame_time_s
        decoder = _open(str(self._path.absolute()), self._stream_index, self._device)
        if len(decoder) != len(time_F) or self._timeline.is_ordered:
            raise ValueError(f"it counts {len(decoder)} frames, and {len(time_F)} have a time of their own")
        interval_F = np.diff(time_F, prepend=-np.inf, append=np.inf)
        tolerance_F = np.minimum(interval_F[:-1], interval_F[1:]) / 2
        num_pixels = max(1, decoder.metadata.width * decoder.metadata.height)
        step = min(MAX_FRAMES, max(1, MAX_PIXELS // num_pixels))
        wanted = np.flatnonzero(self._missing_F).tolist()
        for batch in (wanted[start : start + step] for start in range(0, len(wanted), step)):
            with _current(self._device):
                found = decoder.get_frames_at(batch)
            for index, time_s, pixels_YXC in zip(batch, found.pts_seconds.tolist(), found.data, strict=True):
                if abs(time_s - time_F[index]) >= tolerance_F[index]:
                    raise ValueError(f"the frame of {time_F[index]:.3f} s came with the time {time_s:.3f} s")
                self._missing_F[index] = False
                yield Frame(index, pixels_YXC)


def _torchcodec() -> Any:
    """Return torchcodec's page of decoders."""
    try:
        return import_module("torchcodec.decoders")
    except ImportError as error:
        told = "decoding on a GPU needs torchcodec; install it with: pip install 'avfuse[gpu-decode]'"
        raise UsageError(told) from error
    except (RuntimeError, OSError) as error:
        raise UsageError(
            f"torchcodec {version('torchcodec')} is installed but cannot be loaded: it needs the shared libraries of "
            "FFmpeg 4 to 8, as from apt-get install ffmpeg or conda install ffmpeg, and the torch it was built for"
        ) from error


def _open(source: str | bytes, stream_index: int, device: torch.device) -> Any:
    """Return a decoder of a file, by its absolute path, or of its content; a fault if the GPU cannot decode it."""
    decoders = _torchcodec()
    with decoders.set_cuda_backend(_BACKENDS[device.type]), _current(device):
        decoder = decoders.VideoDecoder(
            source, stream_index=stream_index, dimension_order="NHWC", device=str(device), seek_mode="exact"
        )
        if decoder.cpu_fallback:
            raise ValueError(str(decoder.cpu_fallback))
    return decoder


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Make a GPU that of this thread: NVIDIA's decoder takes no device, but what is current."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _sample() -> bytes:
    """Return a video of one black picture."""
    content = io.BytesIO()
    with av.open(content, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = SAMPLE_PX
        stream.pix_fmt = "yuv420p"
        black = np.zeros((SAMPLE_PX, SAMPLE_PX, 3), np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(black, format="rgb24")))
        container.mux(stream.encode())
    return content.getvalue()


def _first_line(error: BaseException) -> str:
    """Return what an error says first, without the place in torchcodec's source that it begins with."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return re.sub(r"^\w+, \S+:\d+, ", "", line)
