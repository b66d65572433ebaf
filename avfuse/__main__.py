"""The command ``avfuse``, also as ``python -m avfuse``: it can be interrupted while it is still being loaded."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path


def main() -> None:
    """Load the command line and run it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda which, _: sys.exit(128 + which))
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - for as long as we live
    from avfuse.cli import main as run

    run()


if __name__ == "__main__":
    main()
