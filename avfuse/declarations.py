"""A table of declarations, as TOML has it: its values are checked one by one, and errors name the file and the key."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avfuse.arrays import Location
from avfuse.schema import PARTITIONS, Range, UsageError

PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
PLACEHOLDERS = {"recording": ".+", "partition": "|".join(PARTITIONS), "subject": "[^/]+"}
"""What a location may leave open, and the regular expression of what stands there."""


@dataclass(frozen=True)
class Declarations:
    """A table and the file that it stands in; every method raises `UsageError` for a value that cannot be used."""

    path: Path
    table: dict[str, Any]

    def wrong(self, key: str, given: Any, expected: str) -> UsageError:
        """Return the error about a value."""
        shown = f"'{given}'" if isinstance(given, str) else f"{given}"
        return UsageError(f"{self.path}: {key} = {shown}: expected {expected}")

    def check_keys(self, table: Mapping[str, Any], known: tuple[str, ...], where: str = "") -> None:
        """Refuse keys that are not known; `where` says in which table they stand."""
        for key in table:
            if key not in known:
                raise UsageError(f"{self.path}: {where}unknown key '{key}'; known: {', '.join(known)}")

    def text(self, key: str, default: str) -> str:
        """Return a text."""
        value = self.table.get(key, default)
        if not isinstance(value, str) or (key in self.table and not value.strip()):
            raise self.wrong(key, value, "a text that is not empty")
        return value

    def choice(self, key: str, default: str, choices: tuple[str, ...]) -> str:
        """Return one of some texts."""
        value = self.table.get(key, default)
        if value not in choices:
            raise self.wrong(key, value, " or ".join(f"'{choice}'" for choice in choices))
        return str(value)

    def whole(self, key: str, default: int, minimum: int) -> int:
        """Return a whole number."""
        value = self.table.get(key, default)
        if type(value) is not int or value < minimum:
            raise self.wrong(key, value, f"a whole number of at least {minimum}")
        return value

    def number(self, key: str, minimum: float = -math.inf) -> float:
        """Return a number above the minimum; it must be there."""
        if key not in self.table:
            raise UsageError(f"{self.path}: {key} is missing: a number, such as {key} = 25")
        value = self.table[key]
        if type(value) not in (int, float) or not math.isfinite(value) or value <= minimum:
            above = f" above {minimum:g}" if math.isfinite(minimum) else ""
            raise self.wrong(key, value, f"a finite number{above}")
        return float(value)

    def targets(self) -> tuple[str, ...]:
        """Return the names of the targets; none by default."""
        value = self.table.get("targets", [])
        is_list = isinstance(value, list) and all(isinstance(item, str) and item.strip() for item in value)
        if not is_list or len(set(value)) < len(value):
            raise self.wrong("targets", value, 'a list of different names, such as ["valence", "arousal"]')
        return tuple(value)

    def ranges(self, num_targets: int) -> tuple[Range | None, ...]:
        """Return the lowest and the highest rating of each target; None where they are not declared."""
        value = self.table.get("ranges", [None] * num_targets)
        if not isinstance(value, list) or len(value) != num_targets or not all(map(_is_range, value)):
            raise self.wrong(
                "ranges", value, f"lowest and highest rating of each of the {num_targets} targets, [[-1, 1]]"
            )
        return tuple(None if item is None else (float(item[0]), float(item[1])) for item in value)

    def location(self, key: str, text: Any) -> Location:
        """Read a location whose placeholders are known, and refuse one that leaves the folder."""
        if not isinstance(text, str):
            raise self.wrong(key, text, "a text such as 'features/{recording}.npy'")
        unknown = [name for name in PLACEHOLDER.findall(text) if name not in PLACEHOLDERS]
        if unknown:
            names = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
            raise self.wrong(key, text, f"no other placeholders than {names}")
        try:
            location = Location.parse(text)
        except UsageError as error:
            raise UsageError(f"{self.path}: {key} = '{text}': {error}") from error
        self.check_inside(key, location.file)
        return location

    def check_inside(self, key: str, file: str) -> None:
        """Refuse a path that leaves the folder of the table's file."""
        folder, path = self.path.parent.resolve(), Path(file)
        try:
            is_inside = (
                not path.is_absolute() and ".." not in path.parts and (folder / path).resolve().is_relative_to(folder)
            )
        except (OSError, ValueError):  # what no path can be
            is_inside = False
        if not is_inside:
            raise self.wrong(key, file, f"a path below {folder}, the folder of the mapping, also behind links")


def _is_range(value: Any) -> bool:
    if value is None:
        return True
    is_pair = isinstance(value, list) and len(value) == 2 and all(type(item) in (int, float) for item in value)
    return is_pair and all(map(math.isfinite, value)) and value[0] < value[1]
