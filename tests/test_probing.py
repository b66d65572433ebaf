from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from conftest import beep, write_video
from tiny import options
from tiny import places as places  # fixtures
from tiny import tiny_encoders as tiny_encoders

from avfuse import probing, registry, sizing
from avfuse.device import choose_device
from avfuse.networks import Networks
from avfuse.options import ExtractOptions
from avfuse.probing import STAGES, Trial, try_stages
from avfuse.schema import Recording
from avfuse.sizing import Way

WAYS = [Way("float16", "whole", "none"), Way("uint8", "pooled", "zstd")]
FPS = 25


@pytest.fixture(autouse=True)
def few_ways(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep maps in few ways, as all of them take a while."""
    monkeypatch.setattr(sizing, "known_ways", lambda: WAYS)


def film(path: Path, num_frames: int = 40, has_sound: bool = True) -> Recording:
    path.parent.mkdir(parents=True, exist_ok=True)
    sound = beep(0.5, num_frames / FPS) if has_sound else None
    write_video(path, np.arange(num_frames) / FPS, sound_CS=sound)
    return Recording(path.stem, path, "train", path.stem)


def measure(
    recordings: list[tuple[Recording, str]], knobs: ExtractOptions, limit_s: float = 100.0
) -> tuple[list[Trial], Counter[str]]:
    networks = Networks.make(knobs, choose_device(knobs.device))
    corpus = registry.load("corpus", knobs.corpus)(knobs.root)
    return try_stages(knobs, corpus, networks, recordings, limit_s, lambda done, total, told: None)


def test_every_stage_of_every_recording_is_measured(tmp_path: Path, places: Path) -> None:
    root = tmp_path / "root"
    given = [film(root / "a.mp4"), film(root / "b.mp4", 77), film(root / "c.mp4", 20)]
    num_threads = torch.get_num_threads()
    trials, failures = measure([(item, "") for item in given], options(root, batch_size=2))
    assert [(trial.num_clips, trial.num_probed) for trial in trials] == [(5, 5), (9, 9), (2, 2)]
    assert failures == {}
    for trial, recording, num_frames in zip(trials, given, (40, 77, 20), strict=True):
        assert set(trial.cpu_s) == set(trial.wall_s) == set(trial.units) == set(STAGES)
        assert all(trial.cpu_s[stage] > 0 and trial.wall_s[stage] > 0 for stage in STAGES)
        assert trial.units["read and digest"] * trial.num_clips == pytest.approx(recording.path.stat().st_size)
        assert trial.units["decode"] * trial.num_clips == pytest.approx(num_frames)
        assert trial.units["encode sound"] == 1
    # The first ones are kept in every way.
    assert [set(trial.sizes) for trial in trials] == [set(WAYS), set(WAYS), set()]
    assert torch.get_num_threads() == num_threads
    assert list(places.iterdir()) == []


def test_a_stage_is_charged_with_its_own_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(self: object, clips: torch.Tensor) -> torch.Tensor:
        sum(range(200_000 * len(clips)))  # a while of processor, in the thread of the encoders
        return torch.zeros(len(clips), 8, 2, 2)

    monkeypatch.setattr(tiny.BrightnessEncoder, "forward", slow)
    (trial,), _ = measure([(film(tmp_path / "root" / "a.mp4"), "")], options(tmp_path / "root", views=3))
    (other,), _ = measure([(film(tmp_path / "root" / "a.mp4"), "")], options(tmp_path / "root", views=1))
    assert trial.cpu_s["encode picture"] > 2 * other.cpu_s["encode picture"] > 4 * other.cpu_s["encode sound"]


def test_of_a_long_recording_the_first_clips_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "MAX_CLIPS", 4)
    recording = film(tmp_path / "root" / "a.mp4", 120)
    (trial,), _ = measure([(recording, "")], options(tmp_path / "root", batch_size=2))
    assert (trial.num_clips, trial.num_probed) == (15, 4)
    assert trial.units["decode"] == 8  # frames of a clip
    assert trial.units["read and digest"] == recording.path.stat().st_size / 15


def test_no_other_recording_is_begun_when_the_time_is_up(tmp_path: Path) -> None:
    given = [(film(tmp_path / "root" / f"{name}.mp4"), "") for name in "ab"]
    assert measure(given, options(tmp_path / "root"), limit_s=0.0) == ([], {})
    trials, _ = measure(given, options(tmp_path / "root", batch_size=2), limit_s=1e-3)
    assert [trial.num_probed for trial in trials] == [2]  # a batch, which had to be made to know


def test_what_cannot_be_used_is_passed_over(tmp_path: Path, places: Path) -> None:
    root = tmp_path / "root"
    short, silent = film(root / "short.mp4", 5), film(root / "silent.mp4", has_sound=False)
    gone = Recording("gone", root / "gone.mp4", "train", "gone")
    given = [(item, "") for item in (short, gone, silent, film(root / "a.mp4"))]
    trials, failures = measure(given, options(root))
    assert failures == {"too_short": 1, "missing_file": 1, "no_audio_stream": 1}
    assert [trial.num_clips for trial in trials] == [5]
    assert list(places.iterdir()) == []


def test_a_modality_that_is_missing_is_not_encoded(tmp_path: Path) -> None:
    root = tmp_path / "root"
    silent = film(root / "silent.mp4", has_sound=False)
    heard = Recording("heard", write_video(root / "heard.mp4", [], sound_CS=beep(0.5, 2.0)), "train", "heard")
    knobs = options(root, allow_missing=True)
    trials, failures = measure([(silent, "audio"), (heard, "video")], knobs)
    assert failures == {}
    assert [trial.num_probed for trial in trials] == [5, 6]
    assert all(set(trial.sizes) == set(WAYS) for trial in trials)


def test_an_interruption_leaves_nothing_behind(tmp_path: Path, places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [(film(tmp_path / "root" / "a.mp4"), "")]
    num_threads, seen = torch.get_num_threads(), []

    def interrupted(*_: object) -> None:
        seen.extend(places.iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr(probing.TrialStores, "sizes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure(given, options(tmp_path / "root"))
    assert len(seen) == 1
    assert list(places.iterdir()) == []
    assert torch.get_num_threads() == num_threads


def test_a_disk_without_room_is_no_recordings_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(probing.TrialStores, "write", full)
    with pytest.raises(OSError, match="No space left"):
        measure([(film(tmp_path / "root" / "a.mp4"), "")], options(tmp_path / "root"))


@pytest.mark.gpu
def test_on_a_gpu_the_stages_are_measured_too(tmp_path: Path) -> None:
    given = [(film(tmp_path / "root" / "a.mp4"), "")]
    (trial,), failures = measure(given, options(tmp_path / "root", device="cuda"))
    assert failures == {}
    assert trial.num_probed == 5
    assert all(trial.wall_s[stage] > 0 for stage in STAGES)
