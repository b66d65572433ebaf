"""The loss is one minus the metric, and stays finite where the metric is not defined; the release's is neither."""

import dataclasses
import math

import pytest
import torch

from avfuse.losses import LOSSES, ccc_loss, released_loss
from avfuse.metrics.ccc import ccc
from avfuse.options import TrainOptions

NAN = float("nan")


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(3, 5, 2, generator=generator, dtype=torch.float64)
    trace = (0.5 * target + torch.randn(3, 5, 2, generator=generator, dtype=torch.float64)).requires_grad_()
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[2, 3:] = False
    target[~mask] = NAN
    target[0, 1, 0] = NAN
    return trace, target, mask


def metric_of(trace, target, mask):
    """1 - CCC of each target over the whole batch, from the metric."""
    target = target.masked_fill(~mask.unsqueeze(-1), NAN).flatten(0, 1)
    return [1 - ccc(trace.flatten(0, 1)[:, e], target[:, e]) for e in range(target.shape[1])]


def test_is_one_minus_the_metric(batch):
    loss = ccc_loss(*batch)
    assert loss.shape == ()
    assert loss.dtype == torch.float64
    # 1e-12: the same formula from moments summed in another order
    assert loss.item() == pytest.approx(sum(metric_of(*batch)) / 2, abs=1e-12)


def test_float32_is_one_minus_the_metric(batch):
    trace, target, mask = batch
    loss = ccc_loss(trace.float(), target.float(), mask)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(sum(metric_of(*batch)) / 2, abs=1e-6)  # float32 resolves 1e-7


def test_perfect_prediction_costs_nothing(batch):
    _, target, mask = batch
    assert ccc_loss(target.nan_to_num(5.0), target, mask).item() == pytest.approx(0, abs=1e-15)


def test_gradient(batch):
    trace, target, mask = batch
    assert torch.autograd.gradcheck(lambda values: ccc_loss(values, target, mask), trace)


def test_what_is_unrated_or_padded_has_no_gradient(batch):
    trace, target, mask = batch
    ccc_loss(trace, target, mask).backward()
    assert torch.equal(trace.grad != 0, ~target.isnan())


@pytest.mark.parametrize("garbage", [1e30, NAN, float("inf")])
def test_padding_may_hold_anything(batch, garbage):
    trace, target, mask = batch
    expected = ccc_loss(trace, target, mask)
    dirty_trace = trace.detach().masked_fill(~mask.unsqueeze(-1), garbage).requires_grad_()
    loss = ccc_loss(dirty_trace, target.masked_fill(~mask.unsqueeze(-1), 7.0), mask)
    loss.backward()
    assert torch.equal(loss, expected)
    assert dirty_trace.grad.isfinite().all()


@pytest.mark.parametrize("value", [0.0, 0.1, -0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_target_is_left_out(batch, value, dtype):
    trace, target, mask = batch
    target[..., 1] = torch.where(target[..., 1].isnan(), NAN, value)
    loss = ccc_loss(trace.to(dtype), target.to(dtype), mask)
    assert loss.item() == pytest.approx(metric_of(*batch)[0], abs=1e-6)
    loss.backward()
    assert trace.grad.isfinite().all()
    assert not trace.grad[..., 1].any()
    assert trace.grad[..., 0].any()


def test_single_rated_clip_is_left_out(batch):
    trace, target, mask = batch
    target[..., 1] = NAN
    target[1, 1, 1] = 0.3
    assert ccc_loss(trace, target, mask).item() == pytest.approx(metric_of(trace, target[..., :1], mask)[0], abs=1e-12)


@pytest.mark.parametrize("target_value", [NAN, 0.1])
def test_nothing_left_is_zero_with_zero_gradient(batch, target_value):
    trace, target, mask = batch
    loss = ccc_loss(trace, torch.full_like(target, target_value), mask)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(trace.grad, torch.zeros_like(trace))


def test_constant_target_hit_exactly_has_no_gradient(batch):
    trace = torch.full_like(batch[0], 0.1, requires_grad=True)  # the CCC is 0 / 0
    loss = ccc_loss(trace, torch.full_like(batch[1], 0.1), batch[2])
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(trace.grad, torch.zeros_like(trace))


def test_all_padded_is_zero(batch):
    trace, target, mask = batch
    loss = ccc_loss(trace, target, torch.zeros_like(mask))
    loss.backward()
    assert loss.item() == 0
    assert not trace.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1])
