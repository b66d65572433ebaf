"""Windows of T clips out of the cache, and predictions for clips back onto frames.

A recording's clips lie `hop` slots apart; the clips of a window lie `spacing` slots apart. With a hop of 8 and a
spacing of 32 the clips fall into four phases, and each phase is tiled with windows of T clips, the last one padded. So
every clip stands in exactly one window. Windows to predict with may overlap instead, so that a long recording has no
seams: the prediction of a clip is then the mean over the windows in which it stands. (The released code of the paper
cuts windows side by side at a hop of 1, and trains on those alone that are full and labelled throughout.)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from avfuse.cache import FeatureCache
from avfuse.cached import CachedRecording
from avfuse.fusion import FusionHead
from avfuse.partitions import fold_by_subject
from avfuse.schema import Batch, Predictions, UsageError

log = logging.getLogger(__name__)


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


class WindowedPartition:
    """One partition of a cache as windows of clips.

    Parameters
    ----------
    cache : FeatureCache
    partition : str
    num_clips : int
        T, the length of a full window.
    spacing : int
        Slots between the clips of a window; a multiple of the cache's hop.
    overlap : int
        Clips of a phase that consecutive windows share; see `tile`.
    complete : bool
        Keep only the windows of T clips that all have a label, as the released code trains. The label of a clip is
        then the last rating of all targets among the frames that the clip spans, not only the one at its end.
    fold : (int, int), optional
        Number (from 0) and count of the fold that is the validation partition, where the subjects of the training and
        the validation partition are spread over so many folds; the others are the training partition.
    targets : tuple of str
        What is predicted where the cache has no ratings at all.

    Raises
    ------
    UsageError
        If the cache holds no recording of the partition, `spacing` is no multiple of the hop, `overlap` is too large,
        or no window is complete.
    """

    def __init__(
        self,
        cache: FeatureCache,
        partition: str,
        num_clips: int,
        spacing: int,
        *,
        overlap: int = 0,
        complete: bool = False,
        fold: tuple[int, int] | None = None,
        targets: tuple[str, ...] = (),
    ) -> None:
        hop = int(cache.spec.clip["hop"])
        if spacing % hop:
            raise UsageError(f"--spacing {spacing} is not a multiple of {hop}, the hop of {cache.path}")
        self.partition = partition
        self.recordings = cache.recordings(partition) if fold is None else _of_fold(cache, partition, *fold)
        if not self.recordings:
            raise UsageError(
                f"{cache.path} holds no recording of the {partition} partition; "
                "give the corpus one (README, 'Your own videos') and extract it"
            )
        self.targets = cache.spec.targets or targets
        self.num_clips = num_clips
        span = int(cache.spec.clip["frames"]) * int(cache.spec.clip["dilation"])
        self.audio_NA = [item.array("audio") for item in self.recordings]
        self.target_NE = [
            _last_label(item, span) if complete else self._of_targets(item.array("target")) for item in self.recordings
        ]
        self.face_N = [item.array("face_share") for item in self.recordings]
        step = spacing // hop
        self.windows = [
            Window(place, phase + step * tiled.start, step, len(tiled))
            for place, item in enumerate(self.recordings)
            for phase in range(min(step, item.num_clips))
            for tiled in tile(len(range(phase, item.num_clips, step)), num_clips, overlap)
        ]
        if complete:
            self.windows = [window for window in self.windows if self._is_complete(window)]
            if not self.windows:
                raise UsageError(
                    f"the {partition} partition of {cache.path} has no complete window: {num_clips} clips {spacing} "
                    f"frames apart, each with a rating of every target among its last {span} frames; "
                    "train on --windows all, or give fewer --num-clips"
                )

    def _of_targets(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return ratings as they are, or as many unrated columns as there are targets where there are none."""
        return values if values.shape[1] else np.full((len(values), len(self.targets)), np.nan, np.float32)

    def _is_complete(self, window: Window) -> bool:
        is_labelled = not np.isnan(self.target_NE[window.recording][window.clips]).any()
        return is_labelled and window.count == self.num_clips

    def rated_windows(self) -> list[int]:
        """Return the places of the windows in which at least one clip is rated."""
        return [
            place
            for place, window in enumerate(self.windows)
            if not np.isnan(self.target_NE[window.recording][window.clips]).all()
        ]

    def batch(self, places: Sequence[int]) -> Batch:
        """Gather windows by their places in `windows`, padded to T clips; features stay as cached."""
        channels = self.recordings[0].video.shape[1:]
        size = (len(places), self.num_clips)
        batch = Batch(
            audio_BTA=torch.zeros(*size, self.audio_NA[0].shape[1]),
            video_BTCHW=torch.zeros(*size, *channels, dtype=torch.float16),
            target_BTE=torch.full((*size, len(self.targets)), torch.nan),
            mask_BT=torch.zeros(size, dtype=torch.bool),
            face_BT=torch.zeros(size),
        )
        video_BTCHW = batch.video_BTCHW.numpy()
        for row, place in enumerate(places):
            window = self.windows[place]
            count, clips, source = window.count, window.clips, window.recording
            for at, run in self.recordings[source].video.strided(window.start, window.step, count):
                video_BTCHW[row, at : at + len(run)] = run
            batch.audio_BTA[row, :count] = torch.from_numpy(self.audio_NA[source][clips])
            batch.target_BTE[row, :count] = torch.from_numpy(self.target_NE[source][clips])
            batch.face_BT[row, :count] = torch.from_numpy(self.face_N[source][clips])
            batch.mask_BT[row, :count] = True
        return batch

    def batches(self, places: Sequence[int], batch_size: int) -> Iterator[tuple[Sequence[int], Batch]]:
        """Yield windows in the given order, `batch_size` at a time, with their places."""
        for start in range(0, len(places), batch_size):
            chosen = places[start : start + batch_size]
            yield chosen, self.batch(chosen)

    def predict(self, trace: Callable[[Batch], Tensor], batch_size: int) -> list[Predictions]:
        """Predict every recording, in inference mode: `trace` returns the trace (B, T, E) of a batch."""
        traces: dict[int, npt.NDArray[np.float32]] = {}
        with torch.inference_mode():
            for places, batch in self.batches(range(len(self.windows)), batch_size):
                traces.update(zip(places, trace(batch).float().cpu().numpy(), strict=True))
        return self.predictions(traces)

    def predictions(self, trace_by_window: dict[int, npt.NDArray[np.float32]]) -> list[Predictions]:
        """Turn the traces of all windows, (T, E) each, into per-frame predictions of every recording.

        A clip that stands in several windows has the mean of their traces.
        """
        traces: list[list[tuple[slice, npt.NDArray[np.float32]]]] = [[] for _ in self.recordings]
        for place, trace_TE in trace_by_window.items():
            window = self.windows[place]
            traces[window.recording].append((window.clips, trace_TE))
        return [
            self._onto_frames(item, _average(item.num_clips, len(self.targets), windows))
            for item, windows in zip(self.recordings, traces, strict=True)
        ]

    def _onto_frames(self, recording: CachedRecording, trace_NE: npt.NDArray[np.float32]) -> Predictions:
        """Interpolate clip predictions linearly onto the frames; the first and the last clip's hold to the ends."""
        frame_time_s = recording.array("frame_time_s")
        end_time_s = recording.array("end_time_s")
        columns = [np.interp(frame_time_s, end_time_s, column) for column in trace_NE.T]
        return Predictions(
            recording=recording.name,
            subject=recording.source.subject,
            partition=self.partition,
            targets=self.targets,
            time_s=frame_time_s,
            prediction_FE=np.stack(columns, axis=1).astype(np.float32),
            target_FE=self._of_targets(recording.array("frame_target")),
            face_F=recording.array("frame_face"),
        )


