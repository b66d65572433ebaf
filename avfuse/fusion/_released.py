"""Blocks of the published code of recursive joint attention and its kin, quirks included.

Where they depart from the paper: inputs and BLSTM outputs are scaled to unit length; the map is viewed, not transposed,
as cells, which interleaves channels and positions; the BLSTMs see their input again at the output and learn their
initial state; the joint features pass a learned, biased map that both modalities share; the attention has biases, a
further tanh and ReLU, and dropout inside; features are joined in the order video, audio.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avfuse.fusion._blocks import Padding, check_blstm_size, compute_dtype, linear, over_clips, zero_padding
from avfuse.fusion._correlation import attend_through_correlation
from avfuse.fusion._dropout import Dropout

ATTENTION_DROPOUT = REGRESSOR_DROPOUT = 0.6
UNIMODAL_DROPOUT, JOINT_DROPOUT = 0.1, 0.0
_UNIT_EPSILON = 1e-12


def unit_length(values: Tensor) -> Tensor:
    """Return `values` scaled to length 1 along their last axis; zeros stay zeros."""
    return F.normalize(values, dim=-1, eps=_UNIT_EPSILON)


def interleaved_cells(video_BTCHW: Tensor, dtype: torch.dtype) -> Tensor:
    """Return each map, scaled to unit length, as rows (B * T, H * W, C), by a view of its numbers in their order.

    Row r thus holds the numbers C r to C r + C - 1 of the map laid out channel by channel: all positions of a few
    channels, instead of all channels of one position.
    """
    num_channels, *map_size = video_BTCHW.shape[2:]
    flat_NX = unit_length(video_BTCHW.flatten(0, 1).flatten(1).to(dtype))
    return flat_NX.view(len(flat_NX), math.prod(map_size), num_channels)


class LearnedStateBLSTM(nn.Module):
    """Bidirectional LSTM of two layers from a learned state; input and output, side by side, are mapped and scaled."""

    def __init__(self, input_size: int, output_size: int, dropout: float) -> None:
        super().__init__()
        check_blstm_size(output_size)
        self.layers = nn.ModuleList(
            nn.LSTM(size, output_size // 2, bidirectional=True, batch_first=True) for size in (input_size, output_size)
        )
        self.initial_state = nn.Parameter(torch.empty(8, output_size // 2))  # rows 0 to 3 hidden, 4 to 7 cell state
        nn.init.xavier_uniform_(self.initial_state)
        self.dropout = Dropout(dropout)
        self.output_layer = linear(input_size + output_size, output_size)

    def forward(self, values_BTD: Tensor, padding: Padding | None) -> Tensor:
        """Return (B, T, output_size), rows of length 1, zero at padding.

        Autocast's precision is the LSTM's on a CPU alone: cuDNN's has its weights in one piece, and to cast and join
        them anew in every step costs more than it saves.
        """
        kind = values_BTD.device.type
        dtype = compute_dtype(self.initial_state) if kind == "cpu" else self.initial_state.dtype
        values_BTD = values_BTD.to(dtype)
        state = self.initial_state.to(dtype)[:, None].repeat(1, len(values_BTD), 1)
        with torch.autocast(kind, dtype, enabled=dtype != self.initial_state.dtype):
            hidden_BTD = over_clips(partial(self.layers[0], hx=(state[0:2], state[4:6])), values_BTD, padding)
            hidden_BTD = self.dropout(hidden_BTD)
            hidden_BTD = over_clips(partial(self.layers[1], hx=(state[2:4], state[6:8])), hidden_BTD, padding)
        output_BTD = self.output_layer(self.dropout(torch.cat([values_BTD, hidden_BTD], dim=-1)))
        return zero_padding(unit_length(output_BTD.to(self.initial_state.dtype)), padding)


class SharedQueryRecursion(nn.Module):
    """One recursion for both modalities, of which both take their query from one map of the joint features.

    Q = J W_q + b_q with J = [X_v, X_a]. Per modality X, (T, D): K = X^T W_j^T + b_j along the clips,
    C = Dropout(tanh(K Q / sqrt(d))), H = ReLU(tanh((X W_c + b_c) C)), and the result is
    X + Dropout(ReLU(H W_h + b_h)). A window of T clips uses the leading T x T block of W_j and T entries of b_j.
    """

    def __init__(self, audio_size: int, video_size: int, num_clips: int) -> None:
        super().__init__()
        joint_size = audio_size + video_size
        self.query = linear(joint_size, joint_size)
        self.audio_key, self.video_key = linear(num_clips, num_clips), linear(num_clips, num_clips)
        self.audio_value, self.video_value = linear(audio_size, audio_size), linear(video_size, video_size)
        self.audio_output, self.video_output = linear(joint_size, audio_size), linear(joint_size, video_size)
        self.dropout = Dropout(ATTENTION_DROPOUT)

    def forward(self, audio_BTA: Tensor, video_BTC: Tensor, padding: Padding | None) -> tuple[Tensor, Tensor]:
        """Return the attended features (B, T, A) and (B, T, C), zero at padding."""
        joint_BTJ = torch.cat([video_BTC, audio_BTA], dim=-1)
        query_BTJ = zero_padding(self.query(joint_BTJ), padding) / joint_BTJ.shape[-1] ** 0.5
        audio_BTA = self._attend(audio_BTA, query_BTJ, self.audio_key, self.audio_value, self.audio_output)
        video_BTC = self._attend(video_BTC, query_BTJ, self.video_key, self.video_value, self.video_output)
        return zero_padding(audio_BTA, padding), zero_padding(video_BTC, padding)

    def _attend(
        self, values_BTD: Tensor, query_BTJ: Tensor, key: nn.Linear, value: nn.Linear, output: nn.Linear
    ) -> Tensor:
        num_clips = values_BTD.shape[1]
        key_BDT = F.linear(values_BTD.mT, key.weight[:num_clips, :num_clips], key.bias[:num_clips])
        attended_BTJ = attend_through_correlation(
            value(values_BTD), key_BDT, query_BTJ, self.dropout.p if self.training else 0.0
        )
        output_BTD: Tensor = values_BTD + self.dropout(output(attended_BTJ.tanh().relu()).relu())
        return output_BTD
