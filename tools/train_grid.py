"""Train a grid of heads by seeds from one cache, several runs side by side, and print their table.

A grid is a list of rows, each a head with its arguments; grids.toml declares them. Runs that are complete are left as
they are and an interrupted one goes on, so the command may be stopped, or killed, and started again at will.

Every run is trained in one of a few worker processes. A worker says through a pipe how far it is, and ends when its
parent does, whatever that died of; a run that fails, or whose worker dies, does not keep the others from their end.
"""

from __future__ import annotations

import contextlib
import logging
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
import tomllib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import avfuse  # noqa: F401  sets what must be set before torch is imported

# isort: split
import click
import torch
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from avfuse import registry
from avfuse.cache import FeatureCache
from avfuse.cli import cli, main
from avfuse.commands import EXIT_FAILURES
from avfuse.commands.fuse_train import fuse_train
from avfuse.commands.report import report
from avfuse.knobs import format_assignments
from avfuse.options import TrainOptions, cache_home
from avfuse.runs import read_predictions
from avfuse.schema import UsageError
from avfuse.terminal import make_console
from avfuse.train import TrainProgress, TrainSummary, train

GRIDS_FILE = Path(__file__).with_name("grids.toml")
BY_THE_GRID = ("head", "head_option", "fold", "as_json")  # options of fuse-train that are not the user's here
FROM_THE_CACHE = ("targets", "audio_size", "video_size", "map_size", "num_clips")  # arguments that no row gives
TELL_EVERY_S, LINE_EVERY_S, PATIENCE_S = 0.25, 30.0, 10.0
spawn = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Row:
    """A head with its own arguments."""

    head: str
    options: dict[str, Any] = field(default_factory=dict)
    label: str = ""

    @property
    def assignments(self) -> tuple[str, ...]:
        """The arguments as fuse-train takes them."""
        return tuple(format_assignments({key: value}) for key, value in self.options.items())

    @property
    def name(self) -> str:
        """What the row is called while it is trained."""
        return self.label or " ".join(filter(None, (self.head, format_assignments(self.options))))


@dataclass(frozen=True)
class Grid:
    """Rows to be trained and compared; `table` is the number of the paper's table that they stand beside."""

    title: str
    rows: tuple[Row, ...]
    table: int | None = None

    @property
    def heading(self) -> str:
        """What stands above the grid's table."""
        return f"Table {self.table} of the paper: {self.title}" if self.table else self.title


@dataclass(frozen=True, eq=False)
class Job:
    """One run: a row of the grid and a seed, as options of a training."""

    row: Row
    seed: int
    options: TrainOptions

    @property
    def name(self) -> str:
        """What the run is called in a message."""
        return f"{self.row.name}, seed {self.seed}"


@dataclass(frozen=True)
class Failure:
    """Why a run did not come to its end, or cannot be scored."""

    reason: str
    is_usage: bool = False


def read_grids() -> dict[str, Grid]:
    """Return the declared grids by name; UsageError if the file does not follow its own first lines."""
    try:
        declared = tomllib.loads(GRIDS_FILE.read_text(encoding="utf-8"))
        return {
            name: Grid(**{**values, "rows": tuple(Row(**row) for row in values["rows"])})
            for name, values in declared.items()
        }
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise UsageError(f"{GRIDS_FILE} does not declare grids as its first lines say: {error}") from error


def find_grid(name: str) -> Grid:
    """Return a grid of which every head and option is known; UsageError otherwise, before anything is trained."""
    grids = read_grids()
    if name not in grids:
        raise UsageError(f"unknown grid '{name}'; {GRIDS_FILE.name} declares: {', '.join(grids)}")
    seen = []
    for number, row in enumerate(grids[name].rows, start=1):
        try:
            arguments = registry.check_arguments("head", row.head, row.options, FROM_THE_CACHE)
            with torch.device("meta"):  # the head's own checks, without its weights
                registry.load("head", row.head)(("valence", "arousal"), **arguments)
            if (row.head, arguments) in seen:
                raise UsageError(f"{row.head} stands in the grid already, with the same arguments")
        except UsageError as error:
            raise UsageError(f"{GRIDS_FILE.name}, grid '{name}', row {number}: {error}") from error
        seen.append((row.head, arguments))
    return grids[name]


