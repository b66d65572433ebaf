"""How a knob is declared, and how what is given for one is read.

`avfuse.options` declares every knob by `knob`, once; the command line is generated from that, and the texts that are
given there, or in Python, are read by the functions of this page.
"""

from collections.abc import Mapping
from dataclasses import MISSING, field
from pathlib import Path
from typing import Any

from avfuse.schema import UsageError

HALF_A_WINDOW = "half a window"
_MAX_SHARD_LETTERS = 20

PROTOCOLS: dict[str, dict[str, Any]] = {
    "default": {
        "batch_size": 32,
        "epochs": 50,
        "learning_rate": 1e-4,
        "schedule": "plateau",
        "patience": 8,
        "gradient_clip": 1.0,
        "loss": "ccc",
        "windows": "all",
        "order": "shuffled",
        "overlap": HALF_A_WINDOW,
    },
    "released": {
        "batch_size": 64,
        "epochs": 50,
        "learning_rate": 1e-4,
        "schedule": "released",
        "patience": 50,
        "gradient_clip": 0.0,
        "loss": "released",
        "windows": "complete",
        "order": "recorded",
        "overlap": 0,
    },
}
"""What a training protocol sets where the user does not: knob -> value.

``released`` is the training of the code that was published with arXiv 2304.07958, its faults included, for those who
must compare with it: a learning rate that jumps tenfold after six epochs, no early stop, no clipping, a loss without a
guard, windows that must be full and labelled throughout, in the order of the recordings. It does not reproduce

- the fp16 autocast with a gradient scaler (`amp` is fp32 or bf16);
- the ten training videos that the release skips by name, which a corpus may leave out;
- its hop of 1, that is 32 phases, which is ``avfuse extract --hop 1``;
- its colour jitter, new in every epoch, of which ``avfuse extract --views K`` keeps K - 1 draws beside the plain clip;
- its choice of the epoch, by predictions that are smoothed and scored over unrated frames too.
"""


def knob(
    default: Any = MISSING,
    help: str = "",
    *,
    choices: tuple[str, ...] | None = None,
    minimum: float | None = None,
    argument: str | None = None,
    flag: str | None = None,
    record: bool = True,
) -> Any:
    """Declare a knob: a dataclass field with what the command line needs to know about it.

    `record` tells whether the value belongs to the identity of what the stage makes; a device or a place does not.
    """
    metadata = {"help": help, "choices": choices, "minimum": minimum, "argument": argument, "flag": flag}
    return field(default=default, metadata={**metadata, "record": record})


def protocol_knob(name: str, help: str, **arguments: Any) -> Any:
    """Declare a knob that the protocol sets unless it is given; the help text shows what each protocol makes of it."""
    shown = "; ".join(f"{protocol}: {values[name]}" for protocol, values in PROTOCOLS.items())
    return knob(None, f"{help}  [{shown}]", **arguments)


def parse_assignments(assignments: tuple[str, ...]) -> dict[str, Any]:
    """Turn ("recursions=3", "joint_blstm=false") into {"recursions": 3, "joint_blstm": False}.

    Values read as true/false, whole numbers, decimal numbers or else text.

    Raises
    ------
    UsageError
        If an item is not KEY=VALUE.
    """
    values: dict[str, Any] = {}
    for item in assignments:
        key, separator, text = item.partition("=")
        if not separator or not key.isidentifier():
            raise UsageError(f"'{item}' is not KEY=VALUE, for example recursions=2")
        values[key] = _parse_value(text)
    return values


def _parse_value(text: str) -> Any:
    if text.lower() in {"true", "false"}:
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def parse_fold(text: str) -> tuple[int, int]:
    """Turn "1/5", the first of five folds, into (0, 5).

    Raises
    ------
    UsageError
        If it is not I/N with 1 <= I <= N and N of at least 2.
    """
    index, separator, number = text.partition("/")
    if separator and index.isdecimal() and number.isdecimal() and 1 <= int(index) <= int(number) >= 2:
        return int(index) - 1, int(number)
    raise UsageError(f"--fold {text}: expected fold I of N as I/N, for example 1/5")


def parse_shard(text: str) -> tuple[int, int]:
    """Turn "2/8", the second of eight shares, into (1, 8).

    Raises
    ------
    UsageError
        If it is not I/N with 1 <= I <= N.
    """
    index, separator, number = text.partition("/")
    is_short = len(text) <= _MAX_SHARD_LETTERS
    if is_short and separator and index.isdecimal() and number.isdecimal() and 1 <= int(index) <= int(number):
        return int(index) - 1, int(number)
    raise UsageError(f"--shard {text[:_MAX_SHARD_LETTERS]}: expected share I of N as I/N, for example 2/8")


def parse_place(text: str) -> Path | str:
    """Turn text into a path, or leave it as it is where it addresses a remote store, as "s3://bucket/prefix" does."""
    return text if "://" in text else Path(text)


def format_assignments(values: Mapping[str, Any]) -> str:
    """Write {"recursions": 2, "joint_blstm": False} as "joint_blstm=false, recursions=2"."""
    return ", ".join(
        f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in sorted(values.items())
    )
