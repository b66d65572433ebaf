"""Windows of T clips: how the clips of a recording are laid out in time, and cut into what is trained on.

A recording's clips lie `hop` slots apart; the clips of a window lie `spacing` slots apart. With a hop of 8 and a
spacing of 32 the clips fall into four phases, and each phase is tiled with windows of T clips, the last one padded. So
every clip stands in exactly one window. Windows to predict with may overlap instead, so that a long recording has no
seams: the prediction of a clip is then the mean over the windows in which it stands. (The released code of the paper
cuts windows side by side at a hop of 1, and trains on those alone that are full and labelled throughout.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from avfuse.schema import UsageError


def tile(num_clips: int, length: int, overlap: int) -> list[range]:
    """Cut consecutive clips into windows of `length` clips, of which neighbours share `overlap`.

    So many clips or fewer are one window. Of more, windows start every `length - overlap` clips, and the last is moved
    back so that it is full; without overlap none is moved, and the last holds what is left.

    Raises
    ------
    UsageError
        If the windows cannot share so many clips.
    """
    if not 0 <= overlap < length:
        raise UsageError(f"overlap is {overlap}; windows of {length} clips can share 0 to {length - 1}")
    if overlap and num_clips > length:
        last = num_clips - length
        starts = [*range(0, last, length - overlap), last]
    else:
        starts = list(range(0, num_clips, length))
    return [range(start, min(start + length, num_clips)) for start in starts]


@dataclass(frozen=True, order=True)
class Window:
    """Clips `start`, `start + step`, ... (`count` of them) of the recording at a place in a partition's list.

    Windows compare by their recording's place, then by their start.
    """

    recording: int
    start: int
    step: int
    count: int

    @property
    def clips(self) -> slice:
        """The window's clips as a slice of the recording's."""
        return slice(self.start, self.start + (self.count - 1) * self.step + 1, self.step)


def lay_windows(num_clips_R: Sequence[int], length: int, step: int, overlap: int) -> list[Window]:
    """Return the windows of recordings of so many clips each, by recording, phase and time.

    Clips of a window lie `step` clips apart; parameters and errors are otherwise those of `tile`.
    """
    return [
        Window(place, phase + step * tiled.start, step, len(tiled))
        for place, num_clips in enumerate(num_clips_R)
        for phase in range(min(step, num_clips))
        for tiled in tile(len(range(phase, num_clips, step)), length, overlap)
    ]
