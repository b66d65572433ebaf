"""The published fusion systems, written out one step a line: the oracle the heads of `avfuse/fusion` are held against.

Slow and literal on purpose. A system is a function of its weights (a dict, name to tensor) and of one batch of
features: evaluation only, no dropout, no padding, in whatever dtype the tensors have. Nothing here is taken from
avfuse, and recurrences, attention and normalisation are spelled out rather than asked of `torch.nn`, so that an
agreement with an implementation built from those modules means something.

A linear map is stored (out, in), and a name without `.weight` or `.bias` stands for both. `random_weights` draws a
dict for any system. `ReleasedModule` is the recursive system once more, as a research repository would write it.

Shapes: B sequences, T clips, D features, E targets.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

Weights = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]

MAP_CHANNELS, MAP_CELLS = 512, 49  # the video feature is a map of 512 channels on 7 x 7 cells
MAP_SIZE = MAP_CHANNELS * MAP_CELLS
NUM_HEADS = 4  # of every attention below that has heads


# ---------------------------------------------------------------------------------------------------------------------
# Steps that several systems share
# ---------------------------------------------------------------------------------------------------------------------


def under(weights: Weights, prefix: str) -> Weights:
    """Return the weights below `prefix`, by what is left of their names."""
    return {name.removeprefix(f"{prefix}."): w for name, w in weights.items() if name.startswith(f"{prefix}.")}


def _linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    """Map the last axis, with the bias if the map has one."""
    y = x @ weights[f"{name}.weight"].T
    return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y


def _unit_rows(x: Tensor) -> Tensor:
    """Divide each row by its Euclidean length, or by 1e-12 if that is longer."""
    length = x.square().sum(dim=-1, keepdim=True).sqrt()
    return x / length.clamp_min(1e-12)


def _layer_norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    """Standardise over as many trailing axes as the norm's weight has (population variance, eps 1e-5)."""
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    axes = tuple(range(-weight.ndim, 0))
    centred = x - x.mean(dim=axes, keepdim=True)
    variance = centred.square().mean(dim=axes, keepdim=True)
    return centred / (variance + 1e-5).sqrt() * weight + bias


def _lstm_pass(weights: Weights, suffix: str, x: Tensor, h: Tensor, c: Tensor) -> Tensor:
    """Run one layer in one direction over (B, T, D) from the state h, c (B, H); return every h (B, T, H)."""
    clips: Iterable[int] = range(x.shape[1])
    if suffix.endswith("_reverse"):
        clips = reversed(clips)
    hidden = {}
    for t in clips:
        gates = x[:, t] @ weights[f"weight_ih_{suffix}"].T + weights[f"bias_ih_{suffix}"]
        gates = gates + h @ weights[f"weight_hh_{suffix}"].T + weights[f"bias_hh_{suffix}"]
        write, keep, candidate, read = gates.chunk(4, dim=-1)
        c = keep.sigmoid() * c + write.sigmoid() * candidate.tanh()
        h = read.sigmoid() * c.tanh()
        hidden[t] = h
    return torch.stack([hidden[t] for t in sorted(hidden)], dim=1)


