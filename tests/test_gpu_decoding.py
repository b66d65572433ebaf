"""Pictures decoded by torchcodec: on the CPU, where it is installed, as on a GPU, but for the device."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import bad_files
import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import beep, frames_of, write_video

from avfuse import gpu_decoding
from avfuse.gpu_decoding import GpuReading, refuse_unusable
from avfuse.media import Frame, Losses, Reading, probe
from avfuse.schema import RecordingError, UsageError
from avfuse.sound import NO_MORE, Sound

CPU = torch.device("cpu")
REGULAR = np.arange(40) / 25


def is_there() -> bool:
    try:
        gpu_decoding._torchcodec()
    except UsageError:
        return False
    return True


with_torchcodec = pytest.mark.skipif(not is_there(), reason="torchcodec, or FFmpeg for it, is not installed")


def image(index: int) -> npt.NDArray[np.uint8]:
    """Return a picture of its own for every index, smooth, so that how colours are resampled matters little."""
    y, x = np.mgrid[0:96, 0:128]
    waves = [127 + 120 * np.sin((x + rate * y + 9 * index) / 25) for rate in (0.2, 0.7, 1.5)]
    return np.stack(waves, axis=-1).astype(np.uint8)


def film(path: Path, **settings: Any) -> Path:
    return write_video(path, settings.pop("frame_time_s", REGULAR), image, beep(0.5, 1.6), **settings)


def read(path: Path, wanted: slice = slice(None), **settings: Any) -> tuple[list[Frame | Sound], Losses]:
    timeline = probe(path)
    wanted_F = np.zeros(timeline.num_frames, np.bool_)
    wanted_F[wanted] = True
    with GpuReading(path, timeline, wanted_F, CPU, **settings) as reading:
        return list(reading), reading.losses


def frames(items: list[Frame | Sound]) -> dict[int, npt.NDArray[np.uint8]]:
    return {item.index: np.asarray(item.pixels_YXC) for item in items if isinstance(item, Frame)}


# With torchcodec

FILES: dict[str, dict[str, Any]] = {
    "plain.mp4": {},
    "b_frames.mkv": {"video_options": {"bf": "3", "g": "12"}},
    "variable.mp4": {"frame_time_s": 0.5 + np.cumsum(np.random.default_rng(0).uniform(0.02, 0.16, 40))},
    "rotated.mp4": {"rotation": 90},
    "hd_colours.mp4": {"video_options": {"x264-params": "colormatrix=bt709"}},
    "http:name.mp4": {},
}


@with_torchcodec
@pytest.mark.parametrize("name", list(FILES))
def test_pixels_and_sound_are_those_of_the_other_decoder(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = film(tmp_path / name, **FILES[name])
    items, losses = read(path, slice(1, None, 3))
    assert "decoded on the CPU" not in caplog.text
    expected = frames_of(path)
    shown = frames(items)
    assert list(shown) == list(range(1, 40, 3))
    for index, pixels_YXC in shown.items():
        assert pixels_YXC.dtype == np.uint8
        # Both convert colours in integers, in builds of their own.
        np.testing.assert_allclose(pixels_YXC.astype(int), expected[index], rtol=0, atol=2)
    timeline = probe(path)
    with Reading(path, timeline, np.zeros(timeline.num_frames, np.bool_), picture=False) as reading:
        whole_S = np.concatenate([item.samples_S for item in reading if isinstance(item, Sound)])
    heard = [item.samples_S for item in items if isinstance(item, Sound)]
    heard_S = np.concatenate(heard)
    np.testing.assert_array_equal(heard_S, whole_S[: len(heard_S)])  # behind the last frame it is only counted
    assert losses == Losses(num_video_packets=13, num_audio_packets=losses.num_audio_packets)
    assert losses.num_audio_packets > 60


@with_torchcodec
def test_a_frame_comes_when_its_soundis_there(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4", frame_time_s=np.arange(125) / 25)
    come_s, ahead_s = 0.0, []
    for item in read(path)[0]:
        if isinstance(item, Frame):
            ahead_s.append(come_s - item.index / 25)
        else:
            come_s = (item.position + len(item.samples_S)) / 44_100
    assert min(ahead_s[:15]) >= 1.0
    assert max(ahead_s[:15]) < 1.2


@with_torchcodec
def test_without_sound(tmp_path: Path) -> None:
    path = write_video(tmp_path / "silent.mp4", REGULAR, image)
    items, losses = read(path, sound=False)
    assert items[0] is NO_MORE
    assert list(frames(items)) == list(range(40))
    assert losses == Losses(num_video_packets=40)
    with pytest.raises(RecordingError, match="holds no audio stream"):
        read(path)


@with_torchcodec
def test_from_damage_on_the_cpu_decodes_and_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = film(tmp_path / "a.mp4", video_options={"g": "10", "bf": "0"})
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    start, size = places[30]
    content[start : start + size] = bytes(size)
    path.write_bytes(content)
    items, losses = read(path)
    expected = frames_of(path)
    assert list(frames(items)) == list(expected)
    assert 30 not in expected
    for index, pixels_YXC in frames(items).items():
        np.testing.assert_allclose(pixels_YXC.astype(int), expected[index], rtol=0, atol=2)
    num_lost = 40 - len(expected)  # until the next key frame
    assert (losses.num_video_packets, losses.num_video_lost, losses.num_audio_lost) == (40, num_lost, 0)
    assert sum("pictures are decoded on the CPU" in message for message in caplog.messages) == 1
    assert any(isinstance(item, Frame) and isinstance(item.pixels_YXC, torch.Tensor) for item in items)


@with_torchcodec
def test_a_cover_is_no_picture(tmp_path: Path) -> None:
    bad_files._sound_with_cover(tmp_path / "song.mp4")
    timeline = probe(film(tmp_path / "a.mp4"))
    with pytest.raises(RecordingError, match="no video stream"):
        GpuReading(tmp_path / "song.mp4", timeline, np.ones(40, np.bool_), CPU)


# With a decoder that stands in for it


class Decoder:
    """Gives dark frames at regular times, but for what is to go wrong."""

    made: dict[str, Any]

    def __init__(
        self,
        length: int = 40,
        fails_at: int = 99,
        late_from: int = 99,
        fallback: str = "",
        error: type[Exception] = RuntimeError,
    ) -> None:
        self.length, self.fails_at, self.late_from, self.error = length, fails_at, late_from, error
        self.cpu_fallback = fallback
        self.metadata = SimpleNamespace(width=128, height=96)
        self.asked: list[list[int]] = []

    def __len__(self) -> int:
        return self.length

    def get_frames_at(self, indices: list[int]) -> Any:
        self.asked.append(indices)
        if self.fails_at in indices:
            raise self.error("decode, /src/Decoder.cpp:12, a broken packet\nand more")
        times_s = [index / 25 + (0.04 if index >= self.late_from else 0.001) for index in indices]
        data = torch.zeros(len(indices), 96, 128, 3, dtype=torch.uint8)
        return SimpleNamespace(data=data, pts_seconds=torch.tensor(times_s, dtype=torch.float64))


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[Decoder], Decoder]:
    """Return what puts a decoder in the place of torchcodec's."""

    def put(decoder: Decoder) -> Decoder:
        def make(source: str, **settings: Any) -> Decoder:
            decoder.made = {"source": source, **settings}
            return decoder

        context = gpu_decoding.nullcontext
        page = SimpleNamespace(VideoDecoder=make, set_cuda_backend=lambda name: context(name))
        monkeypatch.setattr(gpu_decoding, "_torchcodec", lambda: page)
        return decoder

    return put


