"""Commands: one file per command of ``avfuse``, or per group of commands.

Contract
--------
``avfuse/commands/<name>.py`` holds the Click command, or group, ``<name>`` (``fuse_train.py`` holds ``fuse-train``),
and `avfuse.cli` adds it to the command line. Its docstring is its help text, and its options are those of a dataclass
(`knobs_of`). A command shows how far the work is, prints what came of it, and leaves with its exit code by
``SystemExit``; the work itself is a stage's, imported inside the command so that a help text need not wait for it.

Results go to standard output, progress and messages to standard error. What several commands share is on this page.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from avfuse import registry
from avfuse.atomic import naming
from avfuse.knobs import parse_place
from avfuse.schema import ReportTable, UsageError
from avfuse.terminal import print_table, say

EXIT_MACHINE, EXIT_USAGE, EXIT_FAILURES, EXIT_PROBLEMS = 1, 2, 3, 4

json_flag = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
"""Decorator of a command that can print one object instead of its table; it passes ``as_json``."""


class _FiniteRange(click.FloatRange):
    """A range of decimal numbers without NaN, which compares as neither too small nor too large, and infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


class _Place(click.Path):
    """A path, or the address of a remote store, which a path would mangle."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        place = parse_place(value) if isinstance(value, str) else value
        return super().convert(place, param, ctx) if isinstance(place, Path) else place


class _LocalPath(click.Path):
    """A path of this machine; an address of a remote store would become a folder that is named like it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and isinstance(parse_place(value), str):
            self.fail(f"{value!r} is an address, and only a path of this machine can be given here.", param, ctx)
        return super().convert(value, param, ctx)


def knobs_of(options: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds one Click parameter per field of an options dataclass."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        hints = typing.get_type_hints(options)
        for field in reversed(dataclasses.fields(options)):
            word = field.metadata["argument"] or ""
            if word.startswith("["):  # Click shows no help of arguments, and of this one not what it is by default
                command.__doc__ = f"{command.__doc__}\n\n    {word.strip('[]')}: {field.metadata['help']}"
            command = _parameter(field, hints[field.name])(command)
        return command

    return decorate


def _parameter(field: dataclasses.Field[Any], hint: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    multiple = typing.get_origin(hint) is tuple
    kind = _click_type(field, hint)
    if field.metadata["argument"]:
        required = field.default is dataclasses.MISSING
        return click.argument(
            field.name, metavar=field.metadata["argument"], type=kind, nargs=-1 if multiple else 1, required=required
        )
    flag = field.metadata["flag"] or f"--{field.name.replace('_', '-')}"
    if kind is bool:
        return click.option(flag, field.name, is_flag=True, help=field.metadata["help"])
    shown = field.default not in (None, ())
    return click.option(
        flag,
        field.name,
        type=kind,
        multiple=multiple,
        default=field.default,
        show_default=shown,
        help=field.metadata["help"],
    )


def _click_type(field: dataclasses.Field[Any], hint: Any) -> Any:
    inner = next((part for part in typing.get_args(hint) if part not in (types.NoneType, Ellipsis)), hint)
    if field.metadata["choices"]:
        return click.Choice(field.metadata["choices"])
    if inner is Path:
        return (_Place if str in typing.get_args(hint) else _LocalPath)(path_type=Path)
    if inner in (int, float) and field.metadata["minimum"] is not None:
        return (click.IntRange if inner is int else _FiniteRange)(min=field.metadata["minimum"])
    return inner


def check_out(out: Path | None) -> None:
    """Refuse a file that cannot be written before any work is done."""
    if out is not None and not out.parent.is_dir():
        raise UsageError(f"--out {out}: the folder {out.parent} does not exist")


def write_table(table: ReportTable, format: str | None, out: Path | None) -> None:
    """Show a table on the terminal, print it in a format, or write it to a file, as Markdown by default."""
    if format is None and out is None:
        print_table(table)
        return
    text = registry.load("format", format or "markdown")(table)
    if out is None:
        click.echo(text, nl=False)
    else:
        with naming(out):
            out.write_text(text, encoding="utf-8")
        say(f"wrote {out}", err=True)
