"""What the door shows where there is no terminal: lines now and then, tables of a fixed width, JSON without NaN."""

import json
import logging
import math
from dataclasses import dataclass

import pytest
from conftest import logging_and_signals_kept

from avfuse import terminal
from avfuse.schema import ReportTable


def test_progress_is_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.show_progress("extract") as show:
        show(0, 3, "first")
        show(1, 3, "too soon")
        show(2, 3, "milestone", True)
    out, err = capsys.readouterr()
    assert (out, err) == ("", "extract: first\nextract: milestone\n")


def test_quiet_shows_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with terminal.show_progress("extract") as show:
            show(0, 3, "first", True)
    finally:
        root.setLevel(level)
    assert capsys.readouterr() == ("", "")


def test_tables_show_title_rows_and_notes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    table = ReportTable("Title", ("head", "CCC"), (("concat", "0.5"), ("audio_only", "[0.25]")), (), ("A note.",))
    terminal.print_table(table)
    lines = capsys.readouterr().out.splitlines()
    assert (lines[0], lines[-1]) == ("Title", "A note.")
    assert any("concat" in line and "0.5" in line for line in lines)
    assert any("audio_only" in line and "[0.25]" in line for line in lines)  # markup is text
    assert max(map(len, lines)) <= terminal.PLAIN_WIDTH


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    @dataclass
    class Summary:
        ccc: dict[str, float]
        runs: tuple[float, ...]

    terminal.print_json(Summary({"valence": math.nan, "arousal": 0.5}, (math.inf, 1.0)))
    assert json.loads(capsys.readouterr().out) == {"ccc": {"valence": None, "arousal": 0.5}, "runs": [None, 1.0]}


@pytest.mark.parametrize(
    ("num_bytes", "expected"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (102_765_000, "102.8 MB"),
        (17.6e9, "17.6 GB"),
        (5e12, "5,000.0 GB"),
    ],
)
def test_sizes_are_decimal(num_bytes: float, expected: str) -> None:
    assert terminal.show_size(num_bytes) == expected


def test_counts_are_shown_first_and_last(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.show_count("cache verify", "checked") as show:
        for done in range(4):
            show(done, 3)
    assert capsys.readouterr().err == "cache verify: 0/3 checked\ncache verify: 3/3 checked\n"


def test_words_of_counts_and_settings() -> None:
    assert [terminal.counted(number, "clip") for number in (0, 1, 1200)] == ["0 clips", "1 clip", "1,200 clips"]
    assert [terminal.as_text(value) for value in (None, [1, 2], [[1, 2], 3], 0.5)] == ["-", "1, 2", "[1, 2], 3", "0.5"]


def test_what_would_move_the_cursor_or_cannot_be_written_is_written_out(capsys: pytest.CaptureFixture[str]) -> None:
    name = "red\x1b[31m\nb\udce9\u202ed é 日"
    shown = r"red\x1b[31m\nb\udce9\u202ed é 日"
    assert terminal.as_line(name) == shown
    terminal.say(name)
    terminal.print_rows(("recording", "reason"), [(name, name)])
    out = capsys.readouterr().out
    assert out.count(shown) == 3
    terminal.print_table(ReportTable("", ("score",), (("0.5\n± 0.1\x1b",),), ()))
    assert r"± 0.1\x1b" in [cell.strip() for cell in capsys.readouterr().out.split("│")]  # lines of cells stay lines
    assert "\x1b" not in out


def test_log_lines_keep_their_ends_and_lose_what_would_move_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_and_signals_kept():
        terminal.set_up_logging(verbose=False, quiet=False)
        logging.getLogger("avfuse").warning("%s\n%d %%", "a\x1b[2J\rb", 5)
    assert capsys.readouterr().err.splitlines()[0].endswith(r"WARNING a\x1b[2J\rb")


def test_a_long_first_column_leaves_room_for_the_others(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for length, num_lines in ((30, 1), (200, 4)):
        terminal.print_rows(("recording", "reason", "what was found"), [("n" * length, "no_face", "0 of 9 frames")])
        lines = [line for line in capsys.readouterr().out.splitlines() if "n" in line and "recording" not in line]
        assert len(lines) >= num_lines
        assert all(len(line) <= 80 for line in lines)
        assert "no_face" in lines[0]
        assert "".join(lines).count("n") >= length
