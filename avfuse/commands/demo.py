"""``avfuse demo``."""

from typing import Any

import click

from avfuse.commands import json_flag, knobs_of
from avfuse.options import DemoOptions
from avfuse.terminal import print_json, say, show_count


@click.command()
@knobs_of(DemoOptions)
@json_flag
def demo(as_json: bool, **knobs: Any) -> None:
    """Write a demo corpus to ROOT: real video files, as Aff-Wild2 or as sessions rated for fatigue.

    One public-domain face, warped by known traces, with a synthesised voice. It shows that the machinery works and is
    no evidence about people.
    """
    from avfuse.demo import demo as write_demo

    with show_count("demo corpus", "recordings") as show:
        summary = write_demo(DemoOptions(**knobs), show)
    if as_json:
        print_json(summary)
    else:
        say(f"{summary.recordings} recordings ({summary.frames} frames) in {summary.root}")
