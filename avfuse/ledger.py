"""The ledger of a feature cache: why recordings could not be used, kept beside those that could.

An entry is a group of the store, so that any number of machines may write to one ledger, and is sealed as recordings
are. It holds the files that were tried: what failed is not tried again until one of them changes, or the user wants it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from avfuse import atomic
from avfuse.schema import Failure
from avfuse.sealed import read_sealed, seal
from avfuse.spec import Source, folder_name
from avfuse.stores import METADATA, Store

FAILURES = "failures"
_OF_FAILURE = tuple(item.name for item in fields(Failure))


class Ledger:
    """The failures that a store keeps; at most one of each recording."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def record(self, failure: Failure, source: Source | None) -> None:
        """Keep why a recording could not be used, in place of an earlier reason; `source` is what was tried, if known.

        Raises
        ------
        OSError
            If it cannot be kept.
        """
        self.write({**asdict(failure), "source": source and asdict(source)})

    def write(self, entry: Mapping[str, Any]) -> None:
        """Keep an entry as another ledger has it."""
        aside = self._store.aside()
        try:
            with atomic.naming(aside.parent):
                aside.mkdir(parents=True)
                (aside / METADATA).write_bytes(seal(entry))
            self._store.replace(aside, group_of_failure(str(entry["recording"])))
        finally:
            atomic.remove_tree(aside, is_settled=True)

    def clear(self, name: str) -> None:
        """Forget the failure of a recording, if there is one."""
        self._store.remove(group_of_failure(name))

    def find(self, name: str, source: Source | None) -> Failure | None:
        """Return why a recording could not be used when these very files were tried; None if they were not."""
        entry = read_sealed(self._store.metadata(group_of_failure(name)))
        if entry is None or source is None or entry.get("source") != asdict(source):
            return None
        return _failure(entry)

    def entries(self) -> list[dict[str, Any]]:
        """Return all entries, as they are kept, sorted by the recording's name; damaged ones are left out."""
        found = map(read_sealed, self._store.metadata_below(FAILURES).values())
        return sorted((item for item in found if item), key=lambda item: str(item["recording"]))

    def failures(self) -> list[Failure]:
        """Return the failures, sorted by the recording's name; damaged entries are left out."""
        return [_failure(entry) for entry in self.entries()]


def group_of_failure(name: str) -> str:
    """Return the group of a recording's failure in its store."""
    return f"{FAILURES}/{folder_name(name)}"


def _failure(entry: Mapping[str, Any]) -> Failure:
    known: dict[str, Any] = {name: entry.get(name) for name in _OF_FAILURE}
    return Failure(**known)
