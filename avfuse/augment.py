"""Augmentation of features in training: noise, a modality that is missing, spans of clips that are masked.

Of what is away, sound is replaced by its mean over the training partition, and the face by the mean map and a share of
0, which heads know as "no face". All of it is in raw features, as the cache has them: a head that standardises sees
zeros there, and the released forms, which do not, see the mean. Padding and targets are never touched.

What is drawn comes from PyTorch's generator of the CPU, in the same number whatever the values are, and nothing waits
for a GPU. Noise is drawn where the batch is, by a generator whose seed comes from there: so a training on one device is
the same wherever its features lay before.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from avfuse.schema import Batch

Moments = tuple[Tensor, Tensor, Tensor, Tensor]
"""Mean and standard deviation of the sound, (A,) each, and of the face's map, (C, H, W) each."""
_ROUNDING = 1e-9  # 0.29 of 100 clips are 29


def augment(
    batch: Batch, *, moments: Moments, noise: float = 0.0, drop_modality: float = 0.0, mask_span: float = 0.0
) -> Batch:
    """Return a batch with augmented features, in the type that they came in; the given one stays as it is.

    Parameters
    ----------
    batch : Batch
        On any device, its mask there or on the host; maps of any float type.
    moments : tuple of Tensor
        Of the training partition's raw features; see `Moments`.
    noise : float, at least 0
        Normal noise is added to every feature of every clip; its standard deviation is so many times the feature's.
    drop_modality : float, 0 to 1
        Probability by which a window goes without sound or without face, either with the same probability, never
        without both. This is the dropping of ModDrop (Neverova et al., "ModDrop: Adaptive Multi-Modal Gesture
        Recognition", TPAMI 2016), there by independent draws per modality.
    mask_span : float, 0 to 1
        Largest share of a window's clips that are masked: of n clips, w, uniform over the whole numbers from 0 to
        ``floor(mask_span * n)``, consecutive ones go without sound, from a clip uniform over those where they fit; and
        so, by draws of their own, others without face. This is the time mask of SpecAugment (Park et al., Interspeech
        2019) with its bound p, on clips instead of spectrogram frames, one per modality. Both spans may meet.

    Where a value is 0 nothing is drawn for it, so that a training without augmentation is what it was.
    """
    device = batch.audio_BTA.device
    mask_BT = batch.mask_BT.to(device, non_blocking=True)
    audio_mean_A, audio_std_A, video_mean_CHW, video_std_CHW = (values.to(device) for values in moments)
    audio_BTA, video_BTCHW, face_BT = batch.audio_BTA, batch.video_BTCHW, batch.face_BT
    if noise:
        generator = torch.Generator(device).manual_seed(int(torch.randint(2**63 - 1, ())))
        audio_BTA = _add_noise(audio_BTA, noise * audio_std_A, mask_BT, generator)
        video_BTCHW = _add_noise(video_BTCHW, noise * video_std_CHW, mask_BT, generator)
    if drop_modality or mask_span:
        no_audio_BT, no_face_BT = _draw_away(mask_BT, drop_modality, mask_span)
        audio_BTA = torch.where(no_audio_BT[..., None], audio_mean_A.to(audio_BTA.dtype), audio_BTA)
        video_BTCHW = torch.where(no_face_BT[..., None, None, None], video_mean_CHW.to(video_BTCHW.dtype), video_BTCHW)
        face_BT = face_BT.masked_fill(no_face_BT, 0.0)
    return dataclasses.replace(batch, audio_BTA=audio_BTA, video_BTCHW=video_BTCHW, face_BT=face_BT)


def _add_noise(values: Tensor, std: Tensor, mask_BT: Tensor, generator: torch.Generator) -> Tensor:
    """Return features (B, T, ...) with noise of the given standard deviations, (...), where there are clips."""
    mask = mask_BT.reshape(mask_BT.shape + (1,) * std.ndim)
    noisy = torch.randn(values.shape, generator=generator, device=values.device).mul_(std).mul_(mask).add_(values)
    limits = torch.finfo(values.dtype)
    return noisy.clamp_(limits.min, limits.max).to(values.dtype)


def _draw_away(mask_BT: Tensor, drop_modality: float, mask_span: float) -> tuple[Tensor, Tensor]:
    """Draw which clips go without sound, and which without face, (B, T) each; below, the last axis is that of both."""
    device = mask_BT.device
    uniform_B6 = torch.rand(len(mask_BT), 6, dtype=torch.float64).to(device, non_blocking=True)
    drop_B1, which_B1, width_B2, start_B2 = uniform_B6.tensor_split((1, 2, 4), dim=1)
    is_dropped_B2 = (drop_B1 < drop_modality) & torch.cat([which_B1 < 0.5, which_B1 >= 0.5], dim=1)
    num_clips_B1 = mask_BT.sum(dim=1, keepdim=True)
    num_masked_B2 = (width_B2 * (torch.floor(mask_span * num_clips_B1 + _ROUNDING) + 1)).floor()
    first_B2 = (start_B2 * (num_clips_B1 - num_masked_B2 + 1)).floor()
    clip_T1 = torch.arange(mask_BT.shape[1], device=device)[:, None]
    in_span_BT2 = (clip_T1 >= first_B2[:, None]) & (clip_T1 < (first_B2 + num_masked_B2)[:, None])
    away_BT2 = mask_BT[..., None] & (in_span_BT2 | is_dropped_B2[:, None])
    return away_BT2[..., 0], away_BT2[..., 1]
