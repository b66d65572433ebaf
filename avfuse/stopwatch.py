"""Where the time goes: what each of several stages takes that call one another."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

_Item = TypeVar("_Item")


class Stopwatch:
    """Charges time to the stage that is at work; what one asks of another is charged to the other alone.

    Parameters
    ----------
    device : torch.device
        Where the stages compute: of a GPU, what was begun is awaited before the time is taken.

    Attributes
    ----------
    cpu_s, wall_s : dict of str to float
        By stage: seconds of processor, of all threads of this process, and seconds that passed. What no stage is
        charged with is under "".
    """

    def __init__(self, device: torch.device) -> None:
        self.cpu_s: defaultdict[str, float] = defaultdict(float)
        self.wall_s: defaultdict[str, float] = defaultdict(float)
        self._device = device
        self._stage, self._since_s = "", (time.process_time(), time.perf_counter())

    @contextmanager
    def during(self, stage: str) -> Iterator[None]:
        """Charge what happens in a ``with`` statement to a stage."""
        before = self._switch(stage)
        try:
            yield
        finally:
            self._switch(before)

    def iterate(self, stage: str, items: Iterable[_Item]) -> Iterator[_Item]:
        """Charge the making of items to a stage."""
        iterator = iter(items)
        while True:
            with self.during(stage):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def _switch(self, stage: str) -> str:
        """Take the time for the stage that was at work, and return it; another is now."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now_s = time.process_time(), time.perf_counter()
        self.cpu_s[self._stage] += now_s[0] - self._since_s[0]
        self.wall_s[self._stage] += now_s[1] - self._since_s[1]
        before, self._stage, self._since_s = self._stage, stage, now_s
        return before
