"""Features are augmented as it is written, no more of them, and the same for one seed."""

import dataclasses
from typing import Any

import pytest
import torch
from conftest import every_device
from torch import Tensor

from avfuse.augment import Moments, augment
from avfuse.schema import Batch

AUDIO, MAP = (5,), (3, 2, 2)
NUM_CLIPS = (16, 11, 1, 0)  # of four kinds of windows, padded to 16


def batch_of(num_windows: int, device: str = "cpu", lengths: tuple[int, ...] = NUM_CLIPS, seed: int = 0) -> Batch:
    """Return windows of random features; what is padded holds numbers, too, that must not be touched."""
    generator = torch.Generator().manual_seed(seed)
    num_clips_B = torch.tensor(lengths).repeat(-(-num_windows // len(lengths)))[:num_windows]
    size = (num_windows, 16)
    made = Batch(
        audio_BTA=torch.randn(*size, *AUDIO, generator=generator),
        video_BTCHW=torch.rand(*size, *MAP, generator=generator).half(),
        target_BTE=torch.rand(*size, 2, generator=generator),
        mask_BT=torch.arange(16) < num_clips_B[:, None],
        face_BT=torch.rand(size, generator=generator) * 0.5 + 0.5,
    )
    return moved(made, device)


def moved(batch: Batch, device: str) -> Batch:
    """Return a batch on a device, its mask on the host, as training has it."""
    return Batch(
        **{name: values if name == "mask_BT" else values.to(device) for name, values in fields_of(batch).items()}
    )


def fields_of(batch: Batch) -> dict[str, Tensor]:
    return {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}


MOMENTS: Moments = (
    torch.linspace(10, 14, 5),  # far from every feature
    torch.tensor([0.0, 0.1, 1.0, 2.0, 4.0]),
    torch.linspace(20, 31, 12).reshape(MAP),
    torch.linspace(0, 1.1, 12).reshape(MAP),
)


def augmented(batch: Batch, seed: int = 0, **knobs: Any) -> Batch:
    torch.manual_seed(seed)
    return augment(batch, moments=MOMENTS, **knobs)


def away(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return where sound and face were replaced by their means, (B, T) each; half of a clip is never replaced."""
    found = []
    for values, mean in ((batch.audio_BTA, MOMENTS[0]), (batch.video_BTCHW, MOMENTS[2])):
        is_mean = (values == mean.to(values)).flatten(2)
        assert torch.equal(is_mean.any(dim=2), is_mean.all(dim=2))
        found.append(is_mean.all(dim=2).cpu())
    return found[0], found[1]


EVERYTHING = {"noise": 0.5, "drop_modality": 0.5, "mask_span": 0.5}


@every_device
@pytest.mark.parametrize("knobs", [{}, {"noise": 0.5}, {"drop_modality": 1.0}, {"mask_span": 1.0}, EVERYTHING])
def test_padding_targets_and_the_given_batch_stay_as_they_are(knobs: dict[str, float], device: str) -> None:
    given = batch_of(64, device)
    before = {name: values.clone() for name, values in fields_of(given).items()}
    made = augmented(given, **knobs)
    padded_BT = ~given.mask_BT
    for name, values in fields_of(made).items():
        assert torch.equal(fields_of(given)[name], before[name])
        assert (values.dtype, values.shape, values.device) == tuple(
            getattr(before[name], what) for what in ("dtype", "shape", "device")
        )
        assert torch.equal(values[padded_BT], before[name][padded_BT])
        is_free = not knobs or name in ("target_BTE", "mask_BT") or (name == "face_BT" and set(knobs) == {"noise"})
        assert torch.equal(values, before[name]) == is_free


def test_nothing_is_drawn_for_what_is_off() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    augmented(batch_of(4), seed=3)
    assert torch.equal(torch.rand(4), expected)


@every_device
def test_a_seed_gives_one_result(device: str) -> None:
    given = batch_of(64, device)
    first, again, other = (augmented(given, seed, **EVERYTHING) for seed in (0, 0, 1))
    for name, values in fields_of(first).items():
        assert torch.equal(values, fields_of(again)[name])
        assert torch.equal(values, fields_of(other)[name]) == (name in ("target_BTE", "mask_BT"))


@pytest.mark.gpu
def test_what_is_away_does_not_depend_on_the_device() -> None:
    knobs = {"drop_modality": 0.5, "mask_span": 0.5}
    here, there = (augmented(batch_of(64, device), **knobs) for device in ("cpu", "cuda"))
    for name, values in fields_of(here).items():
        assert torch.equal(values, fields_of(there)[name].cpu())


# Noise


@every_device
def test_noise_has_the_deviation_of_its_feature(device: str) -> None:
    given = batch_of(2000, device, lengths=(16,))
    given.video_BTCHW = given.video_BTCHW.float()
    made = augmented(given, noise=0.5)
    for before, after, std in (
        (given.audio_BTA, made.audio_BTA, MOMENTS[1]),
        (given.video_BTCHW, made.video_BTCHW, MOMENTS[3]),
    ):
        added = (after - before).double().flatten(0, 1).cpu()
        # Of 32,000 draws the mean errs by 0.0056 deviations, which are up to 2, and the deviation by 0.4 %; five times.
        torch.testing.assert_close(added.mean(dim=0), torch.zeros(std.shape).double(), rtol=0, atol=5 * 0.0056 * 2)
        torch.testing.assert_close(added.std(dim=0), 0.5 * std.double(), rtol=0.02, atol=0)
        standard = (added / (0.5 * std.double()).clamp(min=1e-9)).flatten(1)[:, std.flatten() > 0]
        share = (standard.abs() < 1).double().mean().item()
        assert share == pytest.approx(0.6827, abs=0.01)  # of a normal distribution within its deviation
        correlation = torch.corrcoef(standard.T).fill_diagonal_(0).abs().max()
        assert correlation < 0.03
    assert torch.equal(made.face_BT, given.face_BT)


def test_noise_never_leaves_the_type_of_the_maps() -> None:
    given = batch_of(4)
    given.video_BTCHW.fill_(60_000.0)
    moments = (*MOMENTS[:3], torch.full(MAP, 60_000.0))
    made = augment(given, moments=moments, noise=1.0)
    assert made.video_BTCHW.isfinite().all()
    assert (made.video_BTCHW[given.mask_BT] == 65_504).any()


# Dropped modalities


def test_a_dropped_modality_is_away_in_the_whole_window() -> None:
    given = batch_of(4000)
    made = augmented(given, drop_modality=0.3)
    no_audio_BT, no_face_BT = away(made)
    for no_BT in (no_audio_BT, no_face_BT):
        dropped_B = no_BT.any(dim=1)
        assert torch.equal(no_BT, dropped_B[:, None] & given.mask_BT)
        # 3000 windows hold a clip, 0.15 of them go without this modality; five deviations of 0.0065
        assert dropped_B[given.mask_BT.any(dim=1)].double().mean().item() == pytest.approx(0.15, abs=0.033)
    assert not (no_audio_BT & no_face_BT).any()
    assert torch.equal(made.face_BT, torch.where(no_face_BT, 0.0, given.face_BT))
    kept_BT = ~no_face_BT
    assert torch.equal(made.video_BTCHW[kept_BT], given.video_BTCHW[kept_BT])
    assert torch.equal(made.audio_BTA[~no_audio_BT], given.audio_BTA[~no_audio_BT])


def test_a_certain_drop_takes_exactly_one_modality_of_every_window() -> None:
    given = batch_of(400)
    no_audio_BT, no_face_BT = away(augmented(given, drop_modality=1.0))
    assert torch.equal(no_audio_BT ^ no_face_BT, given.mask_BT)


# Masked spans


def spans(no_BT: Tensor) -> list[tuple[int, int]]:
    """Return where the span of each window begins and how many clips it has; assert that it is one."""
    found = []
    for no_T in no_BT:
        places = no_T.nonzero().flatten().tolist()
        start = min(places, default=-1)
        assert places == list(range(start, start + len(places)))
        found.append((start, len(places)))
    return found


def test_spans_are_uniform_in_length_and_place() -> None:
    num_windows, longest = 8000, 4
    no_audio_BT, no_face_BT = away(augmented(batch_of(num_windows, lengths=(11,)), mask_span=0.4))  # of 4.4 clips, 4
    for no_BT in (no_audio_BT, no_face_BT):
        found = spans(no_BT)
        for length in range(longest + 1):
            of_length = [start for start, count in found if count == length]
            assert len(of_length) / num_windows == pytest.approx(1 / 5, abs=0.0225)  # five deviations
            if length:
                num_places = 11 - length + 1
                shares = [of_length.count(start) / len(of_length) for start in range(num_places)]
                assert shares == pytest.approx([1 / num_places] * num_places, abs=0.041)  # five deviations at the most
        assert max(count for _, count in found) == longest
    lengths = torch.tensor([[count for _, count in spans(no_BT)] for no_BT in (no_audio_BT, no_face_BT)])
    assert abs(float(torch.corrcoef(lengths.double())[0, 1])) < 0.056  # drawn apart


@pytest.mark.parametrize(
    ("share", "num_clips", "longest"), [(1.0, 16, 16), (0.5, 1, 0), (0.29, 100, 29), (0.7, 10, 7), (0.1, 10, 1)]
)
def test_the_longest_span_is_the_share_rounded_down(share: float, num_clips: int, longest: int) -> None:
    size = (3000, num_clips)
    given = Batch(
        torch.zeros(*size, *AUDIO), torch.zeros(*size, *MAP), torch.zeros(*size, 1), torch.ones(size).bool(),
        torch.ones(size),
    )  # fmt: skip
    no_audio_BT, no_face_BT = away(augmented(given, mask_span=share))
    assert int(no_audio_BT.sum(dim=1).max()) == int(no_face_BT.sum(dim=1).max()) == longest


def test_a_masked_face_counts_as_not_found() -> None:
    given = batch_of(64)
    made = augmented(given, mask_span=0.5)
    _, no_face_BT = away(made)
    assert no_face_BT.any()
    assert torch.equal(made.face_BT, torch.where(no_face_BT, 0.0, given.face_BT))


def test_what_is_away_is_the_mean_whatever_noise_there_is() -> None:
    no_audio_BT, no_face_BT = away(augmented(batch_of(400, lengths=(16,)), **EVERYTHING))
    for no_BT in (no_audio_BT, no_face_BT):
        # 1/4 of the windows are dropped; of the others 4 of 16 clips are masked in the mean: 7/16, and five deviations
        assert no_BT.double().mean().item() == pytest.approx(0.25 + 0.75 * 0.25, abs=0.11)
