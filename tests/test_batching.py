import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor

from avfuse.batching import Batcher, User, choose_size, is_out_of_memory

CPU = torch.device("cpu")


class Doubling:
    """An encoder that doubles, and remembers the sizes of its batches."""

    def __init__(self, most: int = 10**9) -> None:
        self.sizes: list[int] = []
        self.most = most

    def __call__(self, clips: Tensor) -> Tensor:
        self.sizes.append(len(clips))
        if len(clips) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if clips.isnan().any():
            raise ValueError("not a number")
        return clips * 2


def side_by_side(batcher: Batcher, *acts: Callable[[User], object]) -> list[object]:
    """Let users act in threads of their own; none begins before all are there."""
    there = threading.Barrier(len(acts))

    def run(act: Callable[[User], object]) -> object:
        with batcher.user() as user:
            there.wait()
            return act(user)

    with ThreadPoolExecutor(len(acts)) as pool:
        return list(pool.map(run, acts))


def double(user: User, values: Tensor) -> np.ndarray:
    return user.wait(user.submit("double", values))


def test_everyone_gets_the_features_of_his_own_clips() -> None:
    encoder, rng = Doubling(), np.random.default_rng(0)
    given = [torch.from_numpy(rng.normal(size=(count, 3))) for count in (1, 2, 3, 5, 8, 13, 20)]

    def act(values: Tensor) -> Callable[[User], object]:
        return lambda user: np.concatenate([double(user, part) for part in values.split(4)])

    with Batcher({"double": encoder}, 4, CPU) as batcher:
        found = side_by_side(batcher, *map(act, given))
    for values, doubled in zip(given, found, strict=True):
        np.testing.assert_array_equal(doubled, 2 * values.numpy())
    assert max(encoder.sizes) == 4


def test_batches_are_filled_across_users() -> None:
    encoder = Doubling()
    with Batcher({"double": encoder}, 8, CPU) as batcher:
        side_by_side(batcher, *[lambda user: double(user, torch.ones(2, 1))] * 4)
    assert encoder.sizes == [8]


def test_a_batch_is_padded_to_an_even_size_and_its_padding_goes() -> None:
    encoder = Doubling()
    with Batcher({"double": encoder}, 8, CPU) as batcher, batcher.user() as user:
        assert double(user, torch.ones(3, 2)).shape == (3, 2)
        assert double(user, torch.ones(1, 2)).shape == (1, 2)
        assert double(user, torch.ones(8, 2)).shape == (8, 2)
    assert encoder.sizes == [4, 2, 8]


