"""What an iterator yields, made ahead by a thread of its own: never more than a few items, whatever its length."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

_Item = TypeVar("_Item")
_LOOK_S = 0.1  # how long a thread that nobody listens to any more may take to see it


class Ahead(Generic[_Item]):
    """Iterate over `items` in a thread, at most `limit` items ahead of who takes them.

    For a ``with`` statement: leaving it ends the thread, wherever it is. What the items raise is raised where they are
    taken.
    """

    def __init__(self, items: Iterable[_Item], limit: int, name: str) -> None:
        self._items = items
        self._made: queue.Queue[tuple[str, object]] = queue.Queue(limit)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Iterator[_Item]:
        self._thread.start()
        return self._take()

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _take(self) -> Iterator[_Item]:
        while True:
            kind, item = self._made.get()
            if kind == "end":
                return
            if kind == "error":
                assert isinstance(item, BaseException)
                raise item
            yield item  # type: ignore[misc]

    def _run(self) -> None:
        try:
            for item in self._items:
                if not self._put("item", item):
                    return
        except BaseException as error:
            self._put("error", error)
        else:
            self._put("end", None)

    def _put(self, kind: str, item: object) -> bool:
        """Wait until there is room; tell whether anybody is still there to take the item."""
        while not self._is_over.is_set():
            try:
                self._made.put((kind, item), timeout=_LOOK_S)
            except queue.Full:
                continue
            return True
        return False
