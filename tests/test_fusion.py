"""Contract of the fusion heads over the registry's table, and single heads against slow loops of their equations."""

import inspect
import math
import weakref

import numpy as np
import pytest
import torch
from conftest import every_device

from avfuse.fusion import FORMS, FusionHead, _correlation
from avfuse.fusion._blocks import BLSTM, AbsentFace, Inputs, Regressor, find_padding
from avfuse.fusion._correlation import _correlate, attend_through_correlation
from avfuse.fusion._joint import AudioGuidedPooling, DynamicGate, JointAttention
from avfuse.fusion.audio_only import AudioOnly
from avfuse.fusion.concat import ConcatFusion
from avfuse.fusion.cross_attention import CrossAttention
from avfuse.fusion.recursive_joint_attention import RecursiveJointAttention
from avfuse.fusion.visual_only import VisualOnly
from avfuse.losses import ccc_loss
from avfuse.registry import HEADS, load

TARGETS = ("valence", "arousal")
SMALL = {"audio_size": 12, "video_size": 16, "num_clips": 6, "map_size": 3}
UNIMODAL = {"audio_only": "audio", "visual_only": "video"}
"""Heads that read one modality; every other head must use both."""
OPTIONS = {
    "recursive_joint_attention": [{"gate": True}],
    "cross_attention": [{"gate": True}],
    "joint_cross_attention": [{"gate": True}, {"version": "cvprw"}, {"version": "cvprw", "gate": True}],
    "lstm_transformer": [{"network": "lstm"}, {"network": "transformer"}, {"network": "cross_modal"}],
    "reliability_joint_attention": [{"recursions": 2}, {"trust": False}],
}
"""Options, per head, that make other networks; the released form has those that its code has."""
UNRELEASED = {"reliability_joint_attention"}
RELEASED_OPTIONS = {
    "joint_cross_attention": [{"version": "cvprw"}],
    "lstm_transformer": OPTIONS["lstm_transformer"],
    "recursive_joint_attention": [{"gate": True}],
}


def case_name(case):
    name, arguments = case
    return " ".join([name, *(f"{key}={value}" for key, value in arguments.items())])


CASES = [
    (name, arguments)
    for name in HEADS
    for arguments in (
        [{}, *OPTIONS.get(name, [])]
        + (
            []
            if name in UNRELEASED
            else [{"form": "released", **more} for more in [{}, *RELEASED_OPTIONS.get(name, [])]]
        )
    )
]
every_case = pytest.mark.parametrize("case", CASES, ids=case_name)
every_paper_case = pytest.mark.parametrize(
    "case", [case for case in CASES if case[1].get("form") != "released"], ids=case_name
)

# Trainable parameters for two targets at the default sizes, derived by hand:
#   BLSTM(in -> 512), 2 layers, 2 directions of 256: a layer has 2 (4 * 256 (in + 256) + 2 * 4 * 256)
#     512 -> 512: 1 576 960 + 1 576 960 = 3 153 920        1024 -> 512: 2 625 536 + 1 576 960 = 4 202 496
#   Regressor(in), 2 targets: 2 (in * 128 + 128 + 128 + 1);  learned vector for absent faces: 512
#   Pooling: 3 (512 * 512 + 512) + 2 * 512 * 49 + 49 = 838 193
#   A recursion: 2 (16 * 16 + 512 * 512 + 1024 * 512) = 1 573 376;  both gates: 2 (512 * 2 + 2) = 2 052
#   Released: BLSTM plus 8 * 256 learned state and Linear(in + 512 -> 512); a recursion 1024 * 1024 + 1024
#     + 2 (16 * 16 + 16 + 512 * 512 + 512 + 1024 * 512 + 512) = 2 625 056
#   A post-norm transformer layer of width d and hidden h: 4 d^2 + 4 d + 2 d h + h + d + 4 d
BLSTM_512, BLSTM_1024, ABSENT, POOLING, GATES = 3_153_920, 4_202_496, 512, 838_193, 2_052
RECURSION, RELEASED_RECURSION = 1_573_376, 2_625_056
RELEASED_BLSTM_512, RELEASED_BLSTM_1024 = BLSTM_512 + 2_048 + 524_800, BLSTM_1024 + 2_048 + 786_944


def regressor(size):
    return 2 * (size * 128 + 128 + 128 + 1)


def linear(size, output_size, bias=1):
    return size * output_size + bias * output_size


def layer(width, hidden):
    return 4 * width**2 + 4 * width + 2 * width * hidden + hidden + width + 4 * width


def temporal(channels):
    """Eight weight-normed convolutions of kernel 5 with a gain and a bias per channel, and one residual map."""
    return (512 + 7 * channels) * 5 * channels + 8 * 2 * channels + linear(512, channels)


def leader_follower(num_targets):
    return temporal(128) + temporal(32) + 3 * linear(128, 32) + 3 * linear(32, 32) + 2 * 64 + linear(192, num_targets)


