"""The command ``avfuse``, also as ``python -m avfuse``: it can be interrupted while it is still being loaded."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Load the command line and run it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda which, _: sys.exit(128 + which))
    from avfuse.cli import main as run

    run()


if __name__ == "__main__":
    main()
