"""Sealed metadata: any byte that is changed, missing or added is noticed, and zarr reads them all the same."""

import json
from pathlib import Path
from typing import Any

import pytest
import zarr

from avfuse.sealed import SEAL, read_attributes, read_sealed, seal

ATTRIBUTES: dict[str, Any] = {
    "name": "Zoë\n😀",
    "count": 3,
    "fps": 29.97,
    "none": None,
    "nested": {"b": [1, True], "a": {}},
}


def test_what_was_sealed_is_read_and_any_zarr_reader_opens_it(tmp_path: Path) -> None:
    content = seal(ATTRIBUTES)
    assert read_sealed(content) == ATTRIBUTES
    assert seal(dict(reversed(ATTRIBUTES.items()))) == content
    assert seal(json.loads(content)["attributes"]) == content  # sealing again changes nothing
    (tmp_path / "zarr.json").write_bytes(content)
    found = dict(zarr.open_group(tmp_path, mode="r").attrs)
    assert len(found.pop(SEAL)) == 64
    assert found == ATTRIBUTES
    assert read_sealed(seal({})) == {}


def test_every_changed_missing_or_added_byte_is_noticed() -> None:
    content = seal(ATTRIBUTES)
    for place in range(len(content)):
        before, byte, behind = content[:place], content[place], content[place + 1 :]
        others = {byte ^ 1, byte ^ 32, byte ^ 128, ord("0"), ord(" "), ord("9")} - {byte}
        assert not any(read_sealed(before + bytes([other]) + behind) for other in others)
        assert read_sealed(before) is None
        if byte not in behind[:1]:  # of two equal bytes either may be the missing one
            assert read_sealed(before + behind) is None
        for added in b" 0\x00":
            assert read_sealed(before + bytes([added]) + content[place:]) is None


@pytest.mark.parametrize(
    "content",
    [None, b"", b"{", b"[]", b"7", b"\xff", b'{"attributes": 3}', b'{"attributes": [[]]}', b'{"node_type": 1}'],
)
def test_what_is_no_metadata_has_no_attributes(content: bytes | None) -> None:
    assert read_attributes(content) is None
    assert read_sealed(content) is None


def test_what_is_not_sealed_has_attributes_all_the_same() -> None:
    plain = b'{"attributes": {"a": 1}, "node_type": "group", "zarr_format": 3}'
    assert read_attributes(plain) == {"a": 1}
    assert read_sealed(plain) is None
