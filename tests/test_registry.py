"""Every plug has its row, every row its plug."""

import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest

import avfuse
from avfuse import registry
from avfuse.schema import UsageError

FOLDERS = {"corpus": "corpora", "encoder": "encoders", "head": "fusion", "metric": "metrics", "format": "formats"}
every_socket = pytest.mark.parametrize("socket", list(registry.SOCKETS))
every_row = pytest.mark.parametrize(
    ("socket", "name"), [(socket, name) for socket, table in registry.SOCKETS.items() for name in table]
)


def test_every_socket_has_its_folder() -> None:
    root = Path(avfuse.__file__).parent
    folders = {path.parent.name for path in root.glob("*/__init__.py")}
    assert folders == set(FOLDERS.values())
    assert set(registry.SOCKETS) == set(FOLDERS)


@every_row
def test_row_loads(socket: str, name: str) -> None:
    module, attribute = registry.SOCKETS[socket][name].split(":")
    assert module == f"avfuse.{FOLDERS[socket]}.{name}"
    plug = registry.load(socket, name)
    assert plug is getattr(importlib.import_module(module), attribute)
    assert callable(plug)
    assert plug.__module__ == module
    assert plug.__doc__


@every_socket
def test_every_file_has_a_row(socket: str) -> None:
    folder = Path(avfuse.__file__).parent / FOLDERS[socket]
    files = {path.stem for path in folder.glob("*.py") if not path.name.startswith("_")}
    assert files == set(registry.SOCKETS[socket])


@every_socket
def test_unknown_name_lists_the_known_ones(socket: str) -> None:
    known = ", ".join(registry.SOCKETS[socket])
    with pytest.raises(UsageError, match=f"^unknown {socket} 'gated'; known: {known}$"):
        registry.load(socket, "gated")


def test_a_new_row_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    plug = SimpleNamespace(gated=object())
    monkeypatch.setitem(registry.HEADS, "gated", "a_module_of_mine:gated")
    monkeypatch.setattr(importlib, "import_module", {"a_module_of_mine": plug}.__getitem__)
    assert registry.load("head", "gated") is plug.gated
