"""Windows of T clips out of the cache, and predictions for clips back onto frames.

A recording's clips lie `hop` slots apart; the clips of a window lie `spacing` slots apart. With a hop of 8 and a
spacing of 32 the clips fall into four phases, and each phase is tiled with windows of T clips, the last one padded. So
every clip stands in exactly one window, in training as in evaluation. (The released code of the paper cuts the same
windows at a hop of 1, but drops those that are not full.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from avfuse.cache import CachedRecording, FeatureCache
from avfuse.schema import Batch, Predictions, UsageError


@dataclass(frozen=True)
class Window:
    """Clips `start`, `start + step`, ... (`count` of them) of the recording at a place in a partition's list."""

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

    Raises
    ------
    UsageError
        If the cache holds no recording of the partition, or `spacing` is no multiple of the hop.
    """

    def __init__(self, cache: FeatureCache, partition: str, num_clips: int, spacing: int) -> None:
        hop = int(cache.spec.clip["hop"])
        if spacing % hop:
            raise UsageError(f"--spacing {spacing} is not a multiple of {hop}, the hop of {cache.path}")
        self.recordings: list[CachedRecording] = cache.recordings(partition)
        if not self.recordings:
            raise UsageError(
                f"{cache.path} holds no recording of the {partition} partition; "
                "give the corpus one (README, 'Your own videos') and extract it"
            )
        self.targets = cache.spec.targets
        self.num_clips = num_clips
        self.audio_NA = [item.array("audio") for item in self.recordings]
        self.target_NE = [item.array("target") for item in self.recordings]
        self.face_N = [item.array("face_share") for item in self.recordings]
        step = spacing // hop
        self.windows = [
            Window(place, start, step, min(num_clips, len(range(start, item.num_clips, step))))
            for place, item in enumerate(self.recordings)
            for phase in range(min(step, item.num_clips))
            for start in range(phase, item.num_clips, step * num_clips)
        ]

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

    def predictions(self, trace_by_window: dict[int, npt.NDArray[np.float32]]) -> list[Predictions]:
        """Turn the traces of all windows, (count, E) each, into per-frame predictions of every recording."""
        trace_NE = [np.full((item.num_clips, len(self.targets)), np.nan, np.float32) for item in self.recordings]
        for place, trace_TE in trace_by_window.items():
            window = self.windows[place]
            trace_NE[window.recording][window.clips] = trace_TE[: window.count]
        return [_onto_frames(item, self.targets, trace) for item, trace in zip(self.recordings, trace_NE, strict=True)]


def _onto_frames(
    recording: CachedRecording, targets: tuple[str, ...], trace_NE: npt.NDArray[np.float32]
) -> Predictions:
    """Interpolate clip predictions linearly onto the frames; the first and the last clip's hold to the ends."""
    frame_time_s = recording.array("frame_time_s")
    end_time_s = recording.array("end_time_s")
    columns = [np.interp(frame_time_s, end_time_s, column) for column in trace_NE.T]
    source = recording.source
    return Predictions(
        recording=recording.name,
        subject=source.subject,
        partition=source.partition,
        targets=targets,
        time_s=frame_time_s,
        prediction_FE=np.stack(columns, axis=1).astype(np.float32),
        target_FE=recording.array("frame_target"),
        face_F=recording.array("frame_face"),
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
