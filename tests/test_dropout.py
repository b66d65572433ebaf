"""The masks of dropout: their share, their independence, and who may draw them."""

import subprocess
import sys

import pytest
import torch
from conftest import every_device

from avfuse.fusion._dropout import LEAST, Dropout, draw_masks, drop_
from avfuse.schema import UsageError


@pytest.mark.parametrize("dropout", [LEAST, 0.1, 0.37, 0.5, 0.6, 0.999])
def test_share_of_what_is_dropped(dropout: float) -> None:
    torch.manual_seed(0)
    num_draws, size = 40, 2**18
    masks = torch.stack([draw_masks([size], dropout)[0] for _ in range(num_draws)])
    assert masks.unique().tolist() == [-1, 0]
    share = (masks == 0).double().mean().item()
    # beside the draws themselves, the rounding of 1024 columns, at most 1 / 256 apart, in each of the 40 calls
    variance = dropout * (1 - dropout) / masks.numel() + 0.25 / 256**2 / (1024 * num_draws)
    assert share == pytest.approx(dropout, abs=4 * variance**0.5)


def test_what_is_dropped_is_independent_of_its_neighbours() -> None:
    torch.manual_seed(0)
    first, second = (mask.view(-1, 1024).double() for mask in draw_masks([2**21, 2**21], 0.6))
    pairs = ((first[:, :-1], first[:, 1:]), (first[:-1], first[1:]), (first, second))
    for one, other in pairs:  # in a row, in a column, from part to part
        correlation = torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1].item()
        assert abs(correlation) < 4 / 2**10.5


def test_the_seed_of_torch_decides() -> None:
    def draw(seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        return [mask.tolist() for mask in draw_masks([5000, 7, 1], 0.6)]

    assert [len(mask) for mask in draw(0)] == [5000, 7, 1]
    assert draw(0) == draw(0) != draw(1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dropping(dtype: torch.dtype) -> None:
    values = torch.tensor([[1.5, -2.0, torch.nan], [torch.inf, 0.0, -3.0]], dtype=dtype)
    mask = torch.tensor([-1, 0, 0, 0, -1, -1], dtype=torch.int8)
    assert drop_(values, mask) is values
    assert values.tolist() == [[1.5, 0.0, 0.0], [0.0, 0.0, -3.0]]


@every_device
def test_dropout_and_its_gradient(device: str) -> None:
    torch.manual_seed(0)
    layer, values = Dropout(0.5), torch.randn(300, 50, device=device).add_(10).mT.requires_grad_()  # not contiguous
    dropped = layer(values)
    kept = dropped != 0
    torch.testing.assert_close(dropped, torch.where(kept, 2 * values, 0))
    dropped.sum().backward()
    torch.testing.assert_close(values.grad, torch.where(kept, 2.0, 0.0))
    assert layer.eval()(values) is values
    assert Dropout(0.0)(values) is values


@pytest.mark.parametrize("dropout", [-0.1, LEAST / 2, 1.0, 2.0, float("nan")])
def test_refused_probability(dropout: float) -> None:
    with pytest.raises(UsageError, match=f"dropout is {dropout}; allowed are 0 and numbers from 0.00390625 to below 1"):
        Dropout(dropout)


def test_dropout_refuses_a_second_derivative() -> None:
    values = torch.ones(50, requires_grad=True)
    (grad,) = torch.autograd.grad(Dropout(0.5)(values).square().sum(), values, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_masks_of_a_probability_that_cannot_be_drawn_are_refused() -> None:
    with pytest.raises(UsageError, match=r"dropout is 0\.001"):
        draw_masks([8], 0.001)


def test_a_thread_draws_after_the_main_thread_has_ended() -> None:
    script = """
import threading, torch
from avfuse.fusion._dropout import draw_masks
def draw():
    threading.main_thread().join()
    print(draw_masks([4096] * 8, 0.5)[0].unique().tolist())
threading.Thread(target=draw).start()
"""
    finished = subprocess.run([sys.executable, "-c", script], timeout=60, capture_output=True, text=True, check=False)
    assert finished.stdout == "[-1, 0]\n", finished.stderr


def test_a_child_process_draws_with_threads_of_its_own() -> None:
    script = """
import os, torch
from avfuse.fusion._dropout import draw_masks
draw = lambda: draw_masks([4096] * 8, 0.5)
draw()
if child := os.fork():
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
draw()
os._exit(7)
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == 7
