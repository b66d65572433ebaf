"""``avfuse predict``."""

from typing import Any

import click

from avfuse.commands import json_flag, knobs_of
from avfuse.options import PredictOptions
from avfuse.terminal import print_json, print_rows, show_progress


@click.command()
@knobs_of(PredictOptions)
@json_flag
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
    print_rows(("predict", ""), rows)
