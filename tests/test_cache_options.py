"""The knobs of avfuse cache: a place may be a path or an address, or left out; the rest is as of any other command."""

import dataclasses
from pathlib import Path

import click
import pytest

from avfuse import cache_options
from avfuse.cli import cli
from avfuse.commands import knobs_of

WITH_ARGUMENTS = ("CacheDiffOptions", "CacheExportOptions", "CacheImportOptions")
CLASSES = {kind.__name__: kind for kind in vars(cache_options).values() if dataclasses.is_dataclass(kind)}


def parsed(kind: type, *words: str) -> object:
    """Return the options that words on the command line give."""
    command = click.command()(knobs_of(kind)(lambda **knobs: kind(**knobs)))
    return command.main(list(words), standalone_mode=False)


@pytest.mark.parametrize("name", [name for name in CLASSES if name not in WITH_ARGUMENTS])
def test_a_place_is_a_path_an_address_or_left_out(name: str) -> None:
    kind = CLASSES[name]
    place = dataclasses.fields(kind)[0].name
    assert getattr(parsed(kind), place) is None
    assert getattr(parsed(kind, "cache/x.zarr"), place) == Path("cache/x.zarr")
    assert getattr(parsed(kind, "s3://bucket/a//b"), place) == "s3://bucket/a//b"
    assert parsed(kind) == kind()


def test_two_places_are_compared() -> None:
    assert parsed(cache_options.CacheDiffOptions, "a", "s3://b") == cache_options.CacheDiffOptions(Path("a"), "s3://b")
    with pytest.raises(click.MissingParameter):
        parsed(cache_options.CacheDiffOptions, "a")


def test_every_class_is_a_command_of_its_name() -> None:
    group = cli.commands["cache"]
    assert isinstance(group, click.Group)
    words = {"List": "ls", "Collect": "gc"}
    names = {name.removeprefix("Cache").removesuffix("Options") for name in CLASSES}
    assert {words.get(name, name.lower()) for name in names} <= set(group.commands)
    assert len(names) == 10