LSTM = linear(1024, 512) + 4 * 512 * 1024 + 8 * 512 + linear(512, 512) + linear(512, 256) + linear(256, 2)
TRANSFORMER = linear(1024, 256) + 4 * layer(256, 1024) + 2 * linear(256, 256) + linear(256, 2)
RELEASED_TRANSFORMER = (
    linear(1024, 1024) + linear(1024, 512) + 4 * layer(512, 512) + 2 * (linear(512, 256) + 2 * 256 + linear(256, 1))
)
CROSS_MODAL_ENDS = 2 * (512 * 64 * 3 + 64) + linear(128, 2)
RELIABILITY = 2 * (BLSTM_512 + 2 * 4 * 256) + POOLING + 2 * 512 + regressor(1026)
TRUSTED_RECURSION = 2 * (31 + 512 * 512 + 1024 * 512)
BOTTLENECK = 16 * 16 + 1024 * 32 + 16 * 32 + 32 * 16
NUM_PARAMETERS = {
    # 2 BLSTM(512) + pooling + absent + 2 recursions + BLSTM(1024) + regressor
    "recursive_joint_attention": 2 * BLSTM_512 + POOLING + ABSENT + 2 * RECURSION + BLSTM_1024 + regressor(512),
    "recursive_joint_attention gate=True": (
        2 * BLSTM_512 + POOLING + ABSENT + 2 * RECURSION + GATES + BLSTM_1024 + regressor(512)
    ),
    # one recursion has 15 947 859, as published
    "recursive_joint_attention form=released": 15_947_859 + RELEASED_RECURSION,
    "recursive_joint_attention form=released gate=True": 15_947_859 + RELEASED_RECURSION + GATES,
    # 2 BLSTM(512) + absent + BLSTM(1024) + regressor
    "concat": 2 * BLSTM_512 + ABSENT + BLSTM_1024 + regressor(512),
    "concat form=released": linear(1024, 2),
    "leader_follower": leader_follower(2) + ABSENT,
    "leader_follower form=released": 2 * leader_follower(1),
    # correlation + absent + regressor
    "cross_attention": 512 * 512 + ABSENT + regressor(1024),
    "cross_attention gate=True": 512 * 512 + ABSENT + regressor(1024) + GATES,
    "cross_attention form=released": 2 * (512 * 512 + linear(512, 512) + linear(512, 256) + linear(256, 1)),
    # pooling + absent + 1 recursion + regressor
    "joint_cross_attention": POOLING + ABSENT + RECURSION + regressor(1024),
    "joint_cross_attention gate=True": POOLING + ABSENT + RECURSION + regressor(1024) + GATES,
    "joint_cross_attention version=cvprw": 2 * BOTTLENECK + ABSENT + regressor(1024),
    "joint_cross_attention version=cvprw gate=True": 2 * BOTTLENECK + ABSENT + regressor(1024) + GATES,
    "joint_cross_attention form=released": 8_586_323,  # as published
    # the joint features have 256 columns, and only the video's attention is built
    "joint_cross_attention form=released version=cvprw": 2
    * (2 * linear(512, 128) + BOTTLENECK - 768 * 32 + linear(640, 128) + linear(128, 1)),
    "lstm_transformer": LSTM + TRANSFORMER + ABSENT,
    "lstm_transformer network=lstm": LSTM + ABSENT,
    "lstm_transformer network=transformer": TRANSFORMER + ABSENT,
    "lstm_transformer network=cross_modal": CROSS_MODAL_ENDS + 8 * layer(64, 128) + 4 * layer(128, 128) + ABSENT,
    "lstm_transformer form=released": LSTM + RELEASED_TRANSFORMER,
    "lstm_transformer form=released network=lstm": LSTM,
    "lstm_transformer form=released network=transformer": RELEASED_TRANSFORMER,
    # one layer per direction, with a third norm
    "lstm_transformer form=released network=cross_modal": (
        CROSS_MODAL_ENDS + 2 * (layer(64, 128) + 2 * 64) + 4 * layer(128, 128)
    ),
    # 2 BLSTM(513) + pooling + 2 learned vectors + 2 scores + recursions with 31 distances + regressor(1026)
    "reliability_joint_attention": RELIABILITY + 2 * linear(512, 1) + TRUSTED_RECURSION,
    "reliability_joint_attention recursions=2": RELIABILITY + 2 * linear(512, 1) + 2 * TRUSTED_RECURSION,
    "reliability_joint_attention trust=False": RELIABILITY - 512 + TRUSTED_RECURSION,
    # BLSTM(512) + regressor
    "audio_only": BLSTM_512 + regressor(512),
    "audio_only form=released": linear(512, 2),
    # BLSTM(512) + absent + regressor
    "visual_only": BLSTM_512 + ABSENT + regressor(512),
    "visual_only form=released": linear(512, 2),
}


def make_head(case, targets=TARGETS, seed=0, **arguments):
    """Return a small head in evaluation mode; `case` is a name, or a name and arguments."""
    name, options = (case, {}) if isinstance(case, str) else case
    torch.manual_seed(seed)
    return load("head", name)(targets, **(sizes_of(name, options) | arguments)).eval()


def sizes_of(name, options):
    """Return the sizes and options of a case; released cross attention adds features, which must have one size."""
    equal = {"video_size": 12} if (name, options.get("form")) == ("cross_attention", "released") else {}
    return SMALL | equal | options


def make_inputs(head=None, num_clips=6, batch=3, dtype=torch.float32, seed=1):
    """Return audio and video of the sizes that a head wants."""
    generator = torch.Generator().manual_seed(seed)
    channels = 16 if head is None else len(head.inputs.video_mean)
    audio = torch.randn(batch, num_clips, 12, generator=generator, dtype=dtype)
    video = torch.randn(batch, num_clips, channels, 3, 3, generator=generator, dtype=dtype)
    return audio, video


