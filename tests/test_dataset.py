from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from toy import HOP, add_recording, toy_cache, toy_spec

from avfuse.cache import FeatureCache
from avfuse.dataset import WindowedPartition, warn_of_leaks
from avfuse.schema import Batch, Predictions, UsageError
from avfuse.windows import tile
from avfuse.writer import MAX_CHUNK_CLIPS


@pytest.mark.parametrize("overlap", [-1, 16, 20])
def test_windows_that_share_too_much_are_refused(tmp_path: Path, overlap: int) -> None:
    with pytest.raises(UsageError, match=rf"^overlap is {overlap}; windows of 16 clips can share 0 to 15$"):
        tile(3, 16, overlap)
    with pytest.raises(UsageError, match="windows of 16 clips can share 0 to 15"):
        WindowedPartition(toy_cache(tmp_path), "validation", 16, 32, overlap=overlap)


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


def predicted(partition: WindowedPartition, traces: dict[int, np.ndarray]) -> list[Predictions]:
    """Return the predictions of every frame from the traces of windows by their places, (count, E) each."""
    padded = {place: np.zeros((partition.num_clips, 2), np.float32) for place in traces}
    for place, trace in traces.items():
        padded[place][: len(trace)] = trace
    pairs = [([place], torch.from_numpy(trace)[None]) for place, trace in padded.items()]
    return partition.predictions(partition.average(pairs))


def test_predictions_are_interpolated_onto_frames(tmp_path: Path) -> None:
    partition = WindowedPartition(toy_cache(tmp_path), "validation", num_clips=16, spacing=32)
    end_time_s = [item.array("end_time_s") for item in partition.recordings]
    # A trace that is linear in time comes back exactly between the first clip's end and the last one's, held outside.
    traces = {
        place: np.stack([2 * end_time_s[w.recording][w.clips], 1 - end_time_s[w.recording][w.clips]], axis=1)
        for place, w in enumerate(partition.windows)
    }
    predictions = predicted(partition, traces)
    assert [item.recording for item in predictions] == ["validation-0", "validation-1"]
    for item, recording, ends_s in zip(predictions, partition.recordings, end_time_s, strict=True):
        held_s = np.clip(item.time_s, ends_s[0], ends_s[-1])
        np.testing.assert_allclose(item.prediction_FE, np.stack([2 * held_s, 1 - held_s], axis=1), atol=1e-5)
        np.testing.assert_array_equal(item.target_FE, recording.array("frame_target"))
        np.testing.assert_array_equal(item.face_F, recording.array("frame_face"))
        assert item.targets == ("valence", "arousal")


@pytest.mark.parametrize(("num_clips", "spacing", "overlap"), [(4, 16, 2), (4, 32, 1), (16, 8, 15), (5, 32, 0)])
def test_a_clip_in_several_windows_has_the_mean_of_their_traces(
    tmp_path: Path, num_clips: int, spacing: int, overlap: int
) -> None:
    partition = WindowedPartition(toy_cache(tmp_path), "validation", num_clips, spacing, overlap=overlap)
    rng = np.random.default_rng(0)
    traces = {place: rng.normal(size=(num_clips, 2)).astype(np.float32) for place in range(len(partition.windows))}
    predictions = predicted(partition, traces)
    for number, (item, recording) in enumerate(zip(predictions, partition.recordings, strict=True)):
        for clip, frame in enumerate(recording.array("end_frame")):
            inside = []
            for place, window in enumerate(partition.windows):
                clips = list(range(recording.num_clips))[window.clips]
                assert spacing // HOP in (*np.diff(clips), spacing // HOP)
                if window.recording == number and clip in clips:
                    inside.append(traces[place][clips.index(clip)])
            assert inside
            # 1e-6: means of a few numbers near 1, summed in another precision
            np.testing.assert_allclose(item.prediction_FE[frame], np.mean(inside, axis=0), atol=1e-6)


def test_a_partition_is_predicted_by_what_gives_traces(tmp_path: Path) -> None:
    store = toy_cache(tmp_path)

    def trace(batch: Batch) -> Tensor:
        assert torch.is_inference_mode_enabled()
        return torch.stack([batch.video_BTCHW[:, :, 0, 0, 0], batch.audio_BTA[:, :, 0].half()], dim=-1)

    for overlap, batch_size in ((0, 7), (8, 100), (15, 1)):
        partition = WindowedPartition(store, "validation", 16, 32, overlap=overlap)
        for item, recording in zip(partition.predict(trace, batch_size), partition.recordings, strict=True):
            assert item.prediction_FE.dtype == np.float32
            (_, video_NCHW), *_ = recording.video.strided(0, 1, recording.num_clips)
            expected = np.stack([video_NCHW[:, 0, 0, 0], recording.array("audio")[:, 0].astype(np.float16)], axis=1)
            np.testing.assert_array_equal(item.prediction_FE[recording.array("end_frame")], expected)


def test_what_a_diverged_head_predicts_stays_what_it_is(tmp_path: Path) -> None:
    partition = WindowedPartition(toy_cache(tmp_path), "validation", 4, 32, overlap=2)
    signs = [(-1) ** place * np.inf for place in range(len(partition.windows))]
    traces = {place: np.full((4, 2), (np.nan, sign), np.float32) for place, sign in enumerate(signs)}
    for item in predicted(partition, traces):
        assert not np.isfinite(item.prediction_FE).any()