def test_clips_of_other_shapes_and_other_encoders_share_no_batch() -> None:
    one, other = Doubling(), Doubling()

    def act(user: User, length: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        tickets = user.submit("one", torch.ones(2, length)), user.submit("other", torch.ones(2, length))
        return user.wait(tickets[0]).shape, user.wait(tickets[1]).shape

    with Batcher({"one": one, "other": other}, 8, CPU) as batcher:
        shapes = side_by_side(batcher, lambda user: act(user, 3), lambda user: act(user, 5))
    assert shapes == [((2, 3), (2, 3)), ((2, 5), (2, 5))]
    assert (sum(one.sizes), sum(other.sizes)) == (4, 4)


def test_who_waits_does_not_wait_for_who_has_left() -> None:
    with Batcher({"double": Doubling()}, 8, CPU) as batcher, batcher.user() as user:
        with batcher.user():
            pass
        assert double(user, torch.ones(1, 1)).tolist() == [[2.0]]


def test_out_of_memory_halves_the_batch_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    encoder = Doubling(most=3)
    with Batcher({"double": encoder}, 8, CPU) as batcher, batcher.user() as user, caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(double(user, torch.arange(16.0)[:, None])[:, 0], 2 * np.arange(16))
    assert encoder.sizes == [8, 4, 2, 2, 4, 2, 2, *[2] * 4]  # two that are under way, then the size that fits
    assert [message for message in caplog.messages if "ran out of memory" in message][-1].endswith("on")
    assert len(caplog.messages) == 2


def test_a_single_clip_that_is_too_much_is_its_users_failure() -> None:
    much = pytest.raises(MemoryError, match=r"the smallest batch .* is too much for the memory of cpu")
    with Batcher({"double": Doubling(most=1)}, 2, CPU) as batcher, batcher.user() as user, much as caught:
        double(user, torch.ones(2, 1))
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


def test_one_users_fault_is_not_the_others() -> None:
    def good(user: User) -> object:
        return double(user, torch.ones(2, 1)).sum()

    def bad(user: User) -> object:
        with pytest.raises(ValueError, match="not a number"):
            double(user, torch.full((2, 1), torch.nan))
        return None

    with Batcher({"double": Doubling()}, 4, CPU) as batcher:
        assert side_by_side(batcher, good, bad) == [4.0, None]


def test_closing_leaves_nobody_waiting() -> None:
    batcher = Batcher({"double": Doubling()}, 8, CPU)
    with ThreadPoolExecutor(1) as pool:
        with batcher, batcher.user() as user, batcher.user():  # the second user never waits: no batch is made
            waiting = pool.submit(double, user, torch.ones(1, 1))
            while user.awaited is None:
                pass
        with pytest.raises(RuntimeError, match="closed before"):
            waiting.result()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000 bytes"), True),
        (torch.AcceleratorError("CUDA error: out of memory"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("shapes differ"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


def test_clips_here_and_on_a_gpu_share_no_batch() -> None:
    batcher = Batcher({"double": Doubling()}, 8, CPU)
    with batcher.user() as user:
        for device in ("cpu", "meta", "cpu"):
            user.submit("double", torch.ones(2, 1, device=device))
    assert [(key[2], len(queue)) for key, queue in batcher._waiting.items()] == [("cpu", 4), ("meta", 2)]


@pytest.mark.gpu
def test_on_a_gpu_clips_of_both_kinds_come_back_right() -> None:
    """Copies are under way while the next batch is made: what was copied from, or into, is not used again too early."""
    device = torch.device("cuda", torch.cuda.device_count() - 1)
    encoder, rng = Doubling(), np.random.default_rng(0)
    given = [torch.from_numpy(rng.normal(size=(37, 64, 64)).astype(np.float32)) for _ in range(8)]

    def act(values: Tensor, is_there: bool) -> Callable[[User], object]:
        def run(user: User) -> object:
            tickets = []
            for part in values.split(4):
                tickets.append(user.submit("double", part.to(device) if is_there else part))
            return np.concatenate([user.wait(ticket) for ticket in tickets])

        return run

    with Batcher({"double": encoder}, 8, device) as batcher:
        found = side_by_side(batcher, *(act(values, i % 2 == 0) for i, values in enumerate(given)))
    for values, doubled in zip(given, found, strict=True):
        np.testing.assert_array_equal(doubled, 2 * values.numpy())
    assert set(encoder.sizes) == {8}


def test_threads_side_by_side_give_everyone_his_own() -> None:
    encoder, rng = Doubling(), np.random.default_rng(0)
    given = [torch.from_numpy(rng.normal(size=(50, 3))) for _ in range(4)]

    def act(values: Tensor) -> Callable[[User], object]:
        def run(user: User) -> object:
            tickets = [user.submit("double", part) for part in values.split(3)]
            return np.concatenate([user.wait(ticket) for ticket in tickets])

        return run

    with Batcher({"double": encoder}, 4, CPU, num_threads=3) as batcher:
        found = side_by_side(batcher, *map(act, given))
    for values, doubled in zip(given, found, strict=True):
        np.testing.assert_array_equal(doubled, 2 * values.numpy())


@pytest.mark.parametrize(
    ("wanted", "kind", "size"), [(0, "cpu", 8), (3, "cpu", 3), (16, "cpu", 8), (0, "cuda", 64), (16, "cuda", 16)]
)
def test_a_cpu_takes_no_more_clips_than_all_networks_are_equal_for(wanted: int, kind: str, size: int) -> None:
    assert choose_size(wanted, torch.device(kind)) == size
