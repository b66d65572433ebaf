"""A strict reader of rated rows: a header, then one row of separated numbers per line.

A lenient reader would train on what is wrong: without a header `numpy.loadtxt` loses a row, with a swapped one it swaps
the targets, and a missing value shifts a trace. All faulty lines of a file are found in one reading.
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from avfuse.corpora._text import SEPARATORS, Faults, invalid, shown
from avfuse.schema import Range, UsageError

_DIGITS = r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?"
_NUMBER = re.compile(_DIGITS, re.ASCII)
_NUMBER_OR_UNRATED = re.compile(f"({_DIGITS})?|[nN][aA][nN]", re.ASCII)
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+", re.ASCII)
_WHOLE_NUMBER = re.compile(r"[+-]?\d+", re.ASCII)
_QUOTES = ("'", '"')


class Row(NamedTuple):
    """The fields of one line, without the spaces around them; lines are counted from 1."""

    line: int
    fields: list[str]


def split_rows(faults: Faults, lines: Sequence[str], columns: Sequence[str], separator: str) -> list[Row]:
    """Split the rows below the header; those with more or fewer fields than columns become faults.

    Blank lines at the end are left out, unless there is one column only, in which they are blank fields.

    Parameters
    ----------
    faults : Faults
        Of the file, to be added to.
    lines : sequence of str
        All lines of the file; the first one, the header, is skipped.
    columns : sequence of str
        The names in the header.
    separator : str
        One of `SEPARATORS`.

    Raises
    ------
    AnnotationError
        If there is no row.
    """
    end = len(lines)
    while end > 1 and not lines[end - 1].strip() and len(columns) > 1:
        end -= 1
    if end == 1:
        got, remedy = "the end of the file", "write one row per frame"
        raise invalid(faults.path, 2, "rows of numbers below the header", got, remedy)
    rows = []
    for line, text in enumerate(lines[1:end], start=2):
        fields = text.split(separator)
        if len(fields) == len(columns):
            rows.append(Row(line, [field.strip() for field in fields]))
        else:
            add_wrong_count(faults, line, text, fields, columns, separator)
    return rows


def add_wrong_count(
    faults: Faults, line: int, text: str, fields: Sequence[str], columns: Sequence[str], separator: str
) -> None:
    """Note a row that has not one field per column."""
    expected = f"{len(columns)} {SEPARATORS[separator]}-separated fields ({separator.join(columns)})"
    got = f"{len(fields)} ({shown(text)})" if text.strip() else "a blank line"
    remedy = "write one field per column"
    if separator == "," and len(fields) == 2 * len(columns) and all(map(_WHOLE_NUMBER.fullmatch, fields)):
        got, remedy = f"{got}, as decimal commas make", f"{remedy}, with a decimal point"
    faults.add(line, expected, got, remedy)


def parse_numbers(
    faults: Faults, rows: Sequence[Row], columns: Sequence[str], *, blank: bool
) -> npt.NDArray[np.float64]:
    """Read the numbers of rows; what is none becomes a fault.

    Parameters
    ----------
    faults : Faults
        Of the file, to be added to.
    rows : sequence of Row
        One field per column.
    columns : sequence of str
        What the fields are called in messages.
    blank : bool
        Whether a field may be blank or "nan", which then reads as NaN.

    Returns
    -------
    ndarray, shape (rows, columns), float64
        NaN where there is no number.
    """
    fields = [field for row in rows for field in row.fields]
    grammar = _NUMBER_OR_UNRATED if blank else _NUMBER
    if all(map(grammar.fullmatch, fields)):  # the good case at once: the same grammar, a tenth of the time
        values = np.array([float(field or "nan") for field in fields]).reshape(len(rows), len(columns))
        if not np.isinf(values).any():
            return values
    return np.array(
        [
            [read_number(faults, row.line, *pair, blank=blank) for pair in zip(columns, row.fields, strict=True)]
            for row in rows
        ],
        np.float64,
    ).reshape(len(rows), len(columns))


def read_number(faults: Faults, line: int, column: str, field: str, *, blank: bool = False) -> float:
    """Read one field. What is no finite number reads as NaN and becomes a fault, but for "" and "nan" where `blank`."""
    if _NUMBER.fullmatch(field):
        value = float(field)
        if math.isfinite(value):
            return value
    if not (blank and field.lower() in {"", "nan"}):
        expected, got = "a number", ("a blank field" if not field else shown(field)) + f" as {column}"
        remedy = "leave it blank if unrated" if blank else "write a number in every field"
        if _DECIMAL_COMMA.fullmatch(field):
            expected, remedy = "a number with a decimal point", "write a point for the comma"
        elif field.startswith(_QUOTES) and field.endswith(_QUOTES):
            expected, remedy = "a number without quotes", "remove the quotes"
        faults.add(line, expected, got, remedy)
    return math.nan


def add_outside(
    faults: Faults,
    rows: Sequence[Row],
    values_FE: npt.NDArray[np.float64],
    targets: Sequence[str],
    ranges: Sequence[Range | None],
) -> None:
    """Note the ratings that lie outside the ranges of their targets."""
    for column, (target, limits) in enumerate(zip(targets, ranges, strict=True)):
        if limits is None:
            continue
        values_F = values_FE[:, column]
        for index in np.flatnonzero((values_F < limits[0]) | (values_F > limits[1])).tolist():
            expected, got = f"a value from {limits[0]:g} to {limits[1]:g}", f"{values_F[index]:g} as {target}"
            faults.add(rows[index].line, expected, got, "correct it, or leave it blank if unrated")


def declared_range(lowest: float, highest: float) -> Range:
    """Return the range that the arguments of a corpus declare.

    Raises
    ------
    UsageError
        If they are not finite, or not in order.
    """
    if not (math.isfinite(lowest) and math.isfinite(highest) and lowest < highest):
        raise UsageError(f"lowest={lowest:g}, highest={highest:g}: give the range of ratings, lowest below highest")
    return float(lowest), float(highest)
