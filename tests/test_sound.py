"""Sound that comes in pieces is read in windows, whatever the pieces are."""

from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest

from avfuse.sound import NO_MORE, Resampler, SoundBuffer
from avfuse.timeline import SAMPLE_RATE_HZ as RATE_HZ


def test_overlapping_sound_is_heard_once() -> None:
    buffer = SoundBuffer()
    # Time stamps that step back: what was there first stays, and nothing later is moved.
    for position, value in [(0, 1), (500, 2), (100, 3), (1700, 4)]:
        buffer.add(position, np.full(1000, value, np.float32))
    window_S = buffer.read(3000 / RATE_HZ, 3000)
    np.testing.assert_array_equal(window_S, np.repeat([1, 2, 0, 4, 0], [1000, 500, 200, 1000, 300]))
    assert buffer.num_decoded == 4000


@pytest.mark.parametrize("seed", range(5))
def test_windows_are_cut_from_the_whole(seed: int) -> None:
    """Pieces of any length with gaps between them, read in windows that overlap or lie apart, while they come."""
    rng = np.random.default_rng(seed)
    whole_S, start = np.zeros(60_000, np.float32), 700
    pieces = []
    while start < 50_000:
        length = int(rng.integers(1, 3000))
        pieces.append((start, rng.uniform(-1, 1, length).astype(np.float32)))
        whole_S[start : start + length] = pieces[-1][1]
        start += length + int(rng.integers(0, 2) * rng.integers(0, 5000))
    buffer, coming = SoundBuffer(), iter(pieces)
    for end in np.cumsum(rng.integers(1, 4000, 25)).tolist():
        while not buffer.has(end / RATE_HZ):
            piece = next(coming, NO_MORE)
            buffer.add(*piece)
        window_S = buffer.read(end / RATE_HZ, 5000)
        expected_S = np.concatenate([np.zeros(5000, np.float32), whole_S, np.zeros(60_000, np.float32)])
        np.testing.assert_array_equal(window_S, expected_S[end : end + 5000])
        # Held are the pieces of this window and of the piece that it ends in.
        assert all(at + len(samples_S) > end - 5000 for at, samples_S in buffer._pieces)


def test_a_gap_costs_no_memory() -> None:
    buffer = SoundBuffer()
    buffer.add(0, np.ones(100, np.float32))
    buffer.add(10**12, np.ones(100, np.float32))
    assert buffer.has(10**12 / RATE_HZ)
    assert not buffer.has((10**12 + 50_000) / RATE_HZ)
    assert buffer.read(200 / RATE_HZ, 200).tolist() == [1.0] * 100 + [0.0] * 100
    assert sum(len(samples_S) for _, samples_S in buffer._pieces) == 200


def test_what_has_come_is_told() -> None:
    buffer = SoundBuffer()
    assert not buffer.has(0.0)
    buffer.add(RATE_HZ, np.zeros(0, np.float32))  # a piece without samples says how far everything has come
    assert buffer.has(1.0)
    assert not buffer.has(1.1)
    buffer.end()
    assert buffer.has(1e6)
    assert buffer.num_decoded == 0


def test_sound_before_the_first_window_is_not_held() -> None:
    buffer = SoundBuffer(first_s=99.5)
    for start in range(0, 99 * RATE_HZ, RATE_HZ):
        buffer.add(start, np.ones(RATE_HZ, np.float32))
    assert len(buffer._pieces) == 0
    assert (buffer.num_decoded, buffer.has(99.0)) == (99 * RATE_HZ, True)
    buffer.add(99 * RATE_HZ, np.arange(RATE_HZ, dtype=np.float32))
    np.testing.assert_array_equal(buffer.read(100.0, RATE_HZ // 2), np.arange(RATE_HZ // 2, RATE_HZ))


def tone(count: int) -> list[Any]:
    """Return frames of a sound of 20 ms each, whose samples rise from frame to frame."""
    frames = []
    for i in range(count):
        frame = av.AudioFrame.from_ndarray(np.full((1, 882), (i + 1) / 100, np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.time_base, frame.pts = RATE_HZ, Fraction(1, RATE_HZ), 882 * i
        frames.append(frame)
    return frames


def placed(frames: list[Any]) -> npt.NDArray[np.float32]:
    """Return what is heard at the middle of each 20 ms, by a hundredth, of a second of frames that come in order."""
    resampler, buffer = Resampler(), SoundBuffer()
    for piece in [*(piece for frame in frames for piece in resampler.add(frame)), *resampler.end(), NO_MORE]:
        buffer.add(*piece)
    return np.round(100 * buffer.read(1.0, RATE_HZ)[441::882])


@pytest.mark.parametrize(
    ("place", "shift_s"), [(place, shift_s) for place in (0, 1, 20, 38) for shift_s in (0.1, 0.5, 20.0)] + [(20, -0.3)]
)
def test_one_wrong_time_stamp_moves_nothing(place: int, shift_s: float) -> None:
    frames = tone(40)
    frames[place].pts += round(shift_s * RATE_HZ)
    assert placed(frames).tolist() == [*range(1, 41), *[0] * 10]


def test_a_gap_is_one_when_the_next_frame_says_so() -> None:
    frames = tone(40)
    for frame in frames[20:]:
        frame.pts += 882 * 10
    assert placed(frames).tolist() == [*range(1, 21), *[0] * 10, *range(21, 41)]
    late = tone(3)
    late[2].pts += 882 * 5  # the last one, behind which nothing is
    assert placed(late).tolist() == [1, 2, *[0] * 5, 3, *[0] * 42]


def test_sound_without_time_stamps_follows_what_was_before() -> None:
    frames = tone(40)
    for frame in frames[1::3]:
        frame.pts = None
    assert placed(frames).tolist() == [*range(1, 41), *[0] * 10]
