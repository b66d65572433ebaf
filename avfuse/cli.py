"""The door: the commands behind one name, exit codes and signals.

Exit codes: 0 done, 1 the machine failed, 2 wrong usage, 3 done but some recordings could not be used, 4 problems were
found, by an audit or in a cache, 130 interrupted, 143 terminated. Results go to standard output, progress and messages
to standard error; ``--json`` gives one object on standard output instead of tables.
"""

from __future__ import annotations

import os
import signal
import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import click

from avfuse import __version__
from avfuse.commands import EXIT_MACHINE, EXIT_USAGE
from avfuse.commands.audit import audit
from avfuse.commands.cache import cache
from avfuse.commands.checkpoint import checkpoint
from avfuse.commands.demo import demo
from avfuse.commands.extract import extract
from avfuse.commands.fuse_train import fuse_train
from avfuse.commands.predict import predict
from avfuse.commands.report import report
from avfuse.schema import UsageError
from avfuse.terminal import as_line, say, set_up_logging

# Commands that keep nothing to go on from when they are stopped.
_BEGIN_ANEW = (
    "audit",
    "predict",
    "report",
    "checkpoint import",
    "cache ls",
    "cache info",
    "cache diff",
    "cache verify",
    "cache gc",
    "cache export",
)
_BY_SIGNAL = (128 + signal.SIGINT, 128 + signal.SIGTERM)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, "-V", "--version", prog_name="avfuse")
@click.option("-v", "--verbose", is_flag=True, help="Say more of what is going on.")
@click.option("-q", "--quiet", is_flag=True, help="Show errors and results only.")
def cli(verbose: bool, quiet: bool) -> None:
    """Continuous emotion from video, in two stages that meet on disk.

    extract turns videos into a cache of features once; fuse-train trains audio-visual fusion heads from that cache;
    report tabulates the concordance (CCC) of the runs. demo writes a corpus to try them on.
    """
    set_up_logging(verbose, quiet)


for command in (demo, audit, extract, cache, fuse_train, predict, report, checkpoint):
    cli.add_command(command)


def main() -> NoReturn:
    """Run the command line and leave with its exit code."""
    try:
        with _stoppable():
            cli.main(standalone_mode=False)
        sys.exit(0)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(EXIT_USAGE)
    except click.ClickException as error:
        _say_error(error.format_message().replace("\n", " "))
        sys.exit(error.exit_code)
    except UsageError as error:
        _say_error(str(error))
        sys.exit(EXIT_USAGE)
    except SystemExit as leaving:  # said here, where no progress is shown any more that could wipe it away
        if leaving.code in _BY_SIGNAL:
            say(f"stopped{_tell_kept(sys.argv[1:])}", err=True)
        raise
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads any more: flush into nothing
        sys.exit(EXIT_MACHINE)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        _say_error(f"{place}{error.strerror or error}{_tell_kept(sys.argv[1:])}")
        sys.exit(EXIT_MACHINE)


def _tell_kept(words: Sequence[str]) -> str:
    """Say what is kept of a command that did not come to its end, if anything is; its words are the command line's."""
    command: click.Command = cli
    path: list[str] = []
    for word in words:  # what is no name of a command is an option of a group, or comes behind the command
        if isinstance(command, click.Group) and word in command.commands:
            command = command.commands[word]
            path.append(word)
    if not path or "--dry-run" in words or " ".join(path) in _BEGIN_ANEW:
        return ""
    return "; what was finished is kept, and the same command goes on from there"


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let signals end what is done, with their exit code, whatever libraries make of it on the way."""
    came: list[int] = []

    def leave(number: int, frame: types.FrameType | None) -> NoReturn:
        signal.signal(number, signal.SIG_IGN)
        came.append(number)
        raise SystemExit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
    try:
        yield
    except BaseException as error:
        if not came:
            raise
        raise SystemExit(128 + came[0]) from error


def _say_error(message: str) -> None:
    click.echo(f"{click.style('Error:', fg='red', bold=True)} {as_line(message)}", err=True)
