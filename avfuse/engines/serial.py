"""All recordings in this very process, one after the other: for looking into what happens, and for tests.

Nothing stands between a recording that crashes the process and the run.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import partial
from typing import ClassVar

from avfuse.engines import Engine, Job, OnProgress
from avfuse.engines._dispatch import deal_with, sparse
from avfuse.schema import Receipt, Recording


class SerialEngine(Engine):
    """One worker, here."""

    most_workers: ClassVar[int | None] = 1

    def __init__(self) -> None:
        pass

    def run(
        self, job: Job, recordings: Sequence[Recording], num_workers: int, on_progress: OnProgress
    ) -> Generator[Receipt, None, None]:
        """Yield the receipt of every recording, in their order."""
        if not recordings:
            return
        worker = job(0)
        try:
            for recording in recordings:
                receipt = deal_with(worker, recording, sparse(partial(on_progress, recording.name)))
                yield receipt
                if receipt.outcome == "stopped":
                    return
        finally:
            worker.close()
