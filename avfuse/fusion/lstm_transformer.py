"""LSTM and transformer over the joined features: the systems that won with recurrence and self-attention."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from avfuse.fusion import FusionHead
from avfuse.fusion._blocks import LinearRegressor, MeanVideo, Padding, linear, zero_padding
from avfuse.fusion._transformers import (
    CrossModalLayer,
    ReleasedCrossModalLayer,
    SelfAttentionLayer,
    TransformerEncoder,
    attention_mask,
    sinusoids,
)
from avfuse.schema import UsageError

NETWORKS = ("mean", "lstm", "transformer", "cross_modal")
NUM_HEADS, NUM_LAYERS = 4, 4
CROSS_MODAL_SIZE, CROSS_MODAL_DROPOUT = 128, 0.3
RELEASED_SIZES, RELEASED_DROPOUT = (1024, 512, 256), 0.3
_SPREAD_EPSILON = 1e-8


class LSTMTransformer(FusionHead):
    """An LSTM and a transformer on the joined features, and the mean of their traces.

    Source: L. Meng et al., "Valence and Arousal Estimation based on Multimodal Temporal-Aware Features for Videos in
    the Wild" (CVPR Workshops 2022, arXiv 2203.12367), and V. Karas, M. K. Tellamekala, A. Mallol-Ragolta, M. Valstar
    and B. W. Schuller, "Time-Continuous Audiovisual Fusion with Recurrence vs Attention for In-The-Wild Affect
    Recognition" (CVPR Workshops 2022, arXiv 2203.13285). ``network`` picks:

    - ``lstm``: Linear 512, ReLU, one-directional LSTM(512), then 512 and 256 with ReLU, then the targets;
    - ``transformer``: Linear 256, sinusoids (none at the first clip), four post-norm layers (4 heads, 1024 hidden),
      then 256 and 256 with ReLU, then the targets;
    - ``mean`` of the two, for which the paper of `RecursiveJointAttention` gives no more than the words;
    - ``cross_modal``: a convolution over three clips per modality (64) and sinusoids; each modality attends to the
      other in four layers (4 heads, 128 hidden); four self-attention layers on both, and a linear map.

    Where it departs from the sources: windows of T clips stand for their segments of 100 and 250 frames, and no state
    is carried from one to the next; the two networks of ``mean`` are trained together on the mean, where the source
    averages models; there is no auxiliary classifier; inputs are standardised, the video is the mean of its map, and
    the absent face's learned vector is an addition. Padding gets no attention; the released codes have no mask.

    ``form="released"`` takes raw features. ``transformer`` is then the later of the two published code bases: each
    clip's joined features scaled to mean 0 and deviation 1; Linear 1024, Linear 512; four layers (512 hidden, dropout
    0.3) without positions; per target Linear 256, batch norm, Linear 1. ``cross_modal`` is the published default: its
    layers add the attended to itself instead of to the target, and each is fed the original target, so only the last of
    the four counts, and only that one is built; the self-attention layers have SELU. ``lstm`` is the same in both
    forms.

    Parameters
    ----------
    targets : sequence of str
        Names of the columns of the trace.
    audio_size, video_size, map_size : int
        A; C; H = W.
    num_clips : int
        The longest window, T.
    form : str
        ``paper`` or ``released``.
    network : str
        ``mean``, ``lstm``, ``transformer`` or ``cross_modal``.
    """

    def __init__(
        self,
        targets: Sequence[str],
        *,
        audio_size: int = 512,
        video_size: int = 512,
        num_clips: int = 16,
        map_size: int = 7,
        form: str = "paper",
        network: str = "mean",
    ) -> None:
        super().__init__(
            targets, audio_size=audio_size, video_size=video_size, num_clips=num_clips, map_size=map_size, form=form
        )
        if network not in NETWORKS:
            raise UsageError(f"network '{network}' is none of {', '.join(NETWORKS)}")
        self.mean_video = MeanVideo(video_size, is_released=self.is_released)
        num_targets, joint_size = len(self.targets), audio_size + video_size
        makers: dict[str, Callable[[], nn.Module]] = {
            "lstm": lambda: _LSTM(joint_size, num_targets),
            "transformer": lambda: (
                _ReleasedTransformer(joint_size, num_targets)
                if self.is_released
                else _Transformer(joint_size, num_clips, num_targets)
            ),
            "cross_modal": lambda: _CrossModal(
                audio_size, video_size, num_clips, num_targets, is_released=self.is_released
            ),
        }
        chosen = ("lstm", "transformer") if network == "mean" else (network,)
        self.networks = nn.ModuleDict({name: makers[name]() for name in chosen})

    def fuse(self, audio: Tensor, video: Tensor, padding: Padding | None, face: Tensor | None) -> Tensor:
        """Return the trace (B, T, E); see the contract in `avfuse.fusion`."""
        audio_BTA = self.inputs.audio(audio, padding)
        video_BTC = self.mean_video(video, face, padding, self.inputs)
        traces = [network(audio_BTA, video_BTC, padding) for network in self.networks.values()]
        return torch.stack(traces).mean(dim=0)


class _Perceptron(nn.Module):
    """Linear, ReLU and dropout once per hidden size, then a linear map to the targets, in the weights' precision."""

    def __init__(self, input_size: int, hidden_sizes: tuple[int, ...], num_targets: int, dropout: float) -> None:
        super().__init__()
        sizes = (input_size, *hidden_sizes)
        self.hidden = nn.ModuleList(linear(*pair) for pair in pairwise(sizes))
        self.dropout = nn.Dropout(dropout)
        self.regressor = LinearRegressor(sizes[-1], num_targets)

    def forward(self, values_BTD: Tensor) -> Tensor:
        for layer in self.hidden:
            values_BTD = self.dropout(layer(values_BTD).relu())
        trace_BTE: Tensor = self.regressor(values_BTD)
        return trace_BTE


