"""Moments of the features that are trained on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from toy import add_recording, toy_cache

from avfuse.dataset import WindowedPartition
from avfuse.moments import feature_moments


def test_moments_weigh_maps_by_the_share_of_frames_with_a_face(tmp_path: Path) -> None:
    partition = WindowedPartition(toy_cache(tmp_path), "train", 16, 32)
    audio_NA = partition.audio_NA.numpy().astype(np.float64)
    face_N = partition.face_N.numpy().astype(np.float64)
    runs = [next(item.video.strided(0, 1, item.num_clips))[1] for item in partition.recordings]
    video_NCHW = np.concatenate(runs).astype(np.float64)
    mean = np.average(video_NCHW, axis=0, weights=face_N)
    spread = np.sqrt(np.average((video_NCHW - mean) ** 2, axis=0, weights=face_N))
    expected = (audio_NA.mean(axis=0), audio_NA.std(axis=0), mean, spread)
    for got, value in zip(feature_moments(partition), expected, strict=True):
        np.testing.assert_allclose(got.numpy(), value, rtol=1e-5, atol=1e-6)
    # A sample of the clips gives about the same: within the spread of a mean of some 50 clips.
    sampled = feature_moments(partition, max_clips=60)
    np.testing.assert_allclose(sampled[2].numpy(), mean, atol=0.5)


@pytest.mark.parametrize("resident", ["no", "ram", "device"])
def test_a_recording_without_clips_counts_nothing(tmp_path: Path, resident: str) -> None:
    store = toy_cache(tmp_path)
    expected = feature_moments(WindowedPartition(store, "train", 16, 32))
    add_recording(store, "nothing", "train", 0, seed=5)
    found = feature_moments(WindowedPartition(store, "train", 16, 32, resident=resident))
    assert all(map(torch.equal, found, expected))
