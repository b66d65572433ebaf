import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click.testing
import numpy as np
import pytest
import tiny
import torch
from conftest import beep, logging_and_signals_kept, write_video
from tiny import places as places  # fixtures
from tiny import tiny_encoders as tiny_encoders

from avfuse import lengths, planning, registry, sizing
from avfuse.cache import FeatureCache
from avfuse.cli import cli
from avfuse.extract import extract
from avfuse.options import ExtractOptions
from avfuse.planning import ExtractPlan, plan
from avfuse.probing import STAGES, Trial
from avfuse.schema import Failure, UsageError
from avfuse.sizing import Taken, Way
from avfuse.spec import Source

FPS = 25
LENGTHS = {"a": 40, "b": 77, "c": 52}  # frames
pytestmark = pytest.mark.usefixtures("places")
WAYS = [Way("float16", "whole", "none"), Way("uint8", "pooled", "zstd")]


@pytest.fixture(autouse=True)
def few_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep maps in few ways, as all of them take a while."""
    for page in (sizing, planning):
        monkeypatch.setattr(page, "known_ways", lambda: WAYS)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("films")
    for name, num_frames in LENGTHS.items():
        write_video(root / f"{name}.mp4", np.arange(num_frames) / FPS, sound_CS=beep(0.5, num_frames / FPS))
        rows = "".join(f"{i / 100},{-i / 100}\n" for i in range(num_frames))
        (root / f"{name}.csv").write_text(f"valence,arousal\n{rows}")
    return root


@pytest.fixture
def root(tmp_path: Path, films: Path) -> Path:
    made = tmp_path / "root"
    made.mkdir()
    for path in films.iterdir():
        (made / path.name).write_bytes(path.read_bytes())
    return made


def options(root: Path, **changes: Any) -> ExtractOptions:
    return tiny.options(root, **{"min_face_share": 0.0, **changes})


def told(found: ExtractPlan) -> tuple[str, ...]:
    """Return the notes of a plan, but for the one that depends on what else the machine does."""
    return tuple(note for note in found.notes if not note.startswith("The stages took "))


def recording_bytes(store: Path) -> int:
    """Return the bytes of the recordings of a store, without the group that holds them."""
    return sum(path.stat().st_size for path in store.glob("recordings/*/**/*") if path.is_file())


@pytest.mark.parametrize("changes", [{}, {"dtype": "uint8", "maps": "pooled", "compress": "zstd", "views": 2}])
def test_a_plan_says_what_extraction_then_does(root: Path, changes: dict[str, Any]) -> None:
    found = plan(options(root, **changes))
    assert not (root.parent / "cache").exists()
    summary = extract(options(root, **changes))
    assert found.store == summary.store
    assert (found.num_recordings, found.num_to_do) == (summary.num_extracted, 3)
    assert (found.num_present, found.num_set_aside, found.num_unreadable) == (0, 0, 0)
    assert found.num_clips == found.num_probed == summary.num_clips
    assert found.num_minutes == pytest.approx(sum(LENGTHS.values()) / FPS / 60, rel=0.01)
    assert (found.device, found.precision, told(found)) == ("cpu", "fp32", ())
    assert [(item.dtype, item.maps, item.compress) for item in found.sizes] == WAYS
    chosen = found.sizes[1 if changes else 0]
    # Two of three recordings stand for all; sums, scales and lengths of texts differ a little.
    assert chosen.num_bytes == pytest.approx(recording_bytes(Path(summary.store)), rel=0.01)
    assert chosen.num_bytes_per_clip == pytest.approx(chosen.num_bytes / summary.num_clips, abs=0.1)


def test_stages_share_the_time_and_make_up_the_whole(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for page in ("planning", "preparation"):
        monkeypatch.setattr(f"avfuse.{page}.num_cores", lambda: 4)
    found = plan(options(root, num_workers=3, engine="local"))  # one thread each: a core is left idle
    assert tuple(stage.name for stage in found.stages) == STAGES
    assert sum(stage.share for stage in found.stages) == pytest.approx(1)
    cpu_ms = sum(stage.cpu_ms_per_clip for stage in found.stages)
    assert found.total_s == pytest.approx(cpu_ms / 1e3 * found.num_clips / 3)
    for stage in found.stages:
        assert stage.share == pytest.approx(stage.cpu_ms_per_clip / cpu_ms)
    units = [stage.unit_speed.partition(" ")[2] for stage in found.stages]
    assert units == ["MB/s", "frames/s", "frames/s", "clips/s", "clips/s", "MB/s"]
    frames_per_clip = sum(LENGTHS.values()) / found.num_clips
    speed = float(found.stages[1].unit_speed.partition(" ")[0].replace(",", ""))
    assert speed == pytest.approx(1e3 * frames_per_clip / found.stages[1].cpu_ms_per_clip, rel=0.1)


def test_what_is_there_or_set_aside_is_no_more_to_do(root: Path, places: Path) -> None:
    (root / "d.mp4").write_text("no video")
    (root / "b.mp4").rename(root.parent / "b.mp4")
    summary = extract(options(root))
    (root.parent / "b.mp4").rename(root / "b.mp4")
    before = {path: path.stat().st_mtime_ns for path in Path(summary.store).parent.rglob("*")}
    found = plan(options(root))
    assert (found.num_recordings, found.num_present, found.num_set_aside, found.num_to_do) == (4, 2, 1, 1)
    assert (found.num_clips, found.num_probed) == (77 // 8, 77 // 8)
    assert told(found)[0].startswith("What is there or set aside is told by name")
    again = plan(options(root, retry_failed=True))
    assert (again.num_set_aside, again.num_unreadable, again.num_to_do) == (0, 1, 1)
    assert {path: path.stat().st_mtime_ns for path in Path(summary.store).parent.rglob("*")} == before
    assert list(places.iterdir()) == []


def test_where_all_is_there_no_network_is_placed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extract(options(root))

    def refuse(*_: object) -> None:
        raise AssertionError("nothing is to be encoded")

    monkeypatch.setattr(tiny.BrightnessEncoder, "place", refuse)
    found = plan(options(root))
    assert (found.num_present, found.num_to_do, found.num_clips, found.num_probed) == (3, 0, 0, 0)
    assert (found.stages, found.sizes, found.total_s) == ((), (), 0.0)


def test_a_recording_that_is_damaged_is_made_again(root: Path) -> None:
    summary = extract(options(root))
    (Path(summary.store) / "recordings" / "b" / "audio" / "c" / "0" / "0").unlink()
    found = plan(options(root), probe_s=0.0)
    assert (found.num_present, found.num_to_do) == (2, 1)


def test_where_nothing_can_be_measured_the_time_is_not_known(root: Path) -> None:
    found = plan(options(root), probe_s=0.0)
    assert (found.num_to_do, found.num_probed, found.stages, found.sizes) == (3, 0, (), ())
    assert math.isnan(found.total_s)
    assert told(found) == ("No recording could be measured: time and bytes are not known.",)
    for path in root.glob("*.mp4"):
        path.write_text(f"no video {path.stem}")
    found = plan(options(root))
    assert (found.num_unreadable, found.num_to_do, found.num_clips, found.total_s) == (3, 0, 0, 0.0)
    assert told(found) == ("Recordings whose headers say that they cannot be used: unreadable (3).",)


def test_a_sample_stands_for_many(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lengths, "MAX_HEADERS", 1)
    found = plan(options(root))
    assert (found.num_to_do, found.num_probed) == (3, 52 // 8)
    total_bytes = sum(path.stat().st_size for path in root.glob("*.mp4"))
    assert found.num_clips == round(52 // 8 * total_bytes / (root / "c.mp4").stat().st_size)
    assert told(found)[0].startswith("Minutes, clips and what cannot be used are estimates: 1 headers of 3 recordings")


def test_recordings_that_fail_are_told(root: Path) -> None:
    (root / "b.csv").write_text("valence,arousal\n1,2\n")
    found = plan(options(root))
    assert found.num_probed == 40 // 8 + 52 // 8
    assert told(found) == ("Recordings that were to be measured cannot be used: annotation_mismatch (1).",)


def test_large_files_are_not_measured(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = {path.stem: path.stat().st_size for path in root.glob("*.mp4")}
    monkeypatch.setattr(planning, "MAX_TRIED_BYTES", size["c"])
    found = plan(options(root))
    assert (found.num_probed, found.num_clips) == (40 // 8 + 52 // 8, 40 // 8 + 77 // 8 + 52 // 8)
    assert told(found) == ("Of files larger than 0.0 GB none is measured.",)
    monkeypatch.setattr(planning, "MAX_TRIED_BYTES", 10)
    found = plan(options(root))
    assert found.num_probed == 40 // 8
    assert told(found) == ("Of files larger than 0.0 GB only the smallest is measured.",)


def test_waiting_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Trial(5, 5, dict.fromkeys(STAGES, 1.0), dict.fromkeys(STAGES, 3.0), dict.fromkeys(STAGES, 1.0), {})
    tried = [dataclasses.replace(trial, sizes=dict.fromkeys(WAYS, Taken(10.0, 100.0)))]
    monkeypatch.setattr(planning, "try_stages", lambda *_: (tried, {}))
    found = plan(options(root, num_workers=1))
    assert found.notes == (
        "The stages took 3.0 times as long as they computed, kept by other programs or by the disk; the time for all "
        "is that of processors that have nothing else to do.",
    )
    assert [item.num_bytes for item in found.sizes] == [3 * 10 + 20 * 100] * 2
    tried[0] = dataclasses.replace(trial, wall_s=trial.cpu_s, sizes=tried[0].sizes)
    assert plan(options(root)).notes == ()


def test_what_is_measured_here_for_workers_elsewhere_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.ENGINES, "ray", "crews:GpuEngine")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = plan(options(root, engine="ray", device="auto"))
    assert (found.device, found.precision, found.num_workers) == ("cuda:1", "bf16", 0)
    assert told(found) == (
        "Engine 'ray' has workers elsewhere: time and bytes were measured on this machine (cpu), not where the "
        "workers are (cuda:1).",
        "Engine 'ray' takes as many workers as it finds room for; the time is that of this machine alone.",
    )
    assert math.isfinite(found.total_s)


def test_a_share_is_planned_alone(root: Path) -> None:
    shares = [plan(options(root, shard=f"{i}/2"), probe_s=0.0) for i in (1, 2)]
    assert [share.num_recordings for share in shares] == [2, 1]
    assert sum(share.num_clips for share in shares) == sum(length // 8 for length in LENGTHS.values())


def test_what_extraction_would_refuse_is_refused(root: Path) -> None:
    with pytest.raises(UsageError, match="'tiny_audio' is for audio, not for video"):
        plan(options(root, video_encoder="tiny_audio"))
    with pytest.raises(UsageError, match="is named like a file"):
        plan(options(root, cache=root.parent / "cache.h5"))


def test_items_are_taken_from_the_middle_outwards() -> None:
    spread = planning._spread
    assert spread(range(8)) == [4, 2, 6, 1, 5, 3, 7, 0]
    assert spread("a") == ["a"]
    for count in range(1, 40):
        assert sorted(spread(range(count))) == list(range(count))
        assert spread(range(count))[0] == count // 2


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Iterator[click.testing.CliRunner]:
    """Run commands, which know encoders by the names of the real ones alone."""
    for name, tiny_name in (("r3d", "tiny_video"), ("spectrogram_resnet", "tiny_audio")):
        monkeypatch.setitem(registry.ENCODERS, name, tiny.ENCODERS[tiny_name])
    with logging_and_signals_kept():
        yield click.testing.CliRunner()


def arguments(root: Path, *more: str) -> list[str]:
    named = {name: value for name, value in tiny.KNOBS.items() if not name.endswith("_encoder")}
    knobs = [part for name, value in named.items() for part in (f"--{name.replace('_', '-')}", value)]
    return ["extract", str(root), "--cache", str(root.parent / "cache"), "--dry-run", *knobs, *more]


def test_the_command_prints_the_plan(root: Path, runner: click.testing.CliRunner) -> None:
    shown = runner.invoke(cli, arguments(root, "--engine", "local", "--num-workers", "3"), catch_exceptions=False)
    assert shown.exit_code == 0
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in shown.stdout.splitlines() if "│" in line]
    shown_as = {row[0]: row[1:] for row in rows}
    assert shown_as["to extract"] == ["3"]
    assert shown_as["clips of these"] == ["20"]
    assert shown_as["computed on"] == ["cpu, fp32, 3 workers"]
    assert set(STAGES) <= set(shown_as)
    assert ["uint8", "pooled", "zstd"] in [row[:3] for row in rows]
    assert not (root.parent / "cache").exists()


def test_the_command_prints_one_object(root: Path, runner: click.testing.CliRunner) -> None:
    FeatureCache.create(root.parent / "cache", plan_spec(root), {}).ledger.record(
        Failure("a", "unreadable", "no video"), Source("train", "a", "a.mp4", "0" * 64, None)
    )
    for path in root.glob("[bc].mp4"):
        path.write_text(f"no video {path.stem}")
    shown = runner.invoke(cli, arguments(root, "--json"), catch_exceptions=False)
    assert shown.exit_code == 0
    found = json.loads(shown.stdout)
    assert set(found) == {field.name for field in dataclasses.fields(ExtractPlan)}
    assert (found["num_set_aside"], found["num_unreadable"], found["num_to_do"]) == (1, 2, 0)
    assert (found["total_s"], found["stages"], found["sizes"]) == (0.0, [], [])


def plan_spec(root: Path) -> Any:
    """Return the spec of the store that a plan speaks of."""
    return planning.prepare(options(root)).spec


@pytest.mark.parametrize(("decode", "expected_s"), [("cpu", 10 * 2.5 / 4), ("gpu", 10 * 2.0)])
def test_what_a_gpu_decodes_costs_no_core(monkeypatch: pytest.MonkeyPatch, decode: str, expected_s: float) -> None:
    """Four cores decode and write in 2.5 s a clip; a GPU needs 0.6 s for the rest, and 2 s for decoding beside it."""
    monkeypatch.setattr(planning, "num_cores", lambda: 4)
    seconds = {"read and digest": 0.2, "decode": 2.0, "detect and align": 0.3, "encode picture": 0.2}
    seconds |= {"encode sound": 0.1, "write": 0.3}
    costs = {stage: planning._Cost(value, value, 1.0) for stage, value in seconds.items()}
    networks = SimpleNamespace(device=torch.device("cuda", 0), detector=object())
    ready = SimpleNamespace(networks=networks, num_workers=1, trial_options=SimpleNamespace(decode=decode))
    extent = SimpleNamespace(num_clips=10)
    assert planning._total_s(costs, ready, extent) == pytest.approx(expected_s)  # type: ignore[arg-type]
