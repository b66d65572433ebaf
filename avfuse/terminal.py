"""What the door shows: log lines, progress, tables and JSON, on a terminal or in a file."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click

from avfuse.atomic import plain_values
from avfuse.schema import ReportTable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

HEARTBEAT_S = 10.0
PLAIN_WIDTH = 160
MAX_UNBROKEN_SHARE = 0.4  # of the width of a table, for a first column whose cells stay on one line
# What may stand in a file's name and would have a terminal do something, or cannot be written: control characters,
# those that turn the direction of text, and bytes that are no Unicode.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def set_up_logging(verbose: bool, quiet: bool) -> None:
    """Send log messages to standard error: errors only, warnings, or all."""
    from rich.logging import RichHandler

    level = logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING
    handler: logging.Handler
    if sys.stderr.isatty():
        handler = RichHandler(console=make_console(), show_path=False, log_time_format="%X")
        layout = "%(message)s"
    else:
        handler = logging.StreamHandler()
        layout = "%(asctime)s %(levelname)s %(message)s"
    handler.addFilter(_with_unseen_written)
    handler.setFormatter(_Formatter(layout))
    logging.basicConfig(level=level, handlers=[handler], force=True)


def as_line(text: str) -> str:
    """Return a text as it may be shown, on one line: what would not be seen is written as ``\\x1b``."""
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def as_lines(text: str) -> str:
    """Return a text as `as_line` does, but with its ends of lines."""
    return "\n".join(map(as_line, text.split("\n")))


def say(text: str, err: bool = False) -> None:
    """Write a line to standard output, or error."""
    click.echo(as_line(text), err=err)


def _with_unseen_written(record: logging.LogRecord) -> bool:
    record.msg, record.args = _as_record(record.getMessage()), ()
    return True


def _as_record(text: str) -> str:
    """Move lines behind the first in: none of them can be taken for a record of its own."""
    return as_lines(text).replace("\n", "\n    ")


class _Formatter(logging.Formatter):
    """Writes out what would not be seen in tracebacks, too."""

    def formatException(self, ei: Any) -> str:
        return _as_record(super().formatException(ei))


def make_console(stderr: bool = True) -> Console:
    """Return a console on standard error or output, of a fixed width where there is no terminal."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else PLAIN_WIDTH
    return Console(file=stream, width=width, highlight=False)


@contextlib.contextmanager
def show_progress(title: str) -> Iterator[Callable[..., None]]:
    """Show a bar on a terminal, or a plain line now and then elsewhere; yield what moves it."""
    if logging.getLogger().level >= logging.ERROR:
        yield lambda *_, **__: None
    elif not sys.stderr.isatty():
        yield _plain_lines(title)
    else:
        with _bar() as bar:
            task = bar.add_task(title, total=None, note="starting")

            def move(done: float, total: float, note: str, milestone: bool = False) -> None:
                bar.update(task, completed=done, total=total, note=note)

            yield move


@contextlib.contextmanager
def show_count(title: str, what: str) -> Iterator[Callable[[int, int], None]]:
    """Show how many of what are done, as "3/8 recordings"; yield what is told (done, total)."""
    with show_progress(title) as move:
        yield lambda done, total: move(done, total, f"{done}/{total} {what}", done == total)


def _bar() -> Progress:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    layout = (
        "{task.description}",
        BarColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*layout, console=make_console(), transient=True)


def _plain_lines(title: str) -> Callable[..., None]:
    last_s = [-math.inf]

    def move(done: float, total: float, note: str, milestone: bool = False) -> None:
        now_s = time.monotonic()
        if milestone or now_s - last_s[0] >= HEARTBEAT_S:
            last_s[0] = now_s
            say(f"{title}: {note}", err=True)

    return move


def print_table(table: ReportTable) -> None:
    """Print a table with its title above and its notes below."""
    from rich.table import Table
    from rich.text import Text

    out = make_console(stderr=False)
    if table.title:
        out.print(Text(as_lines(table.title), style="bold"))
    shown = Table()
    first = max((len(row[0]) for row in table.rows if row), default=0)
    for position, column in enumerate(table.columns):
        shown.add_column(column, overflow="fold", no_wrap=position == 0 and first <= MAX_UNBROKEN_SHARE * out.width)
    for row in table.rows:
        shown.add_row(*(Text(as_lines(cell)) for cell in row))
    out.print(shown)
    for note in table.notes:
        out.print(Text(as_lines(note)), soft_wrap=True)


def print_rows(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]], title: str = "") -> None:
    """Print rows as a table."""
    print_table(ReportTable(title, columns, tuple(tuple(map(as_line, row)) for row in rows), ()))


def as_text(value: Any) -> str:
    """Write a value of a setting: lists without their outer brackets, nothing as "-"."""
    if isinstance(value, list | tuple):
        return ", ".join(f"[{as_text(item)}]" if isinstance(item, list | tuple) else as_text(item) for item in value)
    return "-" if value is None else str(value)


def counted(number: int, thing: str) -> str:
    """Write "1 recording" or "1,200 recordings"."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def show_size(num_bytes: float) -> str:
    """Write a number of bytes as "12.3 MB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000 or unit == "GB":
            break
        num_bytes /= 1000
    return f"{num_bytes:,.0f} {unit}" if unit == "bytes" else f"{num_bytes:,.1f} {unit}"


def print_json(values: Any) -> None:
    """Print plain values, or a dataclass of them, as one JSON object."""
    plain = dataclasses.asdict(values) if dataclasses.is_dataclass(values) and not isinstance(values, type) else values
    click.echo(json.dumps(plain_values(plain), default=str))
