"""``avfuse cache``: what is done with a cache of features as a whole."""

import click


@click.group()
def cache() -> None:
    """Look after caches of features: check, mend, list, describe and compare them."""
