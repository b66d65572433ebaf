"""Files are opened within limits, and read on behind what cannot be read; bad files themselves are in bad_files."""

import errno
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import av.error
import numpy as np
import pytest
from conftest import beep, write_video

from avfuse import container as module
from avfuse.container import MAX_FAILURES, Extent, Packets, check_sound, decode, open_file, video_stream
from avfuse.media import probe
from avfuse.schema import PassingError, RecordingError


class Script:
    """A container whose reading goes as it is written: sizes of packets, and errors to be raised."""

    name = "file:/a.mkv"

    def __init__(self, *steps: int | Exception) -> None:
        self.steps = list(steps)

    def demux(self, _: Sequence[Any]) -> Iterator[Any]:
        while self.steps:
            step = self.steps.pop(0)
            if isinstance(step, Exception):
                raise step
            yield SimpleNamespace(size=step)
        yield SimpleNamespace(size=0)


def bad() -> Exception:
    return av.error.InvalidDataError(1, "Invalid data found")


@pytest.mark.parametrize(
    ("steps", "sizes", "breaks_off"),
    [
        ([1, 2, 3], [1, 2, 3], False),
        ([1, 0, 3], [1, 3], False),  # an empty packet in the middle would end a decoder
        ([1, bad(), 3, bad(), bad(), 5], [1, 3, 5], False),
        ([1, bad()], [1], True),
        ([1, *[bad() for _ in range(MAX_FAILURES)], 3], [1], True),
        ([1, *[bad() for _ in range(MAX_FAILURES - 1)], 3], [1, 3], False),
        ([1, 2, IndexError("list index out of range")], [1, 2], False),
    ],
)
def test_reading_goes_on_behind_what_cannot_be_read(steps: list[Any], sizes: list[int], breaks_off: bool) -> None:
    packets = Packets(Script(*steps), [])
    assert [packet.size for packet in packets] == sizes
    assert (packets.break_off is not None) == breaks_off


def test_a_decoder_gives_its_last_frames_with_their_times(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", np.arange(20) / 25, video_options={"bf": "2"})
    with open_file(path) as container:
        stream = video_stream(container, path)
        frames = [frame for packet in Packets(container, [stream]) for frame in decode(stream, packet) or ()]
        assert len(frames) < 20
        frames += decode(stream, None) or ()
        assert decode(stream, None) is None  # the decoder has ended
    assert [frame.time for frame in frames] == pytest.approx(np.arange(20) / 25)


def test_decoders_run_on_one_thread(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", np.arange(20) / 25, sound_CS=beep(0.1, 0.8))
    with open_file(path) as container:
        assert [stream.codec_context.thread_count for stream in container.streams] == [1, 1]


@pytest.mark.parametrize(
    ("limit", "value", "message"),
    [
        ("MAX_PIXELS", 64 * 64 - 1, r"has pictures of 64 x 64 pixels, 4095 pixels are allowed"),
        ("MAX_STREAMS", 1, r"holds more streams than the 1 that are allowed"),
        ("MAX_DURATION_S", 3.0, r"lasts 0\.0 hours by its header, 0\.000833333 are allowed"),
        ("MAX_RATE_HZ", 40_000, r"has a sound of 44100 Hz in 1 channels, 4000 to 40000 Hz and 64 channels are allowed"),
        ("MAX_CHANNELS", 0, r"has a sound of 44100 Hz in 1 channels, .* and 0 channels are allowed"),
    ],
)
def test_what_is_over_a_limit_is_refused(
    limit: str, value: float, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "a.mp4", np.arange(100) / 25, sound_CS=beep(0.1, 4.0))
    open_file(path).close()
    monkeypatch.setattr(module, limit, value)
    with pytest.raises(RecordingError, match=message) as caught:
        open_file(path)
    assert caught.value.reason == "over_limit"


def test_a_length_without_header_is_told_by_the_time_stamps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.ts", np.arange(100) / 25, sound_CS=beep(0.1, 4.0))
    monkeypatch.setattr(module, "MAX_DURATION_S", 3.0)
    with pytest.raises(RecordingError, match=r"by its time stamps, .* are allowed") as caught:
        probe(path)
    assert caught.value.reason == "over_limit"


@pytest.mark.parametrize("stamp", [-(2**40), 2**40])
def test_one_absurd_time_stamp_is_over_the_limit(stamp: int) -> None:
    stream = SimpleNamespace(index=0, time_base=0.001)
    container: Any = SimpleNamespace(streams=[stream], format=SimpleNamespace(name="mpegts"), duration=None)
    extent = Extent(container, Path("a.ts"))
    extent.add(SimpleNamespace(pts=0, dts=0, duration=40, stream_index=0))
    with pytest.raises(RecordingError, match=r"a\.ts lasts [0-9.]* hours by its time stamps, 24 are allowed"):
        extent.add(SimpleNamespace(pts=stamp, dts=stamp, duration=40, stream_index=0))


@pytest.mark.parametrize(("rate_hz", "num_channels"), [(0, 1), (3_999, 1), (768_001, 2), (48_000, 65)])
def test_a_sound_that_nobody_records_is_refused(rate_hz: int, num_channels: int) -> None:
    with pytest.raises(RecordingError, match=f"has a sound of {rate_hz} Hz in {num_channels} channels") as caught:
        check_sound(rate_hz, num_channels, Path("a.mp4"))
    assert caught.value.reason == "over_limit"


def test_too_many_streams_are_told_from_memory_that_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", np.arange(20) / 25, sound_CS=beep(0.1, 0.8))
    real, given = av.open, []

    def short(file: str, **options: Any) -> Any:
        given.append(options["options"]["max_streams"])
        if len(given) == 1:
            raise av.error.MemoryError(errno.ENOMEM, "Cannot allocate memory")
        return real(file, **options)

    monkeypatch.setattr(av, "open", short)
    with pytest.raises(PassingError, match="an index larger than the memory that is there now") as caught:
        open_file(path)
    assert caught.value.reason == "over_limit"
    monkeypatch.setattr("avfuse.container.MAX_STREAMS", 1)
    given.clear()
    with pytest.raises(RecordingError, match="more streams than the 1 allowed") as permanent:
        open_file(path)
    assert not isinstance(permanent.value, PassingError)