class _LSTM(nn.Module):
    """It looks back only; padding stands at the end, so nothing here has to know of it."""

    def __init__(self, joint_size: int, num_targets: int) -> None:
        super().__init__()
        self.input_layer, self.dropout = linear(joint_size, 512), nn.Dropout(0.1)
        self.lstm = nn.LSTM(512, 512, batch_first=True)
        self.perceptron = _Perceptron(512, (512, 256), num_targets, dropout=0.3)

    def forward(self, audio_BTA: Tensor, video_BTC: Tensor, padding: Padding | None) -> Tensor:
        values_BTD = self.dropout(self.input_layer(torch.cat([video_BTC, audio_BTA], dim=-1)).relu())
        with torch.autocast(values_BTD.device.type, enabled=False):
            hidden_BTD = self.lstm(values_BTD.to(audio_BTA.dtype))[0]
        trace_BTE: Tensor = self.perceptron(hidden_BTD)
        return trace_BTE


class _Transformer(nn.Module):
    def __init__(self, joint_size: int, num_clips: int, num_targets: int) -> None:
        super().__init__()
        position_TD = sinusoids(num_clips, 256)
        position_TD[0] = 0
        self.register_buffer("position_TD", position_TD, persistent=False)
        self.input_layer = linear(joint_size, 256)
        self.encoder = TransformerEncoder(256, NUM_HEADS, 1024, NUM_LAYERS, dropout=0.1)
        self.perceptron = _Perceptron(256, (256, 256), num_targets, dropout=0.3)

    def forward(self, audio_BTA: Tensor, video_BTC: Tensor, padding: Padding | None) -> Tensor:
        values_BTD = self.input_layer(torch.cat([video_BTC, audio_BTA], dim=-1))
        values_BTD = values_BTD + self.get_buffer("position_TD")[: values_BTD.shape[1]]
        trace_BTE: Tensor = self.perceptron(self.encoder(values_BTD, padding))
        return trace_BTE


class _BatchNorm(nn.BatchNorm1d):
    """Batch norm that takes its running moments where a batch has but one clip, which has no moments of its own."""

    def forward(self, rows_ND: Tensor) -> Tensor:
        if len(rows_ND) > 1:
            return super().forward(rows_ND)
        moments = (self.running_mean, self.running_var)
        normal_ND: Tensor = nn.functional.batch_norm(rows_ND, *moments, self.weight, self.bias, eps=self.eps)
        return normal_ND


