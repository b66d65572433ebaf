"""The scripts behind make: the grids say what the paper's tables say, and training them survives whatever is killed."""

import contextlib
import dataclasses
import importlib.util
import io
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import logging_and_signals_kept
from rich.console import Console
from toy import toy_cache

from avfuse import registry
from avfuse.cli import cli
from avfuse.paper import FIGURES, paper_ccc
from avfuse.runs import RUN_FILE, read_run, write_run
from avfuse.schema import UsageError
from avfuse.train import TrainProgress, TrainSummary

SCRIPT = Path(__file__).parents[1] / "tools" / "train_grid.py"
PROPOSED, RELIABILITY = "recursive_joint_attention", "reliability_joint_attention"
HEADS = ("audio_only", "visual_only", "concat", PROPOSED)  # of the grid "demo"
SOON_S = 120  # for what takes seconds on a machine of its own


@pytest.fixture(scope="module")
def tool() -> Iterator[ModuleType]:
    """Load the script as a module."""
    spec = importlib.util.spec_from_file_location("train_grid", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_grid"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["train_grid"]


def test_every_grid_names_known_heads_and_options(tool: ModuleType) -> None:
    assert list(tool.read_grids()) == ["demo", "ablation", "comparison", "released", "fatigue"]
    for name in tool.read_grids():
        assert tool.find_grid(name).rows


def test_the_comparison_names_every_head(tool: ModuleType) -> None:
    heads = [row.head for row in tool.find_grid("comparison").rows]
    assert sorted(heads) == sorted(registry.HEADS), "a head joins the comparison by a row in tools/grids.toml"
    assert not any(row.options for row in tool.find_grid("comparison").rows)


def figures(table: int) -> list[Any]:
    return [figure for figure in FIGURES if figure.table == table and figure.partition == "validation"]


def test_the_ablation_is_the_papers_first_table(tool: ModuleType) -> None:
    grid = tool.find_grid("ablation")
    rows = [(row.label, row.head, row.options, target) for row in grid.rows for target in ("valence", "arousal")]
    expected = [(item.method, item.head, item.head_options, item.target) for item in figures(1)]
    assert (grid.table, rows) == (1, expected)


def test_comparison_and_fatigue_hold_the_rows_of_the_papers_tables(tool: ModuleType) -> None:
    for name, table in (("comparison", 2), ("fatigue", 3)):
        grid = tool.find_grid(name)
        heads = [row.head for row in grid.rows]
        papers = list(dict.fromkeys(item.head for item in figures(table)))
        assert grid.table == table
        assert [head for head in heads if head in papers] == papers
    assert heads == papers


def test_the_released_grid_is_the_comparison_in_released_form(tool: ModuleType) -> None:
    rows = tool.find_grid("released").rows
    assert [row.head for row in rows] == [
        row.head for row in tool.find_grid("comparison").rows if row.head != RELIABILITY
    ]
    for row in rows:
        assert row.options == {"form": "released", **({"recursions": 1} if row.head == PROPOSED else {})}
        same = paper_ccc(row.head, {key: row.options[key] for key in row.options if key != "form"}, "valence")
        assert paper_ccc(row.head, row.options, "valence") == same


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[demo]\ntitle = "x"\nrows = [{ head = "sum" }]', "grid 'demo', row 1: unknown head 'sum'; known: "),
        (
            '[demo]\ntitle = "x"\nrows = [{ head = "concat" }, { head = "concat", options = { t = 1 } }]',
            "row 2: head 'concat' has no argument 't'; it takes: ",
        ),
        (
            f'[demo]\ntitle = "x"\nrows = [{{ head = "{PROPOSED}", options = {{ recursions = 0 }} }}]',
            "row 1: recursions is 0",
        ),
        (
            f'[demo]\ntitle = "x"\nrows = [{{ head = "{PROPOSED}" }}, '
            f'{{ head = "{PROPOSED}", options = {{ recursions = 2 }} }}]',
            "row 2: .* stands in the grid already",
        ),
        ('[demo]\nrows = [{ head = "concat" }]', "does not declare grids as its first lines say: .*'title'"),
        ("[demo", "does not declare grids"),
        ('[other]\ntitle = "x"\nrows = []', "unknown grid 'demo'; .* declares: other"),
    ],
)
def test_a_wrong_grid_is_refused(
    text: str, message: str, tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "grids.toml").write_text(text)
    monkeypatch.setattr(tool, "GRIDS_FILE", tmp_path / "grids.toml")
    with pytest.raises(UsageError, match=message):
        tool.find_grid("demo")


