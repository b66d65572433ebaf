"""Joint attention that knows, clip by clip, how far each modality can be trusted."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from avfuse.fusion import FusionHead
from avfuse.fusion._blocks import BLSTM, DROPOUT, Padding, Regressor, in_parts, linear, zero_padding
from avfuse.fusion._correlation import attend_through_correlation
from avfuse.fusion._joint import OUTPUT_GAIN, AudioGuidedPooling
from avfuse.schema import UsageError

TRUST_AT_START = 3.0  # logit: a modality is trusted until training finds otherwise
MIN_TRUST = 1e-4


class ReliabilityJointAttention(FusionHead):
    """TODO"""

    takes_any_length: ClassVar[bool] = True

    def __init__(
        self,
        targets: Sequence[str],
        *,
        audio_size: int = 512,
        video_size: int = 512,
        num_clips: int = 16,
        map_size: int = 7,
        recursions: int = 1,
        outage: float = 0.5,
        experts: bool = True,
        joint_expert: bool = False,
        dropout: float = DROPOUT,
    ) -> None:
        super().__init__(targets, audio_size=audio_size, video_size=video_size, num_clips=num_clips, map_size=map_size)
        self.outage = outage
        self.pooling = AudioGuidedPooling(audio_size, video_size, map_size**2)
        self.audio_trust, self.video_trust = _Trust(audio_size), _Trust(video_size)
        self.audio_blstm, self.video_blstm = BLSTM(audio_size, audio_size), BLSTM(video_size, video_size)
        joint = audio_size + video_size
        self.audio_attention = nn.ModuleList(_Attention(audio_size, joint, num_clips) for _ in range(recursions))
        self.video_attention = nn.ModuleList(_Attention(video_size, joint, num_clips) for _ in range(recursions))
        E = len(self.targets)
        self.audio_expert = Regressor(audio_size, E, dropout)
        self.video_expert = Regressor(video_size, E, dropout)
        self.joint_expert = Regressor(joint, E, dropout) if joint_expert else None
        self.preference = nn.Parameter(torch.zeros(2, E))
        self.share = linear(joint, 2 * E)
        nn.init.zeros_(self.share.weight)

    def fuse(self, audio: Tensor, video: Tensor, padding: Padding | None, face: Tensor | None) -> Tensor:
        audio_BTA = self.inputs.audio(audio, padding)
        video = zero_padding(video, padding)
        parts = in_parts(video, audio_BTA)
        cells = [self.pooling(self.inputs.video_cells(v), a.flatten(0, 1)) for v, a in parts]
        video_BTC = zero_padding(torch.cat(cells).reshape(video.shape[:3]), padding)
        trust_a, trust_v = self.audio_trust(audio_BTA), self.video_trust(video_BTC)
        if face is not None:
            trust_v = trust_v * face.to(trust_v.dtype)
        if self.training and self.outage:
            trust_a, trust_v = _outages(trust_a, trust_v, self.outage)
        if padding is not None:
            trust_a, trust_v = (t.masked_fill(padding.padded_BT, 0) for t in (trust_a, trust_v))
        audio_BTA = self.audio_blstm(zero_padding(self.audio_trust.replace(audio_BTA, trust_a), padding), padding)
        video_BTC = self.video_blstm(zero_padding(self.video_trust.replace(video_BTC, trust_v), padding), padding)
        for aa, av in zip(self.audio_attention, self.video_attention):
            joint = torch.cat([audio_BTA * trust_a[..., None], video_BTC * trust_v[..., None]], dim=-1)
            audio_BTA, video_BTC = aa(audio_BTA, trust_a, joint), av(video_BTC, trust_v, joint)
        joint = torch.cat([audio_BTA, video_BTC], dim=-1)
        with torch.autocast(joint.device.type, enabled=False):
            trust = torch.stack([trust_a, trust_v], dim=-1).clamp(min=MIN_TRUST).log()[..., None]
            logits = self.preference + trust + self.share(joint).reshape(*joint.shape[:2], 2, -1)
            weight = logits.softmax(dim=2)
            trace = weight[:, :, 0] * self.audio_expert(audio_BTA) + weight[:, :, 1] * self.video_expert(video_BTC)
            if self.joint_expert is not None:
                trace = trace + self.joint_expert(joint)
        return trace


class _Trust(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.score = linear(size, 1)
        nn.init.zeros_(self.score.weight)
        nn.init.constant_(self.score.bias, TRUST_AT_START)
        self.absent = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.score(x).squeeze(-1).sigmoid()

    def replace(self, x: Tensor, trust: Tensor) -> Tensor:
        trust = trust[..., None]
        return trust * x + (1 - trust) * self.absent


class _Attention(nn.Module):
    def __init__(self, size: int, joint_size: int, num_clips: int) -> None:
        super().__init__()
        self.num_clips = num_clips
        self.distance_weight = nn.Parameter(torch.zeros(2 * num_clips - 1))
        with torch.no_grad():
            self.distance_weight.normal_(0, num_clips**-0.5)
        self.feature_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(size, size)))
        self.output_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(joint_size, size), gain=OUTPUT_GAIN))

    def forward(self, values: Tensor, trust: Tensor, joint: Tensor) -> Tensor:
        T, J = joint.shape[1:]
        place = torch.arange(T, device=joint.device)
        distance = place[:, None] - place[None]
        within = distance.abs() < self.num_clips
        weight = self.distance_weight[distance.clamp(1 - self.num_clips, self.num_clips - 1) + self.num_clips - 1]
        weight = weight * within
        scale = self.num_clips / trust.sum(dim=1).clamp(min=1)
        mixed = (weight / J**0.5) @ joint * scale[:, None, None]
        attended = attend_through_correlation(values @ self.feature_weight, (values * trust[..., None]).mT, mixed)
        return values + attended.relu() @ self.output_weight


def _outages(trust_a: Tensor, trust_v: Tensor, share: float) -> tuple[Tensor, Tensor]:
    B, T = trust_a.shape
    place = torch.arange(T, device=trust_a.device)
    start = (torch.rand(B, 1) * T).to(trust_a.device)
    length = (torch.rand(B, 1) * T / 2).to(trust_a.device)
    hit = ((place - start) % T) < length
    which = torch.rand(B, 1).to(trust_a.device)
    return (
        trust_a.masked_fill(hit & (which < share / 2), 0),
        trust_v.masked_fill(hit & (which >= share / 2) & (which < share), 0),
    )