def predict_recording(
    head: FusionHead,
    audio: Tensor,
    video: Tensor,
    face: Tensor | None = None,
    *,
    overlap: int | None = None,
    batch_size: int = 16,
) -> Tensor:
    """Predict consecutive clips of any number, by overlapping windows of `head.num_clips` clips.

    A clip that stands in several windows has the mean of their traces; no more clips than `head.num_clips` are one
    window. The head is used as it is: in evaluation mode, if `load_head` gave it, and on its own device.

    Parameters
    ----------
    head : FusionHead
    audio, video : Tensor, (N, A) and (N, C, H, W)
        Features as cached, at the spacing that the head was trained with.
    face : Tensor, (N,), optional
        Share of each clip's frames that show the face; None means 1.
    overlap : int, optional
        Clips that consecutive windows share; half a window unless given.
    batch_size : int
        Windows per forward pass.

    Returns
    -------
    Tensor, (N, E)
        The trace, in float32 on the CPU.

    Raises
    ------
    UsageError
        If windows cannot share `overlap` clips.
    ValueError
        If there is no clip, or not one number of them.
    """
    inputs = {"audio": audio, "video": video} | ({} if face is None else {"face": face})
    numbers = {len(values) for values in inputs.values()}
    if len(numbers) > 1 or 0 in numbers:
        counted = ", ".join(f"{len(values)} of {name}" for name, values in inputs.items())
        raise ValueError(f"got clips: {counted}; their number must be the same and at least 1")
    windows = tile(len(audio), head.num_clips, head.num_clips // 2 if overlap is None else overlap)
    device = next(head.parameters(), audio).device
    traces: list[tuple[slice, npt.NDArray[np.float32]]] = []
    with torch.inference_mode():
        for start in range(0, len(windows), batch_size):
            chosen = [slice(window.start, window.stop) for window in windows[start : start + batch_size]]
            batch = {name: _stack(values, chosen).to(device) for name, values in inputs.items()}
            mask_BT = _stack(torch.ones(len(audio), dtype=torch.bool), chosen).to(device)
            trace_BTE = head(**batch, mask=mask_BT).float().cpu().numpy()
            traces += zip(chosen, trace_BTE, strict=True)
    return torch.from_numpy(_average(len(audio), len(head.targets), traces))


def _stack(values: Tensor, windows: Sequence[slice]) -> Tensor:
    """Return windows of consecutive clips as one batch, padded at the end to the longest."""
    return pad_sequence([values[clips] for clips in windows], batch_first=True)


def _average(
    num_clips: int, num_targets: int, windows: Iterable[tuple[slice, npt.NDArray[np.float32]]]
) -> npt.NDArray[np.float32]:
    """Return the mean trace of each clip, (N, E), over the windows in which it stands; padding behind them is cut."""
    total_NE, count_N1 = np.zeros((num_clips, num_targets)), np.zeros((num_clips, 1))
    with np.errstate(invalid="ignore"):  # a head that diverged may give anything, infinities of both signs included
        for clips, trace_TE in windows:
            total_TE = total_NE[clips]
            total_TE += trace_TE[: len(total_TE)]
            count_N1[clips] += 1
        return (total_NE / count_N1).astype(np.float32)


def _last_label(recording: CachedRecording, span: int) -> npt.NDArray[np.float32]:
    """Return for each clip, (N, E), the last rating of all targets among the `span` frames up to its end, else NaN."""
    frame_target_FE, end_frame_N = recording.array("frame_target"), recording.array("end_frame")
    is_rated_F = ~np.isnan(frame_target_FE).any(axis=1)
    last_F = np.maximum.accumulate(np.where(is_rated_F, np.arange(len(is_rated_F)), -1))
    last_N = last_F[end_frame_N]
    has_label_N = (last_N >= 0) & (last_N > end_frame_N - span)
    return np.where(has_label_N[:, None], frame_target_FE[last_N], np.float32(np.nan))


def _of_fold(cache: FeatureCache, partition: str, index: int, num_folds: int) -> list[CachedRecording]:
    """Return the recordings of a fold, or of all the others for the training partition.

    Recordings of one subject or of one file, as of two people, stand in one fold.
    """
    rated = [item for item in cache.recordings() if item.source.partition in ("train", "validation")]
    sources = [item.source for item in rated]
    fold_of_item = fold_by_subject(
        [source.subject for source in sources], num_folds, [source.sha256 for source in sources]
    )
    is_held_out = partition == "validation"
    return [item for item, fold in zip(rated, fold_of_item, strict=True) if (fold == index) == is_held_out]


def warn_of_leaks(training: WindowedPartition, validation: WindowedPartition) -> None:
    """Say in the log which subjects, or files, are both trained on and validated: such scores are too good."""
    for what in ("subject", "sha256"):
        known = {getattr(item.source, what) for item in training.recordings}
        shared = [item for item in validation.recordings if getattr(item.source, what) in known]
        if shared:
            kind = "subjects" if what == "subject" else "files"
            log.warning(
                "%d recordings are validated whose %s are trained on, such as %s: scores are too good",
                len(shared),
                kind,
                shared[0].name,
            )


def feature_moments(
    partition: WindowedPartition, max_clips: int = 20_000
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation over clips of audio, (A,) each, and of the face's map, (C, H, W) each.

    Clips without a face say nothing about faces: each clip's map counts by its share of frames with one. Of a large
    partition an evenly spaced part of at most `max_clips` clips is used.
    """
    num_clips = sum(item.num_clips for item in partition.recordings)
    step = -(-num_clips // max_clips)
    audio = torch.from_numpy(np.concatenate([audio_NA[::step] for audio_NA in partition.audio_NA])).double()
    shape = partition.recordings[0].video.shape[1:]
    weight, total, squares = 0.0, torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    for item, face_N in zip(partition.recordings, partition.face_N, strict=True):
        for at, run in item.video.strided(0, step, -(-item.num_clips // step)):
            share_N = torch.from_numpy(face_N[::step][at : at + len(run)]).double()
            values_NCHW = torch.from_numpy(run.astype(np.float32)).double()
            weight += float(share_N.sum())
            total += torch.tensordot(share_N, values_NCHW, dims=1)
            squares += torch.tensordot(share_N, values_NCHW.square_(), dims=1)
    mean = total / max(weight, 1e-9)
    spread = (squares / max(weight, 1e-9) - mean**2).clamp(min=0).sqrt()
    return (
        audio.mean(dim=0).float(),
        audio.std(dim=0, correction=0).float(),
        mean.float(),
        spread.float() if weight else torch.ones(shape),
    )
