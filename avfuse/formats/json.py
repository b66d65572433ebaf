"""The records of a table as JSON."""

import json
import math
from typing import Any

from avfuse.schema import ReportTable


def render(table: ReportTable) -> str:
    """Return {"title", "rows", "notes"} with one row per record; a number that is not finite becomes null."""
    document = {
        "title": table.title,
        "rows": [{key: _plain(value) for key, value in record.items()} for record in table.records],
        "notes": list(table.notes),
    }
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