def sinusoids(num_clips: int, width: int, like: Tensor) -> Tensor:
    """Return the positions 0 ... T-1 as (T, width): even columns sin(t / 10000^(2i / width)), odd columns its cos."""
    table = torch.zeros(num_clips, width, dtype=torch.float64)
    for t in range(num_clips):
        for i in range(width // 2):
            angle = t / 10000 ** (2 * i / width)
            table[t, 2 * i] = math.sin(angle)
            table[t, 2 * i + 1] = math.cos(angle)
    return table.to(like)


def _attention(weights: Weights, query: Tensor, source: Tensor) -> Tensor:
    """Let `query` (B, T, D) attend to `source`, which gives the keys and the values, with four heads."""
    query_map, key_map, value_map = weights["in_proj_weight"].chunk(3)
    query_bias, key_bias, value_bias = weights["in_proj_bias"].chunk(3)
    queries = query @ query_map.T + query_bias
    keys = source @ key_map.T + key_bias
    values = source @ value_map.T + value_bias
    width = query.shape[-1] // NUM_HEADS
    heads = []
    for n in range(NUM_HEADS):
        own = slice(n * width, (n + 1) * width)
        scores = queries[..., own] @ keys[..., own].transpose(1, 2) / math.sqrt(width)
        heads.append(scores.softmax(dim=-1) @ values[..., own])
    return _linear(weights, "out_proj", torch.cat(heads, dim=-1))


def _post_norm_encoder(weights: Weights, x: Tensor, activation: Callable[[Tensor], Tensor] = torch.relu) -> Tensor:
    """Apply encoder layers as torch's TransformerEncoder does by default: add, then normalise; no final norm."""
    for layer in _numbered(weights, "layers"):
        x = _layer_norm(layer, "norm1", x + _attention(under(layer, "self_attn"), x, x))
        x = _layer_norm(layer, "norm2", x + _linear(layer, "linear2", activation(_linear(layer, "linear1", x))))
    return x


def _numbered(weights: Weights, prefix: str) -> list[Weights]:
    """Return the weights of `prefix.0`, `prefix.1` ... in order."""
    found = sorted({int(name.split(".")[0]) for name in under(weights, prefix)})
    return [under(weights, f"{prefix}.{i}") for i in found]


# ---------------------------------------------------------------------------------------------------------------------
# Recursive joint attention, and joint cross attention in its journal form
# ---------------------------------------------------------------------------------------------------------------------


def blstm(weights: Weights, x: Tensor) -> Tensor:
    """Run two bidirectional layers (B, T, D) to unit rows (B, T, 512), from a learned state and past a skip.

    The rows of `init_hidden` are h of layer 0 forward, layer 0 backward, layer 1 forward, layer 1 backward, then c
    in that order. The input is joined, in front, to the output of the second layer before the projection.
    """
    rnn = under(weights, "rnn")
    h, c = weights["init_hidden"][:4], weights["init_hidden"][4:]
    output = x
    for layer in range(2):
        directions = []
        for way, suffix in enumerate([f"l{layer}", f"l{layer}_reverse"]):
            state = 2 * layer + way
            h0, c0 = h[state].expand(len(x), -1), c[state].expand(len(x), -1)
            directions.append(_lstm_pass(rnn, suffix, output, h0, c0))
        output = torch.cat(directions, dim=-1)
    return _unit_rows(_linear(weights, "linear", torch.cat([x, output], dim=-1)))


def scrambled_view(video: Tensor) -> Tensor:
    """Read a channel-major map (..., 512 x 49) as 49 rows of 512, the way the release does.

    No transpose: row r is the flat entries 512 r ... 512 r + 511, some eleven channels at all of their positions.
    """
    return video.reshape(*video.shape[:-1], MAP_CELLS, MAP_CHANNELS)


def guided_pooling(weights: Weights, audio: Tensor, video: Tensor) -> Tensor:
    """Pool the 49 rows of each clip's map by their fit to the audio (B, T, 512): (B, T, 25088) to (B, T, 512).

    Row r scores z_r = w_h tanh(W_1 u_r + (W_2 q)_r): the audio adds one number per row, the same for all 49 columns.
    """
    rows = scrambled_view(video)
    q = _linear(weights, "affine_audio", audio).relu()
    audio_term = _linear(weights, "affine_g", q)
    scores = []
    for r in range(MAP_CELLS):
        u = _linear(weights, "affine_video", rows[..., r, :]).relu()
        content = _linear(weights, "affine_v", u) + audio_term[..., r : r + 1]
        scores.append(_linear(weights, "affine_h", content.tanh()))
    share = torch.cat(scores, dim=-1).softmax(dim=-1)
    pooled = sum(share[..., r : r + 1] * rows[..., r, :] for r in range(MAP_CELLS))
    return _linear(weights, "affine_feat", pooled)


def attention_block(weights: Weights, video: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
    """Attend once to the joint feature: (B, T, 512) twice to the same. Modality 1 is video, modality 2 audio."""
    joint = torch.cat([video, audio], dim=-1)
    query = _linear(weights, "dense_coattn.query_linear", joint)
    updated = []
    for m, x in enumerate([video, audio]):
        key = _linear(weights, f"dense_coattn.key{m + 1}_linear", x.transpose(1, 2))  # (B, 512, T)
        correlation = (key @ query / math.sqrt(1024)).tanh()  # (B, 512, 1024)
        value = _linear(weights, f"dense_coattn.value{m + 1}_linear", x)
        hidden = (value @ correlation).tanh().relu()  # (B, T, 1024)
        updated.append(x + _linear(weights, f"linears.{m}.0", hidden).relu())
    return updated[0], updated[1]


def _two_heads(weights: Weights, joint: Tensor) -> Tensor:
    """Regress valence and arousal apart: (B, T, 512) to (B, T, 2), unbounded."""
    traces = []
    for head in ["vregressor", "aregressor"]:
        hidden = _linear(weights, f"{head}.0", joint).relu()
        traces.append(_linear(weights, f"{head}.3", hidden))
    return torch.cat(traces, dim=-1)


def recursive_joint_attention(weights: Weights, audio: Tensor, video: Tensor, recursions: int) -> Tensor:
    """Return valence and arousal (B, T, 2) of recursive joint attention with BLSTMs, as its code was released.

    Source: the "exact tensor flow" of method 6, recursive joint attention, with its BLSTM block, its audio-guided
    pooling over the scrambled 49 x 512 view and its attention block. Audio is (B, T, 512), video (B, T, 25088) with
    the channel as the slower index.

    Weights, n = `recursions` blocks i, T clips:
        audio_extract, video_extract   init_hidden (8, 256); linear (512, 1024), (512);
                                       rnn.weight_ih_l{0,1}[_reverse] (1024, 512), rnn.weight_hh_... (1024, 256),
                                       rnn.bias_ih_..., rnn.bias_hh_... (1024)
        Joint                          the same, but linear.weight (512, 1536), rnn.weight_ih_l0[_reverse] (1024, 1024)
        video_attn.attn                affine_audio, affine_video, affine_feat (512, 512), (512);
                                       affine_v.weight, affine_g.weight (49, 512); affine_h.weight (1, 49)
        coattn.dcn_layers.{i}          dense_coattn.query_linear (1024, 1024), (1024);
                                       dense_coattn.key{1,2}_linear (T, T), (T);
                                       dense_coattn.value{1,2}_linear (512, 512), (512);
                                       linears.{0,1}.0 (512, 1024), (512)
        vregressor, aregressor         0 (128, 512), (128); 3 (1, 128), (1)
    """
    video = _unit_rows(video)
    audio = _unit_rows(audio)
    audio = blstm(under(weights, "audio_extract"), audio)
    video = guided_pooling(under(weights, "video_attn.attn"), audio, video)
    video = blstm(under(weights, "video_extract"), video)
    for i in range(recursions):
        video, audio = attention_block(under(weights, f"coattn.dcn_layers.{i}"), video, audio)
    joint = torch.cat([video, audio], dim=-1)
    joint = blstm(under(weights, "Joint"), joint)
    return _two_heads(weights, joint)


def joint_cross_attention_tbiom(weights: Weights, audio: Tensor, video: Tensor) -> Tensor:
    """Return valence and arousal (B, T, 2) of joint cross attention in its journal (T-BIOM) form.

    Source: the T-BIOM release, described as recursive joint attention without either unimodal BLSTM: the
    L2-normalised audio itself guides the pooling, one attention block follows, then the joint BLSTM and two heads.
    Inputs and weights are those of `recursive_joint_attention`, less audio_extract and video_extract, with one block.
    """
    video = _unit_rows(video)
    audio = _unit_rows(audio)
    video = guided_pooling(under(weights, "video_attn.attn"), audio, video)
    video, audio = attention_block(under(weights, "coattn.dcn_layers.0"), video, audio)
    joint = torch.cat([video, audio], dim=-1)
    joint = blstm(under(weights, "Joint"), joint)
    return _two_heads(weights, joint)


# ---------------------------------------------------------------------------------------------------------------------
# Joint cross attention in its workshop form, and cross attention
# ---------------------------------------------------------------------------------------------------------------------


def joint_cross_attention_cvprw(weights: Weights, audio: Tensor, video: Tensor) -> Tensor:
    """Return one target (B, T) of joint cross attention in its workshop (CVPRW) form, with the 640-wide regressor.

    Source: the CVPRW'22 form of joint cross attention. Audio and video are (B, T, 512), taken as they come. The
    regressor sees the raw video and the attended video only; audio reaches it through the joint feature alone, so the
    attended audio, and with it four of the audio's weights, leave no trace in the result.

    Weights, m = audio, video, T clips; no bias but where two shapes are given:
        m_projection (128, 512), (128); m_clip.weight (T, T); m_correlation.weight (32, 256);
        m_feature.weight (32, T); m_output.weight (T, 32); regressor.0 (128, 640), (128); regressor.3 (1, 128), (1)
    """
    a = _linear(weights, "audio_projection", audio)  # (B, T, 128)
    v = _linear(weights, "video_projection", video)
    joint = torch.cat([a, v], dim=-1)  # (B, T, 256)
    attended = {}
    for m, x in [("audio", a), ("video", v)]:
        along_time = _linear(weights, f"{m}_clip", joint.transpose(1, 2)).transpose(1, 2)  # (B, T, 256)
        correlation = (x.transpose(1, 2) @ along_time / math.sqrt(256)).tanh()  # (B, 128, 256)
        hidden = _linear(weights, f"{m}_correlation", correlation) + _linear(weights, f"{m}_feature", x.transpose(1, 2))
        attended[m] = _linear(weights, f"{m}_output", hidden.relu()).transpose(1, 2) + x  # (B, T, 128)
    features = torch.cat([video, attended["video"]], dim=-1)  # (B, T, 640)
    return _linear(weights, "regressor.3", _linear(weights, "regressor.0", features)).squeeze(-1)


def cross_attention(weights: Weights, audio: Tensor, video: Tensor) -> Tensor:
    """Return one value per sequence (B,) of cross attention between two modalities (B, T, D).

    Source: cross attention of FG 2021, the released code with its last products repaired: no temperature, residual
    or tanh on the attended features; the modalities are added and the maximum over time is regressed.

    Weights: correlation (D, D), a bare matrix between the audio on its left and the video on its right;
        regressor.0 (512, D), (512); regressor.1 (256, 512), (256); regressor.2 (1, 256), (1)
    """
    audio = _unit_rows(audio)
    video = _unit_rows(video)
    z = audio @ weights["correlation"] @ video.transpose(1, 2)  # (B, audio clips, video clips)
    audio_share = z.softmax(dim=1)  # each column spreads one over the audio's clips
    video_share = z.transpose(1, 2).softmax(dim=1)  # each column spreads one over the video's clips
    attended_audio = audio_share.transpose(1, 2) @ audio
    attended_video = video_share.transpose(1, 2) @ video
    x = (attended_audio + attended_video).amax(dim=1)
    for i in range(3):
        x = _linear(weights, f"regressor.{i}", x).tanh()
    return x.squeeze(-1)


# ---------------------------------------------------------------------------------------------------------------------
# Leader-follower attention
# ---------------------------------------------------------------------------------------------------------------------


def temporal_convolutions(weights: Weights, name: str, x: Tensor) -> Tensor:
    """Apply the causal levels `name.0`, `name.1` ..., of two dilated convolutions each: (B, T, D) to (B, T, width)."""
    for level, own in enumerate(_numbered(weights, name)):
        y = x
        for conv in ["0", "1"]:
            y = _causal_convolution(own[f"{conv}.weight"], own[f"{conv}.bias"], y, dilation=2**level)
            y = nn.functional.leaky_relu(y, 0.01)
        residual = x
        if "residual.weight" in own:
            residual = x @ own["residual.weight"].squeeze(-1).T + own["residual.bias"]
        x = nn.functional.leaky_relu(y + residual, 0.01)
    return x


def _causal_convolution(weight: Tensor, bias: Tensor, x: Tensor, dilation: int) -> Tensor:
    """Convolve (B, T, D) over time; the last tap of the kernel falls on the clip itself, the others before it."""
    taps = weight.shape[-1]
    y = bias.expand(*x.shape[:2], -1)
    for tap in range(taps):
        delay = (taps - 1 - tap) * dilation
        past = nn.functional.pad(x, (0, 0, delay, 0))[:, : x.shape[1]]
        y = y + past @ weight[:, :, tap].T
    return y


def leader_follower(weights: Weights, audio: Tensor, video: Tensor, released: bool) -> Tensor:
    """Return one target (B, T) of leader-follower attention; video leads and audio follows, each (B, T, 512).

    Source: method 2, leader-follower attention, with two tokens a clip. `released` is the ABAW2 code, which
    overwrites the follower's token by its key before the query and the value are computed; otherwise, as in ABAW3,
    query, key and value all come from the temporal convolutions.

    Weights, levels i = 0 ... 3 of dilation 2^i, effective kernels (weight norm already multiplied out):
        video_tcn.{i}.0, .1 (128, 512 then 128, 5), (128); video_tcn.0.residual (128, 512, 1), (128)
        audio_tcn.{i}.0, .1 (32, 512 then 32, 5), (32); audio_tcn.0.residual (32, 512, 1), (32)
        video_query, video_key, video_value (32, 128), (32); audio_query, audio_key, audio_value (32, 32), (32)
        norm (2, 32), (2, 32); output (1, 192), (1)
    """
    leader = temporal_convolutions(weights, "video_tcn", video)  # (B, T, 128)
    follower = temporal_convolutions(weights, "audio_tcn", audio)  # (B, T, 32)
    leader_key = _linear(weights, "video_key", leader)
    follower_key = _linear(weights, "audio_key", follower)
    if released:
        follower = follower_key
    query = torch.stack([_linear(weights, "video_query", leader), _linear(weights, "audio_query", follower)], dim=-2)
    key = torch.stack([leader_key, follower_key], dim=-2)  # (B, T, 2, 32)
    value = torch.stack([_linear(weights, "video_value", leader), _linear(weights, "audio_value", follower)], dim=-2)
    share = (key @ query.transpose(-2, -1) / math.sqrt(32)).softmax(dim=-1)
    fused = _layer_norm(weights, "norm", share @ value + value)
    features = torch.cat([leader, fused.flatten(-2)], dim=-1)  # (B, T, 192)
    return _linear(weights, "output", features).squeeze(-1)


# ---------------------------------------------------------------------------------------------------------------------
# LSTM and transformer heads over joined features
# ---------------------------------------------------------------------------------------------------------------------


def lstm_head(weights: Weights, joint: Tensor) -> Tensor:
    """Return the targets (B, T, E) of the recurrent model ("fclstm-xl") on joined features (B, T, D).

    Source: the older code base of the ABAW3 winner, its LSTM model, over the whole sequence from a state of zeros
    (which is what segments with a carried state amount to).

    Weights: input (512, D), (512); rnn.weight_ih_l0, rnn.weight_hh_l0 (2048, 512); rnn.bias_ih_l0, rnn.bias_hh_l0
        (2048); mlp.0 (512, 512), (512); mlp.1 (256, 512), (256); output (E, 256), (E)
    """
    x = _linear(weights, "input", joint).relu()
    state = x.new_zeros(len(x), 512)
    x = _lstm_pass(under(weights, "rnn"), "l0", x, state, state)
    x = _linear(weights, "mlp.0", x).relu()
    x = _linear(weights, "mlp.1", x).relu()
    return _linear(weights, "output", x)


def transformer_head(weights: Weights, joint: Tensor) -> Tensor:
    """Return the targets (B, T, E) of the older transformer on joined features (B, T, D).

    Source: the older code base of the ABAW3 winner, its transformer model. The clips of the sequence are the
    positions 0 ... T-1; the row of position 0 is all zeros, where the usual table has ones in the cosine columns.

    Weights, layers i = 0 ... 3 named as in torch's TransformerEncoder: input (256, D), (256);
        encoder.layers.{i}.self_attn.in_proj_weight (768, 256), .in_proj_bias (768), .out_proj (256, 256), (256);
        encoder.layers.{i}.linear1 (1024, 256), (1024), .linear2 (256, 1024), (256), .norm1, .norm2 (256), (256);
        mlp.0, mlp.1 (256, 256), (256); output (E, 256), (E)
    """
    positions = sinusoids(joint.shape[1], 256, like=joint)
    positions[0] = 0
    x = _linear(weights, "input", joint) + positions
    x = _post_norm_encoder(under(weights, "encoder"), x)
    x = _linear(weights, "mlp.0", x).relu()
    x = _linear(weights, "mlp.1", x).relu()
    return _linear(weights, "output", x)


def transformer_head_new(weights: Weights, joint: Tensor) -> Tensor:
    """Return the targets (B, T, E) of the newer transformer on joined features (B, T, D).

    Source: the newer code base of the ABAW3 winner. Every clip is z-scored across its own D features: minus the mean,
    over the population standard deviation plus 1e-8. The two maps in front are convolutions of one clip, stored as
    linear maps and with nothing between them; there is no positional encoding; in a head, nothing stands between the
    linear map and the batch norm (evaluation, eps 1e-5), nor between the norm and the last map.

    Weights, layers i = 0 ... 3, one head for each target e: input.0 (1024, D), (1024); input.1 (512, 1024), (512);
        encoder.layers.{i}.self_attn.in_proj_weight (1536, 512), .in_proj_bias (1536), .out_proj (512, 512), (512);
        encoder.layers.{i}.linear1, .linear2 (512, 512), (512), .norm1, .norm2 (512), (512);
        heads.{e}.hidden (256, 512), (256), heads.{e}.norm (256), (256), with heads.{e}.norm.running_mean,
        heads.{e}.norm.running_var (256); heads.{e}.output (1, 256), (1)
    """
    centred = joint - joint.mean(dim=-1, keepdim=True)
    deviation = centred.square().mean(dim=-1, keepdim=True).sqrt()
    x = centred / (deviation + 1e-8)
    x = _linear(weights, "input.0", x)
    x = _linear(weights, "input.1", x)
    x = _post_norm_encoder(under(weights, "encoder"), x)
    traces = []
    for head in _numbered(weights, "heads"):
        y = _linear(head, "hidden", x)
        y = (y - head["norm.running_mean"]) / (head["norm.running_var"] + 1e-5).sqrt()
        y = y * head["norm.weight"] + head["norm.bias"]
        traces.append(_linear(head, "output", y))
    return torch.cat(traces, dim=-1)


# ---------------------------------------------------------------------------------------------------------------------
# Cross-modal transformer, and plain concatenation
# ---------------------------------------------------------------------------------------------------------------------


def _gelu(x: Tensor) -> Tensor:
    """Multiply by the normal distribution function, the exact one."""
    return x * (1 + (x / math.sqrt(2)).erf()) / 2


def _gelu_twice(weights: Weights, x: Tensor) -> Tensor:
    """Feed forward through two maps, with a GELU after the second as after the first."""
    return _gelu(_linear(weights, "linear2", _gelu(_linear(weights, "linear1", x))))


def _cross_modal_layer(weights: Weights, target: Tensor, source: Tensor) -> Tensor:
    """Attend to `source`, add to the target, normalise; feed forward, add, normalise."""
    x = _layer_norm(weights, "norm1", target + _attention(under(weights, "attention"), target, source))
    return _layer_norm(weights, "norm2", x + _gelu_twice(weights, x))


def _released_cross_modal_layer(weights: Weights, target: Tensor, source: Tensor) -> Tensor:
    """Normalise both, attend; add the attended to itself, where the target was meant; normalise, feed forward, add."""
    source = _layer_norm(weights, "norm_source", source)
    target = _layer_norm(weights, "norm_target", target)
    attended = _attention(under(weights, "attention"), target, source)
    attended = attended + attended
    return attended + _gelu_twice(weights, _layer_norm(weights, "norm_attended", attended))


def _cross_modal_stack(weights: Weights, target: Tensor, source: Tensor, released: bool) -> Tensor:
    """Let `target` attend to `source` layer by layer; as released, every layer starts from the original target."""
    x = target
    for layer in _numbered(weights, "layers"):
        x = _released_cross_modal_layer(layer, target, source) if released else _cross_modal_layer(layer, x, source)
    return x


def cross_modal(weights: Weights, audio: Tensor, video: Tensor, released: bool) -> Tensor:
    """Return the targets (B, T, E) of the cross-modal transformer on audio and video (B, T, 512).

    Source: the multimodal transformer of Karas et al., 2022. Each modality is convolved over three clips, with a
    clip of zeros at either end, to 64 features and gets the usual sinusoids, position 0 included; each attends to
    the other in a stack of its own, whose source stays the embedded other modality throughout. The two results,
    video's in front, go through self-attention layers and one map. No stack has a final norm.

    `released` is the code as it was published, otherwise the system is the paper's. The release feeds the original
    target to every cross-modal layer, so that only the last one counts; it adds the attended to itself, so that the
    target is there as the query only; and its self-attention layers have SELU in the place of GELU.

    Weights, layers i = 0 ... 3, <stack> = video_attends (video is the target, audio the source), audio_attends:
        audio_input, video_input (64, 512, 3), (64)
        <stack>.layers.{i}.attention.in_proj_weight (192, 64), .in_proj_bias (192), .out_proj (64, 64), (64)
        <stack>.layers.{i}.linear1 (128, 64), (128), .linear2 (64, 128), (64)
        <stack>.layers.{i}.norm1, .norm2 (64), (64); but as released .norm_source, .norm_target, .norm_attended
        joint.layers.{i}.self_attn.in_proj_weight (384, 128), .in_proj_bias (384), .out_proj (128, 128), (128)
        joint.layers.{i}.linear1, .linear2 (128, 128), (128), .norm1, .norm2 (128), (128)
        output (E, 128), (E)
    """
    positions = sinusoids(audio.shape[1], 64, like=audio)
    embedded = []
    for modality, x in [("audio", audio), ("video", video)]:
        kernel, bias = weights[f"{modality}_input.weight"], weights[f"{modality}_input.bias"]
        later = nn.functional.pad(x, (0, 0, 0, 1))  # the kernel that ends at clip t + 1 is centred on t
        embedded.append(_causal_convolution(kernel, bias, later, dilation=1)[:, 1:] + positions)
    audio, video = embedded
    attending_video = _cross_modal_stack(under(weights, "video_attends"), video, audio, released)
    attending_audio = _cross_modal_stack(under(weights, "audio_attends"), audio, video, released)
    joint = torch.cat([attending_video, attending_audio], dim=-1)
    joint = _post_norm_encoder(under(weights, "joint"), joint, nn.functional.selu if released else _gelu)
    return _linear(weights, "output", joint)


def concat(weights: Weights, audio: Tensor, video: Tensor) -> Tensor:
    """Return the targets (B, T, E) of one linear map of the joined features, audio in front.

    Source: method 1, feature concatenation of Kuhnke et al.

    Weights: output (E, audio + video features), (E)
    """
    return _linear(weights, "output", torch.cat([audio, video], dim=-1))


# ---------------------------------------------------------------------------------------------------------------------
# Weights at random
# ---------------------------------------------------------------------------------------------------------------------


def _linear_shapes(name: str, num_in: int, num_out: int, bias: bool = True) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (num_out, num_in)}
    return shapes | {f"{name}.bias": (num_out,)} if bias else shapes


def _norm_shapes(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape}


def _lstm_shapes(name: str, suffix: str, num_in: int, num_hidden: int) -> Shapes:
    return {
        f"{name}.weight_ih_{suffix}": (4 * num_hidden, num_in),
        f"{name}.weight_hh_{suffix}": (4 * num_hidden, num_hidden),
        f"{name}.bias_ih_{suffix}": (4 * num_hidden,),
        f"{name}.bias_hh_{suffix}": (4 * num_hidden,),
    }


def _blstm_shapes(name: str, num_in: int) -> Shapes:
    shapes: Shapes = {f"{name}.init_hidden": (8, 256)} | _linear_shapes(f"{name}.linear", num_in + 512, 512)
    for layer, width in enumerate([num_in, 512]):
        shapes |= _lstm_shapes(f"{name}.rnn", f"l{layer}", width, 256)
        shapes |= _lstm_shapes(f"{name}.rnn", f"l{layer}_reverse", width, 256)
    return shapes


def _joint_attention_shapes(num_blocks: int, num_clips: int, unimodal_blstms: bool) -> Shapes:
    shapes: Shapes = {}
    for i in range(num_blocks):
        block = f"coattn.dcn_layers.{i}"
        shapes |= _linear_shapes(f"{block}.dense_coattn.query_linear", 1024, 1024)
        for m in [1, 2]:
            shapes |= _linear_shapes(f"{block}.dense_coattn.key{m}_linear", num_clips, num_clips)
            shapes |= _linear_shapes(f"{block}.dense_coattn.value{m}_linear", 512, 512)
            shapes |= _linear_shapes(f"{block}.linears.{m - 1}.0", 1024, 512)
    if unimodal_blstms:
        shapes |= _blstm_shapes("audio_extract", 512) | _blstm_shapes("video_extract", 512)
    for name in ["affine_audio", "affine_video", "affine_feat"]:
        shapes |= _linear_shapes(f"video_attn.attn.{name}", MAP_CHANNELS, 512)
    for name in ["affine_v", "affine_g"]:
        shapes |= _linear_shapes(f"video_attn.attn.{name}", 512, MAP_CELLS, bias=False)
    shapes |= _linear_shapes("video_attn.attn.affine_h", MAP_CELLS, 1, bias=False)
    shapes |= _blstm_shapes("Joint", 1024)
    for head in ["vregressor", "aregressor"]:
        shapes |= _linear_shapes(f"{head}.0", 512, 128) | _linear_shapes(f"{head}.3", 128, 1)
    return shapes


def _recursive_shapes(num_blocks: int = 1, num_clips: int = 16) -> Shapes:
    return _joint_attention_shapes(num_blocks, num_clips, unimodal_blstms=True)


def _tbiom_shapes(num_clips: int = 16) -> Shapes:
    return _joint_attention_shapes(1, num_clips, unimodal_blstms=False)


def _cvprw_shapes(num_clips: int = 8) -> Shapes:
    shapes: Shapes = {}
    for m in ["audio", "video"]:
        shapes |= _linear_shapes(f"{m}_projection", 512, 128)
        shapes |= _linear_shapes(f"{m}_clip", num_clips, num_clips, bias=False)
        shapes |= _linear_shapes(f"{m}_correlation", 256, 32, bias=False)
        shapes |= _linear_shapes(f"{m}_feature", num_clips, 32, bias=False)
        shapes |= _linear_shapes(f"{m}_output", 32, num_clips, bias=False)
    return shapes | _linear_shapes("regressor.0", 640, 128) | _linear_shapes("regressor.3", 128, 1)


def _cross_attention_shapes(num_features: int = 512) -> Shapes:
    shapes: Shapes = {"correlation": (num_features, num_features)}
    for i, (num_in, num_out) in enumerate([(num_features, 512), (512, 256), (256, 1)]):
        shapes |= _linear_shapes(f"regressor.{i}", num_in, num_out)
    return shapes


def _leader_follower_shapes() -> Shapes:
    shapes: Shapes = {}
    for m, width in [("video", 128), ("audio", 32)]:
        for level in range(4):
            tcn = f"{m}_tcn.{level}"
            num_in = 512 if level == 0 else width
            shapes |= {f"{tcn}.0.weight": (width, num_in, 5), f"{tcn}.0.bias": (width,)}
            shapes |= {f"{tcn}.1.weight": (width, width, 5), f"{tcn}.1.bias": (width,)}
            if num_in != width:
                shapes |= {f"{tcn}.residual.weight": (width, num_in, 1), f"{tcn}.residual.bias": (width,)}
        for role in ["query", "key", "value"]:
            shapes |= _linear_shapes(f"{m}_{role}", width, 32)
    return shapes | _norm_shapes("norm", 2, 32) | _linear_shapes("output", 128 + 2 * 32, 1)


def _lstm_head_shapes(num_features: int = 1024, num_targets: int = 2) -> Shapes:
    shapes = _linear_shapes("input", num_features, 512) | _lstm_shapes("rnn", "l0", 512, 512)
    shapes |= _linear_shapes("mlp.0", 512, 512) | _linear_shapes("mlp.1", 512, 256)
    return shapes | _linear_shapes("output", 256, num_targets)


def _layer_shapes(name: str, attention: str, width: int, feed_forward: int) -> Shapes:
    shapes: Shapes = {
        f"{name}.{attention}.in_proj_weight": (3 * width, width),
        f"{name}.{attention}.in_proj_bias": (3 * width,),
    }
    shapes |= _linear_shapes(f"{name}.{attention}.out_proj", width, width)
    shapes |= _linear_shapes(f"{name}.linear1", width, feed_forward)
    shapes |= _linear_shapes(f"{name}.linear2", feed_forward, width)
    return shapes | _norm_shapes(f"{name}.norm1", width) | _norm_shapes(f"{name}.norm2", width)


def _transformer_head_shapes(num_features: int = 1024, num_targets: int = 2) -> Shapes:
    shapes = _linear_shapes("input", num_features, 256)
    for i in range(4):
        shapes |= _layer_shapes(f"encoder.layers.{i}", "self_attn", 256, 1024)
    shapes |= _linear_shapes("mlp.0", 256, 256) | _linear_shapes("mlp.1", 256, 256)
    return shapes | _linear_shapes("output", 256, num_targets)


def _transformer_head_new_shapes(num_features: int = 1024, num_targets: int = 2) -> Shapes:
    shapes = _linear_shapes("input.0", num_features, 1024) | _linear_shapes("input.1", 1024, 512)
    for i in range(4):
        shapes |= _layer_shapes(f"encoder.layers.{i}", "self_attn", 512, 512)
    for e in range(num_targets):
        shapes |= _linear_shapes(f"heads.{e}.hidden", 512, 256) | _norm_shapes(f"heads.{e}.norm", 256)
        shapes |= {f"heads.{e}.norm.running_mean": (256,), f"heads.{e}.norm.running_var": (256,)}
        shapes |= _linear_shapes(f"heads.{e}.output", 256, 1)
    return shapes


def _cross_modal_shapes(num_targets: int = 2) -> Shapes:
    shapes: Shapes = {}
    for m in ["audio", "video"]:
        shapes |= {f"{m}_input.weight": (64, 512, 3), f"{m}_input.bias": (64,)}
    for i in range(4):
        shapes |= _layer_shapes(f"video_attends.layers.{i}", "attention", 64, 128)
        shapes |= _layer_shapes(f"audio_attends.layers.{i}", "attention", 64, 128)
        shapes |= _layer_shapes(f"joint.layers.{i}", "self_attn", 128, 128)
    return shapes | _linear_shapes("output", 128, num_targets)


def _cross_modal_released_shapes(num_targets: int = 2) -> Shapes:
    shapes = _cross_modal_shapes(num_targets)
    for stack in ["video_attends", "audio_attends"]:
        for i in range(4):
            layer = f"{stack}.layers.{i}"
            for norm in ["norm1", "norm2"]:
                del shapes[f"{layer}.{norm}.weight"], shapes[f"{layer}.{norm}.bias"]
            for norm in ["norm_source", "norm_target", "norm_attended"]:
                shapes |= _norm_shapes(f"{layer}.{norm}", 64)
    return shapes


def _concat_shapes(num_audio: int = 512, num_video: int = 512, num_targets: int = 2) -> Shapes:
    return _linear_shapes("output", num_audio + num_video, num_targets)


_SHAPES: dict[str, Callable[..., Shapes]] = {
    "recursive_joint_attention": _recursive_shapes,
    "joint_cross_attention_tbiom": _tbiom_shapes,
    "joint_cross_attention_cvprw": _cvprw_shapes,
    "cross_attention": _cross_attention_shapes,
    "leader_follower": _leader_follower_shapes,
    "lstm_head": _lstm_head_shapes,
    "transformer_head": _transformer_head_shapes,
    "transformer_head_new": _transformer_head_new_shapes,
    "cross_modal": _cross_modal_shapes,
    "cross_modal_released": _cross_modal_released_shapes,
    "concat": _concat_shapes,
}

SYSTEMS = tuple(_SHAPES)


def shapes_of(system: str, **sizes: int) -> Shapes:
    """Return the name and shape of every weight of a system, which is named as its function is.

    The one exception is cross_modal_released, which has the weights of `cross_modal` as it was released.

    Sizes, by system: num_blocks and num_clips of recursive_joint_attention; num_clips of the two
    joint_cross_attention_...; num_features of cross_attention; num_features and num_targets of lstm_head,
    transformer_head and transformer_head_new; num_targets of cross_modal and cross_modal_released; num_audio,
    num_video and num_targets of concat.
    """
    return _SHAPES[system](**sizes)


def random_weights(
    system: str, generator: torch.Generator, *, dtype: torch.dtype = torch.float32, gain: float = 1.0, **sizes: int
) -> Weights:
    """Draw weights for a system: Xavier-uniform matrices and kernels, biases of up to 0.1, norms near one.

    The draws are in float64 and rounded once, so that one seed gives the same weights in every dtype. `gain` widens
    the matrices. `saturate` widens those of keys and queries alone, for a look at the tanh of the attention maps away
    from its straight part, which inputs of unit length hardly leave.
    """
    return {name: _draw(name, shape, generator, gain).to(dtype) for name, shape in shapes_of(system, **sizes).items()}


def saturate(weights: Weights) -> Weights:
    """Return the weights of a recursive system with correlations of about 0.1 to 0.8 at `gain` 2."""
    wide = ("query_linear.weight", "key1_linear.weight", "key2_linear.weight")
    return {name: 12 * weight if name.endswith(wide) else weight for name, weight in weights.items()}


def _draw(name: str, shape: tuple[int, ...], generator: torch.Generator, gain: float) -> Tensor:
    uniform = 2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1
    if name.endswith("running_var"):
        return 1 + 0.5 * uniform
    if "norm" in name and name.endswith("weight"):
        return 1 + 0.1 * uniform
    if "norm" in name or len(shape) == 1:
        return 0.1 * uniform
    num_taps = math.prod(shape[2:])
    return gain * math.sqrt(6 / (num_taps * (shape[0] + shape[1]))) * uniform


# ---------------------------------------------------------------------------------------------------------------------
# The recursive system as a module, with its dropouts: what a benchmark is measured against
# ---------------------------------------------------------------------------------------------------------------------


class ReleasedModule(nn.Module):
    """Recursive joint attention as a research repository has it: the flow and weights of `recursive_joint_attention`.

    Dropout in training: 0.1 between the layers of the unimodal BLSTMs and before their projection, none in the joint
    one; 0.6 on the correlation maps, after the last map of an attention block, and in the two heads.
    """

    def __init__(self, num_clips: int = 16, recursions: int = 1) -> None:
        super().__init__()
        self.coattn = nn.Module()
        self.coattn.dcn_layers = nn.ModuleList(_ReleasedBlock(num_clips) for _ in range(recursions))
        self.audio_extract = _ReleasedBlstm(512, dropout=0.1)
        self.video_extract = _ReleasedBlstm(512, dropout=0.1)
        self.video_attn = nn.Module()
        self.video_attn.attn = _ReleasedPooling()
        self.vregressor = _released_head()
        self.Joint = _ReleasedBlstm(1024, dropout=0.0)
        self.aregressor = _released_head()
        self.apply(_released_initialisation)

    def forward(self, audio: Tensor, video_flat: Tensor) -> tuple[Tensor, Tensor]:
        """Return valence (B, T) and arousal (B, T) of audio (B, T, 512) and video (B, T, 25088)."""
        video = nn.functional.normalize(video_flat, dim=-1)
        audio = nn.functional.normalize(audio, dim=-1)
        audio = self.audio_extract(audio)
        video = self.video_attn.attn(audio, video)
        video = self.video_extract(video)
        for block in self.coattn.dcn_layers:
            video, audio = block(video, audio)
        joint = self.Joint(torch.cat([video, audio], dim=-1))
        return self.vregressor(joint).squeeze(-1), self.aregressor(joint).squeeze(-1)


class _ReleasedBlstm(nn.Module):
    def __init__(self, num_in: int, dropout: float) -> None:
        super().__init__()
        self.init_hidden = nn.Parameter(torch.empty(8, 256))
        self.rnn = nn.LSTM(num_in, 256, num_layers=2, bidirectional=True, batch_first=True, dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(num_in + 512, 512)

    def forward(self, x: Tensor) -> Tensor:
        state = self.init_hidden.unsqueeze(1).expand(-1, x.shape[0], -1).contiguous()
        output, _ = self.rnn(x, (state[:4], state[4:]))
        output = self.linear(self.dropout(torch.cat([x, output], dim=-1)))
        return nn.functional.normalize(output, dim=-1)


class _ReleasedPooling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.affine_audio = nn.Linear(512, 512)
        self.affine_video = nn.Linear(512, 512)
        self.affine_v = nn.Linear(512, MAP_CELLS, bias=False)
        self.affine_g = nn.Linear(512, MAP_CELLS, bias=False)
        self.affine_h = nn.Linear(MAP_CELLS, 1, bias=False)
        self.affine_feat = nn.Linear(512, 512)

    def forward(self, audio: Tensor, video: Tensor) -> Tensor:
        num_sequences, num_clips, _ = video.shape
        rows = video.reshape(num_sequences * num_clips, MAP_CELLS, MAP_CHANNELS)
        audio = audio.reshape(num_sequences * num_clips, -1)
        content_v = self.affine_v(torch.relu(self.affine_video(rows)))
        content_g = self.affine_g(torch.relu(self.affine_audio(audio))).unsqueeze(2)
        scores = self.affine_h(torch.tanh(content_v + content_g)).squeeze(2)
        share = torch.softmax(scores, dim=-1).unsqueeze(1)
        pooled = torch.bmm(share, rows).view(num_sequences, num_clips, -1)
        return self.affine_feat(pooled)


class _ReleasedCorrelation(nn.Module):
    def __init__(self, num_clips: int) -> None:
        super().__init__()
        self.query_linear = nn.Linear(1024, 1024)
        self.key1_linear = nn.Linear(num_clips, num_clips)
        self.key2_linear = nn.Linear(num_clips, num_clips)
        self.value1_linear = nn.Linear(512, 512)
        self.value2_linear = nn.Linear(512, 512)
        self.dropout = nn.Dropout(0.6)

    def forward(self, video: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        query = self.query_linear(torch.cat([video, audio], dim=-1))
        key1 = self.key1_linear(video.transpose(1, 2))
        key2 = self.key2_linear(audio.transpose(1, 2))
        weighted1 = self.dropout(torch.tanh(torch.matmul(key1, query) / math.sqrt(1024)))
        weighted2 = self.dropout(torch.tanh(torch.matmul(key2, query) / math.sqrt(1024)))
        attended1 = torch.relu(torch.tanh(torch.matmul(self.value1_linear(video), weighted1)))
        attended2 = torch.relu(torch.tanh(torch.matmul(self.value2_linear(audio), weighted2)))
        return attended1, attended2


class _ReleasedBlock(nn.Module):
    def __init__(self, num_clips: int) -> None:
        super().__init__()
        self.dense_coattn = _ReleasedCorrelation(num_clips)
        self.linears = nn.ModuleList(nn.Sequential(nn.Linear(1024, 512), nn.ReLU(), nn.Dropout(0.6)) for _ in range(2))

    def forward(self, video: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        attended1, attended2 = self.dense_coattn(video, audio)
        return video + self.linears[0](attended1), audio + self.linears[1](attended2)


def _released_head() -> nn.Sequential:
    return nn.Sequential(nn.Linear(512, 128), nn.ReLU(), nn.Dropout(0.6), nn.Linear(128, 1))


def _released_initialisation(module: Any) -> None:
    """Initialise as the release does: Xavier-uniform maps and states, zero biases, the LSTMs left as torch has them."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, _ReleasedBlstm):
        nn.init.xavier_uniform_(module.init_hidden)