def randomise(module, seed=2):
    """Move the parameters that start at 0, so that a test sees their use."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return module


def drop_nothing(head):
    """Set every probability of dropout to 0."""
    for module in head.modules():
        for name in ("p", "dropout"):  # of layers of dropout; of LSTMs and attention
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


# The contract ---------------------------------------------------------------------------------------------------------


@every_case
def test_contract_is_a_documented_head(case):
    head = make_head(case)
    assert isinstance(head, FusionHead)
    assert head.targets == TARGETS
    assert head.num_clips == 6
    assert "ource" in type(head).__doc__
    arguments = inspect.signature(type(head)).parameters
    assert all(arguments[key].kind is inspect.Parameter.KEYWORD_ONLY for key in list(arguments)[1:])
    assert [arguments[key].default for key in ("audio_size", "video_size", "num_clips", "map_size")] == [
        512,
        512,
        16,
        7,
    ]


@every_case
@pytest.mark.parametrize("targets", [("valence",), TARGETS])
@pytest.mark.parametrize("num_clips", [1, 4, 6])
def test_contract_shape(case, targets, num_clips):
    head = make_head(case, targets).train()
    audio, video = make_inputs(head, num_clips)
    for video_as in (video, video.half(), video.bfloat16()):
        trace = head(audio, video_as)
        assert trace.shape == (3, num_clips, len(targets))
        assert trace.dtype == torch.float32
        assert trace.isfinite().all()


@every_case
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)]
)  # sums in another order
@pytest.mark.parametrize("garbage", [0.0, 1e4, float("nan")])
def test_contract_padding_changes_nothing(case, dtype, tolerance, garbage):
    head = randomise(make_head(case).to(dtype))
    audio, video = make_inputs(head, dtype=dtype)
    face = torch.rand(3, 6, generator=torch.Generator().manual_seed(3))
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[1, 2:] = False
    mask[2, 5:] = False
    alone = [
        head(audio[b : b + 1, :n], video[b : b + 1, :n], face=face[b : b + 1, :n]) for b, n in enumerate((6, 2, 5))
    ]
    audio[~mask] = garbage
    video[~mask] = garbage
    face[~mask] = garbage
    trace = head(audio, video, mask, face)
    assert trace.isfinite().all()
    for b, expected in enumerate(alone):
        torch.testing.assert_close(trace[b : b + 1, : expected.shape[1]], expected, atol=tolerance, rtol=tolerance)
    trace[mask].sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())


@every_case
def test_contract_padding_needs_no_clip(case):
    head = make_head(case)
    audio, video = make_inputs(head)
    mask = torch.ones(3, 6, dtype=torch.bool)
    torch.testing.assert_close(head(audio, video, mask), head(audio, video), atol=0, rtol=0)
    mask[1] = False
    trace = head(audio, video, mask)
    assert trace.isfinite().all()
    torch.testing.assert_close(trace[[0, 2]], head(audio, video)[[0, 2]], atol=1e-5, rtol=1e-5)


@every_case
def test_contract_follows_the_order_of_the_batch(case):
    head = make_head(case).double()
    audio, video = make_inputs(head, batch=7, dtype=torch.float64)  # more than the blocks take at once
    order = torch.tensor([3, 6, 0, 2, 1, 5, 4])
    expected = head(audio, video)[order]
    torch.testing.assert_close(head(audio[order], video[order]), expected, atol=1e-12, rtol=1e-12)


@every_case
def test_contract_gradients(case):
    head = make_head(case)
    given = dict(zip(("audio", "video"), make_inputs(head), strict=True))
    for values in given.values():
        values.requires_grad_()
    target = torch.randn(3, 6, 2, generator=torch.Generator().manual_seed(4))
    ccc_loss(head(**given, face=torch.full((3, 6), 0.5)), target, torch.ones(3, 6, dtype=torch.bool)).backward()
    for modality, values in given.items():
        if UNIMODAL.get(case[0], modality) == modality:
            assert (values.grad.flatten(2).abs().sum(dim=2) > 0).all()
        else:
            assert values.grad is None or not values.grad.any()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in head.parameters())


@every_case
def test_contract_face_of_one_is_none(case):
    head = randomise(make_head(case))
    audio, video = make_inputs(head)
    assert torch.equal(head(audio, video, face=torch.ones(3, 6)), head(audio, video))


@every_case
def test_contract_standardise(case):
    head = make_head(case).double()
    audio, video = make_inputs(head, dtype=torch.float64)
    expected = head(audio, video)
    means, stds = (torch.full(video.shape[2:], value).double() for value in (5.0, 3.0))
    means += torch.arange(9).reshape(3, 3)
    audio_means, audio_stds = torch.arange(12).double(), torch.full((12,), 0.5).double()
    head.standardise(audio_means, audio_stds, means, stds)
    if head.is_released:  # raw features, or standardised audio alone
        audio = audio * audio_stds + audio_means if head.standardises_released_audio else audio
        torch.testing.assert_close(head(audio, video), expected, atol=1e-10, rtol=1e-10)
        return
    standardised = head(audio * audio_stds + audio_means, video * stds + means)
    torch.testing.assert_close(standardised, expected, atol=1e-10, rtol=1e-10)
    assert not torch.allclose(head(audio, video), expected, atol=1e-3)


@every_paper_case
def test_contract_standardise_refusals(case):
    head = make_head(case)
    constants = [torch.zeros(12), torch.ones(12), torch.zeros(16, 3, 3), torch.ones(16, 3, 3)]
    with pytest.raises(ValueError, match=r"video_std has shape \(16,\)"):
        head.standardise(*constants[:3], torch.ones(16))
    with pytest.raises(ValueError, match="audio_mean holds values that are not finite"):
        head.standardise(torch.full((12,), float("nan")), *constants[1:])


@every_case
def test_contract_trains_on_a_single_clip(case):
    head = make_head(case).train()
    audio, video = make_inputs(head, num_clips=1, batch=1)
    trace = head(audio, video)
    assert trace.isfinite().all()
    trace.sum().backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in head.parameters())


@every_case
def test_contract_state_round_trip(case):
    head, other = randomise(make_head(case)), make_head(case, seed=5)
    audio, video = make_inputs(head)
    shape = video.shape[2:]
    head.standardise(torch.ones(12), torch.full((12,), 2.0), torch.ones(shape), torch.full(shape, 2.0))
    assert not torch.equal(other(audio, video), head(audio, video))
    other.load_state_dict(head.state_dict())
    assert torch.equal(other(audio, video), head(audio, video))


@every_case
def test_contract_seed(case):
    first, second, other = make_head(case), make_head(case), make_head(case, seed=1)
    audio, video = make_inputs(first)
    states = [head.state_dict() for head in (first, second, other)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(first(audio, video), other(audio, video))
    traces = []
    for head in (first.train(), second.train()):
        torch.manual_seed(9)
        traces.append(head(audio, video))
    assert torch.equal(*traces)


@every_device
@every_case
def test_contract_bfloat16(case, device):
    head = make_head(case).to(device)
    drop_nothing(head.train())  # cuDNN's LSTM has a backward pass in training mode alone
    audio, video = (values.to(device) for values in make_inputs(head))
    mask = torch.ones(3, 6, dtype=torch.bool, device=device)
    mask[0, 3:] = False
    with torch.autocast(device, dtype=torch.bfloat16):
        trace = head(audio, video.half(), mask)
    assert trace.dtype == torch.float32
    trace.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters() if parameter.grad is not None)
    # bfloat16 keeps 8 bits; a few products in a row, of numbers near 1, stay within 0.05
    torch.testing.assert_close(trace[mask], head(audio, video, mask)[mask], atol=0.05, rtol=0.05)


@pytest.mark.gpu
@every_case
def test_contract_gpu(case):
    head = randomise(make_head(case).double())
    audio, video = make_inputs(head, batch=7, dtype=torch.float64)
    mask = torch.ones(7, 6, dtype=torch.bool)
    mask[2, 4:] = False
    drop_nothing(head.train())  # cuDNN's LSTM has a backward pass in training mode alone
    expected = head(audio, video, mask)
    expected_grads = torch.autograd.grad(expected[mask].sum(), list(head.parameters()), allow_unused=True)
    trace = head.cuda()(audio.cuda(), video.cuda(), mask.cuda())
    grads = torch.autograd.grad(trace[mask.cuda()].sum(), list(head.parameters()), allow_unused=True)
    # torch's weight norm on a GPU takes the norm of 64-bit weights in 32 bits
    tolerance = 1e-6 if case[0] == "leader_follower" else 1e-9
    torch.testing.assert_close(trace.cpu()[mask], expected[mask], atol=tolerance, rtol=tolerance)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert (grad is None) == (expected_grad is None)
        if grad is not None:
            torch.testing.assert_close(grad.cpu(), expected_grad, atol=tolerance, rtol=100 * tolerance)


@every_case
def test_contract_refusals(case):
    head = make_head(case)
    if not head.takes_any_length:
        with pytest.raises(ValueError, match="windows of 7 clips; this head takes at most 6"):
            head(*make_inputs(head, num_clips=7))
    audio, video = make_inputs(head)
    with pytest.raises(ValueError, match=r"\(12,\) \(audio\) and \(1[26], 2, 3\) \(video\)"):
        head(audio, video[..., :2, :])
    mask = torch.ones(3, 6, dtype=torch.bool)
    for wrong in (
        {"video": video[:1]},
        {"video": video[:, :1]},
        {"mask": mask[:, :5]},
        {"mask": mask.float()},
        {"face": torch.ones(3, 1)},
    ):
        with pytest.raises(ValueError, match="are of one batch and length"):
            head(**{"audio": audio, "video": video, **wrong})
    mask[0, 2] = False
    with pytest.raises(ValueError, match="padding must stand at the end"):
        head(audio, video, mask)
    with pytest.raises(ValueError, match="at least one target"):
        make_head(case, targets=())


@every_case
def test_number_of_parameters(case):
    key = case_name(case)
    assert key in NUM_PARAMETERS, f"derive the number of parameters of {key} by hand and add it to NUM_PARAMETERS"
    head = load("head", case[0])(TARGETS, **case[1])
    assert sum(parameter.numel() for parameter in head.parameters()) == NUM_PARAMETERS[key]


def test_table_of_parameters_names_every_case():
    assert set(NUM_PARAMETERS) == {case_name(case) for case in CASES}


@pytest.mark.parametrize("name", sorted(set(HEADS) - UNRELEASED))
def test_unknown_forms_are_refused(name):
    assert FORMS == ("paper", "released")
    with pytest.raises(ValueError, match="form 'draft' is none of paper, released"):
        make_head((name, {"form": "draft"}))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("recursive_joint_attention", {"dropout": 0.1}, r"dropout=0\.1 goes with form=paper only"),
        ("joint_cross_attention", {"gate": True}, "gate=True goes with form=paper only"),
        ("cross_attention", {"temperature": 0.1}, r"temperature=0\.1 goes with form=paper only"),
        ("cross_attention", {"video_size": 16}, "audio has 12 features, video 16"),
        ("concat", {"joint_blstm": False}, "joint_blstm=False goes with form=paper only"),
        ("audio_only", {"unimodal_blstm": False}, "unimodal_blstm=False goes with form=paper only"),
        ("visual_only", {"dropout": 0.2}, r"dropout=0\.2 goes with form=paper only"),
    ],
)
def test_what_a_release_fixed_is_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_head((name, {"form": "released", **arguments}))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("joint_cross_attention", {"version": "iccv"}, "version 'iccv' is none of tbiom, cvprw"),
        ("lstm_transformer", {"network": "gru"}, "network 'gru' is none of mean, lstm, transformer, cross_modal"),
        ("cross_attention", {"temperature": 0.0}, r"temperature is 0\.0; allowed are numbers above 0"),
    ],
)
def test_unknown_values_are_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_head((name, arguments))


# Single heads ---------------------------------------------------------------------------------------------------------


def test_visual_only_ignores_video_without_face():
    head = randomise(make_head("visual_only"))
    audio, video = make_inputs()
    no_face = torch.zeros(3, 6)
    assert torch.equal(head(audio, video, face=no_face), head(audio, 3 * video, face=no_face))
    assert not torch.equal(head(audio, video), head(audio, 3 * video))


def test_unimodal_heads_ignore_the_other_modality():
    audio, video = make_inputs()
    assert torch.equal(*(make_head("audio_only")(audio, values) for values in (video, 3 * video)))
    assert torch.equal(*(make_head("visual_only")(values, video) for values in (audio, 3 * audio)))


@pytest.mark.parametrize("head_class", [ConcatFusion, AudioOnly, VisualOnly])
def test_without_blstm_clips_are_independent(head_class):
    without = {"unimodal_blstm": False} | ({"joint_blstm": False} if head_class is ConcatFusion else {})
    head = head_class(TARGETS, **SMALL, **without).eval()
    assert not any(isinstance(module, torch.nn.LSTM) for module in head.modules())
    audio, video = make_inputs()
    expected = torch.cat([head(audio[:, [t]], video[:, [t]]) for t in range(6)], dim=1)
    torch.testing.assert_close(head(audio, video), expected, atol=1e-5, rtol=1e-5)


def test_heads_share_the_regressor_and_its_dropout():
    parameters = [inspect.signature(load("head", name)).parameters for name in HEADS]
    assert {given["dropout"].default for given in parameters if "dropout" in given} == {0.5}


@pytest.mark.parametrize("recursions", [0, -1])
def test_recursions_refused(recursions):
    with pytest.raises(ValueError, match=f"recursions is {recursions}; allowed are whole numbers from 1"):
        RecursiveJointAttention(TARGETS, **SMALL, recursions=recursions)


def test_odd_blstm_refused():
    with pytest.raises(ValueError, match="size 13; the size must be even"):
        AudioOnly(TARGETS, **(SMALL | {"audio_size": 13}))


def test_dead_features_do_not_blow_up():
    inputs = Inputs(audio_size=4, video_size=2, map_size=1)
    inputs.set_constants(torch.zeros(4), torch.tensor([0.0, 1.0, 1.0, 2.0]), torch.zeros(2, 1, 1), torch.zeros(2, 1, 1))
    assert inputs.audio_std.tolist() == pytest.approx([0.01, 1.0, 1.0, 2.0])  # 0.01 of the mean, 1
    assert inputs.video_std.flatten().tolist() == [1.0, 1.0]


def flatten_windows(cells):
    return cells.flatten(0, 1)


def test_pooling_gradient():
    torch.manual_seed(0)
    pooling = randomise(AudioGuidedPooling(3, 4, 5).double())
    cells, audio = (torch.randn(2, 1, 5, 4).double().requires_grad_(), torch.randn(2, 1, 3).double().requires_grad_())
    assert torch.autograd.gradcheck(lambda cells, audio: pooling(cells, audio, flatten_windows), (cells, audio))


def test_attention_gradient():
    torch.manual_seed(0)
    attention = JointAttention(4, 7, 3).double()
    values, joint = (torch.randn(2, 3, size).double().requires_grad_() for size in (4, 7))
    assert torch.autograd.gradcheck(attention, (values, joint))
    weights = tuple(weight.detach().clone().requires_grad_() for weight in attention.parameters())
    names = [name for name, _ in attention.named_parameters()]

    def with_weights(*given):
        state = dict(zip(names, given, strict=True))
        return torch.func.functional_call(attention, state, (values.detach(), joint.detach()))

    assert torch.autograd.gradcheck(with_weights, weights)


def test_attention_begins_close_to_the_identity():
    torch.manual_seed(0)
    values, joint = torch.randn(4, 16, 64), torch.randn(4, 16, 128)
    change = JointAttention(64, 128, 16)(values, joint) - values
    assert 0.03 < change.norm() / values.norm() < 0.3


def test_blocks_at_padding_are_zero():
    torch.manual_seed(0)
    padding = find_padding(torch.tensor([[True, True, False], [False, False, False]]), torch.device("cpu"))
    values = torch.randn(2, 3, 4)
    for output in (
        BLSTM(4, 6)(values, padding),
        randomise(AbsentFace(4))(values, torch.zeros(2, 3), padding),
        Inputs(4, 4, 1).mean_video(values[..., None, None], padding),
    ):
        assert not output[0, 2:].any()
        assert not output[1].any()
        assert output[0, :2].all()


# The equations, slowly ------------------------------------------------------------------------------------------------


def weights_of(module):
    return {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}


def sigmoid(values):
    return 1 / (1 + np.exp(-values))


def slow_direction(rows, weight_x, weight_h, bias_x, bias_h):
    """One LSTM direction over the rows: gates input, forget, cell, output."""
    state = cell = np.zeros(weight_h.shape[1])
    outputs = []
    for row in rows:
        into, forget, new, out = np.split(weight_x @ row + bias_x + weight_h @ state + bias_h, 4)
        cell = sigmoid(forget) * cell + sigmoid(into) * np.tanh(new)
        state = sigmoid(out) * np.tanh(cell)
        outputs.append(state)
    return np.array(outputs)


def slow_blstm(block, rows):
    weights = weights_of(block.lstm)
    for layer in range(2):
        halves = []
        for suffix, step in (("", 1), ("_reverse", -1)):
            keys = (f"{kind}_l{layer}{suffix}" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
            halves.append(slow_direction(rows[::step], *(weights[key] for key in keys))[::step])
        rows = np.concatenate(halves, axis=1)
    return rows


def slow_pooling(block, maps, audio):
    """maps (T, C, H, W), audio (T, A) -> (T, C); cell by cell."""
    w = weights_of(block)
    pooled = []
    for clip, guide in zip(maps, audio, strict=True):
        query = np.maximum(w["audio_layer.weight"] @ guide + w["audio_layer.bias"], 0)
        cells = [clip[:, y, x] for y in range(clip.shape[1]) for x in range(clip.shape[2])]
        scores = []
        for cell in cells:
            u = np.maximum(w["cell_layer.weight"] @ cell + w["cell_layer.bias"], 0)
            content = np.tanh(w["cell_score.weight"] @ u + w["audio_score.weight"] @ query)
            scores.append(math.exp((w["score.weight"] @ content).item()))
        mean = sum(score * cell for score, cell in zip(scores, cells, strict=True)) / sum(scores)
        pooled.append(w["output_layer.weight"] @ mean + w["output_layer.bias"])
    return np.array(pooled)


def slow_attention(block, rows, joint):
    """One recursion of one modality of one window, entry by entry where the paper writes a matrix."""
    w = weights_of(block)
    num_clips, size, joint_size = len(rows), rows.shape[1], joint.shape[1]
    correlation = np.zeros((size, joint_size))
    for i in range(num_clips):
        for j in range(num_clips):
            correlation += np.outer(rows[i], joint[j]) * w["clip_weight"][i, j]
    correlation = np.tanh(correlation / math.sqrt(joint_size))
    output_weight = 0.1 * w["output_weight"]
    return np.array([row + np.maximum(row @ w["feature_weight"] @ correlation, 0) @ output_weight for row in rows])


def slow_regressor(block, rows):
    columns = []
    for branch in block.branches:
        w = weights_of(branch)
        hidden = np.maximum(rows @ w["0.weight"].T + w["0.bias"], 0)
        columns.append((hidden @ w["3.weight"].T + w["3.bias"])[:, 0])
    return np.stack(columns, axis=1)


def slow_head(head, audio, video, face):
    """One window without padding: audio (T, A), video (T, C, H, W), face (T,)."""
    constants = weights_of(head.inputs)
    audio = (audio - constants["audio_mean"]) / constants["audio_std"]
    video = (video - constants["video_mean"]) / constants["video_std"]
    if head.audio_blstm is not None:
        audio = slow_blstm(head.audio_blstm, audio)
    absent = head.guided_video.absent_face.absent_C.detach().numpy()
    video = slow_pooling(head.guided_video.pooling, video, audio)
    video = np.array([share * row + (1 - share) * absent for share, row in zip(face, video, strict=True)])
    if head.video_blstm is not None:
        video = slow_blstm(head.video_blstm, video)
    before = audio, video
    for attend in head.recursions:
        joint = np.concatenate([audio, video], axis=1)
        audio, video = slow_attention(attend.audio, audio, joint), slow_attention(attend.video, video, joint)
    if head.gates is not None:
        audio = slow_gate(head.gates.audio, before[0], audio)
        video = slow_gate(head.gates.video, before[1], video)
    fused = np.concatenate([audio, video], axis=1)
    if head.joint_blstm is not None:
        fused = slow_blstm(head.joint_blstm, fused)
    return slow_regressor(head.regressor, fused)


def assert_is_its_equations(head, slow, lengths):
    """Compare windows of several lengths, padded and not, with a slow head: (T, A), (T, C, H, W), (T,) -> (T, E)."""
    generator = torch.Generator().manual_seed(1)
    head.standardise(
        *(torch.rand(shape, generator=generator) + 0.5 for shape in ((12,), (12,), (16, 3, 3), (16, 3, 3)))
    )
    for num_clips in lengths:
        audio, video = make_inputs(head, num_clips, batch=5, dtype=torch.float64)
        face = torch.rand(5, num_clips, generator=generator).double()
        mask = torch.ones(5, num_clips, dtype=torch.bool)
        mask[1, 1:] = False
        mask[3, 3:] = False
        trace = head(audio, video, mask, face)
        for b, length in enumerate(mask.sum(dim=1).tolist()):
            expected = slow(head, *(values[b, :length].numpy() for values in (audio, video, face)))
            # 1e-9 of the trace: float64 sums of a few hundred products in another order
            np.testing.assert_allclose(trace[b, :length].detach().numpy(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("recursions", [1, 2, 3])
@pytest.mark.parametrize("unimodal_blstm", [True, False])
@pytest.mark.parametrize("joint_blstm", [True, False])
@pytest.mark.parametrize("gate", [True, False])
def test_recursive_joint_attention_is_its_equations(recursions, unimodal_blstm, joint_blstm, gate):
    torch.manual_seed(0)
    arguments = {"recursions": recursions, "unimodal_blstm": unimodal_blstm, "joint_blstm": joint_blstm, "gate": gate}
    head = randomise(RecursiveJointAttention(TARGETS, **SMALL, **arguments).double().eval())
    assert_is_its_equations(head, slow_head, (6, 4))


def test_concat_is_its_equations():
    head = randomise(make_head("concat").double())
    audio, video = make_inputs(head, dtype=torch.float64)
    for b in range(3):
        a, v = audio[b].numpy(), video[b].numpy().mean(axis=(2, 3))
        joint = np.concatenate([slow_blstm(head.audio_blstm, a), slow_blstm(head.video_blstm, v)], axis=1)
        expected = slow_regressor(head.regressor, slow_blstm(head.joint_blstm, joint))
        np.testing.assert_allclose(head(audio, video)[b].detach().numpy(), expected, rtol=1e-9, atol=1e-9)


def test_regressor_dropout_acts_in_training_only():
    torch.manual_seed(0)
    regressor, values = Regressor(6, 1, dropout=0.5), torch.randn(2, 3, 6)
    assert not torch.equal(regressor(values), regressor(values))
    regressor.eval()
    assert torch.equal(regressor(values), regressor(values))


def slow_gate(gate, before, after):
    """Clip by clip: (T, D) before and after the attention."""
    w = weights_of(gate)
    gated = []
    for old, new in zip(before, after, strict=True):
        scores = np.exp((w["choice.weight"] @ new + w["choice.bias"]) / 0.1)
        share = scores / scores.sum()
        gated.append(np.maximum(share[0] * old + share[1] * new, 0))
    return np.array(gated)


def slow_softmax(scores):
    """Down the columns of a matrix, entry by entry."""
    return np.array([[math.exp(x) / sum(math.exp(y) for y in column) for x in column] for column in scores.T]).T


def slow_cross_attention(head, audio, video):
    """audio (T, A) and video (T, C); columns stand for clips, as in the paper."""
    weight = head.correlation.detach().numpy()
    tau = head.scale
    columns_a, columns_v = audio.T, video.T
    correlation = columns_a.T @ weight @ columns_v
    attended_a = columns_a @ slow_softmax(correlation / tau)
    attended_v = columns_v @ slow_softmax(correlation.T / tau)
    return np.tanh(columns_a + attended_a).T, np.tanh(columns_v + attended_v).T


def slow_bottleneck(block, rows, joint):
    """One modality of the first joint cross attention, (T, D), given the joint features (T, d)."""
    w = weights_of(block)
    num_clips = len(rows)
    correlation = np.zeros((rows.shape[1], joint.shape[1]))
    for i in range(num_clips):
        for j in range(num_clips):
            correlation += np.outer(rows[i], joint[j]) * w["clip.weight"][i, j]
    correlation = np.tanh(correlation / math.sqrt(joint.shape[1]))
    hidden = np.maximum(
        correlation @ w["correlation.weight"].T + rows.T @ w["feature.weight"][:, :num_clips].T, 0
    )  # (D, k)
    return rows + (hidden @ w["output.weight"][:num_clips].T).T


def slow_video(head, video, face):
    """The mean over the cells of each map, and what stands for absent faces."""
    absent = head.mean_video.absent_face.absent_C.detach().numpy()
    rows = video.mean(axis=(2, 3))
    return face[:, None] * rows + (1 - face[:, None]) * absent


def slow_trace(head, audio, video, face):
    """One window of a cross attention head or a joint cross attention head."""
    constants = weights_of(head.inputs)
    audio = (audio - constants["audio_mean"]) / constants["audio_std"]
    video = (video - constants["video_mean"]) / constants["video_std"]
    if isinstance(head, CrossAttention):
        video = slow_video(head, video, face)
        after = slow_cross_attention(head, audio, video)
    elif head.mean_video is not None:
        video = slow_video(head, video, face)
        joint = np.concatenate([audio, video], axis=1)
        after = slow_bottleneck(head.attend.audio, audio, joint), slow_bottleneck(head.attend.video, video, joint)
    else:
        absent = head.guided_video.absent_face.absent_C.detach().numpy()
        video = slow_pooling(head.guided_video.pooling, video, audio)
        video = face[:, None] * video + (1 - face[:, None]) * absent
        joint = np.concatenate([audio, video], axis=1)
        after = slow_attention(head.attend.audio, audio, joint), slow_attention(head.attend.video, video, joint)
    if head.gates is not None:
        after = slow_gate(head.gates.audio, audio, after[0]), slow_gate(head.gates.video, video, after[1])
    return slow_regressor(head.regressor, np.concatenate(after, axis=1))


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("cross_attention", {"temperature": 0.3}),
        ("joint_cross_attention", {"version": "tbiom"}),
        ("joint_cross_attention", {"version": "cvprw"}),
    ],
)
def test_attention_heads_are_their_equations(name, arguments, gate):
    head = randomise(make_head((name, {**arguments, "gate": gate})).double())
    assert_is_its_equations(head, slow_trace, (6, 4))


def test_gate_gradient():
    torch.manual_seed(0)
    gate = randomise(DynamicGate(4).double())
    before, after = (torch.randn(2, 3, 4).double().requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(gate, (before, after))


@every_device
@pytest.mark.parametrize("dropout", [0.0, 0.6])
def test_correlation_gradient(dropout, device):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(5, *shape, generator=generator, dtype=torch.float64).to(device).requires_grad_()
        for shape in ((3, 4), (4, 3), (3, 7))
    )

    def attend(*tensors):
        torch.manual_seed(3)  # the same places dropped each time
        return attend_through_correlation(*tensors, dropout)

    assert torch.autograd.gradcheck(attend, (query, key, value))


@every_device
def test_correlation_drops_the_given_share_and_keeps_the_mean(device):
    torch.manual_seed(0)
    # One feature that correlates perfectly: the result counts what was kept, in units of what keeps the mean.
    query, key = torch.ones(8, 1, 512, device=device), torch.full((8, 512, 1), 20.0, device=device)
    value = torch.ones(8, 1, 64, device=device)
    result = attend_through_correlation(query, key, value, 0.6)
    kept = result * 0.4
    torch.testing.assert_close(kept, kept.round(), atol=1e-3, rtol=0)
    # 512 draws with p = 0.4 have a deviation of 11.1; the mean of 512 such counts one of 0.49
    assert kept.mean().item() == pytest.approx(512 * 0.4, abs=4 * 0.49)
    assert kept.std().item() == pytest.approx(11.1, rel=0.15)
    assert not torch.equal(result, attend_through_correlation(query, key, value, 0.6))
    assert not torch.equal(result[:4], result[4:])


@pytest.mark.parametrize("scale", [1e-4, 1.0, 100.0])
@pytest.mark.parametrize(("dtype", "relative", "absolute"), [(torch.float32, 2e-6, 0.0), (torch.bfloat16, 2**-8, 3e-7)])
def test_correlation_is_as_exact_as_its_type(dtype, relative, absolute, scale):
    """One clip, queries of 1 and one feature leave the correlation itself: tanh(key * value)."""
    generator = torch.Generator().manual_seed(0)
    key = (scale * torch.randn(4, 1, 1, generator=generator)).to(dtype)
    value = torch.ones(4, 1, 8, dtype=dtype)
    result = attend_through_correlation(torch.ones(4, 1, 1, dtype=dtype), key, value)
    expected = (key.double() @ value.double()).tanh()
    torch.testing.assert_close(result.double(), expected, rtol=relative, atol=absolute)


def test_prediction_holds_no_correlation(monkeypatch):
    held = []

    def correlate(*tensors):
        assert not any(reference() is not None for reference in held[:-1])
        correlation = _correlate(*tensors)
        held.append(weakref.ref(correlation))
        return correlation

    monkeypatch.setattr(_correlation, "_correlate", correlate)
    with torch.no_grad():
        attend_through_correlation(torch.randn(9, 2, 3), torch.randn(9, 3, 2), torch.randn(9, 2, 5))
    assert len(held) > 3


def test_correlation_refuses_a_second_derivative():
    query, key, value = (torch.randn(2, *shape).requires_grad_() for shape in ((3, 4), (4, 3), (3, 7)))
    result = attend_through_correlation(query, key, value)
    (grad,) = torch.autograd.grad(result.square().sum(), query, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


# The head that trusts -------------------------------------------------------------------------------------------------


def slow_trusted_attention(block, rows, trust, joint):
    """One recursion of one modality: (T, D), trust (T,), joint features (T, d) already weighted by their trust."""
    w = weights_of(block)
    num_clips, joint_size = joint.shape
    correlation = np.zeros((rows.shape[1], joint_size))
    for i in range(num_clips):
        for j in range(num_clips):
            if abs(i - j) < block.num_clips:
                weight = w["distance_weight"][i - j + block.num_clips - 1]
                correlation += trust[i] * np.outer(rows[i], joint[j]) * weight
    scale = block.num_clips / max(trust.sum(), 1)
    correlation = np.tanh(scale * correlation / math.sqrt(joint_size))
    output_weight = 0.1 * w["output_weight"]
    return np.array([row + np.maximum(row @ w["feature_weight"] @ correlation, 0) @ output_weight for row in rows])


def slow_trust(block, rows):
    w = weights_of(block)
    return sigmoid(rows @ w["score.weight"][0] + w["score.bias"]), w["absent_D"]


def slow_reliability(head, audio, video, face):
    constants = weights_of(head.inputs)
    audio = (audio - constants["audio_mean"]) / constants["audio_std"]
    video = (video - constants["video_mean"]) / constants["video_std"]
    audio_trust, audio_absent = slow_trust(head.audio_trust, audio)
    video = slow_pooling(head.pooling, video, audio_trust[:, None] * audio)
    video_trust, video_absent = slow_trust(head.video_trust, video)
    video_trust = video_trust * face
    seen = []
    for rows, trust, absent in ((audio, audio_trust, audio_absent), (video, video_trust, video_absent)):
        share = trust[:, None]
        seen.append(np.concatenate([share * rows + (1 - share) * absent, share], axis=1))
    audio, video = slow_blstm(head.audio_blstm, seen[0]), slow_blstm(head.video_blstm, seen[1])
    for attend_audio, attend_video in zip(head.audio_attention, head.video_attention, strict=True):
        joint = np.concatenate([audio_trust[:, None] * audio, video_trust[:, None] * video], axis=1)
        audio, video = (
            slow_trusted_attention(attend_audio, audio, audio_trust, joint),
            slow_trusted_attention(attend_video, video, video_trust, joint),
        )
    fused = np.concatenate([audio, video, audio_trust[:, None], video_trust[:, None]], axis=1)
    return slow_regressor(head.regressor, fused)


@pytest.mark.parametrize("recursions", [0, 1, 2])
def test_reliability_joint_attention_is_its_equations(recursions):
    head = randomise(make_head(("reliability_joint_attention", {"recursions": recursions})).double())
    assert_is_its_equations(head, slow_reliability, (6, 4, 15))  # 15: longer than it was built for


def test_what_is_not_trusted_does_not_count():
    head = randomise(make_head("reliability_joint_attention"))
    with torch.no_grad():  # trust in the sound falls with its first feature
        head.audio_trust.score.weight.zero_()
        head.audio_trust.score.weight[0, 0] = -1e3
    audio, video = make_inputs(head)
    audio[..., 0] = -1.0
    audio[:, 2, 0] = 1.0
    face = torch.ones(3, 6)
    face[:, 4] = 0
    trace = head(audio, video, face=face)
    audio[:, 2, 1:] += 5
    video[:, 4] += 5
    torch.testing.assert_close(head(audio, video, face=face), trace, atol=1e-5, rtol=1e-5)
    audio[:, 3, 1:] += 5
    assert not torch.allclose(head(audio, video, face=face), trace, atol=1e-3)


def test_the_pooling_that_starts_as_the_mean():
    torch.manual_seed(0)
    pooling = AudioGuidedPooling(12, 16, 9, starts_as_mean=True)
    cells, audio = torch.randn(5, 2, 9, 16), torch.randn(5, 2, 12)
    torch.testing.assert_close(pooling(cells, audio, flatten_windows), cells.mean(dim=2), atol=0.05, rtol=0)


def test_reliability_has_no_released_form():
    with pytest.raises(ValueError, match="was never published elsewhere"):
        make_head(("reliability_joint_attention", {"form": "released"}))
    with pytest.raises(ValueError, match="recursions is -1; allowed are whole numbers from 0"):
        make_head(("reliability_joint_attention", {"recursions": -1}))
