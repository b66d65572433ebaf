"""The released forms against slow transcriptions of the published code, with weights and inputs of any seed."""

import pytest
import torch
import transcription

from avfuse import published
from avfuse.fusion import _released
from avfuse.fusion._correlation import attend_through_correlation
from avfuse.fusion._dropout import Dropout
from avfuse.fusion._released import LearnedStateBLSTM, SharedQueryRecursion, interleaved_cells
from avfuse.fusion.concat import ConcatFusion
from avfuse.fusion.cross_attention import CrossAttention
from avfuse.fusion.joint_cross_attention import JointCrossAttention
from avfuse.fusion.leader_follower import LeaderFollower
from avfuse.fusion.lstm_transformer import LSTMTransformer
from avfuse.fusion.recursive_joint_attention import RecursiveJointAttention

TARGETS = ("valence", "arousal")
SEEDS = [0, 1]
# Sums of 512 to 25 088 products in float32, in another order, of traces near 1.
TOLERANCE = 1e-5
every_seed = pytest.mark.parametrize("seed", SEEDS)


def make_inputs(generator, num_clips=16, batch=5):
    """Return audio (B, T, 512) and video (B, T, 512, 7, 7); as after a ReLU, half of the numbers are 0."""
    audio = torch.randn(batch, num_clips, 512, generator=generator).relu()
    video = torch.randn(batch, num_clips, 512, 7, 7, generator=generator).relu()
    return audio, video