def test_the_board_shows_what_is_at_work_and_what_is_left(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    row = tool.Row(PROPOSED, {"recursions": 3})
    jobs = [tool.Job(row, seed, None) for seed in range(4)]
    board = tool.Board(jobs, started_s=1000.0)
    board.running = dict.fromkeys(jobs[:3])
    monkeypatch.setattr(tool.time, "monotonic", lambda: 1060.0)
    assert board.clock() == "0:01:00"
    summary = TrainSummary("", PROPOSED, 0, 1, 3, 4, {"valence": 0.5, "arousal": 0.25}, 0.375, 7.6, was_complete=False)
    assert board.hear(jobs[0], summary) == f"{row.name}, seed 0: CCC valence 0.500, arousal 0.250, 8 s"
    assert board.hear(jobs[2], tool.Failure("disk full")) == f"failed: {row.name}, seed 2: disk full"
    scores = {"ccc_valence": 0.5, "ccc_arousal": -0.25, "mean_ccc": 0.125}
    assert board.hear(jobs[1], TrainProgress("", 1, 1, 4, 1.0, 0.7, scores)) == ""
    assert board.hear(jobs[1], TrainProgress("", 1, 3, 4, 0.0, 0.6, {})) == ""
    assert board.clock() == "0:01:00, about 0:01:00 left"  # one and a half of four are done in a minute; one failed
    assert board.line() == f"2 of 4 runs, {board.clock()}: {row.name}, seed 1 epoch 3/4 loss 0.600"
    console = Console(width=160, file=io.StringIO())
    console.print(board.bars())
    foot = console.file.getvalue()
    for words in (
        "2 of 4 runs, 1 failed",
        row.name,
        "seed 1",
        "epoch 3/4",
        "loss 0.600",
        "valence 0.500, arousal -0.2",
    ):
        assert words in foot


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start the script on a store, two runs at a time; what still runs at the end of the test is killed."""
    processes = []

    def call(store: Path, *arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, SCRIPT, "demo", "--cache", store, "--jobs", 2, "--seed", 0, "--seed", 1, *arguments]
        pipe = subprocess.PIPE
        process = subprocess.Popen([*map(str, command), "--epochs", "10"], stdout=pipe, stderr=pipe, text=True)
        processes.append(process)
        return process

    yield call
    for process in processes:
        process.kill()
        process.communicate()


def wait_until(condition: Callable[[], Any]) -> Any:
    deadline_s = time.monotonic() + SOON_S
    while not (found := condition()):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    return found


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """Return the processes that it started."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
    return [child for child, parent in parents.items() if parent == process.pid]


def is_gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def complete_runs(home: Path) -> list[Path]:
    runs = [path.parent for path in (home / "runs").rglob(RUN_FILE)]
    return [run for run in runs if read_run(run).complete]


def content(runs: list[Path]) -> dict[Path, tuple[bytes, int]]:
    files = [path for run in runs for path in run.iterdir()]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="finds the workers in /proc")
def test_a_grid_survives_whatever_is_killed(start: Start, tmp_path: Path) -> None:
    store = toy_cache(tmp_path)

    # The parent is killed in the middle: its workers do not outlive it.
    process = start(store.path)
    wait_until(lambda: len(complete_runs(tmp_path)) >= 2)
    workers = workers_of(process)
    process.kill()
    process.communicate()
    assert len(workers) >= 2
    wait_until(lambda: all(map(is_gone, workers)))
    finished = complete_runs(tmp_path)
    before = content(finished)
    assert 2 <= len(finished) < 8

    # Terminated: the same, with a word on it.
    process = start(store.path)
    workers = wait_until(lambda: workers_of(process))
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=SOON_S)
    assert (process.returncode, out) == (143, "")
    assert "stopped; what was finished is kept" in err
    wait_until(lambda: all(map(is_gone, workers)))

    # A worker is killed, and a run that was finished cannot be gone on with: both are named with the reason, the others
    # come to their end, and the table is printed without the two.
    damaged = finished[0]
    write_run(damaged, dataclasses.replace(read_run(damaged), options={}))
    process = start(store.path, "--format", "json")
    wait_until(lambda: len(complete_runs(tmp_path)) > len(finished))
    time.sleep(0.1)  # so that the worker has told of that run and is at the next
    os.kill(max(workers_of(process)), signal.SIGKILL)
    out, err = process.communicate(timeout=SOON_S)
    assert process.returncode == 3
    failed = [line for line in err.splitlines() if line.startswith("failed: ")]
    (killed,) = [line for line in failed if re.search(r": its process was killed \(SIGKILL\)$", line)]
    (refused,) = [line for line in failed if line != killed]
    head, seed = damaged.parent.name.rpartition("-")[0], damaged.name[-1]
    assert refused.startswith(f"failed: {head}, seed {seed}: ")
    assert refused.endswith("holds a run with another options; give another --out or remove it")
    assert "2 of 8 runs failed and are not in the table" in err
    assert len(complete_runs(tmp_path)) == 7
    num_left = {head: 2 - sum(f": {head}, seed " in line for line in failed) for head in HEADS}
    rows = [(row["head"], len(row["runs"])) for row in json.loads(out)["rows"]]
    assert rows == [(head, num) for head, num in num_left.items() if num for _ in ("valence", "arousal")]

    # Mended and started again, it does what is missing, and nothing that is there.
    (damaged / RUN_FILE).write_bytes(before[damaged / RUN_FILE][0])
    before |= content([damaged])
    process = start(store.path, "--jobs", 1)
    out, err = process.communicate(timeout=SOON_S)
    assert process.returncode == 0, err
    assert err.count("CCC valence") == 1
    assert all(re.search(rf"│ {head} .*± .*│ {head}-\w+/seed-\{{0,1\}} ", out) for head in HEADS)
    assert len(complete_runs(tmp_path)) == 8
    assert {key: value for key, value in content(complete_runs(tmp_path)).items() if key in before} == before


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., int]]:
    """Run the script in this process, which has its imports, in a folder of its own; return its exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "commands", dict(cli.commands))

    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
        with pytest.raises(SystemExit) as leaving:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        return int(leaving.value.code or 0)

    with logging_and_signals_kept():
        yield call


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dem",), "unknown grid 'dem'; grids.toml declares: demo, ablation, comparison, released, fatigue"),
        (("demo", "--epochs", "0"), "Invalid value for '--epochs': 0 is not in the range x>=1."),
        (("demo", "--head", "concat"), "No such option '--head'"),
        (("demo", "--cache", "nowhere"), "nowhere holds no features; make them with: avfuse extract"),
    ],
)
def test_errors_are_those_of_avfuse(
    arguments: tuple[str, ...], message: str, run_here: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here(*arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("Error: ")
    assert shown.err.count("\n") == 1
    assert message in shown.err
