"""Every plug has its row, every row its plug."""

import importlib
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

import avfuse
from avfuse import registry
from avfuse.schema import UsageError

FOLDERS = {
    "corpus": "corpora",
    "encoder": "encoders",
    "engine": "engines",
    "store": "stores",
    "head": "fusion",
    "metric": "metrics",
    "format": "formats",
}
every_socket = pytest.mark.parametrize("socket", list(registry.SOCKETS))
every_row = pytest.mark.parametrize(
    ("socket", "name"), [(socket, name) for socket, table in registry.SOCKETS.items() for name in table]
)


def test_every_socket_has_its_folder() -> None:
    root = Path(avfuse.__file__).parent
    folders = {path.parent.name for path in root.glob("*/__init__.py")}
    assert folders - {"commands"} == set(FOLDERS.values())  # commands are named by avfuse.cli
    assert set(registry.SOCKETS) == set(FOLDERS)


@every_row
def test_row_loads(socket: str, name: str) -> None:
    if (socket, name) == ("engine", "ray"):
        pytest.importorskip("ray", reason="ray is not installed")
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


@pytest.fixture
def _gated(monkeypatch: pytest.MonkeyPatch) -> None:
    def gated(targets: list[str], *, depth: int = 2, rate: float = 0.5, open: bool = True, kind: str = "soft") -> None:
        """Stand in for a head."""

    monkeypatch.setitem(registry.HEADS, "gated", "gates:gated")
    monkeypatch.setattr(importlib, "import_module", {"gates": SimpleNamespace(gated=gated)}.__getitem__)


@pytest.mark.usefixtures("_gated")
def test_arguments_come_back_without_those_that_equal_the_defaults() -> None:
    given = {"depth": 2, "rate": 1, "open": False, "kind": "soft"}
    assert registry.check_arguments("head", "gated", given) == {"rate": 1, "open": False}
    assert registry.check_arguments("head", "gated", {}) == {}


@pytest.mark.usefixtures("_gated")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"width": 3}, "'gated' has no argument 'width'; it takes: depth=2, rate=0.5, open=True, kind=soft"),
        ({"targets": "a"}, "has no argument 'targets'"),
        ({"depth": 2.5}, "depth=2.5 is not a int such as 2"),
        ({"depth": True}, "depth=True is not a int"),
        ({"rate": "much"}, "rate=much is not a float such as 0.5"),
        ({"open": 1}, "open=1 is not a bool such as True"),
        ({"kind": 3}, "kind=3 is not a str such as soft"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        registry.check_arguments("head", "gated", given, reserved=("targets",))