def load(module, weights, names):
    """Load weights by name into a module; every parameter and buffer that counts must be among them."""
    wanted = {name: value for name, value in module.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert wanted.keys() == names.keys()
    module.load_state_dict({name: weights[names[name]] for name in wanted}, strict=False)


def assert_agrees(head, audio, video, expected):
    with torch.no_grad():
        trace = head.eval()(audio, video)
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(trace, expected, atol=TOLERANCE, rtol=TOLERANCE)


def published_weights(head, weights):
    own = {name: name for name in head.state_dict() if not name.startswith("inputs.")}
    assert {published.published_name(name) for name in own} == weights.keys()
    head.load_state_dict({name: weights[published.published_name(name)] for name in own}, strict=False)
    return head


@every_seed
@pytest.mark.parametrize("recursions", [1, 2])
@pytest.mark.parametrize("saturated", [False, True])
@pytest.mark.parametrize("gain", [1.0, 2.0])
def test_recursive_joint_attention(seed, recursions, gain, saturated):
    generator = torch.Generator().manual_seed(seed)
    weights = transcription.random_weights("recursive_joint_attention", generator, gain=gain, num_blocks=recursions)
    weights = transcription.saturate(weights) if saturated else weights
    audio, video = make_inputs(generator)
    head = published_weights(RecursiveJointAttention(TARGETS, form="released", recursions=recursions), weights)
    expected = transcription.recursive_joint_attention(weights, audio, video.flatten(2), recursions)
    assert_agrees(head, audio, video, expected)


@every_seed
def test_joint_cross_attention_tbiom(seed):
    generator = torch.Generator().manual_seed(seed)
    weights = transcription.saturate(transcription.random_weights("joint_cross_attention_tbiom", generator, gain=2.0))
    audio, video = make_inputs(generator)
    head = published_weights(JointCrossAttention(TARGETS, form="released"), weights)
    expected = transcription.joint_cross_attention_tbiom(weights, audio, video.flatten(2))
    assert_agrees(head, audio, video, expected)


@every_seed
def test_joint_cross_attention_cvprw(seed):
    generator = torch.Generator().manual_seed(seed)
    audio, video = make_inputs(generator, num_clips=8)
    head = JointCrossAttention(TARGETS, form="released", version="cvprw", num_clips=8)
    traces = []
    for network in head.attend.networks:
        weights = transcription.random_weights("joint_cross_attention_cvprw", generator, num_clips=8)
        names = {name: name for name in network.state_dict()}
        names |= {name: name.replace("attend.", "video_") for name in names if name.startswith("attend.")}
        names |= {name: name.replace(".2.", ".3.") for name in names if name.startswith("regressor.2.")}
        load(network, weights, names)
        traces.append(transcription.joint_cross_attention_cvprw(weights, audio, video.mean(dim=(-2, -1))))
    assert_agrees(head, audio, video, torch.stack(traces, dim=-1))


@every_seed
def test_cross_attention(seed):
    generator = torch.Generator().manual_seed(seed)
    audio, video = make_inputs(generator)
    head = CrossAttention(TARGETS, form="released")
    values = []
    for network in head.released.networks:
        weights = transcription.random_weights("cross_attention", generator, gain=3.0)
        places = {"regressor.1": "regressor.0", "regressor.3": "regressor.1", "regressor.5": "regressor.2"}
        names = {name: name for name in network.state_dict()}
        names |= {name: places[name[:11]] + name[11:] for name in names if name.startswith("regressor")}
        load(network, weights, names)
        values.append(transcription.cross_attention(weights, audio, video.mean(dim=(-2, -1))))
    assert_agrees(head, audio, video, torch.stack(values, dim=-1)[:, None].expand(-1, 16, -1))


@every_seed
@pytest.mark.parametrize("form", ["paper", "released"])
def test_leader_follower(seed, form):
    generator = torch.Generator().manual_seed(seed)
    audio, video = make_inputs(generator)
    head = LeaderFollower(TARGETS if form == "released" else TARGETS[:1], form=form)
    traces = []
    for network in head.network.networks if form == "released" else [head.network]:
        weights = transcription.random_weights("leader_follower", generator)
        load_leader_follower(network, weights)
        traces.append(
            transcription.leader_follower(weights, audio, video.mean(dim=(-2, -1)), released=form == "released")
        )
    assert_agrees(head, audio, video, torch.stack(traces, dim=-1))


def load_leader_follower(network, weights):
    for modality in ("video", "audio"):
        for level, block in enumerate(getattr(network, f"{modality}_tcn")):
            for place, convolution in enumerate(block.convolutions):
                convolution.weight = weights[f"{modality}_tcn.{level}.{place}.weight"]  # weight norm takes it apart
                convolution.bias.data = weights[f"{modality}_tcn.{level}.{place}.bias"]
        names = {name: f"{modality}_tcn.0.residual.{name}" for name in ("weight", "bias")}
        load(getattr(network, f"{modality}_tcn")[0].residual, weights, names)
        for role in ("query", "key", "value"):
            names = {name: f"{modality}_{role}.{name}" for name in ("weight", "bias")}
            load(getattr(getattr(network, f"{modality}_token"), role), weights, names)
    load(network.norm, weights, {name: f"norm.{name}" for name in ("weight", "bias")})
    load(network.regressor.layer, weights, {name: f"output.{name}" for name in ("weight", "bias")})


def joined(audio, video):
    """Return the features that the LSTM and the transformers see, (B, T, 1024): video, then audio."""
    return torch.cat([video.mean(dim=(-2, -1)), audio], dim=-1)


def perceptron_names(prefix):
    names = {f"{prefix}.hidden.{i}.{kind}": f"mlp.{i}.{kind}" for i in range(2) for kind in ("weight", "bias")}
    return names | {f"{prefix}.regressor.layer.{kind}": f"output.{kind}" for kind in ("weight", "bias")}


@every_seed
@pytest.mark.parametrize("form", ["paper", "released"])
def test_lstm(seed, form):
    generator = torch.Generator().manual_seed(seed)
    weights = transcription.random_weights("lstm_head", generator)
    audio, video = make_inputs(generator)
    head = LSTMTransformer(TARGETS, form=form, network="lstm")
    load_lstm(head.networks["lstm"], weights)
    assert_agrees(head, audio, video, transcription.lstm_head(weights, joined(audio, video)))


def load_lstm(network, weights):
    names = {f"input_layer.{kind}": f"input.{kind}" for kind in ("weight", "bias")}
    names |= {f"lstm.{kind}_l0": f"rnn.{kind}_l0" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    load(network, weights, names | perceptron_names("perceptron"))


@every_seed
def test_transformer_of_the_paper(seed):
    generator = torch.Generator().manual_seed(seed)
    weights = transcription.random_weights("transformer_head", generator)
    audio, video = make_inputs(generator)
    head = LSTMTransformer(TARGETS, network="transformer")
    network = head.networks["transformer"]
    names = {name: name.replace("input_layer", "input") for name in network.state_dict()}
    load(network, weights, names | perceptron_names("perceptron"))
    assert_agrees(head, audio, video, transcription.transformer_head(weights, joined(audio, video)))


@every_seed
def test_released_mean_of_lstm_and_transformer(seed):
    generator = torch.Generator().manual_seed(seed)
    lstm_weights = transcription.random_weights("lstm_head", generator)
    weights = transcription.random_weights("transformer_head_new", generator)
    audio, video = make_inputs(generator)
    head = LSTMTransformer(TARGETS, form="released")
    load_lstm(head.networks["lstm"], lstm_weights)
    network = head.networks["transformer"]
    parts = {"0": "hidden", "1": "norm", "2": "output"}
    names = {}
    for name in network.state_dict():
        if name.startswith("regressors"):
            _, target, part, kind = name.split(".")
            names[name] = f"heads.{target}.{parts[part]}.{kind}"
        else:
            names[name] = name.replace("input_layers", "input")
    load(network, weights, {name: other for name, other in names.items() if "num_batches" not in name})
    expected = transcription.transformer_head_new(weights, joined(audio, video))
    expected = (expected + transcription.lstm_head(lstm_weights, joined(audio, video))) / 2
    assert_agrees(head, audio, video, expected)


@every_seed
def test_concat(seed):
    generator = torch.Generator().manual_seed(seed)
    weights = transcription.random_weights("concat", generator)
    audio, video = make_inputs(generator)
    head = ConcatFusion(TARGETS, form="released")
    load(head.regressor.layer, weights, {name: f"output.{name}" for name in ("weight", "bias")})
    assert_agrees(head, audio, video, transcription.concat(weights, audio, video.mean(dim=(-2, -1))))


@every_seed
@pytest.mark.parametrize("form", ["paper", "released"])
def test_cross_modal(seed, form):
    generator = torch.Generator().manual_seed(seed)
    system = "cross_modal" if form == "paper" else "cross_modal_released"
    weights = transcription.random_weights(system, generator)
    audio, video = make_inputs(generator)
    head = LSTMTransformer(TARGETS, form=form, network="cross_modal")
    network = head.networks["cross_modal"]
    load(network, weights, {name: cross_modal_name(name, form) for name in network.state_dict()})
    expected = transcription.cross_modal(weights, audio, video.mean(dim=(-2, -1)), released=form == "released")
    assert_agrees(head, audio, video, expected)


def cross_modal_name(name, form):
    """Return what the transcription calls a parameter; of the released layers per direction only the last is built."""
    stack, _, rest = name.partition(".")
    if stack == "regressor":
        return rest.replace("layer", "output")
    if stack in ("audio_attends", "video_attends"):
        layer, _, rest = rest.partition(".")
        norms = {"attention_norm": "norm1", "output_norm": "norm2"}
        if form == "released":
            layer = "3"
            norms = {"source_norm": "norm_source", "target_norm": "norm_target", "output_norm": "norm_attended"}
        return f"{stack}.layers.{layer}.{renamed(rest, {'hidden': 'linear1', 'output': 'linear2', **norms})}"
    if stack == "self_attention":
        return f"joint.{rest}"
    if stack == "released_self_attention":
        layer, _, rest = rest.partition(".")
        names = {"attention": "self_attn", "hidden": "linear1", "output": "linear2"}
        return f"joint.layers.{layer}.{renamed(rest, names | {'attention_norm': 'norm1', 'output_norm': 'norm2'})}"
    return name


def renamed(name, names):
    first, _, rest = name.partition(".")
    return f"{names.get(first, first)}.{rest}"


def dropouts_of(head):
    """Return {name: probability} of everything that drops in training."""
    found = {name: m.dropout for name, m in head.named_modules() if isinstance(m, torch.nn.LSTM) and m.num_layers > 1}
    kinds = (Dropout, torch.nn.Dropout, torch.nn.Dropout1d, torch.nn.AlphaDropout)
    found |= {name: module.p for name, module in head.named_modules() if isinstance(module, kinds)}
    encoders = [(n, m) for n, m in head.named_modules() if isinstance(m, torch.nn.MultiheadAttention)]
    return found | {name: module.dropout for name, module in encoders}


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (
            RecursiveJointAttention(TARGETS, form="released", recursions=1),
            {"audio_blstm.": 0.1, "video_blstm.": 0.1, "joint_blstm.": 0.0, "recursions.": 0.6, "regressor.": 0.6},
        ),
        (JointCrossAttention(TARGETS, form="released"), {"joint_blstm.": 0.0, "attend.": 0.6, "regressor.": 0.6}),
        (JointCrossAttention(TARGETS, form="released", version="cvprw"), {"attend.networks.": 0.6}),
        (CrossAttention(TARGETS, form="released"), {"released.networks.": 0.5}),
        (LeaderFollower(TARGETS, form="released"), {"network.networks.": 0.1}),
        (
            LSTMTransformer(TARGETS, form="released"),
            {"networks.lstm.dropout": 0.1, "networks.lstm.perceptron": 0.3, "networks.transformer.": 0.3},
        ),
        (LSTMTransformer(TARGETS, form="released", network="cross_modal"), {"networks.cross_modal.": 0.3}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_dropouts_are_the_releases(head, expected):
    found = dropouts_of(head)
    for prefix, probability in expected.items():
        assert {p for name, p in found.items() if name.startswith(prefix)} == {probability}, prefix
    assert all(any(name.startswith(prefix) for prefix in expected) for name in found)


def test_training_drops_as_the_published_module_does():
    """The spread of the trace over draws, and its mean, are those of the plain module in training."""
    generator = torch.Generator().manual_seed(0)
    weights = transcription.random_weights("recursive_joint_attention", generator, gain=2.0)
    plain = transcription.ReleasedModule()
    plain.load_state_dict(weights)
    head = published_weights(RecursiveJointAttention(TARGETS, form="released", recursions=1), weights).train()
    audio, video = make_inputs(generator, batch=8)
    torch.manual_seed(1)
    with torch.no_grad():
        drawn = torch.stack([torch.stack(plain.train()(audio, video.flatten(2)), dim=-1) for _ in range(24)])
        own = torch.stack([head(audio, video) for _ in range(24)])
    # 24 draws of 256 values: the pooled deviation is known to about 1 / sqrt(2 * 23 * 256) = 1 %
    assert own.std(dim=0).square().mean().sqrt().item() == pytest.approx(
        drawn.std(dim=0).square().mean().sqrt().item(), rel=0.06
    )
    error = drawn.std(dim=0).square().mean().sqrt() * (2 / 24) ** 0.5
    assert (own.mean(dim=0) - drawn.mean(dim=0)).square().mean().sqrt() < 1.3 * error


def test_the_blstm_drops_between_its_layers_and_before_its_output():
    torch.manual_seed(0)
    blstm = LearnedStateBLSTM(6, 4, 0.5).train()
    shapes = []
    blstm.dropout.register_forward_hook(lambda module, given, result: shapes.append(tuple(result.shape)))
    blstm(torch.randn(2, 3, 6), None)
    assert shapes == [(2, 3, 4), (2, 3, 10)]


@pytest.mark.parametrize("mode", ["fp32", "bf16"])
def test_the_blstm_computes_in_the_precision_of_autocast(mode):
    blstm = LearnedStateBLSTM(6, 4, 0.5).eval()
    types, weights = [], []
    own = [layer.weight_hh_l0 for layer in blstm.layers]
    for layer in blstm.layers:
        layer.register_forward_hook(lambda module, given, result: types.append(result[0].dtype))
        layer.register_forward_hook(lambda module, given, result: weights.append(module.weight_hh_l0))
    with torch.autocast("cpu", torch.bfloat16, enabled=mode == "bf16"):
        output = blstm(torch.randn(2, 3, 6), None)
    assert types == [torch.bfloat16 if mode == "bf16" else torch.float32] * 2
    assert output.dtype == torch.float32
    assert all(one is other for one, other in zip(weights, own, strict=True))  # another thread may read them


@pytest.mark.parametrize("training", [True, False])
def test_the_correlation_drops_in_training(training, monkeypatch):
    given = []
    monkeypatch.setattr(
        _released,
        "attend_through_correlation",
        lambda query, key, value, dropout: given.append(dropout) or attend_through_correlation(query, key, value),
    )
    SharedQueryRecursion(4, 6, 3).train(training)(torch.randn(2, 3, 4), torch.randn(2, 3, 6), None)
    assert given == [0.6 if training else 0.0] * 2


def test_gradients_in_single_precision_are_those_in_double():
    """The released correlations are as small as 1e-5: an absolute error of theirs would show here."""
    torch.manual_seed(0)
    head = RecursiveJointAttention(TARGETS, form="released").eval()
    audio, video = make_inputs(torch.Generator().manual_seed(0), batch=2)

    def gradient(dtype):
        head.to(dtype).zero_grad()
        head(audio.to(dtype), video.to(dtype)).square().mean().backward()
        return torch.cat([parameter.grad.double().flatten() for parameter in head.parameters()])

    single, double = gradient(torch.float32), gradient(torch.float64)
    assert (single - double).norm() < 1e-5 * double.norm()


def test_cells_of_no_window():
    assert interleaved_cells(torch.zeros(0, 6, 16, 3, 2), torch.float32).shape == (0, 6, 16)
