"""What the benchmarks share: what a figure was measured on, and what their command lines take."""

from __future__ import annotations

import argparse
import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch


def describe_machine(packages: tuple[str, ...] = ("torch", "numpy", "zarr")) -> str:
    """Return the machine and the versions in one line."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cards = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] or ["no GPU"]
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return f"{model}, {cores} cores, {', '.join(cards)}; Python {platform.python_version()}, {versions}"


def positive(text: str) -> int:
    """Return the whole number that a text stands for; ArgumentTypeError if it stands for none from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is given; allowed are whole numbers from 1")
    return int(text)


def read_arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Add what every benchmark of the cache takes, and read the command line."""
    parser.add_argument("--folder", type=Path, help="where the temporary files go")
    parser.add_argument("--json", action="store_true", help="print one object for other programs")
    return parser.parse_args()
