"""``avfuse checkpoint``: weights that others published."""

from typing import Any

import click

from avfuse.commands import json_flag, knobs_of
from avfuse.options import ImportOptions
from avfuse.terminal import print_json, print_rows, show_count


@click.group()
def checkpoint() -> None:
    """Weights that others published."""


@checkpoint.command("import")
@knobs_of(ImportOptions)
@json_flag
def import_(as_json: bool, **knobs: Any) -> None:
    """Turn the published fusion checkpoint FILE into a run, to be used like one trained here.

    FILE is a checkpoint of recursive joint attention or of joint cross attention as their authors released them. With
    --cache the run is scored on the validation partition of that cache, and takes its place in reports.
    """
    from avfuse.published import import_checkpoint

    with show_count("checkpoint import", "windows") as show:
        summary = import_checkpoint(ImportOptions(**knobs), show)
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
    print_rows(("checkpoint", ""), rows)
