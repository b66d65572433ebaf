from pathlib import Path

import crews
import numpy as np
import pytest
import torch
from test_extract import FPS, face_video
from tiny import options
from tiny import tiny_encoders as tiny_encoders  # a fixture

from avfuse import media, registry
from avfuse.preparation import prepare
from avfuse.schema import UsageError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus") / "root"
    for number in range(7):
        face_video(root / f"{number}.mp4", np.arange(9 + 5 * number) / FPS)
    return root


def names(root: Path, shard: str | None) -> list[str]:
    return [recording.name for recording in prepare(options(root, shard=shard)).share]


def test_shares_are_disjoint_cover_all_and_are_dealt_by_size(root: Path) -> None:
    everything = names(root, None)
    assert sorted(everything) == [str(number) for number in range(7)]
    shares = [names(root, f"{i}/3") for i in (1, 2, 3)]
    assert sorted(name for share in shares for name in share) == sorted(everything)
    largest = sorted(everything, key=lambda name: -(root / f"{name}.mp4").stat().st_size)
    assert shares == [largest[i::3] for i in range(3)]
    assert names(root, "1/1") == everything
    assert [names(root, f"{i}/9") for i in (8, 9)] == [[], []]  # more jobs than recordings


@pytest.mark.parametrize(
    ("given", "share"),
    [
        ({}, None),
        ({"ID": "0", "COUNT": "2"}, "1/2"),
        ({"ID": "1", "COUNT": "2", "MIN": "0", "STEP": "1"}, "2/2"),
        ({"ID": "5", "COUNT": "3", "MIN": "1", "STEP": "2"}, "3/3"),
        ({"ID": "4", "COUNT": "1", "MIN": "4", "STEP": "1"}, None),
        ({"ID": "1"}, None),
    ],
)
def test_a_job_of_an_array_takes_its_share(
    root: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], share: str | None
) -> None:
    expected = names(root, share)
    for name, value in given.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    assert names(root, None) == expected
    assert names(root, "2/7") == names(root, "2/7")
    assert len(names(root, "2/7")) == 1  # what is given wins


@pytest.mark.parametrize(
    "given",
    [
        {"ID": "3", "COUNT": "3", "MIN": "3", "MAX": "8", "STEP": "1"},  # --array=3,7,8
        {"ID": "7", "COUNT": "3", "MIN": "3", "MAX": "8", "STEP": "1"},
        {"ID": "2", "COUNT": "2", "MIN": "1", "STEP": "2"},
        {"ID": "5", "COUNT": "2", "MIN": "1", "STEP": "2"},
    ],
)
def test_a_job_of_an_uneven_array_is_not_given_a_share_by_guess(
    root: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str]
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    with pytest.raises(UsageError, match=f"SLURM_ARRAY_TASK_ID={given['ID']}, .*nothing tells .*--shard I/N"):
        names(root, None)
    assert len(names(root, "1/1")) == 7


def test_what_is_prepared_has_opened_no_video(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "open_file", lambda path: pytest.fail(f"{path} was opened"))
    ready = prepare(options(root, precision="auto", num_workers=3, engine="local"))
    assert ready.options.precision in ("fp32", "bf16")
    assert ready.spec.precision == ready.options.precision
    assert ready.num_workers == 3
    assert len(ready.share) == len(ready.recordings) == 7


def test_workers_are_no_more_than_recordings(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = "local"
    monkeypatch.setattr("avfuse.preparation.num_cores", lambda: 64)
    assert prepare(options(root, engine=engine)).num_workers == 7
    assert prepare(options(root, engine=engine, shard="1/7")).num_workers == 1
    job = prepare(options(root, engine=engine)).job(root)
    assert job.num_threads == 64 // 7
    alone = prepare(options(root, engine="serial", num_workers=5))
    assert (alone.num_workers, alone.job(root).num_threads) == (1, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine_option": ("speed=9",)}, "engine 'serial' has no argument 'speed'"),
        ({"engine": "local", "engine_option": ("stall_s",)}, "'stall_s' is not KEY=VALUE"),
        ({"video_encoder": "tiny_audio"}, "is for audio, not for video"),
    ],
)
def test_what_cannot_be_used_is_refused(root: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        prepare(options(root, **changes))


@pytest.fixture
def _gpu_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have an engine whose workers have a GPU, from a machine that has none."""
    monkeypatch.setitem(registry.ENGINES, "ray", "crews:GpuEngine")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.mark.usefixtures("_gpu_engine")
@pytest.mark.parametrize("changes", [{"device": "auto"}, {"device": "cuda"}, {"device": "cuda", "decode": "gpu"}])
def test_what_is_made_elsewhere_is_described_there(root: Path, changes: dict[str, str]) -> None:
    given = options(root, engine="ray", num_workers=3, **changes)
    ready = prepare(given)
    assert (ready.device, ready.options.precision, ready.spec.precision) == ("cuda:1", "bf16", "bf16")
    assert (ready.spec.libraries["device"], ready.spec.libraries["batch_size"]) == ("cuda", "64")
    assert (ready.options.device, ready.options.decode) == (given.device, given.decode)  # for the workers
    trial = ready.trial_options
    assert (ready.networks.device.type, trial.precision, trial.decode) == ("cpu", "fp32", "cpu")
    assert (ready.num_workers, ready.job(root).num_threads) == (3, None)
    assert prepare(options(root, engine="ray", **changes)).num_workers == 0  # only the engine knows


@pytest.mark.usefixtures("_gpu_engine")
def test_workers_that_are_here_are_asked_only_where_a_gpu_is(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = options(root, engine="ray", engine_option=("is_here=true",))
    assert prepare(given).device == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(crews.GpuEngine, "ask", lambda *_: pytest.fail("was asked"))
    with pytest.raises(pytest.fail.Exception, match="was asked"):
        prepare(given)
