"""A recording of any length through a head: the mean over the windows in which a clip stands."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toy import AUDIO, CHANNELS, MAP

import avfuse
from avfuse.checkpoint import build_head
from avfuse.overlapping import predict_recording
from avfuse.schema import UsageError
from avfuse.windows import tile


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
