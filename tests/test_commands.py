"""A file in commands/ is a command of its name; tables go to the terminal or to a file that can be written."""

import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from conftest import files_limited, logging_and_signals_kept
from toy import add_recording, toy_spec

from avfuse import commands
from avfuse.cache import FeatureCache
from avfuse.cli import cli
from avfuse.commands import check_out, write_table
from avfuse.schema import Failure, ReportTable, UsageError
from avfuse.stores.directory import DirectoryStore

FILES = sorted(path.stem for path in Path(commands.__file__).parent.glob("[!_]*.py"))
Run = Callable[..., tuple[int, str, str]]
TABLE = ReportTable("Title", ("row", "value"), (("first", "1"), ("second", "2")), (), ("note",))


@pytest.mark.parametrize("file", FILES)
def test_a_file_holds_the_command_of_its_name(file: str) -> None:
    command = getattr(importlib.import_module(f"avfuse.commands.{file}"), file)
    assert cli.commands[file.replace("_", "-")] is command
    leaves = command.commands.values() if isinstance(command, click.Group) else [command]
    assert all(leaf.help and leaf.get_short_help_str() for leaf in leaves)


def test_there_is_no_command_without_a_file() -> None:
    assert {name.replace("-", "_") for name in cli.commands} == set(FILES)


def test_a_file_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    check_out(None)
    check_out(tmp_path / "table.md")
    with pytest.raises(UsageError, match=r"^--out .*/nowhere/table.md: the folder .*/nowhere does not exist$"):
        check_out(tmp_path / "nowhere" / "table.md")


def test_a_table_goes_to_the_terminal_or_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(TABLE, None, None)
    shown = capsys.readouterr()
    assert "│ second" in shown.out
    assert shown.err == ""
    write_table(TABLE, "latex", None)
    latex = capsys.readouterr().out
    assert "second & 2" in latex
    write_table(TABLE, "latex", tmp_path / "table.tex")
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", f"wrote {tmp_path / 'table.tex'}\n")
    assert (tmp_path / "table.tex").read_text(encoding="utf-8") == latex
    write_table(TABLE, None, tmp_path / "table.md")
    assert "| second | 2 |" in (tmp_path / "table.md").read_text(encoding="utf-8")


def test_a_table_without_room_names_its_file(tmp_path: Path) -> None:
    with files_limited(10), pytest.raises(OSError, match="File too large") as refusal:
        write_table(TABLE, "latex", tmp_path / "table.tex")
    assert refusal.value.filename == str(tmp_path / "table.tex")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Call the command line: (exit code, standard output, standard error); a refusal is raised."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = 0
        capsys.readouterr()
        try:
            cli.main([*map(str, arguments)], standalone_mode=False)
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    with logging_and_signals_kept():
        yield call


@pytest.fixture
def home(tmp_path: Path) -> Path:
    cache = FeatureCache.create(tmp_path / "home", toy_spec(), {"video": {"weights": "random:0"}})
    for name, partition in (("a", "train"), ("b", "test")):
        add_recording(cache, name, partition, 9, seed=0)
    cache.ledger.record(Failure("c", "unreadable", "no frame"), None)
    return tmp_path / "home"


def damage(home: Path) -> Path:
    """Lengthen a file and add another; return the store."""
    store = Path(FeatureCache.find(home).path)
    with (store / "recordings/a/audio/c/0/0").open("ab") as file:
        file.write(b"0")
    (store / "notes.txt").touch()
    return store


def test_a_cache_is_verified_and_mended(run: Run, home: Path) -> None:
    code, out, err = run("cache", "verify", home)
    assert (code, err) == (0, "cache verify: 1/3 checked\ncache verify: 3/3 checked\n")
    assert out.endswith(": 2 recordings, 1 failure, 43 files, 32.6 kB: all as it was written\n")
    assert run("-q", "cache", "repair", home)[1].endswith(".zarr: all as it was written\n")
    store = damage(home)
    code, out, _ = run("-q", "cache", "verify", home)
    assert code == 4
    assert "│ a         │ recordings/a/audio/c/0/0 │ has 1,157 bytes, 1,156 were written │" in out
    assert out.endswith(": 2 findings, 1 recording damaged\n")
    code, out, _ = run("-q", "cache", "verify", store, "--json")
    found = json.loads(out)
    assert (code, found["num_damaged"], [item["file"] for item in found["damages"]]) == (
        4,
        1,
        ["notes.txt", "audio/c/0/0"],
    )
    assert run("-q", "cache", "verify", home, "--recording", "b")[1].endswith(": 1 finding, 0 recordings damaged\n")
    code, out, _ = run("-q", "cache", "repair", home)
    assert code == 0
    assert out.endswith("to be made anew: 1 recording; run the same avfuse extract, or cache import, again\n")
    assert "│ a         │ recordings/a │" in out
    assert run("-q", "cache", "verify", home)[0] == 0
    assert json.loads(run("-q", "cache", "repair", home, "--json")[1])["removals"] == []


