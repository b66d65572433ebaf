"""What is given for a knob is read as its words say, or refused with what is allowed."""

from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import pytest

from avfuse.knobs import (
    PROTOCOLS,
    format_assignments,
    knob,
    parse_assignments,
    parse_fold,
    parse_place,
    protocol_knob,
)
from avfuse.schema import UsageError


def test_a_knob_is_a_field_that_knows_its_words() -> None:
    @dataclass(frozen=True)
    class Options:
        place: Path = knob(help="Where.", argument="PLACE", record=False)
        number: int = knob(2, "How many.", minimum=1, flag="--num")

    place, number = fields(Options)
    assert (place.default, number.default) == (MISSING, 2)
    common = {"choices": None}
    assert dict(place.metadata) == common | {
        "help": "Where.",
        "minimum": None,
        "argument": "PLACE",
        "flag": None,
        "record": False,
    }
    assert dict(number.metadata) == common | {
        "help": "How many.",
        "minimum": 1,
        "argument": None,
        "flag": "--num",
        "record": True,
    }
    assert Options(Path("here")).number == 2


def test_a_protocols_knob_shows_what_each_protocol_makes_of_it() -> None:
    declared = protocol_knob("patience", "Epochs.", minimum=1)
    assert declared.default is None
    assert declared.metadata["help"] == "Epochs.  [default: 8; released: 50]"
    assert {protocol: values["patience"] for protocol, values in PROTOCOLS.items()} == {"default": 8, "released": 50}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2", 2),
        ("-3", -3),
        ("0.5", 0.5),
        ("1e-4", 1e-4),
        ("true", True),
        ("False", False),
        ("r2plus1d_18", "r2plus1d_18"),
        ("", ""),
        ("a=b", "a=b"),
        ("1.2.3", "1.2.3"),
    ],
)
def test_assignments(text: str, value: Any) -> None:
    (parsed,) = parse_assignments((f"key={text}",)).values()
    assert parsed == value
    assert type(parsed) is type(value)


def test_several_assignments() -> None:
    assert parse_assignments(("recursions=3", "joint_blstm=false")) == {"recursions": 3, "joint_blstm": False}
    assert parse_assignments(()) == {}


@pytest.mark.parametrize("item", ["recursions", "=2", "", "two words=1", "2nd=1", "--recursions=2"])
def test_what_is_no_assignment(item: str) -> None:
    with pytest.raises(UsageError, match=f"^'{item}' is not KEY=VALUE, for example recursions=2$"):
        parse_assignments(("fine=1", item))


def test_assignments_are_written_as_they_are_read() -> None:
    values = {"recursions": 2, "joint_blstm": False, "dropout": 0.1, "arch": "r3d_18"}
    text = format_assignments(values)
    assert text == "arch=r3d_18, dropout=0.1, joint_blstm=false, recursions=2"
    assert parse_assignments(tuple(text.split(", "))) == values


@pytest.mark.parametrize("text", ["features", "/a/b.zarr", "a:b", "c:/d", "a//b", "./x.h5", ""])
def test_a_place_is_a_path(text: str) -> None:
    place = parse_place(text)
    assert isinstance(place, Path)
    assert place == Path(text)


@pytest.mark.parametrize("text", ["s3://bucket/prefix", "s3://bucket//a/../b/", "http://127.0.0.1:9000/bucket"])
def test_a_place_with_a_scheme_stays_as_it_is(text: str) -> None:
    assert parse_place(text) == text


def test_a_fold_is_one_of_at_least_two() -> None:
    assert [parse_fold(text) for text in ("1/2", "2/2", "5/10")] == [(0, 2), (1, 2), (4, 10)]
    for text in ("0/2", "3/2", "1/1", "1", "/2", "1/", "a/b", "-1/2", "1/2/3", "1.0/2"):
        with pytest.raises(UsageError, match=f"^--fold {text}: expected fold I of N as I/N, for example 1/5$"):
            parse_fold(text)
