import dataclasses
import hashlib
import itertools
import math
import multiprocessing
import os
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy import add_recording, toy_cache, toy_spec

from avfuse import checkpoint, registry, runs
from avfuse import train as train_module
from avfuse.cache import FeatureCache
from avfuse.knobs import PROTOCOLS
from avfuse.losses import LOSSES
from avfuse.options import TrainOptions
from avfuse.schema import UsageError
from avfuse.train import TrainProgress, train
from avfuse.windows import Window


def options(home: Path, **changes: Any) -> TrainOptions:
    values = {"cache": home, "head": "concat", "epochs": 4, "batch_size": 8, "learning_rate": 3e-3, "device": "cpu"}
    return TrainOptions(**{**values, **changes})


def weights(run: Path | str) -> dict[str, torch.Tensor]:
    return checkpoint.load_state(Path(run) / runs.HEAD_FILE)["weights"]


def assert_equal_weights(one: Path | str, other: Path | str) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("head", registry.HEADS)
def test_every_head_learns_what_its_modality_shows(tmp_path: Path, head: str) -> None:
    toy_cache(tmp_path)
    (summary,) = train(options(tmp_path, head=head, epochs=20, patience=20))
    # In the toy cache valence shows in the map alone and arousal in the sound alone, both with noise of 0.3.
    if head != "audio_only":
        assert summary.ccc["valence"] > 0.7
    if head != "visual_only":
        assert summary.ccc["arousal"] > 0.7
    if head in ("audio_only", "visual_only"):
        assert min(summary.ccc.values()) < 0.5


def test_a_run_says_what_it_is(tmp_path: Path) -> None:
    store = toy_cache(tmp_path)
    (summary,) = train(options(tmp_path, head_option=("unimodal_blstm=false",), seed=(3,)))
    run = Path(summary.run)
    assert run.parent.parent == tmp_path.resolve() / "runs" / store.path.stem
    record = runs.read_run(run)
    assert record.complete
    assert (record.head, record.head_options, record.seed) == ("concat", {"unimodal_blstm": False}, 3)
    assert (record.fingerprint, record.dataset, record.targets) == (
        store.spec.fingerprint,
        "toy",
        ("valence", "arousal"),
    )
    assert record.options["batch_size"] == 8
    assert (record.options["overlap"], record.options["schedule"]) == (8, "plateau")  # filled in by the protocol
    assert not {"device", "protocol"} & record.options.keys()
    assert record.revision == runs.code_revision()
    assert {"avfuse", "torch", "numpy", "zarr"} <= record.versions.keys()
    history = runs.read_history(run)
    assert [item["epoch"] for item in history] == [1, 2, 3, 4]
    best = max(history, key=lambda item: item["mean_ccc"])
    assert record.summary["best_epoch"] == best["epoch"]
    assert record.summary["mean_ccc"] == pytest.approx(best["mean_ccc"], abs=1e-12)
    assert record.summary["num_parameters"] == summary.num_parameters > 0
    assert {path.name for path in run.iterdir()} == {"run.json", "history.jsonl", "head.pt", "predictions.npz"}


def test_predictions_cover_every_frame_and_give_the_recorded_ccc(tmp_path: Path) -> None:
    store = toy_cache(tmp_path)
    (summary,) = train(options(tmp_path))
    predictions = runs.read_predictions(Path(summary.run))
    recordings = store.recordings("validation")
    assert [item.recording for item in predictions] == [item.name for item in recordings]
    for item, recording in zip(predictions, recordings, strict=True):
        assert item.prediction_FE.shape == recording.array("frame_target").shape
        assert np.isfinite(item.prediction_FE).all()
    ccc = registry.load("metric", "ccc")
    both = [np.concatenate([getattr(item, name) for item in predictions]) for name in ("prediction_FE", "target_FE")]
    for column, target in enumerate(("valence", "arousal")):
        assert summary.ccc[target] == pytest.approx(float(ccc(both[0][:, column], both[1][:, column])), abs=1e-12)
    # The stored head gives the stored predictions: at a clip's end the frame's prediction is the clip's.
    head = checkpoint.load_head(summary.run)
    partition = train_module.WindowedPartition(store, "validation", 16, 32)
    assert partition.windows[0].start + 16 * partition.windows[0].step > recordings[0].num_clips  # no other overlaps it
    batch = partition.batch([0])
    with torch.inference_mode():
        trace = head(batch.audio_BTA, batch.video_BTCHW, batch.mask_BT, batch.face_BT)[0].numpy()
    ends = recordings[0].array("end_frame")[partition.windows[0].clips]
    np.testing.assert_allclose(predictions[0].prediction_FE[ends], trace[: len(ends)], atol=1e-5)


