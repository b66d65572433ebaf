"""The door: commands, what they show, and exit codes.

Exit codes: 0 done, 1 the machine failed, 2 wrong usage, 3 done but some recordings could not be used, 4 an audit found
problems, 130 interrupted, 143 terminated. Results go to standard output, progress and messages to standard error;
``--json`` gives one object on standard output instead of tables.
"""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import sys
import time
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click

from avfuse import __version__, registry
from avfuse.options import (
    AuditOptions,
    DemoOptions,
    ExtractOptions,
    ImportOptions,
    PredictOptions,
    ReportOptions,
    TrainOptions,
)
from avfuse.schema import ReportTable, UsageError
from avfuse.terminal import print_json, print_table, set_up_logging, show_progress

EXIT_MACHINE, EXIT_USAGE, EXIT_FAILURES, EXIT_PROBLEMS = 1, 2, 3, 4
_BEGIN_ANEW = {"audit", "predict", "report"}  # commands that keep nothing when they are stopped
_BY_SIGNAL = (128 + signal.SIGINT, 128 + signal.SIGTERM)


class _FiniteRange(click.FloatRange):
    """A range of decimal numbers without NaN, which compares as neither too small nor too large, and infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


def knobs_of(options: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds one Click parameter per field of an options dataclass."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        hints = typing.get_type_hints(options)
        for field in reversed(dataclasses.fields(options)):
            command = _parameter(field, hints[field.name])(command)
        return command

    return decorate


def _parameter(field: dataclasses.Field[Any], hint: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    multiple = typing.get_origin(hint) is tuple
    kind = _click_type(field, hint)
    if field.metadata["argument"]:
        return click.argument(
            field.name, metavar=field.metadata["argument"], type=kind, nargs=-1 if multiple else 1, required=True
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
        return click.Path(path_type=Path)
    if inner in (int, float) and field.metadata["minimum"] is not None:
        return (click.IntRange if inner is int else _FiniteRange)(min=field.metadata["minimum"])
    return inner


_as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")


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


@cli.command()
@knobs_of(DemoOptions)
@_as_json
def demo(as_json: bool, **knobs: Any) -> None:
    """Write a demo corpus to ROOT: real video files, as Aff-Wild2 or as sessions rated for fatigue.

    One public-domain face, warped by known traces, with a synthesised voice. It shows that the machinery works and is
    no evidence about people.
    """
    from avfuse.demo import demo as write_demo

    with show_progress("demo corpus") as show:
        summary = write_demo(
            DemoOptions(**knobs), lambda done, total: show(done, total, f"{done}/{total} recordings", done == total)
        )
    if as_json:
        print_json(summary)
    else:
        click.echo(f"{summary.recordings} recordings ({summary.frames} frames) in {summary.root}")


@cli.command()
@knobs_of(AuditOptions)
@_as_json
@click.pass_context
def audit(context: click.Context, /, as_json: bool, **knobs: Any) -> None:
    """Look for what would corrupt training in the corpus at ROOT: files, clocks, ratings, partitions.

    Every recording is decoded and every annotation read; nothing is written. Problems are listed by recording, file and
    line, and the exit code is then 4. Remarks are what avfuse handles by itself: they are counted, and listed with
    avfuse -v audit, --format or --json.
    """
    from avfuse.audit import AuditProgress, tabulate
    from avfuse.audit import audit as run

    options = AuditOptions(**knobs)
    if as_json and (options.format or options.out):
        raise UsageError("--json prints one object; give it without --format and --out, or give --format json")
    _check_out(options.out)
    with show_progress("audit") as show:

        def on_progress(progress: AuditProgress) -> None:
            note = f"{progress.num_done}/{progress.num_recordings} recordings, {progress.num_problems} problems"
            finished = progress.num_done == progress.num_recordings
            show(progress.num_done, progress.num_recordings, note, finished)

        summary = run(options, on_progress)
    if as_json:
        print_json(summary)
    else:
        is_file = bool(options.format or options.out)
        table = tabulate(summary, with_remarks=is_file or context.find_root().params["verbose"])
        _write_table(table, options.format, options.out)
    if summary.num_problems:
        raise SystemExit(EXIT_PROBLEMS)


@cli.command()
@knobs_of(ExtractOptions)
@_as_json
def extract(as_json: bool, **knobs: Any) -> None:
    """Turn the videos of the corpus at ROOT into a cache of features, once.

    Running it again does only what is missing. A recording that cannot be used is listed with its reason, and the exit
    code is then 3.
    """
    from avfuse.extract import ExtractProgress
    from avfuse.extract import extract as run

    started_s = time.monotonic()
    with show_progress("extract") as show:

        def on_progress(progress: ExtractProgress) -> None:
            speed = progress.num_clips / max(time.monotonic() - started_s, 1e-9)
            failed = f", {progress.num_failed} failed" if progress.num_failed else ""
            note = f"{progress.num_done}/{progress.num_recordings} recordings{failed}, {speed:.1f} clips/s"
            finished = progress.num_done == progress.num_recordings
            show(progress.num_done + progress.share_of_recording, progress.num_recordings, note, finished)

        summary = run(ExtractOptions(**knobs), on_progress)
    if as_json:
        print_json(summary)
    else:
        _print_extract(summary)
    if summary.failures:
        raise SystemExit(EXIT_FAILURES)


@cli.command("fuse-train")
@knobs_of(TrainOptions)
@_as_json
def fuse_train(as_json: bool, **knobs: Any) -> None:
    """Train a fusion head from a cache of features, one run per seed.

    A complete run is left as it is, an interrupted one goes on where it was.
    """
    from avfuse.train import TrainProgress, train

    last: dict[int, str] = {}  # the last scored epoch of each seed
    with show_progress("fuse-train") as show:

        def on_progress(progress: TrainProgress) -> None:
            note = f"seed {progress.seed} epoch {progress.epoch}/{progress.num_epochs} loss {progress.loss:.3f}"
            ccc = [(key, value) for key, value in progress.metrics.items() if "ccc_" in key]
            last[progress.seed] = "".join(
                f"  {key.replace('ccc_', 'CCC ')} {value:.3f}" for key, value in ccc
            ) or last.get(progress.seed, "")
            note += last[progress.seed]
            done = progress.epoch - 1 + progress.share_of_epoch
            show(done, progress.num_epochs, note, milestone=bool(progress.metrics))

        summaries = train(TrainOptions(**knobs), on_progress)
    if as_json:
        print_json({"runs": [dataclasses.asdict(summary) for summary in summaries]})
        return
    targets = list(summaries[0].ccc)
    columns = ("run", "seed", "parameters", "best epoch", *(f"CCC {target}" for target in targets), "mean CCC", "s")
    rows = [
        (
            Path(item.run).parent.name + (" (was complete)" if item.was_complete else ""),
            str(item.seed),
            f"{item.num_parameters:,}",
            f"{item.best_epoch} of {item.num_epochs}",
            *(f"{item.ccc[target]:.3f}" for target in targets),
            f"{item.mean_ccc:.3f}",
            f"{item.elapsed_s:.0f}",
        )
        for item in summaries
    ]
    print_table(ReportTable("", columns, tuple(rows), (), (f"runs in {Path(summaries[0].run).parent}",)))


@cli.command()
@knobs_of(PredictOptions)
@_as_json
def predict(as_json: bool, **knobs: Any) -> None:
    """Predict every frame of a cache's partition with trained heads, as a table or as an ABAW submission.

    RUN is a run or a folder of runs; the predictions of several are averaged.
    """
    from avfuse.predict import predict as run

    with show_progress("predict") as show:
        summary = run(PredictOptions(**knobs), lambda done, total: show(done, total, f"{done}/{total} runs", True))
    if as_json:
        print_json(summary)
        return
    rows = [
        ("runs averaged", f"{summary.num_runs}"),
        (f"recordings ({summary.partition})", f"{summary.num_recordings}"),
        ("frames", f"{summary.num_frames:,}"),
        ("rows of the table", f"{summary.num_csv_rows:,}"),
        ("rows of the submission", f"{summary.num_submission_rows:,}"),
    ]
    print_table(ReportTable("", ("predict", ""), tuple(rows), ()))


@cli.command()
@knobs_of(ReportOptions)
def report(**knobs: Any) -> None:
    """Tabulate the CCC of runs: one row per head and options, mean and standard deviation over seeds.

    RUN is a run or a folder of runs; runs on different caches are refused.
    """
    from avfuse.report import report as run

    options = ReportOptions(**knobs)
    _check_out(options.out)
    _write_table(run(options), options.format, options.out)


@cli.group()
def checkpoint() -> None:
    """Weights that others published."""


@checkpoint.command("import")
@knobs_of(ImportOptions)
@_as_json
def import_(as_json: bool, **knobs: Any) -> None:
    """Turn the published fusion checkpoint FILE into a run, to be used like one trained here.

    FILE is a checkpoint of recursive joint attention or of joint cross attention as their authors released them. With
    --cache the run is scored on the validation partition of that cache, and takes its place in reports.
    """
    from avfuse.published import import_checkpoint

    with show_progress("checkpoint import") as show:
        summary = import_checkpoint(
            ImportOptions(**knobs), lambda done, total: show(done, total, f"{done}/{total} windows", done == total)
        )
    if as_json:
        print_json(summary)
        return
    rows = [
        ("head", summary.head),
        ("options", summary.head_options),
        ("targets", ", ".join(summary.targets)),
        ("parameters", f"{summary.num_parameters:,}"),
        *((f"CCC {target}", f"{value:.3f}") for target, value in summary.ccc.items()),
        ("run", summary.run),
    ]
    print_table(ReportTable("", ("checkpoint", ""), tuple(rows), ()))


def main() -> NoReturn:
    """Run the command line and leave with its exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    try:
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
            begins_anew = next((word for word in sys.argv[1:] if word[:1] != "-"), "") in _BEGIN_ANEW
            kept = "" if begins_anew else "; what was finished is kept, and the same command goes on from there"
            click.echo(f"stopped{kept}", err=True)
        raise
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads any more: flush into nothing
        sys.exit(EXIT_MACHINE)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        _say_error(f"{place}{error.strerror or error}; what was finished is kept")
        sys.exit(EXIT_MACHINE)


