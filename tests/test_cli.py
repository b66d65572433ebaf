import contextlib
import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import transcription
from conftest import logging_and_signals_kept, write_video
from test_extract import FACE, FPS, face_video, write_trace
from toy import left_aside, toy_cache

from avfuse import registry
from avfuse.cache import FeatureCache
from avfuse.cli import cli, main
from avfuse.options import (
    AuditOptions,
    DemoOptions,
    ExtractOptions,
    ImportOptions,
    PredictOptions,
    ReportOptions,
    TrainOptions,
)
from avfuse.schema import UsageError

Run = Callable[..., tuple[int, str, str]]
TINY = (
    "--video-encoder",
    "tiny_video",
    "--audio-encoder",
    "tiny_audio",
    "--video-weights",
    "x",
    "--audio-weights",
    "x",
)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Call the command line as a shell would: (exit code, standard output, standard error)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["avfuse", *map(str, arguments)])
        with pytest.raises(SystemExit) as leaving:
            main()
        shown = capsys.readouterr()
        return int(leaving.value.code or 0), shown.out, shown.err

    with logging_and_signals_kept():
        yield call


@pytest.fixture
def _tiny_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, row in tiny.ENCODERS.items():
        monkeypatch.setitem(registry.ENCODERS, name, row)
    parameters = {parameter.name: parameter for parameter in cli.commands["extract"].params}
    for name in ("video_encoder", "audio_encoder"):
        monkeypatch.setattr(parameters[name].type, "choices", tuple(registry.ENCODERS))


def aff_wild2(root: Path) -> Path:
    """Lay out a corpus with one recording to train on and one to validate on."""
    for name, folder, beep_at_s in (("one", "Train_Set", 1.0), ("two", "Validation_Set", 0.5)):
        face_video(root / "videos" / f"{name}.mp4", np.arange(40) / FPS, beep_at_s=beep_at_s)
        annotation = root / "annotations" / "VA_Estimation_Challenge" / folder / name
        annotation.parent.mkdir(parents=True)
        write_trace(annotation, 40)
        annotation.with_suffix(".csv").rename(annotation.with_suffix(".txt"))
    return root