@dataclass
class Board:
    """How far a grid is: what ended and how, and the last that was heard of each run at work."""

    jobs: Sequence[Job]
    done: dict[Job, TrainSummary] = field(default_factory=dict)
    failed: dict[Job, Failure] = field(default_factory=dict)
    running: dict[Job, TrainProgress | None] = field(default_factory=dict)
    scored: dict[Job, TrainProgress] = field(default_factory=dict)
    started_s: float = field(default_factory=time.monotonic)

    @property
    def num_ended(self) -> int:
        """How many runs are at their end, good or bad."""
        return len(self.done) + len(self.failed)

    @property
    def num_begun(self) -> float:
        """How many runs the ones at work amount to, as if none of them ended early."""
        heard = [progress for progress in list(self.running.values()) if progress]
        return sum((item.epoch - 1 + item.share_of_epoch) / item.num_epochs for item in heard)

    def hear(self, job: Job, message: TrainProgress | TrainSummary | Failure) -> str:
        """Take in what became of a run; return a line where it is worth one."""
        if isinstance(message, TrainProgress):
            self.running[job] = message
            if message.metrics:
                self.scored[job] = message
            return ""
        del self.running[job]
        if isinstance(message, Failure):
            self.failed[job] = message
            return f"failed: {job.name}: {message.reason}"
        self.done[job] = message
        return "" if message.was_complete else f"{job.name}: {_ccc(message.ccc)}, {message.elapsed_s:.0f} s"

    def standing(self, job: Job) -> tuple[str, str, str]:
        """Return epoch, loss and last CCC of a run at work."""
        progress, scored = self.running.get(job), self.scored.get(job)
        if progress is None:
            return "starting", "", ""
        ccc = _ccc({key[4:]: value for key, value in scored.metrics.items() if key[:4] == "ccc_"}) if scored else ""
        return f"epoch {progress.epoch}/{progress.num_epochs}", f"loss {progress.loss:.3f}", ccc

    def clock(self) -> str:
        """Return the time since the start, and about how long the rest takes at the pace so far."""
        elapsed_s = time.monotonic() - self.started_s
        num_trained = self.num_begun + sum(not summary.was_complete for summary in list(self.done.values()))
        shown = str(timedelta(seconds=round(elapsed_s)))
        if not num_trained:
            return shown
        left_s = elapsed_s * (len(self.jobs) - self.num_ended - self.num_begun) / num_trained
        return f"{shown}, about {timedelta(seconds=round(left_s))} left"

    def line(self) -> str:
        """Return how far the grid is, in one line."""
        at_work = "; ".join(" ".join((job.name, *self.standing(job)[:2])) for job in self.running)
        return f"{self.num_ended} of {len(self.jobs)} runs, {self.clock()}: {at_work}"

    def bars(self) -> RenderableType:
        """Return what the foot of a terminal shows: a bar for the grid, a line for each run at work."""
        bar = ProgressBar(total=len(self.jobs), completed=self.num_ended + self.num_begun, width=30)
        failed = f", {len(self.failed)} failed" if self.failed else ""
        grid = Table.grid(padding=(0, 2))
        grid.add_row(bar, f"{self.num_ended} of {len(self.jobs)} runs{failed}", self.clock())
        runs = Table.grid("run", padding=(0, 2))
        for column in ("seed", "epoch", "loss", "CCC"):
            runs.add_column(column, no_wrap=True)
        for job in list(self.running):
            runs.add_row(job.row.name, f"seed {job.seed}", *self.standing(job))
        return Group(grid, runs)


def _ccc(values: dict[str, float]) -> str:
    return "CCC " + ", ".join(f"{target} {value:.3f}" for target, value in values.items())


class ToParent(logging.Handler):
    """Sends what a worker logs to its parent, who knows where to show it."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self.tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        """Send a message as text."""
        self.tell(self.format(record))


def work(pipe: Connection, num_threads: int) -> None:
    """Train the runs whose options come through the pipe, until it is closed; send what becomes of them."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    lock = threading.Lock()

    def tell(message: TrainProgress | TrainSummary | Failure | str) -> None:
        with lock:  # a library may warn from a thread of its own
            pipe.send(message)

    logging.basicConfig(handlers=[ToParent(tell)], force=True)
    logging.captureWarnings(True)
    torch.set_num_threads(num_threads)
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            options = pipe.recv()
            try:
                (summary,) = train(options, _now_and_then(tell))
                tell(summary)
            except (UsageError, OSError) as error:
                tell(Failure(str(error), is_usage=isinstance(error, UsageError)))
            except Exception as error:  # one run's end is not the others'
                logging.exception("an error that avfuse does not know")
                tell(Failure(f"{type(error).__name__}: {error}"))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _now_and_then(tell: Callable[[TrainProgress], None]) -> Callable[[TrainProgress], None]:
    """Return a function that tells of the ends of epochs, and of some of the steps between."""
    last_s = -math.inf

    def on_progress(progress: TrainProgress) -> None:
        nonlocal last_s
        if progress.metrics or time.monotonic() - last_s >= TELL_EVERY_S:
            last_s = time.monotonic()
            tell(progress)

    return on_progress


