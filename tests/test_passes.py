"""Passes over a partition: steps are those of a plain loop, and draw views and augmentation from torch's generator."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy import AUDIO, CHANNELS, MAP, add_recording, toy_cache, toy_spec

from avfuse import registry
from avfuse.cache import FeatureCache
from avfuse.checkpoint import build_head
from avfuse.dataset import WindowedPartition
from avfuse.losses import ccc_loss
from avfuse.moments import feature_moments
from avfuse.options import TrainOptions
from avfuse.passes import call_head, predict_clips, train_once


def make_head(name: str = "concat", **changes: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"audio_size": AUDIO, "video_size": CHANNELS, "map_size": MAP, "num_clips": 16}
    return build_head(name, {"targets": ["valence", "arousal"], **sizes, **changes})


def pass_once(
    partition: WindowedPartition, seed: int = 1, **changes: Any
) -> tuple[Any, float, list[tuple[int, float]]]:
    """Train a new head once over the windows in their order; return it, the loss, and what was told."""
    head = make_head().to(partition.device)
    moments = tuple(values.to(partition.device) for values in feature_moments(partition))
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-3)
    options = TrainOptions(**{"head": "concat", "batch_size": 5, **changes})
    told: list[Any] = []
    torch.manual_seed(seed)
    loss = train_once(
        head, optimizer, partition, partition.rated_windows(), moments, options, lambda *step: told.append(step)
    )
    return head, loss, told


def assert_equal_heads(one: Any, other: Any) -> None:
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def are_equal(one: Any, other: Any) -> bool:
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_steps_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    partition = WindowedPartition(toy_cache(tmp_path), "train", 16, 32)
    trained, loss, told = pass_once(partition, gradient_clip=0.5)
    head = make_head()
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-3)
    places, losses, counts = partition.rated_windows(), [], []
    torch.manual_seed(1)
    for start in range(0, len(places), 5):
        chosen = sorted(places[start : start + 5], key=lambda place: -partition.windows[place].count)
        batch = partition.batch(chosen)
        trace = head(batch.audio_BTA, batch.video_BTCHW, batch.mask_BT, batch.face_BT)
        value = ccc_loss(trace, batch.target_BTE, batch.mask_BT)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 0.5)
        optimizer.step()
        losses.append(value.item())
        counts.append(len(chosen))
    assert_equal_heads(trained, head)
    assert loss == pytest.approx(np.average(losses, weights=counts), rel=1e-12)
    assert told == list(zip(np.cumsum(counts).tolist(), losses, strict=True))


def test_nothing_is_augmented_unless_asked_for(tmp_path: Path) -> None:
    partition = WindowedPartition(toy_cache(tmp_path), "train", 16, 32)
    plain, _, _ = pass_once(partition)
    for amounts in ({"noise": 0.5}, {"drop_modality": 0.9}, {"mask_span": 0.9}):
        augmented, _, _ = pass_once(partition, **amounts)
        assert not are_equal(plain, augmented)
        assert_equal_heads(augmented, pass_once(partition, **amounts)[0])
        assert not are_equal(augmented, pass_once(partition, seed=2, **amounts)[0])


@pytest.mark.parametrize("resident", ["ram", "device"])
def test_where_maps_lie_changes_nothing(tmp_path: Path, resident: str) -> None:
    store = FeatureCache.create(tmp_path, toy_spec(views={"count": 2}), {})
    for number in range(3):
        add_recording(store, f"{number}", "train", 40 + number, seed=number)
    mapped = WindowedPartition(store, "train", 16, 32, num_views=2)
    held = WindowedPartition(store, "train", 16, 32, num_views=2, resident=resident)
    assert_equal_heads(pass_once(mapped, noise=0.1, mask_span=0.3)[0], pass_once(held, noise=0.1, mask_span=0.3)[0])


def test_a_view_is_drawn_for_every_visit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FeatureCache.create(tmp_path, toy_spec(views={"count": 3}), {})
    add_recording(store, "a", "train", 150, seed=0)
    partition = WindowedPartition(store, "train", 2, 32, num_views=3)
    drawn: list[list[int]] = []
    batches = WindowedPartition.batches

    def spy(self: WindowedPartition, places: Any, size: int, views: Any = None, **options: Any) -> Iterator[Any]:
        drawn.append(views)
        return batches(self, places, size, views, **options)

    monkeypatch.setattr(WindowedPartition, "batches", spy)
    for seed in (1, 2, 1):
        pass_once(partition, seed)
    first, second, again = drawn
    assert first == again != second
    counts = np.bincount(first, minlength=3)
    assert counts.sum() == len(partition.windows) == 76
    assert counts.min() >= 12  # 25 are expected; fewer than 12 once in a thousand
    predict_clips(make_head(), partition, "off", 8)
    assert drawn[-1] is None  # the first view


def test_predicting_is_in_evaluation_mode_and_in_the_precision_asked_for(tmp_path: Path) -> None:
    partition = WindowedPartition(toy_cache(tmp_path), "validation", 16, 32)
    head = make_head("recursive_joint_attention").train()
    trace_NE = predict_clips(head, partition, "off", 8)
    assert not head.training
    np.testing.assert_array_equal(trace_NE, predict_clips(head, partition, "off", 8))
    told: list[tuple[int, int]] = []
    predict_clips(head, partition, "off", 8, lambda *step: told.append(step))
    num_windows = len(partition.windows)
    assert told == [(min(done, num_windows), num_windows) for done in range(8, num_windows + 8, 8)]
    half_NE = predict_clips(head, partition, "bf16", 8)
    assert 0 < np.abs(half_NE - trace_NE).max() < 0.05  # bfloat16 has 8 bits of mantissa
    batch = partition.batch([0])
    assert torch.equal(
        call_head(head, batch, "off"), head(batch.audio_BTA, batch.video_BTCHW, batch.mask_BT, batch.face_BT)
    )


@pytest.mark.gpu
@pytest.mark.parametrize("resident", ["no", "device"])
@pytest.mark.parametrize("form", ["paper", "released"])
@pytest.mark.parametrize("name", registry.HEADS)
def test_nothing_in_a_step_waits_for_the_gpu(tmp_path: Path, name: str, form: str, resident: str) -> None:
    if form == "released" and name == "reliability_joint_attention":
        pytest.skip("it was never released")
    device = torch.device("cuda")
    partition = WindowedPartition(toy_cache(tmp_path), "train", 16, 32, resident=resident, device=device)
    assert min(window.count for window in partition.windows) < 16  # some are padded
    head = make_head(name, form=form).to(device)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-3, fused=True)
    for mode in ("default", "error"):
        for _, batch in partition.batches(partition.rated_windows(), 8):
            torch.cuda.set_sync_debug_mode(mode)
            try:
                loss = ccc_loss(
                    call_head(head, batch, "bf16"), batch.target_BTE, batch.mask_BT.to(device, non_blocking=True)
                )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
                optimizer.step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(loss)
