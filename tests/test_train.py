import dataclasses
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy import add_recording, toy_cache, toy_spec

from avfuse import checkpoint, registry, runs
from avfuse import train as train_module
from avfuse.cache import FeatureCache
from avfuse.options import TrainOptions
from avfuse.schema import UsageError
from avfuse.train import TrainProgress, train


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
    assert "device" not in record.options
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


@pytest.mark.parametrize("at", [(1, 0.3), (2, 1.0), (3, 0.6)])
def test_a_stopped_training_resumes_to_the_same_weights(tmp_path: Path, at: tuple[int, float]) -> None:
    toy_cache(tmp_path)
    (whole,) = train(options(tmp_path, out=tmp_path / "whole"))

    def stop(progress: TrainProgress) -> None:
        if (progress.epoch, progress.share_of_epoch) >= at:
            raise Killed

    stopped = options(tmp_path, out=tmp_path / "stopped")
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
        )
    }
    assert len(places) == 5


def test_a_default_given_is_the_same_run(tmp_path: Path) -> None:
    toy_cache(tmp_path)
    (first,) = train(options(tmp_path, epochs=1))
    (second,) = train(options(tmp_path, epochs=1, head_option=("joint_blstm=true", "dropout=0.5")))
    assert second == dataclasses.replace(first, was_complete=True)


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


def test_every_epoch_has_an_order_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy_cache(tmp_path)
    orders: list[list[int]] = []
    batches = train_module.WindowedPartition.batches

    def spy(partition: Any, places: Any, size: int) -> Any:
        orders.append(list(places))
        return batches(partition, places, size)

    monkeypatch.setattr(train_module.WindowedPartition, "batches", spy)
    train(options(tmp_path, epochs=2))
    first, _, second, *_ = orders  # training, validation, training
    assert sorted(first) == sorted(second)
    assert first != sorted(first)
    assert first != second


def test_the_gradient_is_clipped(tmp_path: Path) -> None:
    toy_cache(tmp_path)
    # A step of plain Adam does not depend on the scale of its gradient, but two of different scale do.
    runs_of = [train(options(tmp_path, epochs=2, gradient_clip=clip))[0].run for clip in (0.0, 1e-3)]
    first, second = (weights(run) for run in runs_of)
    assert any(not torch.equal(value, second[name]) for name, value in first.items())


def test_a_resumed_schedule_remembers_the_plateau(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy_cache(tmp_path)
    monkeypatch.setattr(train_module, "_score", lambda _: {"valence": 0.5, "arousal": 0.5})
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
    monkeypatch.setattr(train_module, "_score", lambda _: {"valence": 0.5, "arousal": 0.5})
    (summary,) = train(options(tmp_path, learning_rate=1e-3, epochs=6, patience=10, plateau=1))
    rates = [item["learning_rate"] for item in runs.read_history(Path(summary.run))]
    # The first epoch is the best; every second one without a better CCC halves the step size after it.
    np.testing.assert_allclose(rates, [1e-3, 1e-3, 1e-3, 5e-4, 5e-4, 2.5e-4])


def test_bf16_trains_too(tmp_path: Path) -> None:
    toy_cache(tmp_path)
    (summary,) = train(options(tmp_path, amp="bf16", epochs=20, patience=20))
    assert summary.mean_ccc > 0.6
    assert all(value.dtype != torch.bfloat16 for value in weights(summary.run).values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": "sum"}, "unknown head 'sum'; known: recursive_joint_attention, concat"),
        (
            {"head_option": ("depth=3",)},
            r"head 'concat' has no argument 'depth'; it takes: unimodal_blstm=True, joint_blstm=True, dropout=0\.5$",
        ),
        ({"head_option": ("num_clips=3",)}, "has no argument 'num_clips'"),
        ({"head_option": ("dropout=much",)}, r"dropout=much is not a float such as 0\.5"),
        ({"head_option": ("joint_blstm=1",)}, "joint_blstm=1 is not a bool such as True"),
        ({"head_option": ("depth",)}, "'depth' is not KEY=VALUE"),
        ({"head": "recursive_joint_attention", "head_option": ("recursions=0",)}, "recursions is 0"),
        ({"spacing": 12}, "--spacing 12 is not a multiple of 8"),
        ({"device": "cuda:77"}, "device 'cuda:77' is not here"),
        ({"head_option": ("dropout=2",)}, "dropout is 2; allowed are numbers from 0"),
        ({"seed": (2**60,)}, "is too large; seeds go up to"),
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