def test_constant_prediction_has_a_finite_gradient(batch, value, dtype):
    trace = torch.full_like(batch[0], value, dtype=dtype, requires_grad=True)
    loss = ccc_loss(trace, batch[1].to(dtype), batch[2])
    loss.backward()
    assert loss.item() == pytest.approx(1, abs=1e-6)
    assert trace.grad.isfinite().all()
    assert trace.grad.any()


def test_bfloat16_is_computed_in_float32(batch):
    trace, target, mask = batch
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = ccc_loss(trace.bfloat16(), target.float(), mask)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, ccc_loss(trace.bfloat16().float(), target.float(), mask))


def test_every_loss_can_be_chosen():
    (knob,) = [field for field in dataclasses.fields(TrainOptions) if field.name == "loss"]
    assert tuple(LOSSES) == knob.metadata["choices"]


def released_loop(trace, target, mask):
    """The released loss, one number at a time."""
    total = 0.0
    for e in range(target.shape[2]):
        pairs = [
            (trace[b, t, e].item(), target[b, t, e].item())
            for b in range(mask.shape[0])
            for t in range(mask.shape[1])
            if mask[b, t] and not math.isnan(target[b, t, e].item())
        ]
        n = len(pairs)
        mean_x, mean_y = (sum(pair[i] for pair in pairs) / n for i in (0, 1))
        square_x = sum((x - mean_x) ** 2 for x, _ in pairs)
        square_y = sum((y - mean_y) ** 2 for _, y in pairs)
        product = sum((x - mean_x) * (y - mean_y) for x, y in pairs)
        rho = product / (math.sqrt(square_x) * math.sqrt(square_y) + 1e-8)
        s_x, s_y = math.sqrt(square_x / (n - 1)), math.sqrt(square_y / (n - 1))
        total += 1 - 2 * rho * s_x * s_y / (s_x**2 + s_y**2 + (mean_x - mean_y) ** 2)
    return total


def test_released_is_the_slow_loop(batch):
    trace, target, mask = batch  # with padding and a clip that is rated in one target only
    loss = released_loss(trace, target, mask)
    assert (loss.shape, loss.dtype) == ((), torch.float64)
    assert loss.item() == pytest.approx(released_loop(*batch), abs=1e-12)
    full = torch.ones_like(mask)
    target = torch.randn(target.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert released_loss(trace, target, full).item() == pytest.approx(released_loop(trace, target, full), abs=1e-12)
    # It is no 1 - CCC: the variances are n / (n - 1) times the metric's, the difference of the means is not.
    assert abs(released_loss(trace, target, full).item() - sum(metric_of(trace, target, full))) > 1e-3


def test_released_gradient(batch):
    trace, target, mask = batch
    assert torch.autograd.gradcheck(lambda values: released_loss(values, target, mask), trace)
    released_loss(trace, target, mask).backward()
    assert torch.equal(trace.grad != 0, ~target.isnan())


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_released_has_no_guard_against_constant_predictions(batch, value):
    trace = torch.full_like(batch[0], value, requires_grad=True)
    loss = released_loss(trace, *batch[1:])
    loss.backward()
    assert loss.item() == 2  # a CCC of 0 each
    assert torch.equal(trace.grad.isnan(), ~batch[1].isnan())


def test_released_has_no_guard_against_what_is_not_defined(batch):
    trace, target, mask = batch
    single = target.clone()
    single[..., 1] = NAN
    single[1, 1, 1] = 0.3
    assert released_loss(trace, single, mask).isnan()
    assert released_loss(trace, torch.full_like(target, NAN), mask).isnan()
    assert released_loss(torch.zeros_like(trace), torch.zeros_like(target), mask).isnan()
    constant = torch.zeros_like(target)  # but a constant target alone only costs 1
    assert released_loss(trace, constant, torch.ones_like(mask)).item() == pytest.approx(2, abs=1e-12)


def test_released_in_bfloat16_is_computed_in_float32(batch):
    trace, target, mask = batch
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = released_loss(trace.bfloat16(), target.float(), mask)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, released_loss(trace.bfloat16().float(), target.float(), mask))
