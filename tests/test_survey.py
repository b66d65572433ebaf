"""What the packets of a file tell without being decoded."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from avfuse import survey as module
from avfuse.schema import PassingError, RecordingError
from avfuse.survey import Survey, certainly

VIDEO, AUDIO, TICKS_HZ = 0, 1, 1000


class Streams(list[Any]):
    def __init__(self, has_sound: bool) -> None:
        base = Fraction(1, TICKS_HZ)
        streams = [SimpleNamespace(index=i, time_base=base, codec_context=None) for i in (VIDEO, AUDIO)]
        super().__init__(streams if has_sound else streams[:1])
        self.audio = self[1:]


class Written:
    """A container that holds seconds of picture and sound in some order, each a packet of one second."""

    name, duration, format = "file:/a.ts", None, SimpleNamespace(name="mpegts")

    def __init__(self, packets: list[tuple[int, float | None]], has_sound: bool = True) -> None:
        self.packets = packets
        self.streams = Streams(has_sound)

    def demux(self, _: Any) -> Iterator[Any]:
        for index, time_s in self.packets:
            stamp = None if time_s is None else round(time_s * TICKS_HZ)
            yield SimpleNamespace(
                size=1, stream_index=index, pts=stamp, dts=stamp, duration=TICKS_HZ, is_discard=time_s == 7
            )


def survey(packets: list[tuple[int, float | None]], has_sound: bool = True) -> Survey:
    container = Written(packets, has_sound)
    return Survey(container, Path("a.ts"), container.streams[VIDEO])


def seconds(kind: int, start: int, end: int) -> list[tuple[int, float | None]]:
    return [(kind, float(time_s)) for time_s in range(start, end)]


@pytest.mark.parametrize(
    ("packets", "lag_s"),
    [
        ([item for time_s in range(9) for item in ((VIDEO, time_s), (AUDIO, time_s))], 1.0),
        (seconds(VIDEO, 0, 60) + seconds(AUDIO, 0, 60), 59.0),
        (seconds(AUDIO, 0, 60) + seconds(VIDEO, 0, 60), 60.0),
        (seconds(VIDEO, 0, 60) + seconds(AUDIO, 60, 90), 59.0),  # a clip at 0 has to wait until the sound is heard of
        (seconds(VIDEO, 0, 5) + seconds(AUDIO, 0, 5) + seconds(VIDEO, 5, 60), 54.0),  # or until it has ended
        (seconds(VIDEO, 0, 5) + seconds(AUDIO, 0, 60), 56.0),
    ],
)
def test_how_far_picture_and_sound_lie_apart(packets: list[tuple[int, float | None]], lag_s: float) -> None:
    assert survey(packets).lag_s == lag_s


def test_a_picture_alone_waits_for_nothing() -> None:
    found = survey(seconds(VIDEO, 0, 60), has_sound=False)
    assert (found.lag_s, found.sound_start_s, found.num_packets) == (0.0, None, 60)


def test_frames_with_and_without_time_stamps_are_told() -> None:
    found = survey([(VIDEO, 3.0), (VIDEO, None), (VIDEO, 7.0), (VIDEO, 1.0), (AUDIO, 2.0), (AUDIO, 5.0)])
    stamps, num_unstamped = found.stamps()  # in the order of the file, without what is not to be shown
    assert (stamps.tolist(), num_unstamped, found.num_packets) == ([3000, 1000], 1, 4)
    assert (found.sound_start_s, found.sound_end_s) == (2.0, 6.0)


def test_more_frames_than_are_allowed_end_the_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FRAMES", 9)
    assert survey(seconds(VIDEO, 0, 9)).num_packets == 9
    with pytest.raises(RecordingError, match=r"a\.ts holds more frames than the 9 that are allowed") as caught:
        survey(seconds(VIDEO, 0, 1000))
    assert caught.value.reason == "over_limit"


class Packet(bytearray):
    """A packet of the picture with content."""

    def __init__(self, content: bytes, stamp: int) -> None:
        super().__init__(content)
        self.size, self.stream_index, self.pts, self.dts = len(content), VIDEO, stamp, stamp
        self.duration, self.is_discard = TICKS_HZ, False


@pytest.mark.parametrize(("codec", "num_shown"), [("vp8", 3), ("vp9", 4)])
def test_frames_of_vp8_that_are_never_shown_are_none(codec: str, num_shown: int) -> None:
    container = Written([], has_sound=False)
    container.streams[VIDEO].codec_context = SimpleNamespace(name=codec)
    first_bytes = (0x10, 0x00, 0x11, 0x31)  # key frame, hidden one, two that refer to others
    packets = [Packet(bytes([byte, 9]), TICKS_HZ * i) for i, byte in enumerate(first_bytes)]
    container.demux = lambda _: iter(packets)  # type: ignore[method-assign]
    found = Survey(container, Path("a.webm"), container.streams[VIDEO])
    assert (found.num_packets, len(found.stamps()[0])) == (num_shown, num_shown)


def test_what_breaks_off_once_is_looked_at_again(tmp_path: Path) -> None:
    path = tmp_path / "a.ts"
    path.write_bytes(b"0" * 10)
    ends = iter([RecordingError("truncated", "it breaks off"), None])

    def look() -> str:
        if (error := next(ends)) is not None:
            raise error
        return "found"

    assert certainly(look, path, lambda: None) == "found"


def test_what_cannot_be_read_to_its_end_may_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, num_read = tmp_path / "a.ts", []
    path.write_bytes(b"0" * 10)

    def look() -> str:
        raise RecordingError("truncated", "it breaks off")

    with pytest.raises(RecordingError, match="it breaks off") as caught:
        certainly(look, path, lambda: num_read.append(1))
    assert not isinstance(caught.value, PassingError)
    assert num_read == [1]
    path.unlink()
    with pytest.raises(PassingError, match=r"a\.ts cannot be read to its end \(No such file") as caught:
        certainly(look, path, lambda: None)
    assert caught.value.reason == "truncated"


def in_order_of_decoding(rng: np.random.Generator, count: int, share: float) -> npt.NDArray[np.int64]:
    """Return the stamps of frames of which some groups hold frames that show between others, also by levels."""
    orders = ([0, 2, 1], [0, 3, 1, 2], [0, 4, 2, 1, 3], [0, 8, 4, 2, 1, 3, 6, 5, 7])
    stamps: list[int] = []
    while len(stamps) < count:
        order = orders[rng.integers(len(orders))] if rng.random() < share else [0]
        stamps += [40 * (len(stamps) + place) for place in order]
    return np.array(stamps, np.int64)


@pytest.mark.parametrize("share", [0.0, 0.003, 0.01, 0.05, 1.0])
def test_sound_time_stamps_stay_what_they_are(share: float) -> None:
    rng = np.random.default_rng(round(1000 * share))
    for _ in range(50):
        stamps_F = in_order_of_decoding(rng, 400, share)
        np.testing.assert_array_equal(module._without_strays(stamps_F), stamps_F)
        gap = stamps_F + 40 * 200 * (stamps_F >= 40 * rng.integers(50, 350))
        np.testing.assert_array_equal(module._without_strays(gap), gap)


@pytest.mark.parametrize("shift", [10, 90, -7, 30_000])
def test_a_damaged_time_stamp_is_moved_to_where_it_is_missing(shift: int) -> None:
    rng = np.random.default_rng(abs(shift))
    for share in (0.0, 1.0) if abs(shift) > 32 else (0.0,):
        stamps_F = in_order_of_decoding(rng, 400, share)
        place = int(rng.integers(100, 300))
        damaged_F = stamps_F.copy()
        damaged_F[place] += 40 * shift
        np.testing.assert_array_equal(module._without_strays(damaged_F), stamps_F)
