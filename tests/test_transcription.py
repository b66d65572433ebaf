"""The transcriptions say what the publications say: counts, layouts and identities that a slip would break."""

import math

import pytest
import torch
from torch import nn
from transcription import (
    MAP_SIZE,
    SYSTEMS,
    ReleasedModule,
    attention_block,
    blstm,
    concat,
    cross_attention,
    cross_modal,
    guided_pooling,
    joint_cross_attention_cvprw,
    joint_cross_attention_tbiom,
    leader_follower,
    lstm_head,
    random_weights,
    recursive_joint_attention,
    scrambled_view,
    shapes_of,
    sinusoids,
    temporal_convolutions,
    transformer_head,
    transformer_head_new,
    under,
)

TIGHT = {"rtol": 1e-10, "atol": 1e-10}  # float64, where only the order of summation differs

# Numbers of parameters as published for the released checkpoints.
BLSTM, POOLING, BLOCK, JOINT_BLSTM, HEAD = 3_680_768, 838_193, 2_625_056, 4_991_488, 65_793
RECURSIVE, TBIOM = 15_947_859, 8_586_323

# A few rows of the checkpoints' own table of shapes, one of each kind.
CHECKPOINT_SHAPES = {
    "coattn.dcn_layers.0.dense_coattn.query_linear.weight": (1024, 1024),
    "coattn.dcn_layers.0.dense_coattn.key2_linear.weight": (16, 16),
    "coattn.dcn_layers.0.dense_coattn.value1_linear.bias": (512,),
    "coattn.dcn_layers.0.linears.1.0.weight": (512, 1024),
    "video_attn.attn.affine_g.weight": (49, 512),
    "video_attn.attn.affine_h.weight": (1, 49),
    "Joint.init_hidden": (8, 256),
    "Joint.linear.weight": (512, 1536),
    "Joint.rnn.weight_ih_l0_reverse": (1024, 1024),
    "Joint.rnn.weight_ih_l1_reverse": (1024, 512),
    "Joint.rnn.weight_hh_l1": (1024, 256),
    "aregressor.3.weight": (1, 128),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=1, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


def weights_of(system, **sizes):
    return random_weights(system, seeded(), dtype=torch.float64, **sizes)


def count(shapes):
    return sum(math.prod(shape) for shape in shapes.values())


def zeroed(weights, *prefixes):
    return {name: torch.zeros_like(w) if name.startswith(prefixes) else w for name, w in weights.items()}


@pytest.fixture(scope="module")
def two_blocks():
    """Weights of two blocks with their attention wide awake, and features of two sequences."""
    weights = random_weights("recursive_joint_attention", seeded(), dtype=torch.float64, gain=2.0, num_blocks=2)
    return weights, draw(2, 16, 512), draw(2, 16, MAP_SIZE, seed=2)


@pytest.fixture(scope="module")
def released():
    module = ReleasedModule(recursions=2)
    return module.double()


# --- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_blocks", [1, 2, 4])
def test_recursive_weights_are_counted_as_published(num_blocks):
    shapes = shapes_of("recursive_joint_attention", num_blocks=num_blocks)
    assert count(shapes) == RECURSIVE + BLOCK * (num_blocks - 1)


def test_every_part_is_counted_as_published():
    shapes = shapes_of("recursive_joint_attention")
    parts = {
        "audio_extract": BLSTM,
        "video_extract": BLSTM,
        "video_attn": POOLING,
        "coattn": BLOCK,
        "Joint": JOINT_BLSTM,
        "vregressor": HEAD,
        "aregressor": HEAD,
    }
    assert {part: count(under(shapes, part)) for part in parts} == parts


def test_tbiom_weights_are_the_recursive_ones_without_the_unimodal_blstms():
    recursive, tbiom = shapes_of("recursive_joint_attention"), shapes_of("joint_cross_attention_tbiom")
    assert count(tbiom) == TBIOM
    assert {name: shape for name, shape in recursive.items() if "_extract" not in name} == tbiom


def test_shapes_are_those_of_the_checkpoints():
    for system in ["recursive_joint_attention", "joint_cross_attention_tbiom"]:
        shapes = shapes_of(system)
        assert {name: shapes[name] for name in CHECKPOINT_SHAPES} == CHECKPOINT_SHAPES


@pytest.mark.parametrize("system", SYSTEMS)
def test_weights_follow_the_seed_and_none_is_zero(system):
    weights = random_weights(system, seeded())
    again = random_weights(system, seeded(), dtype=torch.float64)
    assert {name: tuple(w.shape) for name, w in weights.items()} == shapes_of(system)
    for name, w in weights.items():
        assert torch.equal(w, again[name].float())
        assert w.abs().max() > 0


# --- recursive joint attention ---------------------------------------------------------------------------------------


def test_scramble_is_the_one_described():
    video = torch.arange(MAP_SIZE)  # channel-major: entry = 49 channel + position
    rows = scrambled_view(video)
    for r in range(49):
        for k in [0, 1, 48, 49, 100, 511]:
            channel, position = (512 * r + k) // 49, (512 * r + k) % 49
            assert rows[r, k] == 49 * channel + position
    assert (rows[0] // 49).unique().tolist() == list(range(11))
    assert (rows[48] // 49).unique().tolist() == list(range(501, 512))


def test_without_scores_pooling_is_the_mean_of_the_scrambled_rows():
    weights = under(weights_of("joint_cross_attention_tbiom"), "video_attn.attn")
    weights = zeroed(weights, "affine_h", "affine_feat.bias")
    weights["affine_feat.weight"] = torch.eye(512, dtype=torch.float64)
    video = draw(1, 2, MAP_SIZE)
    pooled = guided_pooling(weights, draw(1, 2, 512), video)
    expected = [[sum(video[0, t, 512 * r + k] for r in range(49)) / 49 for k in [0, 7, 511]] for t in range(2)]
    torch.testing.assert_close(pooled[0][:, [0, 7, 511]], torch.tensor(expected, dtype=torch.float64), **TIGHT)


def test_audio_adds_one_number_to_each_row_of_the_map():
    """Without a score from the video, row r is scored by the r-th entry of the audio's map, the same in all columns."""
    weights = under(weights_of("joint_cross_attention_tbiom"), "video_attn.attn")
    weights = zeroed(weights, "affine_v", "affine_feat.bias")
    weights["affine_feat.weight"] = torch.eye(512, dtype=torch.float64)
    audio, video = draw(1, 1, 512), draw(1, 1, MAP_SIZE)
    q = torch.relu(audio[0, 0] @ weights["affine_audio.weight"].T + weights["affine_audio.bias"])
    score = torch.tanh(weights["affine_g.weight"] @ q) * weights["affine_h.weight"].sum()
    expected = score.softmax(dim=0) @ video.reshape(49, 512)
    torch.testing.assert_close(guided_pooling(weights, audio, video)[0, 0], expected, **TIGHT)


def test_attention_block_agrees_with_its_sums_clip_by_clip():
    """The correlation is feature by feature and summed over the clips; the first modality is the video."""
    weights = under(weights_of("recursive_joint_attention", num_clips=3), "coattn.dcn_layers.0")
    video, audio = draw(1, 3, 512), draw(1, 3, 512, seed=2)
    query = torch.cat([video, audio], dim=-1)[0] @ weights["dense_coattn.query_linear.weight"].T
    query = query + weights["dense_coattn.query_linear.bias"]
    for m, (x, updated) in enumerate(zip([video[0], audio[0]], attention_block(weights, video, audio), strict=True)):
        mix = weights[f"dense_coattn.key{m + 1}_linear.weight"]
        offset = weights[f"dense_coattn.key{m + 1}_linear.bias"]
        correlation = torch.zeros(512, 1024, dtype=torch.float64)
        for t in range(3):
            key = offset[t] + sum(mix[t, s] * x[s] for s in range(3))
            correlation += torch.outer(key, query[t])
        correlation = torch.tanh(correlation / 32)
        value = x @ weights[f"dense_coattn.value{m + 1}_linear.weight"].T
        value = value + weights[f"dense_coattn.value{m + 1}_linear.bias"]
        hidden = torch.tanh(value @ correlation).clamp_min(0)
        step = hidden @ weights[f"linears.{m}.0.weight"].T + weights[f"linears.{m}.0.bias"]
        torch.testing.assert_close(updated[0], x + step.clamp_min(0), **TIGHT)


def test_blstm_returns_unit_rows_and_starts_from_its_own_state():
    weights = under(weights_of("recursive_joint_attention"), "audio_extract")
    x = draw(2, 5, 512)
    y = blstm(weights, x)
    torch.testing.assert_close(y.norm(dim=-1), torch.ones(2, 5, dtype=torch.float64), **TIGHT)
    for row in range(8):
        moved = weights | {"init_hidden": weights["init_hidden"].clone()}
        moved["init_hidden"][row] += 0.5
        changed = (blstm(moved, x) - y).abs().amax(dim=(0, 2))
        assert changed[-1 if row % 2 else 0] > 1e-3  # a forward state enters at the first clip, a backward at the last


@pytest.mark.parametrize("recursions", [1, 2])
def test_released_module_agrees_in_float64(two_blocks, released, recursions):
    weights, audio, video = two_blocks
    module = released
    if recursions == 1:
        module = ReleasedModule().double()
        weights = {name: w for name, w in weights.items() if "dcn_layers.1" not in name}
    module.load_state_dict(weights, strict=True)
    with torch.no_grad():
        valence, arousal = module.eval()(audio, video)
    expected = recursive_joint_attention(weights, audio, video, recursions)
    assert expected.shape == (2, 16, 2)
    torch.testing.assert_close(torch.stack([valence, arousal], dim=-1), expected, **TIGHT)


def test_released_module_agrees_in_float32():
    weights = random_weights("recursive_joint_attention", seeded(), num_blocks=2, num_clips=5)
    audio, video = draw(2, 5, 512, dtype=torch.float32), draw(2, 5, MAP_SIZE, dtype=torch.float32)
    module = ReleasedModule(num_clips=5, recursions=2)
    module.load_state_dict(weights, strict=True)
    with torch.no_grad():
        traces = torch.stack(module.eval()(audio, video), dim=-1)
    expected = recursive_joint_attention(weights, audio, video, 2)
    assert expected.dtype == torch.float32
    torch.testing.assert_close(traces, expected, rtol=0, atol=1e-5)


def test_only_the_blocks_that_are_asked_for_count(two_blocks):
    weights, audio, video = two_blocks
    once = recursive_joint_attention(weights, audio, video, 1)
    twice = recursive_joint_attention(weights, audio, video, 2)
    without_second = zeroed(weights, "coattn.dcn_layers.1.linears")
    assert (twice - once).abs().max() > 1e-6
    torch.testing.assert_close(recursive_joint_attention(without_second, audio, video, 2), once, **TIGHT)


def test_a_longer_input_is_the_same_input(two_blocks):
    weights, audio, video = two_blocks
    scaled = recursive_joint_attention(weights, 3 * audio, 0.2 * video, 1)
    torch.testing.assert_close(scaled, recursive_joint_attention(weights, audio, video, 1), **TIGHT)


def test_tbiom_is_its_parts_in_order():
    weights = weights_of("joint_cross_attention_tbiom", num_clips=4)
    audio, video = draw(1, 4, 512), draw(1, 4, MAP_SIZE)
    unit_audio = nn.functional.normalize(audio, dim=-1)
    pooled = guided_pooling(under(weights, "video_attn.attn"), unit_audio, nn.functional.normalize(video, dim=-1))
    joint = torch.cat(attention_block(under(weights, "coattn.dcn_layers.0"), pooled, unit_audio), dim=-1)
    joint = blstm(under(weights, "Joint"), joint)
    for e, head in enumerate(["vregressor", "aregressor"]):
        hidden = nn.functional.linear(joint, weights[f"{head}.0.weight"], weights[f"{head}.0.bias"]).relu()
        trace = nn.functional.linear(hidden, weights[f"{head}.3.weight"], weights[f"{head}.3.bias"])
        torch.testing.assert_close(
            joint_cross_attention_tbiom(weights, audio, video)[..., e], trace.squeeze(-1), **TIGHT
        )


def test_released_dropouts_act_at_their_rates_in_training_only(two_blocks, released):
    weights, audio, video = two_blocks
    released.load_state_dict(weights)
    torch.manual_seed(0)
    rates = {name: m.p for name, m in released.named_modules() if isinstance(m, nn.Dropout)}
    assert rates == {
        "audio_extract.dropout": 0.1,
        "video_extract.dropout": 0.1,
        "Joint.dropout": 0.0,
        "vregressor.2": 0.6,
        "aregressor.2": 0.6,
        **{f"coattn.dcn_layers.{i}.dense_coattn.dropout": 0.6 for i in range(2)},
        **{f"coattn.dcn_layers.{i}.linears.{m}.2": 0.6 for i in range(2) for m in range(2)},
    }
    assert (released.audio_extract.rnn.dropout, released.Joint.rnn.dropout) == (0.1, 0.0)
    dropped = {}

    def observe(name):
        def hook(_, inputs, output):
            dropped[name] = ((output == 0) & (inputs[0] != 0)).sum() / (inputs[0] != 0).sum()

        return hook

    hooks = [m.register_forward_hook(observe(n)) for n, m in released.named_modules() if isinstance(m, nn.Dropout)]
    try:
        with torch.no_grad():
            released.train()(audio, video)
            for name, rate in rates.items():
                assert dropped[name] == pytest.approx(rate, abs=0.05)  # over some 2000 live inputs in a head
            released.eval()(audio, video)
            assert all(share == 0 for share in dropped.values())
    finally:
        for hook in hooks:
            hook.remove()


def test_an_untrained_release_starts_near_the_identity():
    """Published for one draw, in training: correlations of 3.6e-4, steps of 0.8 %, pooled rows of length 0.085.

    Other draws of the weights give correlations of 2.0e-4 to 3.6e-4 and steps of 0.6 to 1 %: hence a factor of two.
    """
    torch.manual_seed(0)
    module = ReleasedModule().train()
    block = module.coattn.dcn_layers[0]
    correlations, steps, pooled = [], [], []
    block.dense_coattn.dropout.register_forward_hook(lambda _, inputs, __: correlations.append(inputs[0]))
    block.register_forward_hook(lambda _, inputs, outputs: steps.extend(zip(inputs, outputs, strict=True)))
    module.video_attn.attn.register_forward_hook(lambda _, __, output: pooled.append(output))
    with torch.no_grad():
        module(draw(2, 16, 512, dtype=torch.float32), draw(2, 16, MAP_SIZE, seed=2, dtype=torch.float32).relu())
    assert len(correlations) == len(steps) == 2
    for correlation in correlations:
        assert 1.8e-4 < correlation.std() < 7.2e-4
    for before, after in steps:
        assert 0.004 < (after - before).norm() / before.norm() < 0.016
    assert pooled[0].norm(dim=-1).mean().item() == pytest.approx(0.085, rel=0.1)


# --- joint cross attention of the workshop, cross attention ----------------------------------------------------------


def test_workshop_form_without_attention_regresses_raw_and_projected_video():
    weights = zeroed(weights_of("joint_cross_attention_cvprw"), "video_output")
    audio, video = draw(2, 8, 512), draw(2, 8, 512, seed=2)
    projected = nn.functional.linear(video, weights["video_projection.weight"], weights["video_projection.bias"])
    features = torch.cat([video, projected], dim=-1)
    for i in [0, 3]:
        features = nn.functional.linear(features, weights[f"regressor.{i}.weight"], weights[f"regressor.{i}.bias"])
    trace = joint_cross_attention_cvprw(weights, audio, video)
    assert trace.shape == (2, 8)
    torch.testing.assert_close(trace, features.squeeze(-1), **TIGHT)


def test_audio_reaches_the_workshop_form_through_the_correlation_alone():
    weights = weights_of("joint_cross_attention_cvprw")
    audio, other, video = draw(2, 8, 512), draw(2, 8, 512, seed=3), draw(2, 8, 512, seed=2)

    def moved(weights):
        there, here = (joint_cross_attention_cvprw(weights, a, video) for a in (audio, other))
        return (there - here).abs().max()

    assert moved(weights) > 1e-6
    assert moved(zeroed(weights, "video_correlation")) == 0


def test_workshop_form_agrees_with_its_sums():
    """The clip map mixes the clips of the joint feature, audio in front; the regressor takes the attended video."""
    weights = weights_of("joint_cross_attention_cvprw", num_clips=3)
    audio, video = draw(1, 3, 512), draw(1, 3, 512, seed=2)
    a, v = (
        nn.functional.linear(x[0], weights[f"{m}_projection.weight"], weights[f"{m}_projection.bias"])
        for m, x in [("audio", audio), ("video", video)]
    )
    joint = torch.cat([a, v], dim=-1)
    correlation = torch.zeros(128, 256, dtype=torch.float64)
    for t in range(3):
        mixed = sum(weights["video_clip.weight"][t, s] * joint[s] for s in range(3))
        correlation += torch.outer(v[t], mixed)
    hidden = torch.tanh(correlation / 16) @ weights["video_correlation.weight"].T
    hidden = (hidden + v.T @ weights["video_feature.weight"].T).clamp_min(0)
    x = torch.cat([video[0], weights["video_output.weight"] @ hidden.T + v], dim=-1)
    for i in [0, 3]:
        x = x @ weights[f"regressor.{i}.weight"].T + weights[f"regressor.{i}.bias"]
    torch.testing.assert_close(joint_cross_attention_cvprw(weights, audio, video)[0], x[:, 0], **TIGHT)


@pytest.mark.parametrize("alike", ["audio", "video"])
def test_cross_attention_weighs_the_clips_of_the_modality_it_averages(alike):
    """All clips of one modality alike: it averages to itself, the other to one row, with weights that are known."""
    weights = weights_of("cross_attention", num_features=24)
    audio, video = draw(3, 6, 24), draw(3, 6, 24, seed=2)
    if alike == "audio":
        audio = audio[:, :1].expand(3, 6, 24)
    else:
        video = video[:, :1].expand(3, 6, 24)
    unit_audio, unit_video = (nn.functional.normalize(x, dim=-1) for x in (audio, video))
    fixed, varied = (unit_audio, unit_video) if alike == "audio" else (unit_video, unit_audio)
    score = torch.einsum("btd,de,bte->bt", unit_audio, weights["correlation"], unit_video)
    x = fixed[:, 0] + torch.einsum("bt,btd->bd", score.softmax(dim=1), varied)
    for i in range(3):
        x = nn.functional.linear(x, weights[f"regressor.{i}.weight"], weights[f"regressor.{i}.bias"]).tanh()
    torch.testing.assert_close(cross_attention(weights, audio, video), x.squeeze(-1), **TIGHT)


# --- leader-follower attention ---------------------------------------------------------------------------------------


def test_temporal_convolutions_see_the_last_121_clips_and_no_later_one():
    weights = weights_of("leader_follower")
    x = draw(1, 140, 512)
    bumped = x.clone()
    bumped[0, 10] += 1
    changed = (
        temporal_convolutions(weights, "audio_tcn", bumped) - temporal_convolutions(weights, "audio_tcn", x)
    ).abs()
    assert changed.amax(dim=-1)[0].gt(0).nonzero().flatten().tolist() == list(range(10, 10 + 121))


def test_temporal_convolutions_agree_with_torch():
    weights = weights_of("leader_follower")
    x = y = draw(2, 9, 512).transpose(1, 2)
    for level in range(4):
        own = under(weights, f"video_tcn.{level}")
        z = y
        for conv in "01":
            z = nn.functional.pad(z, (4 * 2**level, 0))
            z = nn.functional.conv1d(z, own[f"{conv}.weight"], own[f"{conv}.bias"], dilation=2**level)
            z = nn.functional.leaky_relu(z)
        if level == 0:
            y = nn.functional.conv1d(y, own["residual.weight"], own["residual.bias"])
        y = nn.functional.leaky_relu(y + z)
    actual = temporal_convolutions(weights, "video_tcn", x.transpose(1, 2))
    torch.testing.assert_close(actual, y.transpose(1, 2), **TIGHT)


def test_released_follower_differs_only_by_its_key_projection():
    weights = weights_of("leader_follower")
    audio, video = draw(2, 6, 512), draw(2, 6, 512, seed=2)
    sound, released = (leader_follower(weights, audio, video, released=flag) for flag in (False, True))
    assert sound.shape == (2, 6)
    assert (sound - released).abs().max() > 1e-3
    identity = zeroed(weights, "audio_key") | {"audio_key.weight": torch.eye(32, dtype=torch.float64)}
    sound, released = (leader_follower(identity, audio, video, released=flag) for flag in (False, True))
    assert torch.equal(sound, released)


def test_leader_follower_scores_have_keys_on_the_left():
    weights = weights_of("leader_follower")
    audio, video = draw(1, 1, 512), draw(1, 1, 512, seed=2)
    tokens = {m: temporal_convolutions(weights, f"{m}_tcn", x)[0, 0] for m, x in [("video", video), ("audio", audio)]}

    def project(m, role):
        return weights[f"{m}_{role}.weight"] @ tokens[m] + weights[f"{m}_{role}.bias"]

    rows = []
    for own in tokens:
        scores = torch.stack([project(own, "key") @ project(other, "query") for other in tokens]) / math.sqrt(32)
        share = scores.softmax(dim=0)
        mixed = sum(s * project(other, "value") for s, other in zip(share, tokens, strict=True))
        rows.append(mixed + project(own, "value"))
    fused = nn.functional.layer_norm(torch.stack(rows), (2, 32), weights["norm.weight"], weights["norm.bias"])
    features = torch.cat([tokens["video"], fused.flatten()])
    expected = weights["output.weight"] @ features + weights["output.bias"]
    torch.testing.assert_close(leader_follower(weights, audio, video, released=False)[0], expected, **TIGHT)


# --- LSTM, transformers, concatenation -------------------------------------------------------------------------------


def encoder_of(weights, width, feed_forward, activation="relu"):
    layer = nn.TransformerEncoderLayer(width, 4, feed_forward, dropout=0.0, activation=activation, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False).double().eval()
    encoder.load_state_dict(weights, strict=True)
    return encoder


def perceptron(weights, x):
    for name in ["mlp.0", "mlp.1"]:
        x = nn.functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"]).relu()
    return nn.functional.linear(x, weights["output.weight"], weights["output.bias"])


def test_lstm_head_agrees_with_torch():
    weights = weights_of("lstm_head", num_features=40, num_targets=3)
    rnn = nn.LSTM(512, 512, batch_first=True).double()
    rnn.load_state_dict(under(weights, "rnn"))
    joint = draw(2, 7, 40)
    with torch.no_grad():
        x = nn.functional.linear(joint, weights["input.weight"], weights["input.bias"]).relu()
        expected = perceptron(weights, rnn(x)[0])
    torch.testing.assert_close(lstm_head(weights, joint), expected, **TIGHT)


def test_transformer_head_agrees_with_torch():
    weights = weights_of("transformer_head", num_features=40)
    joint = draw(2, 7, 40)
    positions = sinusoids(7, 256, like=joint)
    assert positions[0, :4].tolist() == [0, 1, 0, 1]
    expected_row = [math.sin(3), math.cos(3), math.sin(3 / 10000 ** (2 / 256)), math.cos(3 / 10000 ** (2 / 256))]
    assert positions[3, :4].tolist() == pytest.approx(expected_row)
    positions[0] = 0
    with torch.no_grad():
        x = nn.functional.linear(joint, weights["input.weight"], weights["input.bias"]) + positions
        expected = perceptron(weights, encoder_of(under(weights, "encoder"), 256, 1024)(x))
    torch.testing.assert_close(transformer_head(weights, joint), expected, **TIGHT)


def test_newer_transformer_head_agrees_with_torch():
    weights = weights_of("transformer_head_new", num_features=40)
    joint = draw(2, 7, 40)
    x = (joint - joint.mean(dim=-1, keepdim=True)) / (joint.std(dim=-1, keepdim=True, unbiased=False) + 1e-8)
    for i in range(2):
        kernel = weights[f"input.{i}.weight"].unsqueeze(-1)
        x = nn.functional.conv1d(x.transpose(1, 2), kernel, weights[f"input.{i}.bias"]).transpose(1, 2)
    traces = []
    with torch.no_grad():
        x = encoder_of(under(weights, "encoder"), 512, 512)(x)
        for e in range(2):
            head = under(weights, f"heads.{e}")
            norm = nn.BatchNorm1d(256).double().eval()
            norm.load_state_dict(under(head, "norm"), strict=False)
            y = norm(nn.functional.linear(x, head["hidden.weight"], head["hidden.bias"]).transpose(1, 2))
            traces.append(nn.functional.linear(y.transpose(1, 2), head["output.weight"], head["output.bias"]))
    actual = transformer_head_new(weights, joint)
    torch.testing.assert_close(actual, torch.cat(traces, dim=-1), **TIGHT)
    torch.testing.assert_close(transformer_head_new(weights, 5 * joint + 3), actual, rtol=1e-6, atol=1e-6)  # eps


def test_concat_joins_audio_in_front():
    weights = weights_of("concat", num_audio=3, num_video=2, num_targets=1)
    audio, video = draw(1, 4, 3), draw(1, 4, 2)
    w, bias = weights["output.weight"][0], weights["output.bias"]
    torch.testing.assert_close(concat(weights, audio, video)[..., 0], audio @ w[:3] + video @ w[3:] + bias, **TIGHT)


# --- cross-modal transformer -----------------------------------------------------------------------------------------


def cross_modal_inputs(released):
    system = "cross_modal_released" if released else "cross_modal"
    return weights_of(system, num_targets=3), draw(2, 6, 512), draw(2, 6, 512, seed=2)


@pytest.mark.parametrize("released", [False, True])
def test_cross_modal_agrees_with_torch(released):
    weights, audio, video = cross_modal_inputs(released)

    def attend(w, query, source):
        attention = nn.MultiheadAttention(64, 4, batch_first=True).double()
        attention.load_state_dict(under(w, "attention"), strict=True)
        return attention(query, source, source)[0]

    def norm(w, name, x):
        return nn.functional.layer_norm(x, (64,), w[f"{name}.weight"], w[f"{name}.bias"])

    def feed_forward(w, x):
        for name in ["linear1", "linear2"]:
            x = nn.functional.gelu(nn.functional.linear(x, w[f"{name}.weight"], w[f"{name}.bias"]))
        return x

    def paper_stack(name, x, source):
        for i in range(4):
            w = under(weights, f"{name}.layers.{i}")
            x = norm(w, "norm1", x + attend(w, x, source))
            x = norm(w, "norm2", x + feed_forward(w, x))
        return x

    def released_stack(name, target, source):
        w = under(weights, f"{name}.layers.3")
        x = 2 * attend(w, norm(w, "norm_target", target), norm(w, "norm_source", source))
        return x + feed_forward(w, norm(w, "norm_attended", x))

    stack = released_stack if released else paper_stack
    with torch.no_grad():
        a, v = (
            nn.functional.conv1d(
                x.transpose(1, 2), weights[f"{m}_input.weight"], weights[f"{m}_input.bias"], padding=1
            ).transpose(1, 2)
            + sinusoids(6, 64, like=x)
            for m, x in [("audio", audio), ("video", video)]
        )
        joint = torch.cat([stack("video_attends", v, a), stack("audio_attends", a, v)], dim=-1)
        joint = encoder_of(under(weights, "joint"), 128, 128, nn.functional.selu if released else "gelu")(joint)
        expected = nn.functional.linear(joint, weights["output.weight"], weights["output.bias"])
    actual = cross_modal(weights, audio, video, released=released)
    assert actual.shape == (2, 6, 3)
    torch.testing.assert_close(actual, expected, **TIGHT)


@pytest.mark.parametrize("released", [False, True])
def test_early_cross_modal_layers_leave_a_trace_in_the_paper_only(released):
    weights, audio, video = cross_modal_inputs(released)
    trace = cross_modal(weights, audio, video, released=released)
    for stack in ["video_attends", "audio_attends"]:
        for i in range(4):
            other = zeroed(weights, f"{stack}.layers.{i}.linear", f"{stack}.layers.{i}.attention")
            change = (cross_modal(other, audio, video, released=released) - trace).abs().max()
            if released and i < 3:
                assert change == 0
            else:
                assert change > 1e-3


@pytest.mark.parametrize("stack", ["video_attends", "audio_attends"])
@pytest.mark.parametrize("released", [False, True])
def test_released_cross_modal_target_is_there_as_the_query_only(released, stack):
    """With every query alike, and the other stack silent, a target counts by its residual or not at all."""
    weights, audio, video = cross_modal_inputs(released)
    for i in range(4):
        for name in ["in_proj_weight", "in_proj_bias"]:
            w = weights[f"{stack}.layers.{i}.attention.{name}"].clone()
            w[:64] = 0
            weights[f"{stack}.layers.{i}.attention.{name}"] = w
    other_stack = "audio_attends" if stack == "video_attends" else "video_attends"
    silent = [f"{other_stack}.layers.{i}.{part}" for i in range(4) for part in ("attention", "norm")]
    weights = zeroed(weights, *silent)
    trace = cross_modal(weights, audio, video, released=released)
    another = draw(2, 6, 512, seed=3)
    by_audio = (cross_modal(weights, another, video, released=released) - trace).abs().max()
    by_video = (cross_modal(weights, audio, another, released=released) - trace).abs().max()
    by_target, by_source = (by_video, by_audio) if stack == "video_attends" else (by_audio, by_video)
    assert by_source > 1e-3
    if released:
        assert by_target == 0
    else:
        assert by_target > 1e-3


def test_cross_modal_forms_differ_by_the_norms_of_their_cross_modal_layers():
    paper, released = shapes_of("cross_modal"), shapes_of("cross_modal_released")

    def is_norm(name):
        return "attends" in name and "norm" in name

    assert {n: s for n, s in paper.items() if not is_norm(n)} == {n: s for n, s in released.items() if not is_norm(n)}
    assert count(released) - count(paper) == 8 * 128
