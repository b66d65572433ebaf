from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toy import AUDIO, CHANNELS, HOP, MAP, add_recording, toy_cache, toy_spec

import avfuse
from avfuse.cache import FeatureCache
from avfuse.checkpoint import build_head
from avfuse.dataset import WindowedPartition, feature_moments, predict_recording, tile, warn_of_leaks
from avfuse.schema import Batch, UsageError
from avfuse.writer import MAX_CHUNK_CLIPS


@pytest.mark.parametrize(
    ("num_clips", "overlap", "windows"),
    [
        (0, 8, []),
        (1, 0, [(0, 1)]),
        (16, 0, [(0, 16)]),
        (16, 8, [(0, 16)]),
        (9, 15, [(0, 9)]),
        (17, 0, [(0, 16), (16, 17)]),
        (40, 0, [(0, 16), (16, 32), (32, 40)]),
        (17, 8, [(0, 16), (1, 17)]),
        (24, 8, [(0, 16), (8, 24)]),
        (25, 8, [(0, 16), (8, 24), (9, 25)]),
        (40, 8, [(0, 16), (8, 24), (16, 32), (24, 40)]),
        (40, 4, [(0, 16), (12, 28), (24, 40)]),
        (18, 15, [(0, 16), (1, 17), (2, 18)]),
    ],
)
def test_tiles(num_clips: int, overlap: int, windows: list[tuple[int, int]]) -> None:
    assert [(window.start, window.stop) for window in tile(num_clips, 16, overlap)] == windows


def test_overlapping_tiles_are_full_cover_everything_and_share_enough() -> None:
    for length in (1, 2, 3, 8):
        for overlap in range(length):
            for num_clips in range(1, 30):
                windows = tile(num_clips, length, overlap)
                assert {clip for window in windows for clip in window} == set(range(num_clips))
                assert len(set(windows)) == len(windows)
                if num_clips > length and overlap:
                    assert {len(window) for window in windows} == {length}
                    shared = [one.stop - other.start for one, other in pairwise(windows)]
                    assert set(shared[:-1]) <= {overlap}
                    assert shared[-1] >= overlap


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


@pytest.mark.parametrize(("num_clips", "spacing", "overlap"), [(4, 16, 2), (4, 32, 1), (16, 8, 15), (5, 32, 0)])
def test_a_clip_in_several_windows_has_the_mean_of_their_traces(
    tmp_path: Path, num_clips: int, spacing: int, overlap: int
) -> None:
    partition = WindowedPartition(toy_cache(tmp_path), "validation", num_clips, spacing, overlap=overlap)
    rng = np.random.default_rng(0)
    traces = {place: rng.normal(size=(num_clips, 2)).astype(np.float32) for place in range(len(partition.windows))}
    predictions = partition.predictions(traces)
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
    for item in partition.predictions(traces):
        assert not np.isfinite(item.prediction_FE).any()


class Echo(nn.Module):
    """A head that returns, for each clip, the first audio feature and the clip's place in its window."""

    def __init__(self, num_clips: int) -> None:
        super().__init__()
        self.targets = ("audio", "place")
        self.num_clips = num_clips
        self.sizes: list[int] = []

    def forward(self, audio: Tensor, video: Tensor, mask: Tensor | None = None, face: Tensor | None = None) -> Tensor:
        assert torch.is_inference_mode_enabled()
        assert mask is not None
        assert audio.shape[:2] == video.shape[:2] == mask.shape
        assert face is None or torch.equal(face, audio[..., 0] / 100)
        self.sizes.append(len(audio))
        return torch.stack([audio[..., 0], torch.arange(audio.shape[1]).expand(len(audio), -1)], dim=-1)