def test_equal_seeds_give_equal_weights_and_others_do_not(tmp_path: Path) -> None:
    toy_cache(tmp_path)
    one, other = train(options(tmp_path, seed=(0, 1), out=tmp_path / "first"))
    (again,) = train(options(tmp_path, seed=(0,), out=tmp_path / "second"))
    assert_equal_weights(one.run, again.run)
    assert not torch.equal(weights(one.run)["inputs.audio_mean"] * 0 + 1, weights(one.run)["inputs.audio_mean"])
    different = [name for name, value in weights(one.run).items() if not torch.equal(value, weights(other.run)[name])]
    assert "regressor.hidden.weight" in different or len(different) > 3


class Killed(BaseException):
    """Raised from inside a training, as a signal would be."""


RELEASED = {"protocol": "released", "epochs": 9, "batch_size": 2, "learning_rate": 1e-3}


@pytest.mark.parametrize(
    ("at", "changes"),
    [
        ((1, 0.3), {}),
        ((2, 1.0), {}),
        ((3, 0.6), {}),
        ((6, 1.0), RELEASED),  # the step size jumps with the seventh epoch
        ((7, 0.5), RELEASED),
        ((8, 0.9), RELEASED),
    ],
)
def test_a_stopped_training_resumes_to_the_same_weights(
    tmp_path: Path, at: tuple[int, float], changes: dict[str, Any]
) -> None:
    toy_cache(tmp_path)
    (whole,) = train(options(tmp_path, out=tmp_path / "whole", **changes))

    def stop(progress: TrainProgress) -> None:
        if (progress.epoch, progress.share_of_epoch) >= at:
            raise Killed

    stopped = options(tmp_path, out=tmp_path / "stopped", **changes)
    with pytest.raises(Killed):
        train(stopped, stop)
    (resumed,) = train(stopped)
    assert not resumed.was_complete
    assert_equal_weights(whole.run, resumed.run)
    assert dataclasses.replace(resumed, run=whole.run, elapsed_s=0) == dataclasses.replace(whole, elapsed_s=0)
    without_time = [[{**e, "elapsed_s": 0} for e in runs.read_history(Path(s.run))] for s in (whole, resumed)]
    assert without_time[0] == without_time[1]


KILLED_TRAINING = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from avfuse.train import train
from test_train import options

def die(progress):
    if progress.epoch == 3 and progress.share_of_epoch > 0.5:
        os.kill(os.getpid(), signal.SIGKILL)