class Worker:
    """A process that trains one run after the other."""

    def __init__(self, num_threads: int) -> None:
        self.pipe, its_end = spawn.Pipe()
        self.process: SpawnProcess = spawn.Process(target=work, args=(its_end, num_threads), daemon=True)
        self.job: Job | None = None
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C is the parent's to answer
        self.process.start()
        signal.signal(signal.SIGINT, before)
        its_end.close()  # so that the pipe ends with the worker

    def give(self, job: Job, board: Board) -> None:
        """Let it train a run."""
        self.job = job
        board.running[job] = None
        with contextlib.suppress(BrokenPipeError):  # it died meanwhile, which `listen` finds
            self.pipe.send(job.options)

    def listen(self, board: Board) -> str:
        """Put the next thing it says, or its death, on the board; return a line where it is worth one."""
        assert self.job is not None
        try:
            said = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode or 0
            how = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"
            said = Failure(f"its process {how}")
        if isinstance(said, str):
            return said
        line = board.hear(self.job, said)
        if self.job not in board.running:
            self.job = None
        return line

    def stop(self) -> None:
        """End it, whatever it is at."""
        self.process.terminate()
        self.process.join(PATIENCE_S)
        self.process.kill()


def train_all(board: Board, num_workers: int, num_threads: int) -> None:
    """Train the jobs of a board, some side by side, and show how far they are."""
    waiting, workers = deque(board.jobs), list[Worker]()
    console = make_console()
    show = _once_each(console)
    line_s = time.monotonic()
    bars = Live(get_renderable=board.bars, console=console, transient=True)
    with bars if console.is_terminal else contextlib.nullcontext():
        try:
            while board.num_ended < len(board.jobs):
                workers = [worker for worker in workers if worker.job or worker.process.is_alive()]
                workers += [Worker(num_threads) for _ in range(min(num_workers - len(workers), len(waiting)))]
                for worker in workers:
                    if worker.job is None and waiting:
                        worker.give(waiting.popleft(), board)
                for worker in _speaking(workers):
                    show(worker.listen(board))
                if not console.is_terminal and time.monotonic() - line_s >= LINE_EVERY_S:
                    line_s = time.monotonic()
                    show(board.line())
        finally:
            for worker in workers:
                worker.stop()


def _speaking(workers: Sequence[Worker]) -> list[Worker]:
    """Return the workers that have something to say, after a moment's wait if there is none."""
    pipes = wait([worker.pipe for worker in workers if worker.job], timeout=1)
    return [worker for worker in workers if worker.pipe in pipes]


def _once_each(console: Console) -> Callable[[str], None]:
    """Return what shows a line: what every worker warns of, once."""
    shown = {""}

    def show(line: str) -> None:
        if line not in shown:
            shown.add(line)
            console.print(Text(line), soft_wrap=True)

    return show


def _set_aside_unscorable(board: Board) -> None:
    """Count a run whose predictions are damaged among the failed: the others still make a table."""
    for job, summary in list(board.done.items()):
        try:
            read_predictions(Path(summary.run))
        except UsageError as error:
            del board.done[job]
            board.failed[job] = Failure(str(error))


@click.command("train-grid")
@click.argument("grid")
@click.option("--jobs", type=click.IntRange(min=1), default=2, show_default=True, help="Runs trained side by side.")
def train_grid(grid: str, jobs: int, seed: tuple[int, ...], format: str | None, **knobs: Any) -> None:
    """Train the rows of GRID, as grids.toml declares them, once per seed, and print their table.

    What is complete is left as it is, what was interrupted goes on. The jobs share the cores. Options are those of
    avfuse fuse-train.
    """
    chosen = find_grid(grid)
    FeatureCache.find(cache_home(knobs["cache"]))  # refused here, rather than by every run
    board = Board(
        [
            Job(row, number, TrainOptions(**knobs, head=row.head, head_option=row.assignments, seed=(number,)))
            for number in dict.fromkeys(seed)
            for row in chosen.rows
        ]
    )
    train_all(board, jobs, max(1, torch.get_num_threads() // jobs))
    _set_aside_unscorable(board)
    reasons = {failure.reason for failure in board.failed.values()}
    if not board.done and len(reasons) == 1 and all(failure.is_usage for failure in board.failed.values()):
        raise UsageError(reasons.pop())  # one wrong option, said once
    if board.done:
        row_by_row = sorted(board.done, key=lambda job: (chosen.rows.index(job.row), board.jobs.index(job)))
        runs = tuple(Path(board.done[job].run) for job in row_by_row)
        click.get_current_context().invoke(report, runs=runs, title=chosen.heading, format=format)
    if board.failed:
        click.echo(f"{len(board.failed)} of {len(board.jobs)} runs failed and are not in the table:", err=True)
        for reason in dict.fromkeys(failure.reason for failure in board.failed.values()):
            names = [job.name for job, failure in board.failed.items() if failure.reason == reason]
            click.echo(f"{'; '.join(names)}: {reason}", err=True)
        raise SystemExit(EXIT_FAILURES)


train_grid.params += [option for option in fuse_train.params if option.name not in BY_THE_GRID]
train_grid.params += [option for option in report.params if option.name == "format"]

if __name__ == "__main__":  # one more command behind avfuse's door, with its errors, signals and exit codes
    cli.add_command(train_grid)
    sys.argv.insert(1, "train-grid")
    main()