def clip_features(num_clips: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return audio whose values are the numbers of the clips, maps, and faces whose shares are hundredths of them."""
    index_N = torch.arange(num_clips, dtype=torch.float32)
    return index_N[:, None].expand(-1, 3), torch.zeros(num_clips, 2, 1, 1, dtype=torch.float16), index_N / 100


@pytest.mark.parametrize("overlap", [None, 0, 1, 3])
@pytest.mark.parametrize("num_clips", [1, 3, 4, 5, 6, 7, 23])
def test_a_recording_of_any_length_is_predicted(num_clips: int, overlap: int | None) -> None:
    audio_NA, video_NCHW, face_N = clip_features(num_clips)
    head = Echo(4)
    trace_NE = predict_recording(head, audio_NA, video_NCHW, face_N, overlap=overlap, batch_size=2)
    assert (trace_NE.shape, trace_NE.dtype, trace_NE.device.type) == ((num_clips, 2), torch.float32, "cpu")
    assert not trace_NE.is_inference()
    assert torch.equal(trace_NE[:, 0], audio_NA[:, 0])  # each window's trace is put where its clips are
    for clip in range(num_clips):  # and the mean over the windows is taken
        places = [
            clip - window.start for window in tile(num_clips, 4, 2 if overlap is None else overlap) if clip in window
        ]
        assert trace_NE[clip, 1].item() == np.float32(np.mean(places))
    assert max(head.sizes) <= 2
    without_face = predict_recording(head, audio_NA, video_NCHW, overlap=overlap)
    assert torch.equal(trace_NE, without_face)


def toy_head(num_clips: int) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"audio_size": AUDIO, "video_size": CHANNELS, "map_size": MAP, "num_clips": num_clips}
    return build_head("concat", {"targets": ["valence", "arousal"], **sizes}).eval()


def random_features(num_clips: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    video_NCHW = torch.randn(num_clips, CHANNELS, MAP, MAP, generator=generator).half()
    return torch.randn(num_clips, AUDIO, generator=generator), video_NCHW, torch.rand(num_clips, generator=generator)


@pytest.mark.parametrize("num_clips", [1, 5, 8])
def test_a_short_recording_is_one_call_of_the_head(num_clips: int) -> None:
    head = toy_head(8)
    audio_NA, video_NCHW, face_N = random_features(num_clips)
    with torch.inference_mode():
        called = head(audio_NA[None], video_NCHW[None], face=face_N[None])[0]
    assert torch.equal(avfuse.predict_recording(head, audio_NA, video_NCHW, face_N), called)


@pytest.mark.parametrize(("num_clips", "overlap"), [(9, None), (30, None), (30, 7), (30, 0)])
def test_a_long_recording_is_the_mean_of_single_windows(num_clips: int, overlap: int | None) -> None:
    head = toy_head(8)
    audio_NA, video_NCHW, face_N = random_features(num_clips)
    total_NE, count_N1 = torch.zeros(num_clips, 2, dtype=torch.float64), torch.zeros(num_clips, 1)
    with torch.inference_mode():
        for window in tile(num_clips, 8, 4 if overlap is None else overlap):
            clips = slice(window.start, window.stop)
            total_NE[clips] += head(audio_NA[None, clips], video_NCHW[None, clips], face=face_N[None, clips])[0]
            count_N1[clips] += 1
    trace_NE = predict_recording(head, audio_NA, video_NCHW, face_N, overlap=overlap)
    # 1e-6: windows are computed in batches, whose products are summed in another order
    np.testing.assert_allclose(trace_NE.numpy(), (total_NE / count_N1).numpy(), atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_predicting_leaves_the_head_as_it_is(training: bool) -> None:
    head = toy_head(8).train(training)
    predict_recording(head, *random_features(20))
    assert {module.training for module in head.modules()} == {training}


def test_what_is_no_recording_is_refused() -> None:
    audio_NA, video_NCHW, face_N = clip_features(5)
    with pytest.raises(ValueError, match="got clips: 5 of audio, 4 of video, 5 of face; their number must be the same"):
        predict_recording(Echo(4), audio_NA, video_NCHW[:4], face_N)
    with pytest.raises(ValueError, match=r"got clips: 0 of audio, 0 of video; .* at least 1$"):
        predict_recording(Echo(4), audio_NA[:0], video_NCHW[:0])
    with pytest.raises(UsageError, match="overlap is 4; windows of 4 clips can share 0 to 3"):
        predict_recording(Echo(4), audio_NA, video_NCHW, overlap=4)


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
    np.testing.assert_array_equal(partition.target_NE[0], np.array(labels, np.float32))
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
        assert {item.partition for item in validation.predictions(zeros)} == {"validation"}
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