def test_help_names_every_command_and_option(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    commands = {
        "demo": DemoOptions,
        "audit": AuditOptions,
        "extract": ExtractOptions,
        "fuse-train": TrainOptions,
        "predict": PredictOptions,
        "report": ReportOptions,
        "checkpoint import": ImportOptions,
    }
    assert set(cli.commands) == {command.partition(" ")[0] for command in commands} | {"cache"}
    for command, options in commands.items():
        assert command.partition(" ")[0] in out
        code, text, _ = run(*command.split(), "--help")
        assert code == 0
        for field in dataclasses.fields(options):
            shown = field.metadata["argument"] or f"--{field.name.replace('_', '-')}"
            assert shown in text
    assert run("--version")[1].startswith("avfuse, version ")


@pytest.mark.usefixtures("_tiny_encoders")
def test_from_videos_to_a_table(run: Run, tmp_path: Path) -> None:
    root, cache = aff_wild2(tmp_path / "root"), tmp_path / "cache"
    code, out, err = run("extract", root, "--cache", cache, *TINY)
    assert code == 0
    assert "extracted now" in out
    assert "2/2 recordings" in err
    code, out, _ = run("-q", "extract", root, "--cache", cache, *TINY, "--json")
    summary = json.loads(out)
    assert (code, summary["num_present"], summary["num_extracted"], summary["face_share"]) == (0, 2, 0, None)
    assert run("-q", "fuse-train", "--cache", cache, "--head", "audio_only", "--epochs", 1)[0] == 0
    train = ("fuse-train", "--cache", cache, "--head", "concat", "--epochs", 2, "--seed", 0, "--seed", 1)
    code, out, err = run(*train)
    assert code == 0
    assert "seed 1 epoch 2/2" in err
    assert "CCC valence" in err
    code, out, _ = run("-q", *train, "--json")
    trained = json.loads(out)["runs"]
    assert [item["seed"] for item in trained] == [0, 1]
    assert all(item["was_complete"] for item in trained)
    code, out, _ = run("report", Path(trained[0]["run"]).parent, "--format", "json")
    rows = json.loads(out)["rows"]
    assert [(row["head"], row["target"], row["seeds"]) for row in rows] == [
        ("concat", t, 2) for t in ("valence", "arousal")
    ]
    assert rows[0]["ccc_mean"] == pytest.approx(np.mean([item["ccc"]["valence"] for item in trained]))
    code, out, _ = run(
        "predict",
        trained[0]["run"],
        "--cache",
        cache,
        "--partition",
        "validation",
        "--submission",
        tmp_path / "submission",
        "--json",
    )
    assert (code, json.loads(out)["num_submission_rows"]) == (0, 40)
    code, out, _ = run(
        "predict",
        trained[0]["run"],
        "--cache",
        cache,
        "--partition",
        "validation",
        "--csv",
        tmp_path / "predictions.csv",
    )
    assert (code, len((tmp_path / "predictions.csv").read_text().splitlines())) == (0, 41)
    assert "recordings (validation)" in out
    code, out, _ = run("report", cache / "runs", "--out", tmp_path / "table.md")
    assert (code, out) == (0, "")
    assert (tmp_path / "table.md").read_text().startswith("#")


def test_published_weights_become_a_run(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "published.pt"
    weights = transcription.random_weights("joint_cross_attention_tbiom", torch.Generator().manual_seed(0))
    torch.save({"net": weights}, file)
    code, out, _ = run("checkpoint", "import", file, "--out", tmp_path / "run")
    assert code == 0
    for words in ("joint_cross_attention", "form=released", "8,586,323", "valence, arousal"):
        assert words in out
    code, out, _ = run("-q", "checkpoint", "import", file, "--out", tmp_path / "run", "--json")
    assert (code, json.loads(out)["head"]) == (0, "joint_cross_attention")
    torch.save({"net": {**weights, "extra": torch.zeros(1)}}, file)
    code, out, err = run("checkpoint", "import", file, "--out", tmp_path / "other")
    assert (code, out) == (2, "")
    assert err == f"Error: {file} does not fit: parameter 'extra' is unexpected\n"


@pytest.mark.usefixtures("_tiny_encoders")
def test_recordings_that_fail_are_shown_and_give_3(run: Run, tmp_path: Path) -> None:
    root = aff_wild2(tmp_path / "root")
    train_set = root / "annotations" / "VA_Estimation_Challenge" / "Train_Set"
    for name, content in (("empty", b""), ("text", b"no video at all")):
        (root / "videos" / f"{name}.mp4").write_bytes(content)
        (train_set / f"{name}.txt").write_text("valence,arousal\n0,0\n")
    face_video(root / "videos" / "header.mp4", np.arange(40) / FPS)
    (train_set / "header.txt").write_text("0.1,0.2\n" * 40)
    write_video(root / "videos" / "silent.mp4", np.arange(40) / FPS, lambda i: FACE)
    (train_set / "silent.txt").write_text("valence,arousal\n" + "0,0\n" * 40)
    code, out, _ = run("extract", root, "--cache", tmp_path / "cache", *TINY)
    assert code == 3
    for words in (
        "empty (0 bytes)",
        "not a video that can be opened",
        "header.txt, line 1",
        "no audio stream",
        "failed",
    ):
        assert words in " ".join(out.split())
    code, out, _ = run("-q", "extract", root, "--cache", tmp_path / "cache", *TINY, "--json")
    assert code == 3
    assert {item["recording"] for item in json.loads(out)["failures"]} == {"empty", "text", "header", "silent"}


def messages(tmp_path: Path) -> dict[str, tuple[tuple[object, ...], str]]:
    """Return what a newcomer gets wrong, and words of the one line that says so."""
    (tmp_path / "nothing").mkdir()
    bare = tmp_path / "bare" / "annotations" / "VA_Estimation_Challenge"
    for folder in ("Train_Set", "Validation_Set"):
        (bare / folder).mkdir(parents=True)
    (tmp_path / "file").touch()
    aff_wild2(tmp_path / "root")
    toy_cache(tmp_path / "toy")
    extract = ("--cache", tmp_path / "cache", *TINY)
    return {
        "no such folder": (("extract", tmp_path / "nowhere", *extract), "nowhere"),
        "wrong folder": (("extract", tmp_path / "nothing", *extract), "annotations"),
        "no annotations": (("extract", tmp_path / "bare", *extract), "no annotations"),
        "no videos": (("extract", tmp_path / "nothing", "--corpus", "folder", *extract), "no video"),
        "unknown corpus": (("extract", tmp_path / "root", "--corpus", "sewa", *extract), "'aff_wild2', 'folder'"),
        "cache that is a file": (
            ("extract", tmp_path / "root", *TINY, "--cache", tmp_path / "file"),
            "cannot be written to",
        ),
        "no features": (("fuse-train", "--cache", tmp_path / "nothing"), "make them with: avfuse extract"),
        "unknown head": (("fuse-train", "--cache", tmp_path / "toy", "--head", "sum"), "'recursive_joint_attention'"),
        "wrong option": (
            ("fuse-train", "--cache", tmp_path / "toy", "--head-option", "t=3"),
            "has no argument 't'; it takes: form=paper, recursions=2",
        ),
        "no runs": (("report", tmp_path / "nothing"), "train one with: avfuse fuse-train"),
        "no argument": (("report",), "Missing argument"),
        "no finite number": (
            ("fuse-train", "--cache", tmp_path / "toy", "--learning-rate", "nan"),
            "not a finite number",
        ),
        "a file for a run": (("report", tmp_path / "file"), "is a file; give a run"),
        "bad number": (("extract", tmp_path / "root", "--hop", "0"), "x>=1"),
        "weights that are not here": (("extract", tmp_path / "root", "--cache", tmp_path / "c"), "r3d_18-b3b3357e.pth"),
    }


@pytest.mark.usefixtures("_tiny_encoders")
def test_what_a_newcomer_gets_wrong_is_said_in_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for what, (arguments, words) in messages(tmp_path).items():
        code, out, err = run(*arguments)
        assert code == 2, what
        assert out == "", what
        assert err.startswith("Error: "), (what, err)
        assert err.count("\n") == 1, (what, err)
        assert words in err, (what, err)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ("cache export s3://b/x.h5", "FILE"),
        ("cache import s3://b/x.h5", "FILE"),
        ("cache shrink --maps pooled --run s3://b/run", "--run"),
        ("fuse-train --out s3://b/run", "--out"),
        ("demo s3://b/demo", "ROOT"),
        ("extract s3://b/videos", "ROOT"),
        ("audit s3://b/videos", "ROOT"),
        ("report s3://b/runs", "RUN..."),
        ("report runs --out s3://b/table.md", "--out"),
        ("predict runs --csv s3://b/table.csv", "--csv"),
        ("predict runs --submission s3://b/folder", "--submission"),
        ("checkpoint import s3://b/weights.pt", "FILE"),
    ],
)
def test_an_address_is_refused_where_only_a_path_will_do(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    address = next(word for word in arguments.split() if "://" in word)
    told = f"Error: Invalid value for '{what}': '{address}' is an address, and only a path of this machine can be given"
    assert run(*arguments.split()) == (2, "", f"{told} here.\n")
    assert list(tmp_path.iterdir()) == []


def test_an_address_of_an_unknown_kind_is_refused(run: Run) -> None:
    told = "Error: gs://b/home: there are no stores at gs://; give a path, or s3://...\n"
    for command in ("fuse-train --cache", "cache ls", "cache verify", "cache info", "cache export x.h5 --cache"):
        assert run(*command.split(), "gs://b/home") == (2, "", told)


@pytest.mark.parametrize(
    ("arguments", "is_kept"),
    [
        ("extract report --cache cache", True),
        ("-q demo predict", True),
        ("fuse-train --cache cache", True),
        ("cache import audit.h5", True),
        ("cache shrink --maps pooled", True),
        ("-v cache repair", True),
        ("-q cache export import.h5 --cache demo", False),
        ("cache -h gc", False),
        ("cache gc", False),
        ("cache ls extract", False),
        ("cache info", False),
        ("cache diff demo demo", False),
        ("cache verify", False),
        ("checkpoint import extract.pt", False),
        ("extract demo --dry-run", False),
        ("audit demo", False),
        ("predict demo", False),
        ("report demo", False),
        ("", False),
    ],
)
def test_what_is_kept_of_a_command_that_ends_early_is_said_where_it_is_true(
    run: Run, monkeypatch: pytest.MonkeyPatch, arguments: str, is_kept: bool
) -> None:
    kept = "; what was finished is kept, and the same command goes on from there" if is_kept else ""
    endings = {
        OSError(errno.EIO, "Input/output error", "file"): (1, f"Error: file: Input/output error{kept}\n"),
        OSError("no more room"): (1, f"Error: no more room{kept}\n"),
        SystemExit(128 + signal.SIGTERM): (143, f"stopped{kept}\n"),
    }
    for error, (code, told) in endings.items():
        monkeypatch.setattr(cli, "main", _raising(error))
        assert run(*arguments.split()) == (code, "", told)


def _raising(error: BaseException) -> Callable[..., None]:
    def fail(**_: Any) -> None:
        raise error

    return fail


@pytest.mark.parametrize("error", [SystemExit(1), UsageError("no cluster"), RuntimeError("lost")], ids=repr)
def test_what_a_library_makes_of_a_signal_is_still_the_signal(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(**_: Any) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except SystemExit:
            raise error from None

    monkeypatch.setattr(cli, "main", fail)
    assert run("audit", "demo") == (143, "", "stopped\n")


@pytest.mark.parametrize(
    ("engine", "number"), [("local", signal.SIGINT), ("local", signal.SIGTERM), ("ray", signal.SIGTERM)]
)
def test_a_signal_ends_the_run_and_keeps_what_is_finished(tmp_path: Path, engine: str, number: signal.Signals) -> None:
    if engine == "ray":
        pytest.importorskip("ray", reason="ray is not installed")
    root = tmp_path / "root"
    face_video(root / "a.mp4", np.arange(8) / FPS)
    face_video(root / "b.mp4", np.arange(600) / FPS)
    command = [sys.executable, "-m", "avfuse", "extract", root, "--corpus", "folder", "--cache", tmp_path / "cache"]
    more = ["--video-weights", "random:0", "--audio-weights", "random:0", "--engine", engine]
    mark = f"STARTED_BY={tmp_path}"
    environment = dict(os.environ, STARTED_BY=f"{tmp_path}")
    with subprocess.Popen([*command, *more], stderr=subprocess.PIPE, text=True, env=environment) as process:
        deadline_s = time.monotonic() + 120
        while not list((tmp_path / "cache").glob("features/*.zarr/recordings/a/zarr.json")):
            assert time.monotonic() < deadline_s
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "stopped; what was finished is kept" in err
    assert "Traceback" not in err
    store = FeatureCache.find(tmp_path / "cache")
    assert [item.name for item in store.recordings() if item.is_whole] == ["a"]
    if engine == "local":
        assert left_aside(store.path) == []
    while left := started_with(mark):  # killed ones may take a moment
        assert time.monotonic() < deadline_s, left
        time.sleep(0.05)
    store.store.prepare()  # as the next run does: workers of Ray may outlive the first process by a moment
    assert left_aside(store.path) == []


def started_with(mark: str) -> list[int]:
    """Return the processes whose environment has a setting."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m avfuse extract --help | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage")
    assert done.stderr == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_comes_early_has_its_code_and_no_traceback(number: signal.Signals) -> None:
    program = f"""
import os, sys
class Interrupts:
    def find_spec(self, name, *_):
        if name == "avfuse.cli":
            os.kill(os.getpid(), {number:d})
sys.meta_path.insert(0, Interrupts())
from avfuse.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", "")