def test_a_repair_says_what_is_to_be_made_anew(run: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Path(FeatureCache.find(home).path)
    for name in ("notes.txt", "recordings/a/stray"):
        (store / name).touch()
    out = run("-q", "cache", "repair", store)[1]
    assert out.endswith(f"\n{store}: set aside: 2; nothing needs to be made anew\n")
    (store / "recordings/zarr.json").unlink()
    out = run("-q", "cache", "repair", store)[1]
    assert out == f"{store}: what was found is gone, or replaced; nothing needs to be made anew\n"
    assert run("-q", "cache", "verify", store)[0] == 0
    damage(home)
    with monkeypatch.context() as patch:
        patch.setattr(DirectoryStore, "set_aside", _gone)
        out = run("-q", "cache", "repair", store)[1]
        assert out == f"{store}: what was found is gone, or replaced; nothing needs to be made anew\n"
    (store / "zarr.json").unlink()
    again = "run the same avfuse extract, or cache import, again\n"
    assert run("-q", "cache", "repair", store)[1].endswith(
        f"to be made anew: 1 recording and the settings of the store; {again}"
    )
    assert run("-q", "cache", "repair", store)[1] == f"to be made anew: the settings of the store; {again}"


def _gone(store: DirectoryStore, path: str) -> str:
    raise FileNotFoundError(path)


def test_caches_are_listed_and_described(run: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVFUSE_CACHE", str(home))
    name = toy_spec().store_name
    code, out, _ = run("cache", "ls")
    assert code == 0
    assert f"│ {name} │ 2          │ 1        │ 18    │ " in out
    (entry,) = json.loads(run("cache", "ls", home, "--json")[1])["stores"]
    assert (entry["num_clips"], entry["storage"], Path(entry["store"]).name) == (18, "float16, whole", name)
    code, out, _ = run("cache", "info")
    assert code == 0
    for row in (
        "│ clip.hop                 │ 8 ",
        "│ ranges                   │ [-1.0, 1.0], [-1.0, 1.0]",
        "│ provenance.video.weights │ random:0",
        "│ train     │ 1          │ 1        │ 9     │ 0.0     │",
        "│ video                  │ float16 │ 4.6 kB ",
        "compression: none (2 recordings)\nfailed: unreadable (1 recording)\n",
    ):
        assert row in out
    assert json.loads(run("cache", "info", home, "--json")[1])["partitions"]["test"]["num_clips"] == 9


def test_a_damaged_store_is_listed_with_what_to_do(run: Run, home: Path) -> None:
    store = Path(FeatureCache.find(home).path)
    content = (store / "zarr.json").read_bytes()
    (store / "zarr.json").write_bytes(content.replace(b"fp32", b"fp16"))
    (home / "features" / "none.h5").write_bytes(b"no HDF5")
    code, out, _ = run("cache", "ls", home)
    assert code == 0
    table, _, lines = out.rpartition("┘\n")
    assert "│ damaged        │" in table
    assert "│ cannot be read │" in table
    other, told = lines.splitlines()
    assert told == f"{store}: damaged; see: avfuse cache verify {store}"
    assert other.startswith(f"{home}/features/none.h5 is not an HDF5 file")


def test_caches_are_compared(run: Run, home: Path, tmp_path: Path) -> None:
    assert run("-q", "cache", "diff", home, home)[:2] == (0, "2 of 2 recordings in both are equal\n")
    other = FeatureCache.create(tmp_path / "other", toy_spec(storage={"dtype": "uint8", "maps": "whole"}), {})
    add_recording(other, "a", "train", 9, seed=0)
    add_recording(other, "d", "train", 9, seed=1)
    code, out, err = run("cache", "diff", home, tmp_path / "other")
    assert (code, err) == (4, "cache diff: 0/1 compared\ncache diff: 1/1 compared\n")
    assert "│ storage.dtype │ float16 │ uint8 │" in out
    assert f"only in {home}/features/{toy_spec().store_name}: b\nonly in {other.path}: d\n" in out
    assert "│ a         │ 0.0" in out
    assert out.endswith("0 of 1 recording in both are equal\n")
    code, out, _ = run("-q", "cache", "diff", home, tmp_path / "other", "--json")
    found = json.loads(out)
    assert (code, found["is_equal"], found["settings"]) == (4, False, {"storage.dtype": ["float16", "uint8"]})
    add_recording(other, "a", "test", 9, seed=1, file="elsewhere")
    assert "other sha256, partition, end_" not in run("-q", "cache", "diff", home, tmp_path / "other")[1]
    assert "other partition, sha256, face_share" in run("-q", "cache", "diff", home, tmp_path / "other")[1]


def test_left_overs_are_removed_when_that_is_agreed_to(run: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = damage(home)
    run("-q", "cache", "repair", home)
    aside = store.with_suffix(".damaged")
    with pytest.raises(UsageError, match=r"2 left-overs would be removed; nobody can be asked here, say so with --yes"):
        run("cache", "gc", home)
    listed = json.loads(run("cache", "gc", home, "--json")[1])
    assert ([item["kind"] for item in listed["found"]], listed["num_bytes_freed"]) == (["damaged", "damaged"], 0)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    for answer in (False, click.Abort()):
        monkeypatch.setattr(click, "confirm", _answering(answer))
        code, out, _ = run("cache", "gc", home)
        assert (code, "freed" in out, aside.exists()) == (0, False, True)
    monkeypatch.setattr(click, "confirm", _answering(True))
    code, out, _ = run("cache", "gc", home)
    assert (code, aside.exists()) == (0, False)
    assert ": 2 left-overs, " in out
    assert "freed " in out
    assert run("cache", "gc", home)[1] == f"{home}/features: 0 left-overs, 0 bytes\n"


def _answering(answer: bool | Exception) -> Callable[..., bool]:
    def confirm(*_: Any, **__: Any) -> bool:
        if isinstance(answer, Exception):
            raise answer
        return answer

    return confirm
