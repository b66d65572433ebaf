"""Protocols of evaluation: which frames of a recording are scored, and what is done to their predictions before.

- ``strict``: every rated frame, its prediction as it is.
- ``smoothed``: every rated frame; its prediction is the mean over the frames within half a window of it.
- ``released``: what the code published with arXiv 2304.07958 scores, faults included, to compare with its figures.

A prediction is smoothed on the clock, so a window lasts as long at every frame rate; the release smooths by frames.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from avfuse.schema import Predictions, Range, UsageError

SPAN = 32  # frames that a clip spans
SMOOTHING_S = 1.0  # unless another window is given
RELEASED_WINDOWS = {"valence": 20, "arousal": 50}  # frames
RELEASED_RANGE = (-1.0, 1.0)
COVERAGE_BANDS = ("no face", "face in up to half", "face in over half", "face throughout")
WITH_FACE, WITHOUT_FACE = "frames with a face", "frames without a face"
_CLOCK_ROUNDING_S = 1e-6

Trace = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Evaluation:
    """How the targets are scored: the protocol of each, and the window of the smoothed ones in seconds.

    A target that is not named is scored strictly. `ranges` are the declared ones.

    Raises
    ------
    UsageError
        If a protocol is not known, the released one is asked for a target that the release does not rate, or rates
        between other values, or a window is negative.
    """

    protocols: Mapping[str, str] = field(default_factory=dict)
    smoothing_s: Mapping[str, float] = field(default_factory=dict)
    ranges: Mapping[str, Range] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for target, protocol in self.protocols.items():
            if protocol not in PROTOCOLS:
                raise UsageError(f"unknown protocol '{protocol}'; known: {', '.join(PROTOCOLS)}")
            if protocol == "released" and target not in RELEASED_WINDOWS:
                raise UsageError(
                    f"the released protocol rates {' and '.join(RELEASED_WINDOWS)}, not {target}; "
                    f"score it by another: {target}=strict"
                )
            if protocol == "released" and self.ranges.get(target, RELEASED_RANGE) != RELEASED_RANGE:
                low, high = self.ranges[target]
                raise UsageError(
                    f"the released protocol rates {target} from -1 to 1, not from {low:g} to {high:g}; "
                    f"score it by another: {target}=strict"
                )
        for target, window_s in self.smoothing_s.items():
            if not (np.isfinite(window_s) and window_s >= 0):
                raise UsageError(f"smoothing of {target} is {window_s:g} s; give 0 or more seconds")

    def frames(self, item: Predictions, target: str) -> tuple[Trace, Trace]:
        """Return prediction and target of a recording as they are scored, (F,) each; NaN targets are not scored."""
        return PROTOCOLS[self.protocols.get(target, "strict")](item, target, self.smoothing_s.get(target, 0.0))

    def describe(self, target: str) -> str:
        """Say in one sentence how a target is scored."""
        protocol = self.protocols.get(target, "strict")
        if protocol == "smoothed":
            return f"smoothed: rated frames, predictions averaged over a centred {self.smoothing_s.get(target, 0):g} s"
        if protocol == "released":
            return (
                f"released: predictions clipped to [-1, 1] and averaged over {RELEASED_WINDOWS[target]} frames, zeros "
                f"beyond the ends; unrated frames take part, with a rating up to {SPAN - 1} frames old, else as 0 for 0"
            )
        return "strict: rated frames, predictions as they are"


def smooth(prediction_F: Trace, time_s: Trace, window_s: float) -> Trace:
    """Return the centred moving mean (F,) over the frames at most half a window before or after each frame.

    At the ends the mean is over the frames that there are.
    """
    half_s = window_s / 2 + _CLOCK_ROUNDING_S
    first_F = np.searchsorted(time_s, time_s - half_s, side="left")
    after_F = np.searchsorted(time_s, time_s + half_s, side="right")
    with np.errstate(invalid="ignore"):  # what diverged stays undefined
        total = np.concatenate([[0.0], np.cumsum(prediction_F, dtype=np.float64)])
        return np.asarray((total[after_F] - total[first_F]) / (after_F - first_F))


def coverage(face_F: npt.NDArray[np.bool_]) -> Trace:
    """Return the share (F,) of the 32 frames up to each frame that show the face: those of the clip that ends there."""
    total = np.concatenate([[0], np.cumsum(face_F)])
    end_F = np.arange(1, len(face_F) + 1)
    start_F = np.maximum(end_F - SPAN, 0)
    return np.asarray((total[end_F] - total[start_F]) / (end_F - start_F))


def parts(item: Predictions, by: str) -> dict[str, npt.NDArray[np.bool_]]:
    """Return the frames (F,) of each part of a recording: with and without a face, or by bands of face coverage.

    Every frame is in exactly one part.
    """
    if by == "face":
        return {WITH_FACE: item.face_F, WITHOUT_FACE: ~item.face_F}
    share_F = coverage(item.face_F)
    band_F = np.select([share_F == 0, share_F <= 0.5, share_F < 1], [0, 1, 2], default=3)
    return {name: band_F == band for band, name in enumerate(COVERAGE_BANDS)}


def _column(item: Predictions, target: str) -> tuple[Trace, Trace]:
    index = item.targets.index(target)
    return item.prediction_FE[:, index].astype(np.float64), item.target_FE[:, index].astype(np.float64)


def _strict(item: Predictions, target: str, window_s: float) -> tuple[Trace, Trace]:
    return _column(item, target)


def _smoothed(item: Predictions, target: str, window_s: float) -> tuple[Trace, Trace]:
    prediction_F, target_F = _column(item, target)
    return smooth(prediction_F, item.time_s, window_s), target_F


def _released(item: Predictions, target: str, window_s: float) -> tuple[Trace, Trace]:
    """Score as the release does; source: its validation loop and the reading of its annotations.

    A frame's label is that of the last frame rated in all targets among the 32 up to it. Frames without one keep zeros
    as prediction and label, and are scored with them. The predictions are clipped, then averaged from half a window
    before to half a window less one frame behind, as if zeros lay beyond the ends.
    """
    prediction_F, target_F = _column(item, target)
    frame_F = np.arange(len(item.time_s))
    is_rated_F = ~np.isnan(item.target_FE).any(axis=1)
    last_F = np.maximum.accumulate(np.where(is_rated_F, frame_F, -SPAN)) if len(frame_F) else frame_F
    has_label_F = np.asarray(frame_F - last_F < SPAN)
    label_F = np.where(has_label_F, target_F[np.maximum(last_F, 0)], 0.0)
    written_F = np.where(has_label_F, prediction_F, 0.0).clip(-1.0, 1.0)
    window = RELEASED_WINDOWS[target]
    padded = np.convolve(written_F, np.full(window, 1 / window)) if len(frame_F) else written_F
    return padded[window // 2 - 1 :][: len(frame_F)], label_F


PROTOCOLS = {"strict": _strict, "smoothed": _smoothed, "released": _released}


def by_target(items: Collection[str], targets: Collection[str], what: str) -> dict[str, str]:
    """Turn ("strict", "valence=smoothed") into {"valence": "smoothed", "arousal": "strict"}.

    Raises
    ------
    UsageError
        If a target is not known, or two values are given for one.
    """
    common = [item for item in items if "=" not in item]
    named = [item.split("=", 1) for item in items if "=" in item]
    if len(common) > 1:
        raise UsageError(f"{what} is given twice for every target: {', '.join(common)}; name the target: valence=...")
    values = dict.fromkeys(targets, common[0]) if common else {}
    for target, value in named:
        if target not in targets:
            raise UsageError(f"{what} {target}={value}: no target is called {target}; they are: {', '.join(targets)}")
        values[target] = value
    if len({target for target, _ in named}) < len(named):
        raise UsageError(f"{what} is given twice for one target: {', '.join(items)}; give each once")
    return values


def seconds_by_target(items: Collection[str], targets: Collection[str], default_s: float) -> dict[str, float]:
    """Read windows of smoothing, in seconds, as ("1", "valence=0.7"); a target that is not given has the default.

    Raises like `by_target`, or at what is no number.
    """
    try:
        given_s = {target: float(value) for target, value in by_target(items, targets, "smoothing").items()}
        return {target: given_s.get(target, default_s) for target in targets}
    except ValueError as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"smoothing {', '.join(items)}: expected seconds, as 1 or valence=0.7") from error
