import time
from collections.abc import Iterator

import pytest
import torch

from avfuse.stopwatch import Stopwatch

CPU = torch.device("cpu")


class Clock:
    """A clock that is put forward by hand; of the time that passes, the processor takes half."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def wall_s(self) -> float:
        return self.now_s

    def cpu_s(self) -> float:
        return self.now_s / 2


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "perf_counter", made.wall_s)
    monkeypatch.setattr(time, "process_time", made.cpu_s)
    return made


def test_a_stage_is_charged_with_what_it_does_itself(clock: Clock) -> None:
    def decode() -> Iterator[int]:
        for item in range(3):
            clock.now_s += 2
            yield item
        clock.now_s += 1  # what is left to do after the last one

    def detect(items: Iterator[int]) -> Iterator[int]:
        for item in items:
            clock.now_s += 10
            yield item

    watch = Stopwatch(CPU)
    seen = []
    for item in watch.iterate("detect", detect(watch.iterate("decode", decode()))):
        with watch.during("encode"):
            clock.now_s += 100
        clock.now_s += 1000  # nobody's
        seen.append(item)
    assert seen == [0, 1, 2]
    assert dict(watch.wall_s) == {"decode": 7, "detect": 30, "encode": 300, "": 3000}
    assert dict(watch.cpu_s) == {"decode": 3.5, "detect": 15, "encode": 150, "": 1500}


def test_an_error_ends_the_stage_that_it_comes_from(clock: Clock) -> None:
    def broken() -> Iterator[int]:
        clock.now_s += 4
        raise ValueError("broken")
        yield 0

    watch = Stopwatch(CPU)
    with watch.during("outer"):
        clock.now_s += 1
        with pytest.raises(ValueError, match=r"^broken$"):
            next(watch.iterate("inner", broken()))
        clock.now_s += 2
    assert dict(watch.wall_s) == {"": 0, "outer": 3, "inner": 4}
