"""``avfuse cache``: what is done with a cache of features as a whole; each of its commands has a page of its own."""

import click

from avfuse.commands._diff import diff
from avfuse.commands._exchange import export, import_
from avfuse.commands._failures import failures
from avfuse.commands._gc import gc
from avfuse.commands._info import info
from avfuse.commands._ls import list_
from avfuse.commands._repair import repair
from avfuse.commands._shrink import shrink
from avfuse.commands._verify import verify


@click.group()
def cache() -> None:
    """Look after caches of features: check, mend, list, describe, compare and shrink them, take them elsewhere."""


for command in (verify, repair, list_, info, failures, diff, shrink, gc, export, import_):
    cache.add_command(command)
