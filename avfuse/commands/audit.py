"""``avfuse audit``."""

from typing import Any

import click

from avfuse.commands import EXIT_PROBLEMS, check_out, json_flag, knobs_of, write_table
from avfuse.options import AuditOptions
from avfuse.schema import UsageError
from avfuse.terminal import print_json, show_progress


@click.command()
@knobs_of(AuditOptions)
@json_flag
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
    check_out(options.out)
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
        write_table(table, options.format, options.out)
    if summary.num_problems:
        raise SystemExit(EXIT_PROBLEMS)