class _ReleasedTransformer(nn.Module):
    def __init__(self, joint_size: int, num_targets: int) -> None:
        super().__init__()
        input_size, size, hidden_size = RELEASED_SIZES
        self.input_layers = nn.Sequential(linear(joint_size, input_size), linear(input_size, size))
        self.encoder = TransformerEncoder(size, NUM_HEADS, size, NUM_LAYERS, RELEASED_DROPOUT)
        self.regressors = nn.ModuleList(
            nn.Sequential(linear(size, hidden_size), _BatchNorm(hidden_size), linear(hidden_size, 1))
            for _ in range(num_targets)
        )

    def forward(self, audio_BTA: Tensor, video_BTC: Tensor, padding: Padding | None) -> Tensor:
        joint_BTD = torch.cat([video_BTC, audio_BTA], dim=-1)
        spread_BT1 = joint_BTD.std(dim=-1, correction=0, keepdim=True)
        joint_BTD = (joint_BTD - joint_BTD.mean(dim=-1, keepdim=True)) / (spread_BT1 + _SPREAD_EPSILON)
        encoded_BTD = self.encoder(self.input_layers(zero_padding(joint_BTD, padding)), padding)
        with torch.autocast(encoded_BTD.device.type, enabled=False):
            # The batch norm must not see padding: only clips pass, and the others get 0.
            rows_ND, num_rows = encoded_BTD.to(audio_BTA.dtype).flatten(0, 1), encoded_BTD.shape[:2].numel()
            clips_N = torch.arange(num_rows) if padding is None else padding.clips_BT.flatten().nonzero().squeeze(1)
            clips_N = clips_N.to(rows_ND.device, non_blocking=True)  # found on the host: a device would be waited for
            trace_NE = torch.cat([regressor(rows_ND[clips_N]) for regressor in self.regressors], dim=-1)
            trace_NE = trace_NE.new_zeros(num_rows, trace_NE.shape[1]).index_copy(0, clips_N, trace_NE)
            return trace_NE.reshape(*encoded_BTD.shape[:2], -1)


class _CrossModal(nn.Module):
    def __init__(
        self, audio_size: int, video_size: int, num_clips: int, num_targets: int, *, is_released: bool
    ) -> None:
        super().__init__()
        half = CROSS_MODAL_SIZE // 2
        arguments = (NUM_HEADS, CROSS_MODAL_SIZE, CROSS_MODAL_DROPOUT)
        self.register_buffer("position_TD", sinusoids(num_clips, half), persistent=False)
        self.audio_input = nn.Conv1d(audio_size, half, kernel_size=3, padding=1)
        self.video_input = nn.Conv1d(video_size, half, kernel_size=3, padding=1)
        layer, count = (ReleasedCrossModalLayer, 1) if is_released else (CrossModalLayer, NUM_LAYERS)
        self.audio_attends, self.video_attends = (
            nn.ModuleList(layer(half, *arguments) for _ in range(count)) for _ in range(2)
        )
        self.self_attention: TransformerEncoder | None = None
        self.released_self_attention = nn.ModuleList()
        if is_released:
            self.released_self_attention.extend(
                SelfAttentionLayer(CROSS_MODAL_SIZE, *arguments) for _ in range(NUM_LAYERS)
            )
        else:
            self.self_attention = TransformerEncoder(
                CROSS_MODAL_SIZE, NUM_HEADS, CROSS_MODAL_SIZE, NUM_LAYERS, CROSS_MODAL_DROPOUT, "gelu"
            )
        self.regressor = LinearRegressor(CROSS_MODAL_SIZE, num_targets)

    def forward(self, audio_BTA: Tensor, video_BTC: Tensor, padding: Padding | None) -> Tensor:
        position_TD, mask_BT = self.get_buffer("position_TD")[: audio_BTA.shape[1]], attention_mask(padding)
        audio_BTD = zero_padding(self.audio_input(audio_BTA.mT).mT + position_TD, padding)
        video_BTD = zero_padding(self.video_input(video_BTC.mT).mT + position_TD, padding)
        attending_audio_BTD, attending_video_BTD = audio_BTD, video_BTD
        for layer in self.audio_attends:
            attending_audio_BTD = layer(video_BTD, attending_audio_BTD, mask_BT)
        for layer in self.video_attends:
            attending_video_BTD = layer(audio_BTD, attending_video_BTD, mask_BT)
        joint_BTD = torch.cat([attending_video_BTD, attending_audio_BTD], dim=-1)
        if self.self_attention is not None:
            joint_BTD = self.self_attention(joint_BTD, padding)
        for layer in self.released_self_attention:
            joint_BTD = layer(joint_BTD, mask_BT)
        trace_BTE: Tensor = self.regressor(joint_BTD)
        return trace_BTE
