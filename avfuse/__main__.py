"""``python -m avfuse``."""

from avfuse.cli import main

main()
