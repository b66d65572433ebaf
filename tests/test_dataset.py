from pathlib import Path

import numpy as np
import pytest
import torch
from toy import HOP, add_recording, toy_cache, toy_spec

from avfuse.cache import MAX_CHUNK_CLIPS, FeatureCache
from avfuse.dataset import WindowedPartition, feature_moments
from avfuse.schema import UsageError


@pytest.mark.parametrize(("num_clips", "spacing"), [(16, 32), (16, 8), (3, 16), (100, 32), (1, 8)])
def test_every_clip_stands_in_exactly_one_window(tmp_path: Path, num_clips: int, spacing: int) -> None:
    partition = WindowedPartition(toy_cache(tmp_path), "train", num_clips, spacing)
    seen = [np.zeros(item.num_clips, int) for item in partition.recordings]
    for window in partition.windows:
        assert 1 <= window.count <= num_clips
        clips = np.arange(partition.recordings[window.recording].num_clips)[window.clips]
        assert len(clips) == window.count
        assert set(np.diff(clips)) <= {spacing // HOP}
        seen[window.recording][clips] += 1
    assert all((counts == 1).all() for counts in seen)


def test_batches_hold_what_the_cache_holds_and_padding(tmp_path: Path) -> None:
    store = FeatureCache.create(tmp_path, toy_spec(), {})
    num_clips = 2 * MAX_CHUNK_CLIPS + 21  # windows cross the borders of chunks
    written = add_recording(store, "a", "train", num_clips, seed=1)
    partition = WindowedPartition(store, "train", num_clips=16, spacing=32)
    for places, batch in partition.batches(list(reversed(range(len(partition.windows)))), batch_size=5):
        assert batch.video_BTCHW.dtype == torch.float16
        for row, place in enumerate(places):
            window = partition.windows[place]
            count, clips = window.count, window.clips
            np.testing.assert_array_equal(batch.video_BTCHW[row, :count].numpy(), written["video"][clips])
            np.testing.assert_array_equal(batch.audio_BTA[row, :count].numpy(), written["audio"][clips])
            np.testing.assert_array_equal(batch.target_BTE[row, :count].numpy(), written["target"][clips])
            np.testing.assert_array_equal(batch.face_BT[row, :count].numpy(), written["face_share"][clips])
            assert batch.mask_BT[row].tolist() == [True] * count + [False] * (16 - count)
            assert not batch.video_BTCHW[row, count:].any()
            assert not batch.audio_BTA[row, count:].any()
            assert not batch.face_BT[row, count:].any()
            assert batch.target_BTE[row, count:].isnan().all()


def test_predictions_are_interpolated_onto_frames(tmp_path: Path) -> None:
    partition = WindowedPartition(toy_cache(tmp_path), "validation", num_clips=16, spacing=32)
    end_time_s = [item.array("end_time_s") for item in partition.recordings]
    # A trace that is linear in time comes back exactly between the first clip's end and the last one's, held outside.
    traces = {
        place: np.stack([2 * end_time_s[w.recording][w.clips], 1 - end_time_s[w.recording][w.clips]], axis=1)
        for place, w in enumerate(partition.windows)
    }
    predictions = partition.predictions({place: trace.astype(np.float32) for place, trace in traces.items()})
    assert [item.recording for item in predictions] == ["validation-0", "validation-1"]
    for item, recording, ends_s in zip(predictions, partition.recordings, end_time_s, strict=True):
        held_s = np.clip(item.time_s, ends_s[0], ends_s[-1])
        np.testing.assert_allclose(item.prediction_FE, np.stack([2 * held_s, 1 - held_s], axis=1), atol=1e-5)
        np.testing.assert_array_equal(item.target_FE, recording.array("frame_target"))
        np.testing.assert_array_equal(item.face_F, recording.array("frame_face"))
        assert item.targets == ("valence", "arousal")


def test_windows_without_a_rating_are_not_trained_on(tmp_path: Path) -> None:
    store = toy_cache(tmp_path)
    assert WindowedPartition(store, "test", 16, 32).rated_windows() == []
    partition = WindowedPartition(store, "train", 16, 32)
    assert partition.rated_windows() == list(range(len(partition.windows)))


def test_moments_weigh_maps_by_the_share_of_frames_with_a_face(tmp_path: Path) -> None:
    partition = WindowedPartition(toy_cache(tmp_path), "train", 16, 32)
    audio_NA = np.concatenate(partition.audio_NA).astype(np.float64)
    face_N = np.concatenate(partition.face_N).astype(np.float64)
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


def test_what_cannot_be_windowed_is_refused(tmp_path: Path) -> None:
    store = FeatureCache.create(tmp_path, toy_spec(), {})
    add_recording(store, "a", "train", 5, seed=0)
    with pytest.raises(UsageError, match="--spacing 20 is not a multiple of 8"):
        WindowedPartition(store, "train", 16, 20)
    with pytest.raises(UsageError, match="no recording of the validation partition"):
        WindowedPartition(store, "validation", 16, 32)