def dark_and_others(items: list[Frame | Sound]) -> tuple[list[int], list[int]]:
    """Return the indices of the frames that came from the stand-in, and of those that were really decoded."""
    shown = frames(items)
    dark = [index for index, pixels_YXC in shown.items() if not pixels_YXC.any()]
    return dark, [index for index in shown if index not in dark]


def test_frames_are_asked_for_by_number_a_few_at_a_time(tmp_path: Path, stand_in: Any) -> None:
    decoder = stand_in(Decoder())
    path = film(tmp_path / "a.mp4")
    items, _ = read(path, slice(0, 40, 2))
    assert decoder.asked == [list(range(0, 32, 2)), list(range(32, 40, 2))]
    assert dark_and_others(items) == (list(range(0, 40, 2)), [])
    assert decoder.made == {
        "source": str(path),
        "stream_index": 0,
        "dimension_order": "NHWC",
        "device": "cpu",
        "seek_mode": "exact",
    }


def test_large_pictures_are_asked_for_in_smaller_batches(
    tmp_path: Path, stand_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_decoding, "MAX_PIXELS", 2 * 96 * 128 + 5)
    decoder = stand_in(Decoder())
    read(film(tmp_path / "a.mp4"), slice(0, 5))
    assert decoder.asked == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize(
    ("decoder", "first", "told"),
    [
        (Decoder(fails_at=20), 16, "from frame 16 on pictures are decoded on the CPU, as the GPU does not: a broken"),
        (Decoder(fails_at=20, error=IndexError), 16, "a broken packet"),
        (Decoder(late_from=20), 20, "the frame of 0.800 s came with the time 0.840 s"),
        (Decoder(length=39), 0, "it counts 39 frames, and 40 have a time of their own"),
        (Decoder(fallback="NVcuvid unavailable"), 0, "NVcuvid unavailable"),
    ],
)
def test_what_the_gpu_does_not_decode_the_cpu_does(
    tmp_path: Path, stand_in: Any, caplog: pytest.LogCaptureFixture, decoder: Decoder, first: int, told: str
) -> None:
    stand_in(decoder)
    items, losses = read(film(tmp_path / "a.mp4"))
    assert dark_and_others(items) == (list(range(first)), list(range(first, 40)))
    assert (losses.num_video_packets, losses.num_video_lost) == (40, 0)
    assert told in caplog.text


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError])
def test_other_errors_are_not_hidden(tmp_path: Path, stand_in: Any, error: type[Exception]) -> None:
    stand_in(Decoder(fails_at=3, error=error))
    with pytest.raises(error, match="a broken packet"):
        read(film(tmp_path / "a.mp4"))


