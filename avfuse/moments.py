"""Mean and standard deviation of the features that are trained on, by which heads standardise their inputs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from avfuse.dataset import WindowedPartition
from avfuse.encoding import decode

_BLOCK_CLIPS = 64


def feature_moments(partition: WindowedPartition, max_clips: int = 20_000) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return mean and standard deviation over clips of audio, (A,) each, and of the face's map, (C, H, W) each.

    Clips without a face say nothing about faces: each clip's map counts by its share of frames with one. Recordings
    without sound say nothing about sound, unless all are such. Of a large partition an evenly spaced part of at most
    `max_clips` clips is used. Of several views the first counts.
    """
    step = -(-partition.num_rows // max_clips)
    ends = np.cumsum([item.num_clips for item in partition.recordings])[:-1].tolist()
    audio_RNA, face_RN = (values.cpu().double().tensor_split(ends) for values in (partition.audio_NA, partition.face_N))
    is_silent_R = [item.missing == "audio" for item in partition.recordings]
    heard = [audio_NA for audio_NA, is_silent in zip(audio_RNA, is_silent_R, strict=True) if not is_silent]
    audio_NA = torch.cat([audio_NA[::step] for audio_NA in heard or audio_RNA])
    shape = partition.recordings[0].video.shape[1:]
    weight, total, squares = 0.0, torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    for place, (item, face_N) in enumerate(zip(partition.recordings, face_RN, strict=True)):
        # Blocks are of one size whatever the chunks, so that the sums are the same.
        for first, share_N in enumerate(torch.split(face_N[::step], _BLOCK_CLIPS)):
            maps_NCHW = partition.some_maps(place, first * _BLOCK_CLIPS * step, step, len(share_N))
            values_NCHW = decode(maps_NCHW, item.scale()).double()
            weight += float(share_N.sum())
            total += torch.tensordot(share_N, values_NCHW, dims=1)
            squares += torch.tensordot(share_N, values_NCHW.square_(), dims=1)
    mean = total / max(weight, 1e-9)
    spread = (squares / max(weight, 1e-9) - mean**2).clamp(min=0).sqrt()
    return (
        audio_NA.mean(dim=0).float(),
        audio_NA.std(dim=0, correction=0).float(),
        mean.float(),
        spread.float() if weight else torch.ones(shape),
    )
