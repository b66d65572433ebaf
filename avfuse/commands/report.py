"""``avfuse report``."""

from typing import Any

import click

from avfuse.commands import check_out, knobs_of, write_table
from avfuse.options import ReportOptions


@click.command()
@knobs_of(ReportOptions)
def report(**knobs: Any) -> None:
    """Tabulate the CCC of runs: one row per head and options, mean and standard deviation over seeds.

    RUN is a run or a folder of runs; runs on different caches are refused.
    """
    from avfuse.report import report as run

    options = ReportOptions(**knobs)
    check_out(options.out)
    write_table(run(options), options.format, options.out)