def test_frames_of_one_time_are_left_to_the_cpu(tmp_path: Path, stand_in: Any) -> None:
    path = write_video(tmp_path / "a.avi", REGULAR, image, beep(0.5, 1.6), video_options={"bf": "2"})
    stand_in(Decoder(length=probe(path).num_frames))
    assert probe(path).is_ordered
    dark, others = dark_and_others(read(path)[0])
    assert dark == []
    assert len(others) == probe(path).num_frames


# Whether there is a GPU that decodes

CUDA = torch.device("cuda")


def test_the_cpu_is_no_gpu() -> None:
    with pytest.raises(UsageError, match="--decode gpu needs a CUDA device, not cpu; choose one with --device, or"):
        refuse_unusable(CPU)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ImportError("no module"), r"needs torchcodec; install it with: pip install 'avfuse\[gpu-decode\]'"),
        (RuntimeError("Could not load libtorchcodec."), "needs the shared libraries of FFmpeg 4 to 8"),
    ],
)
def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, error: Exception, told: str) -> None:
    def fail(name: str) -> None:
        assert name == "torchcodec.decoders"
        raise error

    monkeypatch.setattr(gpu_decoding, "import_module", fail)
    monkeypatch.setattr(gpu_decoding, "version", lambda name: "0.11.1")
    with pytest.raises(UsageError, match=told):
        refuse_unusable(CUDA)


@pytest.mark.parametrize("decoder", [Decoder(fails_at=0), Decoder(fallback="a broken driver")])
def test_a_gpu_that_does_not_decode_is_refused(
    stand_in: Any, monkeypatch: pytest.MonkeyPatch, decoder: Decoder
) -> None:
    stand_in(decoder)
    monkeypatch.setattr(gpu_decoding, "_current", lambda device: gpu_decoding.nullcontext())
    monkeypatch.setattr(gpu_decoding, "version", lambda name: "0.11.1")
    with pytest.raises(UsageError, match=r"torchcodec 0\.11\.1 cannot decode on cuda \(a broken .*built for CUDA"):
        refuse_unusable(CUDA)


@with_torchcodec
def test_the_sample_is_a_video() -> None:
    (pixels_YXC,) = gpu_decoding._open(gpu_decoding._sample(), 0, CPU).get_frames_at([0]).data
    assert pixels_YXC.shape == (256, 256, 3)
    assert int(pixels_YXC.max()) == 0


def skip_without_cuda() -> None:
    """Skip a test where torchcodec is not installed, or was built for the CPU alone; else a GPU has to decode."""
    if not is_there():
        pytest.skip("torchcodec, or FFmpeg for it, is not installed")
    if "+cpu" in import_module("torchcodec").__version__:
        pytest.skip("torchcodec is built for the CPU alone")


@pytest.mark.gpu
def test_a_gpu_decodes_what_the_cpu_does(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    skip_without_cuda()
    refuse_unusable(CUDA)
    for name, settings in FILES.items():
        path = write_video(
            tmp_path / name,
            settings.get("frame_time_s", REGULAR),
            lambda i: image(i).repeat(2, 0).repeat(2, 1),
            beep(0.5, 1.6),
            **{key: value for key, value in settings.items() if key != "frame_time_s"},
        )
        timeline, expected = probe(path), frames_of(path)
        with GpuReading(path, timeline, np.ones(timeline.num_frames, np.bool_), CUDA) as reading:
            found = {item.index: item.pixels_YXC for item in reading if isinstance(item, Frame)}
        assert "decoded on the CPU" not in caplog.text
        assert list(found) == list(expected)
        for index, pixels_YXC in found.items():
            assert pixels_YXC.device.type == "cuda"
            # Colours are converted by NVIDIA's arithmetic, and those between two pixels of chroma are interpolated.
            assert np.abs(pixels_YXC.cpu().numpy().astype(int) - expected[index]).mean() < 3