def _check_out(out: Path | None) -> None:
    """Refuse a file that cannot be written before any work is done."""
    if out is not None and not out.parent.is_dir():
        raise UsageError(f"--out {out}: the folder {out.parent} does not exist")


def _write_table(table: ReportTable, format: str | None, out: Path | None) -> None:
    """Show a table on the terminal, print it in a format, or write it to a file, as Markdown by default."""
    if format is None and out is None:
        print_table(table)
        return
    text = registry.load("format", format or "markdown")(table)
    if out is None:
        click.echo(text, nl=False)
    else:
        out.write_text(text, encoding="utf-8")
        click.echo(f"wrote {out}", err=True)


def _leave(number: int, frame: types.FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit(128 + number)


def _say_error(message: str) -> None:
    click.echo(f"{click.style('Error:', fg='red', bold=True)} {message}", err=True)


def _uneven(summary: Any) -> str:
    """Say in how many recordings annotation rows and frames did not meet, and what became of the rest."""
    rest = f"{summary.num_rows_dropped:,} rows dropped, {summary.num_frames_without_row:,} frames unrated"
    return f"{summary.num_uneven} recordings" + (f" ({rest})" if summary.num_uneven else "")


def _print_extract(summary: Any) -> None:
    rows = [
        ("recordings", f"{summary.num_recordings}"),
        ("extracted now", f"{summary.num_extracted}"),
        ("there before", f"{summary.num_present}"),
        ("failed", f"{len(summary.failures)}"),
        ("rows other than frames", _uneven(summary)),
        ("clips encoded", f"{summary.num_clips:,} ({summary.num_clips / max(summary.elapsed_s, 1e-9):.1f}/s)"),
        ("frames with a face", "-" if math.isnan(summary.face_share) else f"{100 * summary.face_share:.1f} %"),
        ("time", f"{summary.elapsed_s:.0f} s"),
        ("store", str(summary.store)),
    ]
    print_table(ReportTable("", ("extract", ""), tuple(rows), ()))
    for failure in summary.failures:
        click.echo(f"failed: {failure.recording}: {failure.reason}: {failure.message}")
