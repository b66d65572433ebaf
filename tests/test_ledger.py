import dataclasses
import re
from pathlib import Path

import pytest
from toy import left_aside, toy_cache

from avfuse.cache import FeatureCache
from avfuse.ledger import FAILURES, Ledger, group_of_failure
from avfuse.schema import FAILURE_REASONS, Failure
from avfuse.sealed import read_sealed, seal
from avfuse.spec import Source
from avfuse.verification import verify_store

SOURCE = Source("train", "s", "a.mp4", "0" * 64, None)
FAILURE = Failure("a", "corrupt_packets", "a.mp4: 3 of 10 packets", 0.3)


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    return toy_cache(tmp_path)


def test_a_failure_is_kept_with_what_was_tried(cache: FeatureCache) -> None:
    cache.ledger.record(FAILURE, SOURCE)
    cache.ledger.record(Failure("b", "missing_file", "b.mp4 does not exist"), None)
    assert cache.ledger.failures() == [FAILURE, Failure("b", "missing_file", "b.mp4 does not exist")]
    kept = read_sealed(cache.store.metadata(group_of_failure("a")))
    assert kept == {**dataclasses.asdict(FAILURE), "source": dataclasses.asdict(SOURCE)}
    assert left_aside(cache.path) == []
    assert verify_store(cache.store).damages == ()


def test_a_failure_counts_for_the_very_files_that_were_tried(cache: FeatureCache) -> None:
    cache.ledger.record(FAILURE, SOURCE)
    cache.ledger.record(Failure("b", "missing_file", "b.mp4 does not exist"), None)
    assert cache.ledger.find("a", SOURCE) == FAILURE
    for changed in ({"sha256": "1" * 64}, {"annotation_sha256": "2" * 64}, {"partition": "test"}):
        assert cache.ledger.find("a", dataclasses.replace(SOURCE, **changed)) is None
    assert cache.ledger.find("a", None) is None
    assert cache.ledger.find("b", None) is None  # what could not be read is tried again
    assert cache.ledger.find("never tried", SOURCE) is None


def test_a_later_failure_stands_in_place_of_an_earlier_one(cache: FeatureCache) -> None:
    later = dataclasses.replace(FAILURE, reason="unreadable", message="it is not there", share=None)
    for failure in (FAILURE, later):
        cache.ledger.record(failure, SOURCE)
    assert cache.ledger.failures() == [later]
    cache.ledger.clear("a")
    cache.ledger.clear("a")
    assert cache.ledger.failures() == []


def test_an_altered_entry_is_no_entry(cache: FeatureCache) -> None:
    cache.ledger.record(FAILURE, SOURCE)
    file = Path(cache.path) / FAILURES / "a" / "zarr.json"
    file.write_bytes(file.read_bytes().replace(b"0.3", b"0.2"))
    assert cache.ledger.failures() == []
    assert cache.ledger.find("a", SOURCE) is None


def test_an_entry_of_before_there_were_sources_is_tried_again(cache: FeatureCache) -> None:
    group = Path(cache.path) / group_of_failure("old")
    group.mkdir(parents=True)
    (group / "zarr.json").write_bytes(seal({"recording": "old", "reason": "unreadable", "message": "because"}))
    ledger = Ledger(cache.store)
    assert ledger.failures() == [Failure("old", "unreadable", "because")]
    assert ledger.find("old", SOURCE) is None


def test_every_reason_is_told_in_the_documentation() -> None:
    page = (Path(__file__).parents[1] / "docs" / "extraction.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.+?`) \| ", page, re.MULTILINE)
    assert [name for row in rows for name in re.findall(r"`(\w+)`", row)] == list(FAILURE_REASONS)
