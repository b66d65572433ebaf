"""Devices and precisions are chosen by what the machine has."""

import ctypes
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from avfuse import device
from avfuse.device import choose_device, choose_precision, free_bytes, is_broken, keep_fp32
from avfuse.schema import UsageError


def pretend(monkeypatch: pytest.MonkeyPatch, num_gpus: int, capability: tuple[int, int] = (8, 0)) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)


@pytest.mark.parametrize(
    ("name", "num_gpus", "expected"),
    [
        ("auto", 0, "cpu"),
        ("auto", 2, "cuda"),
        ("cpu", 0, "cpu"),
        ("cpu", 2, "cpu"),
        ("cpu:0", 0, "cpu:0"),
        ("cuda", 1, "cuda"),
        ("cuda:1", 2, "cuda:1"),
    ],
)
def test_device(name: str, num_gpus: int, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, num_gpus)
    assert choose_device(name) == torch.device(expected)


@pytest.mark.parametrize(
    ("name", "num_gpus", "there_is"),
    [
        ("cuda", 0, "auto, cpu"),
        ("cuda:0", 0, "auto, cpu"),
        ("cuda:2", 2, "auto, cpu, cuda:0, cuda:1"),
        ("cuda:-1", 2, "auto, cpu, cuda:0, cuda:1"),
        ("cuda:", 1, "auto, cpu, cuda:0"),
        ("cpu:1", 0, "auto, cpu"),
        ("cpu:", 0, "auto, cpu"),
        ("mps", 0, "auto, cpu"),
        ("gpu", 1, "auto, cpu, cuda:0"),
        ("", 0, "auto, cpu"),
        ("cuda:²", 1, "auto, cpu, cuda:0"),
    ],
)
def test_absent_device(name: str, num_gpus: int, there_is: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, num_gpus)
    with pytest.raises(UsageError, match=f"^device '{name}' is not here; there is: {there_is}$"):
        choose_device(name)


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16"), ((12, 0), "bf16")]
)
def test_precision_of_a_gpu(capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 1, capability)
    assert choose_precision("auto", torch.device("cuda")) == expected


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": True}, "bf16"),
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True}, "bf16"),
        ({"avx512_bf16": False, "avx2": True}, "fp32"),
        ({}, "fp32"),
    ],
)
def test_precision_of_a_cpu(capabilities: dict[str, bool], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert choose_precision("auto", torch.device("cpu")) == expected


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_a_named_precision_is_kept(name: str) -> None:
    assert choose_precision(name, torch.device("cpu")) == name


def test_this_machine_answers() -> None:
    assert choose_precision("auto", choose_device("auto")) in ("fp32", "bf16")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="this system does not use glibc")
def test_freed_memory_is_kept() -> None:
    script = """
import resource, sys, torch
from avfuse.device import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def count_new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    buffers = [torch.ones(2**21) for _ in range(20)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(*(count_new_pages() for _ in range(5)))
"""

    def new_pages(what: str) -> list[int]:
        command = [sys.executable, "-c", script, what]
        return [int(n) for n in subprocess.run(command, capture_output=True, check=True, text=True).stdout.split()]

    num_pages = 20 * 4 * 2**21 // resource.getpagesize()
    first, *later = new_pages("keep")
    assert first > 0.9 * num_pages
    assert sum(later) < 0.6 * num_pages  # to fill gaps
    assert sum(new_pages("as it comes")[1:]) > 0.9 * num_pages


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 5000 * 1024),
        ({"memory.max": "max\n", "memory.current": "100\n"}, 5000 * 1024),
        ({"memory.max": "3000000\n", "memory.current": "1000000\n"}, 2_000_000),
        (  # files that were read can be dropped
            {"memory.max": "3000000", "memory.current": "1000000", "memory.stat": "anon 1\ninactive_file 600000\n"},
            2_600_000,
        ),
        (
            {
                "memory/memory.limit_in_bytes": "3000000",
                "memory/memory.usage_in_bytes": "2900000",
                "memory/memory.stat": "inactive_file 5\ntotal_inactive_file 100000\n",
            },
            200_000,
        ),
        ({"memory.max": "10", "memory.current": "11"}, 0),
    ],
)
def test_free_memory_is_what_the_container_leaves(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    def read(path: Path) -> str:
        if path == Path("/proc/meminfo"):
            return "MemTotal: 9000 kB\nMemAvailable:    5000 kB\nBuffers: 1 kB\n"
        return files.get(str(path.relative_to("/sys/fs/cgroup")), "")

    monkeypatch.setattr(device, "_read", read)
    assert free_bytes(torch.device("cpu")) == expected


def test_free_memory_of_this_machine_is_some(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 10**6 < free_bytes(torch.device("cpu")) <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    monkeypatch.setattr(device, "_read", lambda path: "")  # another system tells nothing
    assert free_bytes(torch.device("cpu")) == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (None, False),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), True),
    ],
)
def test_a_device_that_cannot_count_is_broken(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None, expected: bool
) -> None:
    ones = torch.ones

    def make(*given: int, **settings: torch.device) -> torch.Tensor:
        if error is not None:
            raise error
        return ones(*given, **settings)

    monkeypatch.setattr(torch, "ones", make)
    assert is_broken(torch.device("cpu")) == expected


def test_float32_keeps_its_bits_on_a_gpu() -> None:
    before = torch.backends.cudnn.allow_tf32
    try:
        keep_fp32(torch.device("cpu"))
        assert torch.backends.cudnn.allow_tf32 == before
        keep_fp32(torch.device("cuda"))
        assert not torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32 = before
