"""A file in commands/ is a command of its name; tables go to the terminal or to a file that can be written."""

import importlib
from pathlib import Path

import click
import pytest

from avfuse import commands
from avfuse.cli import cli
from avfuse.commands import check_out, write_table
from avfuse.schema import ReportTable, UsageError

FILES = sorted(path.stem for path in Path(commands.__file__).parent.glob("*.py") if path.stem != "__init__")
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
