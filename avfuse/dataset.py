"""A partition of the cache as batches of windows, and predictions for clips back onto frames.

The small features of all clips (sound, targets, shares of faces) lie in memory, one clip after another, and a batch is
what an index gathers from them. Feature maps are gathered from where they lie; see `avfuse.gathering`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from avfuse.cache import FeatureCache
from avfuse.cached import CachedRecording
from avfuse.encoding import from_bytes
from avfuse.gathering import ResidentMaps, StreamedMaps, choose_residence, each_once
from avfuse.metrics import NUM_SUMS, Sums, gather
from avfuse.partitions import fold_by_subject
from avfuse.schema import Batch, Predictions, UsageError
from avfuse.windows import lay_windows

log = logging.getLogger(__name__)

CPU = torch.device("cpu")


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
        Clips of a phase that consecutive windows share; see `avfuse.windows.tile`.
    complete : bool
        Keep only the windows of T clips that all have a label, as the released code trains. The label of a clip is
        then the last rating of all targets among the frames that the clip spans, not only the one at its end.
    fold : (int, int), optional
        Number (from 0) and count of the fold that is the validation partition, where the subjects of the training and
        the validation partition are spread over so many folds; the others are the training partition.
    targets : tuple of str
        What is predicted where the cache has no ratings at all.
    num_views : int
        How many views of each clip may be asked for.
    resident : str
        Where the maps of all clips are held: ``no`` for nowhere, ``ram`` for this machine's memory, or ``device``.
    device : torch.device
        Where batches are wanted.
    recordings : sequence of CachedRecording, optional
        Those of the cache, of all partitions, where they are known: what `find_residence` opened is not opened again.

    Raises
    ------
    UsageError
        If the cache holds no recording of the partition, one is damaged, `spacing` is no multiple of the hop, `overlap`
        is too large, or no window is complete.
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
        num_views: int = 1,
        resident: str = "no",
        device: torch.device = CPU,
        recordings: Sequence[CachedRecording] | None = None,
    ) -> None:
        hop = int(cache.spec.clip["hop"])
        if spacing % hop:
            raise UsageError(f"--spacing {spacing} is not a multiple of {hop}, the hop of {cache.path}")
        self.partition = partition
        known = cache.recordings() if recordings is None else recordings
        self.recordings = _choose(known, partition, fold)
        if not self.recordings:
            raise UsageError(
                f"{cache.path} holds no recording of the {partition} partition; "
                "give the corpus one (README, 'Your own videos') and extract it"
            )
        self.targets = cache.spec.targets or targets
        self.num_clips = num_clips
        self.num_views = num_views
        self.device = device
        span = int(cache.spec.clip["frames"]) * int(cache.spec.clip["dilation"]) if complete else 0
        self._load(span)
        self.windows = lay_windows([item.num_clips for item in self.recordings], num_clips, spacing // hop, overlap)
        self._lay_index()
        if complete:
            self._keep(self._index_WT.ne(self.num_rows).all(dim=1) & ~self._lacks_label().any(dim=1))
            if not self.windows:
                raise UsageError(
                    f"the {partition} partition of {cache.path} has no complete window: {num_clips} clips {spacing} "
                    f"frames apart, each with a rating of every target among its last {span} frames; "
                    "train on --windows all, or give fewer --num-clips"
                )
        self._maps: ResidentMaps | StreamedMaps
        if resident == "device":
            self._maps = ResidentMaps(self.recordings, num_views, device)
        else:
            self._maps = StreamedMaps(self.recordings, num_views, device, in_memory=resident == "ram")

    def _load(self, span: int) -> None:
        """Read the small features of all clips, with a row for padding behind them; `span` is that of the labels."""
        items = self.recordings
        self._lengths = [item.num_clips for item in items]
        self.num_rows = sum(self._lengths)
        self._audio_NA = self._rows(each_once(lambda item: item.array("audio"), items), 0.0)
        self._face_N = self._rows(each_once(lambda item: item.array("face_share"), items), 0.0)
        self._target_NE = self._rows(each_once(lambda item: self._labels(item, span), items), np.nan)
        scales = [scale for item in items if (scale := item.scale())]
        self._scales = [torch.from_numpy(np.stack(values)).to(self.device) for values in zip(*scales, strict=True)]

    def _labels(self, item: CachedRecording, span: int) -> npt.NDArray[np.float32]:
        return _last_label(item, span) if span else self._of_targets(item.array("target"))

    def _rows(self, arrays: Sequence[npt.NDArray[np.float32]], padding: float) -> Tensor:
        end = np.full((1, *arrays[0].shape[1:]), padding, np.float32)
        return torch.from_numpy(np.concatenate([*arrays, end])).to(self.device)

    def _of_targets(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return ratings as they are, or as many unrated columns as there are targets where there are none."""
        return values if values.shape[1] else np.full((len(values), len(self.targets)), np.nan, np.float32)

    def _lay_index(self) -> None:
        """Lay down the place of each window's clips among all clips, (W, T), and the window's recording, (W,)."""
        first_R = np.cumsum([0, *(item.num_clips for item in self.recordings)])
        columns = np.array([(w.recording, w.start, w.step, w.count) for w in self.windows], np.int64)
        recording_W1, start_W1, step_W1, count_W1 = columns.T[..., None]
        at_T = np.arange(self.num_clips)
        index_WT = np.where(at_T < count_W1, first_R[recording_W1] + start_W1 + step_W1 * at_T, self.num_rows)
        self._index_WT, self._recording_W = torch.from_numpy(index_WT), torch.from_numpy(columns[:, 0].copy())

    def _lacks_label(self) -> Tensor:
        """Return which clips of windows have no label of all targets, (W, T); padding is such."""
        return self._target_NE.cpu().isnan().any(dim=1)[self._index_WT]

    def _keep(self, kept_W: Tensor) -> None:
        self.windows = [window for window, is_kept in zip(self.windows, kept_W.tolist(), strict=True) if is_kept]
        self._index_WT, self._recording_W = self._index_WT[kept_W], self._recording_W[kept_W]

    def set_missing_sound(self, mean_A: Tensor) -> None:
        """Let the sound of clips whose recording has none be `mean_A`, (A,): what a head takes for the mean."""
        for recording, item in zip(torch.split(self._audio_NA[:-1], self._lengths), self.recordings, strict=True):
            if item.missing == "audio":
                recording[:] = mean_A

    @property
    def audio_NA(self) -> Tensor:
        """Audio features of all clips, recording by recording."""
        return self._audio_NA[:-1]

    @property
    def target_NE(self) -> Tensor:
        """Targets of all clips, NaN where unrated."""
        return self._target_NE[:-1]

    @property
    def face_N(self) -> Tensor:
        """Share of each clip's frames that show the face."""
        return self._face_N[:-1]

    def some_maps(self, recording: int, start: int, step: int, count: int) -> npt.NDArray[Any]:
        """Return the maps of a recording's clips start, start + step, ..., (count, C, H, W), as stored; first view."""
        return self._maps.some(recording, start, step, count)

    def rated_windows(self) -> list[int]:
        """Return the places of the windows in which at least one clip is rated."""
        is_rated_N = ~self._target_NE.cpu().isnan().all(dim=1)
        places: list[int] = is_rated_N[self._index_WT].any(dim=1).nonzero().flatten().tolist()
        return places

    def batch(self, places: Sequence[int], views: Sequence[int] | None = None) -> Batch:
        """Gather windows by their places in `windows`, padded to T clips; `views` are theirs, else the first."""
        ((_, found),) = self.batches(places, len(places), views, in_order=True)
        return replace(found, video_BTCHW=found.video_BTCHW.clone())  # which may lie in a buffer

    def batches(
        self, places: Sequence[int], batch_size: int, views: Sequence[int] | None = None, *, in_order: bool = False
    ) -> Iterator[tuple[Sequence[int], Batch]]:
        """Yield windows, `batch_size` at a time, with their places; a batch holds until the next is asked for.

        Within a batch longer windows come first, unless they are wanted in the given order: so padding costs a device
        no sorting. Maps that are not resident are gathered in a thread while the batch before is used.
        """
        pairs = list(zip(places, views or [0] * len(places), strict=True))
        parts = [pairs[start : start + batch_size] for start in range(0, len(pairs), batch_size)]
        if not in_order:
            parts = [sorted(part, key=lambda pair: -self.windows[pair[0]].count) for part in parts]
        place_of = [torch.tensor([place for place, _ in part]) for part in parts]
        maps: Iterator[Tensor]
        if isinstance(self._maps, ResidentMaps):
            views_of = [torch.tensor([view for _, view in part]) for part in parts]
            maps = self._maps.gather_all(zip((self._index_WT[place_B] for place_B in place_of), views_of, strict=True))
        else:
            windows_of = [[(self.windows[place], view) for place, view in part] for part in parts]
            maps = self._maps.gather_all(windows_of, self.num_clips)
        for place_B, maps_BTCHW in zip(place_of, maps, strict=True):
            yield place_B.tolist(), self._complete(place_B, maps_BTCHW)

    def _complete(self, place_B: Tensor, maps_BTCHW: Tensor) -> Batch:
        """Return the batch of windows whose maps were gathered, nothing waiting for the device."""
        index_BT = self._index_WT[place_B]
        mask_BT = index_BT < self.num_rows
        index_BT = index_BT.to(self.device, non_blocking=True)
        if self._scales:
            recording_B = self._recording_W[place_B].to(self.device, non_blocking=True)
            scale_B1C, offset_B1C = (values_RC[recording_B].unsqueeze(1) for values_RC in self._scales)
            maps_BTCHW = from_bytes(maps_BTCHW, scale_B1C, offset_B1C)
        return Batch(self._audio_NA[index_BT], maps_BTCHW, self._target_NE[index_BT], mask_BT, self._face_N[index_BT])

    def trace(self, head: Callable[[Batch], Tensor], batch_size: int) -> npt.NDArray[np.float32]:
        """Return what `head`, from a batch to a trace (B, T, E), predicts for each clip, (N, E), in inference mode.

        A clip that stands in several windows has the mean of their traces. The host waits for the device at the end.
        """
        with torch.inference_mode():
            return self.average(
                (places, head(batch)) for places, batch in self.batches(range(len(self.windows)), batch_size)
            )

    def average(self, traces: Iterable[tuple[Sequence[int], Tensor]]) -> npt.NDArray[np.float32]:
        """Return the mean trace of each clip, (N, E), of the traces (B, T, E) of windows, given with their places."""
        count_N = torch.bincount(self._index_WT.flatten(), minlength=self.num_rows + 1)[:-1]
        total_NE: Tensor | None = None
        for places, trace_BTE in traces:
            if total_NE is None:
                total_NE = trace_BTE.new_zeros((self.num_rows + 1, trace_BTE.shape[2]), dtype=torch.float64)
            index_N = self._index_WT[torch.tensor(places)].flatten().to(total_NE.device, non_blocking=True)
            total_NE.index_add_(0, index_N, trace_BTE.flatten(0, 1).double())
        assert total_NE is not None, "a partition has windows"
        return (total_NE[:-1].cpu() / count_N.unsqueeze(-1)).float().numpy()

    def predict(self, head: Callable[[Batch], Tensor], batch_size: int) -> list[Predictions]:
        """Predict every recording by what gives the trace (B, T, E) of a batch; see `trace`."""
        return self.predictions(self.trace(head, batch_size))

    def predictions(self, trace_NE: npt.NDArray[np.float32]) -> list[Predictions]:
        """Turn the trace of all clips, (N, E), into per-frame predictions of every recording."""
        return [
            Predictions(
                recording=recording.name,
                subject=recording.source.subject,
                partition=self.partition,
                targets=self.targets,
                time_s=recording.array("frame_time_s"),
                prediction_FE=prediction_FE,
                target_FE=target_FE,
                face_F=recording.array("frame_face"),
            )
            for recording, prediction_FE, target_FE in self._onto_frames(trace_NE)
        ]

    def sums(self, trace_NE: npt.NDArray[np.float32]) -> dict[str, Sums]:
        """Return what metrics need to know of the predictions, by target; recordings are added up, no frame is kept.

        Those of a target for which the trace is not finite throughout, as of a head that diverged, are NaN.
        """
        is_finite_E: npt.NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(trace_NE), axis=0)
        found = [Sums(np.full(NUM_SUMS, 0.0 if is_finite else np.nan), (0.0, 0.0)) for is_finite in is_finite_E]
        for _, prediction_FE, target_FE in self._onto_frames(trace_NE):
            for column in np.flatnonzero(is_finite_E):
                before = found[column]
                origin = before.origin if before.num else None
                more = gather(prediction_FE[:, column], target_FE[:, column], origin)
                found[column] = Sums(before.values + more.values, more.origin)
        return dict(zip(self.targets, found, strict=True))

    def _onto_frames(
        self, trace_NE: npt.NDArray[np.float32]
    ) -> Iterator[tuple[CachedRecording, npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
        """Yield each recording with the prediction and the target of its frames, (F, E) each.

        Clip predictions are interpolated linearly; the first and the last clip's hold to the ends.
        """
        ends = np.cumsum([item.num_clips for item in self.recordings])[:-1]
        for clips, part_NE in zip(self._clocks, np.split(trace_NE, ends), strict=True):
            recording, frame_time_s, end_time_s, target_FE = clips
            columns = [np.interp(frame_time_s, end_time_s, column) for column in part_NE.T]
            yield recording, np.stack(columns, axis=1).astype(np.float32), target_FE

    @cached_property
    def _clocks(self) -> list[tuple[CachedRecording, npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[np.float32]]]:
        """Each recording with the times of its frames and of its clips' ends, and its frames' targets; read once."""

        def read(
            item: CachedRecording,
        ) -> tuple[CachedRecording, npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[np.float32]]:
            target_FE = self._of_targets(item.array("frame_target"))
            return item, item.array("frame_time_s"), item.array("end_time_s"), target_FE

        return each_once(read, self.recordings)


def find_residence(
    recordings: Sequence[CachedRecording], wanted: str, device: torch.device, num_views: Mapping[str, int]
) -> str:
    """Return where the maps of some partitions are held, so many views of each; see `choose_residence`."""
    pairs = [(item, view) for item in recordings for view in range(num_views.get(item.source.partition, 0))]
    views = each_once(lambda pair: pair[0].view(pair[1]), pairs)
    num_bytes, is_mapped = sum(view.num_bytes for view in views), all(view.is_mapped for view in views)
    residence = choose_residence(wanted, num_bytes, is_mapped, device)
    log.info("%.0f MB of maps, resident: %s", num_bytes / 1e6, residence)
    return residence


def _last_label(recording: CachedRecording, span: int) -> npt.NDArray[np.float32]:
    """Return for each clip, (N, E), the last rating of all targets among the `span` frames up to its end, else NaN."""
    frame_target_FE, end_frame_N = recording.array("frame_target"), recording.array("end_frame")
    is_rated_F = ~np.isnan(frame_target_FE).any(axis=1)
    last_F = np.maximum.accumulate(np.where(is_rated_F, np.arange(len(is_rated_F)), -1))
    last_N = last_F[end_frame_N]
    has_label_N = (last_N >= 0) & (last_N > end_frame_N - span)
    return np.where(has_label_N[:, None], frame_target_FE[last_N], np.float32(np.nan))


def _choose(
    recordings: Sequence[CachedRecording], partition: str, fold: tuple[int, int] | None
) -> list[CachedRecording]:
    """Return the recordings of a partition; with a fold, those in it, or all the others for the training partition.

    Recordings of one subject or of one file, as of two people, stand in one fold.
    """
    if fold is None:
        return [item for item in recordings if item.source.partition == partition]
    index, num_folds = fold
    rated = [item for item in recordings if item.source.partition in ("train", "validation")]
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
