import threading
from collections.abc import Iterator

import pytest

from avfuse.ahead import Ahead


def count(limit: int, made: list[int]) -> Iterator[int]:
    for number in range(limit):
        made.append(number)
        yield number


def test_items_come_in_their_order() -> None:
    with Ahead(range(100), 3, "count") as items:
        assert list(items) == list(range(100))


def test_never_more_than_a_few_are_made_ahead() -> None:
    made: list[int] = []
    with Ahead(count(1000, made), 4, "count") as items:
        for taken in range(50):
            next(items)
            assert len(made) <= taken + 1 + 4 + 1  # taken, in the queue, and the one that waits for room


def test_what_is_raised_is_raised_where_items_are_taken() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise ValueError("the second")

    with Ahead(failing(), 4, "fail") as items:
        assert next(items) == 1
        with pytest.raises(ValueError, match="the second"):
            next(items)


def test_leaving_ends_the_thread_wherever_it_is() -> None:
    made: list[int] = []
    before = threading.active_count()
    with Ahead(count(10**9, made), 2, "endless") as items:
        next(items)
    assert threading.active_count() == before
    assert len(made) < 10
