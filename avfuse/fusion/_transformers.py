"""Transformer blocks with the sinusoids and the layers of the systems that fuse by LSTM and transformer."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avfuse.fusion._blocks import Padding, linear, zero_padding


def sinusoids(num_clips: int, size: int) -> Tensor:
    """Return the fixed positional encoding (T, D): sine in even, cosine in odd columns, of t / 10000^(2 i / D)."""
    position_T1 = torch.arange(num_clips, dtype=torch.float64)[:, None]
    angle_TI = position_T1 * torch.exp(torch.arange(0, size, 2, dtype=torch.float64) * (-math.log(10_000) / size))
    return torch.stack([angle_TI.sin(), angle_TI.cos()], dim=-1).flatten(1)[:, :size].float()


def attention_mask(padding: Padding | None) -> Tensor | None:
    """Return where no attention goes, (B, T): at padding, except that a window without a clip keeps its first place."""
    if padding is None:
        return None
    place_T = torch.arange(padding.padded_BT.shape[1])
    return (place_T >= padding.num_clips_B[:, None]).to(padding.padded_BT.device, non_blocking=True)


class TransformerEncoder(nn.Module):
    """Post-norm encoder layers, as torch has them, with a mask for padding."""

    def __init__(
        self, size: int, num_heads: int, hidden_size: int, num_layers: int, dropout: float, activation: str = "relu"
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(size, num_heads, hidden_size, dropout, activation, batch_first=True)
            for _ in range(num_layers)
        )

    def forward(self, values_BTD: Tensor, padding: Padding | None) -> Tensor:
        """Return (B, T, D), zero at padding."""
        mask_BT = attention_mask(padding)
        for layer in self.layers:
            values_BTD = layer(values_BTD, src_key_padding_mask=mask_BT)
        return zero_padding(values_BTD, padding)


class CrossModalLayer(nn.Module):
    """A target sequence attends to a source sequence: attention, then a feed-forward network, a norm after each."""

    def __init__(self, size: int, num_heads: int, hidden_size: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(size, num_heads, dropout, batch_first=True)
        self.hidden, self.output = linear(size, hidden_size), linear(hidden_size, size)
        self.attention_norm, self.output_norm = nn.LayerNorm(size), nn.LayerNorm(size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, source_BTD: Tensor, target_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
        """Return the target, (B, T, D), with what it attends to."""
        attended_BTD, _ = self.attention(target_BTD, source_BTD, source_BTD, mask_BT, need_weights=False)
        target_BTD = self.attention_norm(self.dropout(attended_BTD) + target_BTD)
        output_BTD: Tensor = self.output_norm(self.dropout(self._feed_forward(target_BTD)) + target_BTD)
        return output_BTD

    def _feed_forward(self, values_BTD: Tensor) -> Tensor:
        return F.gelu(self.output(self.dropout(F.gelu(self.hidden(values_BTD)))))


class ReleasedCrossModalLayer(nn.Module):
    """What the published code has in its place: norms first, and the attended added to itself, not to the target."""

    def __init__(self, size: int, num_heads: int, hidden_size: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(size, num_heads, dropout, batch_first=True)
        self.hidden, self.output = linear(size, hidden_size), linear(hidden_size, size)
        self.source_norm, self.target_norm, self.output_norm = (nn.LayerNorm(size) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, source_BTD: Tensor, target_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
        """Return (B, T, D)."""
        source_BTD, target_BTD = self.source_norm(source_BTD), self.target_norm(target_BTD)
        attended_BTD, _ = self.attention(target_BTD, source_BTD, source_BTD, mask_BT, need_weights=False)
        attended_BTD = self.dropout(attended_BTD) + attended_BTD
        hidden_BTD = self.dropout(F.gelu(self.hidden(self.output_norm(attended_BTD))))
        output_BTD: Tensor = attended_BTD + self.dropout(F.gelu(self.output(hidden_BTD)))
        return output_BTD


class SelfAttentionLayer(nn.Module):
    """A post-norm encoder layer with SELU and the dropout that goes with it, as published beside the layer above."""

    def __init__(self, size: int, num_heads: int, hidden_size: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(size, num_heads, dropout, batch_first=True)
        self.hidden, self.output = linear(size, hidden_size), linear(hidden_size, size)
        self.attention_norm, self.output_norm = nn.LayerNorm(size), nn.LayerNorm(size)
        self.dropout = nn.AlphaDropout(dropout)

    def forward(self, values_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
        """Return (B, T, D)."""
        attended_BTD, _ = self.attention(values_BTD, values_BTD, values_BTD, mask_BT, need_weights=False)
        values_BTD = self.attention_norm(values_BTD + self.dropout(attended_BTD))
        hidden_BTD = self.dropout(F.selu(self.hidden(values_BTD)))
        output_BTD: Tensor = self.output_norm(values_BTD + self.dropout(self.output(hidden_BTD)))
        return output_BTD
