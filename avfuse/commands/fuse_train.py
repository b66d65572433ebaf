"""``avfuse fuse-train``."""

import dataclasses
from pathlib import Path
from typing import Any

import click

from avfuse.commands import json_flag, knobs_of
from avfuse.options import TrainOptions
from avfuse.schema import ReportTable
from avfuse.terminal import print_json, print_table, show_progress


@click.command("fuse-train")
@knobs_of(TrainOptions)
@json_flag
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