def add_gaps(store: FeatureCache, num_clips: int) -> dict[str, np.ndarray]:
    """Add a recording with gaps in one target or both, shorter and longer than a clip; return its arrays."""
    frame_target = np.random.default_rng(0).normal(size=(num_clips * HOP + 3, 2)).astype(np.float32)
    for start, stop, columns in (
        (0, 20, [0]),
        (200, 230, [0, 1]),
        (420, 451, [1]),
        (700, 740, [0]),
        (1000, 1100, [0, 1]),
    ):
        frame_target[start:stop, columns] = np.nan
    return add_recording(store, "gaps", "train", num_clips, seed=0, frame_target=frame_target)


@pytest.mark.parametrize("num_clips", [2, 4, 16])
def test_complete_windows_are_full_and_labelled_throughout(tmp_path: Path, num_clips: int) -> None:
    store = FeatureCache.create(tmp_path, toy_spec(), {})
    arrays = add_gaps(store, 200)
    labels = []
    for end in arrays["end_frame"]:
        rated = [f for f in range(max(0, end - 31), end + 1) if not np.isnan(arrays["frame_target"][f]).any()]
        labels.append(arrays["frame_target"][rated[-1]] if rated else [np.nan, np.nan])
    assert 0 < np.isnan(labels).sum() < np.isnan(arrays["target"]).sum()
    partition = WindowedPartition(store, "train", num_clips, 32, complete=True)
    np.testing.assert_array_equal(partition.target_NE, np.array(labels, np.float32))
    expected = [
        window
        for window in WindowedPartition(store, "train", num_clips, 32).windows
        if window.count == num_clips and not np.isnan(labels[window.clips]).any()
    ]
    assert partition.windows == expected
    assert partition.rated_windows() == list(range(len(expected)))
    batch = partition.batch(partition.rated_windows())
    assert batch.mask_BT.all()
    assert not batch.target_BTE.isnan().any()


def test_no_complete_window_is_refused(tmp_path: Path) -> None:
    store = FeatureCache.create(tmp_path, toy_spec(), {})
    add_recording(store, "short", "train", 4 * 15, seed=0)
    with pytest.raises(
        UsageError,
        match=r"^the train partition of .* has no complete window: 16 clips 32 frames apart, each with a rating of "
        r"every target among its last 32 frames; train on --windows all, or give fewer --num-clips$",
    ):
        WindowedPartition(store, "train", 16, 32, complete=True)
    assert len(WindowedPartition(store, "train", 15, 32, complete=True).windows) == 4


def test_windows_sort_as_recorded(tmp_path: Path) -> None:
    partition = WindowedPartition(toy_cache(tmp_path), "validation", 4, 32)
    # The second recording has 70 clips: blocks of 4 clips, 4 apart, begin at every 16th, each in 4 phases.
    starts = [window.start for window in sorted(partition.windows) if window.recording == 1]
    assert starts == [block + phase for block in range(0, 70, 16) for phase in range(4) if block + phase < 70]
    assert [window.recording for window in sorted(partition.windows)] == sorted(w.recording for w in partition.windows)


def test_windows_without_a_rating_are_not_trained_on(tmp_path: Path) -> None:
    store = toy_cache(tmp_path)
    assert WindowedPartition(store, "test", 16, 32).rated_windows() == []
    partition = WindowedPartition(store, "train", 16, 32)
    assert partition.rated_windows() == list(range(len(partition.windows)))


def test_what_cannot_be_windowed_is_refused(tmp_path: Path) -> None:
    store = FeatureCache.create(tmp_path, toy_spec(), {})
    add_recording(store, "a", "train", 5, seed=0)
    with pytest.raises(UsageError, match="--spacing 20 is not a multiple of 8"):
        WindowedPartition(store, "train", 16, 20)
    with pytest.raises(UsageError, match="no recording of the validation partition"):
        WindowedPartition(store, "validation", 16, 32)


def test_folds_spread_subjects_of_both_partitions(tmp_path: Path) -> None:
    cache = toy_cache(tmp_path)
    held_out = []
    for index in range(3):
        training, validation = (
            WindowedPartition(cache, name, 16, 32, fold=(index, 3)) for name in ("train", "validation")
        )
        names = [{item.name for item in partition.recordings} for partition in (training, validation)]
        assert not names[0] & names[1]
        assert len(names[0] | names[1]) == 8  # all but the one that is not rated
        held_out += sorted(names[1])
        zeros = {place: np.zeros((16, 2), np.float32) for place in range(len(validation.windows))}
        assert {item.partition for item in predicted(validation, zeros)} == {"validation"}
    assert len(held_out) == len(set(held_out)) == 8


def test_what_is_trained_and_validated_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = FeatureCache.create(tmp_path, toy_spec(), {})
    add_recording(cache, "a", "train", 20, seed=0, file="pair")
    add_recording(cache, "b", "validation", 20, seed=1, file="pair")
    add_recording(cache, "c", "validation", 20, seed=2)
    partitions = [WindowedPartition(cache, name, 16, 32) for name in ("train", "validation")]
    warn_of_leaks(*partitions)
    assert "1 recordings are validated whose files are trained on, such as b: scores are too good" in caplog.text
    assert "subjects" not in caplog.text


def test_people_of_one_file_stand_in_one_fold(tmp_path: Path) -> None:
    cache = FeatureCache.create(tmp_path, toy_spec(), {})
    for number in range(8):
        add_recording(cache, f"{number}", "train", 9, seed=number, file=f"pair {number // 2}")
    for index in range(4):
        held_out = WindowedPartition(cache, "validation", 16, 32, fold=(index, 4)).recordings
        assert len(held_out) == 2
        assert len({item.source.sha256 for item in held_out}) == 1
