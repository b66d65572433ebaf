"""Time a training step of every fusion head, and of the recursive head against the published module.

A step is the forward pass in training mode, a squared error, the backward pass; no optimiser, no data loading. The
published module is the straightforward transcription in `tests/transcription.py`, always in float32. Both sides take
turns, the published one in a process of its own, whose memory is managed as it comes; this one's is kept, as in
training. Before that outputs and gradients of both are compared, with the same weights in evaluation mode; the exit
status is 1 if they differ.
"""

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import avfuse  # sets what must be set before torch is imported
from avfuse import published, registry
from avfuse.device import choose_device, keep_freed_memory
from avfuse.schema import ReportTable
from avfuse.terminal import print_table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import torch
import transcription
from machine import positive
from torch import Tensor, nn

TARGETS = ("valence", "arousal")
TOLERANCE, GRAD_TOLERANCE = 1e-5, 1e-9
NUM_CLIPS, SIZE, MAP = 16, 512, 7
VARIANTS = {
    "recursive_joint_attention": ({"recursions": 1}, {"recursions": 2}),
    "joint_cross_attention": ({}, {"version": "cvprw"}),
    "lstm_transformer": ({}, {"network": "cross_modal"}),
}
Step = Callable[[], float]


def make_inputs(batch_size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return audio (B, T, A), video (B, T, C, H, W), of which half is 0 as after a ReLU, and targets (B, T, E)."""
    generator = torch.Generator().manual_seed(0)
    audio = torch.randn(batch_size, NUM_CLIPS, SIZE, generator=generator)
    video = torch.randn(batch_size, NUM_CLIPS, SIZE, MAP, MAP, generator=generator).relu()
    return audio.to(device), video.to(device), torch.randn(batch_size, NUM_CLIPS, 2, generator=generator).to(device)


def make_step(module: nn.Module, trace: Callable[[], Tensor], target: Tensor, bf16: bool = False) -> Step:
    """Return a training step, which gives its seconds, of a module whose output `trace` computes."""

    def step() -> float:
        started_s = time.perf_counter()
        module.zero_grad(set_to_none=True)
        with torch.autocast(target.device.type, torch.bfloat16, enabled=bf16):
            output = trace()
        (output.float() - target).square().mean().backward()
        if target.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started_s

    return step


def published_trace(module: nn.Module, inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Return the trace (B, T, E) of the published module, which takes flat maps."""
    audio, video, _ = inputs
    return torch.stack(module(audio, video.flatten(2)), dim=-1)


def serve_published(recursions: int, batch_size: int, device: str, asked: Connection) -> None:
    """Answer each True with the seconds of a training step of the published module."""
    inputs = make_inputs(batch_size, torch.device(device))
    module = transcription.ReleasedModule(NUM_CLIPS, recursions).to(device).train()
    step = make_step(module, lambda: published_trace(module, inputs), inputs[2])
    while asked.recv():
        asked.send(step())


@contextmanager
def published_step(recursions: int, batch_size: int, device: str) -> Iterator[Step]:
    """Give a training step of the published module that another process takes."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=serve_published, args=(recursions, batch_size, device, there), daemon=True)
    process.start()
    there.close()  # so that its end is noticed here

    def step() -> float:
        here.send(True)
        seconds: float = here.recv()
        return seconds

    yield step
    here.send(False)
    process.join()


def time_steps(steps: list[Step], repeats: int) -> list[float]:
    """Run the steps in turn, `repeats` times after one warm-up; return the median seconds of each."""
    times: list[list[float]] = [[] for _ in steps]
    for repeat in range(repeats + 1):
        for step, spent in zip(steps, times, strict=True):
            seconds = step()
            if repeat:
                spent.append(seconds)
    return [statistics.median(spent) for spent in times]


def make_pair(recursions: int, saturated: bool = False) -> tuple[nn.Module, nn.Module, dict[str, str]]:
    """Return the published module and the released form with the same weights, and {name in ours: published name}."""
    generator = torch.Generator().manual_seed(0)
    state = transcription.random_weights("recursive_joint_attention", generator, gain=2.0, num_blocks=recursions)
    state = transcription.saturate(state) if saturated else state
    slow = transcription.ReleasedModule(NUM_CLIPS, recursions)
    slow.load_state_dict(state)
    fast = registry.load("head", "recursive_joint_attention")(TARGETS, form="released", recursions=recursions)
    names = {name: published.published_name(name) for name, _ in fast.named_parameters()}
    fast.load_state_dict({name: state[published_name] for name, published_name in names.items()}, strict=False)
    return slow.eval(), fast.eval(), names


def compare_outputs(recursions: int, batch_size: int, device: str) -> float:
    """Return the largest difference of outputs in 32 bits."""
    audio, video, _ = inputs = make_inputs(batch_size, torch.device(device))
    slow, fast, _ = make_pair(recursions)
    with torch.no_grad():
        differences_BTE = published_trace(slow.to(device), inputs) - fast.to(device)(audio, video)
    largest: float = differences_BTE.abs().max().item()
    return largest


def compare_gradients(recursions: int) -> float:
    """Return the largest relative difference of a parameter's gradient, in 64 bits on a CPU: two windows, and weights
    with which the correlations reach the bend of tanh, where a ReLU that rounding switches over would hide the rest.
    """
    slow, fast, names = make_pair(recursions, saturated=True)
    audio, video, target = inputs = tuple(values.double() for values in make_inputs(2, torch.device("cpu")))
    for trace in (published_trace(slow.double(), inputs), fast.double()(audio, video)):
        (trace - target).square().mean().backward()
    pairs = ((slow.get_parameter(theirs).grad, fast.get_parameter(ours).grad) for ours, theirs in names.items())
    difference: float = torch.stack([(one - other).norm() / one.norm() for one, other in pairs]).max().item()
    return difference


def compare_with_published(recursions: int, inputs: tuple[Tensor, Tensor, Tensor], repeats: int) -> tuple[str, ...]:
    """Return a row: seconds of the published module and of ours, ratios, and the differences of both.

    Raises
    ------
    ArithmeticError
        If outputs or gradients differ.
    """
    audio, video, target = inputs
    where = len(audio), str(audio.device)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as comparing:  # leaves no traces in memory here
        outputs = comparing.submit(compare_outputs, recursions, *where).result()
        gradients = comparing.submit(compare_gradients, recursions).result()
    if not (outputs <= TOLERANCE and gradients <= GRAD_TOLERANCE):  # nor if one is not a number
        raise ArithmeticError(f"recursions={recursions}: outputs differ by {outputs:.1e}, gradients by {gradients:.1e}")
    head = registry.load("head", "recursive_joint_attention")(TARGETS, form="released", recursions=recursions)
    head.to(audio.device).train()
    with published_step(recursions, *where) as step:
        steps = [step, *(make_step(head, lambda: head(audio, video), target, bf16) for bf16 in (False, True))]
        slow_s, fp32_s, bf16_s = time_steps(steps, repeats)
    return (
        str(recursions),
        f"{slow_s:.4g}",
        f"{fp32_s:.4g}",
        f"{fp32_s / slow_s:.2f}",
        f"{bf16_s:.4g}",
        f"{bf16_s / slow_s:.2f}",
        f"{outputs:.1e}",
        f"{gradients:.1e}",
    )


def time_head(
    name: str, arguments: dict[str, object], inputs: tuple[Tensor, Tensor, Tensor], repeats: int
) -> tuple[str, ...]:
    """Return a row: parameters and seconds per step of one head."""
    audio, video, target = inputs
    head = registry.load("head", name)(TARGETS, **arguments).to(audio.device).train()
    steps = [make_step(head, lambda: head(audio, video), target, bf16) for bf16 in (False, True)]
    fp32_s, bf16_s = time_steps(steps, repeats)
    num_parameters = sum(parameter.numel() for parameter in head.parameters())
    options = ", ".join(f"{key}={value}" for key, value in arguments.items())
    return name, options, f"{num_parameters:,}", f"{fp32_s:.4g}", f"{bf16_s:.4g}"


def main() -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=positive, default=64, help="windows per step (64)")
    parser.add_argument("--repeats", type=positive, default=5, help="timed steps of each kind, after a first (5)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (auto)")
    parser.add_argument("--published-only", action="store_true", help="leave the table of all heads out")
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    keep_freed_memory()  # as training does
    inputs = make_inputs(arguments.batch_size, device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    title = f"A training step: batch {arguments.batch_size}, {NUM_CLIPS} clips; {where}; torch {torch.__version__}"
    try:
        rows = [compare_with_published(recursions, inputs, arguments.repeats) for recursions in (1, 2)]
    except ArithmeticError as error:
        sys.exit(f"bench_fusion: {error}")
    columns = ("recursions", "published, s", "released form, s", "ratio", "bf16, s", "ratio", "outputs", "gradients")
    notes = (
        "Both ratios are to the published module in float32.",
        "Outputs: largest difference in float32; gradients: largest relative difference of a parameter's in float64.",
    )
    print_table(ReportTable(title, columns, tuple(rows), notes))
    if not arguments.published_only:
        heads = [(name, options) for name in registry.HEADS for options in VARIANTS.get(name, ({},))]
        rows = [time_head(name, options, inputs, arguments.repeats) for name, options in heads]
        columns = ("head", "options", "parameters", "fp32, s", "bf16, s")
        print_table(
            ReportTable("Every head, in the paper's form", columns, tuple(rows), (f"avfuse {avfuse.__version__}",))
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
