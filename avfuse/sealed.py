"""Metadata that tell when a single byte of them was changed: the ``zarr.json`` of a group, written one way only.

Its attributes carry the sha256 of the whole document but for that digest, and the document is written with sorted keys
and a fixed layout. What does not read as exactly the bytes that writing it again would give was altered.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

SEAL = "seal"


def seal(attributes: Mapping[str, Any]) -> bytes:
    """Return the metadata document of a Zarr 3 group with these attributes, a seal among them."""
    unsealed = {key: value for key, value in attributes.items() if key != SEAL}
    digest = hashlib.sha256(_document(unsealed)).hexdigest()
    return _document({**unsealed, SEAL: digest})


def read_sealed(content: bytes | None) -> dict[str, Any] | None:
    """Return the attributes of a sealed document without the seal; None if there is none or it was altered."""
    attributes = read_attributes(content)
    if attributes is None or seal(attributes) != content:
        return None
    del attributes[SEAL]
    return attributes


def read_attributes(content: bytes | None) -> dict[str, Any] | None:
    """Return the attributes of a metadata document, altered or not; None if there are none."""
    try:
        return dict(json.loads(content or b"")["attributes"])
    except (ValueError, TypeError, KeyError):
        return None


def _document(attributes: Mapping[str, Any]) -> bytes:
    document = {"attributes": attributes, "node_type": "group", "zarr_format": 3}
    return json.dumps(document, indent=2, sort_keys=True).encode()