train(options(Path({home!r}), out=Path({home!r}) / "killed"), die)
"""


def test_a_training_killed_without_warning_resumes_to_the_same_weights(tmp_path: Path) -> None:
    toy_cache(tmp_path)
    code = KILLED_TRAINING.format(tests=str(Path(__file__).parent), home=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], check=False, env={**os.environ})
    assert done.returncode == -signal.SIGKILL
    (resumed,) = train(options(tmp_path, out=tmp_path / "killed"))
    (whole,) = train(options(tmp_path, out=tmp_path / "whole"))
    assert_equal_weights(whole.run, resumed.run)


def test_a_complete_run_is_left_as_it_is(tmp_path: Path) -> None:
    toy_cache(tmp_path)
    (first,) = train(options(tmp_path))
    files = sorted(Path(first.run).iterdir())
    before = [(path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]
    (second,) = train(options(tmp_path))
    assert second == dataclasses.replace(first, was_complete=True)
    assert before == [(path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]


def test_other_options_are_another_run(tmp_path: Path) -> None:
    toy_cache(tmp_path)
    places = {
        train(options(tmp_path, epochs=1, **changes))[0].run
        for changes in (
            {},
            {"learning_rate": 1e-3},
            {"head_option": ("joint_blstm=false",)},
            {"num_clips": 8},
            {"amp": "bf16"},
            {"schedule": "released"},
            {"windows": "complete"},
            {"order": "recorded"},
            {"loss": "released"},
            {"overlap": 0},
        )
    }
    assert len(places) == 10


def test_a_default_given_is_the_same_run(tmp_path: Path) -> None:
    toy_cache(tmp_path)
    (first,) = train(options(tmp_path, epochs=1))
    (second,) = train(options(tmp_path, epochs=1, head_option=("joint_blstm=true", "dropout=0.5")))
    assert second == dataclasses.replace(first, was_complete=True)
    (third,) = train(options(tmp_path, epochs=1, protocol="released"))
    given = {**PROTOCOLS["released"], "epochs": 1, "batch_size": 8, "learning_rate": 3e-3}
    (fourth,) = train(options(tmp_path, **given))
    assert third.run != first.run
    assert fourth == dataclasses.replace(third, was_complete=True)


def test_a_cache_that_grew_is_another_training(tmp_path: Path) -> None:
    store = toy_cache(tmp_path)
    (first,) = train(options(tmp_path, epochs=1))
    add_recording(store, "later", "train", 20, seed=77)
    (second,) = train(options(tmp_path, epochs=1))
    assert not second.was_complete
    assert second.run != first.run


def test_the_inputs_are_standardised_by_the_training_partition_alone(tmp_path: Path) -> None:
    store = toy_cache(tmp_path)
    (summary,) = train(options(tmp_path, epochs=1))
    audio = np.concatenate([item.array("audio") for item in store.recordings("train")])
    np.testing.assert_allclose(weights(summary.run)["inputs.audio_mean"].numpy(), audio.mean(axis=0), atol=1e-5)


@pytest.fixture
def visited(monkeypatch: pytest.MonkeyPatch) -> list[list[Window]]:
    """Return what will hold the windows in the order of every pass over a partition, and how large the batches are."""
    passes: list[list[Window]] = []
    batches = train_module.WindowedPartition.batches

    def spy(partition: Any, places: Any, *arguments: Any) -> Any:
        passes.append([partition.windows[place] for place in places])
        return batches(partition, places, *arguments)

    monkeypatch.setattr(train_module.WindowedPartition, "batches", spy)
    return passes


def test_every_epoch_has_an_order_of_its_own(tmp_path: Path, visited: list[list[Window]]) -> None:
    toy_cache(tmp_path)
    train(options(tmp_path, epochs=2))
    first, _, second, *_ = visited  # training, validation, training
    assert sorted(first) == sorted(second)
    assert first != sorted(first)
    assert first != second


def test_or_every_epoch_goes_as_recorded(tmp_path: Path, visited: list[list[Window]]) -> None:
    toy_cache(tmp_path)
    done: list[float] = []
    train(
        options(tmp_path, epochs=2, order="recorded", num_clips=4, batch_size=32),
        lambda progress: done.append(progress.share_of_epoch),
    )
    first, _, second, *_ = visited
    assert first == second
    # The third recording has 64 clips: by block of 4 clips, 4 apart, then by phase.
    starts = [window.start for window in first if window.recording == 2]
    assert starts == [block + phase for block in (0, 16, 32, 48) for phase in range(4)]
    assert [window.recording for window in first] == sorted(window.recording for window in first)
    assert done[:3] == [32 / len(first), 1.0, 1.0]  # two batches, the second one partial, and the scored epoch


def test_complete_windows_alone_may_be_trained_on(tmp_path: Path, visited: list[list[Window]]) -> None:
    store = toy_cache(tmp_path)
    (summary,) = train(options(tmp_path, epochs=1, windows="complete"))
    training, validation, final = visited
    assert sorted((w.recording, w.start, w.count) for w in training) == [(2, phase, 16) for phase in range(4)]
    assert sorted(validation) == sorted(final)
    assert {window.count for window in validation} == {11, 12, 16}  # what is predicted is not touched
    for item, recording in zip(runs.read_predictions(Path(summary.run)), store.recordings("validation"), strict=True):
        np.testing.assert_array_equal(item.target_FE, recording.array("frame_target"))
    with pytest.raises(UsageError, match=r"the train partition of .* has no complete window: 17 clips 32 frames apart"):
        train(options(tmp_path, num_clips=17, windows="complete"))


def test_the_overlap_is_that_of_the_predictions_alone(tmp_path: Path, visited: list[list[Window]]) -> None:
    toy_cache(tmp_path)
    tiled, overlapping = (train(options(tmp_path, epochs=1, overlap=overlap))[0] for overlap in (0, 12))
    assert_equal_weights(tiled.run, overlapping.run)
    assert visited[0] == visited[3]
    assert visited[1] == visited[2]
    assert visited[4] == visited[5]
    assert {window.count for window in visited[1] if window.recording == 1} == {16, 1, 2}
    assert {window.count for window in visited[4] if window.recording == 1} == {16}
    both = [runs.read_predictions(Path(summary.run)) for summary in (tiled, overlapping)]
    for number, (one, other) in enumerate(zip(*both, strict=True)):
        # The first recording fits into one window per phase, the second does not. (1e-6: batches of another make-up)
        assert np.allclose(one.prediction_FE, other.prediction_FE, atol=1e-6) == (number == 0)
        assert np.isfinite(other.prediction_FE).all()


def test_the_gradient_is_clipped(tmp_path: Path) -> None:
    toy_cache(tmp_path)
    # A step of plain Adam does not depend on the scale of its gradient, but two of different scale do.
    runs_of = [train(options(tmp_path, epochs=2, gradient_clip=clip))[0].run for clip in (0.0, 1e-3)]
    first, second = (weights(run) for run in runs_of)
    assert any(not torch.equal(value, second[name]) for name, value in first.items())


def test_a_resumed_schedule_remembers_the_plateau(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy_cache(tmp_path)
    monkeypatch.setattr(train_module, "_score", lambda *_: {"valence": 0.5, "arousal": 0.5})
    flat = {"epochs": 4, "patience": 10, "plateau": 1}

    def stop(progress: TrainProgress) -> None:
        if progress.epoch == 3:
            raise Killed

    with pytest.raises(Killed):
        train(options(tmp_path, **flat), stop)
    (summary,) = train(options(tmp_path, **flat))
    rates = [item["learning_rate"] for item in runs.read_history(Path(summary.run))]
    np.testing.assert_allclose(rates, [3e-3, 3e-3, 3e-3, 1.5e-3])


def test_early_stop_and_schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy_cache(tmp_path)
    # With no step the validation CCC never improves on the first epoch's.
    (summary,) = train(options(tmp_path, learning_rate=0.0, epochs=30, patience=3))
    assert (summary.best_epoch, summary.num_epochs) == (1, 4)
    monkeypatch.setattr(train_module, "_score", lambda *_: {"valence": 0.5, "arousal": 0.5})
    (summary,) = train(options(tmp_path, learning_rate=1e-3, epochs=6, patience=10, plateau=1))
    rates = [item["learning_rate"] for item in runs.read_history(Path(summary.run))]
    # The first epoch is the best; every second one without a better CCC halves the step size after it.
    np.testing.assert_allclose(rates, [1e-3, 1e-3, 1e-3, 5e-4, 5e-4, 2.5e-4])


def test_the_released_schedule(tmp_path: Path) -> None:
    toy_cache(tmp_path)
    (summary,) = train(options(tmp_path, protocol="released", epochs=13, learning_rate=1e-4))
    rates = [item["learning_rate"] for item in runs.read_history(Path(summary.run))]
    after = [1e-3, 8e-4, 8e-4, 6.4e-4, 6.4e-4, 5.12e-4, 5.12e-4]
    np.testing.assert_allclose(rates, [1e-4] * 6 + after, rtol=1e-12)


def test_the_released_protocol_trains(tmp_path: Path) -> None:
    toy_cache(tmp_path)
    (summary,) = train(options(tmp_path, protocol="released", epochs=40, batch_size=4, learning_rate=1e-3))
    record = runs.read_run(Path(summary.run))
    assert {
        **PROTOCOLS["released"],
        "epochs": 40,
        "batch_size": 4,
        "learning_rate": 1e-3,
    }.items() <= record.options.items()
    assert summary.num_epochs == 40  # it never stops early
    assert summary.mean_ccc > 0.4
    losses = [item["loss"] for item in runs.read_history(Path(summary.run))]
    assert 0 < losses[-1] < losses[0] < 3  # a sum over two targets


def never_finite(trace: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    """Return a loss that is NaN."""
    return trace.sum() * torch.nan


def without_gradient(trace: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    """Return a loss that is finite while its gradient is not."""
    return (trace * 0).square().sum().sqrt()


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
@pytest.mark.parametrize(("fault", "num_epochs_until_seen"), [(never_finite, 1), (without_gradient, 2)])
@pytest.mark.parametrize("num_sound", [0, 2])
def test_a_training_that_diverges_ends_there(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    num_sound: int,
    fault: Any,
    num_epochs_until_seen: int,
    protocol: str,
) -> None:
    toy_cache(tmp_path)
    steps, name = itertools.count(), PROTOCOLS[protocol]["loss"]
    sound = LOSSES[name]
    monkeypatch.setitem(LOSSES, name, lambda *values: (sound if next(steps) < num_sound else fault)(*values))

    def stop(progress: TrainProgress) -> None:
        if math.isnan(progress.loss) and progress.metrics:
            raise Killed

    chosen = options(tmp_path, protocol=protocol, epochs=20, batch_size=24)  # one step per epoch
    with pytest.raises(Killed):
        train(chosen, stop)
    (summary,) = train(chosen)  # goes on, and sees that there is nothing to go on with
    run = Path(summary.run)
    assert "diverged: its loss is not finite in epoch" in caplog.text
    assert runs.read_run(run).complete
    history = runs.read_history(run)
    assert summary.num_epochs == len(history) == num_sound + num_epochs_until_seen
    assert [item["mean_ccc"] is None for item in history] == [n >= num_sound for n in range(len(history))]
    finite = [np.isfinite(item.prediction_FE).all() for item in runs.read_predictions(run)]
    if num_sound:  # the best head from before is kept
        best = max(history[:num_sound], key=lambda item: item["mean_ccc"])
        assert (summary.best_epoch, summary.mean_ccc) == (best["epoch"], pytest.approx(best["mean_ccc"], abs=1e-12))
        assert all(finite)
    else:
        assert summary.best_epoch == 1
        assert all(math.isnan(value) for value in (*summary.ccc.values(), summary.mean_ccc))
        assert not any(finite)


def test_code_that_takes_a_run_up_is_named_behind_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy_cache(tmp_path)

    def stop_in(epoch: int) -> Any:
        def stop(progress: TrainProgress) -> None:
            if progress.epoch == epoch:
                raise Killed

        return stop

    for revision, epoch in (("lost", 1), ("first", 2), ("first", 3), ("second", 4)):
        monkeypatch.setattr(runs, "code_revision", lambda revision=revision: revision)
        with pytest.raises(Killed):
            train(options(tmp_path), stop_in(epoch))
    (summary,) = train(options(tmp_path))
    # The first epoch was never finished, so that nothing of it is left.
    assert runs.read_run(Path(summary.run)).revision == "first, second"
    monkeypatch.setattr(runs, "code_revision", lambda: "third")
    train(options(tmp_path))
    assert runs.read_run(Path(summary.run)).revision == "first, second"


def test_bf16_trains_too(tmp_path: Path) -> None:
    toy_cache(tmp_path)
    (summary,) = train(options(tmp_path, amp="bf16", epochs=20, patience=20))
    assert summary.mean_ccc > 0.6
    assert all(value.dtype != torch.bfloat16 for value in weights(summary.run).values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": "sum"}, "unknown head 'sum'; known: recursive_joint_attention, reliability_joint_attention"),
        (
            {"head_option": ("depth=3",)},
            r"head 'concat' has no argument 'depth'; it takes: .*unimodal_blstm=True, joint_blstm=True, dropout=0\.5$",
        ),
        ({"head_option": ("num_clips=3",)}, "has no argument 'num_clips'"),
        ({"head_option": ("dropout=much",)}, r"dropout=much is not a float such as 0\.5"),
        ({"head_option": ("joint_blstm=1",)}, "joint_blstm=1 is not a bool such as True"),
        ({"head_option": ("depth",)}, "'depth' is not KEY=VALUE"),
        ({"head": "recursive_joint_attention", "head_option": ("recursions=0",)}, "recursions is 0"),
        ({"spacing": 12}, "--spacing 12 is not a multiple of 8"),
        ({"device": "cuda:77"}, "device 'cuda:77' is not here"),
        ({"head_option": ("dropout=2",)}, "dropout is 2; allowed are 0 and numbers from 0.00390625 to below 1"),
        ({"seed": (2**60,)}, "is too large; seeds go up to"),
        ({"overlap": 16}, "overlap is 16; windows of 16 clips can share 0 to 15"),
        ({"protocol": "paper"}, "unknown protocol 'paper'; known: default, released"),
    ],
)
def test_what_cannot_be_trained_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    toy_cache(tmp_path)
    with pytest.raises(UsageError, match=message):
        train(options(tmp_path, **changes))
    assert not (tmp_path / "runs").exists()


def test_a_cache_without_ratings_is_refused(tmp_path: Path) -> None:
    store = FeatureCache.create(tmp_path / "a", toy_spec(), {})
    for name, partition in (("x", "train"), ("y", "validation")):
        add_recording(store, name, partition, 5, seed=0, rated=False)
    with pytest.raises(
        UsageError, match=r"the train partition .* has no ratings of 'valence', or equal ones only; add recordings"
    ):
        train(options(tmp_path / "a"))
    FeatureCache.create(tmp_path / "b", toy_spec(targets=()), {})
    with pytest.raises(UsageError, match="holds no targets"):
        train(options(tmp_path / "b"))


def test_two_trainings_of_one_run_take_turns(tmp_path: Path) -> None:
    toy_cache(tmp_path)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, context) as executor:
        both = [executor.submit(train, options(tmp_path, epochs=3)) for _ in range(2)]
        (first,), (second,) = (item.result(timeout=120) for item in both)
    assert {first.was_complete, second.was_complete} == {False, True}
    assert dataclasses.replace(first, was_complete=True) == dataclasses.replace(second, was_complete=True)
    (whole,) = train(options(tmp_path, epochs=3, out=tmp_path / "whole"))
    assert_equal_weights(whole.run, first.run)


@pytest.mark.parametrize("lost", [runs.HEAD_FILE, runs.PREDICTIONS_FILE])
def test_a_complete_run_that_lost_a_file_is_trained_again(tmp_path: Path, lost: str) -> None:
    toy_cache(tmp_path)
    (first,) = train(options(tmp_path, epochs=1))
    (Path(first.run) / lost).unlink()
    (second,) = train(options(tmp_path, epochs=1))
    assert not second.was_complete
    assert (Path(second.run) / lost).is_file()


def test_damaged_summaries_and_histories_are_named(tmp_path: Path) -> None:
    toy_cache(tmp_path)
    (first,) = train(options(tmp_path, epochs=1))
    record = runs.read_run(Path(first.run))
    runs.write_run(Path(first.run), dataclasses.replace(record, summary={}))
    with pytest.raises(UsageError, match=r"the summary of .* is damaged .*; remove it and train it again"):
        train(options(tmp_path, epochs=1))
    (Path(first.run) / runs.HISTORY_FILE).write_text("{not json}\n")
    with pytest.raises(UsageError, match=r"history\.jsonl is damaged .*; remove .* and train it again"):
        runs.read_history(Path(first.run))


def test_memory_is_kept_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy_cache(tmp_path)
    events: list[str] = []
    monkeypatch.setattr(train_module, "keep_freed_memory", lambda: events.append("kept"))
    train(options(tmp_path, epochs=1), lambda progress: events.append("progress"))
    assert events[0] == "kept"
    assert "progress" in events


def test_a_fold_is_held_out(tmp_path: Path) -> None:
    store = toy_cache(tmp_path)
    held_out, folders = [], set()
    for fold in ("1/2", "2/2"):
        (summary,) = train(options(tmp_path, epochs=1, fold=fold))
        assert runs.read_run(Path(summary.run)).options["fold"] == fold
        assert Path(summary.run).name == f"seed-0-fold-{fold[0]}-of-2"
        folders.add(Path(summary.run).parent)
        held_out += [item.recording for item in runs.read_predictions(Path(summary.run))]
    rated = {item.name for item in store.recordings() if item.source.partition != "test"}
    assert sorted(held_out) == sorted(rated)
    assert len(folders) == 1
    with pytest.raises(UsageError, match="9 folds of 8 subjects"):
        train(options(tmp_path, epochs=1, fold="1/9"))


def test_what_is_held_out_is_not_trained_on(tmp_path: Path) -> None:
    store = toy_cache(tmp_path)
    for index in (1, 2, 3):
        data = train_module._load_data(options(tmp_path, fold=f"{index}/3"), store)
        trained, held_out = ({item.name for item in part.recordings} for part in (data.train, data.validation))
        assert held_out
        assert not trained & held_out
        assert len(trained | held_out) == 8


def test_a_fold_without_ratings_is_named(tmp_path: Path) -> None:
    store = FeatureCache.create(tmp_path, toy_spec(), {})
    for number in range(3):
        add_recording(store, f"{number}", "train", 30, seed=number, rated=number > 0)
    with pytest.raises(UsageError, match=r"fold ./3, as the validation partition, of .* has no ratings of 'valence'"):
        for fold in ("1/3", "2/3", "3/3"):
            train(options(tmp_path, epochs=1, fold=fold))


@pytest.mark.parametrize("resident", ["no", "ram", "device"])
@pytest.mark.parametrize("compress", ["none", "zstd"])
def test_where_the_maps_lie_changes_no_weight(tmp_path: Path, resident: str, compress: str) -> None:
    homes = [tmp_path / "plain", tmp_path / compress]
    for home, how in zip(homes, ("none", compress), strict=True):
        store = FeatureCache.create(home, toy_spec(views={"count": 2}), {}, how)
        for number, partition in enumerate(("train", "train", "validation")):
            add_recording(store, f"{number}", partition, 30 + number, seed=number)
    (plain,) = train(options(homes[0], epochs=2, noise=0.1, out=tmp_path / "a"))
    (other,) = train(options(homes[1], epochs=2, noise=0.1, out=tmp_path / "b", resident=resident))
    assert not other.was_complete
    assert_equal_weights(plain.run, other.run)
    assert runs.read_run(Path(plain.run)).identity == runs.read_run(Path(other.run)).identity
